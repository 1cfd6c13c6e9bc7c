//! The line discipline (`N_TTY`): what becomes of typed bytes.
//!
//! A [`Line`] is plain data and pure functions: bytes in ([`Line::receive`]), bytes out (its output and [`Line::read`]),
//! and what the rest of the terminal has to do about it ([`Effects`]). Its tests compare it with the host's terminals.
//!
//! Bounds: at most [`INPUT_LIMIT`] typed bytes wait for readers; a canonical line that fills it loses what is typed
//! beyond, as in Linux.

use std::collections::VecDeque;

use linux_raw_sys::general as linux;

use super::output::Output;
use super::termios::{DISABLED, Termios};
use crate::errno::SysResult;
use crate::io::IoDst;
use crate::task::Signal;

/// Typed bytes that wait for readers (`N_TTY_BUF_SIZE`).
pub(super) const INPUT_LIMIT: usize = 4096;

/// A typed byte in the input buffer.
#[derive(Clone, Copy)]
pub(super) struct Typed {
    pub byte: u8,
    /// It ends a line.
    pub ends_line: bool,
}

/// How a byte that stays as it is is echoed.
#[derive(Clone, Copy)]
enum Echo {
    /// A control character as `^X` with `ECHOCTL`.
    Visibly,
    /// As it is: a newline that was typed as a carriage return.
    Plainly,
}

/// What typing has caused.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Effects {
    /// Signals for the foreground group, in order.
    pub signals: Vec<Signal>,
    /// Readers may find something.
    pub readable: bool,
    /// Input and output were flushed by a signal character.
    pub flushed: bool,
    /// Output was stopped or started.
    pub flow_changed: bool,
}

/// Settings and buffers of one terminal.
pub(super) struct Line {
    pub termios: Termios,
    /// What was typed and not read.
    pub input: VecDeque<Typed>,
    /// How many bytes of it belong to finished lines (canonical mode).
    pub finished: usize,
    pub output: Output,
    /// In the middle of an `ECHOPRT` erasure.
    pub erasing: bool,
    /// The next byte is literal.
    literal_next: bool,
    /// Output is stopped (`^S`, `TCOOFF`).
    pub stopped: bool,
    /// It was stopped by `TCOOFF`, which typing does not undo.
    pub stopped_by_call: bool,
}

impl Line {
    pub fn new() -> Line {
        Line {
            termios: Termios::standard(),
            input: VecDeque::new(),
            finished: 0,
            output: Output::default(),
            erasing: false,
            literal_next: false,
            stopped: false,
            stopped_by_call: false,
        }
    }

    pub fn canonical(&self) -> bool {
        self.termios.l(linux::ICANON)
    }

    fn extended(&self) -> bool {
        self.termios.l(linux::IEXTEN)
    }

    fn echoes(&self) -> bool {
        self.termios.l(linux::ECHO)
    }

    /// Bytes that [`Line::receive`] takes now.
    pub fn input_room(&self) -> usize {
        let room = (INPUT_LIMIT - 1).saturating_sub(self.input.len());
        // A line that nobody can finish reading must still be finishable by typing.
        if room == 0 && self.canonical() && self.finished == 0 { usize::MAX } else { room }
    }

    /// Takes typed bytes; returns how many, fewer only when the input buffer is full.
    pub fn receive(&mut self, data: &[u8], effects: &mut Effects) -> usize {
        for (index, &byte) in data.iter().enumerate() {
            if self.input_room() == 0 {
                return index;
            }
            if self.input.len() >= INPUT_LIMIT {
                self.input.pop_back();
            }
            self.receive_byte(byte, effects);
        }
        data.len()
    }

