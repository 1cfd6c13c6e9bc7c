#!/bin/sh
# Starts a private containerd, runs one container in it, and takes everything down again. quickstart.sh calls this on
# the host, or inside the emulated machine where the host has no usable KVM; so it is plain sh, and busybox is enough.
#   RUNTIME=... IMAGE=image.tar [TERMINAL=1] [LIMIT=seconds] run-container.sh COMMAND...
# Nothing of a containerd that the system runs is touched: root, state, sockets and FIFOs are in a new directory.
set -u
image_name=docker.io/caisson/busybox:latest
work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-run.XXXXXX") || exit 1
id=quickstart-$$
socket=$work/containerd.sock
daemon=
had_run_containerd=
[ -d /run/containerd ] && had_run_containerd=1

# A shim is ours when it was started for our socket.
our_shims() {
    for entry in /proc/[0-9]*; do
        { tr '\0' '\n' <"$entry/cmdline" | grep -qxF "$socket" && echo "${entry#/proc/}"; } 2>/dev/null
    done
    return 0
}

finish() {
    trap '' INT TERM HUP
    for pid in $client $feeder; do kill -KILL "$pid" 2>/dev/null; done
    if [ -n "$daemon" ]; then
        if [ -n "$started" ]; then
            ctr --address "$socket" --timeout 5s task kill --signal KILL "$id" 2>/dev/null
            ctr --address "$socket" --timeout 5s task delete --force "$id" 2>/dev/null
            ctr --address "$socket" --timeout 5s container delete "$id" 2>/dev/null
        fi >/dev/null
        kill "$daemon" 2>/dev/null
        wait "$daemon" 2>/dev/null
        for pid in $(our_shims | grep -vx "$daemon"); do
            kill -KILL "$pid" 2>/dev/null
        done
    fi
    # Deepest mounts first.
    while read -r _ _ _ _ mountpoint _; do
        case $mountpoint in "$work"/*) echo "$mountpoint" ;; esac
    done </proc/self/mountinfo | sort -r | while read -r mountpoint; do umount -l "$mountpoint"; done
    rm -rf "$work"
    # The shim's socket is outside of containerd's directories; its name is a hash of what the shim stands for.
    rm -f "/run/containerd/s/$(printf '%s/default/%s' "$socket" "$id" | sha256sum | cut -d ' ' -f 1)"
    [ -n "$had_run_containerd" ] || {
        rmdir /run/containerd/runc/default /run/containerd/runc /run/containerd/s /run/containerd
    } 2>/dev/null
}
started=
client=
feeder=
trap finish EXIT
trap 'exit 130' INT TERM HUP

mkdir -p "$work/root" "$work/state" "$work/fifo" "$work/opt"
cat >"$work/config.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$socket"
[ttrpc]
  address = "$socket.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "$work/opt"
TOML
# In a session of its own: an interrupt typed at the terminal is for the container, not for the daemon.
setsid containerd --config "$work/config.toml" >"$work/log" 2>&1 </dev/null &
daemon=$!
tries=0
until ctr --address "$socket" --timeout 2s version >/dev/null 2>&1; do
    tries=$((tries + 1))
    if ! kill -0 "$daemon" 2>/dev/null || [ "$tries" -gt "${PATIENCE:-100}" ]; then
        echo "containerd did not come up; its log ends with:" >&2
        tail -n 10 "$work/log" >&2
        exit 1
    fi
    sleep 0.1
done
ctr --address "$socket" images import "$IMAGE" >"$work/import" 2>&1 || { cat "$work/import" >&2; exit 1; }

set -- --rm --runtime "$RUNTIME" --cgroup "/caisson-$id" --fifo-dir "$work/fifo" "$image_name" "$id" "$@"
started=1
[ -z "${TERMINAL:-}" ] || set -- -t "$@"
# In the background, so that a signal to this script ends the container at once instead of waiting for it.
exec 3<&0
if [ -n "${TERMINAL:-}" ]; then
    ctr --address "$socket" run "$@" <&3 &
else
    # ctr loses an end of input that it meets before the task exists: so input starts when the task runs.
    mkfifo "$work/stdin"
    (
        until ctr --address "$socket" task list 2>/dev/null | grep -q "^$id .*RUNNING"; do sleep 0.05; done
        exec cat <&3
    ) >"$work/stdin" 2>/dev/null &
    feeder=$!
    ctr --address "$socket" run "$@" <"$work/stdin" &
fi
client=$!
wait "$client"
status=$?
# A runtime that failed to start anything leaves its reason in containerd's log.
if [ "$status" -ne 0 ] && [ -n "${VERBOSE:-}" ]; then
    grep -E 'level=(error|warning)' "$work/log" | tail -n 10 >&2
fi
exit "$status"
