//! The guest's x87, SSE, AVX and AVX-512 state as bytes.

/// An XSAVE area in the standard (non-compacted) layout, as Linux puts it into signal frames (without `fpx_sw_bytes`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FpuState {
    bytes: Box<[u8]>,
}

impl FpuState {
    /// The state after `execve`: everything in its initial configuration, MXCSR 0x1f80, FCW 0x37f. `size` as from
    /// [`crate::Machine::xstate_size`].
    pub fn initial(size: usize) -> FpuState {
        let mut bytes = vec![0; size.max(576)].into_boxed_slice();
        bytes[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        FpuState { bytes }
    }

    /// Takes bytes that may come from the guest; the CPU checks them in [`crate::GuestThread::set_fpu`]. Missing bytes are zero, further ones are ignored.
    pub fn from_bytes(bytes: &[u8], size: usize) -> FpuState {
        let mut state = FpuState::initial(size);
        let n = bytes.len().min(state.bytes.len());
        state.bytes[..n].copy_from_slice(&bytes[..n]);
        state
    }

    /// The area's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// From KVM's area of 4096 bytes.
    pub(crate) fn from_words(words: &[u32; 1024], size: usize) -> FpuState {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).take(size).collect();
        FpuState { bytes }
    }

    /// Into KVM's area of 4096 bytes.
    pub(crate) fn to_words(&self, words: &mut [u32; 1024]) {
        for (word, chunk) in words.iter_mut().zip(self.bytes.chunks(4)) {
            let mut four = [0; 4];
            four[..chunk.len()].copy_from_slice(chunk);
            *word = u32::from_le_bytes(four);
        }
    }
}
