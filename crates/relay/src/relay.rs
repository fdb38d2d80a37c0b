//! The relay as one handle: what all its connections share.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use warren_derp::{Identity, Limits, Notice, QueueBudget, Registry, SendQueue};
use warren_dial::connections::{ConnectionLimits, ConnectionTable};
use warren_dial::derp::DerpSender;
use warren_keys::{DerpMeshKey, NodePublic, NodeSecret};
use warren_wire::derp::Frame;

use crate::bootstrap::BootstrapDns;
use crate::metrics::Metrics;
use crate::timeouts::Timeouts;

/// Connections at a time, unless the configuration says otherwise.
pub const MAX_CONNECTIONS: usize = 20_000;

/// Bytes that may wait for all clients together. An honest relay at 10 Gbit/s holds
/// 60 MB in the 50 ms that data may wait.
const QUEUE_BYTES: usize = 128 << 20;

/// A client that has proven its key and asks to use the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applicant {
    /// Its node key.
    pub key: NodePublic,
    /// The address it connects from.
    pub source: IpAddr,
}

/// Decides which clients may use the relay. It is not called for mesh peers.
pub trait Admission: Send + Sync {
    /// Whether `applicant` may use the relay. Answer within ten seconds.
    fn admit(&self, applicant: Applicant) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;

    /// The time after which a client is asked about again while it is connected, and
    /// again after that; its connection ends when it is not admitted any more.
    /// `None`: an admission holds for the whole connection.
    fn recheck_after(&self) -> Option<Duration> {
        None
    }
}

/// The time after which a function is asked again, which costs next to nothing.
const RECHECK: Duration = Duration::from_secs(30);

/// An admission made of a function that answers at once.
impl<F: Fn(Applicant) -> bool + Send + Sync> Admission for F {
    fn recheck_after(&self) -> Option<Duration> {
        Some(RECHECK)
    }

    fn admit(&self, applicant: Applicant) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(self(applicant)))
    }
}

/// The rate at which one client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// On average.
    pub bytes_per_second: u64,
    /// At once; at least one largest packet.
    pub burst: u64,
}

/// The configuration of a relay.
#[derive(Clone)]
pub struct Config {
    /// The relay's key pair.
    pub secret: NodeSecret,
    /// Shared with the other relays of the region, if there are any.
    pub mesh_key: Option<DerpMeshKey>,
    /// The check that admits clients; all clients are admitted if `None`.
    pub admission: Option<Arc<dyn Admission>>,
    /// The rate at which a client may send; without limit if `None`.
    pub rate_limit: Option<RateLimit>,
    /// The longest time a connection may stay in each phase before its login.
    pub timeouts: Timeouts,
    /// Connections at a time, including those that have not logged in.
    pub limits: ConnectionLimits,
    /// Addresses of control servers, served to clients without DNS.
    pub bootstrap_dns: BootstrapDns,
}

impl Config {
    /// A relay for all clients, without mesh and limits.
    pub fn new(secret: NodeSecret) -> Self {
        Self {
            secret,
            mesh_key: None,
            admission: None,
            rate_limit: None,
            timeouts: Timeouts::default(),
            limits: ConnectionLimits::new(MAX_CONNECTIONS, u64::MAX),
            bootstrap_dns: BootstrapDns::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("secret", &self.secret)
            .field("mesh_key", &self.mesh_key)
            .field("admission", &self.admission.is_some())
            .field("rate_limit", &self.rate_limit)
            .field("timeouts", &self.timeouts)
            .field("limits", &self.limits)
            .field("bootstrap_dns", &self.bootstrap_dns)
            .finish()
    }
}

/// A relay. Clones are handles of the same one.
#[derive(Clone)]
pub struct Relay {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("key", &self.public_key())
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay without connections.
    pub fn new(config: Config) -> Self {
        let identity = Identity::new(config.secret, config.mesh_key);
        let registry = Registry::new(identity.public());
        Self {
            shared: Arc::new(Shared {
                identity,
                admission: config.admission,
                rate_limit: config.rate_limit,
                bootstrap_dns: config.bootstrap_dns,
                timeouts: config.timeouts,
                max_connections: config.limits.all,
                slots: ConnectionTable::new(config.limits),
                registry: RwLock::new(registry),
                generation: AtomicU64::new(0),
                departures: AtomicU64::new(0),
                next_id: AtomicU64::new(1),
                homes: AtomicUsize::new(0),
                queues: Arc::new(QueueBudget::new(QUEUE_BYTES)),
                metrics: Metrics::default(),
                closing: CancellationToken::new(),
            }),
        }
    }

