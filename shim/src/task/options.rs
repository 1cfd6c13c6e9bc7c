//! Runtime options: what `ctr --runtime-config-path` or CRI's runtime configuration hands to a shim.
//!
//! They name or hold a file of `key = value` lines (a subset of TOML: strings, booleans, comments). Each key stands for the annotation
//! `dev.caisson.KEY`; a container's own annotations win.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use prost::Message;

use crate::lifecycle::{Failure, Kind};

/// Longest configuration file.
const MAX_FILE: u64 = 1 << 20;

/// `runtimeoptions.v1.Options`, which containerd passes to any runtime but runc.
#[derive(Clone, PartialEq, Eq, Message)]
struct Options {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// The annotations that a request's options stand for.
///
/// # Errors
/// [`Kind::InvalidArgument`] for options that cannot be read.
pub(super) fn annotations(type_url: &str, value: &[u8]) -> Result<BTreeMap<String, String>, Failure> {
    let invalid = |what: String| Failure::new(Kind::InvalidArgument, format!("runtime options: {what}"));
    // Somebody else's options (runc's) say nothing to this runtime.
    if !type_url.ends_with("runtimeoptions.v1.Options") {
        return Ok(BTreeMap::new());
    }
    let options = Options::decode(value).map_err(|e| invalid(e.to_string()))?;
    let mut text = String::from_utf8(options.config_body).map_err(|e| invalid(e.to_string()))?;
    if text.is_empty() && !options.config_path.is_empty() {
        let read = File::open(&options.config_path).and_then(|f| f.take(MAX_FILE).read_to_string(&mut text));
        read.map_err(|e| invalid(format!("{}: {e}", options.config_path)))?;
    }
    parse(&text).map_err(invalid)
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with('[') {
            continue;
        }
        let (key, value) =
            line.split_once('=').ok_or_else(|| format!("line {number} is not \"key = value\""))?;
        let key = key.trim().replace('_', "-");
        let value = value.trim().trim_matches('"').to_owned();
        found.insert(format!("dev.caisson.{key}"), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_bodies() {
        let body =
            "# a comment\n[caisson]\nstrace = \"openat,read\"\nlog_level = debug\n".as_bytes().to_vec();
        let options = Options { config_body: body, ..Options::default() }.encode_to_vec();
        let found = annotations("runtimeoptions.v1.Options", &options).unwrap();
        assert_eq!(found["dev.caisson.strace"], "openat,read");
        assert_eq!(found["dev.caisson.log-level"], "debug");
        assert!(annotations("containerd.runc.v1.Options", &[0xff; 9]).unwrap().is_empty());
        assert!(annotations("runtimeoptions.v1.Options", &[0xff; 9]).is_err());
        let missing = Options { config_path: "/no/such".into(), ..Options::default() }.encode_to_vec();
        assert!(annotations("runtimeoptions.v1.Options", &missing).unwrap_err().message.contains("/no/such"));
        assert!(parse("nonsense").is_err());
    }
}
