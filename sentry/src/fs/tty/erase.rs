//! Erasing typed characters, words and lines (`eraser` in Linux's `n_tty.c`).

use linux_raw_sys::general as linux;

use super::line::Line;
use super::output::is_continuation;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Character,
    Word,
    Line,
}

impl Line {
    fn unfinished(&self) -> usize {
        self.input.len().saturating_sub(self.finished)
    }

    fn forget_line(&mut self) {
        self.input.truncate(self.finished);
    }

    /// Ends an `ECHOPRT` erasure on the screen.
    pub(super) fn finish_erasing(&mut self) {
        if self.erasing {
            self.echo_raw(b"/");
            self.erasing = false;
        }
    }

    /// Erases what the character `byte` says.
    pub(super) fn erase(&mut self, byte: u8) {
        if self.unfinished() == 0 {
            return;
        }
        let what = if self.termios.is(linux::VERASE, byte) {
            Erase::Character
        } else if self.termios.is(linux::VWERASE, byte) {
            Erase::Word
        } else {
            Erase::Line
        };
        let echoes = self.termios.l(linux::ECHO);
        if what == Erase::Line {
            if !echoes {
                return self.forget_line();
            }
            let visibly = [linux::ECHOK, linux::ECHOKE, linux::ECHOE];
            if !visibly.iter().all(|&flag| self.termios.l(flag)) {
                self.forget_line();
                self.finish_erasing();
                self.echo(self.termios.char(linux::VKILL));
                if self.termios.l(linux::ECHOK) {
                    self.echo_raw(b"\n");
                }
                return;
            }
        }
        self.erase_characters(what);
        if self.unfinished() == 0 && echoes {
            self.finish_erasing();
        }
    }

    fn erase_characters(&mut self, what: Erase) {
        let mut in_word = false;
        while self.unfinished() > 0 {
            let line = self.input.iter().skip(self.finished).rev();
            let tail = line.clone().take_while(|typed| is_continuation(self, typed.byte)).count();
            // A character whose first byte is not there is not erased in part.
            let Some(first) = line.clone().nth(tail).map(|typed| typed.byte) else { return };
            if what == Erase::Word {
                if first.is_ascii_alphanumeric() || first == b'_' || first >= 0x80 && latin_letter(first) {
                    in_word = true;
                } else if in_word {
                    return;
                }
            }
            let size = tail.saturating_add(1);
            let rest: Vec<u8> = line.take(tail).map(|typed| typed.byte).collect();
            self.input.truncate(self.input.len().saturating_sub(size));
            if self.termios.l(linux::ECHO) {
                self.show_erasure(what, first, &rest);
            }
            if what == Erase::Character {
                return;
            }
        }
    }

    /// `rest` are the continuation bytes of the erased character, last first.
    fn show_erasure(&mut self, what: Erase, first: u8, rest: &[u8]) {
        if self.termios.l(linux::ECHOPRT) {
            if !self.erasing {
                self.echo_raw(b"\\");
                self.erasing = true;
            }
            self.echo(first);
            for &byte in rest.iter().rev() {
                self.echo_raw(&[byte]);
                self.output.column = self.output.column.saturating_sub(1);
            }
        } else if what == Erase::Character && !self.termios.l(linux::ECHOE) {
            self.echo(self.termios.char(linux::VERASE));
        } else if first == b'\t' {
            self.erase_tab();
        } else {
            let control = first.is_ascii_control();
            let shown = self.termios.l(linux::ECHOCTL);
            if control && shown {
                self.echo_raw(b"\x08 \x08");
            }
            if !control || shown {
                self.echo_raw(b"\x08 \x08");
            }
        }
    }

    /// Goes back to where the cursor was before a tab.
    fn erase_tab(&mut self) {
        let mut columns: usize = 0;
        let mut after_tab = false;
        for typed in self.input.iter().skip(self.finished).rev() {
            match typed.byte {
                b'\t' => {
                    after_tab = true;
                    break;
                }
                byte if byte.is_ascii_control() => {
                    columns = columns.saturating_add(if self.termios.l(linux::ECHOCTL) { 2 } else { 0 });
                }
                byte if is_continuation(self, byte) => {}
                _ => columns = columns.saturating_add(1),
            }
        }
        if !after_tab {
            columns = columns.saturating_add(self.output.canon_column);
        }
        let back = 8usize.wrapping_sub(columns & 7);
        self.output.column = self.output.column.saturating_sub(back);
        let moves = [b'\x08'; 8];
        self.emit_echo(moves.get(..back).unwrap_or_default());
    }
}

/// Linux's `isalnum` knows the letters of ISO 8859-1.
fn latin_letter(byte: u8) -> bool {
    byte >= 0xc0 && byte != 0xd7 && byte != 0xf7
}