    /// The key that clients of this relay log in to.
    pub fn public_key(&self) -> NodePublic {
        self.shared.identity.public()
    }

    /// Connections that are logged in.
    pub fn connections(&self) -> usize {
        self.shared.read().census().connections
    }

    /// Connections of the relay's own listeners, from the moment they are
    /// accepted.
    pub fn open_connections(&self) -> usize {
        self.shared.slots.len()
    }

    /// Numbers in the text form of Prometheus.
    pub fn metrics(&self) -> String {
        let census = self.shared.read().census();
        let homes = self.shared.homes.load(Ordering::Relaxed);
        let queued = self.shared.queues.used();
        self.shared.metrics.render(&census, homes, queued)
    }

    /// Closes every connection and takes no more.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }
}

/// Does something when the future that holds it ends or is dropped.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// The state that all connections share.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) admission: Option<Arc<dyn Admission>>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) bootstrap_dns: BootstrapDns,
    pub(crate) timeouts: Timeouts,
    pub(crate) max_connections: usize,
    pub(crate) slots: Arc<ConnectionTable>,
    registry: RwLock<Registry<Arc<Outbox>, DerpSender>>,
    /// Copy of the registry's generation, to be read without its lock.
    generation: AtomicU64,
    /// Counts departures of keys: when it changes, the noted pairs of source
    /// and receiver may be forgotten.
    departures: AtomicU64,
    next_id: AtomicU64,
    pub(crate) homes: AtomicUsize,
    /// The budget of all send queues together.
    pub(crate) queues: Arc<QueueBudget>,
    pub(crate) metrics: Metrics,
    pub(crate) closing: CancellationToken,
}

impl Shared {
    /// Looks something up. Never held across a wait, nor while changing.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Registry<Arc<Outbox>, DerpSender>> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registry, and delivers the notices before another change is
    /// possible: watchers must receive changes in order.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut Registry<Arc<Outbox>, DerpSender>) -> Vec<Notice<Arc<Outbox>>>,
    ) {
        let mut registry = self
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let notices = change(&mut registry);
        for notice in &notices {
            let frame = notice.news.frame();
            if matches!(frame, Frame::PeerGone { .. }) {
                self.metrics.peer_gone_disconnected.add(1);
            }
            notice.to.control(&frame);
        }
        self.generation
            .store(registry.generation(), Ordering::Release);
    }

    /// As [`change`](Self::change), for changes that make keys leave.
    pub(crate) fn depart(
        &self,
        change: impl FnOnce(&mut Registry<Arc<Outbox>, DerpSender>) -> Vec<Notice<Arc<Outbox>>>,
    ) {
        self.change(change);
        self.departures.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn departures(&self) -> u64 {
        self.departures.load(Ordering::Acquire)
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// The way to one connection, for all tasks that have frames for it.
pub(crate) struct Outbox {
    queue: Mutex<SendQueue>,
    pub(crate) wake: Notify,
    pub(crate) close: CancellationToken,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(limits: Limits, budget: Arc<QueueBudget>, close: CancellationToken) -> Self {
        Self {
            queue: Mutex::new(SendQueue::with_budget(limits, budget)),
            wake: Notify::new(),
            close,
        }
    }

    /// The queue; held for a copy into it or a swap out of it, never longer.
    pub(crate) fn queue(&self) -> MutexGuard<'_, SendQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a control frame and wakes the writer. If too many wait already,
    /// the connection closes.
    pub(crate) fn control(&self, frame: &Frame<'_>) {
        if self.queue().push_control(frame).is_err() {
            self.close.cancel();
        }
        self.wake.notify_one();
    }
}
