# shellcheck shell=bash
# kvm_trouble: prints why /dev/kvm cannot be used here and what to do about it; nothing when it can be used.
kvm_trouble() {
    if [ ! -c /dev/kvm ]; then
        echo "there is no /dev/kvm: load kvm_intel or kvm_amd, or enable nested virtualization for this machine"
    elif ! (exec 3<>/dev/kvm) 2>/dev/null; then
        echo "/dev/kvm cannot be opened: check its permissions, and the device rules of this machine's cgroup"
    fi
}
