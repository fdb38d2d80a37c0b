//! The SSH server of the node: on with the preference, on port 22 of the node's addresses.
//!
//! With an interface, packets of peers to that port are intercepted by the packet threads
//! and come to a network stack in this process ([`ServiceStack`]); without one, all packets
//! do, and the port is taken before connections are forwarded to programs of this machine.
//! Either way a connection arrives at an [`OwnServices`].

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use warren_control_types::SshAction;
use warren_host::device::Offloads;
use warren_host::device::memory::{self, MemoryDevice, MemoryOptions};
use warren_node_core::TUNNEL_MTU;
use warren_ssh::{Accounts, Answer, Ends, Facts, HostKeys, Options, Server, Tailnet};
use warren_userspace::{Incoming, Network, OwnServices, serve_only};

use super::NodeHandle;
use super::start::{DaemonError, system};
use super::userspace::NETWORK;

/// The problem of a daemon that is root, and confined.
const CONFINED: &str = "the SSH server lets only root log in, because the service of the daemon \
                        may not change users; `systemctl edit warren` as README shows in its \
                        section about SSH";
/// The port of SSH.
const PORT: u16 = 22;
/// Frames that may wait in each direction between the packet threads and the services.
const WAITING_FRAMES: usize = 1024;
/// The folder of the system's SSH server.
const SYSTEM_KEYS: &str = "/etc/ssh";
/// This program, also after its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A network stack for services of a node that has an interface.
pub struct ServiceStack {
    /// Its end at the packet threads.
    pub device: Arc<MemoryDevice>,
    /// The network.
    pub network: Network,
    /// The services on it.
    pub services: OwnServices,
}

impl ServiceStack {
    /// Starts the stack, without services.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn start() -> Result<Self, DaemonError> {
        let (device, host) = memory::pair(MemoryOptions {
            queues: 1,
            capacity: WAITING_FRAMES,
            offloads: Offloads {
                tcp: true,
                udp: false,
            },
            mtu: TUNNEL_MTU.into(),
        })
        .map_err(system("cannot make a device in memory"))?;
        let host = Arc::new(host);
        let (network, arrivals) = Network::new(Box::new(Arc::clone(&host)), NETWORK);
        let running = network.clone();
        tokio::spawn(async move {
            if let Err(error) = running.run(host).await {
                tracing::error!(%error, "the services of this node have ended; restart the daemon");
            }
        });
        let services = OwnServices::default();
        tokio::spawn(serve_only(arrivals, services.clone()));
        Ok(Self {
            device: Arc::new(device),
            network,
            services,
        })
    }
}

/// Where the SSH server of a node listens.
pub struct SshPlace {
    /// The services of the node.
    pub services: OwnServices,
    /// The network of the services, where its addresses are set here.
    pub network: Option<Network>,
}

/// The SSH server of a node.
pub struct Ssh {
    /// `None`: this node has no place for it.
    place: Option<SshPlace>,
    folder: Option<PathBuf>,
    handle: NodeHandle,
    running: Option<Running>,
    /// The reason why it does not run although it should.
    problem: Option<String>,
    /// The addresses that were set.
    addresses: Vec<IpAddr>,
}

