//! Good, broken and hostile bundles.

use std::fs;

use serde_json::{Value, json};

use super::*;

struct Bundle(PathBuf);

impl Bundle {
    fn new(config: &Value) -> Self {
        let nonce = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let id = std::thread::current().id();
        let path = std::env::temp_dir().join(format!("caisson-spec-{}-{nonce}-{id:?}", std::process::id()));
        fs::create_dir_all(path.join("rootfs")).unwrap();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        Self(path)
    }

    fn convert(&self) -> Result<Converted, SpecError> {
        convert("c1", &self.0, &load(&self.0)?, None)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn good() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": true,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin"],
            "cwd": "/work",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "h",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/../dev/shm/", "type": "tmpfs", "source": "shm", "options": ["nosuid", "mode=1777", "size=65536k"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "rprivate", "ro"]}
        ],
        "linux": {
            "resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 10}, "cpu": {"quota": 150_000, "period": 100_000, "shares": 512}},
            "cgroupsPath": "/default/c1",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "2"},
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]}]
            }
        },
        "annotations": {"dev.caisson.strace": "openat, read"}
    })
}

#[test]
fn a_full_spec_arrives_whole() {
    let bundle = Bundle::new(&good());
    let converted = bundle.convert().unwrap();
    let c = &converted.container;
    let process = c.process.as_ref().unwrap();
    assert_eq!(process.args, [b"sh".to_vec(), b"-c".to_vec(), b"true".to_vec()]);
    assert_eq!(process.capabilities.unwrap().effective, 1 << 5 | 1);
    assert_eq!(process.rlimits[0].resource, libc::RLIMIT_NOFILE);
    assert_eq!((process.window.unwrap().rows, process.window.unwrap().columns), (24, 80));
    assert!(process.no_new_privs && process.terminal);
    assert_eq!(c.mounts[0].flags, libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV);
    assert_eq!(c.mounts[1].destination, b"/dev/shm");
    assert_eq!(c.mounts[1].data, "mode=1777,size=65536k");
    assert_eq!(c.mounts[2].gofer_fd, Some(1));
    assert!(!c.mounts[2].source_is_dir);
    assert_eq!(c.mounts[2].propagation, libc::MS_PRIVATE | libc::MS_REC);
    assert_eq!(converted.sources.len(), 2);
    assert!(converted.sources[0].read_only && converted.sources[0].is_root);
    assert!(converted.sources[1].read_only && converted.sources[1].recursive);
    assert_eq!(c.sysctls[0].key, "kernel.shmmax");
    assert_eq!(c.devices[0].mode, libc::S_IFCHR | 0o666);
    assert_eq!(c.namespaces.len(), 2);
    let limits = c.limits.unwrap();
    assert_eq!((limits.pids, limits.memory, limits.cpus), (Some(10), Some(67_108_864), Some(2)));
    assert_eq!(converted.limits.memory, Some(67_108_864));
    assert!(converted.limits.pids.unwrap() > 10);
    assert_eq!(converted.cgroup, PathBuf::from("default/c1"));
    let seccomp = c.seccomp.as_ref().unwrap();
    assert_eq!(seccomp.default_action, libc::SECCOMP_RET_ERRNO | 1);
    assert_eq!(c.strace.as_ref().unwrap().calls, ["openat", "read"]);
    // What comes out must pass the sentry's door.
    let message = caisson_proto::control::ToSentry {
        number: 1,
        request: Some(caisson_proto::control::Request::CreateContainer(
            caisson_proto::control::CreateContainer { container: Some(c.clone()) },
        )),
    };
    let bytes = prost::Message::encode_to_vec(&message);
    caisson_proto::control::ToSentry::decode_checked(&bytes, 2).unwrap();
}

