//! UDP datagrams that a node reads and writes itself (MagicDNS), RFC 768.

use std::net::SocketAddr;

use super::{BuildError, Protocol, checksum};

/// Length of the UDP header in bytes.
pub const HEADER_LEN: usize = 8;

/// The payload of a datagram by the length field of its header. `None` if the
/// field is below eight or exceeds the bytes. Trailing bytes are cut.
#[must_use]
pub fn payload(datagram: &[u8]) -> Option<&[u8]> {
    let header: &[u8; HEADER_LEN] = datagram.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    datagram.get(HEADER_LEN..len)
}

/// Builds a whole IP packet with one UDP datagram, checksums set.
pub fn packet(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Result<Vec<u8>, BuildError> {
    let too_long = BuildError::TooLong { len: payload.len() };
    let len = u16::try_from(HEADER_LEN + payload.len()).map_err(|_| too_long)?;
    let mut out = super::header(src.ip(), dst.ip(), Protocol::UDP, 0, usize::from(len))?;
    let mut head = [0u8; HEADER_LEN];
    [head[0], head[1]] = src.port().to_be_bytes();
    [head[2], head[3]] = dst.port().to_be_bytes();
    [head[4], head[5]] = len.to_be_bytes();
    let sum = checksum::Sum::pseudo_header(src.ip(), dst.ip(), Protocol::UDP, usize::from(len))
        .bytes(&head)
        .bytes(payload)
        .finish();
    // Zero on the wire means "no checksum" and is illegal in IPv6.
    let sum = if sum == 0 { 0xffff } else { sum };
    [head[6], head[7]] = sum.to_be_bytes();
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
    Ok(out)
}
