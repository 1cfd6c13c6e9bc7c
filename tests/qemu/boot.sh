#!/bin/bash
# Boots Debian's cloud kernel under QEMU's emulation (TCG, no host KVM needed) with AMD's virtualization emulated,
# runs a shell script in that machine as root, and exits with the script's status.
#
#   boot.sh [--npt 0|1] [--memory MIB] [--cpus N] [--timeout SECONDS] [--interactive]
#           [--stdin] [--put PATH[:PATH-IN-THE-MACHINE]]... SCRIPT-FILE
#
# The machine has /dev/kvm from kvm_amd, with nested paging (--npt 1, the default) or with shadow page tables
# (--npt 0). It is a busybox in a tmpfs, with what --put adds: files and directories; the shared libraries of dynamic
# programs come along by themselves. There is no network and no disk. With --stdin, what this script reads is the standard
# input of the one in the machine, to its end; with --interactive the terminal is.
# Processors are emulated by threads of their own, which QEMU 7.2 (Debian 12's) gets wrong at times: see `emulator`.
# Exit: the script's status; 124 when the watchdog had to stop it; 125 when the machine died before the script ended;
# 126 when it could not be built or started.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../../deploy/debian.sh"

npt=1 memory=2048 cpus=2 limit=600 interactive= input=
puts=()
while [ $# -gt 1 ]; do
    case $1 in
        --npt) npt=$2; shift 2 ;;
        --memory) memory=$2; shift 2 ;;
        --cpus) cpus=$2; shift 2 ;;
        --timeout) limit=$2; shift 2 ;;
        --put) puts+=("$2"); shift 2 ;;
        --interactive) interactive=1; shift ;;
        --stdin) input=1; shift ;;
        *) echo "boot.sh: unknown argument $1" >&2; exit 126 ;;
    esac
done
script=${1:?boot.sh: name a script to run}
[ -r "$script" ] || { echo "boot.sh: cannot read $script" >&2; exit 126; }

debian_need qemu-system-x86 busybox-static cpio || exit 126
work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-qemu.XXXXXX")
qemu_pid=
finish() {
    [ -z "$qemu_pid" ] || kill -TERM "$qemu_pid" 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# emulator: sets `qemu` to a QEMU whose emulated SVM can be relied upon, and `cpus` to what it can be relied upon with.
# With several processors and nested paging QEMU now and then runs a guest with part of its host's registers: VMRUN ends in a triple
# fault with good page tables, or the guest takes an exception whose rip is the host kernel's instruction behind VMRUN. With QEMU 7.2 this
# was seen in one of twenty runs of platform-kvm's random_mappings_..., with 10.0 in one of more than a hundred; with one processor, or with
# shadow paging and 10.0, never. So nested paging gets one processor (vCPUs then take turns), and Debian 12 runs the QEMU of its backports,
# unpacked beside the installed one, which brings the libraries and the firmware.
emulator() {
    local version tree
    version=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9]*\)\..*/\1/p')
    qemu=qemu-system-x86_64
    [ "$npt" = 0 ] || cpus=1
    [ "${version:-0}" -lt 10 ] || return 0
    if tree=$(debian_unpacked bookworm-backports qemu-system-x86) && "$tree/usr/bin/$qemu" --version >/dev/null 2>&1; then
        qemu=$tree/usr/bin/$qemu
    else
        echo "boot.sh: QEMU 10 of bookworm-backports cannot be had; QEMU $version emulates one processor only" >&2
        cpus=1
    fi
}

# kernel_package: the real package behind Debian's linux-image-cloud-amd64 (the first one apt would install).
kernel_package() {
    apt-cache show linux-image-cloud-amd64 2>/dev/null | sed -n 's/^Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1
}

# kernel_tree: a directory with boot/vmlinuz-* and lib/modules; a cached one is taken whatever its version.
kernel_tree() {
    local cached name
    for cached in "$CAISSON_CACHE"/unpacked/linux-image-*-cloud-amd64_*; do
        [ -d "$cached/boot" ] && { echo "$cached"; return 0; }
    done
    name=$(kernel_package)
    [ -n "$name" ] || { debian_update; name=$(kernel_package); }
    [ -n "$name" ] && debian_unpacked - "$name"
}

