//! Exit events, in order: never before the `Started` of their process, each exactly once.

use std::collections::HashMap;
use std::sync::Arc;

use caisson_proto::control::{Exit, ProcessRef, Reply, ToShim};
use parking_lot::Mutex;

use super::Connection;
use crate::kernel::container::{ExitListener, ProcessExit};

/// Sends exit events and answers `Wait`.
pub struct Exits {
    connection: Arc<Connection>,
    starting: Mutex<HashMap<ProcessRef, Option<Exit>>>,
}

impl Exits {
    /// Nothing has ended yet.
    pub fn new(connection: Arc<Connection>) -> Arc<Exits> {
        Arc::new(Exits { connection, starting: Mutex::default() })
    }

    /// Runs `start`, which starts `process` and says so to the shim; an exit that comes in between is told afterwards.
    pub fn held_back(&self, process: &ProcessRef, start: impl FnOnce()) {
        self.starting.lock().insert(process.clone(), None);
        start();
        // The entry goes before the event is sent: the process can end only once.
        let early = self.starting.lock().remove(process).flatten();
        if let Some(exit) = early {
            self.send(exit);
        }
    }

    fn send(&self, exit: Exit) {
        self.connection.send(&ToShim { number: 0, reply: Some(Reply::ExitEvent(exit)) });
    }
}

/// As the protocol says it.
pub fn exit_message(exit: &ProcessExit) -> Exit {
    Exit {
        process: Some(ProcessRef { container_id: exit.container.clone(), exec_id: exit.exec.clone() }),
        pid: u32::try_from(exit.pid).unwrap_or(0),
        status: exit.status.shell_status(),
        at_unix_nanos: u64::try_from(exit.at.to_nanos()).unwrap_or(0),
    }
}

impl ExitListener for Exits {
    fn process_exited(&self, exit: ProcessExit) {
        let message = exit_message(&exit);
        let process = ProcessRef { container_id: exit.container, exec_id: exit.exec };
        if let Some(held) = self.starting.lock().get_mut(&process) {
            *held = Some(message);
            return;
        }
        self.send(message);
    }
}
