//! Sending: joined datagrams for many peers in one call (GSO), and single ones when a
//! route or a driver refuses joined ones.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::address::RawAddress;
use super::{GSO_RETRY, MAX_PAYLOAD_V4, MAX_PAYLOAD_V6, MAX_SEGMENTS, UdpSocket};

/// Messages handed to the kernel in one call.
const BATCH: usize = 32;

/// Space for the one control message we send: a u16, with its header 24 bytes.
const CONTROL_LEN: usize = 24;

/// Datagrams for one destination: `payload` cut into pieces of `segment_len`
/// bytes, the last perhaps shorter. May be more than the kernel takes joined.
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

/// The result of sending a batch.
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
        self.send_all(batch, &mut failed)
    }

    fn send_all(
        &self,
        batch: &[Datagrams<'_>],
        failed: &mut dyn FnMut(usize, io::Error),
    ) -> SendOutcome {
        let now = self.coarse_now();
        let line = Line {
            batch,
            gso: self.gso.as_ref(),
            now,
        };
        line.send(|pieces| self.submit(batch, pieces), failed)
    }

    /// Hands these messages to the kernel in one call; gives how many it took.
    fn submit(&self, batch: &[Datagrams<'_>], pieces: &[Piece]) -> io::Result<usize> {
        // SAFETY: all-zero bytes are a value of these plain structures.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut slices: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        let mut addresses = [RawAddress::EMPTY; BATCH];
        let mut controls = [Control([0; CONTROL_LEN]); BATCH];
        let mut count = 0;
        for (at, piece) in pieces.iter().take(BATCH).enumerate() {
            let entry = &batch[piece.entry];
            let (address, address_len) = RawAddress::new(entry.to);
            addresses[at] = address;
            let rest = &entry.payload[piece.offset..][..piece.len];
            slices[at].iov_base = rest.as_ptr().cast_mut().cast();
            slices[at].iov_len = rest.len();
            let header = &mut headers[at].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut addresses[at]).cast();
            header.msg_namelen = address_len;
            header.msg_iov = &mut slices[at];
            header.msg_iovlen = 1;
            if piece.segments > 1 {
                controls[at].set_segment_len(entry.segment_len as u16);
                header.msg_control = controls[at].0.as_mut_ptr().cast();
                header.msg_controllen = CONTROL_LEN as _;
            }
            count += 1;
        }
        // SAFETY: the first `count` headers point to addresses, slices and
        // control buffers in arrays on this stack and to payload borrowed from
        // the caller, with their true lengths; the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT as _, // c_int or c_uint, by the C library
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// A batch on its way, and the memory of refusals of GSO.
struct Line<'a, 'b> {
    batch: &'a [Datagrams<'b>],
    gso: Option<&'a GsoMemory>,
    now: u32,
}

impl Line<'_, '_> {
    /// Sends everything through `submit`, whatever that answers.
    #[inline]
    fn send(
        &self,
        mut submit: impl FnMut(&[Piece]) -> io::Result<usize>,
        failed: &mut dyn FnMut(usize, io::Error),
    ) -> SendOutcome {
        let mut outcome = SendOutcome::default();
        let mut at = self.begin(0);
        while at.entry < self.batch.len() {
            let mut pieces = [Piece::default(); BATCH];
            let count = self.cut(at, &mut pieces);
            let Some(first) = pieces[..count].first().copied() else {
                break;
            };
            match submit(&pieces[..count]) {
                Ok(taken) => {
                    let taken = &pieces[..count.min(taken)];
                    let Some(last) = taken.last() else {
                        break;
                    };
                    let joined = taken.iter().any(|piece| piece.segments > 1);
                    if let Some(gso) = self.gso.filter(|_| joined) {
                        gso.accepted();
                    }
                    outcome.datagrams += taken.iter().map(|piece| piece.segments).sum::<usize>();
                    let end = last.offset + last.len;
                    if end >= self.batch[last.entry].payload.len() {
                        at = self.begin(last.entry + 1);
                    } else {
                        // Within one call only the first entry can be in its
                        // single state, and it stays so to its end.
                        let single = if last.entry == at.entry {
                            at.single
                        } else {
                            self.is_single(last.entry)
                        };
                        at = Position {
                            entry: last.entry,
                            offset: end,
                            single,
                        };
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => break,
                    Some(code @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE))
                        if first.segments > 1 =>
                    {
                        if let Some(gso) = self.gso {
                            let to = self.batch[first.entry].to;
                            gso.refused(to, code == libc::EIO, self.now);
                        }
                        at.single = true;
                    }
                    _ => {
                        failed(first.entry, error);
                        at = self.begin(first.entry + 1);
                    }
                },
            }
        }
        outcome.done = at.entry;
        outcome.offset = at.offset;
        outcome
    }

    fn begin(&self, entry: usize) -> Position {
        Position {
            entry,
            offset: 0,
            single: self.is_single(entry),
        }
    }

    /// Whether an entry must go as single datagrams.
    fn is_single(&self, entry: usize) -> bool {
        match (self.gso, self.batch.get(entry)) {
            (Some(gso), Some(entry)) => !gso.is_on(self.now) || gso.is_refused(entry.to, self.now),
            _ => true,
        }
    }

    /// As many messages as fit one call, starting at `at`; gives their number.
    fn cut(&self, mut at: Position, pieces: &mut [Piece; BATCH]) -> usize {
        let mut count = 0;
        for piece in pieces {
            let Some(entry) = self.batch.get(at.entry) else {
                break;
            };
            *piece = next_piece(entry, &at);
            count += 1;
            if piece.offset + piece.len < entry.payload.len() {
                at.offset = piece.offset + piece.len;
            } else {
                at = self.begin(at.entry + 1);
            }
        }
        count
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
        // SAFETY: the buffer is aligned for a `cmsghdr`, which takes 16 bytes of
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

/// EIO refusals in a row, without accepted joined datagrams in between, after which
/// GSO is off for the whole socket.
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

    fn code_of(error: &io::Error) -> libc::c_int {
        error.raw_os_error().unwrap_or(0)
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

    /// A kernel's answer to one call.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        /// It takes at most so many messages.
        Takes(usize),
        /// It refuses the first.
        Refuses(libc::c_int),
        /// It refuses joined datagrams, and takes single ones.
        NoGso(libc::c_int),
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let trouble = prop::sample::select(vec![
            libc::EAGAIN,
            libc::EINTR,
            libc::ENOBUFS,
            libc::EINVAL,
            libc::EIO,
            libc::EMSGSIZE,
            libc::EPERM,
            libc::ENETUNREACH,
            libc::ENETDOWN,
            libc::ENOMEM,
        ]);
        let no_gso = prop::sample::select(vec![libc::EIO, libc::EINVAL, libc::EMSGSIZE]);
        prop_oneof![
            3 => (1usize..40).prop_map(Answer::Takes),
            2 => trouble.prop_map(Answer::Refuses),
            1 => no_gso.prop_map(Answer::NoGso),
        ]
    }

    proptest! {
        /// Whatever the kernel answers in the middle of a batch: each datagram
        /// is sent once and in its place, or its entry is reported, or the
        /// caller learns where to go on.
        #[test]
        fn no_datagram_is_lost_unsaid_or_sent_twice(
            shapes in prop::collection::vec((0usize..90_000, 0usize..3_000, 0u16..4), 1..40),
            script in prop::collection::vec(answer(), 0..60),
            gso: bool,
        ) {
            let payload: Vec<u8> = vec![0; 90_000];
            let batch: Vec<Datagrams<'_>> = shapes
                .iter()
                .map(|(len, segment_len, port)| Datagrams {
                    to: address(*port),
                    payload: &payload[..*len],
                    // Not more datagrams than a test can count.
                    segment_len: (*segment_len).max(len / 300),
                })
                .collect();
            let memory = GsoMemory::new();
            let (mut sent, mut failures) = (Vec::new(), Vec::new());
            let mut datagrams = 0;
            let mut script = script.iter();
            // Where the caller goes on after a full buffer.
            let (mut start, mut skip) = (0, 0);
            while start < batch.len() {
                let mut left = batch[start..].to_vec();
                left[0].payload = &left[0].payload[skip..];
                let line = Line { batch: &left, gso: gso.then_some(&memory), now: 0 };
                let outcome = line.send(
                    |pieces| {
                        let taken = match script.next() {
                            None => pieces.len(),
                            Some(Answer::Takes(most)) => pieces.len().min(*most),
                            Some(Answer::Refuses(code)) => {
                                return Err(io::Error::from_raw_os_error(*code));
                            }
                            Some(Answer::NoGso(code)) => {
                                let single = |piece: &&Piece| piece.segments == 1;
                                match pieces.iter().take_while(single).count() {
                                    0 => return Err(io::Error::from_raw_os_error(*code)),
                                    taken => taken,
                                }
                            }
                        };
                        for piece in &pieces[..taken] {
                            assert!(gso || piece.segments == 1);
                            let skipped = if piece.entry == 0 { skip } else { 0 };
                            sent.push((start + piece.entry, skipped + piece.offset, piece.len));
                        }
                        Ok(taken)
                    },
                    &mut |entry, error: io::Error| {
                        failures.push((start + entry, code_of(&error)));
                    },
                );
                datagrams += outcome.datagrams;
                prop_assert!(outcome.offset == 0 || outcome.done < left.len());
                skip = if outcome.done == 0 { skip + outcome.offset } else { outcome.offset };
                start += outcome.done;
            }
            let mut counted = 0;
            let mut sent = sent.into_iter().peekable();
            for (index, entry) in batch.iter().enumerate() {
                let mut end = 0;
                let mut any = false;
                while let Some((_, offset, len)) = sent.next_if(|(entry, ..)| *entry == index) {
                    prop_assert_eq!(offset, end, "in order, without holes");
                    end = offset + len;
                    any = true;
                    counted += match entry.segment_len {
                        0 => 1,
                        segment => len.div_ceil(segment).max(1),
                    };
                }
                let reported = failures.iter().filter(|(entry, _)| *entry == index).count();
                let complete = any && end == entry.payload.len();
                prop_assert_eq!(reported, usize::from(!complete), "entry {}", index);
            }
            prop_assert!(sent.next().is_none(), "one entry after the other");
            prop_assert_eq!(datagrams, counted);
            // Refused joined datagrams are not lost, whatever the reason given.
            for (_, code) in failures {
                prop_assert!(code != libc::EAGAIN && code != libc::EINTR);
            }
        }

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
