//! The sockets of port searches, and those that are kept for paths.
//!
//! While a search runs, a thread of its own waits at its sockets: they are many, receive
//! next to nothing, and exist for seconds. The socket that won is kept for one address of a
//! peer: the packet threads send to that address through it and receive from it, in batches
//! as with the first sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use warren_host::poll::{Watch, wait};
use warren_host::udp::{RecvBatch, UdpOptions, UdpSocket};
use warren_host::wake::Waker;
use warren_node_types::{SearchSocket, SocketOrder};

use super::{EngineSink, PacketThreads};

/// Longest life of the thread of a search, whatever the engine orders.
const LONGEST_SEARCH: Duration = Duration::from_secs(30);
/// Messages taken from a socket at once: more than a peer sends to one.
const RECEIVE_BATCH: usize = 2;

/// The sockets that are kept, each with the peer's address, sorted by it.
#[derive(Debug, Default)]
pub(crate) struct KeptSockets(Vec<(SocketAddr, Arc<UdpSocket>)>);

impl KeptSockets {
    /// The socket for an address.
    #[inline]
    pub(crate) fn get(&self, remote: SocketAddr) -> Option<&Arc<UdpSocket>> {
        if self.0.is_empty() {
            return None;
        }
        let at = self.0.binary_search_by_key(&remote, |(remote, _)| *remote);
        self.0.get(at.ok()?).map(|(_, socket)| socket)
    }

    /// All of them.
    pub(crate) fn sockets(&self) -> &[(SocketAddr, Arc<UdpSocket>)] {
        &self.0
    }

    fn without(&self, remote: SocketAddr) -> Self {
        let others = self.0.iter().filter(|(other, _)| *other != remote);
        Self(others.cloned().collect())
    }

    fn with(&self, remote: SocketAddr, socket: Arc<UdpSocket>) -> Self {
        let mut sockets = self.without(remote);
        sockets.0.push((remote, socket));
        sockets.0.sort_by_key(|(remote, _)| *remote);
        sockets
    }
}

/// A running search. Dropping it ends the thread, and closes the sockets that are not
/// kept.
pub(crate) struct Search {
    number: u32,
    sockets: Arc<[Arc<UdpSocket>]>,
    end: Arc<End>,
}

struct End {
    waker: Waker,
    is_over: AtomicBool,
}

impl Drop for Search {
    fn drop(&mut self) {
        self.end.is_over.store(true, Ordering::Release);
        self.end.waker.wake();
    }
}

impl Search {
    /// Opens up to `count` sockets: fewer where the system gives no more.
    fn open(
        number: u32,
        count: u16,
        options: &UdpOptions,
        engine: &Arc<dyn EngineSink>,
    ) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut sockets = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            match UdpSocket::bind(any, options) {
                Ok(socket) => sockets.push(Arc::new(socket)),
                Err(error) => {
                    tracing::debug!(%error, opened = sockets.len(), "no more sockets for a search");
                    break;
                }
            }
        }
        let sockets: Arc<[Arc<UdpSocket>]> = sockets.into();
        let end = Arc::new(End {
            waker: Waker::new()?,
            is_over: AtomicBool::new(false),
        });
        let receiver = Receiver {
            number,
            sockets: Arc::clone(&sockets),
            end: Arc::clone(&end),
            engine: Arc::clone(engine),
        };
        std::thread::Builder::new()
            .name("port search".to_owned())
            .spawn(move || receiver.run())?;
        Ok(Self {
            number,
            sockets,
            end,
        })
    }

    fn socket(&self, socket: SearchSocket) -> Option<&Arc<UdpSocket>> {
        let ours = socket.search == self.number;
        self.sockets
            .get(usize::from(socket.number))
            .filter(|_| ours)
    }
}

/// The thread of a search.
struct Receiver {
    number: u32,
    sockets: Arc<[Arc<UdpSocket>]>,
    end: Arc<End>,
    engine: Arc<dyn EngineSink>,
}

impl Receiver {
    fn run(self) {
        let mut batch = RecvBatch::new(RECEIVE_BATCH);
        loop {
            let sockets = self.sockets.iter().map(|socket| Watch::readable(&**socket));
            let waker = std::iter::once(Watch::readable(&self.end.waker));
            let mut watches: Vec<Watch<'_>> = waker.chain(sockets).collect();
            let ready = wait(&mut watches, Some(LONGEST_SEARCH));
            if !matches!(ready, Ok(1..)) {
                return;
            }
            for (socket, watch) in self.sockets.iter().zip(watches.iter().skip(1)) {
                // Datagrams at a socket that was kept are for the packet threads.
                if self.end.is_over.load(Ordering::Acquire) {
                    return;
                }
                if watch.is_ready() {
                    self.receive(socket, &mut batch);
                }
            }
            if self.end.is_over.load(Ordering::Acquire) {
                return;
            }
        }
    }

    fn receive(&self, socket: &Arc<UdpSocket>, batch: &mut RecvBatch) {
        // An error belongs to an earlier datagram of ours (ICMP).
        if socket.recv_batch(batch).is_err() {
            return;
        }
        let number = self
            .sockets
            .iter()
            .position(|other| Arc::ptr_eq(other, socket));
        let number = number.and_then(|number| u16::try_from(number).ok());
        let Some(number) = number else { return };
        let socket = SearchSocket {
            search: self.number,
            number,
        };
        for mut buffer in batch.buffers() {
            let from = buffer.from;
            for datagram in buffer.datagrams() {
                self.engine.search_datagram(socket, from, datagram);
            }
        }
    }
}

impl PacketThreads {
    /// Carries out an order about the sockets of port searches. Sockets that the system refuses
    /// are left out: the search then finds nothing.
    pub fn order_sockets(&mut self, order: SocketOrder, options: &UdpOptions) {
        match order {
            SocketOrder::Open { search, count } => {
                self.search = None;
                match Search::open(search, count, options, &self.shared.engine) {
                    Ok(search) => self.search = Some(search),
                    Err(error) => tracing::debug!(%error, "no port search"),
                }
            }
            SocketOrder::Send { socket, to, packet } => {
                let socket = self.search.as_ref().and_then(|it| it.socket(socket));
                if let Some(Err(error)) = socket.map(|socket| socket.send_to(to, &packet)) {
                    self.shared.count_send_failure();
                    tracing::trace!(%to, %error, "probe not sent");
                }
            }
            SocketOrder::Keep { socket, remote } => {
                let socket = self.search.as_ref().and_then(|it| it.socket(socket));
                if let Some(socket) = socket.map(Arc::clone) {
                    self.change_kept(|kept| kept.with(remote, socket));
                }
            }
            SocketOrder::Close { search } => {
                self.search = self.search.take().filter(|it| it.number != search);
            }
            SocketOrder::Release { remote } => self.change_kept(|kept| kept.without(remote)),
            SocketOrder::CloseAll => {
                self.search = None;
                self.change_kept(|_| KeptSockets::default());
            }
        }
    }

    /// The number of sockets that are kept for paths.
    #[must_use]
    pub fn kept_sockets(&self) -> usize {
        self.shared.kept.load().sockets().len()
    }

    fn change_kept(&self, change: impl FnOnce(&KeptSockets) -> KeptSockets) {
        let kept = change(&self.shared.kept.load());
        self.shared.kept.store(Arc::new(kept));
        self.shared.in_waker.wake();
    }
}
