//! ICMP for both families: echo, errors with the packet they quote, and the
//! answer to an echo request.
//!
//! RFC 792 (IPv4) and RFC 4443 (IPv6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Fragment, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpPacket, Protocol, Version, checksum};

const V4_ECHO_REPLY: u8 = 0;
const V4_ECHO_REQUEST: u8 = 8;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
/// Type, code, checksum, identifier, sequence; errors: four bytes of detail.
const HEADER_LEN: usize = 8;

/// Identifier and sequence number of an echo message, and its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Chosen by the sender, often per process.
    pub ident: u16,
    /// Counts the requests.
    pub sequence: u16,
    /// Comes back unchanged.
    pub data: &'a [u8],
}

/// An ICMP message, as far as a filter or an answer needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp<'a> {
    /// A ping.
    EchoRequest(Echo<'a>),
    /// Its answer.
    EchoReply(Echo<'a>),
    /// An error about a packet that the destination sent earlier.
    Error {
        /// Type as on the wire.
        kind: u8,
        /// Code as on the wire.
        code: u8,
        /// The start of the packet that caused the error; may be cut off.
        quoted: &'a [u8],
    },
    /// Any other type.
    Other {
        /// Type as on the wire.
        kind: u8,
        /// Code as on the wire.
        code: u8,
    },
}

impl<'a> Icmp<'a> {
    /// Reads an ICMP message of `version`'s kind. `None` when cut off before
    /// its checksum; echo and error messages shorter than eight bytes are
    /// [`Icmp::Other`].
    #[must_use]
    pub fn parse(version: Version, transport: &'a [u8]) -> Option<Self> {
        let &[kind, code, _, _] = transport.first_chunk::<4>()?;
        let other = Some(Self::Other { kind, code });
        let Some((head, data)) = transport.split_first_chunk::<HEADER_LEN>() else {
            return other;
        };
        let echo = Echo {
            ident: u16::from_be_bytes([head[4], head[5]]),
            sequence: u16::from_be_bytes([head[6], head[7]]),
            data,
        };
        match (version, kind, code) {
            (Version::V4, V4_ECHO_REQUEST, 0) | (Version::V6, V6_ECHO_REQUEST, 0) => {
                Some(Self::EchoRequest(echo))
            }
            (Version::V4, V4_ECHO_REPLY, 0) | (Version::V6, V6_ECHO_REPLY, 0) => {
                Some(Self::EchoReply(echo))
            }
            // Unreachable, time exceeded, parameter problem. (The reference
            // takes 18, address mask reply, for the last one.)
            (Version::V4, 3 | 11 | 12, _)
            // Unreachable, too big, time exceeded, parameter problem.
            | (Version::V6, 1..=4, _) => Some(Self::Error { kind, code, quoted: data }),
            _ => other,
        }
    }
}

/// The flow of the packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// The sender of the quoted packet.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Its protocol; with IPv6 extension headers, the first header's number.
    pub protocol: Protocol,
    /// Source port, where the quote reaches that far and the protocol has one.
    pub src_port: Option<u16>,
    /// Destination port, likewise.
    pub dst_port: Option<u16>,
}

impl Quoted {
    /// Reads the start of a packet that may be cut off anywhere behind its IP
    /// header.
    #[must_use]
    pub fn parse(quoted: &[u8]) -> Option<Self> {
        match quoted.first()? >> 4 {
            4 => {
                let h: &[u8; IPV4_HEADER_LEN] = quoted.first_chunk()?;
                let later = u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0;
                let header_len = usize::from(h[0] & 0x0f) * 4;
                if header_len < IPV4_HEADER_LEN {
                    return None;
                }
                let src = Ipv4Addr::new(h[12], h[13], h[14], h[15]);
                let dst = Ipv4Addr::new(h[16], h[17], h[18], h[19]);
                let rest = quoted.get(header_len..).filter(|_| !later);
                Some(Self::with_ports(
                    src.into(),
                    dst.into(),
                    Protocol(h[9]),
                    rest,
                ))
            }
            6 => {
                let h: &[u8; IPV6_HEADER_LEN] = quoted.first_chunk()?;
                let src: &[u8; 16] = h.get(8..)?.first_chunk()?;
                let dst: &[u8; 16] = h.get(24..)?.first_chunk()?;
                let rest = quoted.get(IPV6_HEADER_LEN..);
                Some(Self::with_ports(
                    Ipv6Addr::from(*src).into(),
                    Ipv6Addr::from(*dst).into(),
                    Protocol(h[6]),
                    rest,
                ))
            }
            _ => None,
        }
    }

