//! The door: decodes a message and checks everything that a type cannot express.
//!
//! Contract: nothing in here panics or allocates more than a small multiple of the input, whatever the bytes are. What passes has
//! valid IDs, descriptor indexes that exist, required parts present, and NUL-free strings where Linux wants C strings.

use prost::Message;
use thiserror::Error;

use super::container::{Container, Mount, Process, Stdio};
use super::reply::{Reply, ToShim};
use super::request::{Request, ToSentry};
use super::{MAX_REPLY, MAX_REQUEST, ProcessRef};

/// Longest ID. containerd allows 76; CRI's are 64.
const MAX_ID: usize = 128;
/// Longest path that Linux takes.
const MAX_PATH: usize = 4096;
/// Most entries of any list but arguments and environment.
const MAX_LIST: usize = 4096;

/// Why a message was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than the direction allows.
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// Not a prost message of this type.
    #[error("message cannot be decoded: {0}")]
    Malformed(String),
    /// A request or reply that this version does not know.
    #[error("message {0} is of an unknown kind")]
    Unknown(u64),
    /// A known message with a bad value in it.
    #[error("message {number}: {what}")]
    Invalid {
        /// The message's number.
        number: u64,
        /// What is wrong, naming the field.
        what: String,
    },
}

impl DecodeError {
    /// The number of the message, so that it can be answered; `None` when not even that is known.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Unknown(number) | Self::Invalid { number, .. } => Some(*number).filter(|n| *n != 0),
            Self::TooLong(_) | Self::Malformed(_) => None,
        }
    }
}

/// True for an ID that may name a container, an exec or a sandbox: 1 to 128 of `A-Z a-z 0-9 _ . + -`, starting with a letter, a digit or `_`.
pub fn valid_id(id: &str) -> bool {
    id.len() <= MAX_ID
        && id.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-'))
}

