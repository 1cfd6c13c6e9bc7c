//! User and group ids and capabilities of a task.

use bitflags::bitflags;

bitflags! {
    /// A set of capabilities; bit n is capability n of `capabilities(7)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Capability: u64 {
        /// Change owners.
        const CHOWN = 1 << 0;
        /// Bypass permission bits.
        const DAC_OVERRIDE = 1 << 1;
        /// Bypass permission bits for reading and searching.
        const DAC_READ_SEARCH = 1 << 2;
        /// Act as any file's owner.
        const FOWNER = 1 << 3;
        /// Keep set-id bits.
        const FSETID = 1 << 4;
        /// Signal anybody.
        const KILL = 1 << 5;
        /// Change group ids.
        const SETGID = 1 << 6;
        /// Change user ids.
        const SETUID = 1 << 7;
        /// Manage capability sets.
        const SETPCAP = 1 << 8;
        /// Immutable and append-only flags.
        const LINUX_IMMUTABLE = 1 << 9;
        /// Ports below 1024.
        const NET_BIND_SERVICE = 1 << 10;
        /// Broadcast.
        const NET_BROADCAST = 1 << 11;
        /// Configure networks.
        const NET_ADMIN = 1 << 12;
        /// Raw sockets.
        const NET_RAW = 1 << 13;
        /// Lock memory.
        const IPC_LOCK = 1 << 14;
        /// Bypass SysV IPC permissions.
        const IPC_OWNER = 1 << 15;
        /// Load modules.
        const SYS_MODULE = 1 << 16;
        /// Raw I/O.
        const SYS_RAWIO = 1 << 17;
        /// `chroot`.
        const SYS_CHROOT = 1 << 18;
        /// Trace anybody.
        const SYS_PTRACE = 1 << 19;
        /// Process accounting.
        const SYS_PACCT = 1 << 20;
        /// Everything else.
        const SYS_ADMIN = 1 << 21;
        /// Reboot.
        const SYS_BOOT = 1 << 22;
        /// Priorities.
        const SYS_NICE = 1 << 23;
        /// Override limits.
        const SYS_RESOURCE = 1 << 24;
        /// Set clocks.
        const SYS_TIME = 1 << 25;
        /// Configure terminals.
        const SYS_TTY_CONFIG = 1 << 26;
        /// Make device nodes.
        const MKNOD = 1 << 27;
        /// Leases.
        const LEASE = 1 << 28;
        /// Write the audit log.
        const AUDIT_WRITE = 1 << 29;
        /// Control auditing.
        const AUDIT_CONTROL = 1 << 30;
        /// Set file capabilities.
        const SETFCAP = 1 << 31;
        /// MAC override.
        const MAC_OVERRIDE = 1 << 32;
        /// MAC administration.
        const MAC_ADMIN = 1 << 33;
        /// Read the kernel log.
        const SYSLOG = 1 << 34;
        /// Wake alarms.
        const WAKE_ALARM = 1 << 35;
        /// Block suspend.
        const BLOCK_SUSPEND = 1 << 36;
        /// Read the audit log.
        const AUDIT_READ = 1 << 37;
        /// Performance monitoring.
        const PERFMON = 1 << 38;
        /// BPF.
        const BPF = 1 << 39;
        /// Checkpoint and restore.
        const CHECKPOINT_RESTORE = 1 << 40;
    }
}

/// The ids and capabilities a task acts with. Immutable: a change makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Credentials {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub gid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub groups: Vec<u32>,
    pub permitted: Capability,
    pub effective: Capability,
    pub inheritable: Capability,
    pub bounding: Capability,
    pub ambient: Capability,
    pub securebits: u32,
    pub no_new_privs: bool,
}

impl Credentials {
    /// Root with every capability: the kernel itself, and the tests.
    pub fn root() -> Credentials {
        Credentials::new(0, 0, Vec::new(), Capability::all())
    }

    /// `uid`/`gid` with `capabilities` permitted, effective and bounding.
    pub fn new(uid: u32, gid: u32, groups: Vec<u32>, capabilities: Capability) -> Credentials {
        Credentials {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups,
            permitted: capabilities,
            effective: capabilities,
            inheritable: Capability::empty(),
            bounding: capabilities,
            ambient: Capability::empty(),
            securebits: 0,
            no_new_privs: false,
        }
    }

    /// Whether the file-system group or a supplementary group is `gid`.
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.contains(&gid)
    }

    /// Whether the capability is effective.
    pub fn has(&self, capability: Capability) -> bool {
        self.effective.contains(capability)
    }
}