    fn receive_byte(&mut self, mut byte: u8, effects: &mut Effects) {
        if self.termios.i(linux::ISTRIP) {
            byte &= 0x7f;
        }
        if self.termios.i(linux::IUCLC) && self.extended() {
            byte = byte.to_ascii_lowercase();
        }
        if self.literal_next {
            self.literal_next = false;
            self.receive_ordinary(byte, Echo::Visibly, effects);
            return;
        }
        if self.receive_flow(byte, effects) || self.receive_signal(byte, effects) {
            return;
        }
        if self.stopped
            && !self.stopped_by_call
            && self.termios.i(linux::IXON)
            && self.termios.i(linux::IXANY)
        {
            self.start(effects);
        }
        let mut echo = Echo::Visibly;
        match byte {
            b'\r' if self.termios.i(linux::IGNCR) => return,
            b'\r' if self.termios.i(linux::ICRNL) => (byte, echo) = (b'\n', Echo::Plainly),
            b'\n' if self.termios.i(linux::INLCR) => byte = b'\r',
            _ => {}
        }
        if self.canonical() && self.receive_editing(byte, effects) {
            return;
        }
        self.receive_ordinary(byte, echo, effects);
    }

    /// `^S` and `^Q`.
    fn receive_flow(&mut self, byte: u8, effects: &mut Effects) -> bool {
        if !self.termios.i(linux::IXON) {
            return false;
        }
        if self.termios.is(linux::VSTART, byte) {
            self.start(effects);
            return true;
        }
        if self.termios.is(linux::VSTOP, byte) {
            self.stop(effects);
            return true;
        }
        false
    }

    /// Stops output.
    pub fn stop(&mut self, effects: &mut Effects) {
        effects.flow_changed |= !self.stopped;
        self.stopped = true;
    }

    /// Lets output go on, unless a call stopped it.
    pub fn start(&mut self, effects: &mut Effects) {
        if self.stopped && !self.stopped_by_call {
            self.stopped = false;
            effects.flow_changed = true;
            self.release_held();
        }
    }

    /// `^C`, `^\`, `^Z`.
    fn receive_signal(&mut self, byte: u8, effects: &mut Effects) -> bool {
        if !self.termios.l(linux::ISIG) {
            return false;
        }
        let signals =
            [(linux::VINTR, Signal::INT), (linux::VQUIT, Signal::QUIT), (linux::VSUSP, Signal::TSTP)];
        let Some((_, signal)) = signals.into_iter().find(|&(index, _)| self.termios.is(index, byte)) else {
            return false;
        };
        if !self.termios.l(linux::NOFLSH) {
            self.flush_input();
            self.output.ring.clear();
            self.output.held.clear();
            effects.flushed = true;
        }
        effects.signals.push(signal);
        if self.termios.i(linux::IXON) {
            self.start(effects);
        }
        if self.echoes() {
            self.echo(byte);
        }
        true
    }

    /// Forgets what was typed.
    pub fn flush_input(&mut self) {
        self.input.clear();
        self.finished = 0;
        self.erasing = false;
        self.literal_next = false;
    }

    /// Characters that edit or end a canonical line; `false` for those that belong to it.
    fn receive_editing(&mut self, byte: u8, effects: &mut Effects) -> bool {
        let is = |index| self.termios.is(index, byte);
        if is(linux::VERASE) || is(linux::VKILL) || (is(linux::VWERASE) && self.extended()) {
            self.erase(byte);
        } else if is(linux::VLNEXT) && self.extended() {
            self.literal_next = true;
            if self.echoes() {
                self.finish_erasing();
                if self.termios.l(linux::ECHOCTL) {
                    self.echo_raw(b"^\x08");
                }
            }
        } else if is(linux::VREPRINT) && self.echoes() && self.extended() {
            self.reprint(byte);
        } else if byte == b'\n' {
            if self.echoes() || self.termios.l(linux::ECHONL) {
                self.echo_raw(b"\n");
            }
            self.end_line(b'\n', effects);
        } else if is(linux::VEOF) {
            self.end_line(DISABLED, effects);
        } else if is(linux::VEOL) || (is(linux::VEOL2) && self.extended()) {
            if self.echoes() {
                self.mark_line_start();
                self.echo(byte);
            }
            self.end_line(byte, effects);
        } else {
            return false;
        }
        true
    }

