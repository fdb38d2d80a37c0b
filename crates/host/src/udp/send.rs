//! Sending: trains for many peers in one call, and what to do when a route or
//! a driver will not take trains.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::address::RawAddress;
use super::{GSO_RETRY, MAX_PAYLOAD_V4, MAX_PAYLOAD_V6, MAX_SEGMENTS, UdpSocket};

/// Messages handed to the kernel in one call.
const BATCH: usize = 32;

/// Room for the one control message we send: a u16, with its header 24 bytes.
const CONTROL_LEN: usize = 24;

/// Datagrams for one destination: `payload` cut into pieces of `segment_len`
/// bytes, the last perhaps shorter. May be longer than one train.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// The datagrams, one after the other.
    pub payload: &'a [u8],
    /// Length of each in bytes, but for the last. Zero, or more than the
    /// payload: one datagram.
    pub segment_len: usize,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOutcome {
    /// Entries of the batch that are done: sent, or reported as failed.
    pub done: usize,
    /// If less than the batch is done the socket's buffer is full: wait until
    /// it is writable and go on with the entry `done`, from this byte of its
    /// payload.
    pub offset: usize,
    /// Datagrams that the kernel took.
    pub datagrams: usize,
}

/// One message on its way: a piece of an entry.
#[derive(Clone, Copy, Default)]
struct Piece {
    entry: usize,
    offset: usize,
    len: usize,
    segments: usize,
}

/// Where the next message starts.
#[derive(Clone, Copy)]
struct Position {
    entry: usize,
    offset: usize,
    /// Whether the rest of this entry goes as single datagrams.
    single: bool,
}

