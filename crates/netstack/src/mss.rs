//! The maximum segment size option of a SYN (RFC 9293, section 3.7.1).

use warren_wire::ip::IpPacket;

/// The segment size of a sender that announces none.
pub(crate) const DEFAULT: u16 = 536;
/// The smallest segment size that is believed: with less, one byte of payload could cost
/// a packet.
pub(crate) const LEAST: u16 = 88;

const TCP_HEADER_LEN: usize = 20;
const END: u8 = 0;
const PADDING: u8 = 1;
const MSS: u8 = 2;

/// Sets the option of the SYN in `packet` to at most `most` and returns the resulting
/// segment size; without the option, [`DEFAULT`] or less. The checksum is not changed.
pub(crate) fn limit(packet: &mut [u8], most: u16) -> u16 {
    let Some(at) = position(packet) else {
        return DEFAULT.min(most);
    };
    let Some(field) = packet.get_mut(at..at + 2) else {
        return DEFAULT.min(most);
    };
    let announced = u16::from_be_bytes([field[0], field[1]]);
    // A zero counts as no option (RFC 9293 has no meaning for it).
    let announced = if announced == 0 { DEFAULT } else { announced };
    let size = announced.clamp(LEAST, most.max(LEAST));
    field.copy_from_slice(&size.to_be_bytes());
    size
}

/// Where the value of the option is in `packet`.
fn position(packet: &[u8]) -> Option<usize> {
    let start = IpPacket::parse(packet).ok()?.transport_offset;
    let header = packet.get(start..)?;
    let len = usize::from(header.get(12)? >> 4) * 4;
    let mut at = TCP_HEADER_LEN;
    while at < len {
        match *header.get(at)? {
            END => return None,
            PADDING => at += 1,
            kind => {
                let option_len = usize::from(*header.get(at + 1)?);
                if kind == MSS && option_len == 4 && at + 4 <= len {
                    return Some(start + at + 2);
                }
                at += option_len.max(2);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN over IPv4 with these options.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[32] = ((5 + options.len() / 4) << 4) as u8;
        packet[33] = 2;
        packet.extend_from_slice(options);
        packet[3] = packet.len() as u8;
        packet
    }

    #[test]
    fn a_segment_size_is_brought_into_the_range() {
        for (announced, expected) in [(1460, 1240), (1000, 1000), (1, LEAST), (0, DEFAULT)] {
            let [high, low] = u16::to_be_bytes(announced);
            let mut packet = syn(&[PADDING, MSS, 4, high, low, PADDING, PADDING, END]);
            assert_eq!(limit(&mut packet, 1240), expected);
            assert_eq!(packet[43..45], expected.to_be_bytes(), "{announced}");
        }
    }

    #[test]
    fn options_that_are_cut_off_count_as_none() {
        for options in [
            &[][..],
            &[MSS, 0, 0, 0],
            &[PADDING, PADDING, MSS, 4],
            &[8, 0xff, 0, 0],
        ] {
            let mut packet = syn(options);
            let before = packet.clone();
            assert_eq!(limit(&mut packet, 1240), DEFAULT);
            assert_eq!(packet, before);
        }
    }
}
