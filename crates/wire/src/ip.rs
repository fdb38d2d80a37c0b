//! IP packets as they travel inside the tunnel: reading, answering, building.
//!
//! A packet comes from the TUN device or out of a WireGuard session as a byte
//! slice. [`IpPacket::parse`] looks at it once and yields a view that carries
//! everything the data plane decides on: family, transport protocol, the two
//! addresses and ports, TCP flags, fragment position and where the transport
//! header starts. Nothing is copied and nothing is allocated. Bytes behind the
//! packet's own total length (WireGuard padding) are cut off the view.
//!
//! A packet that cannot be filtered safely is [`Malformed`]; nothing is
//! guessed. That concerns truncated headers, first fragments that do
//! not hold the whole transport header, later fragments that could overwrite
//! it, extension header chains without end. IPv6 extension headers are walked,
//! so that the protocol and ports seen here are those that the receiving host
//! will act on.
//!
//! The submodules are the protocols inside: [`icmp`] (echo, errors), [`tsmp`]
//! (messages between nodes, protocol 99), [`udp`] (datagrams we write
//! ourselves) and [`checksum`].
//!
//! This module never reassembles fragments and never verifies checksums while
//! parsing: with offloads the transport checksum of a packet from the TUN
//! device is not final yet.

pub mod checksum;
pub mod icmp;
mod parse;
pub mod tcp;
pub mod tsmp;
pub mod udp;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use thiserror::Error;

/// Length of an IPv4 header without options, in bytes.
pub const IPV4_HEADER_LEN: usize = 20;
/// Length of the fixed IPv6 header, in bytes.
pub const IPV6_HEADER_LEN: usize = 40;

/// The IP family of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// A transport protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMPV4: Self = Self(1);
    /// Multicast group management.
    pub const IGMP: Self = Self(2);
    /// Transmission control protocol.
    pub const TCP: Self = Self(6);
    /// User datagram protocol.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// IPv6 "no next header": a packet without transport.
    pub const NO_NEXT: Self = Self(59);
    /// Private use inside the tunnel: messages between nodes ([`tsmp`]).
    pub const TSMP: Self = Self(99);
    /// Stream control transmission protocol.
    pub const SCTP: Self = Self(132);

    /// Whether the first four bytes of the transport header are two ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }

    /// Bytes of the transport header that must be present for the packet to be
    /// filtered; 0 for protocols whose header is not looked at.
    #[must_use]
    pub const fn min_header_len(self) -> usize {
        match self {
            Self::ICMPV4 | Self::ICMPV6 => 4,
            Self::TSMP => 7,
            Self::IGMP | Self::UDP => 8,
            Self::SCTP => 12,
            Self::TCP => 20,
            _ => 0,
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMPV4 => f.write_str("ICMPv4"),
            Self::IGMP => f.write_str("IGMP"),
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::TSMP => f.write_str("TSMP"),
            Self::SCTP => f.write_str("SCTP"),
            Self(other) => write!(f, "protocol {other}"),
        }
    }
}

/// The low eight TCP flag bits (RFC 9293 section 3.1). Zero for other
/// protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Pass the data to the application at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 0x10;

    /// Whether this segment asks to open a connection: SYN without ACK.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Whether all of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}

/// The position of a packet in a fragmented datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// Not a fragment.
    Whole,
    /// The first fragment; it holds the complete transport header.
    First,
    /// A later fragment: no transport header, ports are zero.
    Later {
        /// Offset of the payload in the original datagram, in bytes.
        offset: u16,
    },
}

/// Why a packet cannot be filtered and has to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Malformed {
    /// Fewer bytes than the fixed IP header.
    #[error("packet is shorter than its IP header")]
    ShortHeader,
    /// The version nibble is neither 4 nor 6.
    #[error("IP version is neither 4 nor 6")]
    Version,
    /// The header length field is impossible.
    #[error("IP header length field is out of range")]
    HeaderLength,
    /// The header claims more bytes than there are.
    #[error("IP total length exceeds the packet")]
    TotalLength,
    /// The transport header is cut off.
    #[error("transport header is cut off")]
    ShortTransport,
    /// A later fragment starts where it could overwrite a transport header.
    #[error("fragment overlaps the transport header")]
    FragmentOverlap,
    /// A protocol that must not be fragmented (TSMP).
    #[error("fragmented packet of a protocol that is never fragmented")]
    FragmentForbidden,
    /// The IPv6 extension header chain is too long, cut off or illegal.
    #[error("IPv6 extension headers are cut off, out of order or too many")]
    Extensions,
    /// A source route that would lead the packet on from its destination.
    #[error("source routed packet")]
    SourceRoute,
    /// Protocol number 0 (as a transport) or 255.
    #[error("reserved protocol number")]
    Protocol,
}

/// The parsed headers of a packet. Plain data, valid for the bytes it was parsed
/// from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// The IP family.
    pub version: Version,
    /// The transport protocol, behind all IPv6 extension headers.
    pub protocol: Protocol,
    /// Position in a fragmented datagram.
    pub fragment: Fragment,
    /// TCP flags; zero unless `protocol` is TCP and this is not a later
    /// fragment.
    pub tcp_flags: TcpFlags,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port; zero for protocols without ports and later fragments.
    pub src_port: u16,
    /// Destination port; zero for protocols without ports and later fragments.
    pub dst_port: u16,
    /// Where the transport header (or fragment payload) begins: the length of
    /// the IP header with options and extension headers, in bytes.
    pub transport_offset: usize,
    /// Length of the whole packet according to its header, in bytes.
    pub total_len: usize,
}

