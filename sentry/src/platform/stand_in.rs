//! Shapes of `caisson-platform-kvm`'s types until that crate lands them.
#![allow(missing_docs)]

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u32);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRange {
    pub first: Frame,
    pub count: u32,
}
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub done: usize,
}
pub struct Arena {}
impl Arena {
    pub fn read(&self, _gpa: Gpa, _buf: &mut [u8]) -> Result<(), Fault> {
        Err(Fault { done: 0 })
    }
    pub fn write(&self, _gpa: Gpa, _data: &[u8]) -> Result<(), Fault> {
        Err(Fault { done: 0 })
    }
}
bitflags::bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Perms: u8 {
        const R = 1;
        const W = 2;
        const X = 4;
    }
}
#[derive(Clone, Debug)]
pub enum Change {
    Unmap(std::ops::Range<u64>),
    Protect { range: std::ops::Range<u64>, perms: Perms },
}
#[derive(Clone, Debug, Default)]
pub struct Registers {
    pub rax: u64,
    pub rip: u64,
    pub rsp: u64,
}
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    Syscall,
    PageFault { addr: u64, write: bool, exec: bool, present: bool },
    Exception { vector: u8, error_code: u32, addr: u64 },
    Interrupted,
}
#[derive(Clone, Default)]
pub struct FpuState {
    pub bytes: Vec<u8>,
}
#[derive(Clone)]
pub struct Kicker {}
impl Kicker {
    pub fn kick(&self) {}
}
