# shellcheck shell=bash
# kvm_trouble: prints why /dev/kvm cannot be used here and what to do about it; nothing when it can be used.
kvm_trouble() {
    if [ ! -c /dev/kvm ]; then
        echo "there is no /dev/kvm: load kvm_intel or kvm_amd, or enable nested virtualization for this machine"
    elif [ "$(stat -c %t:%T /dev/kvm)" != a:e8 ]; then
        echo "/dev/kvm is not the device of KVM (10, 232): remove it and load kvm_intel or kvm_amd"
    elif ! (exec 3<>/dev/kvm) 2>/dev/null; then
        echo "/dev/kvm cannot be opened: check its permissions, and the device rules of this machine's cgroup"
    fi
}
