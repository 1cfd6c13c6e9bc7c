#!/bin/bash
# Runs platform-kvm's tests in the emulated machine: nested paging (--npt 1) or shadow page tables (--npt 0).
#   platform-kvm.sh [--npt 0|1] [TEST-HARNESS-ARGUMENT...]
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
npt=1
[ "${1:-}" != --npt ] || { npt=$2; shift 2; }
work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-platform.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# A static program needs nothing of the machine's file system; its own target keeps these flags from build scripts.
cd "$here/../.." || exit 126
RUSTFLAGS="-C target-feature=+crt-static" ${CAISSON_CARGO:-cargo} test -q -p caisson-platform-kvm --lib --tests \
    --no-run --target x86_64-unknown-linux-gnu --message-format=json >"$work/build.json" || exit 126
puts=()
while IFS= read -r program; do
    puts+=(--put "$program:/tests/$(basename "$program")")
done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$work/build.json")
[ ${#puts[@]} -gt 0 ] || { echo "platform-kvm.sh: the package has no tests" >&2; exit 126; }

{
    # Every exit and every kick costs 100 us and more in the emulated machine, so a small part of the rounds is done there (3000 of 10^5
    # kicks); the probe must find what was asked for.
    [ "$npt" = 1 ] && paging=nested || paging=shadow
    echo "export CAISSON_TEST_SCALE=${CAISSON_TEST_SCALE:-0.03} CAISSON_EXPECT_MODE=native,$paging"
    echo 'failed=0'
    echo 'for program in /tests/*; do'
    printf '    "$program" --test-threads=1'
    [ $# -eq 0 ] || printf ' %q' "$@"
    printf ' || failed=1\ndone\nexit $failed\n'
} >"$work/script"
"$here/boot.sh" --npt "$npt" --timeout "${CAISSON_QEMU_TIMEOUT:-360}" "${puts[@]}" "$work/script"
