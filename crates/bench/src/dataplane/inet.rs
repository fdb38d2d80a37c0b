//! The Internet checksum (RFC 1071), written so that compilers vectorise it.

const LANES: usize = 8;
const CHUNK: usize = LANES * 4;

/// The ones' complement sum of `bytes` as big-endian words, not inverted.
pub fn fold(bytes: &[u8]) -> u16 {
    let mut lanes = [0u64; LANES];
    let mut add = |chunk: &[u8]| {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    };
    let mut chunks = bytes.chunks_exact(CHUNK);
    for chunk in &mut chunks {
        add(chunk);
    }
    let mut last = [0; CHUNK];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    add(&last);
    let mut sum: u64 = lanes.iter().sum();
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (sum as u16).to_be()
}

/// The checksum over `bytes` and a `start` from [`pseudo`], or 0.
pub fn checksum(start: u16, bytes: &[u8]) -> u16 {
    !add(start, fold(bytes))
}

/// The sum of the pseudo header of an IPv4 packet, not inverted.
pub fn pseudo(packet: &[u8], protocol: u8, transport_len: usize) -> u16 {
    let addresses = fold(packet.get(12..20).unwrap_or_default());
    // An IPv4 packet has a 16-bit length.
    let fixed = add(u16::from(protocol), transport_len as u16);
    add(addresses, fixed)
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(&bytes), 0xddf2);
        assert_eq!(checksum(0, &bytes), !0xddf2);
        assert_eq!(fold(&[0xab]), 0xab00);
    }

    #[test]
    fn data_with_its_checksum_sums_to_zero() {
        let mut bytes: Vec<u8> = (0..101u8).collect();
        bytes[4] = 0;
        bytes[5] = 0;
        let sum = checksum(0, &bytes);
        bytes[4..6].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(0, &bytes), 0);
    }
}
