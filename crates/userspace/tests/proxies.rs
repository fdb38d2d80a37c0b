//! Two networks joined by a wire: programs of one reach programs of the other through the
//! proxies and the forwarding.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use warren_host::device::memory::{self, MemoryDevice, MemoryOptions};
use warren_host::device::{Device as _, MAX_FRAME_LEN, Offloads};
use warren_host::poll::{Watch, wait};
use warren_netstack::Limits;
use warren_userspace::forward::{self, Own, OwnPorts};
use warren_userspace::proxy::{self, Dial, Dialing, Outgoing, OutgoingFlow, Protocols};
use warren_userspace::{Network, NetworkOptions, OwnServices};
use warren_wire::socks5::Host;

const ALICE: &str = "100.64.0.1";
const BOB: &str = "100.64.0.2";

/// Moves frames between two devices until it is dropped.
struct Wire(Arc<AtomicBool>);

impl Wire {
    fn start(one: MemoryDevice, other: MemoryDevice) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = vec![0; MAX_FRAME_LEN];
            while !stopped.load(Ordering::Relaxed) {
                for (from, to) in [(&one, &other), (&other, &one)] {
                    let each = |frame: &[u8]| {
                        // A full queue loses it.
                        let _ = to.write(0, frame);
                        ControlFlow::Continue(())
                    };
                    from.read_batch(0, &mut buffer, each).unwrap();
                }
                let (one, other) = (one.readable(0), other.readable(0));
                let mut watches = [Watch::readable(&one), Watch::readable(&other)];
                wait(&mut watches, Some(Duration::from_millis(50))).unwrap();
            }
        });
        Self(stop)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn network(address: &str) -> (Network, MemoryDevice) {
    let (device, host) = memory::pair(MemoryOptions {
        queues: 1,
        capacity: 256,
        offloads: Offloads {
            tcp: true,
            udp: false,
        },
        mtu: 1280,
    })
    .unwrap();
    let host = Arc::new(host);
    let options = NetworkOptions {
        mtu: 1280,
        limits: Limits::DEFAULT,
    };
    let (network, arrivals) = Network::new(Box::new(Arc::clone(&host)), options);
    let own: IpAddr = address.parse().unwrap();
    network.set_addresses([own]);
    let (_, known) = watch::channel(Own(vec![own]));
    tokio::spawn(network.clone().run(host));
    tokio::spawn(forward::serve(
        arrivals,
        network.clone(),
        known,
        OwnPorts::default(),
        OwnServices::default(),
    ));
    (network, device)
}

/// Knows one host, "bob".
struct ToBob(Network);

impl ToBob {
    fn address(host: &Host) -> io::Result<IpAddr> {
        match host {
            Host::Name(name) if name == "bob" => Ok(BOB.parse().unwrap()),
            Host::Name(_) => Err(io::ErrorKind::NotFound.into()),
            Host::Address(address) => Ok(*address),
        }
    }
}

impl Dial for ToBob {
    fn connect<'a>(&'a self, host: &'a Host, port: u16) -> Dialing<'a, Outgoing> {
        Box::pin(async move {
            let to = SocketAddr::new(Self::address(host)?, port);
            let stream = self.0.connect(ALICE.parse().unwrap(), to).await?;
            Ok(Outgoing::Tunnel(stream))
        })
    }

    fn open_flow<'a>(&'a self, host: &'a Host, port: u16) -> Dialing<'a, OutgoingFlow> {
        Box::pin(async move {
            let to = SocketAddr::new(Self::address(host)?, port);
            let from = SocketAddr::new(ALICE.parse().unwrap(), 0);
            Ok(OutgoingFlow::Tunnel(self.0.open_flow(from, to)?))
        })
    }
}

/// Alice and bob, and the proxy at alice for both protocols.
async fn pair() -> (SocketAddr, Wire) {
    let (alice, one) = network(ALICE);
    let (_bob, other) = network(BOB);
    let wire = Wire::start(one, other);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let dial = Arc::new(ToBob(alice));
    tokio::spawn(proxy::serve(listener, Protocols::Both, dial));
    (proxy, wire)
}

/// A program at bob's machine that answers each connection by what it receives, at its
/// end.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    port
}

/// A connection to port `port` of bob through SOCKS5, and the reply.
async fn socks(proxy: SocketAddr, name: &str, port: u16) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    let mut request = vec![5, 1, 0, 3, name.len() as u8];
    request.extend_from_slice(name.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await.unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.unwrap();
    (stream, reply[1])
}

async fn echoes(mut stream: TcpStream) {
    let sent: Vec<u8> = (0..3_000_000).map(|i: u32| (i % 251) as u8).collect();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn programs_reach_a_peer_by_name_through_socks5() {
    let (proxy, _wire) = pair().await;
    let (stream, reply) = socks(proxy, "bob", echo().await).await;
    assert_eq!(reply, 0);
    echoes(stream).await;
}

#[tokio::test]
async fn failures_have_their_number_in_socks5() {
    let (proxy, _wire) = pair().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let (_, refused) = socks(proxy, "bob", port).await;
    let (_, unknown) = socks(proxy, "carol", 80).await;
    assert_eq!((refused, unknown), (5, 4));
}

#[tokio::test]
async fn programs_reach_a_peer_through_http_connect() {
    let (proxy, _wire) = pair().await;
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let request = format!("CONNECT bob:{} HTTP/1.1\r\nHost: bob\r\n\r\n", echo().await);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    echoes(stream).await;
}

#[tokio::test]
async fn plain_requests_are_sent_on_without_the_headers_of_the_proxy() {
    let (proxy, _wire) = pair().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage";
        stream.write_all(answer).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let request = format!(
        "GET http://bob:{port}/path?query HTTP/1.1\r\nHost: other\r\nProxy-Connection: \
         close\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("page"),
        "{answer}"
    );
    let head = served.await.unwrap().to_lowercase();
    assert!(head.starts_with("get /path?query http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: bob:{port}\r\n")), "{head}");
    assert!(head.contains("x-kept: 2"), "{head}");
    assert!(
        !head.contains("x-hop") && !head.contains("proxy-"),
        "{head}"
    );
}

#[tokio::test]
async fn datagrams_reach_a_peer_and_come_back_through_socks5() {
    let (proxy, _wire) = pair().await;
    let program = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = program.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let (len, from) = program.recv_from(&mut buffer).await.unwrap();
            program.send_to(&buffer[..len], from).await.unwrap();
        }
    });
    let mut control = TcpStream::connect(proxy).await.unwrap();
    control.write_all(&[5, 1, 0]).await.unwrap();
    control
        .write_all(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut replies = [0; 12];
    control.read_exact(&mut replies).await.unwrap();
    assert_eq!(replies[..4], [5, 0, 5, 0]);
    let relay = u16::from_be_bytes([replies[10], replies[11]]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(("127.0.0.1", relay)).await.unwrap();
    let mut datagram = b"\0\0\0\x03\x03bob".to_vec();
    datagram.extend_from_slice(&port.to_be_bytes());
    datagram.extend_from_slice(b"content");
    socket.send(&datagram).await.unwrap();
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer).await.unwrap();
    assert!(buffer[..len].ends_with(b"content"));
    assert_eq!(buffer[..4], [0, 0, 0, 1]);
}
