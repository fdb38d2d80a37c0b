//! From a TUN frame to sealed datagrams: IPv4 with TCP superpackets, and
//! anything that is one packet already.

use warren_host::tun::VNET_HEADER_LEN;
use warren_tunnel::Session;

use super::batches::Batches;
use super::inet::{checksum, pseudo};

/// virtio-net flag: the transport checksum covers the pseudo header only.
pub const NEEDS_CSUM: u8 = 1;
/// virtio-net GSO type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// virtio-net GSO type: UDP.
pub const GSO_UDP: u8 = 5;
const FIN_AND_PSH: u8 = 0x09;
/// The protocol number of TCP.
pub const TCP: u8 = 6;

/// Cuts and seals the packet of `frame`. Inconsistent input, which a
/// kernel does not make, goes nowhere.
pub fn cut(frame: &[u8], batches: &mut Batches, session: &Session) {
    // Without a result there is nothing to send.
    let _ = try_cut(frame, batches, session);
    batches.seal(session);
}

fn try_cut(frame: &[u8], batches: &mut Batches, session: &Session) -> Option<()> {
    let (vnet, packet) = frame.split_first_chunk::<VNET_HEADER_LEN>()?;
    let half = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
    let (gso_size, start, offset) = (half(4), half(6), half(8));
    let [flags, gso, ..] = *vnet;
    if gso & !0x80 != GSO_TCPV4 {
        let counter = session.reserve(1)?;
        batches.push(counter, packet.len(), |out| {
            out.copy_from_slice(packet);
            if flags & NEEDS_CSUM != 0 && start + offset + 2 <= out.len() {
                // The field holds the pseudo header's sum already.
                let sum = checksum(0, &out[start..]);
                // UDP has no zero checksum; for TCP both zeros are the same.
                let sum = if sum == 0 { 0xffff } else { sum };
                out[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
            }
        });
        return Some(());
    }
    let ip_len = usize::from(packet.first()? & 15) * 4;
    let tcp_len = usize::from(packet.get(ip_len + 12)? >> 4) * 4;
    let headers = packet.get(..ip_len + tcp_len)?;
    let payload = packet.get(headers.len()..)?;
    if gso_size == 0 || ip_len < 20 || tcp_len < 20 {
        return None;
    }
    let count = payload.len().div_ceil(gso_size).max(1);
    let first = session.reserve(count as u64)?;
    let id = u16::from_be_bytes([packet[4], packet[5]]);
    let sequence = u32::from_be_bytes(*headers.get(ip_len + 4..)?.first_chunk()?);
    for i in 0..count {
        let part = &payload[i * gso_size..payload.len().min((i + 1) * gso_size)];
        let len = headers.len() + part.len();
        batches.push(first + i as u64, len, |out| {
            let (head, body) = out.split_at_mut(headers.len());
            head.copy_from_slice(headers);
            body.copy_from_slice(part);
            // Lengths fit: the superpacket's did.
            head[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            head[4..6].copy_from_slice(&id.wrapping_add(i as u16).to_be_bytes());
            head[10..12].fill(0);
            let sum = checksum(0, &head[..ip_len]);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            let sequence = sequence.wrapping_add((i * gso_size) as u32);
            head[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
            if i + 1 < count {
                head[ip_len + 13] &= !FIN_AND_PSH;
            }
            head[ip_len + 16..ip_len + 18].fill(0);
            let start = pseudo(headers, TCP, tcp_len + part.len());
            let sum = checksum(start, &out[ip_len..]);
            out[ip_len + 16..ip_len + 18].copy_from_slice(&sum.to_be_bytes());
        });
    }
    Some(())
}
