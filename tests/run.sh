#!/bin/bash
# Runs every test; the only thing that CI calls. On a fresh Debian 12 with git, Rust and root it installs what is
# missing, builds the release, and goes through the steps below in order.
#
#   tests/run.sh            everything
#   tests/run.sh STEP...    only these steps (see `steps`), for work on one of them
#
# The last line is `N passed, N failed, N skipped`; the status is not 0 when something failed. Where /dev/kvm cannot be
# used it says so in one sentence, and sandboxes are tried in the emulated machine only.
set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top" || exit 1
. deploy/debian.sh
. deploy/kvm.sh
. tests/sweep.sh

steps="format lint unit gofer platform platform-npt platform-shadow sandbox-npt sandbox-shadow quickstart
    guest cli ctr confinement debian density badinput ctr-1.7 ctr-2.1 guest-exits cli-exits"
# After this many seconds no step is started any more: better a list of what is missing than none at all.
budget=${CAISSON_TEST_BUDGET:-3300}
# Words for cargo that a machine shared by many may need in front.
cargo=${CAISSON_CARGO:-cargo}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$top/target} CARGO_TERM_COLOR=never CAISSON_CACHE
export CAISSON_TEST_RELEASE=$CARGO_TARGET_DIR/release

[ $# -eq 0 ] || steps=$*
passed=0 failed=0 skipped=0 running=
work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-run.XXXXXX") || exit 1

finish() {
    trap '' INT TERM HUP
    if [ -n "$running" ]; then
        kill -TERM -- "-$running" 2>/dev/null
        for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 -- "-$running" 2>/dev/null && sleep 0.5; done
        kill -KILL -- "-$running" 2>/dev/null
    fi
    sweep "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# attempt SECONDS COMMAND...: runs it in a process group of its own with a limit; its output goes to $work/log.
attempt() {
    setsid timeout -k 30 "$1" env TMPDIR="$work/tmp" "${@:2}" >"$work/log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    local status=$?
    running=
    return "$status"
}

# tally: adds up the counts in the log (of cargo test, or of a suite's last line) into $p, $f and $s.
tally() {
    read -r p f s < <(awk '
        /^test result: / { for (i = 1; i < NF; i++) {
            if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i; if ($(i + 1) ~ /^ignored/) s += $i } }
        /^([a-z-]+: )?[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { sub(/^[a-z-]+: /, ""); p += $1; f += $3; s += $5 }
        END { print p + 0, f + 0, s + 0 }' "$work/log")
}

# step NAME SECONDS COMMAND...: one line of progress; the end of its output when it failed.
step() {
    local name=$1 limit=$2 started=$SECONDS status=0 p f s
    shift 2
    case " $(echo $steps) " in *" $name "*) ;; *) return 0 ;; esac
    if [ "$SECONDS" -gt "$budget" ]; then
        failed=$((failed + 1))
        echo "$name: FAILED: not started, the time of $budget s is over"
        return 0
    fi
    rm -rf "$work/tmp" && mkdir "$work/tmp"
    # A suite stops by itself a little earlier, so that its counts are not lost.
    CAISSON_SUITE_SECONDS=$((limit - 60)) attempt "$limit" "$@" || status=$?
    tally
    # A step that counts nothing is one test; one that failed without a failed test is a failed test.
    if [ "$p" -eq 0 ] && [ "$f" -eq 0 ] && [ "$s" -eq 0 ] && [ "$status" -eq 0 ]; then p=1; fi
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-16s %4d ok %3d failed %3d skipped %5d s\n' "$name" "$p" "$f" "$s" $((SECONDS - started))
    grep -E '(: SKIPPED )|^SKIPPED' "$work/log" | sed 's/^/    /'
    if [ "$f" -gt 0 ]; then
        [ "$status" -ne 124 ] || echo "    stopped after $limit s"
        grep -E ': FAILED |^test .* FAILED$' "$work/log" | head -n 40 | sed 's/^/    /'
        echo "    --- the end of its output (status $status):"
        tail -n "${CAISSON_TEST_TAIL:-60}" "$work/log" | cut -c 1-400 | sed 's/^/    /'
    fi
    [ -z "${CAISSON_TEST_LOGS:-}" ] || { mkdir -p "$CAISSON_TEST_LOGS" && cp "$work/log" "$CAISSON_TEST_LOGS/$name.log"; }
}

# unsettled NAME SECONDS COMMAND...: a step that tests/known-failures lists with the word `step`: when it fails, that counts as skipped, with
# the reason.
unsettled() {
    local reason before=$failed
    reason=$(awk -v name="$1" '$1 == "step" && $2 == name { $1 = $2 = ""; print substr($0, 3) }' tests/known-failures)
    step "$@"
    if [ -n "$reason" ] && [ "$failed" -gt "$before" ]; then
        skipped=$((skipped + failed - before)) failed=$before
        echo "$1: SKIPPED: known: $reason"
    fi
}

# skip NAME REASON: a step that cannot run here.
skip() {
    case " $(echo $steps) " in *" $1 "*) ;; *) return 0 ;; esac
    skipped=$((skipped + 1))
    echo "$1: SKIPPED: $2"
}

