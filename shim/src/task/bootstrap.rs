//! `start`: how containerd starts a shim and learns where it listens.
//!
//! | containerd | standard input | answer on standard output |
//! |---|---|---|
//! | 1.6 to 2.2 | nothing, or the runtime options as an `Any` | the bare address, which means Task API version 2 |
//! | 2.3 and later | `BootstrapParams` | `BootstrapResult`, Task API version 3 |
//! | sandbox mode (a bundle without `config.json`) | either | `{"version":3,…}` |
//!
//! Version 3 is not claimed where version 2 will do: with 3 containerd sends a pod's further containers to the same socket without asking the binary.
//! The served API is the same.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult};
use containerd_shim::{Flags, StartOpts};
use containerd_shim_protos::protobuf::Message;
use serde::Deserialize;
use thiserror::Error;

/// Longest input, the same as containerd's own limit.
const MAX_INPUT: u64 = 10 << 20;
/// Annotations that name a group of containers that share a shim, in runc's order.
const GROUPS: [&str; 3] =
    ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

/// Why a shim could not be started.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The host failed.
    #[error("{what}: {error}")]
    Host {
        /// What was being done.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// What containerd passed makes no sense.
    #[error("bootstrap parameters: {0}")]
    Parameters(String),
    /// The serving process said no.
    #[error("{0}")]
    Server(String),
}

fn host(what: &str) -> impl FnOnce(io::Error) -> BootstrapError {
    let what = what.to_owned();
    move |error| BootstrapError::Host { what, error }
}

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A bare address.
    Bare,
    /// JSON, for sandbox mode.
    Json,
    /// Protobuf.
    Protobuf,
}

/// Runs the `start` action in the bundle that is the working directory; gives the bytes for standard output.
///
/// # Errors
/// [`BootstrapError`].
pub fn start(flags: &Flags) -> Result<Vec<u8>, BootstrapError> {
    let mut input = Vec::new();
    io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input).map_err(host("reading standard input"))?;
    let bundle = env::current_dir().map_err(host("the working directory"))?;
    let ttrpc = env::var("TTRPC_ADDRESS").unwrap_or_default();
    let (options, dialect) = parameters(&input, flags, &ttrpc, bundle.join("config.json").exists())?;
    let group = group(&bundle).unwrap_or_else(|| options.id.clone());
    let address = options.socket_address(&group);
    let path = address.trim_start_matches("unix://").to_owned();
    if UnixStream::connect(&path).is_err() {
        spawn(&options, &address)?;
    }
    // containerd 1.6 finds a running shim by this after a restart.
    fs::write(bundle.join("address"), &address).map_err(host("writing the address file"))?;
    answer(&address, dialect)
}

/// Reads what containerd passed, in whichever way.
///
/// # Errors
/// [`BootstrapError::Parameters`] when there is no address to publish events to.
pub fn parameters(
    input: &[u8],
    flags: &Flags,
    ttrpc_address: &str,
    has_config: bool,
) -> Result<(StartOpts, Dialect), BootstrapError> {
    // Runtime options, an `Any`, decode as BootstrapParams too: their type URL lands in instance_id. So the identity must match.
    let params = BootstrapParams::parse_from_bytes(input)
        .ok()
        .filter(|p| !input.is_empty() && p.instance_id == flags.id && p.namespace == flags.namespace);
    let (mut options, dialect) = match params {
        Some(params) => (StartOpts::from(params), Dialect::Protobuf),
        None => {
            let options = StartOpts {
                id: flags.id.clone(),
                publish_binary: flags.publish_binary.clone(),
                address: flags.address.clone(),
                ttrpc_address: ttrpc_address.to_owned(),
                namespace: flags.namespace.clone(),
                ..StartOpts::default()
            };
            (options, if has_config { Dialect::Bare } else { Dialect::Json })
        }
    };
    options.debug |= flags.debug;
    if options.ttrpc_address.is_empty() {
        return Err(BootstrapError::Parameters("no address to publish events to (TTRPC_ADDRESS)".into()));
    }
    if options.id.is_empty() || options.namespace.is_empty() {
        return Err(BootstrapError::Parameters("-id and -namespace are required".into()));
    }
    Ok((options, dialect))
}

/// The bytes that tell containerd the address.
///
/// # Errors
/// When the message cannot be encoded.
pub fn answer(address: &str, dialect: Dialect) -> Result<Vec<u8>, BootstrapError> {
    match dialect {
        Dialect::Bare => Ok(address.as_bytes().to_vec()),
        Dialect::Json => {
            let json = serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"});
            Ok(json.to_string().into_bytes())
        }
        Dialect::Protobuf => {
            let result = BootstrapResult {
                version: 3,
                address: address.to_owned(),
                protocol: "ttrpc".into(),
                ..BootstrapResult::default()
            };
            result.write_to_bytes().map_err(|e| BootstrapError::Parameters(e.to_string()))
        }
    }
}

