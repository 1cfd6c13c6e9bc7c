//! The platform traits over `caisson-platform-kvm`.

use std::any::Any;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use caisson_platform_kvm as platform_kvm;
use platform_kvm::{AddressSpace, Error, Machine, MachineConfig};

use super::{
    Answer, Arena, Change, Exit, FpuState, FrameRange, Gpa, GuestThread, InPlace, Kick, Kicker, PatchedEntry,
    Perms, Place, Platform, Registers, Space, Stragglers,
};
use crate::errno::{Errno, SysResult};
use crate::wait::Assist;

/// Most threads that answer posted calls.
const DISPATCHERS: usize = 4;

/// A KVM virtual machine.
pub struct KvmPlatform {
    machine: Arc<Machine>,
}

impl KvmPlatform {
    /// Creates the VM over `arena` from an open `/dev/kvm` and makes `arena` the process's arena.
    ///
    /// # Errors
    /// The platform's error, whose text tells the user what to do.
    pub fn new(
        kvm: OwnedFd,
        arena: &'static Arena,
        config: MachineConfig,
    ) -> Result<Arc<KvmPlatform>, Error> {
        let machine = Machine::new(kvm, arena, config)?;
        super::set_arena(arena);
        Ok(Arc::new(KvmPlatform { machine }))
    }

    /// Starts the threads that answer posted system calls, for the rest of the process's life: one for two processors, and not more
    /// than [`DISPATCHERS`]. They sleep while nobody calls.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start_dispatchers(&self) -> std::io::Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..(processors / 2).clamp(1, DISPATCHERS) {
            let machine = self.machine.clone();
            let builder = std::thread::Builder::new()
                .name("dispatcher".into())
                .stack_size(crate::kernel::host_threads::STACK_SIZE);
            builder.spawn(move || {
                let _fuse = crate::task::clone::Fuse;
                if machine.mode().ring0 == platform_kvm::Ring0::Emulated {
                    crate::mm::prepare_patching();
                }
                machine.serve_calls();
            })?;
        }
        Ok(())
    }

    /// The machine, for tests and debugging.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }
}

/// What a platform failure means to the guest. Failures of the host are logged: they are ours to fix, not the guest's.
fn errno(error: &Error) -> Errno {
    match error {
        Error::OutOfMemory(_) => Errno::ENOMEM,
        Error::BadFpuState | Error::Invalid(_) => Errno::EINVAL,
        other => {
            tracing::error!(error = %other, "platform failure");
            Errno::EIO
        }
    }
}

impl Assist for KvmPlatform {
    fn assist(&self, done: &dyn Fn() -> bool) -> bool {
        self.machine.assist(done)
    }

    fn passed(&self) {
        self.machine.passed();
    }

    fn slept(&self, time: Duration) {
        self.machine.slept(time);
    }
}

impl Platform for KvmPlatform {
    fn new_space(&self) -> SysResult<Arc<dyn Space>> {
        let space = self.machine.new_address_space().map_err(|error| errno(&error))?;
        Ok(Arc::new(KvmSpace { space }))
    }

    fn new_thread(&self) -> SysResult<Box<dyn GuestThread>> {
        Ok(Box::new(KvmThread { thread: self.machine.new_thread() }))
    }

    fn arena(&self) -> &'static Arena {
        self.machine.arena()
    }

    fn tsc_khz(&self) -> u32 {
        self.machine.tsc_khz()
    }

    fn xstate_size(&self) -> usize {
        self.machine.xstate_size()
    }

    fn xcr0(&self) -> u64 {
        self.machine.xcr0()
    }

    fn describe(&self) -> String {
        let mode = self.machine.mode();
        format!("kvm, ring 0 {:?}, paging {:?}", mode.ring0, mode.paging).to_lowercase()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let calls = self.machine.dispatch_counters();
        let (tables, vcpus) = self.machine.resources();
        vec![
            ("calls answered without an exit", calls.answered),
            ("calls made by an exit", calls.exits),
            ("calls refused by a dispatcher", calls.refused),
            ("calls that no dispatcher claimed", calls.withdrawn),
            ("calls answered by a thread that waits", calls.assisted),
            ("page faults without an exit", calls.faults),
            ("page faults by an exit", calls.fault_exits),
            ("times a dispatcher was woken", calls.wakes),
            ("times processors were scarce", calls.scarce),
            ("switches of threads without an exit", calls.switches),
            ("vCPUs created", vcpus.into()),
            ("page-table pages in use", tables.into()),
            ("full flushes of translations", self.machine.flushes_begun()),
        ]
    }
}

