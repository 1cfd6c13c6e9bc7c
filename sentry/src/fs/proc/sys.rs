//! `/proc/sys`: the knobs programs read, and the few they may turn.

use std::sync::Arc;

use parking_lot::Mutex;

use super::system::SystemFile;
use crate::errno::{Errno, SysResult};
use crate::fs::pseudo::{Owner, PseudoDir, PseudoFile, PseudoFs, StaticDir, Text};
use crate::kernel::Kernel;
use crate::kernel::system_info::{RELEASE, VERSION};
use crate::syscalls::system::UTS_FIELD;
use crate::task::current::current;
use crate::task::namespaces::UtsNames;
use crate::vfs::Inode;

/// A number or a text that is kept and has no further effect inside the sandbox.
struct Kept {
    value: Mutex<Vec<u8>>,
}

impl Owner for Kept {}

impl Text for Kept {
    fn text(&self) -> SysResult<Vec<u8>> {
        Ok(self.value.lock().clone())
    }

    fn write(&self, data: &[u8], offset: u64) -> SysResult {
        if offset != 0 {
            return Ok(());
        }
        let line = data.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let numeric = |byte: &u8| byte.is_ascii_digit() || b" \t-".contains(byte);
        if line.is_empty() || line.len() > 256 || !line.iter().all(numeric) {
            return Err(Errno::EINVAL);
        }
        *self.value.lock() = [line, b"\n"].concat();
        Ok(())
    }
}

/// A 128-bit identifier in the usual form, new at each read.
struct RandomUuid;

impl Owner for RandomUuid {}

impl Text for RandomUuid {
    fn text(&self) -> SysResult<Vec<u8>> {
        Ok(format!("{}\n", uuid()?).into_bytes())
    }
}

/// A random (version 4) UUID.
fn uuid() -> SysResult<String> {
    let mut bytes = [0u8; 16];
    crate::fs::random::random_bytes(&mut bytes)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    let (g, i) = ((g & 0x0f) | 0x40, (i & 0x3f) | 0x80);
    Ok(format!(
        "{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}-{g:02x}{h:02x}-{i:02x}{j:02x}-{k:02x}{l:02x}{m:02x}{n:02x}{o:02x}{p:02x}"
    ))
}

/// A name of the UTS namespace of whoever reads or writes it.
#[derive(Clone, Copy)]
enum Name {
    Host,
    Domain,
}

impl Name {
    fn of(self, names: &mut UtsNames) -> &mut Vec<u8> {
        match self {
            Name::Host => &mut names.host,
            Name::Domain => &mut names.domain,
        }
    }
}

impl Owner for Name {}

impl Text for Name {
    fn text(&self) -> SysResult<Vec<u8>> {
        let names = current().map(|task| task.namespaces().uts.names());
        let mut text = names.map(|mut names| std::mem::take(self.of(&mut names))).unwrap_or_default();
        text.push(b'\n');
        Ok(text)
    }

    /// What does not fit is left out, as Linux does.
    fn write(&self, data: &[u8], offset: u64) -> SysResult {
        if offset != 0 {
            return Ok(());
        }
        let line = data.split(|&byte| byte == b'\n' || byte == 0).next().unwrap_or_default();
        let name = line.get(..line.len().min(UTS_FIELD - 1)).unwrap_or_default().to_vec();
        let task = current().ok_or(Errno::ESRCH)?;
        task.namespaces().uts.update(|names| *self.of(names) = name);
        Ok(())
    }
}

/// Builds directories without repeating the file system and the kernel at every line.
struct Builder<'a> {
    fs: &'a Arc<PseudoFs>,
    kernel: &'a Arc<Kernel>,
}