impl ToSentry {
    /// Decodes and checks a request that arrived with `fds` descriptors.
    ///
    /// # Errors
    /// [`DecodeError`]; one with a [`number`](DecodeError::number) should be answered, any other ends the connection.
    pub fn decode_checked(bytes: &[u8], fds: usize) -> Result<(u64, Request), DecodeError> {
        if bytes.len() > MAX_REQUEST {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let message = Self::decode(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
        let number = message.number;
        let request = message.request.ok_or(DecodeError::Unknown(number))?;
        if number == 0 {
            return Err(invalid(number)("a request's number is never 0".into()));
        }
        request.check(fds).map_err(invalid(number))?;
        Ok((number, request))
    }
}

impl ToShim {
    /// Decodes and checks a reply (number not 0) or event (number 0).
    ///
    /// # Errors
    /// [`DecodeError`]; the sentry is broken or hostile then, except for [`DecodeError::Unknown`], which may be skipped.
    pub fn decode_checked(bytes: &[u8]) -> Result<(u64, Reply), DecodeError> {
        if bytes.len() > MAX_REPLY {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let message = Self::decode(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
        let number = message.number;
        let reply = message.reply.ok_or(DecodeError::Unknown(number))?;
        let event = matches!(reply, Reply::ExitEvent(_) | Reply::OomEvent(_));
        if event != (number == 0) {
            return Err(invalid(number)("events and only events have the number 0".into()));
        }
        match &reply {
            Reply::ExitEvent(exit) | Reply::Exited(exit) => {
                process_ref(exit.process.as_ref()).map_err(invalid(number))?;
                if exit.status > 255 {
                    return Err(invalid(number)(format!("exit status {} is out of range", exit.status)));
                }
            }
            Reply::OomEvent(container) => {
                id("container_id", &container.container_id).map_err(invalid(number))?
            }
            _ => {}
        }
        Ok((number, reply))
    }
}

fn invalid(number: u64) -> impl Fn(String) -> DecodeError {
    move |what| DecodeError::Invalid { number, what }
}

type Check = Result<(), String>;

impl Request {
    /// Checks one request that came with `fds` descriptors.
    fn check(&self, fds: usize) -> Check {
        match self {
            Self::Configure(c) => {
                id("sandbox_id", &c.sandbox_id)?;
                host_name(&c.hostname)?;
                fd("kvm_fd", Some(c.kvm_fd), fds)?;
                list("switches", c.switches.len())
            }
            Self::CreateContainer(c) => container(c.container.as_ref().ok_or("container is missing")?, fds),
            Self::Start(s) => id("container_id", &s.container_id),
            Self::Exec(e) => {
                id("container_id", &e.container_id)?;
                id("exec_id", &e.exec_id)?;
                process(e.process.as_ref().ok_or("process is missing")?)?;
                stdio(e.stdio.as_ref(), fds)
            }
            Self::Kill(k) => {
                id("container_id", &k.container_id)?;
                exec_id(&k.exec_id)?;
                if k.signal > 64 { Err(format!("signal {} does not exist", k.signal)) } else { Ok(()) }
            }
            Self::Wait(p) | Self::CloseStdin(p) | Self::Delete(p) => process_ref(Some(p)),
            Self::Pause(c) | Self::Resume(c) | Self::Processes(c) | Self::Stats(c) => {
                id("container_id", &c.container_id)
            }
            Self::ResizePty(r) => {
                process_ref(r.process.as_ref())?;
                let window = r.window.as_ref().ok_or("window is missing")?;
                if window.rows > 0xffff || window.columns > 0xffff {
                    return Err(format!("window of {}x{} is too large", window.columns, window.rows));
                }
                Ok(())
            }
            Self::Update(u) => id("container_id", &u.container_id),
            Self::Shutdown(_) | Self::Debug(_) => Ok(()),
        }
    }
}

fn container(c: &Container, fds: usize) -> Check {
    id("container.id", &c.id)?;
    host_name(&c.hostname)?;
    host_name(&c.domainname)?;
    process(c.process.as_ref().ok_or("container.process is missing")?)?;
    stdio(c.stdio.as_ref(), fds)?;
    let root = c.root.as_ref().ok_or("container.root is missing")?;
    fd("root.gofer_fd", Some(root.gofer_fd), fds)?;
    for (name, length) in [
        ("mounts", c.mounts.len()),
        ("devices", c.devices.len()),
        ("masked_paths", c.masked_paths.len()),
        ("readonly_paths", c.readonly_paths.len()),
        ("sysctls", c.sysctls.len()),
        ("namespaces", c.namespaces.len()),
    ] {
        list(name, length)?;
    }
    c.mounts.iter().try_for_each(|m| mount(m, fds))?;
    c.devices.iter().try_for_each(|d| absolute("devices.path", &d.path))?;
    c.masked_paths.iter().try_for_each(|p| absolute("masked_paths", p))?;
    c.readonly_paths.iter().try_for_each(|p| absolute("readonly_paths", p))?;
    for sysctl in &c.sysctls {
        if sysctl.key.is_empty() || sysctl.key.contains(['/', '\0']) || sysctl.key.contains("..") {
            return Err(format!("sysctl {:?} is not a valid key", sysctl.key));
        }
    }
    Ok(())
}

fn mount(m: &Mount, fds: usize) -> Check {
    absolute("mounts.destination", &m.destination)?;
    fd("mounts.gofer_fd", m.gofer_fd, fds)?;
    if m.kind.is_empty() || m.kind.contains('\0') || m.data.contains('\0') || m.source.contains(&0) {
        return Err(format!("mount on {:?}: type or options are empty or hold a NUL", lossy(&m.destination)));
    }
    Ok(())
}

fn process(p: &Process) -> Check {
    let first = p.args.first().ok_or("process.args is empty")?;
    if first.is_empty() {
        return Err("process.args[0] is empty".into());
    }
    if p.args.iter().chain(&p.env).any(|s| s.contains(&0)) {
        return Err("process.args or process.env holds a NUL".into());
    }
    absolute("process.cwd", &p.cwd)?;
    let user = p.user.as_ref().ok_or("process.user is missing")?;
    if user.additional_gids.len() > 65536 {
        return Err("process.user.additional_gids has more than 65536 entries".into());
    }
    if p.oom_score_adj.is_some_and(|v| !(-1000..=1000).contains(&v)) {
        return Err("process.oom_score_adj is not between -1000 and 1000".into());
    }
    if let Some(limit) = p.rlimits.iter().find(|l| l.resource > 15 || l.soft > l.hard) {
        return Err(format!(
            "process.rlimits: resource {} with soft {} and hard {}",
            limit.resource, limit.soft, limit.hard
        ));
    }
    if p.window.as_ref().is_some_and(|w| w.rows > 0xffff || w.columns > 0xffff) {
        return Err("process.window is too large".into());
    }
    list("process.rlimits", p.rlimits.len())
}

fn stdio(s: Option<&Stdio>, fds: usize) -> Check {
    let Some(s) = s else { return Ok(()) };
    fd("stdin_fd", s.stdin_fd, fds)?;
    fd("stdout_fd", s.stdout_fd, fds)?;
    fd("stderr_fd", s.stderr_fd, fds)
}

fn fd(field: &str, index: Option<u32>, fds: usize) -> Check {
    match index {
        Some(i) if usize::try_from(i).map_or(true, |i| i >= fds) => {
            Err(format!("{field} is descriptor {i} of {fds}"))
        }
        _ => Ok(()),
    }
}

fn process_ref(p: Option<&ProcessRef>) -> Check {
    let p = p.ok_or("process is missing")?;
    id("container_id", &p.container_id)?;
    exec_id(&p.exec_id)
}

fn exec_id(value: &str) -> Check {
    if value.is_empty() { Ok(()) } else { id("exec_id", value) }
}

fn id(field: &str, value: &str) -> Check {
    if valid_id(value) { Ok(()) } else { Err(format!("{field} {value:?} is not a valid ID")) }
}

fn host_name(value: &str) -> Check {
    // UTS_LEN is 64 (`man 2 sethostname`).
    if value.len() > 64 || value.contains('\0') {
        return Err(format!("host name {value:?} is longer than 64 bytes or holds a NUL"));
    }
    Ok(())
}

fn absolute(field: &str, path: &[u8]) -> Check {
    if path.first() != Some(&b'/') || path.len() >= MAX_PATH || path.contains(&0) {
        return Err(format!("{field} {:?} is not a valid absolute path", lossy(path)));
    }
    Ok(())
}

fn list(field: &str, length: usize) -> Check {
    if length > MAX_LIST {
        Err(format!("{field} has {length} entries, more than {MAX_LIST}"))
    } else {
        Ok(())
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..128).unwrap_or(bytes)).into_owned()
}
