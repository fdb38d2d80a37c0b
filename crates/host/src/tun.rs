//! The TUN device: where packets of the machine enter and leave the tunnel.
//!
//! **Life.** [`Tun::create`] makes the device (or attaches to a persistent one
//! of that name), asks for a virtio-net header in front of each packet and for
//! the segmentation offloads, and learns which of them the kernel gave. A
//! thread then reads and writes [`VNET_HEADER_LEN`] bytes of header followed
//! by a packet or, with offloads, a superpacket of up to 64 KiB. The device
//! goes with the last descriptor, and with it its addresses and routes.
//!
//! **Several queues.** [`Tun::create_queues`] opens the device more than once,
//! so that several threads can read, each from a queue of its own. The kernel
//! gives a flow to one queue: the one into which a packet of it was last
//! written, or, if that was never or more than three seconds ago, one by a hash
//! of its addresses and ports. A program that writes everything into one queue thus
//! has all answers come out of that one. [`TunDevice`] has all queues together.
//!
//! **Limits.** It does not look into packets: splitting and
//! joining superpackets is the data plane's work. It does not set addresses or
//! routes: that is [`crate::router`].

#![allow(unsafe_code)] // ioctls on /dev/net/tun and on the interface have no safe wrapper

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::device::{BatchEnd, Device};
pub use crate::device::{MAX_FRAME_LEN, Offloads, VNET_HEADER_LEN};

/// Longest interface name, in bytes.
const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

const DEVICE: &str = "/dev/net/tun";

/// The reason why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel module is missing, or the container was not given the device.
    #[error(
        "no {DEVICE}: load the module (`modprobe tun`), or give the container the device \
         (`--device {DEVICE}`)"
    )]
    NoDevice,
    /// The device file is closed to this user.
    #[error(
        "not permitted to open {DEVICE}: run as root, or open it to users as most systems do \
         (`chmod 666 {DEVICE}`; making interfaces stays reserved)"
    )]
    DeviceClosed,
    /// The process may not make network devices.
    #[error(
        "not permitted to make the TUN device {name:?}: run as root or with CAP_NET_ADMIN, or inside \
         a user and network namespace (`unshare -rn`)"
    )]
    NotPermitted {
        /// The device asked for.
        name: String,
    },
    /// Another process has this device, or another kind of interface has the name.
    #[error(
        "the interface name {name:?} is taken: stop the program that uses it, or choose another name"
    )]
    NameTaken {
        /// The device asked for.
        name: String,
    },
    /// The kernel would not accept the name.
    #[error(
        "{name:?} is not an interface name: use 1 to {MAX_NAME_LEN} bytes without spaces and slashes"
    )]
    BadName {
        /// The device asked for.
        name: String,
    },
    /// Anything else.
    #[error("cannot {action} the TUN device {name:?}: {source}")]
    Io {
        /// The step that failed.
        action: &'static str,
        /// The device asked for.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// A TUN device, or one queue of it, non-blocking. Reading and writing take
/// `&self`: one thread may read while another writes.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    offloads: Offloads,
}

impl Tun {
    /// Makes the device `name`, or attaches to an unused persistent one. The
    /// name may hold `%d`, for which the kernel puts the first free number.
    ///
    /// The device is down and has the kernel's MTU; see [`Tun::set_mtu`] and
    /// [`Tun::set_up`].
    ///
    /// # Errors
    /// [`TunError`], with what to do about it.
    pub fn create(name: &str) -> Result<Tun, TunError> {
        match Tun::open(name, 0) {
            // A persistent device that was made for several queues works with
            // one of them.
            Err(error @ TunError::NameTaken { .. }) if !is_in_use(name) => {
                Tun::open(name, libc::IFF_MULTI_QUEUE).map_err(|_| error)
            }
            other => other,
        }
    }

    /// Like [`Tun::create`], but with so many queues, in order. There are fewer
    /// where the kernel gives no more, and one if a persistent device was made
    /// for one. They all go under the same name and have the same offloads.
    ///
    /// # Errors
    /// [`TunError`] if there is not even one.
    pub fn create_queues(name: &str, queues: usize) -> Result<Vec<Tun>, TunError> {
        let TunDevice { first, more } = TunDevice::create(name, queues)?;
        Ok(std::iter::once(first).chain(more).collect())
    }

    /// Makes the device, fit for so many queues if it can, and opens the first one.
    fn open_first(name: &str, queues: usize) -> Result<Tun, TunError> {
        if queues <= 1 {
            return Tun::create(name);
        }
        match Tun::open(name, libc::IFF_MULTI_QUEUE | libc::IFF_TUN_EXCL) {
            // Opening would give us a part of another program's packets.
            Err(error @ TunError::NameTaken { .. }) if is_in_use(name) => Err(error),
            Err(TunError::NameTaken { .. }) => match Tun::open(name, libc::IFF_MULTI_QUEUE) {
                Err(TunError::NameTaken { .. }) => Tun::create(name),
                other => other,
            },
            other => other,
        }
    }

