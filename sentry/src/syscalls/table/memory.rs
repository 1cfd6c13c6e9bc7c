//! System calls for address spaces.

use super::{Entry, call};
use crate::syscalls::memory;

/// This family's lines.
#[rustfmt::skip]
pub const CALLS: &[Entry] = &[
    call!(mmap,              memory::mmap,              [Ptr Size Prot MapFlags Fd Offset], Partial, "MAP_HUGETLB finds no reserved pages; MAP_SYNC is refused"),
    call!(mprotect,          memory::mprotect,          [Ptr Size Prot],                    Full,    ""),
    call!(munmap,            memory::munmap,            [Ptr Size],                         Full,    ""),
    call!(brk,               memory::brk,               [Ptr],                              Full,    ""),
    call!(mremap,            memory::mremap,            [Ptr Size Size Hex Ptr],            Full,    ""),
    call!(msync,             memory::msync,             [Ptr Size Hex],                     Full,    ""),
    call!(mincore,           memory::mincore,           [Ptr Size Ptr],                     Partial, "pages of files count once they are mapped, not when they are cached"),
    call!(madvise,           memory::madvise,           [Ptr Size Int],                     Partial, "MADV_FREE frees at once; no MADV_MERGEABLE, MADV_COLLAPSE, MADV_HWPOISON, guard regions"),
    call!(mlock,             memory::mlock,             [Ptr Size],                         Full,    ""),
    call!(munlock,           memory::munlock,           [Ptr Size],                         Full,    ""),
    call!(mlockall,          memory::mlockall,          [Hex],                              Full,    ""),
    call!(munlockall,        memory::munlockall,        [],                                 Full,    ""),
    call!(process_vm_readv,  memory::process_vm_readv,  [Pid Ptr UInt Ptr UInt Hex],        Full,    ""),
    call!(process_vm_writev, memory::process_vm_writev, [Pid Ptr UInt Ptr UInt Hex],        Full,    ""),
    call!(membarrier,        memory::membarrier,        [Hex Hex Int],                      Partial, "private expedited commands"),
    call!(mlock2,            memory::mlock2,            [Ptr Size Hex],                     Full,    ""),
    call!(pkey_mprotect,     memory::pkey_mprotect,     [Ptr Size Prot Int],                Partial, "there are no protection keys; only key -1"),
    call!(pkey_alloc,        memory::pkey_alloc,        [Hex Hex],                          Partial, "there are no protection keys"),
    call!(pkey_free,         memory::pkey_free,         [Int],                              Partial, "there are no protection keys"),
    call!(mseal,             memory::mseal,             [Ptr Size Hex],                     Full,    ""),
];
