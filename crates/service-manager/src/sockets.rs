//! Sockets that the service manager opened before it started the program
//! (sd_listen_fds(3)).
//!
//! The manager keeps such a socket while the program restarts, so that nothing that is
//! dialled in between is refused: connections wait in its queue. `LISTEN_FDS` is their
//! number, the first one is file descriptor 3, `LISTEN_PID` is the process that they are
//! meant for, and `LISTEN_FDNAMES` has their names, with `:` between them.
#![allow(unsafe_code)] // Descriptors arrive as numbers; the reason is beside the call.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// The first descriptor that is passed.
const FIRST: RawFd = 3;
/// More descriptors than any of our programs can use.
const MOST: RawFd = 64;

/// Sockets that the program has not taken yet.
#[derive(Debug, Default)]
pub struct PassedSockets {
    sockets: Vec<Passed>,
}

#[derive(Debug)]
struct Passed {
    name: String,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A passed descriptor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedSocketError {
    /// `LISTEN_FDS` is out of range.
    #[error("LISTEN_FDS={0:?} is not a number from 0 to {MOST}")]
    Count(String),
    /// The descriptor is no socket, or not open.
    #[error("descriptor {number} of the service manager cannot be used: {source}")]
    Unusable {
        /// The descriptor.
        number: RawFd,
        /// The error of the system.
        source: io::Error,
    },
    /// The socket is of another kind.
    #[error(
        "descriptor {0} of the service manager is neither a TCP socket that listens nor a UDP \
         socket; use ListenStream= and ListenDatagram= with a port"
    )]
    Kind(RawFd),
    /// More sockets than the program has services.
    #[error(
        "the service manager passed a socket named {0:?} that is not needed; remove it from the \
         socket unit, or name it with FileDescriptorName="
    )]
    NotNeeded(String),
}

impl PassedSockets {
    /// The sockets that the environment describes. The first call gets them, and all later
    /// ones none.
    ///
    /// # Errors
    /// Something else than a socket was passed.
    pub fn from_environment() -> Result<Self, PassedSocketError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let variable = |name: &str| std::env::var(name).ok();
        let Some(names) = names(variable, std::process::id())? else {
            return Ok(Self::default());
        };
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(Self::default());
        }
        let mut sockets = Vec::new();
        for (number, name) in (FIRST..).zip(names) {
            let unusable = |source: rustix::io::Errno| PassedSocketError::Unusable {
                number,
                source: source.into(),
            };
            // SAFETY: the variables say that the descriptor was opened for this process,
            // and `TAKEN` that it becomes owned once. A descriptor that is not open is
            // never used: it is checked before and forgotten.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            if let Err(error) = rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC) {
                std::mem::forget(descriptor);
                return Err(unusable(error));
            }
            let socket = socket(descriptor).map_err(unusable)?;
            let socket = socket.ok_or(PassedSocketError::Kind(number))?;
            sockets.push(Passed { name, socket });
        }
        Ok(Self { sockets })
    }

    /// Takes the TCP socket of this name. If none has the name, the first one is taken that
    /// has no name of the program's services.
    pub fn take_tcp(&mut self, name: &str, services: &[&str]) -> Option<TcpListener> {
        let at = self.position(name, services, |socket| matches!(socket, Socket::Tcp(_)))?;
        match self.sockets.remove(at).socket {
            Socket::Tcp(listener) => Some(listener),
            Socket::Udp(_) => None,
        }
    }

    /// The same for a UDP socket.
    pub fn take_udp(&mut self, name: &str, services: &[&str]) -> Option<UdpSocket> {
        let at = self.position(name, services, |socket| matches!(socket, Socket::Udp(_)))?;
        match self.sockets.remove(at).socket {
            Socket::Udp(socket) => Some(socket),
            Socket::Tcp(_) => None,
        }
    }

    fn position(
        &self,
        name: &str,
        services: &[&str],
        is_kind: impl Fn(&Socket) -> bool,
    ) -> Option<usize> {
        let find = |fits: &dyn Fn(&str) -> bool| {
            let mut sockets = self.sockets.iter();
            sockets.position(|passed| is_kind(&passed.socket) && fits(&passed.name))
        };
        find(&|found| found == name).or_else(|| find(&|found| !services.contains(&found)))
    }

    /// Fails if a socket was not taken.
    ///
    /// # Errors
    /// Names the first one. A client that connects to it would wait for ever.
    pub fn check_all_taken(self) -> Result<(), PassedSocketError> {
        match self.sockets.into_iter().next() {
            None => Ok(()),
            Some(passed) => Err(PassedSocketError::NotNeeded(passed.name)),
        }
    }
}