struct KvmSpace {
    space: Arc<AddressSpace>,
}

impl Space for KvmSpace {
    fn map(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> SysResult {
        self.space.map(gva, gpa, len, perms).map_err(|error| errno(&error))
    }

    fn revoke(&self, changes: &[Change]) -> SysResult {
        self.space.revoke(changes).map_err(|error| errno(&error))
    }

    fn map_ahead(&self, gva: u64, gpa: Gpa, len: u64, perms: Perms) -> SysResult {
        self.space.map_ahead(gva, gpa, len, perms).map_err(|error| errno(&error))
    }

    fn revokes_in_place(&self) -> bool {
        self.space.revokes_in_place()
    }

    fn revoke_in_place(&self, changes: &[Change], spent: &[FrameRange]) -> SysResult<InPlace> {
        let done = self.space.revoke_in_place(changes, spent).map_err(|error| errno(&error))?;
        Ok(match done {
            None => InPlace::Impossible,
            Some(stragglers) if stragglers.are_gone() => InPlace::Done,
            Some(stragglers) => InPlace::Stragglers(Box::new(stragglers)),
        })
    }

    fn revoke_unbacked(&self) -> SysResult<usize> {
        let pages = self.space.revoke_unbacked().map_err(|error| errno(&error))?;
        Ok(usize::try_from(pages).unwrap_or(usize::MAX))
    }

    fn patched_entry(&self) -> Option<PatchedEntry> {
        self.space.patched_entry()
    }

    fn set_trampolines(&self, range: Range<u64>) {
        self.space.set_trampolines(range);
    }

    fn block_before(&self, gva: u64) -> Option<Gpa> {
        self.space.block_before(gva)
    }

    fn lookup(&self, gva: u64) -> Option<(Gpa, Perms)> {
        self.space.lookup(gva)
    }
}

impl Stragglers for platform_kvm::Stragglers {
    fn are_gone(&self) -> bool {
        platform_kvm::Stragglers::are_gone(self)
    }

    fn expel(&self) {
        platform_kvm::Stragglers::expel(self);
    }
}

struct KvmThread {
    thread: platform_kvm::GuestThread,
}

impl GuestThread for KvmThread {
    fn run(&mut self, registers: &mut Registers, space: &Arc<dyn Space>) -> SysResult<Exit> {
        let space: &dyn Any = space.as_ref();
        let space = space.downcast_ref::<KvmSpace>().ok_or(Errno::EINVAL)?;
        self.thread.run(registers, &space.space).map_err(|error| errno(&error))
    }

    fn await_turn(&mut self, slept: bool) -> Duration {
        self.thread.await_turn(slept)
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.thread.kicker())
    }

    fn fpu(&mut self) -> SysResult<FpuState> {
        self.thread.fpu().map_err(|error| errno(&error))
    }

    fn set_fpu(&mut self, state: &FpuState) -> SysResult {
        self.thread.set_fpu(state).map_err(|error| errno(&error))
    }

    fn reset_fpu(&mut self) -> SysResult {
        self.thread.reset_fpu().map_err(|error| errno(&error))
    }

    fn answer_with(&mut self, answer: Weak<dyn Answer>, handles: fn(u64) -> bool) {
        self.thread.answer_with(answer, handles);
    }

    fn board(&mut self, space: &Arc<dyn Space>, vcpu: u32) -> SysResult<Option<Place>> {
        let space: &dyn Any = space.as_ref();
        let space = space.downcast_ref::<KvmSpace>().ok_or(Errno::EINVAL)?;
        self.thread.board(&space.space, vcpu).map_err(|error| errno(&error))
    }

    fn take_own(&mut self) -> Option<Registers> {
        self.thread.take_own()
    }

    fn ashore(&mut self) -> Option<Registers> {
        self.thread.ashore()
    }
}

impl Kick for platform_kvm::Kicker {
    fn kick(&self) {
        platform_kvm::Kicker::kick(self);
    }
}