echo "== environment"
echo "kernel $(uname -r), $(nproc) processors, $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) MiB, \
Debian $(cat /etc/debian_version 2>/dev/null || echo none), cgroup $(stat -f -c %T /sys/fs/cgroup)"
modules=$(cut -d ' ' -f 1 /proc/modules 2>/dev/null | grep '^kvm' | tr '\n' ' ')
echo "KVM: $(ls -l /dev/kvm 2>&1), modules: ${modules:-none listed} $(ls -d /sys/module/kvm_* 2>/dev/null | tr '\n' ' ')"
[ "$(id -u)" -eq 0 ] || { echo "tests/run.sh needs root: containers, mounts and /dev/kvm do"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
echo "== what is missing from Debian"
debian_need git gcc libc6-dev make xz-utils containerd runc busybox-static debootstrap qemu-system-x86 cpio procps util-linux \
    bsdutils iproute2 || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
command -v cargo >/dev/null || { echo "cargo is not in PATH: install Rust first"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
echo "$(rustc --version), $(containerd --version | cut -d ' ' -f 3), $(runc --version | head -n 1), \
$(qemu-system-x86_64 --version | head -n 1)"
kvm=$(kvm_trouble)
[ -z "$kvm" ] || echo "KVM cannot be used on this machine ($kvm); sandboxes run in the emulated machine only."

echo "== build"
for build in "--release -p caisson-shim -p caisson-sentry -p caisson-gofer" "-p caisson-tests --bins"; do
    started=$SECONDS
    # shellcheck disable=SC2086
    if ! attempt 1800 $cargo build -q --locked $build; then
        tail -n 60 "$work/log"
        echo "cannot build: cargo build $build"
        echo "0 passed, 1 failed, 0 skipped"
        exit 1
    fi
    echo "built ($build) in $((SECONDS - started)) s"
done
export CAISSON_TEST_BUILT=1

echo "== tests"
if cargo fmt --version >/dev/null 2>&1; then step format 60 cargo fmt --all --check; else skip format "no rustfmt"; fi
if cargo clippy --version >/dev/null 2>&1; then
    step lint 900 $cargo clippy -q --locked --workspace --all-targets -- -D warnings
else
    skip lint "no clippy"
fi
step unit 1200 $cargo test -q --locked -p caisson-proto -p caisson-sentry -p caisson-shim
step gofer 600 $cargo test -q --locked -p caisson-gofer
if [ -z "$kvm" ]; then
    step platform 900 $cargo test -q --locked -p caisson-platform-kvm -- --test-threads=1
else
    skip platform "no usable KVM"
fi
# QEMU has a limit of its own within these, and says so.
unsettled platform-npt 600 tests/qemu/platform-kvm.sh --npt 1
step platform-shadow 600 tests/qemu/platform-kvm.sh --npt 0
unsettled sandbox-npt 480 tests/qemu/sandbox.sh --npt 1
step sandbox-shadow 480 tests/qemu/sandbox.sh --npt 0
step quickstart 300 tests/quickstart.sh
for suite in guest cli ctr confinement debian density badinput; do
    if [ -z "$kvm" ]; then step "$suite" 900 tests/suite.sh "$suite"; else skip "$suite" "no usable KVM"; fi
done
for version in 1.7:trixie 2.1:sid; do
    name=ctr-${version%:*}
    if [ -z "$kvm" ]; then
        step "$name" 600 env CAISSON_TEST_SUITE="${version#*:}" tests/suite.sh ctr
    else
        skip "$name" "no usable KVM"
    fi
done
# The same with every system call by an exit (`--exitless=off`). Of the guest programs those whose calls matter most; any
# suite can be run in full with CAISSON_TEST_EXITLESS=off.
exits_programs="fork_wait exec_family signal_ futexes threads_ memory_map pipes readiness event_fds unix_sockets file_open
    file_tree rseq clones bad_pointers"
for suite in guest cli; do
    if [ "$suite" = guest ]; then part=$exits_programs; else part=; fi
    # shellcheck disable=SC2086
    if [ -z "$kvm" ]; then
        step "$suite-exits" 600 env CAISSON_TEST_EXITLESS=off tests/suite.sh "$suite" $part
    else
        skip "$suite-exits" "no usable KVM"
    fi
done
echo "took $SECONDS s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