impl Builder<'_> {
    fn show(&self, show: fn(&Kernel) -> String) -> Arc<dyn Inode> {
        PseudoFile::inode(self.fs, 0o444, SystemFile { kernel: self.kernel.clone(), show })
    }

    fn kept(&self, value: &str) -> Arc<dyn Inode> {
        PseudoFile::inode(self.fs, 0o644, Kept { value: Mutex::new(format!("{value}\n").into_bytes()) })
    }

    fn name(&self, name: Name) -> Arc<dyn Inode> {
        PseudoFile::inode(self.fs, 0o644, name)
    }

    fn dir(&self, children: StaticDir) -> Arc<dyn Inode> {
        PseudoDir::inode(self.fs, 0o555, children)
    }

    fn kernel_dir(&self) -> SysResult<Arc<dyn Inode>> {
        let boot_id = Kept { value: Mutex::new(format!("{}\n", uuid()?).into_bytes()) };
        let random = StaticDir::new()
            .with("boot_id", PseudoFile::inode(self.fs, 0o444, boot_id))
            .with("uuid", PseudoFile::inode(self.fs, 0o444, RandomUuid))
            .with("entropy_avail", self.show(|_| "256\n".into()))
            .with("poolsize", self.show(|_| "256\n".into()));
        Ok(self.dir(
            StaticDir::new()
                .with("cap_last_cap", self.show(|_| "40\n".into()))
                .with("core_pattern", self.show(|_| "core\n".into()))
                .with("domainname", self.name(Name::Domain))
                .with("hostname", self.name(Name::Host))
                .with("msgmax", self.kept("8192"))
                .with("msgmnb", self.kept("16384"))
                .with("msgmni", self.kept("32000"))
                .with("ngroups_max", self.show(|_| "65536\n".into()))
                .with("osrelease", self.show(|_| format!("{RELEASE}\n")))
                .with("ostype", self.show(|_| "Linux\n".into()))
                .with("overflowgid", self.show(|_| "65534\n".into()))
                .with("overflowuid", self.show(|_| "65534\n".into()))
                .with("pid_max", self.show(|_| format!("{}\n", crate::task::pid::PID_MAX)))
                .with("random", self.dir(random))
                .with("randomize_va_space", self.show(|_| "2\n".into()))
                .with("sem", self.kept("32000\t1024000\t500\t32000"))
                .with("shmall", self.kept("18446744073692774399"))
                .with("shmmax", self.kept("18446744073692774399"))
                .with("shmmni", self.kept("4096"))
                .with(
                    "threads-max",
                    self.show(|kernel| format!("{}\n", kernel.system_info().memory_total >> 17)),
                )
                .with("tainted", self.kept("0"))
                .with("version", self.show(|_| format!("{VERSION}\n")))
                .with("yama", self.dir(StaticDir::new().with("ptrace_scope", self.show(|_| "0\n".into())))),
        ))
    }

    fn fs_dir(&self) -> Arc<dyn Inode> {
        let inotify = StaticDir::new()
            .with("max_queued_events", self.kept("16384"))
            .with("max_user_instances", self.kept("128"))
            .with("max_user_watches", self.kept("65536"));
        let mqueue = StaticDir::new()
            .with("msg_default", self.kept("10"))
            .with("msg_max", self.kept("10"))
            .with("msgsize_default", self.kept("8192"))
            .with("msgsize_max", self.kept("8192"))
            .with("queues_max", self.kept("256"));
        self.dir(
            StaticDir::new()
                .with("file-max", self.kept("9223372036854775807"))
                .with("file-nr", self.show(|_| "0\t0\t9223372036854775807\n".into()))
                .with("inotify", self.dir(inotify))
                .with("mqueue", self.dir(mqueue))
                .with("nr_open", self.kept("1048576"))
                .with("pipe-max-size", self.kept("1048576"))
                .with("pipe-user-pages-hard", self.kept("0"))
                .with("pipe-user-pages-soft", self.kept("16384"))
                .with("protected_fifos", self.show(|_| "0\n".into()))
                .with("protected_hardlinks", self.show(|_| "1\n".into()))
                .with("protected_regular", self.show(|_| "0\n".into()))
                .with("protected_symlinks", self.show(|_| "1\n".into())),
        )
    }

    fn vm_dir(&self) -> Arc<dyn Inode> {
        self.dir(
            StaticDir::new()
                .with("max_map_count", self.kept("65530"))
                .with("min_free_kbytes", self.kept("67584"))
                .with("mmap_min_addr", self.kept("65536"))
                .with("overcommit_memory", self.kept("0"))
                .with("overcommit_ratio", self.kept("50"))
                .with("swappiness", self.kept("60")),
        )
    }

    fn net_dir(&self) -> Arc<dyn Inode> {
        let core = StaticDir::new().with("somaxconn", self.kept("4096"));
        let unix = StaticDir::new().with("max_dgram_qlen", self.kept("512"));
        self.dir(StaticDir::new().with("core", self.dir(core)).with("unix", self.dir(unix)))
    }
}

/// The directory `/proc/sys`.
pub fn directory(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> SysResult<Arc<dyn Inode>> {
    let builder = Builder { fs, kernel };
    Ok(builder.dir(
        StaticDir::new()
            .with("fs", builder.fs_dir())
            .with("kernel", builder.kernel_dir()?)
            .with("net", builder.net_dir())
            .with("vm", builder.vm_dir()),
    ))
}
