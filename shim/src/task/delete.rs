//! `delete`: cleans up after a shim. containerd runs it when a shim is gone, killed or not; it must do nothing twice and nothing to the living.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{self, Message};
use nix::mount::{MntFlags, umount2};

use super::publisher::timestamp;
use crate::lifecycle::record::Record;
use crate::lifecycle::sandbox::now;

/// Cleans the bundle up; gives the bytes for standard output.
///
/// # Errors
/// When the answer cannot be encoded.
pub fn run(flags: &Flags) -> protobuf::Result<Vec<u8>> {
    let bundle = if flags.bundle.is_empty() {
        env::current_dir().unwrap_or_default()
    } else {
        PathBuf::from(&flags.bundle)
    };
    if !alive(&bundle) {
        Record::load(&bundle).clean(&bundle);
        // Root file systems are mounted for the gofer alone; this is for what somebody else may have mounted there.
        while umount2(&bundle.join("rootfs"), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    }
    let answer =
        DeleteResponse { exit_status: 137, exited_at: timestamp(now()), ..DeleteResponse::default() };
    answer.write_to_bytes()
}

/// True when a shim still listens at the bundle's address. Removes the socket when it does not. That somebody accepts is not enough: a
/// child that the shim was just starting when it died holds a copy of the socket until it, too, is gone.
fn alive(bundle: &Path) -> bool {
    let Ok(address) = fs::read_to_string(bundle.join("address")) else { return false };
    let path = address.trim().trim_start_matches("unix://");
    match UnixStream::connect(path) {
        Ok(stream) => {
            let listener = rustix::net::sockopt::socket_peercred(&stream).map(|credentials| credentials.pid);
            // A process that is on its way out has no program any more.
            listener.is_ok_and(|pid| fs::read_link(format!("/proc/{}/exe", pid.as_raw_pid())).is_ok())
        }
        Err(e) => {
            if e.kind() == io::ErrorKind::ConnectionRefused {
                let _ = fs::remove_file(path);
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_listens_is_looked_at() -> std::io::Result<()> {
        let bundle = env::temp_dir().join(format!("caisson-delete-{}", std::process::id()));
        fs::create_dir_all(&bundle)?;
        let path = bundle.join("sock");
        fs::write(bundle.join("address"), format!("unix://{}", path.display()))?;
        assert!(!alive(&bundle));
        let listener = UnixListener::bind(&path)?;
        assert!(alive(&bundle));
        drop(listener);
        assert!(!alive(&bundle) && !path.exists());
        fs::remove_dir_all(&bundle)
    }
}
