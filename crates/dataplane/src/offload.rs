//! The header in front of every packet on a TUN device with offloads.
//!
//! `struct virtio_net_hdr` (Virtio 1.2, section 5.1.6) as the kernel's TUN
//! device uses it: 10 bytes in the byte order of the machine.

/// Bytes of the header.
pub const VNET_HDR_LEN: usize = 10;

/// The transport checksum is not final: it covers the pseudo header only.
const NEEDS_CSUM: u8 = 1;
/// Set beside a TCP type when the connection uses congestion notification;
/// the segments are cut in the same way.
const GSO_ECN: u8 = 0x80;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// The kind of superpacket that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoType {
    /// An ordinary packet.
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either.
    Udp,
}

/// The fields of the virtio header. Its header length is not read: the kernel does
/// not promise that it is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetHdr {
    /// Where the unfinished checksum begins to count, and where behind that it
    /// is stored, in bytes; `None` when all checksums are final.
    pub checksum: Option<(u16, u16)>,
    /// Whether and how the packet is to be cut.
    pub gso: GsoType,
    /// Payload bytes per segment; only with a `gso` other than `None`.
    pub gso_size: u16,
    /// Length of all headers; written for the kernel, 0 when read.
    pub hdr_len: u16,
}

impl VnetHdr {
    /// The header of an ordinary, finished packet: all zero.
    pub const PLAIN: Self = Self {
        checksum: None,
        gso: GsoType::None,
        gso_size: 0,
        hdr_len: 0,
    };

    /// Splits `frame` into header and packet; `None` when it is too short or
    /// of an unknown kind.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, packet) = frame.split_first_chunk::<VNET_HDR_LEN>()?;
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let gso = match header[1] & !GSO_ECN {
            GSO_NONE => GsoType::None,
            GSO_TCPV4 => GsoType::TcpV4,
            GSO_TCPV6 => GsoType::TcpV6,
            GSO_UDP_L4 => GsoType::Udp,
            _ => return None,
        };
        let checksum = (header[0] & NEEDS_CSUM != 0).then(|| (half(6), half(8)));
        Some((
            Self {
                checksum,
                gso,
                gso_size: half(4),
                hdr_len: 0,
            },
            packet,
        ))
    }

    /// The bytes of the header.
    #[inline]
    pub fn to_bytes(self) -> [u8; VNET_HDR_LEN] {
        let mut out = [0; VNET_HDR_LEN];
        out[1] = match self.gso {
            GsoType::None => GSO_NONE,
            GsoType::TcpV4 => GSO_TCPV4,
            GsoType::TcpV6 => GSO_TCPV6,
            GsoType::Udp => GSO_UDP_L4,
        };
        out[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        out[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        if let Some((start, offset)) = self.checksum {
            out[0] = NEEDS_CSUM;
            out[6..8].copy_from_slice(&start.to_ne_bytes());
            out[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some((header, packet)) = VnetHdr::parse(&bytes) {
                prop_assert_eq!(packet, &bytes[VNET_HDR_LEN..]);
                let again = header.to_bytes();
                prop_assert_eq!(VnetHdr::parse(&again), Some((header, &[][..])));
            }
        }
    }

    #[test]
    fn unknown_kinds_are_refused() {
        // The old, fragmenting UDP offload.
        assert_eq!(VnetHdr::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(VnetHdr::parse(&[0; 9]), None);
        assert_eq!(VnetHdr::parse(&[0; 10]), Some((VnetHdr::PLAIN, &[][..])));
    }
}