impl UdpSocket {
    /// Sends `payload` to `to` in datagrams of `segment_len` bytes; gives the
    /// number of bytes taken, which is less than all when the socket's buffer
    /// is full.
    ///
    /// # Errors
    /// As the destination's: ENETUNREACH, EHOSTUNREACH, EPERM (a firewall),
    /// ENOBUFS (the device's queue is full), EMSGSIZE...; `WouldBlock` if
    /// nothing was taken.
    pub fn send_gso(
        &self,
        to: SocketAddr,
        payload: &[u8],
        segment_len: usize,
    ) -> io::Result<usize> {
        let mut failed = None;
        let batch = [Datagrams {
            to,
            payload,
            segment_len,
        }];
        let outcome = self.send_batch(&batch, |_, error| failed = Some(error));
        match failed {
            Some(error) => Err(error),
            None if outcome.done == 1 => Ok(payload.len()),
            None if outcome.offset > 0 => Ok(outcome.offset),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Sends one datagram; the form for disco and STUN.
    ///
    /// # Errors
    /// As [`UdpSocket::send_gso`].
    pub fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send_gso(to, datagram, 0).map(drop)
    }

    /// Sends all entries in their order, many in one system call.
    ///
    /// `failed(index, error)` is called for an entry that cannot be sent, or
    /// whose rest cannot; the others go on. Order within an entry is kept.
    /// Nothing is allocated unless an error is made.
    pub fn send_batch(
        &self,
        batch: &[Datagrams<'_>],
        mut failed: impl FnMut(usize, io::Error),
    ) -> SendOutcome {
        let now = self.coarse_now();
        let mut outcome = SendOutcome::default();
        let mut at = Position {
            entry: 0,
            offset: 0,
            single: false,
        };
        self.begin_entry(batch, now, &mut at);
        while at.entry < batch.len() {
            let mut pieces = [Piece::default(); BATCH];
            let (count, sent) = self.submit(batch, now, at, &mut pieces);
            let Some(first) = pieces[..count].first().copied() else {
                break;
            };
            match sent {
                Ok(taken) => {
                    let Some(last) = pieces[..count.min(taken)].last() else {
                        break;
                    };
                    let mut trains = false;
                    for piece in &pieces[..count.min(taken)] {
                        outcome.datagrams += piece.segments;
                        trains |= piece.segments > 1;
                    }
                    if let Some(gso) = self.gso.as_ref().filter(|_| trains) {
                        gso.accepted();
                    }
                    let entry_len = batch[last.entry].payload.len();
                    if last.offset + last.len >= entry_len {
                        at.entry = last.entry + 1;
                        at.offset = 0;
                        self.begin_entry(batch, now, &mut at);
                    } else {
                        // Within one call only the first entry can be in its
                        // single state, and it stays so to its end.
                        at.single = at.single && last.entry == at.entry
                            || last.entry != at.entry && self.is_single(batch, last.entry, now);
                        at.entry = last.entry;
                        at.offset = last.offset + last.len;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => break,
                    Some(code @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE))
                        if first.segments > 1 =>
                    {
                        if let Some(gso) = &self.gso {
                            gso.refused(batch[first.entry].to, code == libc::EIO, now);
                        }
                        at.single = true;
                    }
                    _ => {
                        failed(first.entry, error);
                        at.entry = first.entry + 1;
                        at.offset = 0;
                        self.begin_entry(batch, now, &mut at);
                    }
                },
            }
        }
        outcome.done = at.entry;
        outcome.offset = at.offset;
        outcome
    }

    fn begin_entry(&self, batch: &[Datagrams<'_>], now: u32, at: &mut Position) {
        at.single = self.is_single(batch, at.entry, now);
    }

    /// Whether an entry must go as single datagrams.
    fn is_single(&self, batch: &[Datagrams<'_>], entry: usize, now: u32) -> bool {
        match (&self.gso, batch.get(entry)) {
            (Some(gso), Some(entry)) => !gso.is_on(now) || gso.is_refused(entry.to, now),
            _ => true,
        }
    }

    /// Hands as many messages as fit one call to the kernel, starting at `at`.
    /// Gives how many there were, and how many it took.
    fn submit(
        &self,
        batch: &[Datagrams<'_>],
        now: u32,
        mut at: Position,
        pieces: &mut [Piece; BATCH],
    ) -> (usize, io::Result<usize>) {
        // SAFETY: all-zero bytes are a value of these plain structures.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut slices: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        let mut addresses = [RawAddress::EMPTY; BATCH];
        let mut controls = [Control([0; CONTROL_LEN]); BATCH];
        let mut count = 0;
        while count < BATCH {
            let Some(entry) = batch.get(at.entry) else {
                break;
            };
            let piece = next_piece(entry, &at);
            let (address, address_len) = RawAddress::new(entry.to);
            addresses[count] = address;
            let rest = &entry.payload[piece.offset..][..piece.len];
            slices[count].iov_base = rest.as_ptr().cast_mut().cast();
            slices[count].iov_len = rest.len();
            let header = &mut headers[count].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut addresses[count]).cast();
            header.msg_namelen = address_len;
            header.msg_iov = &mut slices[count];
            header.msg_iovlen = 1;
            if piece.segments > 1 {
                controls[count].set_segment_len(entry.segment_len as u16);
                header.msg_control = controls[count].0.as_mut_ptr().cast();
                header.msg_controllen = CONTROL_LEN as _;
            }
            pieces[count] = piece;
            count += 1;
            if piece.offset + piece.len < entry.payload.len() {
                at.offset = piece.offset + piece.len;
            } else {
                at.entry += 1;
                at.offset = 0;
                self.begin_entry(batch, now, &mut at);
            }
        }
        // SAFETY: the first `count` headers point to addresses, slices and
        // control room in arrays on this stack and to payload borrowed from
        // the caller, with their true lengths; the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        (
            count,
            usize::try_from(sent).map_err(|_| io::Error::last_os_error()),
        )
    }
}

/// The longest message that may start at `at`.
fn next_piece(entry: &Datagrams<'_>, at: &Position) -> Piece {
    let left = entry.payload.len() - at.offset;
    let segment = match entry.segment_len {
        0 => left,
        segment => segment.min(left),
    };
    let most = if entry.to.is_ipv4() {
        MAX_PAYLOAD_V4
    } else {
        MAX_PAYLOAD_V6
    };
    // A segment of zero bytes can only be an empty payload: one empty datagram.
    let fit = most.checked_div(segment).unwrap_or(1).min(MAX_SEGMENTS);
    let len = if at.single || fit < 2 {
        segment
    } else {
        left.min(segment * fit)
    };
    Piece {
        entry: at.entry,
        offset: at.offset,
        len,
        segments: len
            .checked_div(segment)
            .map_or(1, |_| len.div_ceil(segment)),
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Control {
    /// One `UDP_SEGMENT` control message.
    fn set_segment_len(&mut self, segment_len: u16) {
        // Some C libraries pad the structure; the padding stays zero.
        // SAFETY: all-zero bytes are a value of this plain structure.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        // SAFETY: CMSG_LEN only computes.
        header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<u16>() as u32) } as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        // SAFETY: the room is aligned for a `cmsghdr`, which takes 16 bytes of
        // its 24, and the value follows right behind it.
        unsafe {
            let start = self.0.as_mut_ptr();
            start.cast::<libc::cmsghdr>().write(header);
            start
                .add(size_of::<libc::cmsghdr>())
                .cast::<u16>()
                .write_unaligned(segment_len);
        }
    }
}

/// Slots of the memory of refused destinations. Two destinations that share
/// one forget each other, which costs a repeated refusal and no more.
const SLOTS: usize = 256;

/// EIO refusals in a row, without an accepted train in between, after which
/// the driver is believed.
const DRIVER_REFUSALS: u32 = 8;

/// Which destinations get single datagrams for now, without locks.
#[derive(Debug)]
pub(super) struct GsoMemory {
    /// Upper half: hash of the destination; lower half: the coarse second
    /// until which it is refused. Zero: free.
    slots: Box<[AtomicU64]>,
    refusals: AtomicU32,
    off_until: AtomicU32,
}

impl GsoMemory {
    pub(super) fn new() -> GsoMemory {
        GsoMemory {
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            refusals: AtomicU32::new(0),
            off_until: AtomicU32::new(0),
        }
    }

    pub(super) fn is_on(&self, now: u32) -> bool {
        now >= self.off_until.load(Ordering::Relaxed)
    }

    fn is_refused(&self, to: SocketAddr, now: u32) -> bool {
        let hash = hash(to);
        let slot = self.slots[hash as usize % SLOTS].load(Ordering::Relaxed);
        (slot >> 32) as u32 == hash && now < slot as u32
    }

    fn accepted(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }

    fn refused(&self, to: SocketAddr, by_driver: bool, now: u32) {
        let until = now.saturating_add(GSO_RETRY.as_secs() as u32);
        let hash = hash(to);
        self.slots[hash as usize % SLOTS]
            .store(u64::from(hash) << 32 | u64::from(until), Ordering::Relaxed);
        if by_driver && self.refusals.fetch_add(1, Ordering::Relaxed) + 1 >= DRIVER_REFUSALS {
            self.refusals.store(0, Ordering::Relaxed);
            self.off_until.store(until, Ordering::Relaxed);
        }
    }
}

/// FNV-1a over address and port. Not keyed: a collision that an attacker
/// builds gains it one peer without GSO.
fn hash(to: SocketAddr) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = to.port().to_be_bytes().into_iter().fold(0x811c_9dc5, step);
    match to {
        SocketAddr::V4(to) => to.ip().octets().into_iter().fold(hash, step),
        SocketAddr::V6(to) => to.ip().octets().into_iter().fold(hash, step),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn a_refusal_is_of_one_destination_and_passes() {
        let gso = GsoMemory::new();
        gso.refused(address(1), false, 5);
        assert!(gso.is_refused(address(1), 5));
        assert!(!gso.is_refused(address(2), 5));
        assert!(gso.is_on(5));
        assert!(!gso.is_refused(address(1), 5 + GSO_RETRY.as_secs() as u32));
    }

    #[test]
    fn a_driver_is_believed_after_a_row_of_refusals_only() {
        let gso = GsoMemory::new();
        for round in 0..3 {
            for port in 1..DRIVER_REFUSALS as u16 {
                gso.refused(address(port), true, 0);
            }
            assert!(gso.is_on(0), "round {round}");
            gso.accepted();
        }
        for port in 1..=DRIVER_REFUSALS as u16 {
            gso.refused(address(port), true, 0);
        }
        assert!(!gso.is_on(0));
        assert!(gso.is_on(GSO_RETRY.as_secs() as u32));
    }

    proptest! {
        /// Pieces cover the payload once, in order, at segment bounds, within
        /// the kernel's limits.
        #[test]
        fn pieces_cover_the_payload(
            len in 0usize..200_000,
            segment_len in 0usize..70_000,
            single: bool,
            v6: bool,
        ) {
            let to = if v6 { "[2001:db8::1]:1".parse().unwrap() } else { address(1) };
            let most = if v6 { MAX_PAYLOAD_V6 } else { MAX_PAYLOAD_V4 };
            let payload = vec![0; len];
            let entry = Datagrams { to, payload: &payload, segment_len };
            let mut at = Position { entry: 0, offset: 0, single };
            let mut datagrams = 0;
            loop {
                let piece = next_piece(&entry, &at);
                prop_assert_eq!(piece.offset, at.offset);
                prop_assert!(piece.segments >= 1 && piece.segments <= MAX_SEGMENTS);
                if piece.segments > 1 {
                    prop_assert!(!single);
                    prop_assert!(piece.len <= most);
                    prop_assert_eq!(piece.segments, piece.len.div_ceil(segment_len));
                }
                if segment_len != 0 {
                    prop_assert_eq!(piece.offset % segment_len, 0);
                }
                datagrams += piece.segments;
                at.offset += piece.len;
                if at.offset >= len {
                    break;
                }
            }
            prop_assert_eq!(at.offset, len);
            let expected = if len == 0 || segment_len == 0 { 1 } else { len.div_ceil(segment_len) };
            prop_assert_eq!(datagrams, expected);
        }
    }
}
