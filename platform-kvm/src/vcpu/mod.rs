//! One vCPU: putting registers in, KVM_RUN, and making sense of how it came back.

mod convert;
mod posted;
mod state;

use crate::control::Control;
use crate::cpu::{self, CpuTemplate};
use crate::error::Error;
use crate::exitless::faulting::Spot;
use crate::exitless::slot::SlotMemory;
use crate::exitless::stub::Place;
use crate::host_mode::{HostMode, Paging, Ring0};
use crate::layout::*;
use crate::registers::{Exit, Registers};
use convert::{exception, from_kvm, not_offered, to_kvm};
use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs, kvm_segment, kvm_sync_regs,
    kvm_vcpu_events,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

/// Bits of rflags that ring 3 may have: CF PF AF ZF SF TF DF OF RF AC ID.
const USER_FLAGS: u64 = 0x0025_0dd5;
/// Always set: IF, and the bit that is always 1.
const FIXED_FLAGS: u64 = 0x202;
const FLAG_TF: u64 = 1 << 8;
const FLAG_RF: u64 = 1 << 16;
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// What a vCPU should be running in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub space: u64,
    pub cr3: u64,
    /// The space's count of revocations: another value than last time means that the TLB must be flushed (nested paging).
    pub tlb_generation: u64,
    pub mode: HostMode,
    /// Patched call sites of the space find the slot through GS.
    pub patched: bool,
}

/// The segment registers that ring 3 can load and the host does not otherwise track.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DataSegments([kvm_segment; 4]);

#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    /// Which vCPU page is its own.
    index: u32,
    /// The space whose root is loaded, 0 for none, and its revocation count at that time.
    space: u64,
    tlb_generation: u64,
    /// The last exit was `Syscall`, so `sysretq` can lead back.
    at_syscall: bool,
    /// An exception that KVM had queued was handed to the caller and must not be delivered as well.
    clear_events: bool,
    force_sregs: bool,
    initial_segments: DataSegments,
    /// Address of its syscall stub, and which of the two versions that is.
    stub: u64,
    ring0: Ring0,
    /// What GS is where call sites are patched and the program has not set it: the address of its slot. 0 where ring 0 is native.
    slot_gva: u64,
    /// Its slot in `space`, for the thread with this number.
    slot: Option<SlotMemory>,
    bound_to: (u64, u64),
    /// Nothing has run on it since its FPU and segments were in their initial state.
    pub(crate) pristine: bool,
}

/// How a `run` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// With an event for the kernel.
    Exit(Exit),
    /// A dispatcher has answered a call and wants the thread outside. `registers` have the result.
    Answered,
    /// In the syscall stub: `registers` are the stub's until [`Vcpu::settle`] has looked what became of the call.
    InStub(Place),
    /// In the middle of a switch, which is complete now: `registers` are those of the thread that goes on.
    Switched,
    /// The vCPU did nothing that matters; `registers` stand, prepare and run again.
    Nothing,
}

/// How KVM_RUN ended.
enum Outcome {
    Out(u16),
    /// Another use of a port, which only ring 3 could have made.
    Port,
    Interrupted,
    HostFault,
    Again,
}

impl Vcpu {
    pub(crate) fn new(
        vm: &VmFd,
        control: &Control,
        cpu: &CpuTemplate,
        index: u32,
        cr3: u64,
        ring0: Ring0,
    ) -> Result<Vcpu, Error> {
        let mut fd = vm.create_vcpu(u64::from(index)).map_err(|e| cpu::unusable("KVM_CREATE_VCPU", e))?;
        let stub = control.write_syscall_stub(index, ring0);
        cpu.set_up(&fd, ring0, stub)?;
        control.write_tss(index);
        let sregs = fd.get_sregs().map_err(|e| cpu::unusable("KVM_GET_SREGS", e))?;
        let sregs = cpu.initial_sregs(sregs, control, index, cr3, ring0);
        fd.set_sregs(&sregs).map_err(|e| cpu::unusable("KVM_SET_SREGS", e))?;
        let run = fd.get_kvm_run();
        run.kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
        run.s.regs.sregs = sregs;
        Ok(Vcpu {
            fd,
            index,
            space: 0,
            tlb_generation: 0,
            at_syscall: false,
            clear_events: false,
            force_sregs: true,
            initial_segments: DataSegments([sregs.ds, sregs.es, sregs.fs, sregs.gs]),
            stub,
            ring0,
            slot_gva: match ring0 {
                Ring0::Native => 0,
                Ring0::Emulated => crate::control::user_slot_gva(index),
            },
            slot: None,
            bound_to: (0, 0),
            pristine: true,
        })
    }

