//! The relay's side of one connection, after its login.
//!
//! [`Connection`] belongs to the task that reads: it turns frames into
//! [`Request`]s, checks that the client has the right to each, and notices
//! frames that no honest client sends. [`Keepalive`] belongs to the task that
//! writes. Neither needs a lock.

use std::time::{Duration, Instant};

use warren_keys::{Entropy, NodePublic};
use warren_wire::derp::{Frame, FrameError, FrameKind, KEY_LEN, MAX_PACKET, MAX_PING};

use crate::TokenBucket;

/// The largest payload taken after the login; longer frames of unknown kind
/// are skipped.
pub const MAX_PAYLOAD: usize = 2 * KEY_LEN + MAX_PACKET;
/// The longest time from TCP connection to login.
pub const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time that a write to a node may make no progress.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The speed in bytes per second that a receiver reaches at least over one write of
/// the queue. One that keeps a connection by reading a byte now and then does not.
pub const SLOWEST_READER: usize = 4 * 1024;
/// The longest time that a write to a mesh peer may make no progress.
pub const MESH_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_JITTER_MILLIS: u64 = 5_000;
/// A home that moves this soon after connecting is not a move.
const SETTLING: Duration = Duration::from_secs(5);

/// A client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Carry a packet to a client of this relay or its mesh.
    Send {
        /// The receiver's key.
        to: NodePublic,
        /// The packet.
        packet: &'a [u8],
    },
    /// Carry another relay's client's packet to a client of this relay.
    Forward {
        /// The key of the client that sent it to that relay.
        from: NodePublic,
        /// The receiver's key.
        to: NodePublic,
        /// The packet.
        packet: &'a [u8],
    },
    /// This relay has become (true) or is no longer the client's home.
    Home {
        /// Whether this relay is the client's home.
        is_home: bool,
        /// Whether it is a move, and not just part of the start.
        moved: bool,
    },
    /// Send it the arrivals and departures of all clients.
    Watch,
    /// Close the connections of this key.
    Close(NodePublic),
    /// Answer a ping with these bytes.
    Pong([u8; 8]),
    /// Nothing to do.
    Nothing,
    /// A frame of unknown kind: nothing to do, worth counting.
    Unknown,
}

/// A client breaks the protocol: close its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Malformed frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Something only relays of the mesh may ask for.
    #[error("{0:?} without the mesh key")]
    NotAMeshPeer(FrameKind),
    /// See [`MAX_PING`].
    #[error("ping of {0} bytes, at most 1000 are taken")]
    PingTooLong(usize),
}

/// The state that the reading task keeps about its client.
#[derive(Debug)]
pub struct Connection {
    key: NodePublic,
    is_mesh_peer: bool,
    is_home: bool,
    since: Instant,
    not_here: TokenBucket,
    rate: Option<TokenBucket>,
}

impl Connection {
    /// A client that has just logged in.
    pub fn new(now: Instant, key: NodePublic, is_mesh_peer: bool) -> Self {
        Self {
            key,
            is_mesh_peer,
            is_home: false,
            since: now,
            not_here: TokenBucket::new(now, 1, 3),
            rate: None,
        }
    }

    /// Limits what the client may send, in bytes a second and at once. The
    /// burst is at least one largest packet. Mesh peers are never limited.
    pub fn limit(&mut self, now: Instant, bytes_per_second: u64, burst: u64) {
        let burst = burst.max((MAX_PACKET + KEY_LEN) as u64);
        let limited = bytes_per_second > 0 && !self.is_mesh_peer;
        self.rate = limited.then(|| TokenBucket::new(now, bytes_per_second, burst));
    }

    /// The client's key.
    pub fn key(&self) -> NodePublic {
        self.key
    }

    /// Whether the client is a relay of our mesh.
    pub fn is_mesh_peer(&self) -> bool {
        self.is_mesh_peer
    }

    /// Whether this relay is the client's home.
    pub fn is_home(&self) -> bool {
        self.is_home
    }

