#!/bin/bash
# A handful of sandboxes in the emulated machine, with nested paging (--npt 1) or shadow page tables (--npt 0): the
# `caisson` command line over a busybox bundle, and one container under a private containerd.
#   sandbox.sh [--npt 0|1]
# Expects the release to be built. The last line is `N passed, N failed, N skipped`.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$top/deploy/debian.sh"
npt=1
[ "${1:-}" != --npt ] || npt=$2
release=${CAISSON_TEST_RELEASE:-${CARGO_TARGET_DIR:-$top/target}/release}
image=$CAISSON_CACHE/busybox-image.tar
mkdir -p "$CAISSON_CACHE"
[ -e "$image" ] && [ ! /bin/busybox -nt "$image" ] || "$top/deploy/busybox-image.sh" "$image" || exit 2
log=$(mktemp "${TMPDIR:-/tmp}/caisson-sandbox.XXXXXX")
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM HUP

machine=(--npt "$npt" --memory 3072 --timeout "${CAISSON_QEMU_TIMEOUT:-360}" --put "$image:/image.tar"
    --put "$top/deploy/run-container.sh:/bin/run-container.sh" --put /usr/bin/containerd --put /usr/bin/ctr)
debian_need gcc libc6-dev || exit 2
ops=$(mktemp "${TMPDIR:-/tmp}/caisson-ops.XXXXXX")
trap 'rm -f "$log" "$ops"' EXIT
gcc -O2 -static -pthread -o "$ops" "$top/tests/bench/ops.c" || exit 2
machine+=(--put "$ops:/bin/ops")
programs=(containerd-shim-caisson-v2 caisson caisson-sentry caisson-gofer)
for program in "${programs[@]}"; do
    machine+=(--put "$release/$program:/usr/bin/$program")
done
"$here/boot.sh" "${machine[@]}" "$here/sandbox-script" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
passed=$(grep -c '^sandbox: ok ' "$log")
failed=$(grep -c '^sandbox: FAILED ' "$log")
# A machine that ended early has not told everything.
grep -q '^sandbox: end$' "$log" || failed=$((failed + 1))
[ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
