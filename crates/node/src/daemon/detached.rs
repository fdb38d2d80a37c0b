//! A node that leaves the operating system alone: it has no interface, sets no
//! addresses, routes or resolver, and needs no privilege.
//!
//! Everything else is that of the daemon: the engine task, the packet threads, the
//! sessions with the coordination server, the relays, and the handlers of the local
//! interface. Packets of peers for programs of this machine are dropped. Tests
//! drive the command line against it, and programs can take part in a tailnet
//! with it.

use std::path::Path;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use warren_dial::{Dialer, SystemEntropy};
use warren_dns::ResolverConfig;
use warren_host::device::Offloads;
use warren_host::device::memory::{self, MemoryOptions};
use warren_host::link::LinkMonitor;
use warren_host::udp::{UdpOptions, bind_pair};
use warren_node_core::TUNNEL_MTU;

use super::handle::NodeHandle;
use super::host_task::Host;
use super::start::{DaemonError, Platform, TunnelDevice, system};
use super::state::StateFolder;
use super::{Inbox, Message, aead};

/// A running node without an interface. Dropping it ends it at once.
pub struct DetachedNode {
    inbox: Inbox,
    task: JoinHandle<()>,
}

impl DetachedNode {
    /// Starts a node whose state is in the file `warren.state` in `state_dir`.
    ///
    /// # Errors
    /// [`DaemonError`]; nothing keeps running then.
    pub async fn start(state_dir: &Path) -> Result<Self, DaemonError> {
        let state_file = state_dir.join("warren.state");
        let state = StateFolder::open(state_dir, &state_file, &mut SystemEntropy)?;
        // No program of this machine takes packets, so none wait for it.
        let (device, _host) = memory::pair(MemoryOptions {
            queues: 1,
            capacity: 0,
            offloads: Offloads::default(),
            mtu: TUNNEL_MTU.into(),
        })
        .map_err(system("cannot make a device in memory"))?;
        let socket_options = UdpOptions::default();
        let links = LinkMonitor::start(&[]).await;
        let (inbox, messages) = Inbox::new();
        // Programs of this machine do not ask MagicDNS.
        let (_, resolver_config) = watch::channel(ResolverConfig::default());
        let (done, results) = mpsc::unbounded_channel();
        let platform = Platform {
            device: TunnelDevice::Memory(device),
            in_threads: 1,
            sockets: bind_pair(&[0], &socket_options)?,
            socket_options,
            link: links.current(),
            host: Host::untouched(done),
            resolver_config,
            dialer: Dialer::new(),
            aead: aead::choose()?,
            port_mapping: None,
            programs: None,
            services: None,
            ssh: None,
        };
        let engine_task = platform.engine_task(state, inbox.clone())?;
        let task = tokio::spawn(engine_task.run(messages, results));
        Ok(Self { inbox, task })
    }

    /// The way to send requests to the node.
    pub fn handle(&self) -> NodeHandle {
        NodeHandle::new(self.inbox.clone())
    }

    /// Ends the node and waits until its state is on disk.
    pub async fn stop(mut self) {
        self.inbox.send(Message::Stop);
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the node ended early; its state on disk may be old");
        }
    }
}

impl Drop for DetachedNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}
