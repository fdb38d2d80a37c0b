//! Cutting a superpacket into the packets it stands for.
//!
//! The host hands over one TCP or UDP packet of up to 64 KiB with a segment
//! size. A [`Plan`] is made once per packet: it checks that the headers fit
//! together and sums up what all segments share. Then each segment is written
//! to where it is needed, headers patched and checksums completed from that
//! shared sum and its own payload, which is therefore read exactly once.
//!
//! A packet that is not to be cut is a plan of one segment.

use warren_wire::ip::checksum::Sum;
use warren_wire::ip::{Fragment, IpPacket, Protocol, TcpFlags, Version};

use super::{GsoType, VnetHdr, checksum};

const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const CWR: u8 = 0x80;

/// How one frame from the TUN device becomes packets.
pub(super) struct Plan<'a> {
    packet: &'a [u8],
    cut: Cut,
}

enum Cut {
    /// One packet, perhaps with a checksum to complete.
    Whole {
        checksum: Option<Missing>,
    },
    Segments(Segments),
}

/// A checksum to complete.
#[derive(Clone, Copy)]
struct Missing {
    /// From where the packet is summed up.
    start: usize,
    /// Where the sum is written.
    field: usize,
    is_udp: bool,
}

struct Segments {
    version: Version,
    transport: TransportKind,
    /// Where the transport header begins.
    transport_offset: usize,
    /// Length of all headers.
    header_len: usize,
    /// Payload bytes per segment, at least 1.
    size: usize,
    count: usize,
    /// Sum of the IPv4 header without total length, identification, checksum.
    ip_sum: Sum,
    /// Sum of pseudo header (without length) and transport header without
    /// the fields that differ.
    transport_sum: Sum,
}

enum TransportKind {
    Tcp { sequence: u32, flags: [u8; 2] },
    Udp,
}

impl<'a> Plan<'a> {
    /// `None` when the headers contradict each other.
    pub(super) fn new(vnet: &VnetHdr, packet: &IpPacket<'a>) -> Option<Self> {
        let bytes = packet.bytes();
        let cut = match vnet.gso {
            GsoType::None => whole(vnet, packet)?,
            GsoType::TcpV4 | GsoType::TcpV6 | GsoType::Udp => {
                Cut::Segments(Segments::new(vnet, packet)?)
            }
        };
        Some(Self { packet: bytes, cut })
    }

    /// How many packets there are, at least 1.
    #[inline]
    pub(super) fn count(&self) -> usize {
        match &self.cut {
            Cut::Whole { .. } => 1,
            Cut::Segments(segments) => segments.count,
        }
    }

    /// Length of packet `i` in bytes.
    #[inline]
    pub(super) fn len(&self, i: usize) -> usize {
        match &self.cut {
            Cut::Whole { .. } => self.packet.len(),
            Cut::Segments(s) => {
                let payload = self.packet.len() - s.header_len;
                s.header_len + payload.saturating_sub(i * s.size).min(s.size)
            }
        }
    }

    /// Writes packet `i` to `out`, which has exactly [`len`](Self::len) bytes.
    #[inline]
    pub(super) fn write(&self, i: usize, out: &mut [u8]) {
        debug_assert_eq!(out.len(), self.len(i));
        match &self.cut {
            Cut::Whole { checksum } => {
                out.copy_from_slice(self.packet);
                if let Some(missing) = *checksum {
                    complete(out, missing);
                }
            }
            Cut::Segments(segments) => segments.write(self.packet, i, out),
        }
    }
}

fn whole(vnet: &VnetHdr, packet: &IpPacket<'_>) -> Option<Cut> {
    let Some((start, offset)) = vnet.checksum else {
        return Some(Cut::Whole { checksum: None });
    };
    let start = usize::from(start);
    let field = start + usize::from(offset);
    // In front of the transport there is nothing to complete: addresses that
    // were judged would become others.
    let fits = start >= packet.transport_offset && field + 2 <= packet.bytes().len();
    fits.then_some(Cut::Whole {
        checksum: Some(Missing {
            start,
            field,
            is_udp: packet.protocol == Protocol::UDP,
        }),
    })
}

/// Finishes a checksum whose field holds the sum of the pseudo header.
fn complete(packet: &mut [u8], missing: Missing) {
    let Some(counted) = packet.get(missing.start..) else {
        return;
    };
    let sum = checksum::add(Sum::new(), counted).finish();
    let sum = if missing.is_udp { non_zero(sum) } else { sum };
    put(packet, missing.field, sum.to_be_bytes());
}

/// For UDP zero means "no checksum"; ones' complement has a second zero.
fn non_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

#[inline]
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(at..at + N) {
        field.copy_from_slice(&value);
    }
}

#[inline]
fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

