#!/bin/bash
# One table: runc, Caisson and gVisor doing the same things in turn, in one run, on this machine.
#
#   run.sh [--rounds N] [--rows PATTERN] [--runtimes "runc caisson runsc"] [--record]
#
# Every figure is the median over the rounds, with the spread (half the distance between the 2nd highest and the 2nd
# lowest of them, as a percentage of the median) and the ratio to runc's. In each round every runtime runs every row,
# one after the other, so that a slow minute of the machine meets all of them. gVisor is Debian trixie's runsc with its
# systrap platform, unpacked beside; bookworm's with ptrace where that is all that is served.
# line-round-trip is the machine itself: two threads that hand each other a word. Whatever is answered by another thread moves with it.
# --record keeps the table in tests/bench/history/, in a file named after the day and the commit.
# All run by their OCI command lines over the same bundle, without network.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$top/deploy/debian.sh"
. "$top/tests/sweep.sh"
rounds=5 pattern=. runtimes="runc caisson runsc" record=
while [ $# -gt 0 ]; do
    case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --rows) pattern=$2; shift 2 ;;
        --runtimes) runtimes=$2; shift 2 ;;
        --record) record=yes; shift ;;
        *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
    esac
done
debian_need runc gcc libc6-dev busybox-static || exit 1
release=${CAISSON_TEST_RELEASE:-${CARGO_TARGET_DIR:-$top/target}/release}
case " $runtimes " in
    *" caisson "*)
        [ -n "${CAISSON_TEST_BUILT:-}" ] || (cd "$top" && ${CAISSON_CARGO:-cargo} build -q --release --locked \
            -p caisson-shim -p caisson-sentry -p caisson-gofer) || exit 1
        [ -x "$release/caisson" ] || { echo "there is no $release/caisson" >&2; exit 1; }
        ;;
esac
platform=systrap
case " $runtimes " in
    *" runsc "*)
        if tree=$(debian_unpacked trixie runsc); then :; elif tree=$(debian_unpacked - runsc); then platform=ptrace; else
            echo "gVisor is not served by this machine's mirror: no column for it" >&2
            runtimes=${runtimes/runsc/}
        fi
        runsc=${tree:-}/usr/bin/runsc
        ;;
esac
debian=$("$top/tests/debian-root.sh") || exit 1
# Without it there is no row for make.
project=$(debian_source lua5.4) || project=

work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-bench.XXXXXX")
run=caisson-tests-bench-$$
mkdir -p "$work/$run"
current=
finish() {
    trap '' INT TERM HUP
    [ -z "$current" ] || oci "${current%%:*}" delete --force "${current#*:}" >/dev/null 2>&1
    sweep "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

bundle=$work/bundle
mkdir -p "$bundle" "$work/data" "$work/bin" "$work/roots"
gcc -O2 -static -pthread -o "$work/bin/ops" "$here/ops.c" || exit 1
[ -z "$project" ] || { mkdir "$work/project" && tar -C "$work/project" --no-same-owner --strip-components=1 -xf "$project"; } || exit 1

# 20,000 files in 200 directories, in a bound directory, under git.
tree() {
    [ ! -d "$work/data/tree" ] || return 0
    mkdir "$work/data/tree"
    (cd "$work/data/tree" && for ((i = 0; i < 200; i++)); do
        mkdir "d$i"
        for ((j = 0; j < 100; j++)); do echo "file $j in directory $i, as short as many are" >"d$i/f$j"; done
    done)
    config sh -c 'cd /srv/tree && git init -q && git add . && git -c user.name=bench -c user.email=bench@localhost commit -qm all && sleep 1 && git status >/dev/null'
    inside runc >/dev/null
}

# oci RUNTIME WORD...: the runtime's OCI command line.
oci() {
    local runtime=$1
    shift
    case $runtime in
        runc) runc --root "$work/roots/runc" "$@" ;;
        caisson) "$release/caisson" --root "$work/roots/caisson" "$@" ;;
        runsc) "$runsc" --root "$work/roots/runsc" --platform "$platform" --network none --ignore-cgroups "$@" ;;
    esac
}

