//! Batched UDP: the sockets that carry WireGuard, disco and STUN.
//!
//! One socket per address family, bound to the same port where that is free
//! ([`bind_pair`]). All traffic of a node that goes by UDP leaves and arrives
//! here, so the work is done in batches: [`UdpSocket::recv_batch`] fills many
//! preallocated buffers in one call, each of which may hold several
//! datagrams that the kernel joined (GRO); [`UdpSocket::send_batch`] hands
//! over joined datagrams for many peers in one call, split by the kernel or the
//! network card (GSO).
//!
//! **GSO that is refused.** A route with a small MTU or a device without
//! checksum offload refuses joined datagrams with EINVAL, EMSGSIZE or EIO. They are
//! then sent again one by one at once, and its destination gets
//! single datagrams for [`GSO_RETRY`]; other destinations are not affected.
//! Only when the driver (EIO) refuses again and again with nothing accepted
//! in between is GSO off for the whole socket, and that, too, is tried again.
//!
//! **Fragmentation.** Datagrams leave without the don't-fragment bit: a path
//! narrower than the tunnel then costs fragments, not connectivity.
//!
//! **Limits.** A receive buffer does not distinguish senders. So that one sender does
//! not displace all others, a socket can be limited to a part of the datagrams
//! for some sessions ([`UdpSocket::limit_sessions`]): the kernel drops the
//! rest before its buffer.
//!
//! **Limits.** It allocates nothing per call, never blocks, and keeps no per-peer
//! state but a short memory of refused destinations.

#![allow(unsafe_code)] // sendmmsg, recvmmsg and a few socket options have no safe wrapper

mod address;
mod limits;
mod receive;
mod send;

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

pub use limits::MAX_LIMITED_SESSIONS;
pub use receive::{GroBuffer, MAX_MESSAGE_LEN, MAX_MESSAGES, RecvBatch};
pub use send::{Datagrams, SendOutcome};

use send::GsoMemory;

/// Most datagrams that can be sent joined, by the kernel's limit.
pub const MAX_SEGMENTS: usize = 64;

/// Longest payload of one IPv4 message: 65,535 less the IP and UDP headers.
pub const MAX_PAYLOAD_V4: usize = 65_507;

/// Longest payload of one IPv6 message: 65,535 less the UDP header.
pub const MAX_PAYLOAD_V6: usize = 65_527;

/// How long a destination that refused joined datagrams gets single ones.
pub const GSO_RETRY: Duration = Duration::from_secs(30);

/// How a socket is made.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// Firewall mark of our datagrams, so that they go around the tunnel. A missing
    /// permission to set it is not an error: see [`UdpSocket::is_marked`].
    pub mark: Option<u32>,
    /// Size requested for the kernel's receive and send buffers, in bytes. A size above
    /// the system's limit needs CAP_NET_ADMIN; without it we get the limit.
    pub buffer: usize,
    /// Whether the kernel may join incoming datagrams.
    pub gro: bool,
    /// Whether outgoing datagrams may be handed over joined.
    pub gso: bool,
}

impl Default for UdpOptions {
    fn default() -> UdpOptions {
        UdpOptions {
            mark: Some(crate::BYPASS_MARK),
            buffer: 7 << 20,
            gro: true,
            gso: true,
        }
    }
}

