//! Frames: what the payload of each kind contains, read and written.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use warren_keys::NodePublic;

use super::{FrameKind, HEADER_LEN, Header, KEY_LEN, MAGIC, MAX_PACKET};

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
    pub(super) const fn from_code(code: u8) -> Self {
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

/// The properties of a client that a [`Frame::PeerPresent`] announces, as bits.
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

/// A parsed frame. Borrowed parts point into the payload.
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
    /// No payload.
    KeepAlive,
    /// One byte: whether the relay is the client's home.
    NotePreferred(bool),
    /// 32 key, 1 reason (old relays leave it out: disconnected).
    PeerGone {
        /// The peer that left.
        key: NodePublic,
        /// The reason.
        reason: PeerGoneReason,
    },
    /// 32 key, then 16 address and 2 port, then 1 flags; the later parts may
    /// be missing.
    PeerPresent {
        /// The peer that is connected.
        key: NodePublic,
        /// The source address, if known; on the wire `[::]:0` is "not known".
        source: Option<SocketAddr>,
        /// The properties of the client; no bits if they are not known.
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
    /// No payload.
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
    /// A kind that is newer than this program.
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
        /// Bytes that the kind must have.
        want: usize,
        /// Bytes that there are.
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
    #[error("the stream does not start as DERP: this is not a relay, or a proxy answers for it")]
    NotDerp,
    /// A health text is not UTF-8.
    #[error("health text is not UTF-8")]
    NotText,
}

impl<'a> Frame<'a> {
    /// Reads a payload of `kind`.
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

    /// The type of the frame.
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
    let is_known = !(ip.is_unspecified() && port == 0);
    let source = is_known.then(|| SocketAddr::new(IpAddr::V6(ip).to_canonical(), port));
    (source, PeerFlags(rest.first().copied().unwrap_or(0)))
}