# config ARG...: the bundle's configuration with the Debian root, a tmpfs at /tmp and a bound directory at /data.
config() {
    local args= word
    for word in "$@"; do args+="${args:+, }\"${word//\"/\\\"}\""; done
    cat >"$bundle/config.json" <<JSON
{"ociVersion": "1.0.2",
 "process": {"user": {"uid": 0, "gid": 0}, "args": [$args], "cwd": "/", "noNewPrivileges": true,
  "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"]},
 "root": {"path": "$debian/root", "readonly": true}, "hostname": "bench",
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
  {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
  {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
  {"destination": "/mnt", "type": "bind", "source": "$work/bin", "options": ["rbind", "ro"]},
  {"destination": "/srv", "type": "bind", "source": "$work/data", "options": ["rbind", "rw"]}],
 "linux": {"cgroupsPath": "/$run-$1", "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]}}
JSON
    sed -i "s|/$run-$1|/$run-box|" "$bundle/config.json"
}

: >"$work/figures"
number=0
# inside RUNTIME: runs the bundle to its end; its output is the figure.
inside() {
    local status
    number=$((number + 1))
    current=$1:bench-$$-$number
    oci "$1" run --bundle "$bundle" "bench-$$-$number" </dev/null 2>"$work/errors"
    status=$?
    current=
    [ "$status" -eq 0 ] || echo "failed"
}

milliseconds() { echo $(($(date +%s%N) / 1000)) ; }

# timed RUNTIME: start-to-exit of the bundle, in microseconds.
timed() {
    local started output
    started=$(milliseconds)
    output=$(inside "$1")
    case $output in *failed*) echo failed ;; *) echo $(($(milliseconds) - started)) ;; esac
}

# live: pids of processes that are not kernel threads.
live() { for entry in /proc/[0-9]*; do [ -e "$entry/exe" ] && echo "${entry#/proc/}"; done; }

# idle RUNTIME: PSS in KiB of every process that an idle container adds.
idle() {
    local before pid total=0 pss
    config sleep 1000
    number=$((number + 1))
    current=$1:bench-$$-$number
    before=" $(live | tr '\n' ' ') "
    oci "$1" create --bundle "$bundle" "bench-$$-$number" </dev/null >/dev/null 2>"$work/errors" || { echo failed; return; }
    oci "$1" start "bench-$$-$number" </dev/null >/dev/null 2>>"$work/errors" || { echo failed; return; }
    sleep 1
    for pid in $(live); do
        case $before in *" $pid "*) continue ;; esac
        # Only what the runtime started: other work may go on beside.
        case $(readlink "/proc/$pid/exe") in
            */runc | */sleep | */coreutils | *runsc* | */caisson* | */containerd-shim-caisson*) ;;
            *) continue ;;
        esac
        pss=$(awk '/^Pss:/ {print $2}' "/proc/$pid/smaps_rollup" 2>/dev/null)
        total=$((total + ${pss:-0}))
    done
    oci "$1" kill "bench-$$-$number" KILL >/dev/null 2>&1
    sleep 0.3
    oci "$1" delete --force "bench-$$-$number" >/dev/null 2>&1
    current=
    echo "$total"
}

# measure RUNTIME ROW: one figure, in the row's unit.
measure() {
    case $2 in
        start-to-exit) config true; timed "$1" ;;
        idle-memory) idle "$1" ;;
        python) config python3 -c pass; timed "$1" ;;
        make)
            rm -rf "$work/data/project"
            cp -a "$work/project" "$work/data/project"
            config sh -c 'cd /srv/project && make -s -j4 linux >/tmp/log 2>&1 || { grep -v ^make /tmp/log | tail -n 2 >&2; exit 1; }'
            timed "$1"
            ;;
        # Not into /dev/null, for tar does not read the files then; and a file that it cannot read is a failure.
        tar) tree; config bash -c 'set -o pipefail; tar -C /srv -cf - tree | cat >/dev/null'; timed "$1" ;;
        git-status) tree; config sh -c 'cd /srv/tree && git status >/dev/null'; timed "$1" ;;
        *-gofer) config /mnt/ops "${2%-gofer}" /srv; inside "$1" ;;
        *-tmpfs) config /mnt/ops "${2%-tmpfs}" /tmp; inside "$1" ;;
        *) config /mnt/ops "$2" /tmp; inside "$1" ;;
    esac
}

