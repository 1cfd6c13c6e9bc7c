//! Socket options of level `SOL_SOCKET` that all families keep the same way.

use std::collections::BTreeMap;
use std::time::Duration;

use linux_raw_sys::net as linux;
use parking_lot::Mutex;

use crate::errno::{Errno, SysResult};
use crate::task::{Capability, Credentials};

/// `net.core.wmem_default`, `net.core.rmem_default`, in bytes.
pub const DEFAULT_BUFFER: u32 = 212_992;
/// Twice `net.core.wmem_max` and `net.core.rmem_max`, in bytes.
const MAX_BUFFER: u32 = 2 * 4_194_304;
/// `SOCK_MIN_SNDBUF`
const MIN_SEND: u32 = 4608;
/// `SOCK_MIN_RCVBUF`
const MIN_RECEIVE: u32 = 2304;

/// Options that are a number which the sandbox only remembers.
const REMEMBERED: &[u32] = &[
    linux::SO_DEBUG,
    linux::SO_REUSEADDR,
    linux::SO_DONTROUTE,
    linux::SO_BROADCAST,
    linux::SO_KEEPALIVE,
    linux::SO_OOBINLINE,
    linux::SO_PRIORITY,
    linux::SO_TIMESTAMP_OLD,
    linux::SO_TIMESTAMPNS_OLD,
    linux::SO_NO_CHECK,
    linux::SO_RCVLOWAT,
    linux::SO_PASSCRED,
];

/// The options of one socket.
pub struct Options {
    values: Mutex<Values>,
}

#[derive(Default)]
struct Values {
    remembered: BTreeMap<u32, i32>,
    linger: (i32, i32),
    send_buffer: u32,
    receive_buffer: u32,
    send_timeout: Option<Duration>,
    receive_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let values =
            Values { send_buffer: DEFAULT_BUFFER, receive_buffer: DEFAULT_BUFFER, ..Values::default() };
        Options { values: Mutex::new(values) }
    }
}

fn int(value: &[u8]) -> SysResult<i32> {
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)
}

/// A `struct timeval`; zero means for ever.
fn timeout(value: &[u8]) -> SysResult<Option<Duration>> {
    let (sec, rest) = value.split_first_chunk::<8>().ok_or(Errno::EINVAL)?;
    let usec = rest.first_chunk::<8>().ok_or(Errno::EINVAL)?;
    let usec = u64::try_from(i64::from_ne_bytes(*usec)).ok().filter(|usec| *usec < 1_000_000);
    let usec = usec.ok_or(Errno::EDOM)?;
    // Linux takes a negative time for no time at all.
    let sec = u64::try_from(i64::from_ne_bytes(*sec)).unwrap_or(0);
    let total = Duration::from_secs(sec).saturating_add(Duration::from_micros(usec));
    Ok((!total.is_zero()).then_some(total))
}

fn timeval(timeout: Option<Duration>) -> Vec<u8> {
    let timeout = timeout.unwrap_or_default();
    let mut bytes = timeout.as_secs().to_ne_bytes().to_vec();
    bytes.extend_from_slice(&u64::from(timeout.subsec_micros()).to_ne_bytes());
    bytes
}

/// Linux doubles what is asked for, to account for its own overhead.
fn buffer(value: i32, minimum: u32) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX).saturating_mul(2).clamp(minimum, MAX_BUFFER)
}

impl Options {
    /// `SO_SNDBUF`, in bytes.
    pub fn send_buffer(&self) -> usize {
        self.values.lock().send_buffer as usize
    }

    /// Whether a remembered option is not 0.
    pub fn is_on(&self, name: u32) -> bool {
        self.values.lock().remembered.get(&name).is_some_and(|value| *value != 0)
    }

    /// `SO_RCVTIMEO`
    pub fn receive_timeout(&self) -> Option<Duration> {
        self.values.lock().receive_timeout
    }

    /// `SO_SNDTIMEO`
    pub fn send_timeout(&self) -> Option<Duration> {
        self.values.lock().send_timeout
    }

    /// Sets an option; `ENOPROTOOPT` for one that does not exist or cannot be set.
    pub fn set(&self, who: &Credentials, name: u32, value: &[u8]) -> SysResult {
        let mut values = self.values.lock();
        match name {
            linux::SO_SNDBUF => values.send_buffer = buffer(int(value)?, MIN_SEND),
            linux::SO_RCVBUF => values.receive_buffer = buffer(int(value)?, MIN_RECEIVE),
            linux::SO_SNDBUFFORCE | linux::SO_RCVBUFFORCE if !who.has(Capability::NET_ADMIN) => {
                return Err(Errno::EPERM);
            }
            linux::SO_SNDBUFFORCE => values.send_buffer = buffer(int(value)?, MIN_SEND),
            linux::SO_RCVBUFFORCE => values.receive_buffer = buffer(int(value)?, MIN_RECEIVE),
            linux::SO_SNDTIMEO_OLD | linux::SO_SNDTIMEO_NEW => values.send_timeout = timeout(value)?,
            linux::SO_RCVTIMEO_OLD | linux::SO_RCVTIMEO_NEW => values.receive_timeout = timeout(value)?,
            linux::SO_LINGER => {
                let seconds = value.get(4..).ok_or(Errno::EINVAL)?;
                values.linger = (i32::from(int(value)? != 0), int(seconds)?);
            }
            linux::SO_REUSEPORT => return Err(Errno::EOPNOTSUPP),
            name if REMEMBERED.contains(&name) => {
                let value = int(value)?;
                let counts = [linux::SO_PRIORITY, linux::SO_RCVLOWAT].contains(&name);
                values.remembered.insert(name, if counts { value } else { i32::from(value != 0) });
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    /// The value of an option; `ENOPROTOOPT` for one that does not exist.
    pub fn get(&self, name: u32) -> SysResult<Vec<u8>> {
        let values = self.values.lock();
        let number = match name {
            linux::SO_SNDBUF => values.send_buffer as i32,
            linux::SO_RCVBUF => values.receive_buffer as i32,
            linux::SO_SNDTIMEO_OLD | linux::SO_SNDTIMEO_NEW => return Ok(timeval(values.send_timeout)),
            linux::SO_RCVTIMEO_OLD | linux::SO_RCVTIMEO_NEW => return Ok(timeval(values.receive_timeout)),
            linux::SO_LINGER => {
                let (on, seconds) = values.linger;
                return Ok([on.to_ne_bytes(), seconds.to_ne_bytes()].concat());
            }
            linux::SO_SNDLOWAT => 1,
            linux::SO_RCVLOWAT => values.remembered.get(&name).copied().unwrap_or(1),
            linux::SO_REUSEPORT => 0,
            name if REMEMBERED.contains(&name) => values.remembered.get(&name).copied().unwrap_or(0),
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(number.to_ne_bytes().to_vec())
    }
}
