//! SOCKS5 for one program: CONNECT and UDP ASSOCIATE, without authentication.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use warren_wire::socks5::{self, Command, Host, Malformed, Reply};

use super::{Dial, HEAD_TIMEOUT};
use crate::forward::splice;

/// Destinations of one UDP association.
const MAX_DESTINATIONS: usize = 256;
/// Datagrams that may wait for one destination.
const WAITING_DATAGRAMS: usize = 64;
/// The time without a datagram after which a destination is forgotten.
const IDLE: Duration = Duration::from_secs(120);
/// The longest UDP datagram.
const LONGEST_DATAGRAM: usize = 65_535;
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Serves one program.
pub(super) async fn serve(mut program: TcpStream, dial: Arc<dyn Dial>) -> io::Result<()> {
    let head = read_head(&mut program);
    let request = tokio::time::timeout(HEAD_TIMEOUT, head)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    match request.command {
        Command::Connect => match dial.connect(&request.host, request.port).await {
            Ok(outgoing) => {
                program
                    .write_all(&Reply::Succeeded.message(NOWHERE))
                    .await?;
                splice(program, outgoing).await
            }
            Err(error) => {
                let reply = reply_of(&error);
                program.write_all(&reply.message(NOWHERE)).await?;
                Err(error)
            }
        },
        Command::UdpAssociate => associate(program, dial).await,
        Command::Other(_) => {
            program
                .write_all(&Reply::UnknownCommand.message(NOWHERE))
                .await
        }
    }
}

/// Reads greeting and request, and answers the greeting.
async fn read_head(program: &mut TcpStream) -> io::Result<socks5::Request> {
    let mut bytes = Vec::new();
    let has_method = read_message(program, &mut bytes, |bytes| {
        let greeting = socks5::greeting(bytes)?;
        Ok(greeting.map(|(methods, len)| (methods.contains(&socks5::NO_AUTHENTICATION), len)))
    })
    .await?;
    if !has_method {
        program
            .write_all(&[socks5::VERSION, socks5::NO_METHOD])
            .await?;
        return Err(io::Error::other(
            "the program offers no method without a password",
        ));
    }
    program
        .write_all(&[socks5::VERSION, socks5::NO_AUTHENTICATION])
        .await?;
    read_message(program, &mut bytes, socks5::request).await
}

/// Reads one message; bytes behind it stay in `bytes`.
async fn read_message<T>(
    program: &mut TcpStream,
    bytes: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Malformed>,
) -> io::Result<T> {
    loop {
        let parsed = parse(bytes);
        let parsed = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if let Some((message, len)) = parsed {
            bytes.drain(..len);
            return Ok(message);
        }
        // A program waits for each answer, so nothing is read that belongs to the
        // connection.
        let mut chunk = [0; socks5::MAX_MESSAGE];
        let read = program.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk[..read]);
    }
}

fn reply_of(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reply::Refused,
        io::ErrorKind::TimedOut => Reply::TimedOut,
        io::ErrorKind::PermissionDenied => Reply::NotAllowed,
        io::ErrorKind::NotFound
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => Reply::HostUnreachable,
        _ => Reply::Failed,
    }
}

/// Relays datagrams until the program closes its connection (RFC 1928, section 7).
async fn associate(mut program: TcpStream, dial: Arc<dyn Dial>) -> io::Result<()> {
    let here = program.local_addr()?.ip();
    let client = program.peer_addr()?.ip();
    let socket = Arc::new(UdpSocket::bind((here, 0)).await?);
    let bound = socket.local_addr()?;
    program.write_all(&Reply::Succeeded.message(bound)).await?;
    let mut destinations: HashMap<(Host, u16), mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut tasks: JoinSet<(Host, u16)> = JoinSet::new();
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    let mut unread = [0; 64];
    loop {
        tokio::select! {
            read = program.read(&mut unread) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            received = socket.recv_from(&mut buffer) => {
                let (len, from) = received?;
                // Only the program that asked uses it.
                let Ok((host, port, data)) = socks5::datagram(&buffer[..len]) else {
                    continue;
                };
                if from.ip() != client {
                    continue;
                }
                let key = (host, port);
                if !destinations.contains_key(&key) && destinations.len() < MAX_DESTINATIONS {
                    let (queue, datagrams) = mpsc::channel(WAITING_DATAGRAMS);
                    let (socket, dial) = (Arc::clone(&socket), Arc::clone(&dial));
                    let destination = key.clone();
                    tasks.spawn(async move {
                        let ended = relay(&destination, datagrams, &socket, from, &*dial).await;
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a program's datagrams have no way");
                        }
                        destination
                    });
                    destinations.insert(key.clone(), queue);
                }
                if let Some(queue) = destinations.get(&key) {
                    // One too many is lost, as on any network.
                    let _ = queue.try_send(data.to_vec());
                }
            }
            Some(ended) = tasks.join_next() => {
                if let Ok(key) = ended {
                    destinations.remove(&key);
                }
            }
        }
    }
}

/// Relays the datagrams for one destination and its answers.
async fn relay(
    (host, port): &(Host, u16),
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    socket: &UdpSocket,
    client: SocketAddr,
    dial: &dyn Dial,
) -> io::Result<()> {
    let flow = dial.open_flow(host, *port).await?;
    let from = match &flow {
        super::OutgoingFlow::Tunnel(flow) => flow.tuple().map(|tuple| tuple.remote),
        super::OutgoingFlow::System(socket) => socket.peer_addr().ok(),
    };
    let from = from.unwrap_or(NOWHERE);
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    loop {
        tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(datagram) if flow.send(&datagram).await => {}
                _ => return Ok(()),
            },
            received = flow.receive(&mut buffer) => match received {
                Some(len) => {
                    let answer = socks5::datagram_from(from, &buffer[..len]);
                    socket.send_to(&answer, client).await?;
                }
                None => return Ok(()),
            },
            () = tokio::time::sleep(IDLE) => return Ok(()),
        }
    }
}