    /// Opens more queues of the device, up to `queues` with this one, as far as the
    /// kernel gives them.
    fn open_more(&self, queues: usize) -> Vec<Tun> {
        let mut more = Vec::new();
        while 1 + more.len() < queues {
            match Tun::open(&self.name, libc::IFF_MULTI_QUEUE) {
                Ok(next) => more.push(next),
                Err(error) => {
                    tracing::debug!(%error, have = 1 + more.len(), "no more queues");
                    break;
                }
            }
        }
        more
    }

    /// Makes the device, attaches to it, or opens one more queue of it.
    fn open(name: &str, more_flags: libc::c_int) -> Result<Tun, TunError> {
        if !is_interface_name(name) {
            return Err(TunError::BadName {
                name: name.to_owned(),
            });
        }
        let fail = |action, errno: Errno| match errno {
            Errno::PERM | Errno::ACCESS => TunError::NotPermitted {
                name: name.to_owned(),
            },
            errno => TunError::Io {
                action,
                name: name.to_owned(),
                source: errno.into(),
            },
        };

        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => TunError::NoDevice,
            // EPERM: the container's device rules.
            Errno::ACCESS | Errno::PERM => TunError::DeviceClosed,
            errno => fail("open", errno),
        })?;

        let mut request = interface_request(name);
        let wanted = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more_flags;
        request.ifr_ifru.ifru_flags = wanted as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack.
        unsafe { ioctl(fd.as_fd(), libc::TUNSETIFF, &mut request) }.map_err(
            |errno| match errno {
                // EINVAL: the name belongs to an interface of another kind, or
                // to one with another idea of how many queues there are.
                Errno::BUSY | Errno::EXIST | Errno::INVAL => TunError::NameTaken {
                    name: name.to_owned(),
                },
                errno => fail("make", errno),
            },
        )?;
        let name_given = name_of(&request);

        let mut header_len = VNET_HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        unsafe { ioctl(fd.as_fd(), libc::TUNSETVNETHDRSZ, &mut header_len) }
            .map_err(|errno| fail("set the header length of", errno))?;

        let offloads = negotiate_offloads(fd.as_fd());
        Ok(Tun {
            fd,
            name: name_given,
            offloads,
        })
    }

    /// The name the kernel gave.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offloads in force.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads one frame: header and packet. `buffer` should hold
    /// [`MAX_FRAME_LEN`]; what does not fit is cut off by the kernel.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; EBADFD when the device was deleted
    /// from outside, EIO while it is down.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Writes one frame: header and packet.
    ///
    /// # Errors
    /// EINVAL for a header that does not fit the packet or an offload that is
    /// not in force, EIO while the device is down: the frame is lost, the next
    /// may pass.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.fd, frame) {
                Err(Errno::INTR) => {}
                // A TUN takes a frame whole or not at all.
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// The tunnel MTU in bytes, as it is now: the user may change it while the
    /// device is in use.
    pub fn mtu(&self) -> io::Result<u32> {
        let mut request = interface_request(&self.name);
        let socket = control_socket()?;
        // SAFETY: SIOCGIFMTU reads the name and writes the MTU of one `ifreq`,
        // after which the `ifru_mtu` member is the one in use.
        let mtu = unsafe {
            ioctl(
                socket.as_fd(),
                libc::SIOCGIFMTU as libc::Ioctl,
                &mut request,
            )?;
            request.ifr_ifru.ifru_mtu
        };
        Ok(u32::try_from(mtu).unwrap_or(0))
    }

    /// Sets the tunnel MTU in bytes; 1280 is what every peer assumes.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TunError> {
        let mut request = interface_request(&self.name);
        request.ifr_ifru.ifru_mtu = mtu.into();
        control_socket()
            // SAFETY: SIOCSIFMTU reads one `ifreq`.
            .and_then(|socket| unsafe {
                ioctl(
                    socket.as_fd(),
                    libc::SIOCSIFMTU as libc::Ioctl,
                    &mut request,
                )
                .map_err(io::Error::from)
            })
            .map_err(|source| self.error("set the MTU of", source))
    }

    /// Brings the device up.
    pub fn set_up(&self) -> Result<(), TunError> {
        let mut request = interface_request(&self.name);
        control_socket()
            // SAFETY: both requests work on one `ifreq`; after SIOCGIFFLAGS
            // the `ifru_flags` member is the one in use.
            .and_then(|socket| unsafe {
                ioctl(
                    socket.as_fd(),
                    libc::SIOCGIFFLAGS as libc::Ioctl,
                    &mut request,
                )?;
                request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
                ioctl(
                    socket.as_fd(),
                    libc::SIOCSIFFLAGS as libc::Ioctl,
                    &mut request,
                )?;
                Ok(())
            })
            .map_err(|source| self.error("bring up", source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> TunError {
        match source.kind() {
            io::ErrorKind::PermissionDenied => TunError::NotPermitted {
                name: self.name.clone(),
            },
            _ => TunError::Io {
                action,
                name: self.name.clone(),
                source,
            },
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The device with all its queues.
#[derive(Debug)]
pub struct TunDevice {
    first: Tun,
    more: Vec<Tun>,
}

impl TunDevice {
    /// Makes the device with up to `queues` queues: see [`Tun::create_queues`].
    ///
    /// # Errors
    /// [`TunError`] if there is not even one queue.
    pub fn create(name: &str, queues: usize) -> Result<TunDevice, TunError> {
        let first = Tun::open_first(name, queues)?;
        let more = first.open_more(queues);
        Ok(TunDevice { first, more })
    }

    /// The name the kernel gave.
    pub fn name(&self) -> &str {
        &self.first.name
    }

    /// Sets the tunnel MTU in bytes; 1280 is what every peer assumes.
    ///
    /// # Errors
    /// [`TunError`], with what to do about it.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TunError> {
        self.first.set_mtu(mtu)
    }

    /// The queue of this number; the first one for numbers that do not exist.
    fn queue(&self, queue: usize) -> &Tun {
        let more = queue.checked_sub(1).and_then(|i| self.more.get(i));
        more.unwrap_or(&self.first)
    }
}

impl Device for TunDevice {
    fn queues(&self) -> usize {
        1 + self.more.len()
    }

    fn offloads(&self) -> Offloads {
        self.first.offloads
    }

    fn mtu(&self) -> io::Result<u32> {
        self.first.mtu()
    }

    #[inline]
    fn read_batch(
        &self,
        queue: usize,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<BatchEnd> {
        let tun = self.queue(queue);
        loop {
            // One read gives one frame. It is worked on while it is in the cache.
            match tun.read(buffer) {
                Ok(len) => {
                    if each(buffer.get(..len).unwrap_or_default()).is_break() {
                        return Ok(BatchEnd::Stopped);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(BatchEnd::Drained);
                }
                Err(error) => return Err(error),
            }
        }
    }

    #[inline]
    fn write(&self, queue: usize, frame: &[u8]) -> io::Result<()> {
        self.queue(queue).write(frame)
    }

    fn readable(&self, queue: usize) -> BorrowedFd<'_> {
        self.queue(queue).as_fd()
    }
}

/// Asks for everything, then for less. Without any offload the device still
/// works: headers are then zero and packets at most one MTU long.
fn negotiate_offloads(fd: BorrowedFd<'_>) -> Offloads {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |features: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes the bits themselves, no pointer.
        unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(features),
            ) == 0
        }
    };
    if set(tcp | udp) {
        Offloads {
            tcp: true,
            udp: true,
        }
    } else if set(tcp) {
        Offloads {
            tcp: true,
            udp: false,
        }
    } else {
        set(0);
        Offloads::default()
    }
}

/// 1 to 15 bytes, printable, no space, slash or colon, not a folder's dots,
/// and no `%` but in one `%d`: what the kernel accepts.
fn is_interface_name(name: &str) -> bool {
    let without_number = name.replacen("%d", "", 1);
    !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name != "."
        && name != ".."
        && !without_number.contains('%')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}

/// A request for the interface `name`, the rest zero. Names that are too long
/// do not get here.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all-zero bytes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..MAX_NAME_LEN]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from as libc::c_char;
    }
    request
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| *byte as u8)
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a program has the device `name` open, as far as one can see from
/// outside: a TUN device that is up has a carrier just then. The kernel itself
/// refuses a second program only for devices with one queue.
fn is_in_use(name: &str) -> bool {
    let mut request = interface_request(name);
    let flags = control_socket().and_then(|socket| {
        // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of one
        // `ifreq`, after which the `ifru_flags` member is the one in use.
        unsafe {
            ioctl(
                socket.as_fd(),
                libc::SIOCGIFFLAGS as libc::Ioctl,
                &mut request,
            )?;
            Ok(request.ifr_ifru.ifru_flags)
        }
    });
    flags.is_ok_and(|flags| flags & libc::IFF_RUNNING as libc::c_short != 0)
}

/// Any socket will do to talk about interfaces.
fn control_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// # Safety
/// `request` must be one that reads or writes at most one `T` behind its
/// argument.
unsafe fn ioctl<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: &mut T,
) -> Result<(), Errno> {
    // SAFETY: the descriptor is borrowed for the call; the caller vouches for
    // the pair of request and argument.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_are_refused_here() {
        for good in ["warren0", "tun%d", "a", "exactly15bytes_"] {
            assert!(is_interface_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:1",
            "100%",
            "%d%d",
            "sixteen_bytes_xx",
            "übergroß",
        ] {
            assert!(!is_interface_name(bad), "{bad}");
            assert!(matches!(Tun::create(bad), Err(TunError::BadName { .. })));
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        assert!(TunError::NoDevice.to_string().contains("modprobe tun"));
        let name = "warren0".to_owned();
        let text = TunError::NotPermitted { name }.to_string();
        assert!(text.contains("CAP_NET_ADMIN") && text.contains("warren0"));
    }
}
