#!/bin/bash
# Builds and runs one end-to-end suite in a directory of its own, and sweeps up whatever is left when it ends or is
# interrupted.
#   suite.sh NAME [PART-OF-A-TEST-NAME...]        (the suites are in tests/suites/)
# CAISSON_TEST_RUNTIME=io.containerd.runc.v2 runs it with runc; CAISSON_TEST_SUITE=trixie or sid with that Debian
# suite's containerd, which is fetched and unpacked beside; CAISSON_TEST_EXITLESS=off so that every system call leaves the
# guest. CAISSON_TEST_BUILT=1 says that everything is built.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
. "$top/deploy/debian.sh"
. "$here/sweep.sh"
name=${1:?suite.sh: name a suite}
shift
target=${CARGO_TARGET_DIR:-$top/target}
export CAISSON_CACHE CAISSON_TEST_RELEASE=${CAISSON_TEST_RELEASE:-$target/release}
cargo=${CAISSON_CARGO:-cargo}
cd "$top" || exit 2

if [ -n "${CAISSON_TEST_SUITE:-}" ]; then
    if ! tree=$(debian_unpacked "$CAISSON_TEST_SUITE" containerd); then
        echo "$name: SKIPPED everything: Debian $CAISSON_TEST_SUITE's containerd is not served by this machine's mirror"
        echo "$name: 0 passed, 0 failed, 1 skipped"
        exit 0
    fi
    export CAISSON_TEST_CONTAINERD=$tree/usr/bin
fi
if [ -z "${CAISSON_TEST_BUILT:-}" ]; then
    $cargo build -q -p caisson-tests --bins || exit 2
    case ${CAISSON_TEST_RUNTIME:-caisson} in
        *caisson*) $cargo build -q --release -p caisson-shim -p caisson-sentry -p caisson-gofer || exit 2 ;;
    esac
fi
image=$CAISSON_CACHE/busybox-image.tar
mkdir -p "$CAISSON_CACHE"
[ -e "$image" ] && [ ! /bin/busybox -nt "$image" ] || "$top/deploy/busybox-image.sh" "$image" || exit 2
CAISSON_TEST_DEBIAN=${CAISSON_TEST_DEBIAN:-$("$here/debian-root.sh")} || exit 2
export CAISSON_TEST_DEBIAN
# Without it one test is skipped.
[ "$name" != debian ] || export CAISSON_TEST_C_PROJECT=$(debian_source lua5.4)

work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-suite.XXXXXX")
suite=
finish() {
    trap '' INT TERM HUP
    [ -z "$suite" ] || kill -KILL "$suite" 2>/dev/null
    sweep "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
RUST_BACKTRACE=0 TMPDIR=$work "$target/debug/suite-$name" "$@" &
suite=$!
wait "$suite"
status=$?
suite=
exit "$status"
