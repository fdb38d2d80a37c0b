//! Tunnel data through a peer relay: datagrams with a Geneve header in front.
//!
//! The kernel joins the datagrams of a relay on receipt like others (GRO). The headers are
//! taken out from between them, in place, and from there on the datagrams are like those
//! that came directly.

use warren_tunnel::Source;
use warren_wire::geneve::{HEADER_LEN, Header, Payload};
use warren_wire::wireguard::is_transport;

/// Datagrams with tunnel data from one endpoint on a relay, without their headers.
pub(super) struct Relayed<'b> {
    pub(super) from: Source,
    pub(super) segment_len: usize,
    pub(super) data: &'b mut [u8],
}

impl<'b> Relayed<'b> {
    /// Cuts the datagrams that carry tunnel data behind one and the same Geneve header off
    /// the front of `rest`, which came from `from`. `None`, and nothing is cut off, where
    /// there are none.
    #[cold]
    pub(super) fn take(from: Source, rest: &mut &'b mut [u8], segment_len: usize) -> Option<Self> {
        let Source::Udp(server) = from else {
            return None;
        };
        let (header, _) = Header::parse(rest)?;
        if header.payload != Payload::WireGuard || segment_len <= HEADER_LEN {
            return None;
        }
        let bytes = header.to_bytes();
        let mut datagrams = 0;
        let mut content = 0;
        let fits = |datagram: &&[u8]| {
            let inner = datagram.strip_prefix(&bytes);
            inner.is_some_and(is_transport)
        };
        for datagram in rest.chunks(segment_len).take_while(fits) {
            datagrams += 1;
            content += datagram.len() - HEADER_LEN;
        }
        if datagrams == 0 {
            return None;
        }
        let len = datagrams * HEADER_LEN + content;
        let (run, behind) = std::mem::take(rest).split_at_mut(len);
        *rest = behind;
        let kept = segment_len - HEADER_LEN;
        for number in 0..datagrams {
            let start = number * segment_len;
            let end = (start + segment_len).min(len);
            run.copy_within(start + HEADER_LEN..end, number * kept);
        }
        let vni = header.vni;
        let data = run.get_mut(..content)?;
        Some(Self {
            from: Source::PeerRelay { server, vni },
            segment_len: kept,
            data,
        })
    }
}

/// Whether a datagram may begin with a Geneve header. WireGuard's messages begin with 1 to
/// 4.
#[inline]
pub(super) fn may_be_relayed(datagrams: &[u8]) -> bool {
    datagrams.first() == Some(&0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use warren_wire::geneve::Vni;

    use super::*;

    fn from() -> Source {
        Source::Udp("192.0.2.1:40000".parse().unwrap())
    }

    fn header(vni: u32) -> Header {
        Header {
            payload: Payload::WireGuard,
            vni: Vni::new(vni).unwrap(),
        }
    }

    fn data(len: usize, fill: u8) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0];
        datagram.resize(len, fill);
        datagram
    }

    #[test]
    fn headers_are_taken_out_up_to_the_next_endpoint() {
        let (a, b, last) = (data(60, 1), data(60, 2), data(40, 3));
        let mut buffer = [
            header(7).wrap(&a),
            header(7).wrap(&b),
            header(8).wrap(&a),
            header(7).wrap(&last),
        ]
        .concat();
        let mut rest = &mut buffer[..];
        let first = Relayed::take(from(), &mut rest, 68).unwrap();
        assert_eq!(
            (&*first.data, first.segment_len),
            (&[a.clone(), b].concat()[..], 60)
        );
        let Source::PeerRelay { server, vni } = first.from else {
            panic!("{:?}", first.from)
        };
        assert_eq!((Source::Udp(server), vni.get()), (from(), 7));
        assert_eq!(&*Relayed::take(from(), &mut rest, 68).unwrap().data, &a[..]);
        assert_eq!(
            &*Relayed::take(from(), &mut rest, 68).unwrap().data,
            &last[..]
        );
        assert!(rest.is_empty());
    }

    #[test]
    fn all_that_is_not_tunnel_data_stays_as_it_is() {
        let disco = Header {
            payload: Payload::Disco,
            ..header(7)
        };
        for datagram in [
            disco.wrap(&data(60, 1)),
            header(7).wrap(&[1, 0, 0, 0, 5]),
            header(7).wrap(&[]),
            data(60, 1),
        ] {
            let mut buffer = datagram.clone();
            let len = buffer.len();
            let mut rest = &mut buffer[..];
            assert!(Relayed::take(from(), &mut rest, len).is_none());
            assert_eq!(rest, datagram);
        }
    }

    proptest! {
        /// Nothing is lost or added: the contents are those behind the headers, in order.
        #[test]
        fn contents_are_kept(
            vnis in prop::collection::vec(1u32..3, 1..20),
            len in 32usize..80,
            last in 32usize..80,
        ) {
            let last = last.min(len);
            let count = vnis.len();
            let sized = |at: usize| if at + 1 == count { last } else { len };
            let contents: Vec<Vec<u8>> = (0..count).map(|at| data(sized(at), at as u8)).collect();
            let wrapped = vnis.iter().zip(&contents).map(|(vni, content)| header(*vni).wrap(content));
            let mut buffer = wrapped.collect::<Vec<_>>().concat();
            let mut rest = &mut buffer[..];
            let mut found = Vec::new();
            while !rest.is_empty() {
                let relayed = Relayed::take(from(), &mut rest, len + HEADER_LEN).unwrap();
                let Source::PeerRelay { vni, .. } = relayed.from else { unreachable!() };
                let datagrams = relayed.data.chunks(relayed.segment_len);
                found.extend(datagrams.map(|it| (vni.get(), it.to_vec())));
            }
            let expected: Vec<_> = vnis.into_iter().zip(contents).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
