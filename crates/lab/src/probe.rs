//! A steady stream of small numbered packets between two hosts, and what
//! became of each.
//!
//! This is what "no packet lost at the switch" and "first reply after" are
//! measured with: a UDP socket on one host sends a number at a fixed pace, an
//! echo on the other returns it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::network::{Host, LabError};
use crate::wait::{PATIENCE, until};

/// The UDP port of the echo service (RFC 862).
pub const ECHO_PORT: u16 = 7;

/// Returns every datagram to its sender, until dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on all addresses of `host`, both families.
    ///
    /// # Errors
    /// When the port stays taken.
    pub fn start(host: &Host) -> Result<Self, LabError> {
        // A process that another thread is about to start has the socket of an earlier echo
        // until it runs its program.
        let socket = until("the port of the echo service", PATIENCE, || {
            host.inside(|| {
                UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO_PORT))
                    .or_else(|_| UdpSocket::bind(("0.0.0.0", ECHO_PORT)))
            })
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopping.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    // A lost echo is a lost packet; the sender counts it.
                    drop(socket.send_to(&buffer[..len], from));
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// One numbered packet.
#[derive(Debug, Clone, Copy)]
pub struct Shot {
    /// When it left.
    pub sent: Instant,
    /// When its echo came back.
    pub answered: Option<Instant>,
}

/// A running stream of packets.
pub struct Probe {
    shots: Arc<Mutex<Vec<Shot>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Sends a packet every `pace` from `from` to the echo at `to`.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn start(from: &Host, to: IpAddr, pace: Duration) -> Result<Self, LabError> {
        let any: IpAddr = match to {
            IpAddr::V4(_) => [0, 0, 0, 0].into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = from.inside(move || UdpSocket::bind((any, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let target = SocketAddr::new(to, ECHO_PORT);
        let shots = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));

        let (sender, sent, stopping) = (socket.try_clone()?, Arc::clone(&shots), Arc::clone(&stop));
        let sending = std::thread::spawn(move || {
            let mut next = Instant::now();
            while !stopping.load(Ordering::Relaxed) {
                let number = {
                    let mut shots = lock(&sent);
                    shots.push(Shot {
                        sent: Instant::now(),
                        answered: None,
                    });
                    shots.len() as u64 - 1
                };
                // Refused while the interface is not up yet: that shot is lost.
                drop(sender.send_to(&number.to_be_bytes(), target));
                next += pace;
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
            }
        });
        let (received, stopping) = (Arc::clone(&shots), Arc::clone(&stop));
        let receiving = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopping.load(Ordering::Relaxed) {
                let Ok(len) = socket.recv(&mut buffer) else {
                    continue;
                };
                let number = <[u8; 8]>::try_from(&buffer[..len]).map(u64::from_be_bytes);
                let index = number.ok().and_then(|number| usize::try_from(number).ok());
                let mut shots = lock(&received);
                if let Some(shot) = index.and_then(|index| shots.get_mut(index)) {
                    shot.answered.get_or_insert_with(Instant::now);
                }
            }
        });
        Ok(Self {
            shots,
            stop,
            threads: vec![sending, receiving],
        })
    }

    /// How many packets were answered or lost so far.
    pub fn shots(&self) -> Vec<Shot> {
        lock(&self.shots).clone()
    }

    /// When the first echo came back.
    pub fn first_answer(&self) -> Option<Instant> {
        self.shots().iter().filter_map(|shot| shot.answered).min()
    }

    /// Of the packets sent in `from..to`: how many, and how many got no answer.
    pub fn lost_between(&self, from: Instant, to: Instant) -> (usize, usize) {
        let shots = self.shots();
        let inside = shots
            .iter()
            .filter(|shot| shot.sent >= from && shot.sent < to);
        let (mut sent, mut lost) = (0, 0);
        for shot in inside {
            sent += 1;
            lost += usize::from(shot.answered.is_none());
        }
        (sent, lost)
    }

    /// The longest time in which nothing came back, among packets sent since
    /// `from`.
    pub fn longest_silence(&self, from: Instant) -> Duration {
        let shots = self.shots();
        let mut answers: Vec<Instant> = shots
            .iter()
            .filter(|shot| shot.sent >= from)
            .filter_map(|shot| shot.answered)
            .collect();
        answers.push(from);
        answers.sort();
        let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn lock(shots: &Mutex<Vec<Shot>>) -> std::sync::MutexGuard<'_, Vec<Shot>> {
    shots.lock().unwrap_or_else(PoisonError::into_inner)
}