# add_module NAME: copies a module after the modules that it needs, and appends them to the loading order.
add_module() {
    local file needed
    file=$(find "$modules" -name "$1.ko" -o -name "$1.ko.xz" | head -n 1)
    [ -n "$file" ] || { echo "boot.sh: the kernel has no module $1" >&2; return 1; }
    [ ! -e "$work/base/modules/$1.ko" ] || return 0
    case $file in
        *.xz) xz -dc "$file" >"$work/base/modules/$1.ko" ;;
        *) cp "$file" "$work/base/modules/$1.ko" ;;
    esac
    for needed in $(tr '\0' '\n' <"$work/base/modules/$1.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
        add_module "$needed" || return 1
    done
    echo "$1" >>"$work/base/modules/order"
}

# put PATH DESTINATION: copies into the payload, with the shared libraries that a dynamic program asks for.
put() {
    local destination=$work/base/payload/${2#/} library
    [ -e "$1" ] || { echo "boot.sh: no such file: $1" >&2; return 1; }
    mkdir -p "$(dirname "$destination")"
    if [ -d "$1" ]; then
        mkdir -p "$destination" && cp -a "$1/." "$destination/"
        return
    fi
    cp -L "$1" "$destination" || return 1
    for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
        mkdir -p "$work/base/payload$(dirname "$library")"
        cp -L "$library" "$work/base/payload$library"
    done
}

emulator
tree=$(kernel_tree) || { echo "boot.sh: cannot fetch Debian's cloud kernel" >&2; exit 126; }
kernel=$(find "$tree/boot" -name 'vmlinuz-*' | head -n 1)
modules=$(find "$tree/lib/modules" -mindepth 1 -maxdepth 1 | head -n 1)
mkdir -p "$work"/base/{bin,dev,proc,modules,newroot} "$work"/base/payload/{bin,dev,proc,sys,tmp,etc,root,run,var/tmp}
chmod 1777 "$work"/base/payload/{tmp,var/tmp}
cp /bin/busybox "$work/base/bin/busybox"
cp /bin/busybox "$work/base/payload/bin/busybox"
cp "$here/init" "$work/base/init"
cp "$here/job" "$work/base/payload/bin/qemu-job"
cp "$script" "$work/base/payload/qemu-script"
chmod 755 "$work/base/init" "$work/base/payload/bin/qemu-job" "$work/base/payload/qemu-script"
echo 'root:x:0:0:root:/root:/bin/sh' >"$work/base/payload/etc/passwd"
echo 'root:x:0:' >"$work/base/payload/etc/group"
add_module kvm-amd || exit 126
for optional in overlay ${input:+virtio_pci virtio_console}; do add_module "$optional" || exit 126; done
for item in ${puts[@]+"${puts[@]}"}; do
    case $item in
        *:*) put "${item%%:*}" "${item#*:}" || exit 126 ;;
        *) put "$item" "$(realpath "$item")" || exit 126 ;;
    esac
done
(cd "$work/base" && find . -print0 | cpio --null -o -H newc --quiet) >"$work/initramfs" || exit 126
rm -rf "$work/base"
: >"$work/status"

arguments=(-accel tcg -cpu 'max,+svm,+npt' -smp "$cpus" -m "$memory" -display none -monitor none -no-reboot -nodefaults
    -kernel "$kernel" -initrd "$work/initramfs"
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off tsc=reliable kvm_amd.npt=$npt caisson.interactive=${interactive:-0}"
    -serial chardev:console -serial "file:$work/status")
if [ -n "$interactive" ]; then
    # The terminal goes through as it is; the machine does the echoing.
    arguments+=(-chardev stdio,id=console,signal=off)
    saved=$(stty -g 2>/dev/null)
    timeout --foreground -k 5 "$limit" "$qemu" "${arguments[@]}"
    status=$?
    [ -z "$saved" ] || stty "$saved"
else
    arguments+=(-chardev file,id=console,path=/dev/stdout)
    # A serial line has no end of input; this port has.
    if [ -n "$input" ]; then
        exec 3<&0
        arguments+=(-chardev stdio,id=input,signal=off -device virtio-serial-pci -device virtserialport,chardev=input)
    else
        exec 3</dev/null
    fi
    timeout -k 5 "$limit" "$qemu" "${arguments[@]}" <&3 > >(sed -u 's/\r//g') &
    qemu_pid=$!
    wait "$qemu_pid"
    status=$?
    qemu_pid=
fi
result=$(sed -n 's/^status \([0-9]*\).*/\1/p' "$work/status" | tail -n 1)
if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "boot.sh: QEMU was killed at its limit of $limit s; what is printed last was still going on" >&2
    exit 124
elif [ -z "$result" ]; then
    echo "boot.sh: the machine ended (QEMU status $status) before the script did" >&2
    exit 125
fi
exit "$result"
