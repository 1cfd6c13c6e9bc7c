//! Terminal settings (`termios(3)`), in the kernel's own layout.

use linux_raw_sys::general as linux;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Control characters in the kernel's structure.
pub const NCCS: usize = linux::NCCS as usize;
/// The only line discipline there is; neither `libc` nor `linux-raw-sys` has its number.
pub const N_TTY: u8 = 0;
/// A control character that is switched off.
pub const DISABLED: u8 = 0;

/// `struct termios2`, whose first [`Termios::SHORT`] bytes are `struct termios`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Termios {
    /// `c_iflag`
    pub input: u32,
    /// `c_oflag`
    pub output: u32,
    /// `c_cflag`
    pub control: u32,
    /// `c_lflag`
    pub local: u32,
    /// `c_line`
    pub line: u8,
    /// `c_cc`
    pub chars: [u8; NCCS],
    /// `c_ispeed`
    pub input_speed: u32,
    /// `c_ospeed`
    pub output_speed: u32,
}

impl Termios {
    /// Bytes of `struct termios`.
    pub const SHORT: usize = size_of::<linux::termios>();
    /// Bytes of `struct termios2`.
    pub const LONG: usize = size_of::<linux::termios2>();

    /// What a new pseudo-terminal has (`tty_std_termios`, `INIT_C_CC`).
    pub fn standard() -> Termios {
        let mut chars = [DISABLED; NCCS];
        let mut set = |index: u32, value: u8| {
            if let Some(slot) = chars.get_mut(index as usize) {
                *slot = value;
            }
        };
        let control = |letter: u8| letter & 0x1f;
        set(linux::VINTR, control(b'C'));
        set(linux::VQUIT, control(b'\\'));
        set(linux::VERASE, 0x7f);
        set(linux::VKILL, control(b'U'));
        set(linux::VEOF, control(b'D'));
        set(linux::VMIN, 1);
        set(linux::VSTART, control(b'Q'));
        set(linux::VSTOP, control(b'S'));
        set(linux::VSUSP, control(b'Z'));
        set(linux::VREPRINT, control(b'R'));
        set(linux::VDISCARD, control(b'O'));
        set(linux::VWERASE, control(b'W'));
        set(linux::VLNEXT, control(b'V'));
        Termios {
            input: linux::ICRNL | linux::IXON,
            output: linux::OPOST | linux::ONLCR,
            control: linux::B38400 | linux::CS8 | linux::CREAD,
            local: linux::ISIG
                | linux::ICANON
                | linux::ECHO
                | linux::ECHOE
                | linux::ECHOK
                | linux::ECHOCTL
                | linux::ECHOKE
                | linux::IEXTEN,
            line: N_TTY,
            chars,
            input_speed: 38400,
            output_speed: 38400,
        }
    }

    /// What a pseudo-terminal makes of settings it is given: 8 bits, no parity, receiver on.
    pub fn for_pty(mut self) -> Termios {
        self.control &= !(linux::CSIZE | linux::PARENB);
        self.control |= linux::CS8 | linux::CREAD;
        self
    }

    /// Whether an input flag is set.
    pub fn i(&self, flag: u32) -> bool {
        self.input & flag != 0
    }

    /// Whether an output flag is set.
    pub fn o(&self, flag: u32) -> bool {
        self.output & flag != 0
    }

    /// Whether a local flag is set.
    pub fn l(&self, flag: u32) -> bool {
        self.local & flag != 0
    }

    /// A control character by its `V…` index.
    pub fn char(&self, index: u32) -> u8 {
        self.chars.get(index as usize).copied().unwrap_or(DISABLED)
    }

    /// Whether `byte` is the control character `index` and that is switched on.
    pub fn is(&self, index: u32, byte: u8) -> bool {
        let char = self.char(index);
        char != DISABLED && char == byte
    }
}

/// `struct winsize`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct WindowSize {
    /// Lines of text.
    pub rows: u16,
    /// Columns of text.
    pub columns: u16,
    /// Width in pixels.
    pub x_pixels: u16,
    /// Height in pixels.
    pub y_pixels: u16,
}
