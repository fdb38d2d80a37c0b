//! A node without a network interface: its operating system, as far as the host task
//! sets it up, and the connections of programs.
//!
//! The host task sets addresses, routes and resolver here as it does on a machine
//! ([`UserspaceSystem`]). Nothing in the operating system changes; the routes decide
//! which connections of [`ProgramDialer`] take the tunnel. The proxies and the local
//! interface use it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use warren_dns::lookup::{Family, addresses, query};
use warren_dns::{BaseOs, ResolverConfig, SERVICE_V4, compile};
use warren_host::device::Offloads;
use warren_host::device::memory::{self, MemoryDevice, MemoryOptions};
use warren_host::firewall::FirewallConfig;
use warren_host::router::RouterConfig;
use warren_netstack::Limits;
use warren_node_core::TUNNEL_MTU;
use warren_userspace::forward::{self, Own, OwnPorts};
use warren_userspace::proxy::{self, Dial, Dialing, Outgoing, OutgoingFlow, Protocols};
use warren_userspace::{Network, NetworkOptions, OwnServices};
use warren_wire::socks5::Host;

use super::handle::NodeHandle;
use super::host_task::{Outcome, System};
use super::start::{DaemonError, system};
use crate::localapi::endpoints::Dialed;
use crate::localapi::error::{ApiError, Reply};

/// The name by which the interface is shown, where there is none.
const NAME: &str = "userspace-networking";
/// The time that our own name server has for an answer.
const NAME_PATIENCE: Duration = Duration::from_secs(5);
/// The time for one address of a host to take a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// Addresses of a host that are tried.
const MOST_ADDRESSES: usize = 4;
const DNS_PORT: u16 = 53;
/// Frames that may wait in each direction between the packet threads and the network.
const WAITING_FRAMES: usize = 1024;

/// The properties of the network inside the tunnel.
pub(super) const NETWORK: NetworkOptions = NetworkOptions {
    mtu: TUNNEL_MTU,
    limits: Limits::DEFAULT,
};

/// Starts the network inside the tunnel, with the forwarding of what peers open.
/// Returns the device for the packet threads, and the places for our own addresses and for
/// the ports that are closed to peers.
///
/// # Errors
/// When the system has no descriptors left.
pub fn start_network() -> Result<StartedNetwork, DaemonError> {
    raise_file_limit();
    let (device, host) = memory::pair(MemoryOptions {
        queues: 1,
        capacity: WAITING_FRAMES,
        offloads: Offloads {
            tcp: true,
            udp: false,
        },
        mtu: TUNNEL_MTU.into(),
    })
    .map_err(system("cannot make a device in memory"))?;
    let host = Arc::new(host);
    let (network, arrivals) = Network::new(Box::new(Arc::clone(&host)), NETWORK);
    let (own, known_own) = watch::channel(Own::default());
    let running = network.clone();
    tokio::spawn(async move {
        if let Err(error) = running.run(host).await {
            tracing::error!(%error, "the network inside the tunnel has ended; restart the daemon");
        }
    });
    let closed = OwnPorts::default();
    let services = OwnServices::default();
    tokio::spawn(forward::serve(
        arrivals,
        network.clone(),
        known_own,
        closed.clone(),
        services.clone(),
    ));
    Ok(StartedNetwork {
        device,
        network,
        own,
        closed,
        services,
    })
}

/// The network inside the tunnel, with what its users need.
pub struct StartedNetwork {
    /// The device for the packet threads.
    pub device: MemoryDevice,
    /// The network.
    pub network: Network,
    /// The addresses that peers reach this machine by.
    pub own: watch::Sender<Own>,
    /// Ports of this machine that peers do not reach.
    pub closed: OwnPorts,
    /// Ports that this process serves itself.
    pub services: OwnServices,
}

/// Each connection that is forwarded needs a descriptor: allows as many as the system
/// lets this user have.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// The destinations that take the tunnel.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// The addresses of this node.
    own: Vec<IpAddr>,
    into_tunnel: Vec<IpNet>,
    past_tunnel: Vec<IpNet>,
}

/// The way of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To this machine.
    Loopback,
    /// Through the tunnel, from this address.
    Tunnel(IpAddr),
    /// As if there were no tunnel.
    System,
    /// Through the tunnel, which has no address of this family.
    Nowhere,
}

impl Routes {
    /// The longest prefix decides, as in the routing table of a system.
    fn way(&self, to: IpAddr) -> Way {
        if self.own.contains(&to) {
            return Way::Loopback;
        }
        let longest = |nets: &[IpNet]| {
            let holding = nets.iter().filter(|net| net.contains(&to));
            holding.map(IpNet::prefix_len).max()
        };
        let into_tunnel = longest(&self.into_tunnel);
        if into_tunnel.is_none() || longest(&self.past_tunnel) >= into_tunnel {
            return Way::System;
        }
        let mut own = self.own.iter();
        let from = own.find(|own| own.is_ipv4() == to.is_ipv4());
        from.map_or(Way::Nowhere, |from| Way::Tunnel(*from))
    }
}