unit() {
    case $1 in
        start-to-exit | python | make | tar | git-status) echo us ;;
        idle-memory) echo KiB ;;
        seq-* | rand-*) echo ns/KiB ;;
        *) echo ns ;;
    esac
}

rows="start-to-exit idle-memory line-round-trip getpid clock_gettime pread open+close-root stat-root open+close stat pwrite open+close-gofer stat-gofer
    pipe-write+read unix-write+read pipe-ping-pong thread-switch
    fork+exit+wait fork+exec+wait page-touch mmap+munmap mmap+touch+munmap seq-read-gofer seq-write-gofer rand-read-gofer rand-write-gofer
    seq-read-tmpfs seq-write-tmpfs rand-read-tmpfs rand-write-tmpfs python make tar git-status"
[ -n "$project" ] || rows=${rows/ make/}
rows=$(printf '%s\n' $rows | grep -E -- "$pattern")

for ((round = 1; round <= rounds; round++)); do
    [ ! -t 2 ] || echo "round $round of $rounds" >&2
    for row in $rows; do
        # A long row needs no repetition as a short one does.
        [ "$row" != make ] || [ "$round" -le 2 ] || continue
        for runtime in $runtimes; do
            figure=$(measure "$runtime" "$row" | tail -n 1)
            case $figure in
                *[!0-9.]* | '')
                    echo "$runtime: $row failed: $(tail -n 2 "$work/errors" | cut -c 1-300)" >&2
                    continue
                    ;;
            esac
            echo "$row $runtime $figure" >>"$work/figures"
        done
    done
done

table() {
    echo "runc $(runc --version | awk 'NR == 1 {print $3}'), gVisor ${platform} $([ -n "${runsc:-}" ] && "$runsc" --version 2>/dev/null | awk 'NR == 1 {print $3}'), \
    kernel $(uname -r), $(nproc) processors, $(ls -d /sys/module/kvm_* 2>/dev/null | xargs -r -n 1 basename | tr '\n' ' '), $rounds rounds"
    for row in $rows; do echo "$row $(unit "$row")"; done | awk -v runtimes="$runtimes" '
        FNR == NR { values[$1, $2] = values[$1, $2] " " $3; next }
        function sorted(text, list,    n, i, j, t) {
            n = split(text, list, " ")
            for (i = 2; i <= n; i++) { t = list[i] + 0; for (j = i - 1; j >= 1 && list[j] + 0 > t; j--) list[j + 1] = list[j]; list[j + 1] = t }
            return n
        }
        function median(list, n) { return n % 2 ? list[(n + 1) / 2] + 0 : (list[n / 2] + list[n / 2 + 1]) / 2 }
        function spread(list, n, m) { return m == 0 ? 0 : n > 3 ? 50 * (list[n - 1] - list[2]) / m : 50 * (list[n] - list[1]) / m }
        BEGIN {
            count = split(runtimes, names, " ")
            printf "%-18s %-7s", "what", "unit"
            for (i = 1; i <= count; i++) printf "%24s", names[i] (i > 1 && names[1] == "runc" ? "   ratio" : "")
            print ""
        }
        {
            printf "%-18s %-7s", $1, $2
            for (i = 1; i <= count; i++) {
                n = sorted(values[$1, names[i]], list)
                if (n == 0) { printf "%24s", "-"; if (i == 1) base = 0; continue }
                m = median(list, n)
                if (i == 1) base = m
                cell = sprintf(m < 100 ? "%.1f" : "%.0f", m) sprintf(" ±%.0f%%", spread(list, n, m))
                if (i > 1 && names[1] == "runc") cell = cell (base > 0 ? sprintf(" %6.2fx", m / base) : "       ")
                printf "%*s", 24 + (cell ~ /±/ ? 1 : 0), cell
            }
            print ""
        }' "$work/figures" -
}
if [ -n "$record" ]; then
    mkdir -p "$here/history"
    table | tee "$here/history/$(date -u +%Y-%m-%d)-$(git -C "$top" rev-parse --short HEAD).txt"
else
    table
fi