    /// How long to stop reading after `bytes` bytes came: back-pressure
    /// through TCP, nothing is dropped.
    pub fn pause_after(&mut self, now: Instant, bytes: usize) -> Duration {
        self.rate
            .as_mut()
            .map_or(Duration::ZERO, |rate| rate.take_and_wait(now, bytes as u64))
    }

    /// Whether to report to the client that the target of its disco packet is
    /// not here: three at once, then one a second.
    pub fn may_say_not_here(&mut self, now: Instant) -> bool {
        self.not_here.try_take(now, 1)
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// [`Violation`]: close the connection.
    pub fn handle_frame<'a>(
        &mut self,
        now: Instant,
        kind: FrameKind,
        payload: &'a [u8],
    ) -> Result<Request<'a>, Violation> {
        match kind {
            FrameKind::SendPacket
            | FrameKind::ForwardPacket
            | FrameKind::NotePreferred
            | FrameKind::WatchConns
            | FrameKind::ClosePeer
            | FrameKind::Ping => {}
            FrameKind::Pong => return Ok(Request::Nothing),
            FrameKind::ServerKey
            | FrameKind::ClientInfo
            | FrameKind::ServerInfo
            | FrameKind::RecvPacket
            | FrameKind::KeepAlive
            | FrameKind::PeerGone
            | FrameKind::PeerPresent
            | FrameKind::Health
            | FrameKind::Restarting
            | FrameKind::Unknown(_) => return Ok(Request::Unknown),
        }
        if kind == FrameKind::Ping && payload.len() > MAX_PING {
            return Err(Violation::PingTooLong(payload.len()));
        }
        Ok(match Frame::parse(kind, payload)? {
            Frame::SendPacket { to, packet } => Request::Send { to, packet },
            Frame::ForwardPacket { from, to, packet } => {
                self.needs_mesh(kind)?;
                Request::Forward { from, to, packet }
            }
            Frame::NotePreferred(is_home) => {
                if is_home == self.is_home {
                    return Ok(Request::Nothing);
                }
                self.is_home = is_home;
                let moved = now.saturating_duration_since(self.since) > SETTLING;
                Request::Home { is_home, moved }
            }
            Frame::WatchConns => {
                self.needs_mesh(kind)?;
                Request::Watch
            }
            Frame::ClosePeer(key) => {
                self.needs_mesh(kind)?;
                Request::Close(key)
            }
            Frame::Ping(data) => Request::Pong(data),
            Frame::ServerKey { .. }
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::PeerGone { .. }
            | Frame::PeerPresent { .. }
            | Frame::Pong(_)
            | Frame::Health(_)
            | Frame::Restarting { .. }
            | Frame::Unknown { .. } => Request::Unknown,
        })
    }

    fn needs_mesh(&self, kind: FrameKind) -> Result<(), Violation> {
        if self.is_mesh_peer {
            Ok(())
        } else {
            Err(Violation::NotAMeshPeer(kind))
        }
    }
}

/// The schedule of keepalives to a client: every 60 s and a jitter
/// of up to 5 s chosen once, also on busy connections.
#[derive(Debug)]
pub struct Keepalive {
    every: Duration,
    next: Instant,
}

impl Keepalive {
    /// The timer of a connection that starts now.
    pub fn new(now: Instant, entropy: &mut dyn Entropy) -> Self {
        let mut random = [0; 8];
        entropy.fill(&mut random);
        let jitter = u64::from_le_bytes(random) % KEEPALIVE_JITTER_MILLIS;
        let every = KEEPALIVE + Duration::from_millis(jitter);
        Self {
            every,
            next: now + every,
        }
    }

    /// When the next one is due.
    pub fn next_deadline(&self) -> Instant {
        self.next
    }

    /// Whether to send one now; early calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.every;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use warren_testkit::FixedEntropy;
    use warren_wire::derp::split;

    fn connection(mesh: bool) -> Connection {
        Connection::new(Instant::now(), NodePublic::from_bytes([1; 32]), mesh)
    }

    fn handle(connection: &mut Connection, frame: &Frame<'_>) -> Result<String, Violation> {
        let mut bytes = Vec::new();
        frame.emit(&mut bytes);
        let (kind, payload, _) = split(&bytes).unwrap();
        connection
            .handle_frame(Instant::now(), kind, payload)
            .map(|r| format!("{r:?}"))
    }

