//! The load generator: what runs at both ends of a tunnel, as a process of its
//! own, so that its CPU time is not that of the programs under test.
//!
//! Every generator prints `ready PORT` when it is, and then answers each line
//! on its standard input with one line of JSON. At the end of the input it
//! ends. It is ours and not `iperf3` so that a fresh machine lacks nothing,
//! and so that every datagram is one `send`.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_tcp_congestion;
use serde_json::{Value, json};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{RecvBatch, UdpOptions};

use super::stamp::{self, Arrivals, Stamp};
use crate::machine;
use warren_lab::LabError;

/// One write, and one read.
const CHUNK: usize = 128 * 1024;
/// How long a connection through a tunnel may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// Datagrams that may leave at once when the pace slept too long. More would
/// be a burst of the generator's own, with losses that no candidate causes: the
/// queue of a TUN device holds 500.
const MOST_BEHIND: u64 = 256;
/// How often the pace looks what is due.
const PACE: Duration = Duration::from_micros(250);
/// An echo that takes longer is lost.
const ECHO_LIMIT: Duration = Duration::from_secs(1);
const ICMP_HEADER_LEN: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// The kind of load.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum LoadKind {
    /// Takes TCP connections and reads what comes.
    TcpSink,
    /// Writes to TCP connections as fast as they take it.
    TcpSource {
        /// The sink.
        to: SocketAddr,
        /// Connections side by side.
        streams: usize,
    },
    /// Counts numbered datagrams.
    UdpSink,
    /// Sends numbered datagrams one by one, for some time, once per question.
    UdpSource {
        /// The sink.
        to: SocketAddr,
        /// Bytes of payload per second.
        rate: u64,
        /// Bytes of payload in each.
        size: usize,
        /// For how long, in milliseconds.
        millis: u64,
    },
    /// Sends stamped datagrams one by one to many in turns, for some time, once
    /// per question.
    UdpMany {
        /// Bytes of payload per second, all together.
        rate: u64,
        /// Bytes of payload in each.
        size: usize,
        /// For how long, in milliseconds.
        millis: u64,
        /// The destination.
        #[arg(value_delimiter = ',')]
        to: Vec<SocketAddr>,
    },
    /// Counts stamped datagrams by sender, with their delays.
    StampSink,
    /// Many peers for one node: see [`synthetic_peers`](super::synthetic_peers).
    SyntheticPeers {
        /// The coordination server.
        server: String,
        /// The auth key.
        auth_key: String,
        /// How many.
        count: u16,
        /// Where all of them are.
        address: Ipv4Addr,
    },
    /// Sends ICMP echo requests and waits for each reply, once per question.
    Ping {
        /// The host to ping.
        to: Ipv4Addr,
        /// How many.
        count: u16,
        /// Microseconds from one to the next.
        interval: u64,
    },
}

/// Runs a generator until its standard input ends.
///
/// # Errors
/// When a socket cannot be opened, or no program accepts the connection.
pub fn run(kind: &LoadKind) -> Result<(), LabError> {
    match kind {
        LoadKind::TcpSink => tcp_sink(),
        LoadKind::TcpSource { to, streams } => tcp_source(*to, *streams),
        LoadKind::UdpSink => udp_sink(),
        LoadKind::UdpSource {
            to,
            rate,
            size,
            millis,
        } => udp_source(*to, *rate, *size, Duration::from_millis(*millis)),
        LoadKind::UdpMany {
            rate,
            size,
            millis,
            to,
        } => udp_many(to, *rate, *size, Duration::from_millis(*millis)),
        LoadKind::StampSink => stamp_sink(),
        LoadKind::SyntheticPeers {
            server,
            auth_key,
            count,
            address,
        } => super::synthetic_peers::run(server, auth_key, *count, *address),
        LoadKind::Ping {
            to,
            count,
            interval,
        } => ping(*to, *count, Duration::from_micros(*interval)),
    }
}

/// Answers every line with what `answer` gives.
fn serve(port: u16, mut answer: impl FnMut() -> Result<Value, LabError>) -> Result<(), LabError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {port}")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        writeln!(out, "{}", answer()?)?;
        out.flush()?;
    }
    Ok(())
}

fn tcp_sink() -> Result<(), LabError> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let bytes = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&bytes);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counting = Arc::clone(&counting);
            std::thread::spawn(move || drain(stream, &counting));
        }
    });
    let start = Instant::now();
    serve(port, || Ok(counted(start, &bytes)))
}

