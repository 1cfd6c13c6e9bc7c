//! Guest code in this program's read-only data: the bytes between two labels of a `global_asm!`, and where others in it are.

/// The bytes from the first label to the last, as a `&'static [u8]`, and the offsets of those between, in a `[u64; N]`. The labels are hidden symbols of one
/// read-only section, in this order, and everything between them is initialised.
macro_rules! blob {
    ($start:ident $($label:ident)+, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            $(static $label: u8;)+
            static $end: u8;
        }
        let start = &raw const $start;
        let offset = |label: *const u8| label as usize - start as usize;
        // SAFETY: the labels are as the macro wants them, which who wrote the assembly keeps: the bytes are initialised, constant and there for ever.
        let bytes: &'static [u8] = unsafe { std::slice::from_raw_parts(start, offset(&raw const $end)) };
        (bytes, [$(offset(&raw const $label) as u64),+])
    }};
}

pub(crate) use blob;