/// The names of the descriptors that are meant for `process`; `None`: none are.
fn names(
    variable: impl Fn(&str) -> Option<String>,
    process: u32,
) -> Result<Option<Vec<String>>, PassedSocketError> {
    let Some(count) = variable("LISTEN_FDS") else {
        return Ok(None);
    };
    if variable("LISTEN_PID").and_then(|id| id.parse().ok()) != Some(process) {
        return Ok(None);
    }
    let number = count.parse::<RawFd>().ok();
    let number = number.and_then(|number| usize::try_from(number).ok());
    let number = number.filter(|number| *number <= MOST as usize);
    let number = number.ok_or(PassedSocketError::Count(count))?;
    let given = variable("LISTEN_FDNAMES").unwrap_or_default();
    let given = given.split(':').map(str::to_owned);
    let names = given
        .chain(std::iter::repeat_with(String::new))
        .take(number);
    Ok(Some(names.collect()))
}

/// The socket, if it is of a kind that our programs use.
fn socket(descriptor: OwnedFd) -> Result<Option<Socket>, rustix::io::Errno> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    let family = sockopt::socket_domain(&descriptor)?;
    if !matches!(family, AddressFamily::INET | AddressFamily::INET6) {
        return Ok(None);
    }
    Ok(match sockopt::socket_type(&descriptor)? {
        SocketType::STREAM if sockopt::socket_acceptconn(&descriptor)? => {
            Some(Socket::Tcp(descriptor.into()))
        }
        SocketType::DGRAM => Some(Socket::Udp(descriptor.into())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn passed(names: &str, sockets: Vec<OwnedFd>) -> PassedSockets {
        let names = names.split(':');
        let sockets = names.zip(sockets).map(|(name, descriptor)| Passed {
            name: name.to_owned(),
            socket: socket(descriptor).unwrap().unwrap(),
        });
        PassedSockets {
            sockets: sockets.collect(),
        }
    }

    fn tcp() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    fn udp() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn descriptors_are_for_the_process_that_the_environment_names() {
        let read =
            |count: &'static str, process: Option<&'static str>, given: Option<&'static str>| {
                names(
                    |name| {
                        let value = match name {
                            "LISTEN_FDS" => Some(count),
                            "LISTEN_PID" => process,
                            _ => given,
                        };
                        value.map(str::to_owned)
                    },
                    7,
                )
            };
        let some = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(
            read("2", Some("7"), Some("a:b")).unwrap(),
            some(&["a", "b"])
        );
        assert_eq!(read("2", Some("7"), Some("a")).unwrap(), some(&["a", ""]));
        assert_eq!(read("1", Some("7"), None).unwrap(), some(&[""]));
        assert_eq!(read("0", Some("7"), Some("")).unwrap(), some(&[]));
        assert_eq!(read("2", Some("8"), None).unwrap(), None);
        assert_eq!(read("2", None, None).unwrap(), None);
        assert_eq!(read("x", Some("8"), None).unwrap(), None);
        for wrong in ["-1", "x", "65", "99999999999"] {
            let error = read(wrong, Some("7"), None).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
        assert_eq!(names(|_| None, 7).unwrap(), None);
    }

    #[test]
    fn a_socket_goes_to_the_service_of_its_name_and_the_others_in_their_order() {
        let services = ["main", "second", "stun"];
        let port = |listener: TcpListener| listener.local_addr().unwrap().port();
        let (a, b, c) = (tcp(), tcp(), udp());
        let of = |descriptor: &OwnedFd| {
            let copy = TcpListener::from(descriptor.try_clone().unwrap());
            port(copy)
        };
        let (first, second) = (of(&a), of(&b));
        let mut sockets = passed("second:x:y", vec![b.try_clone().unwrap(), a, c]);
        assert_eq!(port(sockets.take_tcp("main", &services).unwrap()), first);
        assert_eq!(port(sockets.take_tcp("second", &services).unwrap()), second);
        assert!(sockets.take_tcp("main", &services).is_none());
        assert!(sockets.take_udp("stun", &services).is_some());
        sockets.check_all_taken().unwrap();

        let mut sockets = passed("second", vec![b]);
        assert!(sockets.take_tcp("main", &services).is_none());
        let error = sockets.check_all_taken().unwrap_err().to_string();
        assert!(error.contains("\"second\""), "{error}");
    }

    #[test]
    fn only_listeners_and_datagram_sockets_of_the_internet_are_taken() {
        use std::os::unix::net::{UnixDatagram, UnixListener};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(socket(connected.into()).unwrap().is_none());
        let folder = tempfile::tempdir().unwrap();
        let local = UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(socket(local.into()).unwrap().is_none());
        assert!(
            socket(UnixDatagram::unbound().unwrap().into())
                .unwrap()
                .is_none()
        );
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(socket(file.into()).is_err());
    }
}