impl Parsed {
    /// Reads the headers of `bytes`, which may have padding at the end.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        parse::parse(bytes)
    }

    /// Whether the packet opens a TCP connection (SYN without ACK).
    #[must_use]
    pub fn opens_tcp(&self) -> bool {
        self.protocol == Protocol::TCP && self.tcp_flags.opens()
    }

    /// Whether this is ICMP of the packet's own family.
    #[must_use]
    pub fn is_icmp(&self) -> bool {
        match self.version {
            Version::V4 => self.protocol == Protocol::ICMPV4,
            Version::V6 => self.protocol == Protocol::ICMPV6,
        }
    }

    /// Whether this is a later fragment, which has no transport header.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        matches!(self.fragment, Fragment::Later { .. })
    }
}

/// A parsed packet together with its bytes, cut to its total length.
#[derive(Clone, Copy)]
pub struct IpPacket<'a> {
    bytes: &'a [u8],
    parsed: Parsed,
}

impl<'a> IpPacket<'a> {
    /// Reads the headers of `bytes`. Padding behind the packet is not part of
    /// the view.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let parsed = parse::parse(bytes)?;
        let bytes = bytes
            .get(..parsed.total_len)
            .ok_or(Malformed::TotalLength)?;
        Ok(Self { bytes, parsed })
    }

    /// The packet from its IP header to its last byte.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The parsed headers.
    #[must_use]
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// The transport header and payload; for a later fragment its payload.
    #[must_use]
    pub fn transport(&self) -> &'a [u8] {
        self.bytes
            .get(self.parsed.transport_offset..)
            .unwrap_or_default()
    }

    /// The ICMP message of the packet's own family; `None` for other protocols
    /// and later fragments.
    #[must_use]
    pub fn icmp(&self) -> Option<icmp::Icmp<'a>> {
        if self.is_later_fragment() || !self.is_icmp() {
            return None;
        }
        icmp::Icmp::parse(self.parsed.version, self.transport())
    }

    /// The payload of a UDP datagram, by the length in its UDP header. `None`
    /// for other protocols, fragments and impossible lengths.
    #[must_use]
    pub fn udp_payload(&self) -> Option<&'a [u8]> {
        if self.parsed.protocol != Protocol::UDP || self.parsed.fragment != Fragment::Whole {
            return None;
        }
        udp::payload(self.transport())
    }

    /// The TSMP message in this packet; `None` for other protocols and for
    /// messages that are cut off or unknown.
    #[must_use]
    pub fn tsmp(&self) -> Option<tsmp::Message> {
        if self.parsed.protocol != Protocol::TSMP {
            return None;
        }
        tsmp::Message::parse(self.transport())
    }
}

impl Deref for IpPacket<'_> {
    type Target = Parsed;

    fn deref(&self) -> &Parsed {
        &self.parsed
    }
}

/// Packet contents stay out of logs: only the headers are shown.
impl fmt::Debug for IpPacket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.parsed;
        write!(
            f,
            "{} {}:{} > {}:{} len {}",
            p.protocol, p.src, p.src_port, p.dst, p.dst_port, p.total_len
        )
    }
}

/// Why a packet could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BuildError {
    /// Source and destination are of different families.
    #[error("source and destination address are of different IP families")]
    MixedFamilies,
    /// The payload does not fit into one IP packet.
    #[error("payload of {len} bytes does not fit into one IP packet")]
    TooLong {
        /// Bytes of payload that were given.
        len: usize,
    },
}

/// Time to live (hop limit) of packets this module writes.
const TTL: u8 = 64;

/// An IP header of ours in front of `transport_len` bytes that the caller
/// appends. IPv4: no options, DF clear, identification `ident`, checksum set.
fn header(
    src: IpAddr,
    dst: IpAddr,
    protocol: Protocol,
    ident: u16,
    transport_len: usize,
) -> Result<Vec<u8>, BuildError> {
    let too_long = BuildError::TooLong { len: transport_len };
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = u16::try_from(IPV4_HEADER_LEN + transport_len).map_err(|_| too_long)?;
            Ok(header_v4(src, dst, protocol, ident, total))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let payload = u16::try_from(transport_len).map_err(|_| too_long)?;
            Ok(header_v6(src, dst, protocol, payload))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            Err(BuildError::MixedFamilies)
        }
    }
}

fn header_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: Protocol, ident: u16, total: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(usize::from(total));
    out.extend_from_slice(&[0x45, 0]);
    out.extend_from_slice(&total.to_be_bytes());
    out.extend_from_slice(&ident.to_be_bytes());
    out.extend_from_slice(&[0, 0, TTL, protocol.0, 0, 0]);
    out.extend_from_slice(&src.octets());
    out.extend_from_slice(&dst.octets());
    let sum = checksum::checksum(&out);
    if let Some(field) = out.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    out
}

fn header_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: Protocol, payload: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(IPV6_HEADER_LEN + usize::from(payload));
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&payload.to_be_bytes());
    out.extend_from_slice(&[protocol.0, TTL]);
    out.extend_from_slice(&src.octets());
    out.extend_from_slice(&dst.octets());
    out
}