    /// Where the kick handler writes.
    pub(crate) fn immediate_exit(&mut self) -> *mut u8 {
        &raw mut self.fd.get_kvm_run().immediate_exit
    }

    fn sync(&mut self) -> &mut kvm_sync_regs {
        // SAFETY: the union's only other member is padding; every bit pattern is a valid kvm_sync_regs.
        unsafe { &mut self.fd.get_kvm_run().s.regs }
    }

    /// Loads `registers` so that the next `run` continues there, in ring 3.
    pub(crate) fn prepare(&mut self, control: &Control, registers: &Registers, target: &Target) {
        let nested = target.mode.paging == Paging::Nested;
        let switch = self.space != target.space || (nested && self.tlb_generation != target.tlb_generation);
        let was_at_syscall = std::mem::take(&mut self.at_syscall);
        let mut sregs_dirty = std::mem::take(&mut self.force_sregs);
        let clear_events = std::mem::take(&mut self.clear_events);
        let index = self.index;
        let rflags = registers.rflags & USER_FLAGS | FIXED_FLAGS;
        let gs_base = match registers.gs_base {
            0 if target.patched => self.slot_gva,
            base => base,
        };
        let sync = self.sync();
        if sync.sregs.fs.base != registers.fs_base || sync.sregs.gs.base != gs_base {
            sync.sregs.fs.base = registers.fs_base;
            sync.sregs.gs.base = gs_base;
            sregs_dirty = true;
        }
        if switch && !nested {
            sync.sregs.cr3 = target.cr3;
            sregs_dirty = true;
        }
        if switch && nested && in_ring3(sync) {
            cpu::set_ring0(&mut sync.sregs);
            sregs_dirty = true;
        }
        sync.regs = to_kvm(registers, rflags);
        if !in_ring3(sync) {
            let returns = was_at_syscall
                && target.mode.ring0 == Ring0::Native
                && registers.rcx == registers.rip
                && registers.r11 == rflags
                && rflags & (FLAG_TF | FLAG_RF) == 0;
            sync.regs.rflags = 0x2;
            let frame = control.vcpu_gva(index);
            if switch && nested {
                sync.regs.rip = CONTROL_GVA + STUB_LOAD_CR3;
                sync.regs.rsp = frame + PAGE_CR3;
            } else if returns {
                sync.regs.rip = CONTROL_GVA + STUB_SYSRET;
            } else {
                sync.regs.rip = CONTROL_GVA + STUB_IRET;
                sync.regs.rsp = frame + PAGE_FRAME;
            }
            control.write_frame(index, target.cr3, registers.rax, registers.rip, rflags, registers.rsp);
        }
        let mut dirty = u64::from(KVM_SYNC_X86_REGS);
        if sregs_dirty {
            dirty |= u64::from(KVM_SYNC_X86_SREGS);
        }
        if clear_events {
            sync.events = kvm_vcpu_events::default();
            dirty |= u64::from(KVM_SYNC_X86_EVENTS);
        }
        self.fd.get_kvm_run().kvm_dirty_regs = dirty;
        self.space = target.space;
        self.tlb_generation = target.tlb_generation;
        self.pristine = false;
    }

    /// The GS base as the program knows it.
    fn users_gs(&mut self) -> u64 {
        let base = self.sync().sregs.gs.base;
        if base == self.slot_gva { 0 } else { base }
    }

    /// Runs what `prepare` loaded.
    pub(crate) fn run(&mut self, control: &Control, registers: &mut Registers) -> Result<Left, Error> {
        let outcome = self.enter()?;
        let gs_base = self.users_gs();
        let sync = self.sync();
        let (fs_base, ring3, rip) = (sync.sregs.fs.base, in_ring3(sync), sync.regs.rip);
        if matches!(outcome, Outcome::Again) {
            return Ok(Left::Nothing);
        }
        if !ring3 {
            return match outcome {
                Outcome::Out(port) => {
                    registers.fs_base = fs_base;
                    registers.gs_base = gs_base;
                    self.at_port(control, registers, port)
                }
                Outcome::HostFault => {
                    Err(Error::UnexpectedExit { reason: 0, detail: libc::EFAULT as u64, rip })
                }
                _ => self.interrupted_in_stub(control, registers),
            };
        }
        registers.fs_base = fs_base;
        registers.gs_base = gs_base;
        from_kvm(registers, &sync.regs);
        if matches!(outcome, Outcome::Out(_) | Outcome::Port) {
            return self.user_port(control, registers);
        }
        if let Some(exit) = self.queued_exception(registers) {
            return Ok(Left::Exit(exit));
        }
        Ok(match outcome {
            Outcome::HostFault => Left::Exit(Exit::HostFault),
            _ => match self.place(control, rip) {
                Some(place) => Left::InStub(place),
                None => Left::Exit(at_compat_stub(registers).unwrap_or(Exit::Interrupted)),
            },
        })
    }