fn drain(mut stream: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        bytes.fetch_add(len as u64, Ordering::Relaxed);
    }
}

fn tcp_source(to: SocketAddr, streams: usize) -> Result<(), LabError> {
    let bytes = Arc::new(AtomicU64::new(0));
    let tcp = machine::wanted_tcp();
    for _ in 0..streams {
        let mut stream = TcpStream::connect_timeout(&to, CONNECT)?;
        if let Some(tcp) = &tcp {
            // By name and not by the system's setting, which all share.
            set_tcp_congestion(&stream, tcp)
                .map_err(|errno| LabError::new(format!("TCP {tcp}: {errno}")))?;
        }
        let counting = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let buffer = vec![0x5a; CHUNK];
            while let Ok(len @ 1..) = stream.write(&buffer) {
                counting.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
    }
    let start = Instant::now();
    serve(0, || Ok(counted(start, &bytes)))
}

/// The time is taken here and not where the answer is read, so that a late
/// reader does not change the rate.
fn counted(start: Instant, bytes: &AtomicU64) -> Value {
    json!({ "bytes": bytes.load(Ordering::Relaxed), "at": start.elapsed().as_secs_f64() })
}

/// A socket as an ordinary program has it, which knows nothing of batches.
fn plain_socket() -> Result<warren_host::udp::UdpSocket, LabError> {
    let options = UdpOptions {
        mark: None,
        gro: false,
        gso: false,
        ..UdpOptions::default()
    };
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    warren_host::udp::UdpSocket::bind(any, &options)
        .map_err(|error| LabError::new(error.to_string()))
}

fn udp_sink() -> Result<(), LabError> {
    let socket = plain_socket()?;
    let port = socket.local_addr().port();
    let counts: Arc<[AtomicU64; 3]> = Arc::default();
    let counting = Arc::clone(&counts);
    std::thread::spawn(move || {
        let mut batch = RecvBatch::new(warren_host::udp::MAX_MESSAGES);
        let mut highest = 0;
        while wait(&mut [Watch::readable(&socket)], None).is_ok() {
            while socket.recv_batch(&mut batch).is_ok() {
                let (mut datagrams, mut bytes, mut late) = (0, 0, 0);
                for gro in batch.buffers() {
                    let number = gro.data.first_chunk().copied();
                    let number = number.map_or(0, u64::from_be_bytes);
                    late += u64::from(number < highest);
                    highest = highest.max(number);
                    datagrams += 1;
                    bytes += gro.data.len() as u64;
                }
                for (count, more) in counting.iter().zip([datagrams, bytes, late]) {
                    count.fetch_add(more, Ordering::Relaxed);
                }
            }
        }
    });
    serve(port, || {
        let [datagrams, bytes, late] = [0, 1, 2].map(|i: usize| counts[i].load(Ordering::Relaxed));
        Ok(json!({ "datagrams": datagrams, "bytes": bytes, "late": late }))
    })
}

fn udp_source(to: SocketAddr, rate: u64, size: usize, span: Duration) -> Result<(), LabError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let mut datagram = vec![0x5a; size.max(8)];
    let per_second = (rate / datagram.len() as u64).max(1);
    serve(0, || {
        Ok(paced(per_second, datagram.len(), span, |number| {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            socket.send(&datagram).is_ok()
        }))
    })
}

fn udp_many(to: &[SocketAddr], rate: u64, size: usize, span: Duration) -> Result<(), LabError> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut datagram = vec![0x5a; size.max(stamp::LEN)];
    let per_second = (rate / datagram.len() as u64).max(1);
    serve(0, || {
        Ok(paced(per_second, datagram.len(), span, |number| {
            // A remainder of how many there are.
            let at = (number % to.len() as u64) as usize;
            Stamp::now(number, at as u32).write(&mut datagram);
            socket.send_to(&datagram, to[at]).is_ok()
        }))
    })
}

