//! A network device whose packets this process carries.
//!
//! [`Device`] is what the packet threads need of it. The TUN device
//! ([`TunDevice`](crate::tun::TunDevice)) is one; [`MemoryDevice`](memory::MemoryDevice)
//! is another, whose host is in this process.
//!
//! A frame is a virtio-net header ([`VNET_HEADER_LEN`] bytes) and an IP packet. With
//! [`Offloads`] the packet may be a superpacket of up to 64 KiB, and its checksum may
//! be left for the reader to finish.
//!
//! The trait is used with static dispatch only: `read_batch` takes a closure, so that
//! the work on a frame is compiled into the loop that reads it.

pub mod memory;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

/// Length of the virtio-net header in front of every packet read or written:
/// flags, GSO type, header length (u16), GSO size (u16), checksum start (u16),
/// checksum offset (u16); numbers in host byte order.
pub const VNET_HEADER_LEN: usize = 10;

/// Longest frame that one read can give: the header and an IP packet of the
/// greatest length.
pub const MAX_FRAME_LEN: usize = VNET_HEADER_LEN + 65_535;

/// The work that the device leaves to, and takes from, the reader and writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TCP superpackets (both families) and packets whose checksum is left
    /// for us to finish are read and may be written.
    pub tcp: bool,
    /// UDP superpackets too (Linux 6.2 and later).
    pub udp: bool,
}

/// The reason why [`Device::read_batch`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEnd {
    /// The queue is empty.
    Drained,
    /// The caller had enough; there may be more.
    Stopped,
}

/// A network device with one or more queues. All methods take `&self`: threads may
/// read, each from a queue of its own, while others write.
pub trait Device: Send + Sync + 'static {
    /// The number of queues, at least one. Queues are numbered from zero.
    fn queues(&self) -> usize;

    /// The offloads in force.
    fn offloads(&self) -> Offloads;

    /// The MTU in bytes, as it is now.
    ///
    /// # Errors
    /// When the device is gone.
    fn mtu(&self) -> io::Result<u32>;

    /// Reads frames from `queue`, in order, each into the front of `buffer`, and gives
    /// them to `each` until that breaks or the queue is empty. Does not wait. A frame
    /// that is longer than `buffer` ([`MAX_FRAME_LEN`] is enough) is cut off.
    ///
    /// # Errors
    /// When a read fails; the frames before were given to `each`.
    fn read_batch(
        &self,
        queue: usize,
        buffer: &mut [u8],
        each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<BatchEnd>;

    /// Writes one frame to `queue`, whole or not at all. Does not wait.
    ///
    /// # Errors
    /// EINVAL for a frame that the device cannot take in this form, EIO while it is
    /// down, others when the frame is lost. The next frame may pass.
    fn write(&self, queue: usize, frame: &[u8]) -> io::Result<()>;

    /// The descriptor that is readable while `queue` has frames.
    fn readable(&self, queue: usize) -> BorrowedFd<'_>;
}
