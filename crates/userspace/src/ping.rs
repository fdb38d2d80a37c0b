//! Pings to other hosts, through the unprivileged ICMP sockets of Linux (the group must
//! be in `net.ipv4.ping_group_range`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use warren_wire::ip::IpPacket;

/// The time that a host has to answer.
const PATIENCE: Duration = Duration::from_secs(5);
const V4_ECHO_REQUEST: u8 = 8;
const V6_ECHO_REQUEST: u8 = 128;

/// Whether the destination of an echo request, an IP packet, answers one of our own.
pub(crate) async fn is_answered(request: &[u8]) -> bool {
    let Ok(packet) = IpPacket::parse(request) else {
        return false;
    };
    let to = packet.dst;
    matches!(
        tokio::time::timeout(PATIENCE, exchange(to)).await,
        Ok(Ok(()))
    )
}

async fn exchange(to: IpAddr) -> io::Result<()> {
    let (domain, protocol, kind) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, V4_ECHO_REQUEST),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, V6_ECHO_REQUEST),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    // The kernel sets identifier and checksum.
    socket.send(&[kind, 0, 0, 0, 0, 0, 0, 1]).await?;
    let mut answer = [0; 64];
    socket.recv(&mut answer).await.map(drop)
}
