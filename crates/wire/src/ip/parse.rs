//! The parser behind [`super::IpPacket`]: one pass over the IP header, the
//! IPv6 extension headers and the first bytes of the transport header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Fragment, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Malformed, Parsed, Protocol, TcpFlags, Version,
};

/// Later fragments that begin below this offset could overwrite a transport
/// header of up to 60 bytes (TCP with all options) plus slack: ten blocks of
/// eight bytes, as the reference draws the line.
const MIN_LATER_OFFSET: u16 = 80;

/// More extension headers than this are not found in honest traffic; the limit
/// bounds the work per packet.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let first = bytes.first().ok_or(Malformed::ShortHeader)?;
    match first >> 4 {
        4 => parse_v4(bytes),
        6 => parse_v6(bytes),
        _ => Err(Malformed::Version),
    }
}

fn parse_v4(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let header: &[u8; IPV4_HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::ShortHeader)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < IPV4_HEADER_LEN || header_len > total_len {
        return Err(Malformed::HeaderLength);
    }
    let packet = bytes.get(..total_len).ok_or(Malformed::TotalLength)?;
    if header_len > IPV4_HEADER_LEN {
        let options = packet.get(IPV4_HEADER_LEN..header_len);
        refuse_source_route(options.ok_or(Malformed::HeaderLength)?)?;
    }

    let flags_offset = u16::from_be_bytes([header[6], header[7]]);
    let more = flags_offset & 0x2000 != 0;
    // Thirteen bits of eight-byte blocks: at most 65528, fits.
    let offset = (flags_offset & 0x1fff) << 3;
    let fragment = match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        (offset, _) => Fragment::Later { offset },
    };
    let protocol = Protocol(header[9]);
    if protocol.0 == 0 {
        return Err(Malformed::Protocol);
    }
    let src = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let dst = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    transport(
        packet,
        Parsed {
            version: Version::V4,
            protocol,
            fragment,
            tcp_flags: TcpFlags::default(),
            src: IpAddr::V4(src),
            dst: IpAddr::V4(dst),
            src_port: 0,
            dst_port: 0,
            transport_offset: header_len,
            total_len,
        },
    )
}

/// Walks IPv4 options (RFC 791 section 3.1). A router among the nodes would
/// send a source routed packet on to a destination that no rule was asked
/// about.
fn refuse_source_route(mut options: &[u8]) -> Result<(), Malformed> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    while let Some((kind, rest)) = options.split_first() {
        options = match *kind {
            END => return Ok(()),
            NO_OPERATION => rest,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Malformed::SourceRoute),
            _ => {
                // The length counts kind and length too.
                let len = rest.first().map_or(0, |len| usize::from(*len));
                let behind = options.get(len..).filter(|_| len >= 2);
                behind.ok_or(Malformed::HeaderLength)?
            }
        };
    }
    Ok(())
}

fn parse_v6(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let header: &[u8; IPV6_HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::ShortHeader)?;
    let total_len = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let packet = bytes.get(..total_len).ok_or(Malformed::TotalLength)?;
    let (src, rest) = header[8..]
        .split_first_chunk::<16>()
        .ok_or(Malformed::ShortHeader)?;
    let dst: &[u8; 16] = rest.first_chunk().ok_or(Malformed::ShortHeader)?;

    let chain = walk_extensions(packet, header[6])?;
    if chain.fragment == Fragment::First
        && chain.behind_fragment + chain.protocol.min_header_len() > usize::from(MIN_LATER_OFFSET)
    {
        // Extension headers push the transport header to where a later
        // fragment may begin.
        return Err(Malformed::FragmentOverlap);
    }
    transport(
        packet,
        Parsed {
            version: Version::V6,
            protocol: chain.protocol,
            fragment: chain.fragment,
            tcp_flags: TcpFlags::default(),
            src: IpAddr::V6(Ipv6Addr::from(*src)),
            dst: IpAddr::V6(Ipv6Addr::from(*dst)),
            src_port: 0,
            dst_port: 0,
            transport_offset: chain.end,
            total_len,
        },
    )
}

