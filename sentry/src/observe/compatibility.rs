//! `docs/compatibility.md`, printed from the system call table.

use std::fmt::Write;

use crate::syscalls::numbers;
use crate::syscalls::table::{self, Support};

/// The page as Markdown.
pub fn page() -> String {
    let mut text = String::from(
        "# System call compatibility (x86-64)\n\n\
         Printed from the sentry's system call table by `cargo test -p caisson-sentry compatibility`; do not edit.\n\
         A call that is not listed as full or partial returns `ENOSYS`, as on a kernel without it, and is counted.\n\n",
    );
    let full = table::all().filter(|entry| entry.support == Support::Full).count();
    let partial = table::all().filter(|entry| entry.support == Support::Partial).count();
    let missing = numbers::ALL.iter().filter(|(n, _)| table::find(u64::from(*n)).is_none()).count();
    let _ = writeln!(text, "{full} full, {partial} partial, {missing} not implemented.\n");
    text.push_str("| number | call | support | what is missing |\n|---:|---|---|---|\n");
    for &(number, name) in numbers::ALL {
        let (support, note) = match table::find(u64::from(number)) {
            Some(entry) if entry.support == Support::Full => ("full", entry.note),
            Some(entry) => ("partial", entry.note),
            None => ("–", ""),
        };
        let _ = writeln!(text, "| {number} | `{name}` | {support} | {note} |");
    }
    text
}

#[cfg(test)]
mod tests {
    /// Fails when the committed page is stale; `CAISSON_BLESS=1` writes it.
    #[test]
    fn compatibility_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
        let page = super::page();
        if std::env::var_os("CAISSON_BLESS").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
            std::fs::write(path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == page, "docs/compatibility.md is stale: run with CAISSON_BLESS=1");
    }
}
