//! A coordination server with its relay, and nodes that join it.

use std::path::PathBuf;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use warren_control::cli::args::{OptionalListen, Serve};
use warren_control::serve::{Running, defaults, start};
use warren_control_api::endpoints::{ApproveNode, CreateAuthKey, ListPendingNodes, SendC2n};
use warren_control_api::{Client, Endpoint};
use warren_local_api::endpoint::Handler as _;
use warren_local_api::endpoints::{Start, WatchBus};
use warren_local_api::notify::{NotifyMask, State};
use warren_local_api::prefs::Options;
use warren_node::daemon::{DetachedNode, NodeHandle};
use warren_node_types::Prefs;

/// The user who owns all nodes.
const USER: &str = "default";

/// A tailnet on the loopback interface.
pub struct Network {
    server: Running,
    runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Network {
    /// A server on free ports, without nodes.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let options = Serve {
            listen: Some(([127, 0, 0, 1], 0).into()),
            stun_listen: Some(OptionalListen::At(([127, 0, 0, 1], 0).into())),
            ..defaults()
        };
        let server = runtime.block_on(start(&folder.path().join("control"), options));
        Self {
            server: server.unwrap(),
            runtime,
            folder,
        }
    }

    /// The address that nodes are given.
    pub fn url(&self) -> &str {
        &self.server.server_url
    }

    /// Carries out a request of the administrator.
    pub fn admin<E: Endpoint>(&self, request: &E) -> E::Answer {
        let client = Client::new(self.folder.path().join("control"));
        self.block_on(client.call(request)).unwrap()
    }

    /// Waits until a node answers the server over its map stream.
    pub fn wait_for_echo(&self, node: &str) {
        let client = Client::new(self.folder.path().join("control"));
        let echo = SendC2n {
            node: node.to_owned(),
            path: "/echo".to_owned(),
            data: None,
        };
        while self.block_on(client.call(&echo)).is_err() {}
    }

    /// A key with which one node can join.
    pub fn key(&self) -> String {
        let request = CreateAuthKey {
            user: Some(USER.to_owned()),
            lifetime_seconds: Some(3600),
            ..CreateAuthKey::default()
        };
        self.admin(&request).key
    }

    /// Admits the only machine that waits.
    pub fn approve(&self) {
        let waiting = self.admin(&ListPendingNodes {});
        assert_eq!(waiting.len(), 1);
        self.admin(&ApproveNode {
            id: waiting[0].id.clone(),
            user: USER.to_owned(),
            tags: [].into(),
        });
    }

    /// A node of this name that is up, with the preferences of `prefs`.
    pub fn node(&self, name: &str, prefs: Prefs) -> DetachedNode {
        let options = Options {
            auth_key: self.key(),
            update_prefs: Some(Prefs {
                control_url: self.url().to_owned(),
                hostname: name.to_owned(),
                want_running: true,
                ..prefs
            }),
            force_login: false,
        };
        self.block_on(async {
            let node = DetachedNode::start(&self.state_dir(name)).await.unwrap();
            let handle = node.handle();
            handle.call(Start { options }).await.unwrap();
            until(&handle, State::Running).await;
            node
        })
    }

    /// The folder for the state of a node.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a task beside those of server and nodes.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }

    /// Runs a future among the tasks of server and nodes.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

/// A runtime for servers and nodes.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until the node is in this state.
pub async fn until(node: &NodeHandle, wanted: State) {
    let mask = NotifyMask::INITIAL_STATE;
    let mut events = node.handle(WatchBus { mask }).await.unwrap();
    while events.next().await.unwrap().unwrap().state != Some(wanted) {}
}
