//! A device whose host is in this process: for tests, and where a network stack of
//! our own takes the place of the system's.
//!
//! [`pair`] makes both ends. The packet threads read from the [`MemoryDevice`] what
//! the [`MemoryHost`] sends, and the host receives what they write. Both directions
//! are bounded: frames that do not fit are refused, and no call waits.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::{BatchEnd, Device, Offloads, VNET_HEADER_LEN};
use crate::wake::Waker;

/// The properties of a device in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Number of queues towards the packet threads; zero counts as one.
    pub queues: usize,
    /// Frames that may wait in each queue.
    pub capacity: usize,
    /// Superpackets that the host takes.
    pub offloads: Offloads,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Both ends of a new device.
///
/// # Errors
/// When the system has no descriptors left.
pub fn pair(options: MemoryOptions) -> io::Result<(MemoryDevice, MemoryHost)> {
    let to_device: io::Result<Box<[_]>> = (0..options.queues.max(1))
        .map(|_| Queue::new(options.capacity))
        .collect();
    let shared = Arc::new(Shared {
        to_device: to_device?,
        to_host: Queue::new(options.capacity)?,
        options,
    });
    let device = MemoryDevice {
        shared: Arc::clone(&shared),
    };
    Ok((device, MemoryHost { shared }))
}

struct Shared {
    to_device: Box<[Queue<Box<[u8]>>]>,
    to_host: Queue<Written>,
    options: MemoryOptions,
}

/// A frame that was written to a [`MemoryDevice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The queue that it was written to.
    pub queue: usize,
    /// Virtio header and packet.
    pub frame: Box<[u8]>,
}

/// Frames that wait, and the descriptor that is readable while some do.
struct Queue<T> {
    frames: Mutex<Frames<T>>,
    capacity: usize,
    waker: Waker,
    /// Woken when half of the places are free again after a frame was refused.
    space: Waker,
}

struct Frames<T> {
    waiting: VecDeque<T>,
    /// A frame was refused, and its sender waits for space.
    has_refused: bool,
}

impl<T> Queue<T> {
    fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            frames: Mutex::new(Frames {
                waiting: VecDeque::new(),
                has_refused: false,
            }),
            capacity,
            waker: Waker::new()?,
            space: Waker::new()?,
        })
    }

    fn frames(&self) -> MutexGuard<'_, Frames<T>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the frame back if there is no space for it.
    fn push(&self, frame: T) -> Result<(), T> {
        let mut frames = self.frames();
        if frames.waiting.len() >= self.capacity {
            frames.has_refused = true;
            return Err(frame);
        }
        frames.waiting.push_back(frame);
        drop(frames);
        self.waker.wake();
        Ok(())
    }

    fn pop(&self) -> Option<T> {
        let mut frames = self.frames();
        let frame = frames.waiting.pop_front();
        if frames.has_refused && frames.waiting.len() <= self.capacity / 2 {
            frames.has_refused = false;
            drop(frames);
            self.space.wake();
        }
        frame
    }

    /// Gives the frames to `each`, in order, until it breaks.
    fn drain(&self, mut each: impl FnMut(T) -> ControlFlow<()>) -> BatchEnd {
        self.waker.clear();
        while let Some(frame) = self.pop() {
            if each(frame).is_break() {
                // The descriptor stays readable while frames wait.
                self.waker.wake();
                return BatchEnd::Stopped;
            }
        }
        BatchEnd::Drained
    }
}

/// The end of the packet threads.
pub struct MemoryDevice {
    shared: Arc<Shared>,
}

impl MemoryDevice {
    /// The queue of this number; the first one for numbers that do not exist.
    fn queue(&self, queue: usize) -> &Queue<Box<[u8]>> {
        let queues = &self.shared.to_device;
        queues.get(queue).unwrap_or(&queues[0])
    }
}

impl Device for MemoryDevice {
    fn queues(&self) -> usize {
        self.shared.to_device.len()
    }

    fn offloads(&self) -> Offloads {
        self.shared.options.offloads
    }

    fn mtu(&self) -> io::Result<u32> {
        Ok(self.shared.options.mtu)
    }

    fn read_batch(
        &self,
        queue: usize,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<BatchEnd> {
        Ok(self.queue(queue).drain(|frame| {
            let len = frame.len().min(buffer.len());
            buffer[..len].copy_from_slice(&frame[..len]);
            each(&buffer[..len])
        }))
    }

    fn write(&self, queue: usize, frame: &[u8]) -> io::Result<()> {
        if !self.offloads().take(frame) {
            return Err(Errno::INVAL.into());
        }
        let frame = frame.into();
        let written = Written { queue, frame };
        let full = |_| Errno::NOBUFS.into();
        self.shared.to_host.push(written).map_err(full)
    }

    fn readable(&self, queue: usize) -> BorrowedFd<'_> {
        self.queue(queue).waker.as_fd()
    }
}

impl Offloads {
    /// Whether a device with these offloads takes the frame, as far as its virtio
    /// header says.
    fn take(self, frame: &[u8]) -> bool {
        // Types of the virtio specification; the highest bit marks ECN.
        match frame.get(1).map(|gso| gso & 0x7f) {
            Some(0) => frame.len() > VNET_HEADER_LEN,
            Some(1 | 4) => self.tcp,
            Some(5) => self.udp,
            _ => false,
        }
    }
}

/// The end of the host. Its descriptor is readable while frames wait for it.
pub struct MemoryHost {
    shared: Arc<Shared>,
}