    fn with_ports(src: IpAddr, dst: IpAddr, protocol: Protocol, rest: Option<&[u8]>) -> Self {
        let ports = rest
            .filter(|_| protocol.has_ports())
            .and_then(|rest| rest.first_chunk::<4>());
        Self {
            src,
            dst,
            protocol,
            src_port: ports.map(|p| u16::from_be_bytes([p[0], p[1]])),
            dst_port: ports.map(|p| u16::from_be_bytes([p[2], p[3]])),
        }
    }
}

/// Turns an echo request into its reply where it lies: addresses swapped, type
/// changed, checksums right, TTL renewed. Returns whether it was a whole echo
/// request; otherwise nothing is changed.
pub fn reply_in_place(bytes: &mut [u8]) -> bool {
    let Ok(packet) = IpPacket::parse(bytes) else {
        return false;
    };
    if packet.fragment != Fragment::Whole || !matches!(packet.icmp(), Some(Icmp::EchoRequest(_))) {
        return false;
    }
    let parsed = *packet.parsed();
    // The ranges below lie inside the headers that were parsed above.
    let (kind, addresses, width, ttl) = match parsed.version {
        Version::V4 => (V4_ECHO_REPLY, 12, 4, 8),
        Version::V6 => (V6_ECHO_REPLY, 8, 16, 7),
    };
    let Some(pair) = bytes.get_mut(addresses..addresses + 2 * width) else {
        return false;
    };
    let (src, dst) = pair.split_at_mut(width);
    src.swap_with_slice(dst);
    let at = parsed.transport_offset;
    if let Some(field) = bytes.get_mut(ttl) {
        *field = super::TTL;
    }
    if parsed.version == Version::V4 {
        refresh_v4_checksum(bytes, at);
    }
    let Some(message) = bytes.get_mut(at..parsed.total_len) else {
        return false;
    };
    let Some(head) = message.first_chunk_mut::<4>() else {
        return false;
    };
    // Swapping the addresses leaves the pseudo header's sum as it was, so only
    // the type changes.
    let old = [head[0], head[1]];
    head[0] = kind;
    let sum = checksum::update(
        u16::from_be_bytes([head[2], head[3]]),
        &old,
        &[head[0], head[1]],
    );
    [head[2], head[3]] = sum.to_be_bytes();
    true
}

/// Computes the IPv4 header checksum of `packet` again; its header has
/// `header_len` bytes, at least twenty.
fn refresh_v4_checksum(packet: &mut [u8], header_len: usize) {
    let Some(header) = packet.get_mut(..header_len) else {
        return;
    };
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
    }
    let sum = checksum::checksum(header);
    if let Some(field) = header.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Builds an echo request (`warren ping` through the tunnel, probes).
pub fn echo_request(
    src: IpAddr,
    dst: IpAddr,
    echo: Echo<'_>,
) -> Result<Vec<u8>, super::BuildError> {
    let (protocol, kind) = match src {
        IpAddr::V4(_) => (Protocol::ICMPV4, V4_ECHO_REQUEST),
        IpAddr::V6(_) => (Protocol::ICMPV6, V6_ECHO_REQUEST),
    };
    let mut message = Vec::with_capacity(HEADER_LEN + echo.data.len());
    message.extend_from_slice(&[kind, 0, 0, 0]);
    message.extend_from_slice(&echo.ident.to_be_bytes());
    message.extend_from_slice(&echo.sequence.to_be_bytes());
    message.extend_from_slice(echo.data);
    let sum = match src {
        IpAddr::V4(_) => checksum::checksum(&message),
        IpAddr::V6(_) => checksum::transport_checksum(src, dst, protocol, &message),
    };
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = super::header(
        src,
        dst,
        protocol,
        echo.ident ^ echo.sequence,
        message.len(),
    )?;
    packet.extend_from_slice(&message);
    Ok(packet)
}
