//! Receiving: many messages in one call, each of which may hold several datagrams
//! that the kernel joined (GRO).

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use super::UdpSocket;
use super::address::RawAddress;

/// Space for one message, in bytes: with GRO on, the kernel may give that much at
/// once, and cuts off the rest.
pub const MAX_MESSAGE_LEN: usize = 65_536;

/// Most messages in one batch.
pub const MAX_MESSAGES: usize = 64;

/// Space for the control messages of one datagram: GRO segment length and the
/// drop counter, 24 bytes each.
const CONTROL_LEN: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// The properties of one message, as the kernel reported them.
#[derive(Clone, Copy)]
struct Arrived {
    from: Option<SocketAddr>,
    len: usize,
    segment_len: usize,
}

/// Preallocated space for a batch of messages. Its memory is reserved in full
/// and used by the system only as far as messages fill it, first buffer first.
pub struct RecvBatch {
    buffers: Box<[u8]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[Control]>,
    arrived: Box<[Arrived]>,
    filled: usize,
    kernel_drops: u32,
    cut_off: u64,
}

/// One message: a single datagram, or several of equal length (but for the
/// last, which may be shorter) from one sender, joined by the kernel.
pub struct GroBuffer<'a> {
    /// The sender.
    pub from: SocketAddr,
    /// Length of each datagram in bytes, but for the last. Not zero.
    pub segment_len: usize,
    /// The datagrams, one after the other.
    pub data: &'a mut [u8],
}

impl<'a> GroBuffer<'a> {
    /// The datagrams one by one.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.data.chunks_mut(self.segment_len)
    }
}

impl RecvBatch {
    /// Space for `messages` (1 to [`MAX_MESSAGES`]) messages of up to
    /// [`MAX_MESSAGE_LEN`] bytes.
    pub fn new(messages: usize) -> RecvBatch {
        let messages = messages.clamp(1, MAX_MESSAGES);
        RecvBatch {
            buffers: vec![0; messages * MAX_MESSAGE_LEN].into_boxed_slice(),
            addresses: vec![RawAddress::EMPTY; messages].into_boxed_slice(),
            controls: vec![Control([0; CONTROL_LEN]); messages].into_boxed_slice(),
            arrived: vec![
                Arrived {
                    from: None,
                    len: 0,
                    segment_len: 1
                };
                messages
            ]
            .into_boxed_slice(),
            filled: 0,
            kernel_drops: 0,
            cut_off: 0,
        }
    }

    /// The messages of the last [`UdpSocket::recv_batch`].
    pub fn buffers(&mut self) -> impl Iterator<Item = GroBuffer<'_>> {
        self.buffers
            .chunks_exact_mut(MAX_MESSAGE_LEN)
            .zip(&self.arrived[..self.filled])
            .filter_map(|(buffer, arrived)| {
                Some(GroBuffer {
                    from: arrived.from?,
                    segment_len: arrived.segment_len,
                    data: &mut buffer[..arrived.len],
                })
            })
    }

    /// Whether the last [`UdpSocket::recv_batch`] gave as many messages as there
    /// is space for: there may be more.
    pub fn is_full(&self) -> bool {
        self.filled == self.arrived.len()
    }

    /// Datagrams that the kernel dropped since the socket was made because its
    /// receive buffer was full, as of the newest message that said so.
    pub fn kernel_drops(&self) -> u32 {
        self.kernel_drops
    }

    /// Messages dropped here because the kernel had cut them off.
    pub fn cut_off(&self) -> u64 {
        self.cut_off
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch")
            .field("messages", &self.arrived.len())
            .field("filled", &self.filled)
            .finish_non_exhaustive()
    }
}

impl UdpSocket {
    /// Receives the messages that have arrived, as many as fit in `batch`, and returns
    /// their number.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; `batch` is then empty.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.filled = 0;
        let capacity = batch.arrived.len();
        // SAFETY: all-zero bytes are a value of these plain structures.
        let mut slices: [libc::iovec; MAX_MESSAGES] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; MAX_MESSAGES] = unsafe { std::mem::zeroed() };
        let buffers = batch.buffers.chunks_exact_mut(MAX_MESSAGE_LEN);
        let rest = batch.addresses.iter_mut().zip(batch.controls.iter_mut());
        for (((header, slice), buffer), (address, control)) in
            headers.iter_mut().zip(&mut slices).zip(buffers).zip(rest)
        {
            slice.iov_base = buffer.as_mut_ptr().cast();
            slice.iov_len = buffer.len();
            let header = &mut header.msg_hdr;
            header.msg_name = std::ptr::from_mut(address).cast();
            header.msg_namelen = RawAddress::LEN;
            header.msg_iov = slice;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN as _;
        }
        let filled = loop {
            // SAFETY: the first `capacity` headers point to buffers, addresses and
            // control buffers that live in `batch` and on this stack until after
            // the call, with their true lengths, and that nothing else uses.
            let filled = unsafe {
                libc::recvmmsg(
                    self.socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    capacity as libc::c_uint,
                    libc::MSG_DONTWAIT as _, // c_int or c_uint, by the C library
                    std::ptr::null_mut(),
                )
            };
            if let Ok(filled) = usize::try_from(filled) {
                break filled;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        };
        let filled = filled.min(capacity);
        for (index, header) in headers[..filled].iter().enumerate() {
            // SAFETY: the kernel has filled this header and its control buffer.
            let control = unsafe { read_control(&header.msg_hdr) };
            let cut = header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
            let len = (header.msg_len as usize).min(MAX_MESSAGE_LEN);
            if cut {
                batch.cut_off += 1;
            }
            if let Some(drops) = control.drops {
                batch.kernel_drops = drops;
            }
            let segment_len = control.segment_len.filter(|segment| *segment != 0);
            batch.arrived[index] = Arrived {
                from: batch.addresses[index].get().filter(|_| !cut),
                len,
                segment_len: segment_len.unwrap_or(len).max(1),
            };
        }
        batch.filled = filled;
        Ok(filled)
    }
}

#[derive(Default)]
struct ReadControl {
    segment_len: Option<usize>,
    drops: Option<u32>,
}

/// # Safety
/// `header` must be as the kernel left it, its control buffer alive.
unsafe fn read_control(header: &libc::msghdr) -> ReadControl {
    let mut read = ReadControl::default();
    // SAFETY: the CMSG functions walk the control buffer within the length the
    // kernel wrote; values are read unaligned and only when they fit.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = next.as_ref() {
            let value = libc::CMSG_DATA(message);
            #[allow(clippy::unnecessary_cast)] // a u32 with musl
            let fits =
                message.cmsg_len as usize >= libc::CMSG_LEN(size_of::<u32>() as u32) as usize;
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) if fits => {
                    let segment = value.cast::<libc::c_int>().read_unaligned();
                    read.segment_len = usize::try_from(segment).ok();
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if fits => {
                    read.drops = Some(value.cast::<u32>().read_unaligned());
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, message);
        }
    }
    read
}
