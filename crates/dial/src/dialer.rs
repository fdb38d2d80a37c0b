//! TCP connections, with the habits of this system.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::names::{ResolveNames, SystemResolver, no_address};
use crate::proxies::{OutgoingProxies, Proxy, ProxyError, Scheme, UnusableSetting, authority};
use crate::transport::Transport;

/// Firewall mark of the node's own traffic; policy routing keeps packets that
/// carry it out of the tunnel.
const OWN_TRAFFIC_MARK: u32 = 0x80000;
/// The time that an address may stay silent before the next one is tried beside it
/// (RFC 8305 section 5, "Connection Attempt Delay").
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// The time limit for all addresses together.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the kernel asks whether the other side still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// No connection came about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or no name server answered.
    #[error("cannot resolve \"{host}\": {source} (check the name and this machine's DNS)")]
    Resolve {
        /// The name.
        host: String,
        /// The system's error.
        source: io::Error,
    },
    /// No address of the name accepted.
    #[error("cannot connect to {target}: {source}")]
    Connect {
        /// Name or address, and port.
        target: String,
        /// The last failure.
        source: io::Error,
    },
    /// No answer came in time.
    #[error("cannot connect to {target}: no answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// Name or address, and port.
        target: String,
        /// The time limit that passed.
        after: Duration,
    },
    /// A proxy stands in the way.
    #[error(transparent)]
    Proxy(#[from] Box<ProxyError>),
    /// The environment names a proxy that cannot be used.
    #[error(transparent)]
    ProxySetting(#[from] UnusableSetting),
}

/// Opens TCP connections.
#[derive(Clone, Debug)]
pub struct Dialer {
    outside_tunnel: bool,
    names: Arc<dyn ResolveNames>,
    timeout: Duration,
    proxies: Arc<OutgoingProxies>,
}

impl Default for Dialer {
    fn default() -> Self {
        Self {
            outside_tunnel: false,
            names: Arc::new(SystemResolver),
            timeout: TIMEOUT,
            proxies: Arc::default(),
        }
    }
}

impl Dialer {
    /// A dialer for programs that have no tunnel: servers, relays, tools.
    pub fn new() -> Self {
        Self::default()
    }

    /// A dialer for a node: its sockets bypass the tunnel, if this process may
    /// mark them, and names are looked up by `names`. Where the process may not
    /// mark sockets, there is no policy routing to bypass.
    pub fn outside_tunnel(names: Arc<dyn ResolveNames>) -> Self {
        Self {
            outside_tunnel: true,
            names,
            ..Self::default()
        }
    }

    /// The same with another limit on the time of one connection.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The limit on the time of one connection.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same with proxies, which [`Dialer::open`] goes through.
    pub fn with_proxies(self, proxies: OutgoingProxies) -> Self {
        let proxies = Arc::new(proxies);
        Self { proxies, ..self }
    }

    /// Connects to a server that speaks HTTP, or HTTP under TLS: through the proxy of
    /// that scheme, if there is one for this host. `host` is a name or an address
    /// (IPv6 with or without brackets).
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn open(
        &self,
        scheme: Scheme,
        host: &str,
        port: u16,
    ) -> Result<Transport, DialError> {
        let host = bare(host);
        match self.proxy(scheme, host, port)? {
            None => Ok(Transport::Tcp(self.connect(host, port).await?)),
            Some(proxy) => Ok(proxy.tunnel(self, host, port).await.map_err(Box::new)?),
        }
    }

    /// The proxy for a connection.
    pub(crate) fn proxy(
        &self,
        scheme: Scheme,
        host: &str,
        port: u16,
    ) -> Result<Option<&Proxy>, UnusableSetting> {
        self.proxies.choose(scheme, bare(host), port)
    }

    /// Connects to a name or an address in text form (IPv6 with or without
    /// brackets), without a proxy.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let bare = bare(host);
        let target = || authority(bare, port);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self
                .connect_any(&target(), &[SocketAddr::new(address, port)])
                .await;
        }
        let found = self.resolve(bare).await?;
        let addresses: Vec<_> = found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect();
        self.connect_any(&target(), &addresses).await
    }

    /// The addresses of a host name; at least one.
    ///
    /// # Errors
    /// [`DialError::Resolve`].
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, DialError> {
        let found = timeout(self.timeout, self.names.resolve(host)).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match found {
            Ok(addresses) if !addresses.is_empty() => Ok(addresses),
            empty_or_error => Err(DialError::Resolve {
                host: host.to_owned(),
                source: empty_or_error.err().unwrap_or_else(no_address),
            }),
        }
    }

    /// Connects to whichever of `addresses` answers first, starting with the
    /// first and adding the next every quarter second, families in turn.
    /// `target` is for error messages.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn connect_any(
        &self,
        target: &str,
        addresses: &[SocketAddr],
    ) -> Result<TcpStream, DialError> {
        let race = async {
            let mut waiting = alternate(addresses).into_iter().peekable();
            let mut running = FuturesUnordered::new();
            let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
            loop {
                match waiting.next() {
                    Some(address) => running.push(self.connect_one(address)),
                    None if running.is_empty() => return Err(last),
                    None => {}
                }
                tokio::select! {
                    Some(result) = running.next() => match result {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = error,
                    },
                    () = sleep(NEXT_ADDRESS), if waiting.peek().is_some() => {}
                }
            }
        };
        match timeout(self.timeout, race).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(DialError::Connect {
                target: target.to_owned(),
                source,
            }),
            Err(_) => Err(DialError::TimedOut {
                target: target.to_owned(),
                after: self.timeout,
            }),
        }
    }

    async fn connect_one(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        if self.outside_tunnel {
            mark_own_traffic(&socket);
        }
        TcpSocket::from_std_stream(socket.into())
            .connect(address)
            .await
    }
}

