#!/bin/bash
# Runs one container with Caisson on a fresh Debian 12: installs what is missing, builds the release, starts a private
# containerd, runs the command in a busybox container, and leaves nothing behind.
#
#   deploy/quickstart.sh                   shows what the container sees: its kernel, processes, mounts and CPU
#   deploy/quickstart.sh COMMAND [ARG...]  runs a command; its exit status is the script's
#   deploy/quickstart.sh -it [COMMAND...]  an interactive shell (or command) on a terminal
#
# Needs root, git and Rust. RUNTIME=io.containerd.runc.v2 runs the same container with runc, to compare.
# CAISSON_QUICKSTART_EMULATE=1 uses the emulated machine even where /dev/kvm works.
set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$top/deploy/debian.sh"
. "$top/deploy/kvm.sh"
export RUNTIME=${RUNTIME:-io.containerd.caisson.v2}
caisson_packages=(-p caisson-shim -p caisson-sentry -p caisson-gofer)

fail() { echo "quickstart: $*" >&2; exit 1; }

terminal=
case ${1:-} in
    -it | -ti) terminal=1; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --) shift ;;
    -*) fail "unknown option $1 (see --help)" ;;
esac
if [ $# -eq 0 ] && [ -n "$terminal" ]; then
    set -- /bin/sh
elif [ $# -eq 0 ]; then
    set -- /bin/sh -c 'echo "kernel:"; uname -srvm
        echo "processes:"; ps -o pid,user,args
        echo "mounts:"; mount
        echo "CPU:"; grep -m 1 "model name" /proc/cpuinfo; echo "$(grep -c ^processor /proc/cpuinfo) processors"'
fi
[ "$(id -u)" -eq 0 ] || fail "needs root: containers, mounts and /dev/kvm do"
[ -z "$terminal" ] || [ -t 0 ] || fail "-it needs a terminal as standard input"
command -v cargo >/dev/null || fail "cargo is not in PATH: install Rust (https://rustup.rs) first"

trouble=$(kvm_trouble)
[ -z "${CAISSON_QUICKSTART_EMULATE:-}" ] || trouble="CAISSON_QUICKSTART_EMULATE is set"
debian_need busybox-static containerd gcc libc6-dev || fail "could not install what is missing"
release=${CARGO_TARGET_DIR:-$top/target}/release
if [ "$RUNTIME" = io.containerd.runc.v2 ]; then
    trouble=
    debian_need runc || fail "could not install runc"
else
    (cd "$top" && cargo build --release --quiet --locked "${caisson_packages[@]}") || fail "the build failed"
fi
mkdir -p "$CAISSON_CACHE"
export IMAGE=$CAISSON_CACHE/busybox-image.tar
[ -e "$IMAGE" ] && [ ! /bin/busybox -nt "$IMAGE" ] || "$top/deploy/busybox-image.sh" "$IMAGE" || fail "could not make the image"

if [ -z "$trouble" ]; then
    PATH=$release:$PATH TERMINAL=$terminal exec "$top/deploy/run-container.sh" "$@"
fi

echo "quickstart: no usable KVM: $trouble." >&2
echo "quickstart: running the container in an emulated machine with emulated KVM instead; this takes a minute or more." >&2
script=$(mktemp "${TMPDIR:-/tmp}/caisson-quickstart.XXXXXX")
trap 'rm -f "$script"' EXIT
trap 'exit 130' INT TERM HUP
{
    printf 'export RUNTIME=%q IMAGE=/image.tar TERMINAL=%q PATIENCE=1200\n' "$RUNTIME" "$terminal"
    printf 'exec /bin/run-container.sh'
    printf ' %q' "$@"
    echo
} >"$script"
machine=(--memory 3072 --timeout 1800 --put "$IMAGE:/image.tar" --put "$top/deploy/run-container.sh:/bin/run-container.sh"
    --put /usr/bin/containerd --put /usr/bin/ctr)
for program in containerd-shim-caisson-v2 caisson-sentry caisson-gofer; do
    machine+=(--put "$release/$program:/usr/bin/$program")
done
if [ -n "$terminal" ]; then
    machine+=(--interactive)
elif [ ! -t 0 ]; then
    # A terminal's lines are left alone without -it: it would lose its interrupt key.
    machine+=(--stdin)
fi
"$top/tests/qemu/boot.sh" "${machine[@]}" "$script"
