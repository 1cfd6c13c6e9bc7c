//! Publishes events to containerd, one at a time, in order, and again until containerd has taken them.
//!
//! Order is worth more than speed: the next event is not sent before the one before it was acknowledged. While containerd is away (restarting) the queue
//! waits; events are few, because each belongs to an operation or to the end of a process that somebody outside has started.

use std::time::Duration;

use containerd_shim_protos::api::{ForwardRequest, Mount};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::context::with_timeout;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::lifecycle::Event;

/// Longest wait for containerd to take one event.
const ANSWER: Duration = Duration::from_secs(5);
/// Wait before another try: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Publishes what comes out of `events` until that is closed and empty.
pub fn start(
    address: String,
    namespace: String,
    mut events: mpsc::UnboundedReceiver<Event>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut client = None;
        while let Some(event) = events.recv().await {
            let Some(request) = request(&namespace, &event) else { continue };
            let mut pause = PAUSE.0;
            while let Err(why) = forward(&address, &mut client, &request).await {
                log::warn!("containerd did not take {}: {why}; trying again", request.envelope.topic);
                client = None;
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(PAUSE.1);
            }
        }
    })
}

async fn forward(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), String> {
    let attempt = async {
        let connected = match client.take() {
            Some(client) => client,
            None => EventsClient::new(Client::connect(&socket(address)).await.map_err(|e| e.to_string())?),
        };
        let context = with_timeout(i64::try_from(ANSWER.as_nanos()).unwrap_or(i64::MAX));
        connected.forward(context, request).await.map_err(|e| e.to_string())?;
        *client = Some(connected);
        Ok(())
    };
    tokio::time::timeout(ANSWER, attempt).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

/// containerd gives a path, with or without a scheme.
fn socket(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("unix://{address}") }
}

/// Seconds and nanoseconds of a time in nanoseconds since 1970.
pub(super) fn timestamp(unix_nanos: u64) -> MessageField<Timestamp> {
    const SECOND: u64 = 1_000_000_000;
    MessageField::some(Timestamp {
        seconds: i64::try_from(unix_nanos.div_euclid(SECOND)).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_nanos.rem_euclid(SECOND)).unwrap_or(0),
        ..Timestamp::default()
    })
}

fn request(namespace: &str, event: &Event) -> Option<ForwardRequest> {
    let (topic, event) = message(event)?;
    let envelope = Envelope {
        timestamp: timestamp(crate::lifecycle::sandbox::now()),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    };
    Some(ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() })
}

fn pack<M: MessageFull>(topic: &'static str, message: &M) -> Option<(&'static str, Any)> {
    // The bare name, as containerd's Go side writes it.
    let value = message.write_to_bytes().ok()?;
    Some((topic, Any { type_url: M::descriptor().full_name().to_owned(), value, ..Any::default() }))
}

fn creation(event: Event) -> Option<(&'static str, Any)> {
    let Event::Created { id, bundle, rootfs, streams, terminal, pid } = event else { return None };
    let io = TaskIO {
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        terminal,
        ..TaskIO::default()
    };
    let mount = |m: crate::launch::gofer::RootfsMount| Mount {
        type_: m.kind,
        source: m.source,
        options: m.options,
        ..Mount::default()
    };
    let message = TaskCreate {
        container_id: id,
        bundle,
        rootfs: rootfs.into_iter().map(mount).collect(),
        io: MessageField::some(io),
        pid,
        ..TaskCreate::default()
    };
    pack(topics::TASK_CREATE_EVENT_TOPIC, &message)
}

fn message(event: &Event) -> Option<(&'static str, Any)> {
    match event.clone() {
        created @ Event::Created { .. } => creation(created),
        Event::Started { id, pid } => {
            pack(topics::TASK_START_EVENT_TOPIC, &TaskStart { container_id: id, pid, ..TaskStart::default() })
        }
        Event::ExecAdded { id, exec } => pack(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &TaskExecAdded { container_id: id, exec_id: exec, ..TaskExecAdded::default() },
        ),
        Event::ExecStarted { id, exec, pid } => pack(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            &TaskExecStarted { container_id: id, exec_id: exec, pid, ..TaskExecStarted::default() },
        ),
        Event::Exited { id, exec, pid, exit } => pack(
            topics::TASK_EXIT_EVENT_TOPIC,
            &TaskExit {
                // The first process goes by its container's ID.
                id: if exec.is_empty() { id.clone() } else { exec },
                container_id: id,
                pid,
                exit_status: exit.status,
                exited_at: timestamp(exit.at_unix_nanos),
                ..TaskExit::default()
            },
        ),
        Event::Deleted { id, pid, exit } => pack(
            topics::TASK_DELETE_EVENT_TOPIC,
            &TaskDelete {
                container_id: id,
                pid,
                exit_status: exit.status,
                exited_at: timestamp(exit.at_unix_nanos),
                ..TaskDelete::default()
            },
        ),
        Event::Paused { id } => {
            pack(topics::TASK_PAUSED_EVENT_TOPIC, &TaskPaused { container_id: id, ..TaskPaused::default() })
        }
        Event::Resumed { id } => pack(
            topics::TASK_RESUMED_EVENT_TOPIC,
            &TaskResumed { container_id: id, ..TaskResumed::default() },
        ),
        Event::Oom { id } => {
            pack(topics::TASK_OOM_EVENT_TOPIC, &TaskOOM { container_id: id, ..TaskOOM::default() })
        }
    }
}

#[cfg(test)]
mod tests;
