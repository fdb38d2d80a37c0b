//! The header of a frame: its kind and the length of its payload.

use super::HEADER_LEN;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameKind {
    /// 0x01, relay to client: the relay's public key.
    ServerKey,
    /// 0x02, client to relay: the login.
    ClientInfo,
    /// 0x03, relay to client: the answer to the login.
    ServerInfo,
    /// 0x04, client to relay: a packet for that key.
    SendPacket,
    /// 0x05, relay to client: a packet from that key.
    RecvPacket,
    /// 0x06, relay to client: the connection is alive.
    KeepAlive,
    /// 0x07, client to relay: this relay is (not) the client's home.
    NotePreferred,
    /// 0x08, relay to client: that key is not connected (any more).
    PeerGone,
    /// 0x09, relay to mesh peer: that key is connected here.
    PeerPresent,
    /// 0x0a, mesh peer to relay: a packet of another relay's client.
    ForwardPacket,
    /// 0x10, mesh peer to relay: report clients that connect and disconnect.
    WatchConns,
    /// 0x11, mesh peer to relay: close that key's connections.
    ClosePeer,
    /// 0x12, both ways: answer with the same bytes.
    Ping,
    /// 0x13, both ways: the answer.
    Pong,
    /// 0x14, relay to client: a problem with this connection.
    Health,
    /// 0x15, relay to client: the relay restarts; connect again in a moment.
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
    /// The type of the frame.
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