/// Why a UDP socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another program has the port: stop it, or choose another port.
    #[error(
        "UDP port {} is taken: another program is bound to {address}; choose another port",
        .address.port()
    )]
    PortTaken {
        /// The address that was to be bound.
        address: SocketAddr,
    },
    /// The system has no such address family; the other one may work.
    #[error("this system has no {}", if .address.is_ipv4() { "IPv4" } else { "IPv6" })]
    NoFamily {
        /// The address that was to be bound.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot {action} a UDP socket at {address}: {source}")]
    Io {
        /// The step that failed.
        action: &'static str,
        /// The address that was to be bound.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

/// A bound, non-blocking UDP socket of one address family. Receiving and
/// sending take `&self`: one thread may receive while others send.
#[derive(Debug)]
pub struct UdpSocket {
    socket: socket2::Socket,
    local: SocketAddr,
    marked: bool,
    gro: bool,
    gso: Option<GsoMemory>,
    /// The instant from which coarse times are counted.
    made: Instant,
}

impl UdpSocket {
    /// Makes and binds a socket. Port 0 lets the kernel choose.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, UdpError> {
        let fail = |action| {
            move |source: io::Error| UdpError::Io {
                action,
                address,
                source,
            }
        };
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM.nonblocking(),
            Some(socket2::Protocol::UDP),
        )
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => UdpError::NoFamily { address },
            _ => fail("make")(source),
        })?;
        if address.is_ipv6() {
            socket.set_only_v6(true).map_err(fail("set up"))?;
        }
        let marked = options
            .mark
            .is_some_and(|mark| socket.set_mark(mark).is_ok());
        grow_buffer(
            &socket,
            libc::SO_RCVBUFFORCE,
            libc::SO_RCVBUF,
            options.buffer,
        );
        grow_buffer(
            &socket,
            libc::SO_SNDBUFFORCE,
            libc::SO_SNDBUF,
            options.buffer,
        );
        let on = 1;
        // Only a counter for people; an old kernel may lack it.
        let _ = set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, on);
        let gro = options.gro && set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, on).is_ok();
        let gso = options.gso && get_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();

        socket
            .bind(&address.into())
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EADDRINUSE) => UdpError::PortTaken { address },
                // IPv6 is compiled in but switched off.
                Some(libc::EADDRNOTAVAIL) if address.ip().is_unspecified() => {
                    UdpError::NoFamily { address }
                }
                _ => fail("bind")(source),
            })?;
        let local = socket
            .local_addr()
            .map_err(fail("ask for the address of"))?
            .as_socket()
            .unwrap_or(address);
        let socket = UdpSocket {
            socket,
            local,
            marked,
            gro,
            gso: gso.then(GsoMemory::new),
            made: Instant::now(),
        };
        socket
            .set_dont_fragment(false)
            .map_err(fail("allow fragments on"))?;
        Ok(socket)
    }

    /// The same socket once more.
    fn another_handle(&self) -> Result<UdpSocket, UdpError> {
        let socket = self.socket.try_clone().map_err(|source| UdpError::Io {
            action: "share",
            address: self.local,
            source,
        })?;
        Ok(UdpSocket {
            socket,
            local: self.local,
            marked: self.marked,
            gro: self.gro,
            gso: self.gso.as_ref().map(|_| GsoMemory::new()),
            made: self.made,
        })
    }

    /// The address and port bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether what we send carries the mark. If not, and routes of ours cover
    /// peers' outside addresses, bind to a device ([`UdpSocket::bind_device`]).
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// Whether incoming datagrams may come joined.
    pub fn receives_gro(&self) -> bool {
        self.gro
    }

    /// Whether outgoing datagrams may at present be handed over joined.
    pub fn sends_gso(&self) -> bool {
        self.gso
            .as_ref()
            .is_some_and(|gso| gso.is_on(self.coarse_now()))
    }

    /// Sends and receives through one interface only (`None`: any again).
    pub fn bind_device(&self, interface: Option<&str>) -> io::Result<()> {
        self.socket.bind_device(interface.map(str::as_bytes))
    }

    /// Sets the don't-fragment bit on what is sent from now on, for path-MTU
    /// probes; off is the normal state.
    pub fn set_dont_fragment(&self, on: bool) -> io::Result<()> {
        if self.local.is_ipv4() {
            // PROBE and not DO: probes must go out at their full length
            // whatever the kernel believes of the path.
            let mode = if on {
                libc::IP_PMTUDISC_PROBE
            } else {
                libc::IP_PMTUDISC_DONT
            };
            set_option(&self.socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
        } else {
            let mode = if on {
                libc::IPV6_PMTUDISC_PROBE
            } else {
                libc::IPV6_PMTUDISC_WANT
            };
            set_option(
                &self.socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                mode,
            )?;
            set_option(
                &self.socket,
                libc::IPPROTO_IPV6,
                libc::IPV6_DONTFRAG,
                on.into(),
            )
        }
    }

    /// Sizes of the kernel's receive and send buffers in bytes, as granted
    /// (the kernel reports twice what one asks for).
    pub fn buffer_sizes(&self) -> io::Result<(usize, usize)> {
        Ok((
            self.socket.recv_buffer_size()?,
            self.socket.send_buffer_size()?,
        ))
    }

    /// Seconds since the socket was made.
    fn coarse_now(&self) -> u32 {
        u32::try_from(self.made.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The two sockets of a node. At least one is there.
#[derive(Debug)]
pub struct UdpPair {
    /// IPv4, on any address.
    pub v4: Option<UdpSocket>,
    /// IPv6, on any address.
    pub v6: Option<UdpSocket>,
}

impl UdpPair {
    /// The socket that can send to `to`.
    pub fn for_destination(&self, to: SocketAddr) -> Option<&UdpSocket> {
        match to {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }
}

/// Binds both families. `ports` are tried in their order, then a port of the
/// kernel's choice; IPv6 tries the port that IPv4 got first. A family that the
/// system lacks, or that fails, is left out.
///
/// Compare [`UdpSocket::local_addr`] with the wish to learn that a port was
/// taken.
///
/// # Errors
/// Only if both families fail: the error of IPv4.
pub fn bind_pair(ports: &[u16], options: &UdpOptions) -> Result<UdpPair, UdpError> {
    let v4 = bind_first(Ipv4Addr::UNSPECIFIED.into(), ports.iter().copied(), options);
    let same = v4
        .as_ref()
        .ok()
        .map(|socket: &UdpSocket| socket.local_addr().port());
    let v6 = bind_first(
        Ipv6Addr::UNSPECIFIED.into(),
        same.into_iter().chain(ports.iter().copied()),
        options,
    );
    match (v4, v6) {
        (Err(error), Err(_)) => Err(error),
        (v4, v6) => {
            for error in [v4.as_ref().err(), v6.as_ref().err()].into_iter().flatten() {
                tracing::debug!(%error, "one address family is left out");
            }
            Ok(UdpPair {
                v4: v4.ok(),
                v6: v6.ok(),
            })
        }
    }
}

impl UdpPair {
    /// This pair with the family that it lacks, at the same port if that is
    /// free; `None` if it lacks none, or the system does. The socket that is
    /// there stays the same.
    ///
    /// # Errors
    /// [`UdpError`] when the system has the family but gives no socket.
    pub fn completed(&self, options: &UdpOptions) -> Result<Option<UdpPair>, UdpError> {
        let (present, ip): (_, std::net::IpAddr) = match (&self.v4, &self.v6) {
            (Some(v4), None) => (v4, Ipv6Addr::UNSPECIFIED.into()),
            (None, Some(v6)) => (v6, Ipv4Addr::UNSPECIFIED.into()),
            _ => return Ok(None),
        };
        let added = match bind_first(ip, [present.local.port()].into_iter(), options) {
            Ok(added) => added,
            Err(UdpError::NoFamily { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let present = present.another_handle()?;
        Ok(Some(if ip.is_ipv4() {
            UdpPair {
                v4: Some(added),
                v6: Some(present),
            }
        } else {
            UdpPair {
                v4: Some(present),
                v6: Some(added),
            }
        }))
    }
}

fn bind_first(
    ip: std::net::IpAddr,
    ports: impl Iterator<Item = u16>,
    options: &UdpOptions,
) -> Result<UdpSocket, UdpError> {
    for port in ports.filter(|port| *port != 0) {
        match UdpSocket::bind(SocketAddr::new(ip, port), options) {
            Ok(socket) => return Ok(socket),
            Err(error @ UdpError::NoFamily { .. }) => return Err(error),
            Err(error) => tracing::debug!(%error, "trying another port"),
        }
    }
    UdpSocket::bind(SocketAddr::new(ip, 0), options)
}

/// Asks for `bytes`, past the system's limit if we may.
fn grow_buffer(socket: &socket2::Socket, force: i32, plain: i32, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    if set_option(socket, libc::SOL_SOCKET, force, bytes).is_err() {
        // The kernel cuts the wish down to its limit; a smaller buffer than
        // wished loses packets under load but works.
        let _ = set_option(socket, libc::SOL_SOCKET, plain, bytes);
    }
}

fn set_option(socket: &impl AsFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option value is one int on this stack, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn get_option(socket: &impl AsFd, level: i32, name: i32) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option value is one int on this stack, and its size is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}
