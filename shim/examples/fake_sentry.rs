//! Test double of the sentry: speaks the control protocol and runs the "containers" as plain processes of the host, in the namespaces that the
//! launcher has made. With it the whole shim is tried against a real containerd without a guest kernel. Never installed.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use caisson_proto::control::frame::{Assembler, MAX_PACKET, packets};
use caisson_proto::control::*;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;
use prost::Message;

type Key = (String, String);

#[derive(Default)]
struct State {
    waiting: HashMap<Key, (Process, [Option<OwnedFd>; 3])>,
    running: HashMap<Key, i32>,
    /// Connections to gofers, which end when these are closed.
    gofers: Vec<OwnedFd>,
}

struct Fake {
    socket: OwnedFd,
    sending: Mutex<()>,
    state: Mutex<State>,
}

impl Fake {
    fn say(&self, number: u64, reply: Reply) {
        let _turn = self.sending.lock().unwrap();
        for packet in packets(&ToShim { number, reply: Some(reply) }.encode_to_vec(), MAX_REPLY).unwrap() {
            sendmsg::<()>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&packet)],
                &[],
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
            .unwrap();
        }
    }

    fn prepare(
        &self,
        key: Key,
        process: Process,
        stdio: Option<Stdio_>,
        mut fds: Vec<Option<OwnedFd>>,
    ) -> Reply {
        let name = String::from_utf8_lossy(&process.args[0]).into_owned();
        let known = if name.contains('/') {
            std::path::Path::new(&name).exists()
        } else {
            ["/bin", "/usr/bin"].iter().any(|d| std::path::Path::new(d).join(&name).exists())
        };
        if !known {
            let text = format!("exec: {name:?}: executable file not found in $PATH");
            return Reply::Error(Error::new(ErrorCode::ProgramNotFound, text));
        }
        let mut take = |index: Option<u32>| index.and_then(|i| fds.get_mut(i as usize)?.take());
        let stdio = stdio.unwrap_or_default();
        let streams = [take(stdio.stdin_fd), take(stdio.stdout_fd), take(stdio.stderr_fd)];
        let mut state = self.state.lock().unwrap();
        state.waiting.insert(key, (process, streams));
        state.gofers.extend(fds.into_iter().flatten());
        Reply::Created(Started { pid: 1 })
    }

    fn start(self: &Arc<Self>, number: u64, key: Key) {
        let Some((process, [stdin, stdout, stderr])) = self.state.lock().unwrap().waiting.remove(&key) else {
            return self.say(number, Reply::Error(Error::new(ErrorCode::NotFound, "nothing to start")));
        };
        let text = |b: &Vec<u8>| String::from_utf8_lossy(b).into_owned();
        let to = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let stderr =
            if process.terminal { stdout.as_ref().map(|fd| fd.try_clone().unwrap()) } else { stderr };
        let mut command = Command::new(text(&process.args[0]));
        command.args(process.args[1..].iter().map(text)).env_clear().process_group(0);
        command.envs(
            process
                .env
                .iter()
                .map(text)
                .filter_map(|e| e.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))),
        );
        let spawned = command.stdin(to(stdin)).stdout(to(stdout)).stderr(to(stderr)).spawn();
        drop(command);
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => {
                return self
                    .say(number, Reply::Error(Error::new(ErrorCode::ProgramNotRunnable, e.to_string())));
            }
        };
        let pid = child.id() as i32;
        self.state.lock().unwrap().running.insert(key.clone(), pid);
        self.say(number, Reply::Started(Started { pid: pid as u32 }));
        let this = self.clone();
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            this.state.lock().unwrap().running.remove(&key);
            let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u32;
            let process = Some(ProcessRef { container_id: key.0, exec_id: key.1 });
            let at_unix_nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
            this.say(0, Reply::ExitEvent(Exit { process, pid: pid as u32, status, at_unix_nanos }));
        });
    }

    fn signal(&self, container: &str, exec: &str, number: i32, all: bool) -> Reply {
        let state = self.state.lock().unwrap();
        let pids: Vec<i32> = state
            .running
            .iter()
            .filter(|(key, _)| key.0 == container && (all || key.1 == exec))
            .map(|(_, pid)| *pid)
            .collect();
        if pids.is_empty() {
            return Reply::Error(
                Error::new(ErrorCode::NotFound, "no such process").with_errno(libc::ESRCH as u32),
            );
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(-pid), Signal::try_from(number).ok());
        }
        Reply::Done(Done {})
    }

    fn handle(self: &Arc<Self>, number: u64, request: Request, fds: Vec<Option<OwnedFd>>) {
        let reply = match request {
            Request::Configure(_) => {
                Reply::Configured(Configured { version: VERSION, platform: "fake".into() })
            }
            Request::CreateContainer(c) => {
                let c = c.container.unwrap();
                self.prepare((c.id, String::new()), c.process.unwrap(), c.stdio, fds)
            }
            Request::Start(s) => return self.start(number, (s.container_id, String::new())),
            Request::Exec(e) => {
                let key = (e.container_id, e.exec_id);
                match self.prepare(key.clone(), e.process.unwrap(), e.stdio, fds) {
                    Reply::Created(_) => return self.start(number, key),
                    error => error,
                }
            }
            Request::Kill(k) => self.signal(&k.container_id, &k.exec_id, k.signal as i32, k.all),
            Request::Pause(c) => self.signal(&c.container_id, "", libc::SIGSTOP, true),
            Request::Resume(c) => self.signal(&c.container_id, "", libc::SIGCONT, true),
            Request::Processes(c) => {
                let state = self.state.lock().unwrap();
                let of = |(key, pid): (&Key, &i32)| {
                    (key.0 == c.container_id)
                        .then(|| ProcessInfo { pid: *pid as u32, ..ProcessInfo::default() })
                };
                Reply::Processes(Processes { processes: state.running.iter().filter_map(of).collect() })
            }
            Request::Stats(_) => Reply::Stats(Stats::default()),
            Request::Debug(_) => Reply::Debug(DebugReply::default()),
            Request::Wait(_) => Reply::Error(Error::new(ErrorCode::Unimplemented, "no waiting here")),
            _ => Reply::Done(Done {}),
        };
        self.say(number, reply);
    }
}

type Stdio_ = caisson_proto::control::Stdio;

fn main() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let fake = Arc::new(Fake { socket, sending: Mutex::new(()), state: Mutex::default() });
    let mut assembler = Assembler::new(MAX_REQUEST);
    loop {
        let mut buffer = vec![0; MAX_PACKET];
        let mut space = nix::cmsg_space!([i32; 250]);
        let mut data = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(fake.socket.as_raw_fd(), &mut data, Some(&mut space), flags) else {
            return;
        };
        if message.bytes == 0 {
            return;
        }
        let mut fds = vec![];
        for item in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = item {
                // SAFETY: the kernel has just made these descriptors for us.
                fds.extend(numbers.into_iter().map(|fd| Some(unsafe { OwnedFd::from_raw_fd(fd) })));
            }
        }
        let length = message.bytes;
        if let Some(whole) = assembler.push(&buffer[..length], fds).unwrap() {
            match ToSentry::decode_checked(&whole.bytes, whole.fds.len()) {
                Ok((number, request)) => fake.handle(number, request, whole.fds),
                Err(error) => {
                    let number = error.number().unwrap();
                    fake.say(number, Reply::Error(Error::new(ErrorCode::InvalidArgument, error.to_string())));
                }
            }
        }
    }
}
