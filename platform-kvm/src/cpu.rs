//! What a vCPU looks like: CPUID, control registers, MSRs.

use crate::control::Control;
use crate::error::{Error, ProbeError};
use crate::host_mode::Ring0;
use crate::layout::*;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_dtable,
    kvm_msr_entry, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};
use std::io;
use std::os::fd::AsRawFd;

/// x87, SSE, AVX, and the three of AVX-512. No PKRU (missing on some hosts), no AMX (needs permission per process).
const XCR0_WANTED: u64 = 0b1110_0111;
const XCR0_AVX512: u64 = 0b1110_0000;

const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31; // PE MP ET NE WP AM PG
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11; // SCE LME LMA NXE

/// The type byte of KVM's ioctls.
const KVM_IOCTL_TYPE: u32 = 0xae;

const MSR_TSC: u32 = 0x10;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SFMASK: u32 = 0xc000_0084;
/// What Linux clears on `syscall`: everything ring 3 can set, TF above all.
const SFMASK: u64 = 0x25_7fd5;

/// The same for every vCPU of a machine.
#[derive(Debug, Clone)]
pub(crate) struct CpuTemplate {
    cpuid: CpuId,
    pub xcr0: u64,
    pub xstate_size: usize,
    pub physical_bits: u32,
    fsgsbase: bool,
}

impl CpuTemplate {
    pub(crate) fn new(kvm: &Kvm) -> Result<CpuTemplate, Error> {
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| unusable("KVM_GET_SUPPORTED_CPUID", e))?;
        cpuid.retain(|entry| {
            !(0x4000_0000..0x4001_0000).contains(&entry.function) && !matches!(entry.function, 0x1d | 0x1e)
        });
        let mut template = CpuTemplate {
            cpuid: cpuid.clone(),
            xcr0: 0,
            xstate_size: 576,
            physical_bits: 36,
            fsgsbase: false,
        };
        for entry in cpuid.as_mut_slice() {
            match (entry.function, entry.index) {
                // no MONITOR, VMX, PCID, x2APIC, TSC deadline
                (1, _) => entry.ecx &= !(1 << 3 | 1 << 5 | 1 << 17 | 1 << 21 | 1 << 24),
                (7, 0) => {
                    template.fsgsbase = entry.ebx & 1 != 0;
                    entry.ebx &= !(1 << 14); // MPX
                    entry.ecx &= !(1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16); // PKU, OSPKE, WAITPKG, SHSTK, LA57
                    entry.edx &= !(1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25); // UINTR, IBT, AMX
                }
                (0xd, 0) => {
                    template.xcr0 = usable_xcr0(u64::from(entry.eax) | u64::from(entry.edx) << 32);
                    entry.eax = template.xcr0 as u32;
                    entry.edx = (template.xcr0 >> 32) as u32;
                }
                (0xd, 1) => {
                    entry.eax &= !(1 << 3 | 1 << 4); // XSAVES, XFD
                    entry.ecx = 0;
                    entry.edx = 0;
                }
                (0x8000_0001, _) => entry.ecx &= !(1 << 2), // SVM
                (0x8000_0008, _) => template.physical_bits = entry.eax & 0xff,
                _ => {}
            }
        }
        let xcr0 = template.xcr0;
        cpuid.retain(|e| e.function != 0xd || e.index < 2 || (e.index < 64 && xcr0 >> e.index & 1 != 0));
        let components = cpuid.as_slice().iter().filter(|e| e.function == 0xd && e.index >= 2);
        template.xstate_size =
            components.map(|e| (e.eax + e.ebx) as usize).max().unwrap_or(0).clamp(576, 4096);
        for entry in cpuid.as_mut_slice().iter_mut().filter(|e| e.function == 0xd && e.index == 0) {
            entry.ebx = template.xstate_size as u32;
            entry.ecx = template.xstate_size as u32;
        }
        template.cpuid = cpuid;
        Ok(template)
    }

    /// Gives a new vCPU everything that never changes.
    pub(crate) fn set_up(&self, fd: &VcpuFd, ring0: Ring0, syscall: u64) -> Result<(), Error> {
        fd.set_cpuid2(&self.cpuid).map_err(|e| unusable("KVM_SET_CPUID2", e))?;
        if self.xcr0 != 0 {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: self.xcr0, ..Default::default() };
            fd.set_xcrs(&xcrs).map_err(|e| unusable("KVM_SET_XCRS", e))?;
        }
        let star = u64::from(KERNEL_CS) << 32 | u64::from(SYSRET_BASE) << 48;
        set_msr(fd, MSR_STAR, star)?;
        let compat = match ring0 {
            Ring0::Native => CONTROL_GVA + STUB_COMPAT,
            Ring0::Emulated => USER_STUB_COMPAT,
        };
        set_msr(fd, MSR_LSTAR, syscall)?;
        set_msr(fd, MSR_CSTAR, compat)?;
        set_msr(fd, MSR_SFMASK, SFMASK)?;
        set_tsc(fd)
    }

    /// The ring-0 state in which a vCPU starts.
    pub(crate) fn initial_sregs(
        &self,
        mut sregs: kvm_sregs,
        control: &Control,
        vcpu: u32,
        cr3: u64,
        ring0: Ring0,
    ) -> kvm_sregs {
        set_ring0(&mut sregs);
        let null = kvm_segment { unusable: 1, s: 1, type_: 3, dpl: 3, ..Default::default() };
        sregs.ds = null;
        sregs.es = null;
        sregs.fs = null;
        sregs.gs = null;
        sregs.ldt = kvm_segment { unusable: 1, type_: 2, ..Default::default() };
        sregs.tr = kvm_segment {
            base: control.vcpu_gva(vcpu) + PAGE_TSS,
            limit: match ring0 {
                Ring0::Native => TSS_LEN as u32 - 1,
                Ring0::Emulated => (TSS_LEN + BITMAP_LEN) as u32 - 1,
            },
            selector: TSS_SELECTOR,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        let descriptors = CONTROL_GVA + crate::arena::PAGE_SIZE;
        sregs.gdt = kvm_dtable { base: descriptors + GDT_OFFSET, limit: GDT_LEN - 1, ..Default::default() };
        sregs.idt = kvm_dtable { base: descriptors + IDT_OFFSET, limit: IDT_LEN - 1, ..Default::default() };
        sregs.cr0 = CR0;
        sregs.cr2 = 0;
        sregs.cr3 = cr3;
        sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
        if self.fsgsbase {
            sregs.cr4 |= CR4_FSGSBASE;
        }
        if self.xcr0 != 0 {
            sregs.cr4 |= CR4_OSXSAVE;
        }
        sregs.efer = EFER;
        sregs
    }
}