/// The group that the bundle's annotations name.
fn group(bundle: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let text = fs::read(bundle.join("config.json")).ok()?;
    let mut annotated: Annotated = serde_json::from_slice(&text).ok()?;
    GROUPS.iter().find_map(|key| annotated.annotations.remove(*key)).filter(|group| !group.is_empty())
}

/// Starts the serving process and waits until it listens. It says nothing on its standard output unless it fails.
fn spawn(options: &StartOpts, address: &str) -> Result<(), BootstrapError> {
    let own = env::current_exe().map_err(host("finding this program"))?;
    let mut command = Command::new(own);
    command
        .args(["-namespace", &options.namespace, "-id", &options.id, "-address", &options.address])
        .args(["-socket", address])
        .env("TTRPC_ADDRESS", &options.ttrpc_address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if options.debug {
        command.arg("-debug");
    }
    let mut child = command.spawn().map_err(host("starting the shim"))?;
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        // It ends when the child is ready (it puts something else in the pipe's place) or dead.
        let _ = output.read_to_string(&mut said);
    }
    match child.try_wait() {
        _ if !said.is_empty() => {
            let _ = child.kill();
            let _ = child.wait();
            Err(BootstrapError::Server(said.trim().to_owned()))
        }
        Ok(Some(status)) => Err(BootstrapError::Server(format!("the shim ended while starting: {status}"))),
        _ => Ok(()),
    }
}

/// Writes an answer.
///
/// # Errors
/// Those of the pipe.
pub fn reply(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use containerd_shim::bootstrap::Extension;
    use containerd_shim_protos::protobuf::MessageField;
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    use super::*;

    fn flags() -> Flags {
        let args = ["-id", "c1", "-namespace", "default", "-address", "/run/c.sock", "start"];
        containerd_shim::parse(&args).unwrap()
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".into(),
            containerd_grpc_address: "/run/c.sock".into(),
            socket_dir: Some("/run/short".into()),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn containerd_2_3_gets_protobuf_for_protobuf() {
        let mut message = params();
        let value = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1, 2], ..Any::default() };
        message.extensions.push(Extension { value: MessageField::some(value), ..Extension::default() });
        let bytes = message.write_to_bytes().unwrap();
        let (options, dialect) = parameters(&bytes, &flags(), "", true).unwrap();
        assert_eq!(dialect, Dialect::Protobuf);
        assert_eq!((options.id.as_str(), options.ttrpc_address.as_str()), ("c1", "/run/c.sock.ttrpc"));
        assert!(options.socket_address("c1").starts_with("unix:///run/short/"));
        let answer = BootstrapResult::parse_from_bytes(&answer("unix:///x", dialect).unwrap()).unwrap();
        assert_eq!(
            (answer.version, answer.address.as_str(), answer.protocol.as_str()),
            (3, "unix:///x", "ttrpc")
        );
    }

    #[test]
    fn older_ones_get_a_bare_address_even_with_options_on_stdin() {
        let any =
            Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1, 2, 3], ..Any::default() };
        for input in [vec![], any.write_to_bytes().unwrap(), b"garbage".to_vec()] {
            let (options, dialect) = parameters(&input, &flags(), "/t", true).unwrap();
            assert_eq!((dialect, options.ttrpc_address.as_str()), (Dialect::Bare, "/t"));
        }
        assert_eq!(answer("unix:///x", Dialect::Bare).unwrap(), b"unix:///x");
    }

    #[test]
    fn sandbox_mode_gets_json() {
        let (_, dialect) = parameters(&[], &flags(), "/t", false).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&answer("unix:///x", dialect).unwrap()).unwrap();
        assert_eq!((json["version"].as_i64(), json["protocol"].as_str()), (Some(3), Some("ttrpc")));
    }

    #[test]
    fn params_for_somebody_else_are_not_ours() {
        let mut other = params();
        other.instance_id = "c2".into();
        let bytes = other.write_to_bytes().unwrap();
        assert_eq!(parameters(&bytes, &flags(), "/t", true).unwrap().1, Dialect::Bare);
        assert!(parameters(&bytes, &flags(), "", true).is_err());
    }

    #[test]
    fn groups_come_from_annotations() {
        let dir = env::temp_dir().join(format!("caisson-group-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(group(&dir), None);
        let put = |text: &str| fs::write(dir.join("config.json"), text).unwrap();
        put(r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod", "x": "y"}, "process": 5}"#);
        assert_eq!(group(&dir).as_deref(), Some("pod"));
        put(r#"{"annotations": {"io.kubernetes.cri.sandbox-id": ""}}"#);
        assert_eq!(group(&dir), None);
        put("{");
        assert_eq!(group(&dir), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