/// A host without brackets.
fn bare(host: &str) -> &str {
    let inner = host.strip_prefix('[');
    inner
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Marks a socket of the node itself, so that its packets bypass the tunnel.
pub fn mark_own_traffic(socket: &impl AsFd) {
    #[cfg(target_os = "linux")]
    if let Err(error) = SockRef::from(socket).set_mark(OWN_TRAFFIC_MARK) {
        // Needs CAP_NET_ADMIN. Without it there is no TUN device either, so no
        // route that the packets could take into it.
        tracing::trace!(%error, "the socket stays unmarked");
    }
}

/// The addresses with families in turn, in the resolver's order otherwise, and
/// starting with the family it put first (RFC 8305 section 4).
fn alternate(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut own, mut other): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses
        .iter()
        .copied()
        .partition(|address| address.is_ipv6() == first_is_v6);
    own.reverse();
    other.reverse();
    let mut out = Vec::with_capacity(addresses.len());
    while out.len() < addresses.len() {
        out.extend(own.pop());
        out.extend(other.pop());
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn families_take_turns() {
        let text = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter()
                .map(|address| address.parse().unwrap())
                .collect()
        };
        assert_eq!(
            alternate(&text(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"])),
            text(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"])
        );
        assert!(alternate(&[]).is_empty());
    }

    #[tokio::test]
    async fn dead_address_does_not_hold_up_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        // Port 1 on loopback refuses at once.
        let dead = "127.0.0.1:1".parse().unwrap();
        let stream = Dialer::outside_tunnel(Arc::new(SystemResolver))
            .connect_any("test", &[dead, live])
            .await
            .unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
        let refused = Dialer::new()
            .connect_any("test:1", &[dead])
            .await
            .unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("cannot connect to test:1: "),
            "{refused}"
        );
        let nothing = Dialer::new().connect_any("test:1", &[]).await.unwrap_err();
        assert!(nothing.to_string().contains("no address"), "{nothing}");
    }

    #[derive(Debug)]
    struct Table(&'static [(&'static str, &'static str)]);

    impl ResolveNames for Table {
        fn resolve<'a>(&'a self, host: &'a str) -> crate::names::Resolving<'a> {
            let found = self.0.iter().filter(|(name, _)| *name == host);
            let found = found.map(|(_, address)| address.parse().unwrap()).collect();
            Box::pin(std::future::ready(Ok(found)))
        }
    }

    #[tokio::test]
    async fn names_are_resolved_by_the_given_resolver_only() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let names = Table(&[("control.invalid", "127.0.0.1")]);
        let dialer = Dialer::outside_tunnel(Arc::new(names));
        let stream = dialer.connect("control.invalid", live.port()).await;
        assert_eq!(stream.unwrap().peer_addr().unwrap(), live);
        let missing = dialer.connect("localhost", live.port()).await.unwrap_err();
        assert!(matches!(missing, DialError::Resolve { .. }), "{missing}");
    }

    #[tokio::test]
    async fn addresses_in_text_form_need_no_name_server() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Dialer::new().connect("127.0.0.1", port).await.unwrap();
        let refused = Dialer::new().connect("[::1]", 1).await.unwrap_err();
        assert!(refused.to_string().contains("[::1]:1"), "{refused}");
    }
}
