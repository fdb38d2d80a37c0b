//! DERP frames: what relays and their clients say to each other.
//!
//! A DERP connection is one byte stream, each way a sequence of frames:
//!
//! ```text
//! 0      kind     u8
//! 1..5   length   u32, big-endian, of the payload alone
//! 5..    payload
//! ```
//!
//! [`Header`] reads the five bytes, [`split`] finds one whole frame at the
//! start of a buffer, and [`Frame`] is what a payload means. Kinds that are
//! not known yet are [`Frame::Unknown`] and must be skipped by both ends.
//!
//! A malformed payload is a [`FrameError`]; whether that ends the connection
//! (at a server) or loses just the frame (at a client) is the reader's
//! decision, as is the largest frame it takes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use warren_keys::NodePublic;

/// What a [`Frame::ServerKey`] starts with: "DERP" and U+1F511.
pub const MAGIC: [u8; 8] = *b"DERP\xf0\x9f\x94\x91";
/// The protocol version spoken here. Version 2 put the source key in front of
/// received packets.
pub const PROTOCOL_VERSION: u8 = 2;
/// Bytes of kind and length in front of each payload.
pub const HEADER_LEN: usize = 5;
/// Bytes of a node key on the wire.
pub const KEY_LEN: usize = 32;
/// The largest packet a relay carries, without the keys in front of it.
pub const MAX_PACKET: usize = 65_536;
/// A relay closes a connection that pings with more bytes than this.
pub const MAX_PING: usize = 1_000;

/// First bytes of a disco packet, which relays treat with priority.
const DISCO_MAGIC: [u8; 6] = *b"TS\xf0\x9f\x92\xac";
/// Magic, sender key and nonce of a disco packet.
const DISCO_HEADER_LEN: usize = 62;

/// Whether a relay classifies `packet` as disco, that is by its look alone.
pub fn looks_like_disco(packet: &[u8]) -> bool {
    packet.len() >= DISCO_HEADER_LEN && packet.starts_with(&DISCO_MAGIC)
}

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameKind {
    /// 0x01, relay to client: the relay's public key.
    ServerKey,
    /// 0x02, client to relay: the login.
    ClientInfo,
    /// 0x03, relay to client: the answer to the login.
    ServerInfo,
    /// 0x04, client to relay: carry this to that key.
    SendPacket,
    /// 0x05, relay to client: this came from that key.
    RecvPacket,
    /// 0x06, relay to client: still here.
    KeepAlive,
    /// 0x07, client to relay: you are (not) my home.
    NotePreferred,
    /// 0x08, relay to client: that key is not here (any more).
    PeerGone,
    /// 0x09, relay to mesh peer: that key is connected here.
    PeerPresent,
    /// 0x0a, mesh peer to relay: carry this for another relay's client.
    ForwardPacket,
    /// 0x10, mesh peer to relay: tell me who comes and goes.
    WatchConns,
    /// 0x11, mesh peer to relay: close that key's connections.
    ClosePeer,
    /// 0x12, both ways: answer with the same bytes.
    Ping,
    /// 0x13, both ways: the answer.
    Pong,
    /// 0x14, relay to client: what is wrong with this connection.
    Health,
    /// 0x15, relay to client: come back in a moment.
    Restarting,
    /// Any other number.
    Unknown(u8),
}

