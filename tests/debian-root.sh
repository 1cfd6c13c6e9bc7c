#!/bin/bash
# Builds the Debian 12 root file system that the workload suites run, once; prints the directory it is cached in:
#   $CAISSON_CACHE/debian-12-KEY/{root/,image.tar}     (KEY stands for the list of packages)
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../deploy/debian.sh"
packages=bash,coreutils,findutils,grep,sed,dpkg,apt,perl,python3,gcc,libc6-dev,make,git,tar,gzip,xz-utils
packages+=,openssl,sqlite3,vim,tmux,strace,procps,ncurses-base,ncurses-bin,diffutils,util-linux,file,bsdextrautils

key=$(echo "$packages" | sha256sum | cut -c 1-8)
place=$CAISSON_CACHE/debian-12-$key
mkdir -p "$CAISSON_CACHE"
exec 9>"$place.lock"
flock 9
if [ ! -e "$place/image.tar" ]; then
    debian_need debootstrap >&2
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || { debian_update; mirror=$(debian_mirror); }
    rm -rf "$place" "$place.part"
    mkdir -p "$place.part"
    trap 'rm -rf "$place.part"' EXIT
    trap 'exit 130' INT TERM HUP
    debian_quietly debootstrap --variant=minbase --include="$packages" bookworm "$place.part/root" "$mirror" >&2
    rm -rf "$place.part"/root/var/cache/apt/archives/*.deb "$place.part"/root/var/lib/apt/lists/*
    echo caisson >"$place.part/root/etc/hostname"
    echo '127.0.0.1 localhost caisson' >"$place.part/root/etc/hosts"
    "$here/../deploy/oci-image.sh" "$place.part/root" docker.io/caisson/debian:latest "$place.part/image.tar" /bin/bash
    mv "$place.part" "$place"
fi
echo "$place"
