//! Random bytes, from the host kernel's generator.

use crate::errno::{Errno, SysResult};
use crate::io::IoDst;

/// Fills a buffer of the kernel's own.
pub fn random_bytes(buf: &mut [u8]) -> SysResult {
    getrandom::fill(buf).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_host))
}

/// Fills the destination (`getrandom`, `/dev/urandom`); less only if guest memory faults half way.
pub fn fill(dst: &mut dyn IoDst) -> SysResult<usize> {
    let mut done = 0usize;
    let mut chunk = [0u8; 256];
    while dst.remaining() > 0 {
        let len = dst.remaining().min(chunk.len());
        let part = chunk.get_mut(..len).unwrap_or_default();
        random_bytes(part)?;
        match dst.put(part) {
            Ok(put) => done = done.saturating_add(put),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}
