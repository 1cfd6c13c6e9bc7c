//! The publisher against a containerd that comes and goes.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::api::Empty;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};
use parking_lot::Mutex;

use super::*;
use crate::lifecycle::state::ExitInfo;

#[derive(Default)]
struct Log {
    topics: Mutex<Vec<String>>,
    refuse: Mutex<u32>,
}

struct Daemon(Arc<Log>);

#[async_trait::async_trait]
impl Events for Daemon {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: ForwardRequest,
    ) -> containerd_shim_protos::ttrpc::Result<Empty> {
        let mut refuse = self.0.refuse.lock();
        if *refuse > 0 {
            *refuse -= 1;
            return Err(containerd_shim_protos::ttrpc::Error::Others("busy".into()));
        }
        self.0.topics.lock().push(request.envelope.topic.clone());
        Ok(Empty::default())
    }
}

async fn daemon(address: &str, log: &Arc<Log>) -> Server {
    let service = create_events(Arc::new(Daemon(log.clone())));
    let services: HashMap<_, _> = service;
    let mut server = Server::new().bind(address).unwrap().register_service(services);
    server.start().await.unwrap();
    server
}

#[tokio::test]
async fn events_arrive_in_order_across_refusals_and_a_restart() {
    let path = std::env::temp_dir().join(format!("caisson-publisher-{}.sock", std::process::id()));
    let address = format!("unix://{}", path.display());
    let log = Arc::new(Log::default());
    let (sender, receiver) = mpsc::unbounded_channel();
    let exit = ExitInfo { status: 3, at_unix_nanos: 5 };
    // Nobody listens yet.
    sender.send(Event::Started { id: "c".into(), pid: 1 }).unwrap();
    let publisher = start(path.display().to_string(), "ns".into(), receiver);
    tokio::time::sleep(Duration::from_millis(120)).await;
    let mut server = daemon(&address, &log).await;
    *log.refuse.lock() = 2;
    sender.send(Event::Paused { id: "c".into() }).unwrap();
    sender.send(Event::Resumed { id: "c".into() }).unwrap();
    while log.topics.lock().len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.shutdown().await.unwrap();
    drop(server);
    let _ = std::fs::remove_file(&path);
    sender.send(Event::Exited { id: "c".into(), exec: String::new(), pid: 1, exit }).unwrap();
    sender.send(Event::Deleted { id: "c".into(), pid: 1, exit }).unwrap();
    drop(sender);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _server = daemon(&address, &log).await;
    publisher.await.unwrap();
    assert_eq!(
        *log.topics.lock(),
        ["/tasks/start", "/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete"]
    );
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn an_exit_names_the_process_and_the_container() {
    let exit = ExitInfo { status: 137, at_unix_nanos: 1_500_000_000 };
    let of = |exec: &str| {
        let event = Event::Exited { id: "c".into(), exec: exec.into(), pid: 9, exit };
        let (topic, any) = message(&event).unwrap();
        assert_eq!((topic, any.type_url.as_str()), ("/tasks/exit", "containerd.events.TaskExit"));
        TaskExit::parse_from_bytes(&any.value).unwrap()
    };
    let (first, exec) = (of(""), of("e"));
    assert_eq!((first.id.as_str(), first.container_id.as_str()), ("c", "c"));
    assert_eq!((exec.id.as_str(), exec.container_id.as_str()), ("e", "c"));
    assert_eq!((exec.exited_at.seconds, exec.exited_at.nanos, exec.exit_status), (1, 500_000_000, 137));
}