#[test]
fn broken_specs_are_refused_with_the_thing_named() {
    type Spoil = fn(&mut Value);
    let cases: &[(&str, Spoil)] = &[
        ("args is empty", |c| c["process"]["args"] = json!([])),
        ("args is empty", |c| c["process"]["args"] = json!([""])),
        ("args is empty", |c| c["process"]["args"] = Value::Null),
        ("NUL", |c| c["process"]["args"] = json!(["a\u{0}b"])),
        ("cwd", |c| c["process"]["cwd"] = json!("relative")),
        ("soft limit", |c| c["process"]["rlimits"][0]["soft"] = json!(9999)),
        ("process is missing", |c| c["process"] = Value::Null),
        ("root is missing", |c| c["root"] = Value::Null),
        ("rootfs", |c| c["root"]["path"] = json!("no-such-directory")),
        ("rootfs", |c| c["root"]["path"] = json!("config.json")),
        ("/no/such/source", |c| c["mounts"][2]["source"] = json!("/no/such/source")),
        ("source is missing", |c| c["mounts"][2]["source"] = Value::Null),
        ("type is missing", |c| c["mounts"][0]["type"] = Value::Null),
        ("destination", |c| c["mounts"][0]["destination"] = json!("")),
        ("cgroupsPath", |c| c["linux"]["cgroupsPath"] = json!("/a/../../b")),
        ("not a list", |c| c["linux"]["resources"]["cpu"]["cpus"] = json!("../../x")),
        ("out of range", |c| c["linux"]["devices"][0]["major"] = json!(-1)),
        ("hooks", |c| c["hooks"] = json!({"poststop": [{"path": "/bin/true"}]})),
        ("Linux", |c| c["windows"] = json!({"layerFolders": ["x"]})),
        ("NOTIFY", |c| c["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOTIFY")),
        ("not a valid OCI", |c| c["process"]["user"] = json!("root")),
        ("not a valid OCI", |c| c["process"]["user"]["uid"] = json!(-1)),
        ("not a valid OCI", |c| *c = json!([1, 2, 3])),
        ("not a valid OCI", |c| *c = json!("text")),
    ];
    for (expected, spoil) in cases {
        let mut config = good();
        spoil(&mut config);
        let error = Bundle::new(&config).convert().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} does not mention {expected:?}");
    }
}

#[test]
fn files_that_are_no_specs() {
    let bundle = Bundle::new(&good());
    let file = bundle.0.join("config.json");
    fs::write(&file, "{").unwrap();
    assert!(matches!(bundle.convert(), Err(SpecError::Parse { .. })));
    fs::write(&file, "[".repeat(200_000)).unwrap();
    assert!(
        matches!(bundle.convert(), Err(SpecError::Parse { .. })),
        "deep nesting must not overflow the stack"
    );
    fs::File::create(&file).unwrap().set_len(MAX_CONFIG + 1).unwrap();
    assert!(matches!(bundle.convert(), Err(SpecError::Read { .. })));
    fs::remove_file(&file).unwrap();
    let error = bundle.convert().unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("No such file"), "{error}");
}

#[test]
fn a_hundred_thousand_arguments() {
    let mut config = good();
    config["process"]["args"] = json!(vec!["argument"; 100_000]);
    assert_eq!(Bundle::new(&config).convert().unwrap().container.process.unwrap().args.len(), 100_000);
}

#[test]
fn option_words() {
    let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let parsed =
        mounts::options(&words(&["ro", "nosuid", "rw", "size=1k", "rslave", "mode=755", "tmpcopyup"]));
    assert_eq!(parsed.flags, libc::MS_NOSUID);
    assert_eq!(parsed.propagation, libc::MS_SLAVE | libc::MS_REC);
    assert_eq!(parsed.data, "size=1k,mode=755");
    assert!(!strace("false").enabled && strace("true").calls.is_empty());
}

#[test]
fn ids_are_checked() {
    let bundle = Bundle::new(&good());
    let spec = load(&bundle.0).unwrap();
    for id in ["", "..", "a/b", "a b"] {
        assert!(convert(id, &bundle.0, &spec, None).is_err());
    }
}