impl MemoryHost {
    /// Sends a frame into a queue of the device. `false`: the queue is full or does
    /// not exist, and the frame is lost.
    pub fn send(&self, queue: usize, frame: &[u8]) -> bool {
        let queue = self.shared.to_device.get(queue);
        queue.is_some_and(|queue| queue.push(frame.into()).is_ok())
    }

    /// Sends a frame into the first queue of the device.
    ///
    /// # Errors
    /// The frame, when the queue is full. [`space`](Self::space) becomes readable when
    /// there is space again.
    pub fn send_or_return(&self, frame: Box<[u8]>) -> Result<(), Box<[u8]>> {
        self.shared.to_device[0].push(frame)
    }

    /// The descriptor that becomes readable when there is space for a frame that was
    /// [returned](Self::send_or_return). Call [`clear_space`](Self::clear_space) before
    /// the frame is sent again.
    pub fn space(&self) -> BorrowedFd<'_> {
        self.shared.to_device[0].space.as_fd()
    }

    /// Resets [`space`](Self::space).
    pub fn clear_space(&self) {
        self.shared.to_device[0].space.clear();
    }

    /// Gives the frames that were written to the device to `each`, in order. Does not
    /// wait.
    pub fn receive(&self, mut each: impl FnMut(Written)) {
        self.receive_until(|written| {
            each(written);
            ControlFlow::Continue(())
        });
    }

    /// As [`receive`](Self::receive), until `each` breaks.
    pub fn receive_until(&self, each: impl FnMut(Written) -> ControlFlow<()>) -> BatchEnd {
        self.shared.to_host.drain(each)
    }
}

impl AsFd for MemoryHost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.to_host.waker.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::poll::{Watch, wait};

    const OPTIONS: MemoryOptions = MemoryOptions {
        queues: 2,
        capacity: 3,
        offloads: Offloads {
            tcp: true,
            udp: false,
        },
        mtu: 1280,
    };

    /// A frame with this GSO type and content.
    fn frame(gso: u8, content: u8) -> Vec<u8> {
        let mut frame = vec![0; VNET_HEADER_LEN];
        frame[1] = gso;
        frame.push(content);
        frame
    }

    fn is_readable(fd: &impl AsFd) -> bool {
        let mut watch = [Watch::readable(fd)];
        wait(&mut watch, Some(Duration::ZERO)).unwrap() > 0
    }

    #[test]
    fn frames_are_read_in_order_from_the_queue_they_were_sent_to() {
        let (device, host) = pair(OPTIONS).unwrap();
        for content in 0..3 {
            assert!(host.send(1, &frame(0, content)));
        }
        assert!(!host.send(1, &frame(0, 3)), "the queue is full");
        assert!(!host.send(2, &frame(0, 3)), "no such queue");
        assert!(!is_readable(&device.readable(0)) && is_readable(&device.readable(1)));
        let mut read = Vec::new();
        let stop_after = |read: &mut Vec<u8>, frames: usize| {
            device.read_batch(1, &mut [0; 64], |frame| {
                read.push(frame[VNET_HEADER_LEN]);
                if read.len() == frames {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
        };
        assert_eq!(stop_after(&mut read, 2).unwrap(), BatchEnd::Stopped);
        assert!(is_readable(&device.readable(1)), "one frame is left");
        assert_eq!(stop_after(&mut read, 9).unwrap(), BatchEnd::Drained);
        assert!(!is_readable(&device.readable(1)));
        assert_eq!(read, [0, 1, 2]);
    }

    #[test]
    fn a_sender_whose_frame_was_returned_is_woken_when_there_is_space() {
        let (device, host) = pair(OPTIONS).unwrap();
        let frame = |content| frame(0, content).into_boxed_slice();
        for content in 0..3 {
            host.send_or_return(frame(content)).unwrap();
        }
        let returned = host.send_or_return(frame(3)).unwrap_err();
        assert!(!is_readable(&host.space()));
        let read = |frames: usize| {
            let mut left = frames;
            let mut buffer = [0; 64];
            let each = |_: &[u8]| {
                left -= 1;
                if left == 0 {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            };
            device.read_batch(0, &mut buffer, each).unwrap();
        };
        read(1);
        assert!(!is_readable(&host.space()), "two of three places are taken");
        read(1);
        assert!(is_readable(&host.space()));
        host.clear_space();
        assert!(!is_readable(&host.space()));
        host.send_or_return(returned).unwrap();
        read(2);
        assert!(!is_readable(&host.space()), "nothing was refused since");
    }

    #[test]
    fn frames_that_the_offloads_exclude_are_refused() {
        let (device, host) = pair(OPTIONS).unwrap();
        let errno = |frame: &[u8]| {
            let error = device.write(0, frame).unwrap_err();
            Errno::from_io_error(&error).unwrap()
        };
        assert_eq!(errno(&frame(5, 0)), Errno::INVAL);
        assert_eq!(errno(&[0; VNET_HEADER_LEN]), Errno::INVAL);
        for (queue, gso) in [(0, 0), (1, 1), (0, 4)] {
            device.write(queue, &frame(gso, 7)).unwrap();
        }
        assert_eq!(errno(&frame(0, 0)), Errno::NOBUFS);
        assert!(is_readable(&host));
        let mut written = Vec::new();
        host.receive(|frame| written.push((frame.queue, frame.frame[1])));
        assert_eq!(written, [(0, 0), (1, 1), (0, 4)]);
        assert!(!is_readable(&host));
    }
}
