//! The roofline: what a tunnel must do, and nothing else.
//!
//! ```text
//!   TUN read -> cut and seal -> UDP with GSO   ...   UDP with GRO -> open -> join -> TUN write
//! ```
//!
//! Two threads per end as in the daemon, the same TUN, the same sockets, the
//! same sealing; but one peer, one fixed session, no lookup of anything, no
//! filter, no replay window, no roaming, no timers, no statistics, IPv4 only.
//! The further work of a node per packet is its distance to the roofline.
//!
//! With [`Means::Shuttle`] even that is left out: frames go from one TUN
//! straight to the other, as they were read.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use warren_host::poll::{Watch, wait};
use warren_host::tun::{MAX_FRAME_LEN, Tun};
use warren_host::udp::{RecvBatch, UdpOptions, UdpSocket};
use warren_keys::noise::MessageKey;
use warren_tunnel::{Role, Session};

use super::batches::Batches;
use super::join::Joiner;
use super::segment::cut;
use super::usage::Counted;
use warren_lab::{Host, LabError};

/// Reads before what they gave is sent, and messages per receive: as the daemon.
const BATCH: usize = 16;
/// How often a thread that has nothing to do looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// The MTU of all tunnels here, as of the programs under test.
pub const TUNNEL_MTU: u16 = 1280;
const PORT: u16 = 41641;
const DEVICE: &str = "roof0";
const INNER: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

/// The program between the two TUN devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// A whole tunnel, without a node around it.
    Tunnel,
    /// Nothing.
    Shuttle,
}

/// Two TUNs and the threads between them.
pub struct Pipeline {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    cpu: [Counted; 2],
}

/// Everything of one end that its threads share.
struct End {
    tun: Tun,
    socket: UdpSocket,
    session: Session,
    peer: SocketAddr,
}

impl Pipeline {
    /// Makes both devices and starts the threads.
    ///
    /// # Errors
    /// When a device or a socket cannot be had.
    pub fn start(hosts: &[Host; 2], means: Means) -> Result<Self, LabError> {
        let key = |byte: u8| MessageKey::new([byte; 32]);
        let (there, back) = (key(1), key(2));
        let now = Instant::now();
        let sessions = [
            Session::new(Role::Initiator, 1, 2, &there, &back, now),
            Session::new(Role::Responder, 2, 1, &back, &there, now),
        ];
        let mut ends = Vec::new();
        for (side, session) in sessions.into_iter().enumerate() {
            let (own, peer) = (&hosts[side], &hosts[1 - side]);
            ends.push(Arc::new(End {
                tun: device(own, INNER[side])?,
                socket: socket(own)?,
                session,
                peer: SocketAddr::new(peer.address(), PORT),
            }));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut spawn = |name: &str, work: Box<dyn FnOnce() + Send>| -> io::Result<u32> {
            let (report, id) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new().name(name.to_owned());
            threads.push(thread.spawn(move || {
                // The starter waits for it below.
                let id = rustix::thread::gettid().as_raw_nonzero().get();
                let _ = report.send(id.unsigned_abs());
                work();
            })?);
            id.recv().map_err(io::Error::other)
        };
        let mut cpu = Vec::new();
        for side in [0, 1] {
            let (own, other) = (Arc::clone(&ends[side]), Arc::clone(&ends[1 - side]));
            let stopping = Arc::clone(&stop);
            let mut ids = Vec::new();
            match means {
                Means::Shuttle => ids.push(spawn(
                    "roof-shuttle",
                    Box::new(move || shuttle(&own.tun, &other.tun, &stopping)),
                )?),
                Means::Tunnel => {
                    let (inward, stop) = (Arc::clone(&own), Arc::clone(&stop));
                    ids.push(spawn("roof-out", Box::new(move || out(&own, &stopping)))?);
                    ids.push(spawn("roof-in", Box::new(move || in_(&inward, &stop)))?);
                }
            }
            cpu.push(Counted::threads(ids));
        }
        let cpu = [cpu[0].clone(), cpu[1].clone()];
        Ok(Self { stop, threads, cpu })
    }

    /// The address of the second end inside the tunnel.
    pub fn target() -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(10, 99, 0, 2)
    }

    /// The threads of each end.
    pub fn cpu(&self) -> [Counted; 2] {
        self.cpu.clone()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic was printed where it happened.
            drop(thread.join());
        }
    }
}

fn device(host: &Host, address: &str) -> Result<Tun, LabError> {
    let tun = host.inside(|| {
        let tun = Tun::create(DEVICE)?;
        tun.set_mtu(TUNNEL_MTU)?;
        Ok::<_, warren_host::tun::TunError>(tun)
    });
    let tun = tun.map_err(|error| LabError::new(error.to_string()))?;
    host.run(
        "ip",
        &["addr", "add", &format!("{address}/24"), "dev", DEVICE],
    )?;
    host.run("ip", &["link", "set", DEVICE, "up"])?;
    Ok(tun)
}

/// A socket as the daemon has it, bound to the host's own address.
pub fn socket(host: &Host) -> Result<UdpSocket, LabError> {
    let address = SocketAddr::new(host.address(), PORT);
    let options = UdpOptions {
        mark: None,
        ..UdpOptions::default()
    };
    host.inside(move || UdpSocket::bind(address, &options))
        .map_err(|error| LabError::new(error.to_string()))
}

/// Sleeps until there is something to read; `false` when it is time to end.
fn awake(watch: Watch<'_>, stop: &AtomicBool) -> bool {
    // An error shows at the next read.
    drop(wait(&mut [watch], Some(LOOK)));
    !stop.load(Ordering::Relaxed)
}

fn shuttle(from: &Tun, to: &Tun, stop: &AtomicBool) {
    let mut frame = vec![0; MAX_FRAME_LEN];
    while awake(Watch::readable(from), stop) {
        while let Ok(len) = from.read(&mut frame) {
            // A full queue loses packets, as wires do.
            drop(to.write(&frame[..len]));
        }
    }
}

fn out(end: &End, stop: &AtomicBool) {
    let mut frame = vec![0; MAX_FRAME_LEN];
    let mut batches = Batches::new();
    while awake(Watch::readable(&end.tun), stop) {
        let mut more = true;
        while more && !stop.load(Ordering::Relaxed) {
            for _ in 0..BATCH {
                let Ok(len) = end.tun.read(&mut frame) else {
                    more = false;
                    break;
                };
                cut(&frame[..len], &mut batches, &end.session);
                if batches.is_full() {
                    break;
                }
            }
            batches.send(&end.socket, end.peer);
        }
    }
}

fn in_(end: &End, stop: &AtomicBool) {
    let mut batch = RecvBatch::new(BATCH);
    let mut joiner = Joiner::new(end.tun.offloads());
    let mut write = |frame: &[u8]| drop(end.tun.write(frame));
    while awake(Watch::readable(&end.socket), stop) {
        while end.socket.recv_batch(&mut batch).is_ok() {
            for gro in batch.buffers() {
                let opened = end.session.open_batch(gro.data, gro.segment_len);
                let datagrams = gro.data.chunks(gro.segment_len.max(1));
                for (i, datagram) in datagrams.enumerate() {
                    if let Ok((_, content)) = opened.get(i, datagram) {
                        joiner.push(&datagram[content], &mut write);
                    }
                }
            }
            joiner.flush(&mut write);
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}
