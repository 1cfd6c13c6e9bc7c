//! What must run unmodified in a Debian 12 container: shells, compilers, interpreters, archives, databases, editors.

#![forbid(unsafe_code)]

use caisson_tests::bed::{Bed, Image};
use caisson_tests::command::Command;
use caisson_tests::suite::{self, Outcome, Skip};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    suite::main(
        "debian",
        Bed::new,
        caisson_tests::tests![
            bash_pipelines_and_here_documents,
            bash_traps_and_job_control,
            bash_process_substitution_and_coprocess,
            coreutils_over_twenty_thousand_files,
            every_file_hashes_as_on_the_host,
            dpkg_and_apt,
            perl,
            python_starts,
            python_threads,
            python_subprocess,
            python_mmap,
            python_sqlite,
            python_asyncio,
            python_multiprocessing,
            gcc_compiles_and_runs,
            make_of_a_c_project,
            git_works,
            tar_gzip_xz,
            openssl_speed,
            sqlite_write_ahead_log,
            vim_edits,
            tmux_in_a_terminal,
            strace_version,
            namespaces_are_entered,
            rust_program,
        ],
    )
}

/// Longer than for other containers: these are the heavy ones.
const LIMIT: Duration = Duration::from_secs(240);

fn bash_pipelines_and_here_documents(bed: &Bed) -> Outcome {
    let script = r#"set -u
        cat <<END | tr a-z A-Z | rev
hello $((6*7))
END
        seq 1 10000 | sort -rn | head -3 | paste -sd+
        declare -A m=([one]=1 [two]=2); for k in $(printf '%s\n' "${!m[@]}" | sort); do echo $k=${m[$k]}; done
        yes | head -n 100000 | wc -l
        set -o pipefail; yes | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}; false | true || echo pipefail
        printf '%s\n' {a..c}{1..2} | xargs -P 3 -n 1 echo | sort | tr '\n' ' '"#;
    let expected = "24 OLLEH\n10000+9999+9998\none=1\ntwo=2\n100000\n141\npipefail\na1 a2 b1 b2 c1 c2 ";
    assert_eq!(bed.bash(script).ok(), expected);
    Ok(())
}

fn bash_traps_and_job_control(bed: &Bed) -> Outcome {
    let script = r#"trap 'echo exit trap' EXIT; trap 'echo usr1' USR1; kill -USR1 $$
        set -m; sleep 100 & sleep 200 & jobs | wc -l; kill -STOP %1; sleep 0.3; jobs %1 | grep -o Stopped
        kill -CONT %1; kill %1 %2; wait %1; echo $?; wait; (exit 3) & wait $!; echo $?
        fg_out=$(sleep 0.1; echo sub); echo $fg_out; exit 5"#;
    let run = bed.bash(script).run().exited(5);
    assert_eq!(run.stdout, "usr1\n2\nStopped\n143\n3\nsub\nexit trap\n");
    Ok(())
}

fn bash_process_substitution_and_coprocess(bed: &Bed) -> Outcome {
    let script = r#"diff <(seq 1 5) <(seq 1 6); coproc cat; echo ping >&${COPROC[1]}; read -u ${COPROC[0]} x; echo $x
        exec 7<>/tmp/rw; echo data >&7; cat /tmp/rw; tee >(wc -c >/tmp/count) </etc/hostname >/dev/null; sleep 0.3; cat /tmp/count"#;
    assert_eq!(bed.bash(script).ok(), "5a6\n> 6\nping\ndata\n8\n");
    Ok(())
}

