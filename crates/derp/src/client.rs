//! The client state machine for one relay, used by nodes and by other relays.
//!
//! It starts in one of two ways. A client that knows the relay's key (from the
//! relay's TLS certificate chain) logs in at once and ignores the key frame
//! that comes later. A client that does not know the key waits for that frame.
//! Other frames may follow the login at once; [`Event::Connected`] reports that
//! the relay accepted it.
//!
//! The caller hands in each [`RawFrame`] as it lies in the receive buffer, and
//! writes what [`Client::take_output`] has collected (login, pongs). Frames
//! that are too short or of unknown kind are lost, not fatal, as long as the
//! stream stays readable.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_keys::sealed_box::SharedKey;
use warren_keys::{DerpMeshKey, Entropy, NodePublic, NodeSecret};
use warren_wire::derp::{Frame, FrameKind, KEY_LEN, MAX_PACKET, PeerFlags, PeerGoneReason};

use crate::RawFrame;
use crate::login::{self, ClientInfo, LoginError, ServerInfo};

/// The largest payload a client takes.
pub const MAX_PAYLOAD: usize = 1024 * 1024;
/// A relay that says nothing for this long is gone: it sends a keepalive every
/// 60 to 65 seconds.
pub const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// The identity and role with which a client logs in.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The node's key pair; a relay's own when it logs in to its mesh.
    pub secret: NodeSecret,
    /// Whether this relay is our home from the start.
    pub home: bool,
    /// Proves that we are a relay of the same mesh.
    pub mesh_key: Option<DerpMeshKey>,
    /// Whether to receive the arrivals and departures of clients; needs the mesh key.
    pub watch: bool,
    /// Whether to say that we are a prober.
    pub is_prober: bool,
    /// A label for the relay's statistics.
    pub app_name: String,
}

impl ClientConfig {
    /// An ordinary node.
    pub fn node(secret: NodeSecret) -> Self {
        Self {
            secret,
            home: false,
            mesh_key: None,
            watch: false,
            is_prober: false,
            app_name: String::new(),
        }
    }
}

/// An event received from a relay.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The login was taken.
    Connected(ServerInfo),
    /// A packet, where it lies in the receive buffer.
    Packet {
        /// The sender's key. Only the relay vouches for it.
        from: NodePublic,
        /// At most 65,536 bytes.
        packet: &'a mut [u8],
    },
    /// A peer cannot be reached through this relay (any more).
    PeerGone {
        /// The peer's node key.
        key: NodePublic,
        /// The reason that the relay gives.
        reason: PeerGoneReason,
    },
    /// A client has connected to the relay we watch.
    PeerPresent {
        /// The peer's node key.
        key: NodePublic,
        /// The address from which it connected.
        source: Option<SocketAddr>,
        /// The kind of client.
        flags: PeerFlags,
    },
    /// The problem that the relay reports with this connection; `None` clears it.
    Health(Option<&'a str>),
    /// The relay is about to restart.
    Restarting {
        /// When to come back.
        reconnect_in: Duration,
        /// For how long to keep trying.
        try_for: Duration,
    },
    /// The answer to our ping.
    Pong([u8; 8]),
}

/// The connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Login failed.
    #[error("relay login: {0}")]
    Login(#[from] LoginError),
    /// A frame was sent that no relay sends before the login.
    #[error("the relay sent {0:?} before its key")]
    TooEarly(FrameKind),
    /// See [`READ_TIMEOUT`].
    #[error("the relay was silent for 120 s")]
    Silent,
}

#[derive(Debug)]
enum Phase {
    AwaitKey,
    AwaitInfo {
        relay: NodePublic,
        shared: SharedKey,
    },
    Ready {
        relay: NodePublic,
    },
}

/// One connection to a relay. See the module docs.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    phase: Phase,
    last_received: Instant,
    output: Vec<u8>,
}

impl Client {
    /// A client that waits for the relay's key.
    pub fn new(now: Instant, config: ClientConfig) -> Self {
        Self {
            config,
            phase: Phase::AwaitKey,
            last_received: now,
            output: Vec::new(),
        }
    }

    /// A client that knows the relay's key; the login is already in
    /// [`take_output`](Self::take_output).
    ///
    /// # Errors
    /// [`LoginError::BadKey`] when `relay` is not a usable key.
    pub fn fast_start(
        now: Instant,
        config: ClientConfig,
        relay: NodePublic,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, LoginError> {
        let mut client = Self::new(now, config);
        client.log_in(relay, entropy)?;
        Ok(client)
    }

    fn log_in(&mut self, relay: NodePublic, entropy: &mut dyn Entropy) -> Result<(), LoginError> {
        let info = ClientInfo {
            mesh_key: self.config.mesh_key.clone(),
            is_prober: self.config.is_prober,
            app_name: self.config.app_name.clone(),
            ..ClientInfo::default()
        };
        let shared = login::log_in(&self.config.secret, relay, &info, entropy, &mut self.output)?;
        if self.config.home {
            Frame::NotePreferred(true).emit(&mut self.output);
        }
        if self.config.watch {
            Frame::WatchConns.emit(&mut self.output);
        }
        self.phase = Phase::AwaitInfo { relay, shared };
        Ok(())
    }

    /// The relay's key, once known.
    pub fn relay_key(&self) -> Option<NodePublic> {
        match &self.phase {
            Phase::AwaitKey => None,
            Phase::AwaitInfo { relay, .. } | Phase::Ready { relay } => Some(*relay),
        }
    }

    /// Whether the login was sent, so that packets may follow.
    pub fn has_logged_in(&self) -> bool {
        !matches!(self.phase, Phase::AwaitKey)
    }

    /// Moves the frames to write to the end of `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.output);
    }

