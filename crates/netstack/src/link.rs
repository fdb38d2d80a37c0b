//! The device that smoltcp sees: one packet in, one packet out.

use std::num::NonZeroUsize;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// The length of the longest superpacket.
const LONGEST: usize = 65_535;

/// Carries at most one packet in each direction.
pub(crate) struct Link<'p> {
    received: Option<&'p [u8]>,
    sent: Option<Vec<u8>>,
    headroom: usize,
}

impl<'p> Link<'p> {
    /// A link on which `received` arrives, and on which one packet can be sent.
    pub(crate) fn new(received: Option<&'p [u8]>, headroom: usize) -> Self {
        Self {
            received,
            sent: None,
            headroom,
        }
    }

    /// The packet that was sent, behind the headroom.
    pub(crate) fn into_sent(self) -> Option<Vec<u8>> {
        self.sent
    }
}

/// The packet that arrives.
pub(crate) struct Arrival<'p>(&'p [u8]);

impl phy::RxToken for Arrival<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// The place for a packet.
pub(crate) struct Departure<'l> {
    place: &'l mut Option<Vec<u8>>,
    headroom: usize,
}

impl phy::TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let frame = self.place.insert(vec![0; self.headroom + len]);
        write(frame.get_mut(self.headroom..).unwrap_or_default())
    }
}

impl phy::Device for Link<'_> {
    type RxToken<'l>
        = Arrival<'l>
    where
        Self: 'l;
    type TxToken<'l>
        = Departure<'l>
    where
        Self: 'l;

    fn receive(&mut self, _: Instant) -> Option<(Arrival<'_>, Departure<'_>)> {
        let packet = self.received.take()?;
        let departure = Departure {
            place: &mut self.sent,
            headroom: self.headroom,
        };
        Some((Arrival(packet), departure))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departure<'_>> {
        self.sent.is_none().then_some(Departure {
            place: &mut self.sent,
            headroom: self.headroom,
        })
    }

    /// Superpackets of both families. The MTU is theirs too: smoltcp drops superpackets
    /// over IPv6 that are longer than it. The length of a segment follows from the MSS
    /// options, which `mss.rs` corrects in both directions.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = LONGEST;
        capabilities.checksum = checksum;
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(LONGEST);
        capabilities.segmentation.tcpv6 = NonZeroUsize::new(LONGEST);
        capabilities
    }
}
