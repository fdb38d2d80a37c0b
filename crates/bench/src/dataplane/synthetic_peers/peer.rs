//! One synthetic peer: it answers disco pings, completes handshakes, data
//! counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use warren_dial::SystemEntropy;
use warren_keys::sealed_box::SharedKey;
use warren_keys::{DiscoPublic, DiscoSecret, Entropy as _, NodePublic};
use warren_tunnel::{Activity, Event, Handshakes, PeerIndex, Session, Source};
use warren_wire::disco::{self, Envelope, Message, Pong};
use warren_wire::wireguard::is_transport;

use super::join::Secrets;
use super::{Counts, Line};

/// The node under test, in each peer's own table.
const NODE: PeerIndex = PeerIndex(0);
/// Datagrams up to this length carry no datagram of the load.
const NO_LOAD: usize = 80;
/// Every one of so many is opened.
const OPENED: u64 = 64;
/// Header and tag, with nothing between.
const EMPTY: usize = 32;

/// One peer; its socket is in the [`Line`] beside it.
pub struct Peer {
    disco: DiscoSecret,
    /// The node's key for path finding, and the box with it.
    friend: Option<(DiscoPublic, SharedKey)>,
    handshakes: Handshakes,
    sessions: Vec<Arc<Session>>,
    /// Sessions of the node's making, of which nothing has come yet.
    unconfirmed: Vec<u32>,
    activity: Activity,
}

fn wall() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

impl Peer {
    /// A peer that knows no other node.
    pub fn new(secrets: Secrets) -> Self {
        Self {
            disco: secrets.disco,
            friend: None,
            handshakes: Handshakes::new(secrets.node, Box::new(SystemEntropy)),
            sessions: Vec::new(),
            unconfirmed: Vec::new(),
            activity: Activity::default(),
        }
    }

    /// Lets the node in.
    pub fn meet(&mut self, now: Instant, node: NodePublic) {
        self.handshakes.add_peer(now, NODE, node);
    }

    /// Takes a datagram.
    pub fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        line: &Line,
        counts: &Counts,
    ) {
        if is_transport(datagram) {
            self.data(now, from, datagram, line, counts);
        } else if disco::looks_like_disco(datagram) {
            self.pinged(from, datagram, line);
        } else {
            let source = Source::Udp(from);
            self.handshakes
                .handle_datagram(now, wall(), source, datagram);
            self.settle(now, Some(from), line);
        }
    }

    fn data(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        line: &Line,
        counts: &Counts,
    ) {
        self.activity.last_received = Some(now);
        let loaded = datagram.len() > NO_LOAD;
        let mut look = !self.unconfirmed.is_empty();
        if loaded {
            self.activity.last_data_received = Some(now);
            let before = counts.datagrams.fetch_add(1, Ordering::Relaxed);
            look |= before.is_multiple_of(OPENED);
        }
        if !look {
            return;
        }
        let index = datagram.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let index = index.map_or(0, u32::from_le_bytes);
        let session = self.sessions.iter().find(|it| it.local_index() == index);
        let opened = session.is_some_and(|it| it.open_in_place(datagram).is_ok());
        let count = if opened { &counts.opened } else { &counts.bad };
        count.fetch_add(1, Ordering::Relaxed);
        if opened && self.unconfirmed.contains(&index) {
            self.unconfirmed.retain(|it| *it != index);
            self.handshakes.session_confirmed(now, index);
            self.settle(now, Some(from), line);
        }
    }

    fn pinged(&mut self, from: SocketAddr, packet: &[u8], line: &Line) {
        let Ok(envelope) = Envelope::parse(packet) else {
            return;
        };
        if self.friend.as_ref().map(|(key, _)| *key) != Some(envelope.sender) {
            let shared = self.disco.shared_with(envelope.sender.as_bytes());
            self.friend = shared.ok().map(|shared| (envelope.sender, shared));
        }
        let Some((_, shared)) = &self.friend else {
            return;
        };
        let opened = shared.open(envelope.sealed).ok();
        let message = opened.and_then(|opened| Message::parse(&opened).ok());
        if let Some(Message::Ping(ping)) = message {
            let pong = Message::Pong(Pong {
                tx: ping.tx,
                source: from,
            });
            let nonce = SystemEntropy.bytes();
            let answer = Envelope::seal(&self.disco.public(), shared, &nonce, &pong);
            // A full socket loses it, and the node asks again.
            drop(line.socket.send_to(from, &answer));
        }
    }

    /// Looks at the timers.
    pub fn tick(&mut self, now: Instant, line: &Line) {
        let wall = wall();
        if self.activity.last_received.is_some() {
            self.handshakes
                .note_activity(now, wall, NODE, self.activity);
        }
        self.handshakes.handle_timeout(now, wall);
        self.settle(now, None, line);
    }

    /// Carries out what the handshakes want. `from` is where the node is, if
    /// it just spoke.
    fn settle(&mut self, _now: Instant, from: Option<SocketAddr>, line: &Line) {
        while let Some(event) = self.handshakes.poll_event() {
            let known = line.way().as_ref().map(|(_, to)| *to).or(from);
            match event {
                Event::Send {
                    reply_to, datagram, ..
                } => {
                    let to = match reply_to {
                        Some(Source::Udp(to)) => Some(to),
                        _ => known,
                    };
                    if let Some(to) = to {
                        drop(line.socket.send_to(to, &datagram));
                    }
                }
                Event::NewSession {
                    session, confirmed, ..
                } => {
                    self.sessions.push(Arc::clone(&session));
                    if confirmed {
                        *line.way() = known.map(|to| (session, to));
                    } else {
                        self.unconfirmed.push(session.local_index());
                    }
                }
                Event::SessionConfirmed { session, .. } => {
                    *line.way() = from.or(known).map(|to| (session, to));
                }
                Event::SessionExpired { local_index, .. } => {
                    self.sessions.retain(|it| it.local_index() != local_index);
                    self.unconfirmed.retain(|it| *it != local_index);
                }
                Event::SendKeepalive { .. } => {
                    let way = line.way().clone();
                    if let Some((session, to)) = way
                        && let Some(counter) = session.reserve(1)
                    {
                        let mut empty = [0; EMPTY];
                        if session.seal_in_place(counter, &mut empty).is_ok() {
                            drop(line.socket.send_to(to, &empty));
                        }
                    }
                }
                Event::HandshakeFailed { .. } => {}
            }
        }
    }
}
