//! Reports to the service manager that started a program: systemd, or another one with
//! its protocol (sd_notify(3), systemd.service(5)).
//!
//! The environment variable `NOTIFY_SOCKET` names a socket for datagrams, a path or, with
//! `@` in front, an abstract name. A report is a datagram of the form `NAME=value`. Where
//! `WATCHDOG_USEC` is set (and `WATCHDOG_PID`, if set, is this process), the manager ends a
//! program that does not send `WATCHDOG=1` within that time, in microseconds. Without these
//! variables nothing is sent.
//!
//! The manager can also open the sockets of a program: see [`PassedSockets`].

mod sockets;

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

pub use sockets::{PassedSocketError, PassedSockets};

/// The way to the service manager, if one started this program.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment names.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name), std::process::id())
    }

    /// The same for these variables and this process.
    fn from_variables<S: AsRef<OsStr>>(variable: impl Fn(&str) -> Option<S>, process: u32) -> Self {
        let Some(name) = variable("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let socket = match connect(name.as_ref()) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be reached");
                return Self::default();
            }
        };
        let number = |name| {
            let text = variable(name)?;
            text.as_ref().to_str()?.parse::<u64>().ok()
        };
        let is_ours = number("WATCHDOG_PID").is_none_or(|id| id == u64::from(process));
        let limit = number("WATCHDOG_USEC").filter(|limit| is_ours && *limit > 0);
        Self {
            socket: Some(socket),
            watchdog: limit.map(Duration::from_micros),
        }
    }

    /// How often [`alive`](Self::alive) should be reported: twice in the time that the
    /// manager waits. `None`: it does not wait for that.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The program does its work from now on.
    pub fn ready(&self) {
        self.report("READY=1");
    }

    /// The program works.
    pub fn alive(&self) {
        self.report("WATCHDOG=1");
    }

    /// The program has begun to end.
    pub fn stopping(&self) {
        self.report("STOPPING=1");
    }

    fn report(&self, text: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(text.as_bytes())
        {
            tracing::debug!(%error, text, "the service manager was not informed");
        }
    }
}

/// A socket that sends to the address, and never waits for its reader.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn reports_reach_the_socket_of_the_manager() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").display().to_string();
        let abstract_name = format!("@warren-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&abstract_name[1..]).unwrap();
        let sockets = [
            (path.clone(), UnixDatagram::bind(&path).unwrap()),
            (
                abstract_name,
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
            ),
        ];
        for (name, socket) in sockets {
            let variable = |asked: &str| (asked == "NOTIFY_SOCKET").then(|| name.clone());
            let manager = ServiceManager::from_variables(variable, 1);
            manager.ready();
            manager.alive();
            manager.stopping();
            let all = [(); 3].map(|()| received(&socket));
            assert_eq!(all, ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
            assert_eq!(manager.watchdog_period(), None);
        }
    }

    #[test]
    fn watchdog_is_for_the_process_that_the_environment_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").display().to_string();
        let _socket = UnixDatagram::bind(&path).unwrap();
        let period = |limit: &'static str, process: Option<&'static str>| {
            let variable = |asked: &str| match asked {
                "NOTIFY_SOCKET" => Some(path.clone()),
                "WATCHDOG_USEC" => Some(limit.to_owned()),
                _ => process.map(str::to_owned),
            };
            ServiceManager::from_variables(variable, 7).watchdog_period()
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(period("2000000", None), second);
        assert_eq!(period("2000000", Some("7")), second);
        assert_eq!(period("2000000", Some("8")), None);
        assert_eq!(period("0", None), None);
        assert_eq!(period("x", None), None);
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let nothing = |_: &str| None::<String>;
        ServiceManager::from_variables(nothing, 1).ready();
        let gone = |_: &str| Some("/nonexistent/notify");
        ServiceManager::from_variables(gone, 1).ready();
    }
}
