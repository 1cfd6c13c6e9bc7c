# shellcheck shell=bash
# sweep DIRECTORY: kills the processes, takes down the mounts, cgroups and files that a run in DIRECTORY has left
# behind. A process is the run's when its command line, its control groups or its environment name DIRECTORY or one of
# the names in it that the suites derive from it (caisson-tests-PID). For a run that was interrupted: one that ended
# by itself has left nothing.
sweep() {
    local directory=$1 names name pid point group tries
    [ -d "$directory" ] || return 0
    names=$(cd "$directory" && ls -d caisson-tests-* 2>/dev/null)
    for tries in 1 2 3; do
        for name in "$directory" $names; do
            for pid in $(sweep_processes "$name"); do
                [ "$pid" = $$ ] || kill -KILL "$pid" 2>/dev/null
            done
        done
        [ "$tries" = 3 ] || sleep 0.1
    done
    sort -r -k 5,5 /proc/self/mountinfo | while read -r _ _ _ _ point _; do
        case $point in "$directory"/*) umount -l "$point" ;; esac
    done
    for name in $names; do
        find /sys/fs/cgroup -depth -type d -name "$name-*" 2>/dev/null | while read -r group; do rmdir "$group"; done
    done 2>/dev/null
    rm -rf "$directory"
}

# sweep_processes NAME: pids of the processes whose command line, cgroups or environment hold NAME.
sweep_processes() {
    grep -lsaF -- "$1" /proc/[0-9]*/cmdline /proc/[0-9]*/cgroup /proc/[0-9]*/environ | cut -d / -f 3 | sort -u |
        grep -vx "$BASHPID"
}