    fn reprint(&mut self, byte: u8) {
        self.finish_erasing();
        self.echo(byte);
        self.echo_raw(b"\n");
        let line: Vec<u8> = self.input.iter().skip(self.finished).map(|typed| typed.byte).collect();
        for byte in line {
            self.echo(byte);
        }
    }

    fn end_line(&mut self, byte: u8, effects: &mut Effects) {
        self.input.push_back(Typed { byte, ends_line: true });
        self.finished = self.input.len();
        effects.readable = true;
    }

    /// A byte that stays as it is.
    fn receive_ordinary(&mut self, byte: u8, echo: Echo, effects: &mut Effects) {
        if self.echoes() {
            self.finish_erasing();
            match echo {
                Echo::Plainly => self.echo_raw(&[byte]),
                Echo::Visibly => {
                    self.mark_line_start();
                    self.echo(byte);
                }
            }
        }
        if byte == 0xff && self.termios.i(linux::PARMRK) {
            self.input.push_back(Typed { byte, ends_line: false });
        }
        self.input.push_back(Typed { byte, ends_line: false });
        effects.readable |= !self.canonical();
    }

    /// The cursor's column counts from where the first byte of a line is echoed.
    fn mark_line_start(&mut self) {
        if self.canonical() && self.input.len() == self.finished {
            self.output.canon_column = self.output.column;
        }
    }

    /// Bytes a reader can have: finished lines in canonical mode, everything otherwise.
    pub fn available(&self) -> usize {
        if self.canonical() { self.finished } else { self.input.len() }
    }

    /// `FIONREAD`: as [`Line::available`], without the marks that only end a line.
    pub fn readable_bytes(&self) -> usize {
        let ready = self.input.iter().take(self.available());
        if !self.canonical() {
            return ready.count();
        }
        ready.filter(|typed| !(typed.ends_line && typed.byte == DISABLED)).count()
    }

    /// Reads: at most one line in canonical mode; 0 bytes for an end-of-file mark.
    pub fn read(&mut self, dst: &mut dyn IoDst) -> SysResult<usize> {
        let limit = dst.remaining().min(INPUT_LIMIT);
        let mut data = Vec::with_capacity(limit.min(self.available()));
        let mut taken: usize = 0;
        for typed in self.input.iter().take(self.available()) {
            let mark = self.canonical() && typed.ends_line && typed.byte == DISABLED;
            if data.len() >= limit && !mark {
                break;
            }
            taken = taken.saturating_add(1);
            if !mark {
                data.push(typed.byte);
            }
            if self.canonical() && typed.ends_line {
                break;
            }
        }
        let put = if data.is_empty() { 0 } else { dst.put(&data)? };
        // What could not be copied out stays.
        let taken = if put < data.len() { put } else { taken };
        self.input.drain(..taken);
        self.finished = self.finished.saturating_sub(taken);
        Ok(put)
    }

    /// New settings, with what a change of mode does to the bytes that wait.
    pub fn set_termios(&mut self, new: Termios, effects: &mut Effects) {
        let old = std::mem::replace(&mut self.termios, new.for_pty());
        if (old.local ^ self.termios.local) & linux::ICANON != 0 {
            self.erasing = false;
            self.literal_next = false;
            self.finished = if self.canonical() { self.input.len() } else { 0 };
            for typed in &mut self.input {
                typed.ends_line = false;
            }
            if let (true, Some(last)) = (self.canonical(), self.input.back_mut()) {
                // Readable as if it were a line, although it has no end.
                last.ends_line = last.byte != DISABLED;
            }
            effects.readable = !self.input.is_empty();
        }
        if old.i(linux::IXON) && !self.termios.i(linux::IXON) {
            self.start(effects);
        }
    }
}
