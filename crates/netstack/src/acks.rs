//! Acknowledgments, as smoltcp needs them to send fast.
//!
//! Its congestion window grows by one segment for each acknowledgment, however many
//! bytes that covers. Receivers that get superpackets acknowledge each with one ACK, and
//! on a long way the window would stay small for seconds. So an ACK of several segments
//! is given to smoltcp as one for each of them (byte counting, RFC 3465).
//!
//! It also ignores selective acknowledgments (RFC 2018), so of several losses in one
//! window it repairs the first, and then waits for a timeout. While one is repaired, an
//! ACK that reaches the next hole shows by its SACK option that later data has arrived:
//! three duplicates make smoltcp send that segment again at once (as in RFC 6582).

use warren_wire::ip::{Parsed, Protocol, TcpFlags};

const TCP_HEADER_LEN: usize = 20;
/// Where the acknowledgment is in a TCP header.
const ACKNOWLEDGMENT: usize = 8;
const PADDING: u8 = 1;
const SACK: u8 = 5;
/// Most ACKs for one: those of a superpacket.
const MOST_PIECES: u32 = 64;
/// Duplicates after which a segment counts as lost (RFC 5681).
const DUPLICATES: u8 = 3;

/// The acknowledgments of one connection.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// The highest one so far.
    acknowledged: Option<u32>,
    /// How often it came again with later data acknowledged.
    duplicates: u8,
}

/// Copies of a packet for smoltcp, beside the packet itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expanded {
    /// Acknowledgment numbers of copies in front of it.
    pub(crate) before: Vec<u32>,
    /// The number of copies behind it.
    pub(crate) behind: u8,
    /// It repeats the acknowledgment before it and carries nothing else.
    pub(crate) is_duplicate: bool,
}

impl Acks {
    /// Looks at a packet of the other side.
    pub(crate) fn expand(&mut self, packet: &[u8], segment_len: u16) -> Expanded {
        let mut expanded = Expanded::default();
        let Some(ack) = Ack::read(packet) else {
            return expanded;
        };
        let Some(before) = self.acknowledged else {
            self.acknowledged = Some(ack.number);
            return expanded;
        };
        let advance = ack.number.wrapping_sub(before);
        if advance == 0 {
            if ack.has_sack {
                self.duplicates = self.duplicates.saturating_add(1);
            }
            expanded.is_duplicate = ack.is_pure;
            return expanded;
        }
        // An old one.
        if advance > u32::MAX / 2 {
            return expanded;
        }
        self.acknowledged = Some(ack.number);
        let is_recovering = self.duplicates >= DUPLICATES;
        self.duplicates = 0;
        if !ack.is_pure {
            return expanded;
        }
        if is_recovering && ack.has_sack {
            self.duplicates = DUPLICATES;
            expanded.behind = DUPLICATES;
            return expanded;
        }
        let segment_len = u32::from(segment_len.max(1));
        let pieces = (advance.div_ceil(segment_len)).min(MOST_PIECES);
        let piece = advance.div_ceil(pieces);
        expanded.before = (1..pieces)
            .map(|i| before.wrapping_add(i * piece))
            .take_while(|number| number.wrapping_sub(before) < advance)
            .collect();
        expanded
    }
}

/// Sets the acknowledgment number of a packet. Its checksum is not changed.
pub(crate) fn set_number(packet: &mut [u8], number: u32) {
    let Ok(parsed) = Parsed::parse(packet) else {
        return;
    };
    let at = parsed.transport_offset + ACKNOWLEDGMENT;
    if let Some(field) = packet.get_mut(at..at + 4) {
        field.copy_from_slice(&number.to_be_bytes());
    }
}

struct Ack {
    number: u32,
    /// It carries nothing else.
    is_pure: bool,
    has_sack: bool,
}

impl Ack {
    fn read(packet: &[u8]) -> Option<Self> {
        let parsed = Parsed::parse(packet).ok()?;
        let flags = parsed.tcp_flags;
        let is_synchronised = flags.0 & (TcpFlags::SYN | TcpFlags::RST) == 0;
        if parsed.protocol != Protocol::TCP || !flags.has(TcpFlags::ACK) || !is_synchronised {
            return None;
        }
        let segment = packet.get(parsed.transport_offset..parsed.total_len)?;
        let number = segment.get(ACKNOWLEDGMENT..)?.first_chunk()?;
        let header_len = usize::from(*segment.get(12)? >> 4) * 4;
        let options = segment.get(TCP_HEADER_LEN..header_len)?;
        Some(Self {
            number: u32::from_be_bytes(*number),
            is_pure: segment.len() == header_len && !flags.has(TcpFlags::FIN),
            has_sack: has_sack(options),
        })
    }
}

fn has_sack(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        match (*kind, rest) {
            (0, _) => return false,
            (PADDING, rest) => options = rest,
            (SACK, _) => return true,
            (_, [len, ..]) => {
                options = options
                    .get(usize::from((*len).max(2))..)
                    .unwrap_or_default();
            }
            (_, []) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An acknowledgment over IPv4, with a SACK option or data.
    fn ack(number: u32, sack: bool, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[28..32].copy_from_slice(&number.to_be_bytes());
        packet[32] = if sack { 8 << 4 } else { 5 << 4 };
        packet[33] = TcpFlags::ACK;
        if sack {
            packet.extend_from_slice(&[PADDING, PADDING, SACK, 10, 0, 0, 0, 9, 0, 0, 0, 10]);
        }
        packet.extend_from_slice(data);
        packet[3] = packet.len() as u8;
        packet
    }

    #[test]
    fn an_ack_of_several_segments_counts_as_one_for_each() {
        let mut acks = Acks::default();
        let start = u32::MAX - 1_500;
        acks.expand(&ack(start, false, b""), 1000);
        let expanded = acks.expand(&ack(start.wrapping_add(2_500), false, b""), 1000);
        let steps: Vec<u32> = expanded
            .before
            .iter()
            .map(|number| number.wrapping_sub(start))
            .collect();
        assert_eq!((steps, expanded.behind), (vec![834, 1668], 0));
        for (again, data) in [
            (2_500, &b""[..]),
            (2_000, b""),
            (2_501, b""),
            (9_000, b"data"),
        ] {
            let packet = ack(start.wrapping_add(again), false, data);
            let expanded = acks.expand(&packet, 1000);
            assert!(
                expanded.before.is_empty() && expanded.behind == 0,
                "{again}"
            );
            assert_eq!(expanded.is_duplicate, again == 2_500);
        }
    }

    #[test]
    fn a_second_hole_is_repaired_without_a_timeout() {
        let mut acks = Acks::default();
        acks.expand(&ack(0, false, b""), 1000);
        // The network reorders: one duplicate is no loss.
        acks.expand(&ack(0, true, b""), 1000);
        assert_eq!(acks.expand(&ack(500, true, b""), 1000).behind, 0);
        for _ in 0..3 {
            acks.expand(&ack(500, true, b""), 1000);
        }
        // Two more holes, one after the other; then none.
        assert_eq!(acks.expand(&ack(3_000, true, b""), 1000).behind, 3);
        assert_eq!(acks.expand(&ack(6_000, true, b""), 1000).behind, 3);
        assert_eq!(acks.expand(&ack(9_000, false, b""), 1000).behind, 0);
    }

    #[test]
    fn a_number_is_set_where_it_belongs() {
        let mut packet = ack(7, true, b"");
        set_number(&mut packet, 9);
        assert_eq!(packet, ack(9, true, b""));
    }
}