/// The system of a node without an interface.
pub struct UserspaceSystem {
    /// The network inside the tunnel.
    pub network: Network,
    /// The addresses that peers reach this machine by.
    pub own: watch::Sender<Own>,
    /// The destinations that take the tunnel.
    pub routes: watch::Sender<Routes>,
    /// The settings of our own name server.
    pub answers: watch::Sender<ResolverConfig>,
}

impl System for UserspaceSystem {
    fn interface(&self) -> &str {
        NAME
    }

    async fn set_routes(&mut self, config: &RouterConfig) -> Outcome {
        self.network.set_addresses(config.addresses.iter().copied());
        let own: Vec<IpAddr> = config.addresses.iter().copied().collect();
        self.own.send_replace(Own(own.clone()));
        self.routes.send_replace(Routes {
            own,
            into_tunnel: config.routes.iter().copied().collect(),
            past_tunnel: config.throw_routes.iter().copied().collect(),
        });
        Outcome::default()
    }

    fn set_packet_filter(&mut self, _: Option<&FirewallConfig>) -> Result<(), String> {
        // Connections of peers end in this process, and new ones leave it: nothing is
        // forwarded by the kernel.
        Ok(())
    }

    fn stands_for_a_service(&self) -> bool {
        false
    }

    fn foreign_filters(&self) -> Vec<String> {
        Vec::new()
    }

    async fn set_resolver(&mut self, config: Option<&ResolverConfig>) -> Result<(), String> {
        let config = config.cloned().unwrap_or_default();
        // Names that no rule covers are looked up by the system.
        let (_, answers) = compile(config, true, &BaseOs::default());
        self.answers.send_replace(answers);
        Ok(())
    }

    async fn altered(&mut self) {
        std::future::pending().await
    }

    async fn restore(&mut self) {}
}

/// Makes the connections of programs: through the tunnel where a route leads into it,
/// and otherwise as the system does.
pub struct ProgramDialer {
    handle: NodeHandle,
    /// `None`: the tunnel is an interface, and the system has the routes.
    userspace: Option<(Network, watch::Receiver<Routes>)>,
    /// Ports of this machine that peers do not reach.
    closed: OwnPorts,
}

impl ProgramDialer {
    /// A dialer of a node whose tunnel is an interface of the system.
    pub fn with_interface(handle: NodeHandle) -> Self {
        Self {
            handle,
            userspace: None,
            closed: OwnPorts::default(),
        }
    }

    /// A dialer of a node without one.
    pub fn without_interface(
        handle: NodeHandle,
        network: Network,
        routes: watch::Receiver<Routes>,
        closed: OwnPorts,
    ) -> Self {
        Self {
            handle,
            userspace: Some((network, routes)),
            closed,
        }
    }

    /// The addresses of a host: those of the netmap, then those that our own name server
    /// knows, then those of the system.
    async fn resolve(&self, host: &Host) -> io::Result<Vec<IpAddr>> {
        let name = match host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        if let Some(address) = self.handle.address_of(name).await {
            return Ok(vec![address]);
        }
        if let Some((network, routes)) = &self.userspace {
            let own = routes.borrow().own.clone();
            let asking = ask_own_server(network, &own, name);
            let found = tokio::time::timeout(NAME_PATIENCE, asking).await;
            let found = found.unwrap_or_default();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let found = tokio::net::lookup_host((name.as_str(), 0)).await;
        let found = found.map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
        Ok(found.map(|address| address.ip()).collect())
    }

    /// Makes a connection for a program that connects itself where it can.
    ///
    /// # Errors
    /// [`ApiError`], with its text for the user.
    pub async fn dial_for_program(&self, host: &str, port: u16) -> Reply<Dialed> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = match bare.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(host.to_owned()),
        };
        let found = self.resolve(&host).await;
        let found =
            found.map_err(|error| ApiError::NotFound(format!("resolve failure: {error}")))?;
        let mut failed = no_address();
        for address in found.into_iter().take(MOST_ADDRESSES) {
            let to = SocketAddr::new(address, port);
            match self.way(address) {
                Way::System => return Ok(Dialed::Address(to)),
                Way::Loopback => return Ok(Dialed::Address(loopback(to))),
                Way::Tunnel(_) | Way::Nowhere => match self.connect_to(to).await {
                    Ok(stream) => return Ok(Dialed::Stream(Box::new(stream))),
                    Err(error) => failed = error,
                },
            }
        }
        Err(ApiError::Failed(format!("dial failure: {failed}")))
    }

    async fn connect_to(&self, to: SocketAddr) -> io::Result<Outgoing> {
        let way = self.way(to.ip());
        let connecting = async {
            Ok(match (way, &self.userspace) {
                (Way::Nowhere, _) => return Err(no_address()),
                (Way::Tunnel(from), Some((network, _))) => {
                    Outgoing::Tunnel(network.connect(from, to).await?)
                }
                (Way::Loopback, _) => Outgoing::System(connect_system(loopback(to)).await?),
                (Way::System | Way::Tunnel(_), _) => Outgoing::System(connect_system(to).await?),
            })
        };
        let connected = tokio::time::timeout(CONNECT_PATIENCE, connecting).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn way(&self, to: IpAddr) -> Way {
        match &self.userspace {
            Some((_, routes)) => routes.borrow().way(to),
            None => Way::System,
        }
    }

    async fn flow_to(&self, to: SocketAddr) -> io::Result<OutgoingFlow> {
        let to = match (self.way(to.ip()), &self.userspace) {
            (Way::Nowhere, _) => return Err(no_address()),
            (Way::Tunnel(from), Some((network, _))) => {
                let flow = network.open_flow(SocketAddr::new(from, 0), to)?;
                return Ok(OutgoingFlow::Tunnel(flow));
            }
            (Way::Loopback, _) => loopback(to),
            (Way::System | Way::Tunnel(_), _) => to,
        };
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(to).await?;
        Ok(OutgoingFlow::System(socket))
    }
}

