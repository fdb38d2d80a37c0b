//! TSMP: short messages between two nodes inside the tunnel, as IP protocol
//! 99. A node consumes them; they never reach the host's own stack.
//!
//! | first byte | body |
//! |---|---|
//! | `!` reject | protocol u8, reason u8, source port u16, destination port u16, optional flags u8 |
//! | `p` ping | 8 opaque bytes |
//! | `o` pong | the same 8 bytes, PeerAPI port u16 (absent from old peers) |
//! | `a` disco advertisement | 32-byte disco public key |
//!
//! Integers are big endian. There is no checksum of its own: the tunnel
//! authenticates. Packets are never fragmented.

use std::net::IpAddr;

use warren_keys::DiscoPublic;

use super::{BuildError, IpPacket, Protocol, Version};

/// Why a node refuses a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// No rule of the packet filter allows it.
    Acl,
    /// The node blocks all incoming connections.
    ShieldsUp,
    /// The node does not forward IP packets.
    ForwardingOff,
    /// The host's own firewall drops it.
    HostFirewall,
    /// The transit address is not known to the app connector.
    UnknownTransit,
    /// A code this version does not know.
    Other(u8),
}

impl RejectReason {
    const fn code(self) -> u8 {
        match self {
            Self::Acl => b'A',
            Self::ShieldsUp => b'S',
            Self::ForwardingOff => b'F',
            Self::HostFirewall => b'W',
            Self::UnknownTransit => b'T',
            Self::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            b'A' => Self::Acl,
            b'S' => Self::ShieldsUp,
            b'F' => Self::ForwardingOff,
            b'W' => Self::HostFirewall,
            b'T' => Self::UnknownTransit,
            other => Self::Other(other),
        }
    }
}

/// A refused flow. The packet that carries it goes from the flow's destination
/// back to its source; the ports are those of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reject {
    /// The flow's transport protocol.
    pub protocol: Protocol,
    /// The reason for the refusal.
    pub reason: RejectReason,
    /// The flow's source port.
    pub src_port: u16,
    /// The flow's destination port.
    pub dst_port: u16,
    /// Only a hint: something on the way may be broken.
    pub maybe_broken: bool,
}

/// One TSMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A flow is refused.
    Reject(Reject),
    /// Asks for a pong with the same eight bytes.
    Ping([u8; 8]),
    /// The answer to a ping.
    Pong {
        /// Copied from the ping.
        data: [u8; 8],
        /// TCP port of the sender's PeerAPI; `None` when it has none, or when an
        /// old peer does not report it.
        peer_api_port: Option<u16>,
    },
    /// The sender's current disco key.
    DiscoAdvertisement(DiscoPublic),
}

const REJECT: u8 = b'!';
const PING: u8 = b'p';
const PONG: u8 = b'o';
const DISCO: u8 = b'a';
const MAYBE_BROKEN: u8 = 0x01;

impl Message {
    /// Reads a message body (what follows the IP header). `None` if it is cut
    /// off or of an unknown kind; bytes behind a message are ignored.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (&kind, rest) = body.split_first()?;
        match kind {
            REJECT => {
                let h: &[u8; 6] = rest.first_chunk()?;
                let flags = rest.get(6).copied().unwrap_or(0);
                Some(Self::Reject(Reject {
                    protocol: Protocol(h[0]),
                    reason: RejectReason::from_code(h[1]),
                    src_port: u16::from_be_bytes([h[2], h[3]]),
                    dst_port: u16::from_be_bytes([h[4], h[5]]),
                    maybe_broken: flags & MAYBE_BROKEN != 0,
                }))
            }
            PING => Some(Self::Ping(*rest.first_chunk()?)),
            PONG => {
                let (data, rest) = rest.split_first_chunk()?;
                let port = rest.first_chunk().map_or(0, |p| u16::from_be_bytes(*p));
                Some(Self::Pong {
                    data: *data,
                    peer_api_port: (port != 0).then_some(port),
                })
            }
            DISCO => {
                let key: &[u8; 32] = rest.first_chunk()?;
                Some(Self::DiscoAdvertisement(DiscoPublic::from_bytes(*key)))
            }
            _ => None,
        }
    }

    /// The message body.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(33);
        match self {
            Self::Reject(reject) => {
                out.extend_from_slice(&[REJECT, reject.protocol.0, reject.reason.code()]);
                out.extend_from_slice(&reject.src_port.to_be_bytes());
                out.extend_from_slice(&reject.dst_port.to_be_bytes());
                if reject.maybe_broken {
                    out.push(MAYBE_BROKEN);
                }
            }
            Self::Ping(data) => {
                out.push(PING);
                out.extend_from_slice(data);
            }
            Self::Pong {
                data,
                peer_api_port,
            } => {
                out.push(PONG);
                out.extend_from_slice(data);
                out.extend_from_slice(&peer_api_port.unwrap_or(0).to_be_bytes());
            }
            Self::DiscoAdvertisement(key) => {
                out.push(DISCO);
                out.extend_from_slice(key.as_bytes());
            }
        }
        out
    }

    /// A whole IP packet with this message.
    pub fn packet(&self, src: IpAddr, dst: IpAddr) -> Result<Vec<u8>, BuildError> {
        self.packet_with_ident(src, dst, 0)
    }

    fn packet_with_ident(
        &self,
        src: IpAddr,
        dst: IpAddr,
        ident: u16,
    ) -> Result<Vec<u8>, BuildError> {
        let body = self.body();
        let mut out = super::header(src, dst, Protocol::TSMP, ident, body.len())?;
        out.extend_from_slice(&body);
        Ok(out)
    }
}

/// The pong packet for a ping packet: addresses swapped, IPv4 identification
/// inverted as the reference does. `None` if `packet` is no TSMP ping.
#[must_use]
pub fn pong_for(packet: &IpPacket<'_>, peer_api_port: Option<u16>) -> Option<Vec<u8>> {
    let Some(Message::Ping(data)) = packet.tsmp() else {
        return None;
    };
    let ident = match packet.version {
        Version::V4 => packet
            .bytes()
            .get(4..6)
            .and_then(|id| id.first_chunk())
            .map_or(0, |id| !u16::from_be_bytes(*id)),
        Version::V6 => 0,
    };
    Message::Pong {
        data,
        peer_api_port,
    }
    .packet_with_ident(packet.dst, packet.src, ident)
    .ok()
}

/// The reject packet that answers `packet`, which the filter refused.
/// `None` for protocols without ports.
#[must_use]
pub fn reject_for(packet: &IpPacket<'_>, reason: RejectReason) -> Option<Vec<u8>> {
    if !packet.protocol.has_ports() || packet.is_later_fragment() {
        return None;
    }
    Message::Reject(Reject {
        protocol: packet.protocol,
        reason,
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        maybe_broken: false,
    })
    .packet(packet.dst, packet.src)
    .ok()
}