fn coreutils_over_twenty_thousand_files(bed: &Bed) -> Outcome {
    let script = r#"mkdir /tree; cd /tree; for d in $(seq 1 200); do mkdir $d; done
        seq 1 200 | while read d; do for f in $(seq 1 100); do echo $d/$f; done; done | while read p; do echo $p >$p; done
        find . -type f | wc -l; cp -a /tree /copy; diff -r /tree /copy && echo same
        cat */* | sort | sha256sum | cut -c 1-16; ls -lR | grep -c '^-'; du -s --apparent-size -b . | cut -f 1 | grep -c .
        find . -name '*7' -delete; find . -type f | wc -l; chmod -R go-rwx /copy; find /copy -type f -perm 600 | wc -l
        mv /copy/1 /tree/moved; ls /tree | wc -l; rm -rf /tree /copy; ls -d /tree 2>&1 | grep -c 'No such'"#;
    let expected = Command::new("bash")
        .args(["-c", "for d in $(seq 1 200); do for f in $(seq 1 100); do echo $d/$f; done; done | sort | sha256sum | cut -c 1-16"])
        .ok();
    let out = bed.bash(script).limit(LIMIT).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, ["20000", "same", expected.trim(), "20000", "1", "18000", "20000", "201", "1"]);
    Ok(())
}

fn every_file_hashes_as_on_the_host(bed: &Bed) -> Outcome {
    let results = bed.scratch("hashes");
    let list = "find . -xdev \\( -path ./out -o -path ./proc -o -path ./sys -o -path ./dev -o -path ./run \\) -prune -o -type f -print0 | \
                LC_ALL=C sort -z | xargs -0 sha256sum";
    let host =
        Command::new("bash").args(["-c", list]).current_dir(bed.image_root(Image::Debian)).limit(LIMIT).ok();
    let script = format!("cd / && {list} >/out/sums");
    bed.bash(&script).bind(&results, "/out", "rbind:rw").limit(LIMIT).ok();
    let guest = std::fs::read_to_string(results.join("sums")).unwrap_or_default();
    assert!(host.lines().count() > 5000, "too few files: {}", host.lines().count());
    let different: Vec<_> =
        host.lines().zip(guest.lines()).filter(|(host, guest)| host != guest).take(5).collect();
    assert!(host == guest, "{} and {} files; {different:?}", host.lines().count(), guest.lines().count());
    Ok(())
}

fn dpkg_and_apt(bed: &Bed) -> Outcome {
    let root = bed.image_root(Image::Debian);
    let list = "dpkg -l | grep -c ^ii";
    let host =
        Command::new("sh").args(["-c", &format!("dpkg --root={} -l | grep -c ^ii", root.display())]).ok();
    assert_eq!(bed.bash(list).ok(), host);
    let out =
        bed.bash("apt-get --version | head -1; dpkg -S /bin/bash; dpkg --verify bash && echo intact").ok();
    assert!(out.starts_with("apt ") && out.ends_with("bash: /bin/bash\nintact\n"), "{out}");
    Ok(())
}

fn perl(bed: &Bed) -> Outcome {
    let script = r#"perl -e 'my %h; $h{$_ % 7}++ for 1..100000; print join(",", map {"$_=$h{$_}"} sort keys %h), "\n";
        my $p = fork; if (!$p) { exit 3 } waitpid $p, 0; print $? >> 8, "\n"; open my $f, "-|", "echo piped"; print <$f>;
        local $SIG{ALRM} = sub { print "alarm\n" }; alarm 1; select undef, undef, undef, 2; print sprintf("%.2f\n", atan2(1,1)*4)'"#;
    assert_eq!(
        bed.bash(script).ok(),
        "0=14285,1=14286,2=14286,3=14286,4=14286,5=14286,6=14285\n3\npiped\nalarm\n3.14\n"
    );
    Ok(())
}

/// Runs a Python program.
fn python(bed: &Bed, program: &str) -> String {
    bed.container(Image::Debian).args(["python3", "-c", program]).limit(LIMIT).ok()
}

fn python_starts(bed: &Bed) -> Outcome {
    let out = python(
        bed,
        "import sys, os, json, platform; print(sys.version_info[:2], os.getpid(), platform.system())",
    );
    assert_eq!(out, "(3, 11) 1 Linux\n");
    Ok(())
}

fn python_threads(bed: &Bed) -> Outcome {
    let program = r#"
import threading, queue
q, done, lock = queue.Queue(), [], threading.Lock()
def work():
    while (item := q.get()) is not None:
        with lock: done.append(item * item)
threads = [threading.Thread(target=work) for _ in range(20)]
[t.start() for t in threads]
[q.put(i) for i in range(2000)]
[q.put(None) for _ in threads]
[t.join(20) for t in threads]
print(len(done), sum(done), any(t.is_alive() for t in threads))
event = threading.Event(); threading.Timer(0.1, event.set).start(); print(event.wait(5), threading.Event().wait(0.05))
"#;
    assert_eq!(python(bed, program), "2000 2664667000 False\nTrue False\n");
    Ok(())
}

fn python_subprocess(bed: &Bed) -> Outcome {
    let program = r#"
import subprocess as s, signal, os
print(s.run(["sh", "-c", "cat; echo err >&2; exit 4"], input=b"in", capture_output=True))
p = s.Popen(["sleep", "100"]); p.terminate(); print(p.wait())
try: s.run(["sleep", "100"], timeout=0.2)
except s.TimeoutExpired: print("timeout")
try: s.run(["/no/such"])
except FileNotFoundError as e: print(e.errno)
print(s.check_output("seq 3 | tac", shell=True, text=True).split(), s.getstatusoutput("exit 9"))
print(s.run(["pwd"], cwd="/tmp", capture_output=True, text=True, start_new_session=True).stdout)
"#;
    let expected = "CompletedProcess(args=['sh', '-c', 'cat; echo err >&2; exit 4'], returncode=4, stdout=b'in', stderr=b'err\\n')\n\
                    -15\ntimeout\n2\n['3', '2', '1'] (9, '')\n/tmp\n\n";
    assert_eq!(python(bed, program), expected);
    Ok(())
}

fn python_mmap(bed: &Bed) -> Outcome {
    let program = r#"
import mmap, os
for path in ("/tmp/file", "/dev/shm/file"):
    with open(path, "w+b") as f:
        f.truncate(1 << 20)
        m = mmap.mmap(f.fileno(), 0)
        m[:5] = b"hello"; m[-3:] = b"end"; m.flush()
        print(os.pread(f.fileno(), 5, 0), os.pread(f.fileno(), 3, (1 << 20) - 3), m.find(b"end"))
        os.pwrite(f.fileno(), b"through", 100); print(m[100:107])
        m.resize(2 << 20); print(len(m), os.fstat(f.fileno()).st_size); m.close()
anon = mmap.mmap(-1, 4096)
if os.fork() == 0: anon[:4] = b"kid!"; os._exit(0)
os.wait(); print(anon[:4])
"#;
    let each = "b'hello' b'end' 1048573\nb'through'\n2097152 2097152\n";
    assert_eq!(python(bed, program), format!("{each}{each}b'kid!'\n"));
    Ok(())
}

fn python_sqlite(bed: &Bed) -> Outcome {
    let program = r#"
import sqlite3
db = sqlite3.connect("/tmp/x.db"); db.execute("create table t(a integer primary key, b text)")
with db: db.executemany("insert into t(b) values (?)", ((str(i),) for i in range(50000)))
db.execute("create index i on t(b)"); print(db.execute("select count(*), sum(a) from t where b like '%7'").fetchone())
print(db.execute("pragma integrity_check").fetchone())
"#;
    assert_eq!(python(bed, program), "(5000, 125015000)\n('ok',)\n");
    Ok(())
}

fn python_asyncio(bed: &Bed) -> Outcome {
    let program = r#"
import asyncio
async def handle(r, w):
    w.write((await r.readline()).upper()); await w.drain(); w.close()
async def main():
    server = await asyncio.start_unix_server(handle, "/tmp/sock")
    async def call(i):
        r, w = await asyncio.open_unix_connection("/tmp/sock"); w.write(b"call %d\n" % i); return await r.read()
    out = await asyncio.gather(*(call(i) for i in range(50))); print(len(out), out[49])
    p = await asyncio.create_subprocess_exec("echo", "child", stdout=asyncio.subprocess.PIPE); print((await p.communicate())[0])
    print(await asyncio.wait_for(asyncio.to_thread(sum, range(1000)), 5))
    try: await asyncio.wait_for(asyncio.sleep(10), 0.1)
    except asyncio.TimeoutError: print("timeout")
asyncio.run(main())
"#;
    assert_eq!(python(bed, program), "50 b'CALL 49\\n'\nb'child\\n'\n499500\ntimeout\n");
    Ok(())
}

fn python_multiprocessing(bed: &Bed) -> Outcome {
    let program = r#"
import multiprocessing as mp
def square(x): return x * x
def put(q, n): q.put(n)
if __name__ == "__main__":
    with mp.Pool(4) as pool: print(sum(pool.map(square, range(1000))))
    q = mp.Queue(); ps = [mp.Process(target=put, args=(q, i)) for i in range(5)]
    [p.start() for p in ps]; print(sorted(q.get(timeout=20) for _ in ps)); [p.join(20) for p in ps]; print([p.exitcode for p in ps])
    v = mp.Value("i", 0)
    def add():
        for _ in range(100):
            with v.get_lock(): v.value += 1
    ps = [mp.Process(target=add) for _ in range(4)]; [p.start() for p in ps]; [p.join(20) for p in ps]; print(v.value)
"#;
    assert_eq!(python(bed, program), "332833500\n[0, 1, 2, 3, 4]\n[0, 0, 0, 0, 0]\n400\n");
    Ok(())
}

fn gcc_compiles_and_runs(bed: &Bed) -> Outcome {
    let script = r#"cd /tmp; printf '#include <stdio.h>\nint main(void) { puts("hello from gcc"); return 3; }\n' >hello.c
        gcc -O2 -Wall hello.c && ./a.out; echo $?; gcc -static hello.c -o static && ./static; gcc broken.c 2>&1 | grep -c 'No such file'"#;
    assert_eq!(bed.bash(script).limit(LIMIT).ok(), "hello from gcc\n3\nhello from gcc\n1\n");
    Ok(())
}

fn make_of_a_c_project(bed: &Bed) -> Outcome {
    let Some(archive) = std::env::var_os("CAISSON_TEST_C_PROJECT").filter(|path| !path.is_empty()) else {
        return Err(Skip("the source of lua5.4 is not served by this machine's mirror".into()));
    };
    let archive = std::path::PathBuf::from(archive);
    let script = "cd /tmp && tar xf /archive && cd lua* && make -s -j4 linux >/tmp/log 2>&1 || tail -5 /tmp/log; \
                  src/lua -e 'local t = {} for i = 1, 10 do t[i] = i * i end print(_VERSION, table.concat(t, \" \"))'";
    let out = bed.bash(script).bind(&archive, "/archive", "bind:ro").limit(LIMIT).ok();
    assert_eq!(out, "Lua 5.4\t1 4 9 16 25 36 49 64 81 100\n");
    Ok(())
}

fn git_works(bed: &Bed) -> Outcome {
    let script = r#"export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z' HOME=/tmp
        git config --global user.name n; git config --global user.email e@x; git config --global init.defaultBranch main
        git init -q /tmp/r; cd /tmp/r; for i in $(seq 1 300); do echo $i >f$i; done; git add .; git commit -qm one
        echo more >>f1; git commit -qam two; git log --oneline | wc -l; git rev-parse HEAD; git gc -q; git fsck 2>&1 | grep -vc '^Checking' 
        git checkout -q -b b HEAD~1; cat f1; git merge -q main; tail -1 f1; git clone -q /tmp/r /tmp/c; git -C /tmp/c status -s | wc -l; git count-objects | cut -d , -f 1"#;
    let out = bed.bash(script).limit(LIMIT).run();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines.first(), Some(&"2"), "{out}");
    // The hash of the commit follows from its content alone.
    let host = bed.scratch("git");
    let same = "export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z' HOME=$PWD GIT_CONFIG_NOSYSTEM=1; \
                git config --global user.name n; git config --global user.email e@x; git config --global init.defaultBranch main; \
                git init -q r; cd r; for i in $(seq 1 300); do echo $i >f$i; done; git add .; git commit -qm one; \
                echo more >>f1; git commit -qam two; git rev-parse HEAD";
    let hash = Command::new("bash").args(["-c", same]).current_dir(&host).ok();
    assert_eq!(lines.get(1).copied(), Some(hash.trim()), "{out}");
    assert_eq!(lines.get(2..), Some(&["0", "1", "more", "0", "0 objects"][..]), "{out}");
    Ok(())
}

fn tar_gzip_xz(bed: &Bed) -> Outcome {
    let script = r#"cd /tmp; tar cf all.tar -C /usr/share/perl5 . ; tar tf all.tar | wc -l >n1; gzip -k all.tar; xz -T0 -1 -k all.tar
        gzip -t all.tar.gz && xz -t all.tar.xz && echo intact; zcat all.tar.gz | cmp - all.tar && xzcat all.tar.xz | cmp - all.tar && echo equal
        mkdir x; tar xf all.tar.xz -C x; diff -r x /usr/share/perl5 && echo unpacked; (cd x; find . | wc -l) | cmp - n1 && echo complete"#;
    assert_eq!(bed.bash(script).limit(LIMIT).ok(), "intact\nequal\nunpacked\ncomplete\n");
    Ok(())
}

fn openssl_speed(bed: &Bed) -> Outcome {
    let script = "openssl speed -seconds 1 sha256 2>&1 | grep -c '^sha256'; echo -n abc | openssl sha256 | cut -d ' ' -f 2; \
                  openssl genpkey -algorithm ed25519 | head -1; openssl rand -hex 16 | wc -c";
    let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let out = bed.bash(script).limit(LIMIT).ok();
    assert_eq!(out, format!("1\n{sum}\n-----BEGIN PRIVATE KEY-----\n33\n"));
    Ok(())
}

fn sqlite_write_ahead_log(bed: &Bed) -> Outcome {
    let script = r#"cd /tmp; sqlite3 w.db 'pragma journal_mode=wal; create table t(a);'
        for w in 1 2 3 4; do (for i in $(seq 1 25); do sqlite3 -cmd '.timeout 20000' w.db "insert into t values($w)"; done) & done; wait
        sqlite3 w.db 'select count(*), sum(a) from t; pragma integrity_check;'; ls w.db* | tr '\n' ' '"#;
    assert_eq!(bed.bash(script).limit(LIMIT).ok(), "wal\n100|250\nok\nw.db ");
    Ok(())
}

fn vim_edits(bed: &Bed) -> Outcome {
    let script = r#"cd /tmp; seq 1 1000 >f; vim -es -u NONE -c '%s/^\(.*\)7$/seven \1/' -c 'g/^5/d' -c wq f; grep -c seven f; wc -l <f; ls -a /tmp | grep -c swp"#;
    let out = bed.bash(script).limit(LIMIT).run();
    let host = Command::new("bash")
        .args(["-c", "seq 1 1000 | grep -c '7$'; seq 1 1000 | sed 's/^\\(.*\\)7$/seven \\1/' | grep -vc ^5"])
        .ok();
    assert_eq!(out.stdout, format!("{host}0\n"), "{out}");
    Ok(())
}

fn tmux_in_a_terminal(bed: &Bed) -> Outcome {
    let builder = bed.container(Image::Debian).flags(["--env", "TERM=xterm", "--env", "LANG=C.UTF-8"]);
    let run = builder.args(["tmux", "new-session", "bash --norc"]).limit(LIMIT).on_terminal(&[
        "echo pane$((1+1)); tty\r",
        "tmux split-window -v 'echo second $((40+2)); sleep 1'\r",
        // Nothing is typed for the time that the second pane lives.
        "",
        "",
        "",
        "",
        "",
        "tmux list-windows -F 'size #{window_width}x#{window_height}'\r",
        "",
        "tmux kill-server\r",
    ]);
    for part in ["pane2", "second 42", "/dev/pts/1", "size 99x32"] {
        assert!(run.stdout.contains(part), "no {part:?} in {run}");
    }
    Ok(())
}

fn strace_version(bed: &Bed) -> Outcome {
    assert!(bed.bash("strace -V").ok().starts_with("strace -- version 6"));
    Ok(())
}

fn namespaces_are_entered(bed: &Bed) -> Outcome {
    let script = r#"hostname first; unshare -u bash -c 'hostname second; hostname; nsenter --uts=/proc/'$$'/ns/uts hostname
        cmp <(readlink /proc/self/ns/uts) <(readlink /proc/'$$'/ns/uts) >/dev/null || echo differ
        nsenter -t '$$' -u -i hostname; nsenter -t '$$' -m cat /proc/self/comm'; hostname"#;
    let run = bed.container(Image::Debian).flags(["--cap-add", "CAP_SYS_ADMIN"]).args(["bash", "-c", script]);
    assert_eq!(run.ok(), "second\nfirst\ndiffer\nfirst\ncat\nfirst\n");
    Ok(())
}

fn rust_program(bed: &Bed) -> Outcome {
    let place = bed.scratch("rust");
    let source = r#"
use std::collections::HashMap; use std::io::{Read, Write}; use std::sync::mpsc; use std::time::Duration;
fn main() {
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..8).map(|n| { let s = sender.clone(); std::thread::spawn(move || for i in 0..100 { s.send((n, i)).unwrap() }) }).collect();
    drop(sender);
    let mut sums: HashMap<i32, i32> = HashMap::new();
    for (n, i) in receiver { *sums.entry(n).or_default() += i }
    for thread in threads { thread.join().unwrap() }
    println!("{} {}", sums.len(), sums.values().sum::<i32>());
    let (mut a, mut b) = std::os::unix::net::UnixStream::pair().unwrap();
    a.write_all(b"over a socket").unwrap(); drop(a);
    let mut text = String::new(); b.read_to_string(&mut text).unwrap(); println!("{text}");
    println!("{:?}", std::process::Command::new("sh").args(["-c", "exit 6"]).status().unwrap().code());
    println!("{:?}", std::fs::read_to_string("/no/such").unwrap_err().kind());
    let (_s, r) = mpsc::channel::<()>(); println!("{:?}", r.recv_timeout(Duration::from_millis(50)).is_err());
    println!("{}", std::panic::catch_unwind(|| panic!("caught")).is_err());
}"#;
    std::fs::write(place.join("program.rs"), source).ok();
    Command::new("rustc").args(["-O", "-o", "program", "program.rs"]).current_dir(&place).limit(LIMIT).ok();
    let out = bed.container(Image::Debian).args(["/p/program"]).bind(&place, "/p", "rbind:ro").ok();
    assert_eq!(out, "8 39600\nover a socket\nSome(6)\nNotFound\ntrue\ntrue\n");
    Ok(())
}