    /// Ring 3 used a port: in the user stub that is a system call, elsewhere a #GP. rip is behind the instruction.
    ///
    /// KVM completes an `in` at the next KVM_RUN and would then overwrite rip and rax with this thread's, whoever's they are by
    /// then: so it is completed here, by a KVM_RUN that does not enter the guest.
    fn user_port(&mut self, control: &Control, registers: &mut Registers) -> Result<Left, Error> {
        let at = registers.rip.wrapping_sub(self.stub);
        let within = |start: u64| (start..=start + OUT_LEN).contains(&at);
        let stub = self.syscall_stub(control);
        let (call, answered) = (within(stub.call), within(stub.answered));
        if call || answered {
            registers.rip = registers.rcx;
            registers.rflags = registers.r11;
            return Ok(if call { Left::Exit(Exit::Syscall) } else { Left::Answered });
        }
        if let Some(exit) = at_compat_stub(registers) {
            return Ok(Left::Exit(exit));
        }
        let cr2 = self.sync().sregs.cr2;
        let at_exit = |rip: u64| Spot::of(Ring0::Emulated, rip) == Some(Spot::Exit);
        if self.ring0 == Ring0::Emulated
            && (at_exit(registers.rip) || at_exit(registers.rip.wrapping_sub(OUT_LEN)))
            && let Some(exit) = self.fault_by_exit(registers, cr2)
        {
            return Ok(Left::Exit(exit));
        }
        let run = self.fd.get_kvm_run();
        run.kvm_dirty_regs = 0;
        run.immediate_exit = 1;
        match self.enter()? {
            Outcome::Interrupted => {}
            _ => return Err(Error::UnexpectedExit { reason: 2, detail: 0, rip: registers.rip }),
        }
        let sync = self.sync();
        from_kvm(registers, &sync.regs);
        self.clear_events = true;
        Ok(Left::Exit(Exit::Exception { vector: 13, error_code: 0, addr: 0 }))
    }

    fn enter(&mut self) -> Result<Outcome, Error> {
        let result = self.fd.run();
        let unexpected = |reason: u32, detail: u64| (reason, detail);
        let (reason, detail) = match result {
            Ok(VcpuExit::IoOut(port, _)) => return Ok(Outcome::Out(port)),
            Ok(VcpuExit::IoIn(..)) => return Ok(Outcome::Port),
            Ok(VcpuExit::Intr) => return Ok(Outcome::Interrupted),
            Ok(VcpuExit::Shutdown) => {
                let rip = self.sync().regs.rip;
                return Err(Error::Shutdown { rip });
            }
            Ok(VcpuExit::FailEntry(hardware, _)) => unexpected(kvm_bindings::KVM_EXIT_FAIL_ENTRY, hardware),
            Ok(VcpuExit::MmioRead(address, _)) => unexpected(kvm_bindings::KVM_EXIT_MMIO, address),
            Ok(VcpuExit::MmioWrite(address, _)) => unexpected(kvm_bindings::KVM_EXIT_MMIO, address),
            Ok(_) => {
                let run = self.fd.get_kvm_run();
                // SAFETY: the union is plain data; for KVM_EXIT_INTERNAL_ERROR this member is the valid one, for others a number.
                let detail = unsafe { run.__bindgen_anon_1.internal.suberror };
                unexpected(run.exit_reason, u64::from(detail))
            }
            Err(e) => match e.errno() {
                libc::EINTR => return Ok(Outcome::Interrupted),
                libc::EFAULT => return Ok(Outcome::HostFault),
                libc::EAGAIN => return Ok(Outcome::Again),
                errno => {
                    let source = std::io::Error::from_raw_os_error(errno);
                    return Err(Error::Host { what: "KVM_RUN", source });
                }
            },
        };
        Err(Error::UnexpectedExit { reason, detail, rip: self.sync().regs.rip })
    }

