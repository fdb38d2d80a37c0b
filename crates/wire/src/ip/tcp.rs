//! The one TCP segment that a node makes itself: the reset that refuses a
//! connection to an address where it serves nothing over TCP.

use super::{BuildError, Fragment, IpPacket, Protocol, TcpFlags, checksum};

/// Length of a TCP header without options, in bytes.
const HEADER_LEN: usize = 20;

const FIN: u8 = TcpFlags::FIN;
const SYN: u8 = TcpFlags::SYN;
const RST: u8 = TcpFlags::RST;
const ACK: u8 = TcpFlags::ACK;

/// The packet that refuses `packet`, by RFC 9293 section 3.10.7.1: to a segment
/// with an acknowledgment the reset takes its sequence number from that, else
/// it acknowledges what the segment occupies. `None` for anything but a whole
/// TCP segment that is not a reset itself.
pub fn reset_for(packet: &IpPacket<'_>) -> Option<Vec<u8>> {
    if packet.protocol != Protocol::TCP || packet.fragment != Fragment::Whole {
        return None;
    }
    let segment = packet.transport();
    let header: &[u8; HEADER_LEN] = segment.first_chunk()?;
    let flags = header[13];
    if flags & RST != 0 {
        return None;
    }
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (sequence, acknowledgment, reply_flags) = if flags & ACK != 0 {
        (number(8), 0, RST)
    } else {
        let options_end = usize::from(header[12] >> 4) * 4;
        let data = segment.len().saturating_sub(options_end.max(HEADER_LEN));
        let occupied =
            u32::try_from(data).ok()? + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, number(4).wrapping_add(occupied), RST | ACK)
    };
    let mut reset = [0u8; HEADER_LEN];
    reset[0..2].copy_from_slice(&packet.dst_port.to_be_bytes());
    reset[2..4].copy_from_slice(&packet.src_port.to_be_bytes());
    reset[4..8].copy_from_slice(&sequence.to_be_bytes());
    reset[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
    reset[12] = 5 << 4;
    reset[13] = reply_flags;
    let sum = checksum::transport_checksum(packet.dst, packet.src, Protocol::TCP, &reset);
    reset[16..18].copy_from_slice(&sum.to_be_bytes());
    let built: Result<_, BuildError> =
        super::header(packet.dst, packet.src, Protocol::TCP, 0, HEADER_LEN);
    let mut out = built.ok()?;
    out.extend_from_slice(&reset);
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A segment from 10.0.0.1:1000 to 100.100.100.100:53.
    fn segment(flags: u8, sequence: u32, acknowledgment: u32, data: &[u8]) -> Vec<u8> {
        let (src, dst) = (
            "10.0.0.1".parse().unwrap(),
            "100.100.100.100".parse().unwrap(),
        );
        let len = HEADER_LEN + data.len();
        let mut out = super::super::header(src, dst, Protocol::TCP, 0, len).unwrap();
        out.extend_from_slice(&1000u16.to_be_bytes());
        out.extend_from_slice(&53u16.to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&acknowledgment.to_be_bytes());
        out.extend_from_slice(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(data);
        out
    }

    fn refused(
        flags: u8,
        sequence: u32,
        acknowledgment: u32,
        data: &[u8],
    ) -> Option<(u8, u32, u32)> {
        let packet = segment(flags, sequence, acknowledgment, data);
        let reset = reset_for(&IpPacket::parse(&packet).unwrap())?;
        let reset = IpPacket::parse(&reset).unwrap();
        assert_eq!((reset.src_port, reset.dst_port), (53, 1000));
        let tcp = reset.transport();
        assert_eq!(
            checksum::transport_checksum(reset.src, reset.dst, Protocol::TCP, tcp),
            0
        );
        let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        Some((tcp[13], number(4), number(8)))
    }

    #[test]
    fn a_reset_fits_the_segment_it_refuses() {
        assert_eq!(refused(SYN, 7, 0, &[]), Some((RST | ACK, 0, 8)));
        assert_eq!(refused(SYN, u32::MAX, 0, &[]), Some((RST | ACK, 0, 0)));
        assert_eq!(refused(FIN, 7, 0, b"abc"), Some((RST | ACK, 0, 11)));
        assert_eq!(refused(ACK, 7, 99, b"abc"), Some((RST, 99, 0)));
        assert_eq!(refused(RST, 7, 0, &[]), None, "never answer a reset");
    }
}