impl FrameKind {
    /// The kind with this number.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0x01 => Self::ServerKey,
            0x02 => Self::ClientInfo,
            0x03 => Self::ServerInfo,
            0x04 => Self::SendPacket,
            0x05 => Self::RecvPacket,
            0x06 => Self::KeepAlive,
            0x07 => Self::NotePreferred,
            0x08 => Self::PeerGone,
            0x09 => Self::PeerPresent,
            0x0a => Self::ForwardPacket,
            0x10 => Self::WatchConns,
            0x11 => Self::ClosePeer,
            0x12 => Self::Ping,
            0x13 => Self::Pong,
            0x14 => Self::Health,
            0x15 => Self::Restarting,
            other => Self::Unknown(other),
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::ServerKey => 0x01,
            Self::ClientInfo => 0x02,
            Self::ServerInfo => 0x03,
            Self::SendPacket => 0x04,
            Self::RecvPacket => 0x05,
            Self::KeepAlive => 0x06,
            Self::NotePreferred => 0x07,
            Self::PeerGone => 0x08,
            Self::PeerPresent => 0x09,
            Self::ForwardPacket => 0x0a,
            Self::WatchConns => 0x10,
            Self::ClosePeer => 0x11,
            Self::Ping => 0x12,
            Self::Pong => 0x13,
            Self::Health => 0x14,
            Self::Restarting => 0x15,
            Self::Unknown(other) => other,
        }
    }
}

