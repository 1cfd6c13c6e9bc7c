//! Both hierarchies on made-up trees. A made-up tree's directories do not fill themselves with files, so the tests make those.

use super::*;

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("caisson-cgroup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn get(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn limits() -> Limits {
    Limits {
        memory: Some(64 << 20),
        memory_swap: Some(128 << 20),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        cpuset_cpus: Some("0-1".into()),
        pids: Some(74),
        blkio_weight: Some(500),
        ..Limits::default()
    }
}

#[test]
fn v1_writes_and_reads() {
    let tree = Tree::new("v1");
    for controller in ["cpu", "cpuacct", "memory", "pids", "blkio"] {
        fs::create_dir_all(tree.0.join(controller)).unwrap();
    }
    tree.put("cpuset/cpuset.cpus", "0-3\n");
    tree.put("cpuset/cpuset.mems", "0\n");
    for level in ["a", "a/b"] {
        tree.put(&format!("cpuset/{level}/cpuset.cpus"), "\n");
        tree.put(&format!("cpuset/{level}/cpuset.mems"), "\n");
    }
    let files = [
        "memory/a/b/memory.limit_in_bytes",
        "memory/a/b/memory.memsw.limit_in_bytes",
        "cpu/a/b/cpu.shares",
        "cpu/a/b/cpu.cfs_period_us",
        "cpu/a/b/cpu.cfs_quota_us",
        "pids/a/b/pids.max",
        "blkio/a/b/blkio.weight",
    ];
    let group = open_at(&tree.0, Path::new("a/b"));
    assert!(!group.is_v2());
    group.create().unwrap();
    assert_eq!(tree.get("cpuset/a/cpuset.cpus"), "0-3");
    assert_eq!(tree.get("cpuset/a/b/cpuset.mems"), "0");
    // A needed file that is missing is an error that names it.
    let error = group.set(&limits()).unwrap_err().to_string();
    assert!(error.contains("memory.limit_in_bytes"), "{error}");
    for file in files {
        tree.put(file, "");
    }
    group.set(&limits()).unwrap();
    let written = files.map(|f| tree.get(f));
    assert_eq!(written, ["67108864", "134217728", "512", "100000", "50000", "74", "500"]);

    for controller in ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"] {
        tree.put(&format!("{controller}/a/b/cgroup.procs"), "");
    }
    group.add(Pid::from_raw(4711)).unwrap();
    assert_eq!(tree.get("pids/a/b/cgroup.procs"), "4711");
    assert_eq!(group.processes(), [Pid::from_raw(4711)]);

    tree.put("cpuacct/a/b/cpuacct.usage", "5000000\n");
    tree.put("cpuacct/a/b/cpuacct.stat", "user 3\nsystem 4\n");
    tree.put("cpuacct/a/b/cpuacct.usage_percpu", "1 2\n");
    tree.put("memory/a/b/memory.usage_in_bytes", "100\n");
    tree.put("memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    tree.put("memory/a/b/memory.stat", "rss 7\ntotal_inactive_file 8\nbroken\n");
    tree.put("memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    tree.put("pids/a/b/pids.max", "max\n");
    let figures = group.figures();
    assert_eq!(
        (figures.cpu_total, figures.cpu_user, figures.cpu_system),
        (5_000_000, 30_000_000, 40_000_000)
    );
    assert_eq!(figures.cpu_each, [1, 2]);
    assert_eq!((figures.memory, figures.memory_limit), (100, u64::MAX));
    assert_eq!(figures.memory_stat["total_inactive_file"], 8);
    assert_eq!((figures.pids_limit, figures.oom_kills), (u64::MAX, 2));
}

#[test]
fn v2_enables_controllers_and_converts_units() {
    let tree = Tree::new("v2");
    tree.put("cgroup.controllers", "cpuset cpu io memory pids\n");
    // A real cgroupfs appends; here the last write stays.
    tree.put("cgroup.subtree_control", "cpu cpuset io memory\n");
    let group = open_at(&tree.0, Path::new("a"));
    assert!(group.is_v2());
    group.create().unwrap();
    assert!(tree.get("cgroup.subtree_control").starts_with("+pids"));
    for file in [
        "memory.max",
        "memory.swap.max",
        "cpu.weight",
        "cpu.max",
        "cpuset.cpus",
        "pids.max",
        "io.weight",
        "memory.high",
    ] {
        tree.put(&format!("a/{file}"), "");
    }
    let mut limits = limits();
    limits.unified.insert("memory.high".into(), "1000".into());
    group.set(&limits).unwrap();
    assert_eq!(tree.get("a/memory.max"), "67108864");
    assert_eq!(tree.get("a/memory.swap.max"), "67108864");
    assert_eq!(tree.get("a/cpu.weight"), "20");
    assert_eq!(tree.get("a/cpu.max"), "50000 100000");
    assert_eq!(tree.get("a/memory.high"), "1000");
    group.set(&Limits { memory: Some(-1), cpu_quota: Some(-1), ..Limits::default() }).unwrap();
    assert!(tree.get("a/memory.max").starts_with("max"));
    assert!(tree.get("a/cpu.max").starts_with("max 100000"));
    let escape = Limits { unified: [("../x.y".to_owned(), "1".to_owned())].into(), ..Limits::default() };
    assert!(group.set(&escape).is_err());

    tree.put("a/cpu.stat", "usage_usec 10\nuser_usec 4\nsystem_usec 6\n");
    tree.put("a/memory.current", "33\n");
    tree.put("a/memory.max", "max\n");
    tree.put("a/memory.events", "low 0\nmax 3\noom 1\noom_kill 1\n");
    let figures = group.figures();
    assert_eq!((figures.cpu_total, figures.memory, figures.memory_limit), (10_000, 33, u64::MAX));
    assert_eq!((figures.memory_failures, figures.oom_kills), (3, 1));
}

#[test]
fn removing_twice_is_fine() {
    let tree = Tree::new("remove");
    fs::create_dir_all(tree.0.join("pids")).unwrap();
    let group = open_at(&tree.0, Path::new("x"));
    group.create().unwrap();
    group.remove().unwrap();
    group.remove().unwrap();
    assert!(!tree.0.join("pids/x").exists());
}

#[test]
fn places() {
    let at = |p: &str| location(Some(Path::new(p)), "id").map(|p| p.display().to_string());
    assert_eq!(at("/default/c1").as_deref(), Some("default/c1"));
    assert_eq!(at("kubepods/x").as_deref(), Some("kubepods/x"));
    assert_eq!(at("").as_deref(), Some("caisson/id"));
    assert_eq!(at("a-b.slice:cri:c1").as_deref(), Some("a.slice/a-b.slice/cri-c1.scope"));
    assert_eq!(at(":docker:c1").as_deref(), Some("system.slice/docker-c1.scope"));
    for bad in ["/", "../x", "/a/../../b", "x:y:z", "a--b.slice:p:n", "/../.slice:p:n"] {
        assert_eq!(at(bad), None, "{bad}");
    }
}