    /// The stub told us why it left.
    fn at_port(&mut self, control: &Control, registers: &mut Registers, port: u16) -> Result<Left, Error> {
        let sync = self.sync();
        let (regs, cr2) = (sync.regs, sync.sregs.cr2);
        match port {
            PORT_SYSCALL | PORT_COMPAT | PORT_ANSWERED => {
                from_kvm(registers, &regs);
                registers.rip = regs.rcx;
                registers.rflags = regs.r11;
                if port == PORT_COMPAT {
                    return Ok(Left::Exit(not_offered()));
                }
                self.at_syscall = true;
                Ok(if port == PORT_SYSCALL { Left::Exit(Exit::Syscall) } else { Left::Answered })
            }
            _ => match port.checked_sub(PORT_VECTORS).and_then(|v| u8::try_from(v).ok()) {
                Some(vector) if u64::from(vector) < VECTORS => {
                    self.at_vector(control, registers, vector, &regs, cr2).map(Left::Exit)
                }
                _ => Err(Error::UnexpectedExit { reason: 2, detail: u64::from(port), rip: regs.rip }),
            },
        }
    }

    fn at_vector(
        &mut self,
        control: &Control,
        registers: &mut Registers,
        vector: u8,
        regs: &kvm_regs,
        cr2: u64,
    ) -> Result<Exit, Error> {
        let frame = control.read_frame(self.index, vector);
        if frame.cs & 3 != 3 {
            return Err(Error::StubFault { vector, error_code: frame.error_code, rip: frame.rip });
        }
        from_kvm(registers, regs);
        frame.restore(registers);
        if !frame.is_users() {
            return Ok(not_offered());
        }
        Ok(exception(vector, frame.error_code as u32, cr2, frame.rflags))
    }

    /// KVM had intercepted an exception of ring 3 and not delivered it yet: it becomes the exit.
    fn queued_exception(&mut self, registers: &Registers) -> Option<Exit> {
        self.clear_events = true;
        let sync = self.sync();
        let queued = sync.events.exception;
        if queued.injected == 0 && queued.pending == 0 {
            return None;
        }
        Some(exception(queued.nr, queued.error_code, sync.sregs.cr2, registers.rflags))
    }

    /// A signal arrived while the vCPU was at one of the stub's few instructions.
    fn interrupted_in_stub(&mut self, control: &Control, registers: &mut Registers) -> Result<Left, Error> {
        let sync = self.sync();
        let (regs, queued) = (sync.regs, sync.events.exception);
        let fs_base = sync.sregs.fs.base;
        let gs_base = self.users_gs();
        let at = regs.rip.wrapping_sub(CONTROL_GVA);
        if queued.injected != 0 || queued.pending != 0 {
            return Err(Error::StubFault {
                vector: queued.nr,
                error_code: queued.error_code.into(),
                rip: regs.rip,
            });
        }
        let port = match at {
            STUB_COMPAT => Some(PORT_COMPAT),
            _ => at.checked_sub(STUB_VECTORS).filter(|offset| offset % STUB_VECTOR_LEN == 0).and_then(
                |offset| {
                    let vector = offset / STUB_VECTOR_LEN;
                    (vector < VECTORS).then_some(PORT_VECTORS + vector as u16)
                },
            ),
        };
        if let Some(port) = port {
            registers.fs_base = fs_base;
            registers.gs_base = gs_base;
            return self.at_port(control, registers, port);
        }
        if let Some(place) = self.place(control, regs.rip) {
            from_kvm(registers, &regs);
            registers.fs_base = fs_base;
            registers.gs_base = gs_base;
            return Ok(Left::InStub(place));
        }
        if !(STUB_IRET..STUB_VECTORS).contains(&at) {
            return Err(Error::UnexpectedExit { reason: 10, detail: at, rip: regs.rip });
        }
        // On the way in: nothing of the guest has run. Whether cr3 was loaded is not known.
        self.space = 0;
        Ok(Left::Nothing)
    }
}

/// Bytes of `out imm8, al`. Some hosts report the address behind it already.
const OUT_LEN: u64 = 2;

/// What ring 3 gets for a `syscall` of 32-bit code, if that is where it stands.
fn at_compat_stub(registers: &mut Registers) -> Option<Exit> {
    if !(USER_STUB_COMPAT..=USER_STUB_COMPAT + OUT_LEN).contains(&registers.rip) {
        return None;
    }
    registers.rip = registers.rcx;
    registers.rflags = registers.r11;
    Some(not_offered())
}

fn in_ring3(sync: &kvm_sync_regs) -> bool {
    sync.sregs.cs.selector & 3 == 3
}
