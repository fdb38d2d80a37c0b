//! The bare parts, one at a time, and the bound that follows from their sum.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use warren_host::poll::{Watch, wait};
use warren_host::udp::{MAX_PAYLOAD_V4, RecvBatch};
use warren_keys::noise::MessageKey;
use warren_tunnel::{Role, Session};

use super::batches::{HEADER_LEN, PADDING, TAG_LEN};
use super::datagrams::DATAGRAM as SINGLE;
use super::figures::Spreads;
use super::measure::{Found, Spans};
use super::pipeline::{TUNNEL_MTU, socket};
use super::usage::{cores, machine};
use super::{Candidate, Ends};
use super::{pause, until};
use warren_lab::{LabError, PATIENCE};

/// A full packet of the tunnel on the wire.
const DATAGRAM: usize = TUNNEL_MTU as usize + HEADER_LEN + TAG_LEN;
/// IP and TCP headers, with the timestamps that TCP of Linux sends.
const TCP_HEADERS: usize = 52;
/// IP and UDP headers.
const UDP_HEADERS: usize = 28;
const GIGA: f64 = 1e9;

/// Measures the parts; `ends` are hosts with nothing between them.
///
/// # Errors
/// When a socket cannot be had, or after Ctrl-C.
pub fn measure(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    let mut found = udp_gso(ends, spans)?;
    let (seal, open) = aead(DATAGRAM, spans.probe);
    let (seal_64k, _) = aead(65_536, spans.probe);
    found.extend([("seal", seal), ("open", open), ("seal_64k", seal_64k)]);
    Ok(found)
}

/// One thread sends the longest batches there are, another takes them.
fn udp_gso(ends: &Ends, spans: Spans) -> Result<Found, LabError> {
    let [from, to] = [socket(&ends.hosts[0])?, socket(&ends.hosts[1])?];
    let target: SocketAddr = to.local_addr();
    let stop = AtomicBool::new(false);
    let bytes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let payload = vec![0x5a; MAX_PAYLOAD_V4 / DATAGRAM * DATAGRAM];
            while !stop.load(Ordering::Relaxed) {
                if from.send_gso(target, &payload, DATAGRAM).is_err() {
                    drop(wait(
                        &mut [Watch::writable(&from)],
                        Some(Duration::from_millis(20)),
                    ));
                }
            }
        });
        scope.spawn(|| {
            let mut batch = RecvBatch::new(16);
            while !stop.load(Ordering::Relaxed) {
                let watch = Watch::readable(&to);
                drop(wait(&mut [watch], Some(Duration::from_millis(20))));
                while to.recv_batch(&mut batch).is_ok() && !stop.load(Ordering::Relaxed) {
                    let len: usize = batch.buffers().map(|batch| batch.data.len()).sum();
                    bytes.fetch_add(len as u64, Ordering::Relaxed);
                }
            }
        });
        let measured = measured(&bytes, spans);
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
fn measured(bytes: &AtomicU64, spans: Spans) -> Result<Found, LabError> {
    until("datagrams", PATIENCE, || {
        match bytes.load(Ordering::Relaxed) {
            0 => Err(LabError::new("none came")),
            _ => Ok(()),
        }
    })?;
    pause(spans.warm_up)?;
    let (start, first, busy) = (Instant::now(), bytes.load(Ordering::Relaxed), machine());
    pause(spans.udp)?;
    let moved = (bytes.load(Ordering::Relaxed) - first) as f64;
    let seconds = start.elapsed().as_secs_f64();
    Ok(vec![
        ("gso", moved * 8.0 / seconds / GIGA),
        ("gso_cpu", (machine() - busy) / (moved / GIGA)),
    ])
}

/// GB/s that one core seals and opens in datagrams of `len` bytes, with the
/// session that the tunnel uses.
#[allow(clippy::cast_precision_loss)] // counts far below 2^52
fn aead(len: usize, span: Duration) -> (f64, f64) {
    /// As much as a batch holds, which is what is in the cache together.
    const TOGETHER: usize = 65_536;
    let key = |byte: u8| MessageKey::new([byte; 32]);
    let now = Instant::now();
    let sender = Session::new(Role::Initiator, 1, 2, &key(1), &key(2), now);
    let receiver = Session::new(Role::Responder, 2, 1, &key(2), &key(1), now);
    let mut buffer = vec![0x5a_u8; (TOGETHER / len).max(1) * len];
    let (mut sealing, mut opening, mut bytes) = (Duration::ZERO, Duration::ZERO, 0_usize);
    let mut counter = 0;
    while sealing + opening < span {
        let start = Instant::now();
        let sealed = sender.seal_batch(counter, &mut buffer, len);
        debug_assert!(sealed.is_ok());
        counter += (buffer.len() / len) as u64;
        let middle = Instant::now();
        let opened = receiver.open_batch(&mut buffer, len);
        for (i, datagram) in buffer.chunks_exact(len).enumerate() {
            debug_assert!(opened.get(i, datagram).is_ok());
        }
        opening += middle.elapsed();
        sealing += middle - start;
        bytes += buffer.len();
    }
    let per = |time: Duration| bytes as f64 / time.as_secs_f64() / GIGA;
    (per(sealing), per(opening))
}

/// The bound from the sum of the parts: CPU seconds that a GB of TCP payload
/// costs on the whole machine, and Gbit/s if all cores did nothing else.
#[allow(clippy::cast_precision_loss)] // small numbers
pub fn bound(spreads: &Spreads) -> Option<(f64, f64)> {
    let grown = DATAGRAM as f64 / (usize::from(TUNNEL_MTU) - TCP_HEADERS) as f64;
    sum(spreads, "tcp1.cpu_all", grown)
}

/// The same for datagrams sent one by one, at the highest rate that single
/// frames go from TUN to TUN.
#[allow(clippy::cast_precision_loss)] // small numbers
pub fn udp_bound(spreads: &Spreads) -> Option<(f64, f64)> {
    let wire = (SINGLE + UDP_HEADERS).next_multiple_of(PADDING) + HEADER_LEN + TAG_LEN;
    sum(spreads, "udpmax.cpu_all", wire as f64 / SINGLE as f64)
}

/// TUN to TUN with the load generator, and then `grown` times as many bytes
/// through the cipher and the network.
fn sum(spreads: &Spreads, shuttle: &str, grown: f64) -> Option<(f64, f64)> {
    let of = |key: &str, candidate| spreads.of_key(key, candidate).map(|spread| spread.median);
    let wire = of("parts.gso_cpu", Candidate::Roofline)?
        + 1.0 / of("parts.seal", Candidate::Roofline)?
        + 1.0 / of("parts.open", Candidate::Roofline)?;
    let seconds = of(shuttle, Candidate::Shuttle)? + grown * wire;
    Some((seconds, cores() * 8.0 / seconds))
}
