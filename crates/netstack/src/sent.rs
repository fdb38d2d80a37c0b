//! The sequence number of segments without data.
//!
//! Such a segment has to carry SND.NXT, the number behind all that was sent (RFC 9293,
//! section 3.10). After a retransmission timeout smoltcp goes back to the first byte that is not
//! acknowledged, and acknowledges with that number too. The other side takes the segment for an
//! old one and drops it, the acknowledgment included. Where both sides have gone back, neither
//! gets an acknowledgment any more. So the number is corrected here.
//!
//! The byte of a probe of a closed window does not count as sent: the other side drops it, and
//! expects the number in front of it.

use warren_wire::ip::{Parsed, Protocol, TcpFlags};

/// Where the sequence number is in a TCP header.
const SEQUENCE: usize = 4;

/// Where the acknowledgment and the window are in a TCP header.
const ACKNOWLEDGMENT: usize = 8;
const WINDOW: usize = 14;

/// The number behind all that one side of a connection has sent.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    end: Option<u32>,
    /// The newest acknowledgment of the other side.
    acknowledged: Option<u32>,
    /// Whether that closed the window.
    is_window_closed: bool,
}

impl Sent {
    /// Notes the window in a packet of the other side.
    pub(crate) fn received(&mut self, packet: &[u8]) {
        let Ok(parsed) = Parsed::parse(packet) else {
            return;
        };
        let segment = packet.get(parsed.transport_offset..).unwrap_or_default();
        let acknowledged = segment.get(ACKNOWLEDGMENT..).and_then(<[u8]>::first_chunk);
        let window = segment.get(WINDOW..).and_then(<[u8]>::first_chunk::<2>);
        let (Some(acknowledged), Some(window)) = (acknowledged, window) else {
            return;
        };
        if parsed.protocol != Protocol::TCP || !parsed.tcp_flags.has(TcpFlags::ACK) {
            return;
        }
        let number = u32::from_be_bytes(*acknowledged);
        let is_old = |newest: u32| number.wrapping_sub(newest) > u32::MAX / 2;
        if !self.acknowledged.is_some_and(is_old) {
            self.acknowledged = Some(number);
            self.is_window_closed = *window == [0, 0];
        }
    }

    /// Notes a packet that is sent, and corrects the sequence number of one without data. Its
    /// checksum is not changed.
    pub(crate) fn correct(&mut self, packet: &mut [u8]) {
        let Ok(parsed) = Parsed::parse(packet) else {
            return;
        };
        let flags = parsed.tcp_flags;
        if parsed.protocol != Protocol::TCP || flags.has(TcpFlags::RST) {
            return;
        }
        let start = parsed.transport_offset;
        let Some(segment) = packet.get_mut(start..parsed.total_len) else {
            return;
        };
        let header_len = segment.get(12).map_or(0, |it| usize::from(*it >> 4) * 4);
        let content = segment.len().saturating_sub(header_len);
        let Some(field) = segment.get_mut(SEQUENCE..SEQUENCE + 4) else {
            return;
        };
        let Some(number) = field.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
            return;
        };
        let occupied =
            content + usize::from(flags.has(TcpFlags::SYN)) + usize::from(flags.has(TcpFlags::FIN));
        if content == 1 && self.is_window_closed && !flags.has(TcpFlags::FIN) {
            return;
        }
        // A superpacket has at most 64 KiB.
        let end = number.wrapping_add(u32::try_from(occupied).unwrap_or(0));
        let is_behind = |other: u32| end.wrapping_sub(other) > u32::MAX / 2;
        match self.end {
            Some(highest) if is_behind(highest) => {
                if occupied == 0 {
                    field.copy_from_slice(&highest.to_be_bytes());
                }
            }
            _ => self.end = Some(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(number: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[24..28].copy_from_slice(&number.to_be_bytes());
        packet[32] = 5 << 4;
        packet[33] = flags;
        packet.extend_from_slice(data);
        packet[3] = packet.len() as u8;
        packet
    }

    fn number(sent: &mut Sent, packet: &[u8]) -> u32 {
        let mut packet = packet.to_vec();
        sent.correct(&mut packet);
        u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]])
    }

    #[test]
    fn a_probe_of_a_closed_window_does_not_count() {
        let ack = TcpFlags::ACK;
        let mut sent = Sent::default();
        let mut closed = segment(7, ack, b"");
        closed[28..32].copy_from_slice(&50_u32.to_be_bytes());
        assert_eq!(number(&mut sent, &segment(40, ack, b"0123456789")), 40);
        sent.received(&closed);
        assert_eq!(number(&mut sent, &segment(50, ack, b"x")), 50);
        assert_eq!(number(&mut sent, &segment(50, ack, b"")), 50);
        // An older one comes late and opens nothing.
        closed[28..32].copy_from_slice(&40_u32.to_be_bytes());
        closed[34..36].copy_from_slice(&[1, 0]);
        sent.received(&closed);
        assert_eq!(number(&mut sent, &segment(50, ack, b"x")), 50);
        assert_eq!(number(&mut sent, &segment(50, ack, b"")), 50);
        closed[28..32].copy_from_slice(&51_u32.to_be_bytes());
        sent.received(&closed);
        assert_eq!(number(&mut sent, &segment(51, ack, b"y")), 51);
        assert_eq!(number(&mut sent, &segment(51, ack, b"")), 52);
    }

    #[test]
    fn segments_without_data_carry_the_highest_number() {
        let (ack, syn, fin) = (TcpFlags::ACK, TcpFlags::SYN, TcpFlags::FIN);
        let mut sent = Sent::default();
        let start = u32::MAX - 2;
        assert_eq!(number(&mut sent, &segment(start, syn, b"")), start);
        assert_eq!(
            number(&mut sent, &segment(u32::MAX - 1, ack, b"")),
            u32::MAX - 1
        );
        assert_eq!(
            number(&mut sent, &segment(u32::MAX - 1, ack, b"data")),
            u32::MAX - 1
        );
        assert_eq!(number(&mut sent, &segment(2, ack | fin, b"x")), 2);
        // It goes back; data and resets stay where they belong.
        assert_eq!(
            number(&mut sent, &segment(u32::MAX - 1, ack, b"data")),
            u32::MAX - 1
        );
        assert_eq!(number(&mut sent, &segment(1, TcpFlags::RST, b"")), 1);
        assert_eq!(number(&mut sent, &segment(2, ack, b"")), 4);
        assert_eq!(number(&mut sent, &segment(4, ack, b"")), 4);
    }
}
