//! Random traffic of hosts: ordinary packets, superpackets, fragments and damaged
//! ones, and the packets that a plain model makes of them, one at a time.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use warren_dataplane::VnetHdr;
use warren_wire::ip::Parsed;

use warren_dataplane_testkit::{Recipe, Transport, comparable};

/// A finished packet behind an empty virtio header.
pub fn plain(packet: &[u8]) -> Vec<u8> {
    [&VnetHdr::PLAIN.to_bytes()[..], packet].concat()
}

/// One thing the host sends.
#[derive(Debug, Clone)]
pub struct Item {
    pub recipe: Recipe,
    pub how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Super(u16),
    Partial,
    Finished,
    BadChecksum,
    Fragment { offset: u16, more: bool },
}

impl Item {
    pub fn frame(&self) -> Vec<u8> {
        match self.how {
            How::Super(size) => self.recipe.frame(Some(size)),
            How::Partial => self.recipe.frame(None),
            How::Finished => self.recipe.plain_frame(),
            How::BadChecksum | How::Fragment { .. } => plain(&self.expected()[0]),
        }
    }

    pub fn expected(&self) -> Vec<Vec<u8>> {
        match self.how {
            How::Super(size) => self.recipe.expected(Some(size)),
            How::Partial | How::Finished => self.recipe.expected(None),
            How::BadChecksum => {
                let mut packet = self.recipe.build();
                let at = self.recipe.transport_offset() + self.recipe.checksum_offset();
                packet[at] ^= 0x55;
                vec![packet]
            }
            How::Fragment { offset, more } => {
                let mut recipe = self.recipe.clone();
                (recipe.v6, recipe.dont_fragment) = (false, false);
                let mut packet = recipe.build();
                let field = (offset / 8) | if more { 0x2000 } else { 0 };
                packet[6..8].copy_from_slice(&field.to_be_bytes());
                packet[10..12].fill(0);
                let sum = warren_wire::ip::checksum::checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                vec![packet]
            }
        }
    }
}

/// Raw material of an item; sequence numbers are filled in so that segments of
/// a flow usually follow each other.
pub type Raw = ((bool, bool, u16, bool), (usize, u16, u8, u8), u8);

pub fn items(raw: Vec<Raw>) -> Vec<Item> {
    let mut sequences = BTreeMap::new();
    let item = |raw: Raw| {
        let ((v6, udp, flow, dont_fragment), (len, size, flags, jump), how) = raw;
        let how = match how {
            0..=2 => How::Super(size),
            3..=5 => How::Partial,
            6 | 7 => How::Finished,
            8 => How::BadChecksum,
            9 => How::Fragment {
                offset: 0,
                more: true,
            },
            _ => How::Fragment {
                offset: 160,
                more: flags & 1 == 0,
            },
        };
        // Single packets of few sizes, so that they can be joined.
        let len = if matches!(how, How::Super(_)) {
            len
        } else {
            [400, 400, 400, 400, 400, 1_200, 100, 0][len % 8]
        };
        let sequence = sequences.entry((v6, flow)).or_insert(u32::MAX - 9_000);
        if jump == 0 {
            *sequence = sequence.wrapping_add(77);
        }
        let transport = if udp {
            Transport::Udp
        } else {
            // Most segments are ordinary, so that most can be joined.
            let odd = [0x18, 0x18, 0x11, 0x02, 0x14, 0x90];
            let flags = odd.get(usize::from(flags % 16)).copied().unwrap_or(0x10);
            let options = if flow == 0 { 0 } else { 12 };
            Transport::Tcp {
                sequence: *sequence,
                flags,
                options,
            }
        };
        if !udp {
            *sequence = sequence.wrapping_add(len as u32);
        }
        let recipe = Recipe {
            v6,
            extension: v6 && jump == 1,
            ports: (2_000 + flow, 80),
            id: flow * 31 + if jump == 2 { 0x100 } else { 0 },
            dont_fragment,
            transport,
            payload: (0..len).map(|i| (i as u8) ^ flags).collect(),
        };
        Item { recipe, how }
    };
    raw.into_iter().map(item).collect()
}

pub fn raw() -> impl Strategy<Value = Vec<Raw>> {
    let flow = (
        any::<bool>(),
        any::<bool>(),
        0u16..2,
        prop::bool::weighted(0.8),
    );
    let shape = (0usize..9_000, 200u16..1_300, any::<u8>(), 0u8..8);
    prop::collection::vec((flow, shape, 0u8..11), 1..60)
}

/// The packets by flow; those of one flow must keep their order.
pub fn by_flow(packets: impl IntoIterator<Item = Vec<u8>>) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        let p = Parsed::parse(&packet).unwrap();
        let key = format!(
            "{} {} {} {} {}",
            p.src, p.dst, p.protocol, p.src_port, p.dst_port
        );
        flows.entry(key).or_default().push(comparable(&packet));
    }
    flows
}
