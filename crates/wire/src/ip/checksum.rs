//! The internet checksum (RFC 1071): whole, with pseudo header, and updated in
//! place when a field changes (RFC 1624).

use std::net::IpAddr;

use super::Protocol;

/// A running one's complement sum. Byte ranges must be added on even offsets
/// of the summed data, except that the last one may be odd.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// An empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// The sum of the pseudo header of TCP, UDP and ICMPv6: both addresses,
    /// protocol and transport length in bytes (RFC 9293 3.1, RFC 8200 8.1).
    /// With addresses of two families the result is of no use.
    #[must_use]
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: Protocol, len: usize) -> Self {
        // A length of 65 535 and more does not occur in one packet; both
        // halves are added so that the IPv6 form (32 bits) holds too.
        let len = len as u64;
        Self::new()
            .address(src)
            .address(dst)
            .word(u16::from(protocol.0))
            .raw((len >> 16) + (len & 0xffff))
    }

    const fn raw(self, value: u64) -> Self {
        Self(self.0 + value)
    }

    /// Adds one 16-bit word.
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        self.raw(word as u64)
    }

    /// Adds the bytes of an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.bytes(&a.octets()),
            IpAddr::V6(a) => self.bytes(&a.octets()),
        }
    }

    /// Adds bytes; an odd one at the end counts as if a zero followed.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Sums of 32-bit words fold to the same result as sums of 16-bit
        // words, and 2^32 of them fit into 64 bits.
        let mut sum = self.0;
        let mut chunks = bytes.chunks_exact(4);
        for chunk in &mut chunks {
            if let Some(word) = chunk.first_chunk() {
                sum += u64::from(u32::from_be_bytes(*word));
            }
        }
        let mut last = [0u8; 4];
        for (to, from) in last.iter_mut().zip(chunks.remainder()) {
            *to = *from;
        }
        Self(sum + u64::from(u32::from_be_bytes(last)))
    }

    /// The sum folded to 16 bits, not inverted: what goes into a checksum
    /// field that hardware or the kernel is to finish.
    #[must_use]
    pub const fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        // Folded above: the upper bits are zero.
        sum as u16
    }

    /// The checksum: the inverted folded sum.
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The checksum of `bytes`. Over data that includes a right checksum field the
/// result is zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::new().bytes(bytes).finish()
}

/// The checksum of a transport header and payload with pseudo header. The
/// checksum field inside `transport` must be zero to compute it; with the
/// field filled a result of zero means it is right.
#[must_use]
pub fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: Protocol, transport: &[u8]) -> u16 {
    Sum::pseudo_header(src, dst, protocol, transport.len())
        .bytes(transport)
        .finish()
}

/// The new value of a checksum field after the bytes `old` below it, at an
/// even offset, became `new` (RFC 1624, equation 3). Both have the same, even
/// length.
#[must_use]
pub fn update(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let mut sum = Sum::new().word(!checksum).bytes(new);
    for word in old.chunks(2) {
        let mut pair = [0u8; 2];
        for (to, from) in pair.iter_mut().zip(word) {
            *to = *from;
        }
        sum = sum.word(!u16::from_be_bytes(pair));
    }
    sum.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum += word;
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().bytes(&bytes).folded(), 0xddf2);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(checksum(&bytes), slow(&bytes));
        }

        #[test]
        fn update_equals_a_new_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..41),
            new in any::<[u8; 4]>(),
            at in 0usize..18,
        ) {
            let at = at * 2;
            // A word that never changes keeps the sum from being all zero,
            // where one's complement has two spellings.
            bytes[38] = 1;
            prop_assume!(at + 4 <= 38);
            let before = checksum(&bytes);
            let old: Vec<u8> = bytes[at..at + 4].to_vec();
            bytes[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(update(before, &old, &new), checksum(&bytes));
        }
    }
}
