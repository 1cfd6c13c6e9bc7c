//! Output processing (`OPOST`): what a terminal makes of written and echoed bytes on their way to the master.

use linux_raw_sys::general as linux;

use super::line::Line;
use crate::fs::byte_ring::ByteRing;

/// Bytes that wait for the master beyond which the slave's writers wait.
pub(super) const LIMIT: usize = 16 << 10;
/// Room left for echoes when writers have filled the rest. Echoes beyond are lost, as on a full Linux terminal.
const ECHO_ROOM: usize = 4 << 10;
/// Linux queues echoes with this byte as the escape; itself it is echoed unprocessed, but always counted.
const ECHO_ESCAPE: u8 = 0xff;

/// Whether it is a continuation byte of a UTF-8 character that counts as part of the one before it.
pub(super) fn is_continuation(line: &Line, byte: u8) -> bool {
    line.termios.i(linux::IUTF8) && byte & 0xc0 == 0x80
}

/// The way to the master.
#[derive(Default)]
pub(super) struct Output {
    pub ring: ByteRing,
    /// Echoes made while output is stopped.
    pub held: ByteRing,
    /// Where the cursor is.
    pub column: usize,
    /// Where it was when the line being edited began.
    pub canon_column: usize,
}

impl Line {
    /// Bytes that may be written now without exceeding the limit, whatever they are.
    pub(super) fn output_room(&self) -> usize {
        if self.stopped {
            return 0;
        }
        let worst = if !self.termios.o(linux::OPOST) {
            1
        } else if self.termios.output & linux::TABDLY == linux::XTABS {
            8
        } else {
            2
        };
        LIMIT.saturating_sub(self.output.ring.len()) / worst
    }

    /// Writes what a process writes.
    pub(super) fn write_output(&mut self, data: &[u8]) {
        if !self.termios.o(linux::OPOST) {
            self.output.ring.push(data);
            return;
        }
        let mut processed = Vec::with_capacity(data.len().saturating_add(16));
        for &byte in data {
            self.post_process(byte, &mut processed);
        }
        self.output.ring.push(&processed);
    }

    /// Echoes bytes, with output processing if that is on.
    pub(super) fn echo_raw(&mut self, data: &[u8]) {
        let mut processed = Vec::with_capacity(data.len());
        for &byte in data {
            if byte == ECHO_ESCAPE {
                processed.push(byte);
                self.output.column = self.output.column.saturating_add(1);
            } else if self.termios.o(linux::OPOST) {
                self.post_process(byte, &mut processed);
            } else {
                processed.push(byte);
            }
        }
        self.emit_echo(&processed);
    }

    /// Echoes bytes exactly as they are.
    pub(super) fn emit_echo(&mut self, data: &[u8]) {
        let pending = self.output.ring.len().saturating_add(self.output.held.len());
        if pending.saturating_add(data.len()) > LIMIT + ECHO_ROOM {
            return;
        }
        if self.stopped {
            self.output.held.push(data);
        } else {
            self.output.ring.push(data);
        }
    }

    /// Lets go what was held back.
    pub(super) fn release_held(&mut self) {
        let (first, second) = self.output.held.as_slices();
        self.output.ring.push(first);
        self.output.ring.push(second);
        self.output.held.clear();
    }

    /// Echoes a typed byte: control characters as `^X` with `ECHOCTL`.
    pub(super) fn echo(&mut self, byte: u8) {
        if self.termios.l(linux::ECHOCTL) && byte.is_ascii_control() && byte != b'\t' {
            self.emit_echo(&[b'^', byte ^ 0x40]);
            self.output.column = self.output.column.saturating_add(2);
        } else {
            self.echo_raw(&[byte]);
        }
    }

    /// Linux's `do_output_char`.
    fn post_process(&mut self, byte: u8, out: &mut Vec<u8>) {
        let (has, output) = (|flag| self.termios.o(flag), &self.output);
        let (mut column, mut canon) = (output.column, output.canon_column);
        match byte {
            b'\n' => {
                if has(linux::ONLRET) {
                    column = 0;
                }
                if has(linux::ONLCR) {
                    out.extend_from_slice(b"\r\n");
                    column = 0;
                } else {
                    out.push(b'\n');
                }
                canon = column;
            }
            b'\r' if has(linux::ONOCR) && column == 0 => {}
            b'\r' if has(linux::OCRNL) => {
                out.push(b'\n');
                if has(linux::ONLRET) {
                    (column, canon) = (0, 0);
                }
            }
            b'\r' => {
                out.push(b'\r');
                (column, canon) = (0, 0);
            }
            b'\t' => {
                let spaces = 8usize.wrapping_sub(column & 7);
                column = column.saturating_add(spaces);
                if self.termios.output & linux::TABDLY == linux::XTABS {
                    out.extend(std::iter::repeat_n(b' ', spaces));
                } else {
                    out.push(b'\t');
                }
            }
            b'\x08' => {
                column = column.saturating_sub(1);
                out.push(byte);
            }
            _ if byte.is_ascii_control() => out.push(byte),
            _ => {
                out.push(if has(linux::OLCUC) { byte.to_ascii_uppercase() } else { byte });
                if !is_continuation(self, byte) {
                    column = column.saturating_add(1);
                }
            }
        }
        (self.output.column, self.output.canon_column) = (column, canon);
    }
}