/// A server that runs. Dropping it ends all its connections.
struct Running {
    public_keys: Vec<String>,
    changes: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Ssh {
    /// A server that does not run yet. `folder` is for its keys; without one they end
    /// with the process.
    pub fn new(place: Option<SshPlace>, folder: Option<PathBuf>, handle: NodeHandle) -> Self {
        Self {
            place,
            folder,
            handle,
            running: None,
            problem: None,
            addresses: Vec::new(),
        }
    }

    /// Starts or stops it.
    pub fn set(&mut self, is_on: bool) {
        if !is_on {
            self.running = None;
            self.problem = None;
            return;
        }
        if self.running.is_some() {
            return;
        }
        match self.start() {
            Ok(running) => {
                let is_confined = rustix::process::geteuid().is_root() && !may_change_users();
                self.problem = is_confined.then(|| CONFINED.to_owned());
                self.running = Some(running);
            }
            Err(problem) => {
                tracing::error!("the SSH server is not on: {problem}");
                self.problem = Some(format!("the SSH server is not on: {problem}"));
            }
        }
    }

    fn start(&self) -> Result<Running, String> {
        let place = self.place.as_ref();
        let place = place.ok_or("this kind of node has none; use `warren daemon`")?;
        let is_root = rustix::process::geteuid().is_root();
        let of_system = Some(Path::new(SYSTEM_KEYS)).filter(|_| is_root);
        let host_keys =
            HostKeys::load(self.folder.as_deref(), of_system).map_err(|error| error.to_string())?;
        let (changes, known_changes) = watch::channel(0);
        let public_keys = host_keys.public_lines();
        let server = Server::new(Options {
            tailnet: Arc::new(NodeTailnet {
                handle: self.handle.clone(),
                changes: known_changes,
            }),
            host_keys,
            accounts: Accounts::of_system(),
            program: THIS_PROGRAM.into(),
        });
        let connections = place.services.serve(PORT);
        tracing::info!("SSH server on");
        Ok(Running {
            public_keys,
            changes,
            accepting: tokio::spawn(accept(connections, server)),
        })
    }

    /// The public host keys, while it runs.
    pub fn public_keys(&self) -> &[String] {
        let running = self.running.as_ref();
        running.map_or(&[], |running| &running.public_keys)
    }

    /// The reason why it does not run, or not fully, although it should.
    pub fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// The netmap or the state of the node may be another one: logins are judged again.
    pub fn netmap_changed(&self) {
        if let Some(running) = &self.running {
            running
                .changes
                .send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Sets the addresses of this node.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        let network = self.place.as_ref().and_then(|place| place.network.as_ref());
        if let Some(network) = network
            && self.addresses != addresses
        {
            self.addresses = addresses.to_vec();
            network.set_addresses(addresses.iter().copied());
        }
    }
}

/// Whether root may become other users: a service may be restricted.
fn may_change_users() -> bool {
    use rustix::thread::CapabilitySet;
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Serves connections until the server is stopped.
async fn accept(mut connections: mpsc::Receiver<Incoming>, server: Server) {
    while let Some(incoming) = connections.recv().await {
        let tuple = incoming.tuple();
        let ends = Ends {
            peer: tuple.remote,
            local: tuple.local,
        };
        let server = server.clone();
        tokio::spawn(async move {
            // A connection without a place is refused when it is dropped.
            if let Err(error) = server.serve(ends, || incoming.accept()).await {
                tracing::debug!(%error, "SSH connection refused");
            }
        });
    }
}

/// The node as its SSH server sees it.
struct NodeTailnet {
    handle: NodeHandle,
    changes: watch::Receiver<u64>,
}

impl Tailnet for NodeTailnet {
    fn facts(&self, source: IpAddr) -> Answer<'_, Option<Facts>> {
        Box::pin(async move {
            let facts = self.handle.now(move |task| Ok(task.ssh_facts(source)));
            facts.await.ok().flatten()
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    fn ask(&self, target: String) -> Answer<'_, Result<SshAction, String>> {
        Box::pin(async move {
            let client = self.handle.now(|task| task.control_client()).await;
            let client = client.map_err(|error| error.to_string())?;
            let answer = client.request(Method::GET, &target, Vec::new()).await;
            let (status, body) = answer.map_err(|error| error.to_string())?;
            if status != StatusCode::OK {
                return Err(format!("the server answered {status}"));
            }
            serde_json::from_slice(&body)
                .map_err(|error| format!("the answer is no action: {error}"))
        })
    }
}

/// Whether an address is one of a node, and not one behind it.
pub fn is_address_of(node: &warren_control_types::Node, address: IpAddr) -> bool {
    let mut addresses = node.addresses.iter();
    addresses.any(|prefix| prefix.addr() == address)
}
