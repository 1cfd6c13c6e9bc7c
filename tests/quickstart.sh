#!/bin/bash
# Tests deploy/quickstart.sh: what it prints, its exit status, input, a terminal, its speed, an interrupt, and that it
# leaves nothing behind. The last line is `quickstart: N passed, N failed, N skipped`.
set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$top/deploy/kvm.sh"
passed=0 failed=0
expect() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "quickstart: ok      $1"
    else
        failed=$((failed + 1))
        echo "quickstart: FAILED  $1: \"$2\" instead of \"$3\""
    fi
}
contains() {
    case $2 in *"$3"*) expect "$1" yes yes ;; *) expect "$1" "$2" "something with $3" ;; esac
}
# left: names of processes, mounts, cgroups and files of any quickstart.
left() {
    grep -lsa 'containerd.sock' /proc/[0-9]*/cmdline 2>/dev/null | while read -r file; do
        { tr '\0' ' ' <"$file"; } 2>/dev/null | grep -o 'caisson-run\.[A-Za-z0-9]*/containerd.sock'
    done | sort -u
    grep -o '/caisson-run\.[A-Za-z0-9]*/root/[^ ]*' /proc/self/mountinfo
    find /sys/fs/cgroup -maxdepth 2 -name 'caisson-quickstart-*'
    find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'caisson-run.*' ! -path "${TMPDIR:-/tmp}"
}
run() { timeout -k 20 200 "$top/deploy/quickstart.sh" "$@"; }

before=$(left)
output=$(run 2>&1)
expect "status" $? 0
contains "default command shows the kernel" "$output" Linux
contains "default command shows processes" "$output" "PID"
contains "default command shows mounts" "$output" "/proc type proc"
contains "default command shows the CPU" "$output" "model name"
started=$SECONDS
output=$(run sh -c 'echo "a  b"; exit 7' 2>/dev/null)
expect "exit status of the command" $? 7
expect "arguments as they are" "$output" "a  b"
[ -n "$(kvm_trouble)" ] || expect "a later run takes under 10 s" $((SECONDS - started < 10)) 1
output=$(echo hello | run cat 2>/dev/null)
expect "input goes in" "$output" hello
if [ -z "$(kvm_trouble)" ]; then
    output=$( (sleep 3; printf 'tty; echo $((40+2))\r'; sleep 1; printf 'exit 5\r'; sleep 1) |
        timeout -k 5 60 script -qec "$top/deploy/quickstart.sh -it" /dev/null)
    expect "status of the interactive shell" $? 5
    contains "a terminal" "$output" /dev/pts/0
    contains "an interactive shell" "$output" 42
    timeout -k 20 -s TERM 4 "$top/deploy/quickstart.sh" sleep 100 >/dev/null 2>&1
    # What a host without KVM gets; there, all of the above ran this way.
    output=$(echo hello | CAISSON_QUICKSTART_EMULATE=1 run sh -c 'cat; exit 3' 2>/dev/null)
    expect "status in the emulated machine" $? 3
    expect "input and output in the emulated machine" "$output" hello
fi
sleep 1
expect "nothing is left" "$(left)" "$before"
echo "quickstart: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