    /// Whether there are frames to write.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// [`ClientError`]: close the connection.
    pub fn handle_frame<'a>(
        &mut self,
        now: Instant,
        frame: RawFrame<'a>,
        entropy: &mut dyn Entropy,
    ) -> Result<Option<Event<'a>>, ClientError> {
        self.last_received = now;
        let RawFrame { kind, payload } = frame;
        match &self.phase {
            Phase::AwaitKey => match (kind, Frame::parse(kind, payload)) {
                (FrameKind::ServerKey, Ok(Frame::ServerKey { key })) => {
                    self.log_in(key, entropy)?;
                    return Ok(None);
                }
                (FrameKind::ServerKey, Err(error)) => return Err(LoginError::from(error).into()),
                _ => return Err(ClientError::TooEarly(kind)),
            },
            Phase::AwaitInfo { relay, shared } if kind == FrameKind::ServerInfo => {
                if payload.len() > login::MAX_SERVER_INFO {
                    return Err(LoginError::NotProven(*relay).into());
                }
                let info = login::open_server_info(shared, *relay, payload)?;
                self.phase = Phase::Ready { relay: *relay };
                return Ok(Some(Event::Connected(info)));
            }
            Phase::AwaitInfo { .. } | Phase::Ready { .. } => {}
        }
        if kind == FrameKind::RecvPacket {
            return Ok(packet(payload));
        }
        let Ok(frame) = Frame::parse(kind, payload) else {
            return Ok(None);
        };
        Ok(match frame {
            Frame::PeerGone { key, reason } => Some(Event::PeerGone { key, reason }),
            Frame::PeerPresent { key, source, flags } => {
                Some(Event::PeerPresent { key, source, flags })
            }
            Frame::Ping(data) => {
                // A flood of pings that is not read away must not pile up.
                if self.output.len() < 1024 {
                    Frame::Pong(data).emit(&mut self.output);
                }
                None
            }
            Frame::Pong(data) => Some(Event::Pong(data)),
            Frame::Health(text) => Some(Event::Health((!text.is_empty()).then_some(text))),
            Frame::Restarting {
                reconnect_in,
                try_for,
            } => Some(Event::Restarting {
                reconnect_in,
                try_for,
            }),
            // The key frame of a fast start comes late and says nothing new.
            Frame::ServerKey { .. }
            | Frame::ServerInfo { .. }
            | Frame::KeepAlive
            | Frame::RecvPacket { .. }
            | Frame::ClientInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::NotePreferred(_)
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer(_)
            | Frame::Unknown { .. } => None,
        })
    }

    /// Notes that the clock may be asked for silence again from `now`: bytes
    /// came, even if no whole frame.
    pub fn note_bytes(&mut self, now: Instant) {
        self.last_received = self.last_received.max(now);
    }

    /// When silence ends the connection.
    pub fn next_deadline(&self) -> Instant {
        self.last_received + READ_TIMEOUT
    }

    /// Checks for silence; early calls do nothing.
    ///
    /// # Errors
    /// [`ClientError::Silent`]: close the connection.
    pub fn handle_timeout(&self, now: Instant) -> Result<(), ClientError> {
        if now >= self.next_deadline() {
            Err(ClientError::Silent)
        } else {
            Ok(())
        }
    }
}

