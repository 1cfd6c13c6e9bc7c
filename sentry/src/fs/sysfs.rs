//! sysfs: the little that programs in containers look for: processors, memory policy, empty class directories.
//!
//! Not there: devices, network interfaces, cgroups.

use std::fmt::Write;
use std::sync::Arc;

use super::proc::system::SystemFile;
use super::pseudo::{PseudoDir, PseudoFile, PseudoFs, StaticDir};
use crate::errno::SysResult;
use crate::kernel::Kernel;
use crate::vfs::{Device, FileSystem, Inode};

/// A new instance.
pub fn mount(kernel: &Arc<Kernel>, device: Device) -> SysResult<Arc<dyn FileSystem>> {
    let magic = u64::from(linux_raw_sys::general::SYSFS_MAGIC);
    let fs = PseudoFs::new("sysfs", magic, device);
    let root = tree(&fs, kernel);
    fs.set_root(root);
    Ok(fs)
}

fn tree(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let dir = |children: StaticDir| PseudoDir::inode(fs, 0o755, children);
    let empty = || dir(StaticDir::new());
    let show = |show: fn(&Kernel) -> String| {
        PseudoFile::inode(fs, 0o444, SystemFile { kernel: kernel.clone(), show })
    };
    let hugepage = StaticDir::new()
        .with("enabled", show(|_| "always [madvise] never\n".into()))
        .with("hpage_pmd_size", show(|_| "2097152\n".into()));
    let mm = StaticDir::new().with("transparent_hugepage", dir(hugepage));
    let node = StaticDir::new().with("cpulist", show(online)).with("cpumap", show(cpu_map));
    let nodes = StaticDir::new().with("node0", dir(node)).with("online", show(|_| "0\n".into()));
    let system = StaticDir::new().with("cpu", cpus(fs, kernel)).with("node", dir(nodes));
    let devices = StaticDir::new().with("system", dir(system)).with("virtual", empty());
    dir(StaticDir::new()
        .with("block", empty())
        .with("bus", empty())
        .with("class", dir(StaticDir::new().with("net", empty()).with("tty", empty())))
        .with("dev", empty())
        .with("devices", dir(devices))
        .with("firmware", empty())
        .with("fs", dir(StaticDir::new().with("cgroup", empty())))
        .with("kernel", dir(StaticDir::new().with("mm", dir(mm))))
        .with("module", empty())
        .with("power", empty()))
}

fn cpus(fs: &Arc<PseudoFs>, kernel: &Arc<Kernel>) -> Arc<dyn Inode> {
    let show = |show: fn(&Kernel) -> String| {
        PseudoFile::inode(fs, 0o444, SystemFile { kernel: kernel.clone(), show })
    };
    let mut dir = StaticDir::new()
        .with("kernel_max", show(|_| "8191\n".into()))
        .with("offline", show(|_| "\n".into()))
        .with("online", show(online))
        .with("possible", show(online))
        .with("present", show(online));
    for n in 0..kernel.system_info().cpus {
        let topology = StaticDir::new()
            .with("core_siblings_list", show(online))
            .with("package_cpus_list", show(online))
            .with("physical_package_id", show(|_| "0\n".into()));
        let cpu = StaticDir::new().with("topology", PseudoDir::inode(fs, 0o755, topology));
        dir = dir.with(&format!("cpu{n}"), PseudoDir::inode(fs, 0o755, cpu));
    }
    PseudoDir::inode(fs, 0o755, dir)
}

fn online(kernel: &Kernel) -> String {
    match kernel.system_info().cpus {
        0 | 1 => "0\n".into(),
        cpus => format!("0-{}\n", cpus.saturating_sub(1)),
    }
}

/// A hexadecimal bit map in groups of 32 bits, most significant first.
fn cpu_map(kernel: &Kernel) -> String {
    let cpus = kernel.system_info().cpus.max(1);
    let groups = cpus.div_ceil(32);
    let mut text = String::new();
    for group in (0..groups).rev() {
        let bits = cpus.saturating_sub(group.saturating_mul(32)).min(32);
        let mask = if bits == 32 { u32::MAX } else { (1u32 << bits).wrapping_sub(1) };
        let _ = write!(text, "{mask:08x}{}", if group == 0 { "\n" } else { "," });
    }
    text
}