/// Calls `send` with numbers from 0, `per_second` times a second for `span`;
/// it says whether the datagram of `size` bytes left.
pub fn paced(
    per_second: u64,
    size: usize,
    span: Duration,
    mut send: impl FnMut(u64) -> bool,
) -> Value {
    let most_behind = MOST_BEHIND.max(per_second / 1000);
    let (mut sent, mut refused, mut skipped) = (0u64, 0u64, 0u64);
    let start = Instant::now();
    let elapsed = loop {
        let elapsed = start.elapsed();
        if elapsed >= span {
            break elapsed;
        }
        #[allow(clippy::cast_possible_truncation)] // seconds, not ages
        let due = (elapsed.as_micros() as u64).saturating_mul(per_second) / 1_000_000;
        let behind = due.saturating_sub(sent + refused + skipped);
        skipped += behind.saturating_sub(most_behind);
        for _ in 0..behind.min(most_behind) {
            if send(sent + refused) {
                sent += 1;
            } else {
                refused += 1;
            }
        }
        if behind < most_behind {
            std::thread::sleep(PACE);
        }
    };
    json!({
        "datagrams": sent,
        "bytes": sent * size as u64,
        "refused": refused,
        "skipped": skipped,
        "seconds": elapsed.as_secs_f64(),
    })
}

/// One answer is one run: each request resets the counters.
fn stamp_sink() -> Result<(), LabError> {
    let socket = plain_socket()?;
    let port = socket.local_addr().port();
    let arrivals: Arc<Mutex<Arrivals>> = Arc::default();
    let adding = Arc::clone(&arrivals);
    std::thread::spawn(move || {
        let mut batch = RecvBatch::new(warren_host::udp::MAX_MESSAGES);
        while wait(&mut [Watch::readable(&socket)], None).is_ok() {
            while socket.recv_batch(&mut batch).is_ok() {
                let mut arrivals = adding.lock().unwrap_or_else(PoisonError::into_inner);
                for stamp in batch.buffers().filter_map(|gro| Stamp::read(gro.data)) {
                    arrivals.add(stamp);
                }
            }
        }
    });
    serve(port, || {
        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *arrivals).summary())
    })
}

/// Echo requests over a raw socket: the kernel at the other end answers, so
/// nothing but the path is measured. Needs no `ping`, which often is missing.
fn ping(to: Ipv4Addr, count: u16, interval: Duration) -> Result<(), LabError> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto,
    };
    let failed = |errno: rustix::io::Errno| LabError::new(format!("ping: {errno}"));
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )
    .map_err(failed)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100))).map_err(failed)?;
    let target = SocketAddrV4::new(to, 0);
    #[allow(clippy::cast_possible_truncation)] // any 16 bits will do
    let id = std::process::id() as u16;
    let mut number = 0u16;
    let mut buffer = [0; 2048];
    serve(0, || {
        let (mut times, mut lost) = (Vec::new(), 0u32);
        let mut next = Instant::now();
        for _ in 0..count {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            number = number.wrapping_add(1);
            let sent = Instant::now();
            next = sent + interval;
            let request = echo_request(id, number);
            if rustix::net::sendto(&socket, &request, SendFlags::empty(), &target).is_err() {
                lost += 1;
                continue;
            }
            let answered = loop {
                if sent.elapsed() > ECHO_LIMIT {
                    break None;
                }
                // A time-out of the socket comes by here, to look at the limit.
                let Ok((len, _)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())
                else {
                    continue;
                };
                if is_reply(&buffer[..len.min(buffer.len())], id, number) {
                    break Some(sent.elapsed());
                }
            };
            match answered {
                Some(time) => times.push(time.as_secs_f64() * 1e3),
                None => lost += 1,
            }
        }
        Ok(json!({ "ms": times, "lost": lost }))
    })
}

fn echo_request(id: u16, number: u16) -> [u8; 64] {
    let mut packet = [0; 64];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = super::inet::checksum(0, &packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// `packet` begins with its IP header.
fn is_reply(packet: &[u8], id: u16, number: u16) -> bool {
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    let message = packet.get(header..).unwrap_or_default();
    let Some(icmp) = message.first_chunk::<ICMP_HEADER_LEN>() else {
        return false;
    };
    icmp[0] == ECHO_REPLY && icmp[4..6] == id.to_be_bytes() && icmp[6..8] == number.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_good_checksum_and_is_not_its_own_reply() {
        let request = echo_request(7, 9);
        assert_eq!(super::super::inet::checksum(0, &request), 0);
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(&request);
        assert!(!is_reply(&packet, 7, 9));
        packet[20] = ECHO_REPLY;
        assert!(is_reply(&packet, 7, 9));
        assert!(!is_reply(&packet, 7, 10));
        assert!(!is_reply(&packet[..24], 7, 9));
        assert!(!is_reply(&[], 7, 9));
    }
}
