#!/bin/bash
# Packs a directory as a one-layer OCI image that `ctr images import` takes. Needs tar and sha256sum, no registry.
#   oci-image.sh ROOT-DIRECTORY IMAGE-NAME OUTPUT.tar [COMMAND...]
set -eu
root=$1 name=$2 output=$3
shift 3
[ $# -gt 0 ] || set -- /bin/sh
work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
blobs=$work/layout/blobs/sha256
mkdir -p "$blobs"

# blob FILE: moves a file to the place its digest names; prints "DIGEST SIZE".
blob() {
    local digest size
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    size=$(stat -c %s "$1")
    mv "$1" "$blobs/$digest"
    echo "$digest $size"
}

# json_words WORD...: the words as the inside of a JSON array.
json_words() {
    local separator= word
    for word in "$@"; do
        word=${word//\\/\\\\}
        printf '%s"%s"' "$separator" "${word//\"/\\\"}"
        separator=', '
    done
}

# Times and owners are fixed, so that the same tree always gives the same image.
tar -C "$root" --sort=name --numeric-owner --mtime=@0 --one-file-system --xattrs -cf "$work/layer" .
read -r layer layer_size < <(blob "$work/layer")
cat >"$work/config" <<JSON
{"architecture": "amd64", "os": "linux",
 "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": [$(json_words "$@")]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
JSON
read -r config config_size < <(blob "$work/config")
cat >"$work/manifest" <<JSON
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:$config", "size": $config_size},
 "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:$layer", "size": $layer_size}]}
JSON
read -r manifest manifest_size < <(blob "$work/manifest")
echo '{"imageLayoutVersion": "1.0.0"}' >"$work/layout/oci-layout"
cat >"$work/layout/index.json" <<JSON
{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
 "digest": "sha256:$manifest", "size": $manifest_size, "platform": {"architecture": "amd64", "os": "linux"},
 "annotations": {"io.containerd.image.name": "$name", "org.opencontainers.image.ref.name": "latest"}}]}
JSON
tar -C "$work/layout" -cf "$output.part" oci-layout index.json blobs
mv "$output.part" "$output"