fn packet(payload: &mut [u8]) -> Option<Event<'_>> {
    let (key, packet) = payload.split_first_chunk_mut::<KEY_LEN>()?;
    if packet.len() > MAX_PACKET {
        return None;
    }
    Some(Event::Packet {
        from: NodePublic::from_bytes(*key),
        packet,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{FrameBuffer, Identity, OverLong};
    use proptest::prelude::*;
    use warren_testkit::FixedEntropy;
    use warren_wire::derp::split;

    fn relay() -> Identity {
        Identity::new(NodeSecret::from_bytes(&[7; 32]), None)
    }

    fn config() -> ClientConfig {
        ClientConfig {
            home: true,
            ..ClientConfig::node(NodeSecret::from_bytes(&[9; 32]))
        }
    }

    fn feed(client: &mut Client, bytes: &[u8]) -> Result<Vec<String>, ClientError> {
        let mut buffer = FrameBuffer::new(MAX_PAYLOAD, OverLong::Fatal);
        buffer.push(bytes);
        let mut events = Vec::new();
        for frame in buffer.frames().unwrap() {
            let event = client.handle_frame(Instant::now(), frame, &mut FixedEntropy(4))?;
            events.extend(event.map(|event| format!("{event:?}")));
        }
        Ok(events)
    }

    fn answer_login(relay: &Identity, client: &mut Client) -> Vec<u8> {
        let mut out = Vec::new();
        client.take_output(&mut out);
        let (kind, payload, rest) = split(&out).unwrap();
        let (home, ..) = split(rest).unwrap();
        assert_eq!(home, FrameKind::NotePreferred);
        relay
            .open_login(kind, payload)
            .unwrap()
            .accept(&ServerInfo::default(), &mut FixedEntropy(4))
    }

    #[test]
    fn both_starts_end_connected() {
        let relay = relay();
        let now = Instant::now();
        let mut slow = Client::new(now, config());
        assert!(!slow.has_output());
        assert!(
            feed(&mut slow, &relay.server_key_frame())
                .unwrap()
                .is_empty()
        );
        let mut fast =
            Client::fast_start(now, config(), relay.public(), &mut FixedEntropy(4)).unwrap();
        for client in [&mut slow, &mut fast] {
            let answer = answer_login(&relay, client);
            let mut stream = relay.server_key_frame();
            stream.extend(answer);
            let events = feed(client, &stream).unwrap();
            assert_eq!(events.len(), 1, "{events:?}");
            assert!(events[0].starts_with("Connected("));
            assert_eq!(client.relay_key(), Some(relay.public()));
        }
    }

    #[test]
    fn another_relays_answer_is_refused() {
        let mut client = Client::fast_start(
            Instant::now(),
            config(),
            relay().public(),
            &mut FixedEntropy(4),
        )
        .unwrap();
        let other = Identity::new(NodeSecret::from_bytes(&[8; 32]), None);
        let mut bytes = Vec::new();
        login::log_in(
            &config().secret,
            other.public(),
            &ClientInfo::default(),
            &mut FixedEntropy(4),
            &mut bytes,
        )
        .unwrap();
        let (kind, payload, _) = split(&bytes).unwrap();
        let answer = other
            .open_login(kind, payload)
            .unwrap()
            .accept(&ServerInfo::default(), &mut FixedEntropy(4));
        assert!(matches!(
            feed(&mut client, &answer),
            Err(ClientError::Login(LoginError::NotProven(_)))
        ));
    }

    #[test]
    fn stream_that_is_not_derp_is_reported() {
        let mut client = Client::new(Instant::now(), config());
        let mut bytes = relay().server_key_frame();
        bytes[5] = b'X';
        assert!(matches!(
            feed(&mut client, &bytes),
            Err(ClientError::Login(LoginError::Frame(_)))
        ));
        let mut client = Client::new(Instant::now(), config());
        let mut bytes = Vec::new();
        Frame::KeepAlive.emit(&mut bytes);
        assert!(matches!(
            feed(&mut client, &bytes),
            Err(ClientError::TooEarly(_))
        ));
    }

    #[test]
    fn short_and_unknown_frames_are_lost_alone() {
        let mut client = Client::fast_start(
            Instant::now(),
            config(),
            relay().public(),
            &mut FixedEntropy(4),
        )
        .unwrap();
        client.take_output(&mut Vec::new());
        let mut bytes = Vec::new();
        for code in [0x05, 0x08, 0x09, 0x12, 0x13, 0x15, 0x77] {
            Frame::Unknown {
                code,
                payload: &[1, 2, 3],
            }
            .emit(&mut bytes);
        }
        Frame::Ping([6; 8]).emit(&mut bytes);
        let key = relay().public();
        Frame::RecvPacket {
            from: key,
            packet: b"hello",
        }
        .emit(&mut bytes);
        Frame::Health("").emit(&mut bytes);
        let events = feed(&mut client, &bytes).unwrap();
        assert_eq!(events.len(), 2, "{events:?}");
        let mut out = Vec::new();
        client.take_output(&mut out);
        let (kind, payload, _) = split(&out).unwrap();
        assert_eq!((kind, payload), (FrameKind::Pong, &[6; 8][..]));
    }

    #[test]
    fn silence_ends_it() {
        let start = Instant::now();
        let mut client = Client::new(start, config());
        assert!(
            client
                .handle_timeout(start + Duration::from_secs(119))
                .is_ok()
        );
        client.note_bytes(start + Duration::from_secs(100));
        assert!(
            client
                .handle_timeout(start + Duration::from_secs(200))
                .is_ok()
        );
        assert!(
            client
                .handle_timeout(start + Duration::from_secs(220))
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn client_never_panics_on_frames(frames: Vec<(u8, Vec<u8>)>, fast: bool) {
            let mut client = if fast {
                Client::fast_start(Instant::now(), config(), relay().public(), &mut FixedEntropy(4)).unwrap()
            } else {
                Client::new(Instant::now(), config())
            };
            for (kind, mut payload) in frames {
                let frame = RawFrame { kind: FrameKind::from_code(kind), payload: &mut payload };
                let _ = client.handle_frame(Instant::now(), frame, &mut FixedEntropy(4));
            }
        }
    }
}