impl Segments {
    fn new(vnet: &VnetHdr, packet: &IpPacket<'_>) -> Option<Self> {
        let bytes = packet.bytes();
        let offset = packet.transport_offset;
        let (protocol, field) = match (vnet.gso, packet.version) {
            (GsoType::TcpV4, Version::V4) | (GsoType::TcpV6, Version::V6) => {
                (Protocol::TCP, TCP_CHECKSUM)
            }
            (GsoType::Udp, Version::V4 | Version::V6) => (Protocol::UDP, UDP_CHECKSUM),
            (GsoType::None | GsoType::TcpV4 | GsoType::TcpV6, _) => return None,
        };
        let placed = vnet
            .checksum
            .is_none_or(|(start, at)| usize::from(start) == offset && at == field);
        if packet.protocol != protocol
            || packet.fragment != Fragment::Whole
            || !placed
            || vnet.gso_size == 0
        {
            return None;
        }
        let transport = packet.transport();
        let (transport_len, kind) = if protocol == Protocol::TCP {
            let [high, low] = take::<2>(transport, 12)?;
            let len = usize::from(high >> 4) * 4;
            if len < TCP_HEADER_LEN {
                return None;
            }
            let sequence = u32::from_be_bytes(take(transport, 4)?);
            (
                len,
                TransportKind::Tcp {
                    sequence,
                    flags: [high, low],
                },
            )
        } else {
            (UDP_HEADER_LEN, TransportKind::Udp)
        };
        let header = transport.get(..transport_len)?;
        let size = usize::from(vnet.gso_size);
        let payload = transport.len() - transport_len;

        let ip_sum = match packet.version {
            Version::V4 => {
                let header = bytes.get(..offset)?;
                // Left out: total length and identification at 2, checksum.
                Sum::new()
                    .bytes(header.get(..2)?)
                    .bytes(header.get(6..10)?)
                    .bytes(header.get(12..)?)
            }
            Version::V6 => Sum::new(),
        };
        let pseudo = Sum::new()
            .address(packet.src)
            .address(packet.dst)
            .word(u16::from(protocol.0));
        let transport_sum = match kind {
            // Left out: sequence at 4, offset and flags at 12, checksum at 16.
            TransportKind::Tcp { .. } => pseudo
                .bytes(header.get(..4)?)
                .bytes(header.get(8..12)?)
                .bytes(header.get(14..16)?)
                .word(u16::from_be_bytes(take(header, 18)?))
                .bytes(header.get(20..)?),
            // Left out: length and checksum.
            TransportKind::Udp => pseudo.bytes(header.get(..4)?),
        };
        Some(Self {
            version: packet.version,
            transport: kind,
            transport_offset: offset,
            header_len: offset + transport_len,
            size,
            count: payload.div_ceil(size).max(1),
            ip_sum,
            transport_sum,
        })
    }

    #[inline]
    fn write(&self, packet: &[u8], i: usize, out: &mut [u8]) {
        let start = self.header_len + i * self.size;
        let Some((header, payload)) = out.split_at_mut_checked(self.header_len) else {
            return;
        };
        let Some(from) = packet.get(start..start + payload.len()) else {
            return;
        };
        let Some(shared) = packet.get(..self.header_len) else {
            return;
        };
        header.copy_from_slice(shared);
        let payload_sum = checksum::copy(from, payload);
        let total = self.header_len + payload.len();
        self.patch_ip(header, i, total);
        self.patch_transport(header, i, payload_sum, total - self.transport_offset);
    }

    fn patch_ip(&self, header: &mut [u8], i: usize, total: usize) {
        // Both fit: the superpacket as a whole had 16-bit lengths.
        match self.version {
            Version::V4 => {
                let total = total as u16;
                let id = u16::from_be_bytes(take(header, 4).unwrap_or_default());
                let id = id.wrapping_add(i as u16);
                put(header, 2, total.to_be_bytes());
                put(header, 4, id.to_be_bytes());
                put(
                    header,
                    10,
                    self.ip_sum.word(total).word(id).finish().to_be_bytes(),
                );
            }
            Version::V6 => {
                let length = total - warren_wire::ip::IPV6_HEADER_LEN;
                put(header, 4, (length as u16).to_be_bytes());
            }
        }
    }

    fn patch_transport(&self, header: &mut [u8], i: usize, payload_sum: u16, len: usize) {
        let at = self.transport_offset;
        // Fits: see `patch_ip`. Counted once in the pseudo header.
        let sum = self.transport_sum.word(len as u16).word(payload_sum);
        match self.transport {
            TransportKind::Tcp {
                sequence,
                flags: [offset, flags],
            } => {
                let sequence = sequence.wrapping_add((i * self.size) as u32).to_be_bytes();
                let mut kept = flags;
                if i + 1 < self.count {
                    kept &= !(TcpFlags::FIN | TcpFlags::PSH);
                }
                if i > 0 {
                    kept &= !CWR;
                }
                let word = [offset, kept];
                put(header, at + 4, sequence);
                put(header, at + 12, word);
                let sum = sum.bytes(&sequence).word(u16::from_be_bytes(word));
                put(
                    header,
                    at + usize::from(TCP_CHECKSUM),
                    sum.finish().to_be_bytes(),
                );
            }
            TransportKind::Udp => {
                put(header, at + 4, (len as u16).to_be_bytes());
                let sum = non_zero(sum.word(len as u16).finish());
                put(header, at + usize::from(UDP_CHECKSUM), sum.to_be_bytes());
            }
        }
    }
}