/// The five bytes in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Bytes of the payload.
    pub len: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` while fewer than five
    /// bytes are there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[kind, l0, l1, l2, l3], _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        Some(Self {
            kind: FrameKind::from_code(kind),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [l0, l1, l2, l3] = self.len.to_be_bytes();
        [self.kind.code(), l0, l1, l2, l3]
    }

    /// Bytes of the whole frame.
    pub fn frame_len(self) -> usize {
        HEADER_LEN.saturating_add(self.len as usize)
    }
}

/// The frame at the start of `bytes` and what follows it, or `None` while it is
/// not whole. The caller bounds the length: see [`Header`].
pub fn split(bytes: &[u8]) -> Option<(FrameKind, &[u8], &[u8])> {
    let header = Header::parse(bytes)?;
    let (frame, rest) = bytes.split_at_checked(header.frame_len())?;
    Some((header.kind, frame.get(HEADER_LEN..)?, rest))
}

/// Why a peer cannot be reached through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerGoneReason {
    /// Its last connection to the relay's region has closed.
    Disconnected,
    /// It is not connected to the relay's region; sent in answer to a packet.
    NotHere,
    /// A reason that is not known yet.
    Other(u8),
}

impl PeerGoneReason {
    const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::NotHere => 1,
            Self::Other(other) => other,
        }
    }
}

/// What kind of client a [`Frame::PeerPresent`] announces, as a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PeerFlags(pub u8);

impl PeerFlags {
    /// None of the others: an ordinary node.
    pub const REGULAR: Self = Self(1);
    /// Another relay of the region.
    pub const MESH_PEER: Self = Self(2);
    /// A prober.
    pub const PROBER: Self = Self(4);
    /// Connected to another relay of the region than its first choice.
    pub const NOT_IDEAL: Self = Self(8);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What one frame says. Borrowed parts point into the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The relay's public key: 8 magic, 32 key, anything.
    ServerKey {
        /// The relay's public key.
        key: NodePublic,
    },
    /// The login: 32 key, then `nonce ‖ box` of the client's JSON.
    ClientInfo {
        /// The key of the client that logs in.
        key: NodePublic,
        /// The sealed JSON.
        sealed: &'a [u8],
    },
    /// The answer to the login: `nonce ‖ box` of the relay's JSON.
    ServerInfo {
        /// The sealed JSON.
        sealed: &'a [u8],
    },
    /// 32 destination key, packet.
    SendPacket {
        /// The receiver.
        to: NodePublic,
        /// At most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// 32 source key, packet.
    RecvPacket {
        /// The sender.
        from: NodePublic,
        /// At most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// Empty.
    KeepAlive,
    /// One byte: whether the relay is the client's home.
    NotePreferred(bool),
    /// 32 key, 1 reason (old relays leave it out: disconnected).
    PeerGone {
        /// The peer that left.
        key: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// 32 key, then 16 address and 2 port, then 1 flags; the later parts may
    /// be missing.
    PeerPresent {
        /// The peer that is connected.
        key: NodePublic,
        /// From where, if told. `[::]:0` on the wire says "not told".
        source: Option<SocketAddr>,
        /// What kind of client it is; no bits if not told.
        flags: PeerFlags,
    },
    /// 32 source key, 32 destination key, packet.
    ForwardPacket {
        /// The client of the forwarding relay.
        from: NodePublic,
        /// The client of the relay that gets this frame.
        to: NodePublic,
        /// At most [`MAX_PACKET`] bytes.
        packet: &'a [u8],
    },
    /// Empty.
    WatchConns,
    /// 32 key.
    ClosePeer(NodePublic),
    /// 8 bytes; more are ignored.
    Ping([u8; 8]),
    /// The 8 bytes of the ping; more are ignored.
    Pong([u8; 8]),
    /// A sentence for people; empty when all is well again.
    Health(&'a str),
    /// Two times in milliseconds.
    Restarting {
        /// When to come back.
        reconnect_in: Duration,
        /// For how long to keep trying.
        try_for: Duration,
    },
    /// A kind from the future.
    Unknown {
        /// Its number.
        code: u8,
        /// Its payload.
        payload: &'a [u8],
    },
}

/// The payload does not fit its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the kind needs.
    #[error("{kind:?} frame of {got} bytes, needs at least {need}")]
    TooShort {
        /// The frame's kind.
        kind: FrameKind,
        /// Bytes that the frame needs.
        need: usize,
        /// Bytes that there are.
        got: usize,
    },
    /// A kind of fixed length has another length.
    #[error("{kind:?} frame of {got} bytes, must have {want}")]
    WrongLength {
        /// The frame's kind.
        kind: FrameKind,
        /// What it must have.
        want: usize,
        /// What there is.
        got: usize,
    },
    /// The carried packet is larger than [`MAX_PACKET`].
    #[error("{kind:?} frame carries {got} bytes, at most 65536 are allowed")]
    PacketTooLarge {
        /// The frame's kind.
        kind: FrameKind,
        /// Bytes of the packet.
        got: usize,
    },
    /// A server key frame starts with other bytes than [`MAGIC`].
    #[error("the stream does not start as DERP: this is no relay, or a proxy answers for it")]
    NotDerp,
    /// A health text is not UTF-8.
    #[error("health text is not UTF-8")]
    NotText,
}

impl<'a> Frame<'a> {
    /// Reads what a payload of `kind` says.
    ///
    /// # Errors
    /// [`FrameError`] when the payload does not fit the kind.
    pub fn parse(kind: FrameKind, payload: &'a [u8]) -> Result<Self, FrameError> {
        Ok(match kind {
            FrameKind::ServerKey => {
                let (magic, rest) = take::<8>(kind, payload, 8 + KEY_LEN)?;
                let (key, _) = take_key(kind, rest)?;
                if *magic != MAGIC {
                    return Err(FrameError::NotDerp);
                }
                Self::ServerKey { key }
            }
            FrameKind::ClientInfo => {
                let (key, sealed) = take_key(kind, payload)?;
                Self::ClientInfo { key, sealed }
            }
            FrameKind::ServerInfo => Self::ServerInfo { sealed: payload },
            FrameKind::SendPacket => {
                let (to, packet) = take_key(kind, payload)?;
                Self::SendPacket {
                    to,
                    packet: bounded(kind, packet)?,
                }
            }
            FrameKind::RecvPacket => {
                let (from, packet) = take_key(kind, payload)?;
                Self::RecvPacket {
                    from,
                    packet: bounded(kind, packet)?,
                }
            }
            FrameKind::KeepAlive => Self::KeepAlive,
            FrameKind::NotePreferred => {
                let [home] = exactly::<1>(kind, payload)?;
                Self::NotePreferred(*home != 0)
            }
            FrameKind::PeerGone => {
                let (key, rest) = take_key(kind, payload)?;
                let code = rest.first().copied().unwrap_or(0);
                Self::PeerGone {
                    key,
                    reason: PeerGoneReason::from_code(code),
                }
            }
            FrameKind::PeerPresent => {
                let (key, rest) = take_key(kind, payload)?;
                let (source, flags) = parse_presence(rest);
                Self::PeerPresent { key, source, flags }
            }
            FrameKind::ForwardPacket => {
                let (from, rest) = take_key(kind, payload)?;
                let (to, packet) = take_key(kind, rest)?;
                Self::ForwardPacket {
                    from,
                    to,
                    packet: bounded(kind, packet)?,
                }
            }
            FrameKind::WatchConns => {
                let [] = exactly::<0>(kind, payload)?;
                Self::WatchConns
            }
            FrameKind::ClosePeer => {
                Self::ClosePeer(NodePublic::from_bytes(*exactly::<KEY_LEN>(kind, payload)?))
            }
            FrameKind::Ping => Self::Ping(*take::<8>(kind, payload, 8)?.0),
            FrameKind::Pong => Self::Pong(*take::<8>(kind, payload, 8)?.0),
            FrameKind::Health => {
                Self::Health(std::str::from_utf8(payload).map_err(|_| FrameError::NotText)?)
            }
            FrameKind::Restarting => {
                let (reconnect_in, rest) = take::<4>(kind, payload, 8)?;
                let (try_for, _) = take::<4>(kind, rest, 4)?;
                Self::Restarting {
                    reconnect_in: Duration::from_millis(u32::from_be_bytes(*reconnect_in).into()),
                    try_for: Duration::from_millis(u32::from_be_bytes(*try_for).into()),
                }
            }
            FrameKind::Unknown(code) => Self::Unknown { code, payload },
        })
    }

    /// What kind of frame this is.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::ServerKey { .. } => FrameKind::ServerKey,
            Self::ClientInfo { .. } => FrameKind::ClientInfo,
            Self::ServerInfo { .. } => FrameKind::ServerInfo,
            Self::SendPacket { .. } => FrameKind::SendPacket,
            Self::RecvPacket { .. } => FrameKind::RecvPacket,
            Self::KeepAlive => FrameKind::KeepAlive,
            Self::NotePreferred(_) => FrameKind::NotePreferred,
            Self::PeerGone { .. } => FrameKind::PeerGone,
            Self::PeerPresent { .. } => FrameKind::PeerPresent,
            Self::ForwardPacket { .. } => FrameKind::ForwardPacket,
            Self::WatchConns => FrameKind::WatchConns,
            Self::ClosePeer(_) => FrameKind::ClosePeer,
            Self::Ping(_) => FrameKind::Ping,
            Self::Pong(_) => FrameKind::Pong,
            Self::Health(_) => FrameKind::Health,
            Self::Restarting { .. } => FrameKind::Restarting,
            Self::Unknown { code, .. } => FrameKind::Unknown(*code),
        }
    }

    /// Bytes of the payload that [`emit`](Self::emit) writes.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::ServerKey { .. } => MAGIC.len() + KEY_LEN,
            Self::ClientInfo { sealed, .. } => KEY_LEN + sealed.len(),
            Self::ServerInfo { sealed } => sealed.len(),
            Self::SendPacket { packet, .. } | Self::RecvPacket { packet, .. } => {
                KEY_LEN + packet.len()
            }
            Self::KeepAlive | Self::WatchConns => 0,
            Self::NotePreferred(_) => 1,
            Self::PeerGone { .. } => KEY_LEN + 1,
            Self::PeerPresent {
                source: None,
                flags: PeerFlags(0),
                ..
            } => KEY_LEN,
            Self::PeerPresent { .. } => KEY_LEN + 16 + 2 + 1,
            Self::ForwardPacket { packet, .. } => 2 * KEY_LEN + packet.len(),
            Self::ClosePeer(_) => KEY_LEN,
            Self::Ping(_) | Self::Pong(_) | Self::Restarting { .. } => 8,
            Self::Health(text) => text.len(),
            Self::Unknown { payload, .. } => payload.len(),
        }
    }

    /// Bytes of the whole frame that [`emit`](Self::emit) writes.
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.payload_len()
    }

    /// Appends header and payload to `out`.
    ///
    /// Times of [`Frame::Restarting`] are cut to whole milliseconds below
    /// 2^32.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let len = u32::try_from(self.payload_len()).unwrap_or(u32::MAX);
        out.reserve(self.frame_len());
        out.extend_from_slice(
            &Header {
                kind: self.kind(),
                len,
            }
            .to_bytes(),
        );
        match self {
            Self::ServerKey { key } => {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(key.as_bytes());
            }
            Self::ClientInfo { key, sealed } => {
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(sealed);
            }
            Self::ServerInfo { sealed } => out.extend_from_slice(sealed),
            Self::SendPacket { to: key, packet } | Self::RecvPacket { from: key, packet } => {
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(packet);
            }
            Self::KeepAlive | Self::WatchConns => {}
            Self::NotePreferred(home) => out.push(u8::from(*home)),
            Self::PeerGone { key, reason } => {
                out.extend_from_slice(key.as_bytes());
                out.push(reason.code());
            }
            Self::PeerPresent { key, source, flags } => {
                out.extend_from_slice(key.as_bytes());
                if source.is_some() || flags.0 != 0 {
                    let source = source.unwrap_or((Ipv6Addr::UNSPECIFIED, 0).into());
                    let ip = match source.ip() {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                        IpAddr::V6(ip) => ip,
                    };
                    out.extend_from_slice(&ip.octets());
                    out.extend_from_slice(&source.port().to_be_bytes());
                    out.push(flags.0);
                }
            }
            Self::ForwardPacket { from, to, packet } => {
                out.extend_from_slice(from.as_bytes());
                out.extend_from_slice(to.as_bytes());
                out.extend_from_slice(packet);
            }
            Self::ClosePeer(key) => out.extend_from_slice(key.as_bytes()),
            Self::Ping(data) | Self::Pong(data) => out.extend_from_slice(data),
            Self::Health(text) => out.extend_from_slice(text.as_bytes()),
            Self::Restarting {
                reconnect_in,
                try_for,
            } => {
                for time in [reconnect_in, try_for] {
                    let millis = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
                    out.extend_from_slice(&millis.to_be_bytes());
                }
            }
            Self::Unknown { payload, .. } => out.extend_from_slice(payload),
        }
    }
}

fn take<const N: usize>(
    kind: FrameKind,
    bytes: &[u8],
    need: usize,
) -> Result<(&[u8; N], &[u8]), FrameError> {
    if bytes.len() < need {
        return Err(FrameError::TooShort {
            kind,
            need,
            got: bytes.len(),
        });
    }
    bytes.split_first_chunk().ok_or(FrameError::TooShort {
        kind,
        need: N,
        got: bytes.len(),
    })
}

fn take_key(kind: FrameKind, bytes: &[u8]) -> Result<(NodePublic, &[u8]), FrameError> {
    let (key, rest) = take::<KEY_LEN>(kind, bytes, KEY_LEN)?;
    Ok((NodePublic::from_bytes(*key), rest))
}

fn exactly<const N: usize>(kind: FrameKind, bytes: &[u8]) -> Result<&[u8; N], FrameError> {
    bytes.try_into().map_err(|_| FrameError::WrongLength {
        kind,
        want: N,
        got: bytes.len(),
    })
}

fn bounded(kind: FrameKind, packet: &[u8]) -> Result<&[u8], FrameError> {
    if packet.len() > MAX_PACKET {
        return Err(FrameError::PacketTooLarge {
            kind,
            got: packet.len(),
        });
    }
    Ok(packet)
}

fn parse_presence(rest: &[u8]) -> (Option<SocketAddr>, PeerFlags) {
    let Some((ip, rest)) = rest.split_first_chunk::<16>() else {
        return (None, PeerFlags::default());
    };
    let Some((port, rest)) = rest.split_first_chunk::<2>() else {
        return (None, PeerFlags::default());
    };
    let ip = Ipv6Addr::from(*ip);
    let port = u16::from_be_bytes(*port);
    let told = !(ip.is_unspecified() && port == 0);
    let source = told.then(|| SocketAddr::new(IpAddr::V6(ip).to_canonical(), port));
    (source, PeerFlags(rest.first().copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A frame that owns what it borrows, for generation.
    #[derive(Debug, Clone)]
    struct Owned {
        kind: u8,
        a: [u8; 32],
        b: [u8; 32],
        bytes: Vec<u8>,
        text: String,
        source: Option<SocketAddr>,
        number: u32,
    }

    impl Owned {
        fn frame(&self) -> Frame<'_> {
            let (a, b) = (
                NodePublic::from_bytes(self.a),
                NodePublic::from_bytes(self.b),
            );
            let millis = |n: u32| Duration::from_millis(n.into());
            let eight: [u8; 8] = self.b[..8].try_into().unwrap();
            match FrameKind::from_code(self.kind) {
                FrameKind::ServerKey => Frame::ServerKey { key: a },
                FrameKind::ClientInfo => Frame::ClientInfo {
                    key: a,
                    sealed: &self.bytes,
                },
                FrameKind::ServerInfo => Frame::ServerInfo {
                    sealed: &self.bytes,
                },
                FrameKind::SendPacket => Frame::SendPacket {
                    to: a,
                    packet: &self.bytes,
                },
                FrameKind::RecvPacket => Frame::RecvPacket {
                    from: a,
                    packet: &self.bytes,
                },
                FrameKind::KeepAlive => Frame::KeepAlive,
                FrameKind::NotePreferred => Frame::NotePreferred(self.number % 2 == 1),
                FrameKind::PeerGone => Frame::PeerGone {
                    key: a,
                    reason: PeerGoneReason::from_code(self.b[0]),
                },
                FrameKind::PeerPresent => Frame::PeerPresent {
                    key: a,
                    source: self.source,
                    flags: PeerFlags(self.b[0]),
                },
                FrameKind::ForwardPacket => Frame::ForwardPacket {
                    from: a,
                    to: b,
                    packet: &self.bytes,
                },
                FrameKind::WatchConns => Frame::WatchConns,
                FrameKind::ClosePeer => Frame::ClosePeer(a),
                FrameKind::Ping => Frame::Ping(eight),
                FrameKind::Pong => Frame::Pong(eight),
                FrameKind::Health => Frame::Health(&self.text),
                FrameKind::Restarting => Frame::Restarting {
                    reconnect_in: millis(self.number),
                    try_for: millis(!self.number),
                },
                FrameKind::Unknown(code) => Frame::Unknown {
                    code,
                    payload: &self.bytes,
                },
            }
        }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let source = proptest::option::of((any::<[u8; 16]>(), 1u16.., any::<bool>()).prop_map(
            |(ip, port, four)| {
                let [a, b, c, d, ..] = ip;
                let ip = if four {
                    IpAddr::from([a, b, c, d])
                } else {
                    IpAddr::from(ip).to_canonical()
                };
                SocketAddr::new(ip, port)
            },
        ));
        (
            0u8..0x18,
            any::<[u8; 32]>(),
            any::<[u8; 32]>(),
            proptest::collection::vec(any::<u8>(), 0..200),
            any::<String>(),
            source,
            any::<u32>(),
        )
            .prop_map(|(kind, a, b, bytes, text, source, number)| Owned {
                kind,
                a,
                b,
                bytes,
                text,
                source,
                number,
            })
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_to_itself(owned in owned(), tail: Vec<u8>) {
            let frame = owned.frame();
            let mut bytes = Vec::new();
            frame.emit(&mut bytes);
            prop_assert_eq!(bytes.len(), frame.frame_len());
            bytes.extend_from_slice(&tail);
            let (kind, payload, rest) = split(&bytes).unwrap();
            prop_assert_eq!(kind, frame.kind());
            prop_assert_eq!(rest, &tail[..]);
            prop_assert_eq!(Frame::parse(kind, payload), Ok(frame));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind: u8) {
            let _ = split(&bytes);
            let kind = FrameKind::from_code(kind);
            if let Ok(frame) = Frame::parse(kind, &bytes) {
                // Normalised once, it stays the same.
                let mut out = Vec::new();
                frame.emit(&mut out);
                let (kind, payload, _) = split(&out).unwrap();
                prop_assert_eq!(Frame::parse(kind, payload), Ok(frame));
            }
        }

        #[test]
        fn a_truncated_frame_is_not_whole(owned in owned(), cut in 1usize..) {
            let mut bytes = Vec::new();
            owned.frame().emit(&mut bytes);
            bytes.truncate(bytes.len() - 1 - cut % bytes.len());
            prop_assert_eq!(split(&bytes), None);
        }
    }

    #[test]
    fn presence_comes_in_three_lengths() {
        let key = [7; 32];
        let source: SocketAddr = "192.0.2.1:4242".parse().unwrap();
        let mut payload = key.to_vec();
        let parse = |payload: &[u8]| match Frame::parse(FrameKind::PeerPresent, payload).unwrap() {
            Frame::PeerPresent { source, flags, .. } => (source, flags),
            other => unreachable!("{other:?}"),
        };
        assert_eq!(parse(&payload), (None, PeerFlags(0)));
        payload.extend([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 0x10, 0x92,
        ]);
        assert_eq!(payload.len(), 50);
        assert_eq!(parse(&payload), (Some(source), PeerFlags(0)));
        payload.push(9);
        assert_eq!(parse(&payload), (Some(source), PeerFlags(9)));
        payload.extend([1, 2, 3]);
        assert_eq!(parse(&payload), (Some(source), PeerFlags(9)));
    }

    #[test]
    fn wrong_lengths_are_told() {
        let short = |kind, len: usize| Frame::parse(kind, &vec![0; len]).is_err();
        for (kind, bad, good) in [
            (FrameKind::ServerKey, &[0usize, 39][..], &[][..]),
            (FrameKind::ClientInfo, &[31], &[32, 4000]),
            (
                FrameKind::SendPacket,
                &[0, 31, 32 + MAX_PACKET + 1],
                &[32, 32 + MAX_PACKET],
            ),
            (FrameKind::RecvPacket, &[31, 32 + MAX_PACKET + 1], &[32]),
            (FrameKind::NotePreferred, &[0, 2], &[1]),
            (FrameKind::PeerGone, &[31], &[32, 33, 40]),
            (FrameKind::PeerPresent, &[31], &[32, 33, 49, 50, 51, 60]),
            (
                FrameKind::ForwardPacket,
                &[63, 64 + MAX_PACKET + 1],
                &[64, 64 + MAX_PACKET],
            ),
            (FrameKind::WatchConns, &[1], &[0]),
            (FrameKind::ClosePeer, &[31, 33], &[32]),
            (FrameKind::Ping, &[7], &[8, 1000]),
            (FrameKind::Pong, &[7], &[8]),
            (FrameKind::Restarting, &[0, 7], &[8, 9]),
        ] {
            for &len in bad {
                assert!(short(kind, len), "{kind:?} of {len} bytes was taken");
            }
            for &len in good {
                assert!(!short(kind, len), "{kind:?} of {len} bytes was not taken");
            }
        }
    }

    #[test]
    fn disco_is_recognised_by_its_look() {
        let mut packet = DISCO_MAGIC.to_vec();
        packet.resize(61, 0);
        assert!(!looks_like_disco(&packet));
        packet.push(0);
        assert!(looks_like_disco(&packet));
        packet[0] = b'X';
        assert!(!looks_like_disco(&packet));
    }
}
