//! The virtual machine.

use crate::arena::{Arena, GPA_BASE, Gpa};
use crate::control::Control;
use crate::cpu::{self, CpuTemplate};
use crate::error::{Error, ProbeError};
use crate::exitless::{Dispatch, DispatchCounters, ride};
use crate::host_mode::{HostMode, Paging, Ring0};
use crate::large::Places;
use crate::layout::*;
use crate::pool::VcpuPool;
use crate::slots::{Slots, Zone};
use crate::space::AddressSpace;
use crate::tables::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, Table, TableZone, USER, WRITABLE};
use crate::thread::GuestThread;
use crate::vcpu::Vcpu;
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::fs::OpenOptions;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Limits of a machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// At most this many vCPUs exist (and never more than KVM allows); when more threads want to run, idle ones lose theirs
    /// with their state saved.
    pub max_vcpus: u32,
    /// Freed page-table pages that are kept unused (shadow paging) before one full flush makes them usable again.
    pub quarantine_pages: u32,
    /// At most this many page-table pages exist, all address spaces together.
    pub max_table_pages: u32,
}

impl Default for MachineConfig {
    /// 512 vCPUs, a quarantine of 1024 pages, 1 GiB of tables.
    fn default() -> Self {
        MachineConfig { max_vcpus: 512, quarantine_pages: 1024, max_table_pages: 1 << 18 }
    }
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// A [`ProbeError`] that says what to do.
pub fn open_kvm() -> Result<OwnedFd, ProbeError> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/kvm");
    opened.map(OwnedFd::from).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ProbeError::Missing,
        _ => ProbeError::Denied(error),
    })
}

