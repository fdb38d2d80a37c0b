//! Where packets go: the shell implements these two traits.
//!
//! A sink is called while the data plane works; it must not block for long and
//! must copy or send the bytes before it returns. Sinks are trait objects: a call
//! per frame or batch is nothing beside the system call it ends in, and the data
//! plane is compiled once, in this crate.

use std::net::SocketAddr;
use std::ops::Range;

use warren_control_types::RegionId;
use warren_keys::{DiscoPublic, NodePublic};
use warren_tunnel::{PeerIndex, Source};
use warren_wire::relay_batch;

use super::ServiceId;

/// Datagrams for one UDP address: a run of equal size, fit for one `sendmsg`
/// with segmentation offload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpSend {
    /// Where to.
    pub to: SocketAddr,
    /// Where in the buffer the run lies. At most 65,507 bytes.
    pub range: Range<usize>,
    /// Size of every datagram of the run; only the last may be smaller. At
    /// most 64 datagrams.
    pub segment_len: usize,
}

impl UdpSend {
    /// The datagrams, one by one.
    pub fn datagrams<'a>(&self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        buffer
            .get(self.range.clone())
            .unwrap_or_default()
            .chunks(self.segment_len.max(1))
    }
}

/// Datagrams for one peer through a relay, in order. Same shape as
/// [`UdpSend`], so that one hand-over carries many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySend {
    /// Which relay.
    pub region: RegionId,
    /// The receiver.
    pub to: NodePublic,
    /// Where in the buffer the run lies.
    pub range: Range<usize>,
    /// Size of every datagram of the run; only the last may be smaller.
    pub segment_len: usize,
    /// Bytes in front of each datagram that are for a peer relay, and that a
    /// DERP relay does not get; counted in `segment_len`.
    pub skip: usize,
    /// Whether the peer takes them together.
    pub batches: bool,
}

impl RelaySend {
    /// The packets for the relay: the datagrams one by one, or, if the peer takes
    /// them, [batches](relay_batch). These are put together in `batches`, whose
    /// content does not matter.
    pub fn packets<'a>(
        &self,
        buffer: &'a [u8],
        batches: &'a mut Vec<u8>,
    ) -> impl Iterator<Item = &'a [u8]> {
        batches.clear();
        let run = buffer.get(self.range.clone()).unwrap_or_default();
        let segment_len = self.segment_len.max(1);
        let skip = self.skip;
        let alone_len = segment_len.saturating_sub(skip).max(1);
        let count = (relay_batch::MAX_BYTES / alone_len).max(1);
        let header = relay_batch::header(alone_len).filter(|_| self.batches && count > 1);
        let mut alone = run;
        if let Some(header) = header {
            for batch in run.chunks(count * segment_len) {
                // A last one that is alone stays so.
                if batch.len() > segment_len {
                    batches.extend_from_slice(&header);
                    if skip == 0 {
                        batches.extend_from_slice(batch);
                    } else {
                        for datagram in batch.chunks(segment_len) {
                            batches.extend_from_slice(datagram.get(skip..).unwrap_or_default());
                        }
                    }
                    alone = alone.get(batch.len()..).unwrap_or_default();
                }
            }
        }
        let batches = batches.chunks(relay_batch::HEADER_LEN + count * alone_len);
        let alone = alone.chunks(segment_len);
        batches.chain(alone.map(move |datagram| datagram.get(skip..).unwrap_or_default()))
    }
}

/// The runtime's side of [`Outbound`](super::Outbound).
pub trait OutSink {
    /// Sends runs of datagrams over UDP, in this order. All ranges lie in
    /// `buffer`. Called once per flush, with everything gathered since the
    /// last, so that one `sendmmsg` can carry runs for many addresses.
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]);

    /// Sends runs of datagrams through relays, in this order.
    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]);

    /// Packets wait for `peer`, or its session should be renewed while it is
    /// still in use. Called at most a few times per second and peer.
    fn need_session(&mut self, peer: PeerIndex);

    /// A packet from the host for a service of this process: a complete IP packet
    /// with finished checksums.
    fn deliver(&mut self, service: ServiceId, packet: &[u8]);

    /// A packet to write to the TUN device, with its virtio header in front:
    /// the node's own answer, such as an echo reply of the service address.
    fn tun(&mut self, frame: &[u8]);
}

/// The result of writing a frame to the TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum TunWrite {
    /// The device has it.
    Taken,
    /// The device does not want it as it is: a superpacket that this kernel
    /// cannot cut, or anything while the device is down.
    Refused,
    /// It is lost for another reason.
    Lost,
}

/// Packets that are joined into superpackets, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// TCP segments.
    Tcp,
    /// UDP datagrams.
    Udp,
}

/// The runtime's side of [`Inbound`](super::Inbound).
pub trait InSink {
    /// A frame for the TUN device: virtio header (10 bytes) and an IP packet
    /// of up to 64 KiB. A superpacket that is refused comes again in pieces.
    fn tun_write(&mut self, frame: &[u8]) -> TunWrite;

    /// A packet of a peer for a service of this process: a complete IP packet that
    /// the filter admitted, from an address that is the peer's.
    fn deliver(&mut self, service: ServiceId, packet: &[u8]);

    /// The TUN device refuses superpackets of this kind, but takes their
    /// pieces: none are made any more.
    fn joining_ends(&mut self, kind: Joined);

    /// A datagram that is no WireGuard data: STUN, disco or a handshake. For
    /// the engine to demultiplex.
    fn control(&mut self, from: Source, datagram: &[u8]);

    /// The first packet that authenticated on a session: what a responder
    /// waits for before it may send. Called once per session.
    fn confirmed(&mut self, local_index: u32);

    /// Authenticated traffic of `peer` came from `from`: called when that
    /// differs from the last source, and at most once per second while it
    /// stays the same.
    fn heard(&mut self, peer: PeerIndex, from: Source);

    /// The session a packet came on should be renewed, although nothing is
    /// being sent: it is ours to renew and close to its end. Or there is none,
    /// and the peer seems to send on one from before.
    fn need_session(&mut self, peer: PeerIndex);

    /// A packet of the node's own to send to `peer` through the tunnel, such
    /// as the answer to a ping: for
    /// [`Outbound::inject`](super::Outbound::inject).
    fn out(&mut self, peer: PeerIndex, packet: &[u8]);

    /// `peer` answered a TSMP ping that carried `data`.
    fn pong(&mut self, peer: PeerIndex, data: [u8; 8], peer_api_port: Option<u16>);

    /// `peer` advertised its current disco key.
    fn disco_advertised(&mut self, peer: PeerIndex, key: DiscoPublic);
}
