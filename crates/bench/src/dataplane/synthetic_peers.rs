//! Synthetic peers: many peers in one process, each with keys, an address and a
//! socket of its own, for one node under test to talk to.
//!
//! A thousand daemons do not fit on the machine that measures, and would be
//! what is measured. These peers do as little as a peer can and still be one:
//! they join the tailnet at our server ([`join`]), answer disco pings, so that
//! the path to them is direct, and finish real WireGuard handshakes ([`peer`]).
//! Everything that the node under test does for a peer it does for these: a
//! place in the netmap, a route, filter rules, path finding, a session, a
//! destination of its own in every batch.
//!
//! Received datagrams are counted; one of 64 is also opened. Sent datagrams
//! is sealed with the session's keys ([`speak`]).
//!
//! ```text
//! ready 0
//! < meet NODEKEY ADDRESS OWN,OWN,...        > {"peers": 1000}
//! < ?                                       > {"datagrams": 12, "bad": 0, ...}
//! < sessions                                > {"sessions": 1000}
//! < send PORT RATE SIZE MILLIS              > {"datagrams": 100000, ...}
//! < flood PORT SIZE MILLIS PER_SECOND       > {"flood": 90000, "others": 1500}
//! ```

mod join;
mod peer;
mod speak;

use std::io::{BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use serde_json::{Value, json};
use warren_host::udp::{RecvBatch, UdpOptions, UdpSocket};
use warren_keys::NodePublic;
use warren_tunnel::Session;

use peer::Peer;
use speak::Post;
use warren_lab::LabError;

/// The port of the first peer; the others follow.
const FIRST_PORT: u16 = 20_000;
/// How often timers are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Receive buffer of a socket: several bursts, but small enough for a thousand sockets.
const BUFFER: usize = 1 << 20;
/// Sockets that one look at the kernel may name.
const READY: usize = 256;

/// State of one peer that the threads share.
struct Line {
    socket: UdpSocket,
    /// With what, and where to, the peer may send.
    way: Mutex<Option<(Arc<Session>, SocketAddr)>>,
}

impl Line {
    fn way(&self) -> MutexGuard<'_, Option<(Arc<Session>, SocketAddr)>> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Datagrams received by all peers.
#[derive(Default)]
struct Counts {
    datagrams: AtomicU64,
    opened: AtomicU64,
    bad: AtomicU64,
}

/// Registers `count` peers at `server`, which are all at `address`, and serves
/// until the end of the input.
///
/// # Errors
/// When the server does not take one, or a socket cannot be had.
pub fn run(server: &str, auth_key: &str, count: u16, address: Ipv4Addr) -> Result<(), LabError> {
    let options = UdpOptions {
        mark: None,
        buffer: BUFFER,
        ..UdpOptions::default()
    };
    let mut lines = Vec::new();
    for number in 0..count {
        let at = SocketAddr::from((address, FIRST_PORT + number));
        let socket =
            UdpSocket::bind(at, &options).map_err(|error| LabError::new(error.to_string()))?;
        let way = Mutex::new(None);
        lines.push(Line { socket, way });
    }
    let addresses = lines.iter().map(|line| line.socket.local_addr());
    let secrets = join::all(server, auth_key, addresses.collect())?;
    let lines: Arc<[Line]> = lines.into();
    let counts = Arc::new(Counts::default());
    let (meet, met) = mpsc::channel();
    let listener = Listener {
        peers: secrets.into_iter().map(Peer::new).collect(),
        lines: Arc::clone(&lines),
        counts: Arc::clone(&counts),
        met,
    };
    std::thread::Builder::new()
        .name("peers-listener".to_owned())
        .spawn(move || {
            if let Err(error) = listener.run() {
                eprintln!("the synthetic peers cannot receive any more: {error}");
                std::process::exit(1);
            }
        })?;

    let mut post = None;
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready 0")?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = answer(&line, &lines, &counts, &meet, &mut post)?;
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(
    line: &str,
    lines: &[Line],
    counts: &Counts,
    meet: &mpsc::Sender<NodePublic>,
    post: &mut Option<Post>,
) -> Result<Value, LabError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let wrong = || LabError::new(format!("`{line}` is not a command of the synthetic peers"));
    let number = |word: &str| word.parse::<u64>().map_err(|_| wrong());
    match words.as_slice() {
        ["?"] => Ok(json!({
            "datagrams": counts.datagrams.load(Ordering::Relaxed),
            "opened": counts.opened.load(Ordering::Relaxed),
            "bad": counts.bad.load(Ordering::Relaxed),
        })),
        ["sessions"] => {
            let ready = lines.iter().filter(|line| line.way().is_some());
            Ok(json!({ "sessions": ready.count() }))
        }
        ["meet", key, to, own] => {
            let own = own.split(',').map(|address| address.parse());
            let own = own.collect::<Result<Vec<Ipv4Addr>, _>>();
            let own = own.map_err(|_| wrong())?;
            if own.len() != lines.len() {
                return Err(wrong());
            }
            let to = to.parse().map_err(|_| wrong())?;
            // The listener lives as long as the process.
            let _ = meet.send(key.parse().map_err(|_| wrong())?);
            *post = Some(Post { to, own });
            Ok(json!({ "peers": lines.len() }))
        }
        ["send", port, rate, size, millis] => {
            let post = post.as_ref().ok_or_else(wrong)?;
            let port = u16::try_from(number(port)?).map_err(|_| wrong())?;
            let span = Duration::from_millis(number(millis)?);
            let size = speak::size(number(size)?).ok_or_else(wrong)?;
            Ok(post.send(lines, port, number(rate)?, size, span))
        }
        ["flood", port, size, millis, per_second] => {
            let post = post.as_ref().ok_or_else(wrong)?;
            let port = u16::try_from(number(port)?).map_err(|_| wrong())?;
            let span = Duration::from_millis(number(millis)?);
            let size = speak::size(number(size)?).ok_or_else(wrong)?;
            Ok(post.flood(lines, port, size, span, number(per_second)?))
        }
        _ => Err(wrong()),
    }
}

/// The thread that receives for all of them.
struct Listener {
    peers: Vec<Peer>,
    lines: Arc<[Line]>,
    counts: Arc<Counts>,
    met: mpsc::Receiver<NodePublic>,
}

impl Listener {
    fn run(mut self) -> std::io::Result<()> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (line, number) in self.lines.iter().zip(0..) {
            let data = epoll::EventData::new_u64(number);
            epoll::add(&poll, &line.socket, data, epoll::EventFlags::IN)?;
        }
        let mut events = Vec::with_capacity(READY);
        let mut batch = RecvBatch::new(16);
        let pause = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        let mut next_tick = Instant::now();
        loop {
            events.clear();
            let capacity = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&poll, capacity, Some(&pause)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = Instant::now();
            for node in self.met.try_iter() {
                for peer in &mut self.peers {
                    peer.meet(now, node);
                }
            }
            for event in &events {
                // Numbers of this vector, as they were added.
                let at = event.data.u64() as usize;
                let (Some(line), Some(peer)) = (self.lines.get(at), self.peers.get_mut(at)) else {
                    continue;
                };
                if line.socket.recv_batch(&mut batch).is_err() {
                    continue;
                }
                for mut batch in batch.buffers() {
                    let from = batch.from;
                    for datagram in batch.datagrams() {
                        peer.receive(now, from, datagram, line, &self.counts);
                    }
                }
            }
            if now >= next_tick {
                next_tick = now + TICK;
                for (peer, line) in self.peers.iter_mut().zip(&*self.lines) {
                    peer.tick(now, line);
                }
            }
        }
    }
}