/// The host's time stamp counter, which is also the guest's.
pub fn rdtsc() -> u64 {
    // SAFETY: `rdtsc` exists on every x86-64 CPU and has no preconditions in user space (CR4.TSD is clear on Linux).
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The VM: page-table memory, memory slots, vCPUs.
#[derive(Debug)]
pub struct Machine {
    // Fields drop in this order: vCPUs before the VM they belong to.
    pool: VcpuPool,
    vm: VmFd,
    dispatch: Dispatch,
    arena: &'static Arena,
    config: MachineConfig,
    mode: OnceLock<HostMode>,
    cpu: CpuTemplate,
    tsc_khz: OnceLock<u32>,
    control: Control,
    tables: TableZone,
    slots: Slots,
    places: Places,
    /// A root without a lower half, for vCPUs that have not run yet.
    idle_root: Table,
    next_space: AtomicU64,
    next_thread: AtomicU64,
    bases_in_ring3: AtomicBool,
    posts_faults: AtomicBool,
}

impl Machine {
    /// Creates the VM over `arena` and probes the host. `kvm` is an open `/dev/kvm`. Installs the handler of
    /// [`crate::KICK_SIGNAL`].
    ///
    /// # Errors
    /// [`Error::Probe`] with a sentence for the user, [`Error::ArenaTooLarge`].
    pub fn new(
        kvm: OwnedFd,
        arena: &'static Arena,
        mut config: MachineConfig,
    ) -> Result<Arc<Machine>, Error> {
        // SAFETY: `kvm` owned the descriptor and has just given it up.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        check_capabilities(&kvm)?;
        crate::kick::install_handler()?;
        config.max_vcpus =
            config.max_vcpus.clamp(1, u32::try_from(kvm.get_max_vcpus()).unwrap_or(1).min(MAX_VCPUS));
        let cpu = CpuTemplate::new(&kvm)?;
        let end = arena.end().0;
        if cpu.physical_bits < 64 && end > 1 << cpu.physical_bits {
            return Err(Error::ArenaTooLarge { end, bits: cpu.physical_bits });
        }
        let vm = create_vm(&kvm)?;
        let control = Control::new(config.max_vcpus)?;
        let tables = TableZone::new(config.max_table_pages)?;
        let slots = create_slots(&vm, &control, &tables, arena)?;
        slots.ensure(&vm, CONTROL_GPA, control.memory().len() as u64)?;
        tables.set_stub_entry(build_stub_tables(&vm, &slots, &tables, &control)?);
        let idle_root = tables.alloc_root()?;
        slots.ensure(&vm, idle_root.gpa().0, 4096)?;
        let machine = Arc::new(Machine {
            pool: VcpuPool::new(config.max_vcpus),
            vm,
            dispatch: Dispatch::new(config.max_vcpus),
            arena,
            config,
            mode: OnceLock::new(),
            cpu,
            tsc_khz: OnceLock::new(),
            control,
            tables,
            slots,
            places: Places::default(),
            idle_root,
            next_space: AtomicU64::new(1),
            next_thread: AtomicU64::new(1),
            bases_in_ring3: AtomicBool::new(false),
            posts_faults: AtomicBool::new(false),
        });
        let mode = crate::probe::probe(&machine)?;
        let _ = machine.mode.set(mode);
        if mode.paging == Paging::Shadow {
            crate::slots::allow_shadow_pages(&machine.vm);
            arena.keep_host_entries_clean();
        }
        Ok(machine)
    }

    /// What the probe found.
    pub fn mode(&self) -> HostMode {
        // During the probe: the combination that takes nothing for granted.
        *self.mode.get().unwrap_or(&HostMode { ring0: Ring0::Emulated, paging: Paging::Shadow })
    }

    /// The arena this machine runs on.
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// An empty address space.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] without table pages.
    pub fn new_address_space(self: &Arc<Self>) -> Result<Arc<AddressSpace>, Error> {
        let id = self.next_space.fetch_add(1, Ordering::Relaxed);
        AddressSpace::new(self, id).map(Arc::new)
    }

    /// A guest thread with the initial FPU state. It takes a vCPU at its first `run()`.
    pub fn new_thread(self: &Arc<Self>) -> GuestThread {
        GuestThread::new(self.clone())
    }

    /// Frequency of the time stamp counter in kHz, 0 if the host does not tell.
    pub fn tsc_khz(&self) -> u32 {
        *self.tsc_khz.get().unwrap_or(&0)
    }

    /// Bytes of the XSAVE area for the features the guest may use.
    pub fn xstate_size(&self) -> usize {
        self.cpu.xstate_size
    }

    /// Whether threads can be switched inside a vCPU ([`crate::exitless::ride`]): where that saves an expensive exit, and ring 3 can do all of it. The
    /// result is what there is to save.
    pub(crate) fn switches_threads(&self) -> Option<u64> {
        let able = self.bases_in_ring3.load(Ordering::Relaxed)
            && self.cpu.xcr0 != 0
            && self.xstate_size() <= ride::MOST_XSTATE;
        (able && self.mode().ring0 == Ring0::Emulated).then_some(self.cpu.xcr0)
    }

    /// Whether the guest posts page faults ([`crate::exitless::faulting`]).
    pub fn posts_faults(&self) -> bool {
        self.posts_faults.load(Ordering::Relaxed)
    }

    /// Makes it do so, or not. No vCPU is in the guest.
    pub(crate) fn post_faults(&self, by: Option<Ring0>) {
        self.control.post_faults(by);
        self.posts_faults.store(by.is_some(), Ordering::Relaxed);
    }

    /// Whether ring 3 can read and write the bases of FS and GS.
    pub(crate) fn set_bases_in_ring3(&self, able: bool) {
        self.bases_in_ring3.store(able, Ordering::Relaxed);
    }

    /// The XCR0 of the guest: which state components exist.
    pub fn xcr0(&self) -> u64 {
        self.cpu.xcr0
    }

    /// Page-table pages in use, and vCPUs created: for metrics and tests.
    pub fn resources(&self) -> (u32, u32) {
        (self.tables.in_use(), self.pool.created())
    }

    /// Answers posted system calls on the calling thread until [`Machine::stop_serving`]. Sleeps while nobody calls.
    pub fn serve_calls(&self) {
        self.dispatch.serve();
    }

    /// For a host thread that is about to sleep: answers other threads' posted calls for a moment, because what it waits for may be one of
    /// them. Whether `done` has become true meanwhile. Calls that it answers must not sleep.
    pub fn assist(&self, done: &dyn Fn() -> bool) -> bool {
        self.dispatch.assist(done)
    }

    /// A call that was to wait need not.
    pub fn passed(&self) {
        self.dispatch.passed();
    }

    /// The sleep that followed [`Machine::assist`] took so long.
    pub fn slept(&self, time: Duration) {
        self.dispatch.slept(time);
    }

    /// Ends every [`Machine::serve_calls`], now and later.
    pub fn stop_serving(&self) {
        self.dispatch.stop();
    }

    /// How system calls were made so far.
    pub fn dispatch_counters(&self) -> DispatchCounters {
        self.dispatch.counters()
    }

    pub(crate) fn next_thread(&self) -> u64 {
        self.next_thread.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    pub(crate) fn pool(&self) -> &VcpuPool {
        &self.pool
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn tables(&self) -> &TableZone {
        &self.tables
    }

    pub(crate) fn create_vcpu(&self, index: u32) -> Result<Vcpu, Error> {
        self.create_vcpu_for(index, self.mode().ring0)
    }

    fn create_vcpu_for(&self, index: u32, ring0: Ring0) -> Result<Vcpu, Error> {
        let vcpu = Vcpu::new(&self.vm, &self.control, &self.cpu, index, self.idle_root.gpa().0, ring0)?;
        if self.tsc_khz.set(vcpu.tsc_khz()).is_ok() {
            self.dispatch.set_tsc_khz(self.tsc_khz());
        }
        Ok(vcpu)
    }

    /// A vCPU that counts against the limit and is given to the pool afterwards.
    pub(crate) fn new_vcpu_for_probe(&self, ring0: Ring0) -> Result<Vcpu, Error> {
        self.create_vcpu_for(self.pool.next_index(), ring0)
    }

    pub(crate) fn ensure_slots(&self, gpa: Gpa, len: u64) -> Result<(), Error> {
        self.slots.ensure(&self.vm, gpa.0, len)
    }

    /// An empty table, flushing the quarantine if nothing else is left.
    pub(crate) fn alloc_table(&self) -> Result<Table, Error> {
        self.with_slot(self.tables.alloc().or_else(|_| {
            self.flush_quarantine_if_full();
            self.tables.alloc()
        })?)
    }

    pub(crate) fn alloc_root(&self) -> Result<Table, Error> {
        self.with_slot(self.tables.alloc_root().or_else(|_| {
            self.flush_quarantine_if_full();
            self.tables.alloc_root()
        })?)
    }

    fn with_slot(&self, table: Table) -> Result<Table, Error> {
        self.ensure_slots(table.gpa(), 4096)?;
        Ok(table)
    }

    pub(crate) fn flush_quarantine_if_full(&self) {
        if self.tables.quarantine_is_full(self.config.quarantine_pages) {
            // On failure everything stays in quarantine, and the next one tries again.
            let _ = self.tables.release_quarantine(|| self.flush_everything());
        }
    }

    /// Makes KVM drop everything it derived from guest tables.
    pub(crate) fn flush_everything(&self) -> Result<(), Error> {
        self.slots.flush_everything(&self.vm)
    }

    /// Where blocks are mapped by leaves.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Full flushes that have begun.
    pub fn flushes_begun(&self) -> u64 {
        self.slots.flushes_begun()
    }

    /// The number of the last one that was completed.
    pub(crate) fn flushes_completed(&self) -> u64 {
        self.slots.flushes_completed()
    }
}

fn check_capabilities(kvm: &Kvm) -> Result<(), Error> {
    if kvm.get_api_version() != 12 {
        return Err(ProbeError::Lacks("API version 12").into());
    }
    let needed = [
        (Cap::UserMemory, "user memory regions"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::Xsave, "KVM_CAP_XSAVE"),
        (Cap::Xcrs, "KVM_CAP_XCRS"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    ];
    for (capability, name) in needed {
        if !kvm.check_extension(capability) {
            return Err(ProbeError::Lacks(name).into());
        }
    }
    let wanted = kvm_bindings::KVM_SYNC_X86_VALID_FIELDS as i32;
    if kvm.check_extension_int(Cap::SyncRegs) & wanted != wanted {
        return Err(ProbeError::Lacks("KVM_CAP_SYNC_REGS with registers, system registers and events").into());
    }
    Ok(())
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    // A signal makes VM creation fail with EINTR on some kernels; it is then tried again.
    let mut tries = 0;
    let vm = loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR && tries < 100 => tries += 1,
            other => break other.map_err(|e| cpu::unusable("KVM_CREATE_VM", e))?,
        }
    };
    let quirks = u64::from(kvm_bindings::KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
    let supported = vm.check_extension_raw(u64::from(kvm_bindings::KVM_CAP_DISABLE_QUIRKS2));
    if supported > 0 && supported as u64 & quirks != 0 {
        // Without this, KVM rewrites a `vmcall` of the guest to `vmmcall` in the guest's memory.
        let mut cap =
            kvm_bindings::kvm_enable_cap { cap: kvm_bindings::KVM_CAP_DISABLE_QUIRKS2, ..Default::default() };
        cap.args[0] = quirks;
        vm.enable_cap(&cap).map_err(|e| cpu::unusable("KVM_CAP_DISABLE_QUIRKS2", e))?;
    }
    // Needed by hosts that run real mode in a VM86 task; harmless elsewhere, and refused by hosts that have no use for it.
    let _ = vm.set_tss_address(0xfffb_d000);
    Ok(vm)
}

fn create_slots(
    vm: &VmFd,
    control: &Control,
    tables: &TableZone,
    arena: &'static Arena,
) -> Result<Slots, Error> {
    let window = arena.window_start().0;
    let base = arena.memory().address();
    let small = arena.huge_start().0;
    let arena_zone =
        |start: u64, end: u64| Zone { gpa: start, hva: base + (start - GPA_BASE), len: end - start };
    let zones = [
        Zone { gpa: CONTROL_GPA, hva: control.memory().address(), len: control.memory().len() as u64 },
        Zone { gpa: TABLES_GPA, hva: tables.memory().address(), len: TABLES_LEN },
        arena_zone(GPA_BASE, small),
        arena_zone(small, window),
        arena_zone(window, arena.end().0),
    ];
    // The flush slot shows the stub page a second time; nothing maps it.
    Slots::new(vm, &zones, control.memory().address())
}

/// The tables of the upper half, shared by all roots: control pages, supervisor only. Returns the root entry.
fn build_stub_tables(vm: &VmFd, slots: &Slots, tables: &TableZone, control: &Control) -> Result<u64, Error> {
    let new_table = || -> Result<Table, Error> {
        let table = tables.alloc()?;
        slots.ensure(vm, table.gpa().0, 4096)?;
        Ok(table)
    };
    // The user bit is decided by the leaf entries alone.
    let link = PRESENT | WRITABLE | ACCESSED | USER;
    let (pdpt, directory) = (new_table()?, new_table()?);
    tables.entry(pdpt, CONTROL_PDPT_INDEX).store(directory.gpa().0 | link, Ordering::Release);
    let mut table = directory;
    for page in 0..control.pages() {
        let index = page as usize % 512;
        if index == 0 {
            table = new_table()?;
            tables.entry(directory, page as usize / 512).store(table.gpa().0 | link, Ordering::Release);
        }
        let rights = match page {
            0 => 0,
            1 => NO_EXECUTE,
            USER_STUB_PAGE => USER,
            _ if control.stub_pages().contains(&page) => 0,
            // Used in the lower half only.
            _ if control.switch_page() == page => NO_EXECUTE,
            _ => NO_EXECUTE | WRITABLE,
        };
        let entry = (CONTROL_GPA + page * 4096) | PRESENT | ACCESSED | DIRTY | rights;
        tables.entry(table, index).store(entry, Ordering::Release);
    }
    Ok(pdpt.gpa().0 | link)
}
