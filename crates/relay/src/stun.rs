//! The STUN service: sends clients the address they are seen at.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use warren_wire::stun::{Request, Response};

/// Pause after an error of the socket, so that a broken one does not spin.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// A request is 40 bytes; longer datagrams are cut here and then refused.
const MAX_DATAGRAM: usize = 1500;

/// Binds a socket for [`serve`]. An IPv6 wildcard address takes IPv4 too.
///
/// # Errors
/// Those of the system, such as a port already taken.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(StdUdpSocket::from(socket))
}

/// Answers requests on `socket`; never returns. IPv4 clients are answered with
/// an IPv4 address, also on a socket for both families.
pub async fn serve(socket: Arc<UdpSocket>) {
    let mut datagram = [0; MAX_DATAGRAM];
    loop {
        match socket.recv_from(&mut datagram).await {
            Ok((len, from)) => {
                let Some(answer) = answer(datagram.get(..len).unwrap_or_default(), from) else {
                    continue;
                };
                if let Err(error) = socket.send_to(&answer, from).await {
                    tracing::debug!(%error, "STUN answer not sent");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "STUN socket");
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

fn answer(datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let request = Request::parse(datagram).ok()?;
    let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
    Some(Response::to(&request, seen).emit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_wire::stun::TransactionId;

    #[test]
    fn ipv4_client_receives_an_ipv4_address() {
        let request = Request {
            transaction: TransactionId([7; 12]),
        }
        .emit();
        let answer = answer(&request, "[::ffff:192.0.2.9]:1234".parse().unwrap()).unwrap();
        assert_eq!(answer.len(), 32);
        let response = Response::parse(&answer).unwrap();
        assert_eq!(response.mapped, "192.0.2.9:1234".parse().unwrap());
    }

    #[tokio::test]
    async fn one_socket_serves_both_families() {
        let socket = Arc::new(bind("[::]:0".parse().unwrap()).unwrap());
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(serve(socket));
        for (bind, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
            let client = UdpSocket::bind(bind).await.unwrap();
            let request = Request {
                transaction: TransactionId([1; 12]),
            }
            .emit();
            client
                .send_to(b"not STUN", format!("{to}:{port}"))
                .await
                .unwrap();
            client
                .send_to(&request, format!("{to}:{port}"))
                .await
                .unwrap();
            let mut answer = [0; 100];
            let (len, _) = client.recv_from(&mut answer).await.unwrap();
            let response = Response::parse(&answer[..len]).unwrap();
            assert_eq!(response.mapped, client.local_addr().unwrap());
        }
    }
}