/// Code and stack segment of the stub.
pub(crate) fn set_ring0(sregs: &mut kvm_sregs) {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: KERNEL_CS, type_: 11, l: 1, ..flat };
    sregs.ss = kvm_segment { selector: KERNEL_SS, type_: 3, db: 1, ..flat };
}

fn usable_xcr0(supported: u64) -> u64 {
    let xcr0 = supported & XCR0_WANTED;
    if xcr0 & XCR0_AVX512 == XCR0_AVX512 { xcr0 } else { xcr0 & !XCR0_AVX512 }
}

fn set_msr(fd: &VcpuFd, index: u32, data: u64) -> Result<(), Error> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::Invalid("MSR list"))?;
    match fd.set_msrs(&msrs) {
        Ok(1) => Ok(()),
        Ok(_) => Err(ProbeError::Lacks("a model-specific register for system calls").into()),
        Err(e) => Err(unusable("KVM_SET_MSRS", e)),
    }
}

/// Makes the guest's time stamp counter the host's: offset 0. Kernels before 5.16 have no such attribute; there a write of
/// the current value comes as close as a few hundred cycles.
fn set_tsc(fd: &VcpuFd) -> Result<(), Error> {
    let offset: u64 = 0;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw const offset as u64,
        flags: 0,
    };
    let request = libc::_IOW::<kvm_device_attr>(KVM_IOCTL_TYPE, 0xe1); // KVM_SET_DEVICE_ATTR
    // SAFETY: `fd` is a vCPU; KVM reads the attribute and, for this one, eight bytes at `addr`, and both outlive the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const attribute) } == 0 {
        return Ok(());
    }
    set_msr(fd, MSR_TSC, crate::machine::rdtsc())
}

pub(crate) fn unusable(what: &'static str, e: kvm_ioctls::Error) -> Error {
    ProbeError::Unusable { what, source: io::Error::from_raw_os_error(e.errno()) }.into()
}