    #[test]
    fn only_relays_of_the_mesh_may_watch_forward_and_close() {
        let key = NodePublic::from_bytes([2; 32]);
        for frame in [
            Frame::WatchConns,
            Frame::ClosePeer(key),
            Frame::ForwardPacket {
                from: key,
                to: key,
                packet: b"x",
            },
        ] {
            let refused = handle(&mut connection(false), &frame);
            assert_eq!(refused, Err(Violation::NotAMeshPeer(frame.kind())));
            assert!(handle(&mut connection(true), &frame).is_ok());
        }
    }

    #[test]
    fn wrong_lengths_close_and_strange_kinds_do_not() {
        let now = Instant::now();
        for (kind, len) in [
            (FrameKind::NotePreferred, 0usize),
            (FrameKind::NotePreferred, 2),
            (FrameKind::WatchConns, 1),
            (FrameKind::ClosePeer, 31),
            (FrameKind::SendPacket, 31),
            (FrameKind::SendPacket, 32 + MAX_PACKET + 1),
            (FrameKind::ForwardPacket, 63),
            (FrameKind::Ping, 7),
            (FrameKind::Ping, 1001),
        ] {
            let payload = vec![0; len];
            let got = connection(true).handle_frame(now, kind, &payload);
            assert!(got.is_err(), "{kind:?} of {len} bytes gave {got:?}");
        }
        for kind in [
            FrameKind::Unknown(0x70),
            FrameKind::ClientInfo,
            FrameKind::Health,
        ] {
            let got = connection(false).handle_frame(now, kind, &[1, 2, 3]);
            assert_eq!(got, Ok(Request::Unknown));
        }
        let ping = connection(false).handle_frame(now, FrameKind::Ping, &[5; 1000]);
        assert_eq!(ping, Ok(Request::Pong([5; 8])));
    }

    #[test]
    fn home_is_told_once_and_early_changes_are_no_moves() {
        let start = Instant::now();
        let mut connection = Connection::new(start, NodePublic::from_bytes([1; 32]), false);
        let mut note = |after: u64, home: u8| {
            let now = start + Duration::from_secs(after);
            let payload: &'static [u8] = if home == 1 { &[1] } else { &[0] };
            connection.handle_frame(now, FrameKind::NotePreferred, payload)
        };
        assert_eq!(
            note(0, 1),
            Ok(Request::Home {
                is_home: true,
                moved: false
            })
        );
        assert_eq!(note(1, 1), Ok(Request::Nothing));
        assert_eq!(
            note(9, 0),
            Ok(Request::Home {
                is_home: false,
                moved: true
            })
        );
    }

    #[test]
    fn limits_make_the_reader_pause() {
        let now = Instant::now();
        let mut free = connection(false);
        assert_eq!(free.pause_after(now, 1_000_000), Duration::ZERO);
        let mut limited = connection(false);
        limited.limit(now, 65_568, 0);
        assert_eq!(limited.pause_after(now, 65_568), Duration::ZERO);
        assert_eq!(limited.pause_after(now, 65_568), Duration::from_secs(1));
        let mut mesh = connection(true);
        mesh.limit(now, 1, 1);
        assert_eq!(mesh.pause_after(now, 1_000_000), Duration::ZERO);
    }

    #[test]
    fn keepalives_come_every_minute_with_jitter() {
        let start = Instant::now();
        let mut keepalive = Keepalive::new(start, &mut FixedEntropy(0xff));
        let first = keepalive.next_deadline();
        assert!(
            first >= start + Duration::from_secs(60) && first < start + Duration::from_secs(65)
        );
        assert!(!keepalive.handle_timeout(first - Duration::from_millis(1)));
        assert!(keepalive.handle_timeout(first));
        assert_eq!(keepalive.next_deadline() - first, first - start);
    }

    proptest! {
        #[test]
        fn connection_never_panics_on_a_frame(kind: u8, payload: Vec<u8>, mesh: bool) {
            let _ = connection(mesh).handle_frame(
                Instant::now(), FrameKind::from_code(kind), &payload,
            );
        }
    }
}