impl Dial for ProgramDialer {
    fn connect<'a>(&'a self, host: &'a Host, port: u16) -> Dialing<'a, Outgoing> {
        Box::pin(async move {
            let mut failed = None;
            for address in self.resolve(host).await?.into_iter().take(MOST_ADDRESSES) {
                match self.connect_to(SocketAddr::new(address, port)).await {
                    Ok(outgoing) => return Ok(outgoing),
                    Err(error) => failed = Some(error),
                }
            }
            Err(failed.unwrap_or_else(no_address))
        })
    }

    fn open_flow<'a>(&'a self, host: &'a Host, port: u16) -> Dialing<'a, OutgoingFlow> {
        Box::pin(async move {
            let mut found = self.resolve(host).await?.into_iter();
            let address = found.next().ok_or_else(no_address)?;
            self.flow_to(SocketAddr::new(address, port)).await
        })
    }
}

fn no_address() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        "no address of the host can be used",
    )
}

fn loopback(to: SocketAddr) -> SocketAddr {
    let address: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(address, to.port())
}

async fn connect_system(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks our own name server, which is reached like any host of the tunnel. Only the
/// families that this node has are asked for.
async fn ask_own_server(network: &Network, own: &[IpAddr], name: &str) -> Vec<IpAddr> {
    let Some(from) = own.iter().find(|own| own.is_ipv4()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        let has_family = own
            .iter()
            .any(|own| own.is_ipv4() == (family == Family::V4));
        let Some(question) = query(name, family).filter(|_| has_family) else {
            continue;
        };
        let server = SocketAddr::new(SERVICE_V4.into(), DNS_PORT);
        let Ok(flow) = network.open_flow(SocketAddr::new(*from, 0), server) else {
            return found;
        };
        flow.send(&question);
        if let Some(answer) = flow.receive().await {
            found.extend(addresses(&answer));
        }
    }
    found
}

/// Opens the listeners of the proxies and serves them; one listener where both have the
/// same address.
///
/// # Errors
/// When an address cannot be listened at.
pub async fn serve_proxies(
    socks5: Option<&str>,
    http: Option<&str>,
    dial: &Arc<ProgramDialer>,
) -> Result<(), DaemonError> {
    let wanted = match (socks5, http) {
        (Some(socks5), Some(http)) if socks5 == http => vec![(socks5, Protocols::Both)],
        (socks5, http) => {
            let socks5 = socks5.map(|at| (at, Protocols::Socks));
            let http = http.map(|at| (at, Protocols::Http));
            socks5.into_iter().chain(http).collect()
        }
    };
    for (at, protocols) in wanted {
        // ":1080" means all addresses.
        let address = if at.starts_with(':') {
            format!("0.0.0.0{at}")
        } else {
            at.to_owned()
        };
        let listener = TcpListener::bind(&address).await;
        let listener = listener.map_err(|source| DaemonError::Proxy {
            address: at.to_owned(),
            source,
        })?;
        if let Ok(bound) = listener.local_addr() {
            dial.closed.add(bound.port());
        }
        tracing::info!(address = at, ?protocols, "proxy");
        let dial: Arc<dyn Dial> = Arc::clone(dial) as Arc<dyn Dial>;
        tokio::spawn(proxy::serve(listener, protocols, dial));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_longest_route_decides_about_the_way() {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        let routes = Routes {
            own: vec!["100.64.0.1".parse().unwrap()],
            into_tunnel: nets(&["100.64.0.2/32", "10.0.0.0/8", "0.0.0.0/0", "::/0"]),
            past_tunnel: nets(&["10.1.0.0/16", "192.168.0.0/24"]),
        };
        let own = Way::Tunnel("100.64.0.1".parse().unwrap());
        for (to, way) in [
            ("100.64.0.1", Way::Loopback),
            ("100.64.0.2", own),
            ("10.2.0.1", own),
            ("10.1.0.1", Way::System),
            ("192.168.0.9", Way::System),
            ("8.8.8.8", own),
            ("2001:db8::1", Way::Nowhere),
        ] {
            assert_eq!(routes.way(to.parse().unwrap()), way, "{to}");
        }
        assert_eq!(
            Routes::default().way("8.8.8.8".parse().unwrap()),
            Way::System
        );
    }
}