/// The chain of extension headers behind the fixed IPv6 header.
struct Chain {
    protocol: Protocol,
    fragment: Fragment,
    end: usize,
    /// Bytes of extension headers behind the fragment header.
    behind_fragment: usize,
}

/// Follows hop-by-hop, routing, destination option and fragment headers
/// (RFC 8200 section 4). Authentication (51) and ESP (50) stay protocols of
/// their own: policies name them as such.
fn walk_extensions(packet: &[u8], first: u8) -> Result<Chain, Malformed> {
    let mut next = first;
    let mut end = IPV6_HEADER_LEN;
    let mut fragment = Fragment::Whole;
    let mut fragmentable = end;
    for step in 0..=MAX_EXTENSIONS {
        // Behind the fragment header of a later fragment there is only data;
        // the chain goes on in the first fragment.
        if matches!(fragment, Fragment::Later { .. }) {
            return Ok(Chain {
                protocol: Protocol(next),
                fragment,
                end,
                behind_fragment: 0,
            });
        }
        match next {
            // Only directly behind the fixed header (RFC 8200 section 4.3).
            HOP_BY_HOP if step > 0 => return Err(Malformed::Extensions),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let fixed: &[u8; 4] = packet
                    .get(end..)
                    .and_then(|rest| rest.first_chunk())
                    .ok_or(Malformed::Extensions)?;
                // With stops left it would go on to a destination that no rule
                // was asked about, whatever its type (RFC 5095 forbids type 0).
                if next == ROUTING && fixed[3] != 0 {
                    return Err(Malformed::SourceRoute);
                }
                next = fixed[0];
                end += (usize::from(fixed[1]) + 1) * 8;
            }
            FRAGMENT => {
                // A second fragment header has no honest use.
                if fragment != Fragment::Whole {
                    return Err(Malformed::Extensions);
                }
                let fixed: &[u8; 8] = packet
                    .get(end..)
                    .and_then(|rest| rest.first_chunk())
                    .ok_or(Malformed::Extensions)?;
                let field = u16::from_be_bytes([fixed[2], fixed[3]]);
                next = fixed[0];
                end += 8;
                fragmentable = end;
                fragment = match (field & 0xfff8, field & 1 != 0) {
                    // "Atomic" fragment (RFC 6946): whole, with a header.
                    (0, false) => Fragment::Whole,
                    (0, true) => Fragment::First,
                    (offset, _) => Fragment::Later { offset },
                };
            }
            other => {
                if end > packet.len() {
                    return Err(Malformed::Extensions);
                }
                return Ok(Chain {
                    protocol: Protocol(other),
                    fragment,
                    end,
                    behind_fragment: end - fragmentable,
                });
            }
        }
    }
    Err(Malformed::Extensions)
}

/// Reads what the filter needs from the transport header.
fn transport(packet: &[u8], mut parsed: Parsed) -> Result<Parsed, Malformed> {
    let protocol = parsed.protocol;
    if protocol.0 == 0xff {
        return Err(Malformed::Protocol);
    }
    if protocol == Protocol::TSMP && parsed.fragment != Fragment::Whole {
        return Err(Malformed::FragmentForbidden);
    }
    if let Fragment::Later { offset } = parsed.fragment {
        if offset < MIN_LATER_OFFSET {
            return Err(Malformed::FragmentOverlap);
        }
        return Ok(parsed);
    }
    let transport = packet
        .get(parsed.transport_offset..)
        .ok_or(Malformed::ShortTransport)?;
    if transport.len() < protocol.min_header_len() {
        return Err(Malformed::ShortTransport);
    }
    if protocol.has_ports() {
        let ports: &[u8; 4] = transport.first_chunk().ok_or(Malformed::ShortTransport)?;
        parsed.src_port = u16::from_be_bytes([ports[0], ports[1]]);
        parsed.dst_port = u16::from_be_bytes([ports[2], ports[3]]);
        if protocol == Protocol::TCP {
            parsed.tcp_flags = TcpFlags(*transport.get(13).ok_or(Malformed::ShortTransport)?);
        }
    }
    Ok(parsed)
}
