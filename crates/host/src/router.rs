//! Routes and policy rules: how packets of the machine find the tunnel, and
//! how the node's own packets stay out of it.
//!
//! Everything we route goes to a table of its own (52), never to the main one.
//! Four rules per family decide which packets use it:
//!
//! | priority | packets | table |
//! |---|---|---|
//! | base + 10 | packets with our bypass mark | main table |
//! | base + 30 | packets with our bypass mark | default table |
//! | base + 50 | packets with our bypass mark | unreachable |
//! | base + 70 | all | table 52 |
//!
//! so a marked packet (WireGuard, relay, control) never sees the tunnel's
//! routes, and the main table decides about destinations that table 52 does not
//! cover. Numbers and marks are those of the official client, so that rules that
//! administrators wrote for it hold here.
//!
//! **Life.** [`Router::open`] finds the interface and removes the rules and `throw`
//! routes of a predecessor that was killed (its other routes went with its device).
//! [`Router::apply`] reads the state of the kernel and applies the difference to the
//! configuration: a second call does nothing, and a call after another program
//! deleted rules or routes restores them ([`RouterWatch`] reports that).
//! [`Router::cleanup`] removes all of it.
//!
//! **Limits.** It never changes a route or rule without our protocol id
//! ([`PROTOCOL`]), or another interface's addresses. If routes of another program are
//! in the table, it changes nothing and names that program.

mod rules;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::netlink::{FAMILIES, Netlink, io_error};
use crate::sysctl;

pub use watch::RouterWatch;

/// The protocol id on our routes and rules (`proto 87` in the output of `ip`):
/// how we know our own after a crash.
pub const PROTOCOL: u8 = 87;

/// Where routes and rules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterOptions {
    /// The routing table.
    pub table: u32,
    /// The rules' priorities are this and up to 70 more.
    pub rule_base: u32,
}

impl Default for RouterOptions {
    fn default() -> RouterOptions {
        RouterOptions {
            table: 52,
            rule_base: 5200,
        }
    }
}

/// The routes of the machine into the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterConfig {
    /// Our addresses in the tailnet; each is set with a full-length prefix.
    pub addresses: BTreeSet<IpAddr>,
    /// Destinations that go into the tunnel. Host bits are ignored.
    pub routes: BTreeSet<IpNet>,
    /// Destinations that do not, although a route above covers them: a `throw` route
    /// sends the look-up on to the main table.
    pub throw_routes: BTreeSet<IpNet>,
    /// Tunnel MTU in bytes.
    pub mtu: u32,
}

/// The result of [`Router::apply`].
#[derive(Debug, Default)]
pub struct Applied {
    /// Addresses, routes and rules added.
    pub added: usize,
    /// Addresses, routes and rules removed.
    pub removed: usize,
    /// Limits of what was set.
    pub warnings: Vec<RouterWarning>,
    /// Settings that could not be made; the rest is. At most one for each kind of setting
    /// and address family.
    pub failures: Vec<RouterError>,
}

impl Applied {
    /// Keeps the first of the failures of one kind, and their number.
    fn note_failures(&mut self, failures: Vec<RouterError>) {
        let more = failures.len().saturating_sub(1);
        self.failures
            .extend(failures.into_iter().next().map(|first| match more {
                0 => first,
                more => RouterError::Several {
                    first: Box::new(first),
                    more,
                },
            }));
    }
}

/// A thing that works less well than it could.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouterWarning {
    /// IPv6 is off; peers are reached by IPv4 only.
    #[error(
        "IPv6 is switched off on {interface}: its addresses and routes are left out (sysctl \
         net.ipv6.conf.{interface}.disable_ipv6)"
    )]
    NoIpv6 {
        /// The tunnel's interface.
        interface: String,
    },
    /// Strict reverse-path filtering drops replies to our own packets when the
    /// default route is in the tunnel.
    #[error(
        "strict reverse-path filtering is on ({setting} = 1) and the default route goes into the \
         tunnel: replies may be dropped; set it to 2"
    )]
    StrictReversePath {
        /// The sysctl.
        setting: String,
    },
}

/// Why routes are not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// Another program's routes are in our table.
    #[error(
        "routing table {table} is in use by another program (route to {destination} by {interface}, \
         protocol {protocol}); is tailscaled or another warren running? Stop it, or choose another table"
    )]
    TableInUse {
        /// The table.
        table: u32,
        /// One of the routes found.
        destination: IpNet,
        /// The interface of that route, or "no interface".
        interface: String,
        /// Its protocol id; ours is [`PROTOCOL`].
        protocol: u8,
    },
    /// The interface is not there (any more).
    #[error("interface {name:?} not found in this network namespace")]
    NoInterface {
        /// The name looked for.
        name: String,
    },
    /// The process may not change routes.
    #[error("not permitted to {action}: run as root or with CAP_NET_ADMIN")]
    NotPermitted {
        /// The step that failed.
        action: String,
    },
    /// A failure, and others like it.
    #[error("{first} (and {more} more like this)")]
    Several {
        /// The first.
        first: Box<RouterError>,
        /// The number of the others.
        more: usize,
    },
    /// Anything else.
    #[error("cannot {action}: {source}")]
    Io {
        /// The step that failed.
        action: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// How a route of ours treats its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Tunnel,
    Throw,
}

/// The routes and rules of one tunnel interface.
#[derive(Debug)]
pub struct Router {
    netlink: Netlink,
    options: RouterOptions,
    name: String,
    index: u32,
    /// The value of `src_valid_mark` before we changed it.
    src_valid_mark: Option<String>,
}

const SRC_VALID_MARK: &str = "net/ipv4/conf/all/src_valid_mark";

impl Router {
    /// Takes charge of the interface `name` and removes leftovers of a killed
    /// predecessor. Must be called inside a tokio runtime.
    pub async fn open(name: &str, options: RouterOptions) -> Result<Router, RouterError> {
        let netlink = Netlink::open().map_err(fail("open a netlink socket"))?;
        let links = netlink.links().await.map_err(fail("list interfaces"))?;
        let index = links
            .iter()
            .find(|link| {
                link.attributes
                    .iter()
                    .any(|attribute| matches!(attribute, LinkAttribute::IfName(it) if it == name))
            })
            .map(|link| link.header.index)
            .ok_or_else(|| RouterError::NoInterface {
                name: name.to_owned(),
            })?;
        let router = Router {
            netlink,
            options,
            name: name.to_owned(),
            index,
            src_valid_mark: None,
        };
        if let Err(error) = router.remove_all().await {
            // `apply` begins with the same steps and reports them.
            tracing::warn!(%error, "routes or rules of an earlier run may be left");
        }
        Ok(router)
    }

    /// Removes what a killed router left, where its interface is gone too. Does
    /// nothing where nothing is left. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`RouterError`], when something is left and cannot be removed.
    pub async fn remove_leftovers(options: RouterOptions) -> Result<(), RouterError> {
        let router = Router {
            netlink: Netlink::open().map_err(fail("open a netlink socket"))?,
            options,
            name: String::new(),
            // No interface has this number.
            index: 0,
            src_valid_mark: None,
        };
        router.remove_all().await
    }

    /// Makes addresses, routes and rules as `config` says. Settings that the kernel refuses
    /// are left out and reported in [`Applied::failures`]; the rest is set.
    ///
    /// # Errors
    /// Nothing can be set: another program has the table, the interface is gone, or
    /// the kernel does not answer.
    pub async fn apply(&mut self, config: &RouterConfig) -> Result<Applied, RouterError> {
        let mut applied = Applied::default();
        let ipv6 = self.has_ipv6();
        if !ipv6 {
            applied.warnings.push(RouterWarning::NoIpv6 {
                interface: self.name.clone(),
            });
        }
        let wanted_family = |v6: bool| !v6 || ipv6;
        let mut routes = BTreeMap::new();
        for (set, kind) in [
            (&config.routes, Kind::Tunnel),
            (&config.throw_routes, Kind::Throw),
        ] {
            routes.extend(
                set.iter()
                    .filter(|route| wanted_family(route.addr().is_ipv6()))
                    .map(|route| (route.trunc(), kind)),
            );
        }
        let addresses: BTreeSet<IpAddr> = config
            .addresses
            .iter()
            .copied()
            .filter(|address| wanted_family(address.is_ipv6()))
            .collect();

        // Check for routes of other programs before anything is changed.
        let present = self.our_routes().await?;
        self.set_link(config.mtu).await?;
        self.apply_addresses(&addresses, &mut applied).await?;
        self.apply_routes(&routes, &present, &mut applied).await;
        let rules = rules::wanted(self.options, ipv6);
        rules::apply(&self.netlink, self.options, &rules, &mut applied).await;
        self.care_for_reverse_path(&routes, &mut applied);
        Ok(applied)
    }

    /// Removes our rules, routes and addresses, and puts settings back. The
    /// interface itself goes with its descriptor.
    pub async fn cleanup(&mut self) -> Result<(), RouterError> {
        if let Some(value) = self.src_valid_mark.take() {
            // Only worth a note: the setting does no harm.
            if let Err(error) = sysctl::write(SRC_VALID_MARK, &value) {
                tracing::debug!(%error, "cannot restore src_valid_mark");
            }
        }
        self.remove_all().await?;
        let mut applied = Applied::default();
        self.apply_addresses(&BTreeSet::new(), &mut applied).await?;
        applied.failures.into_iter().next().map_or(Ok(()), Err)
    }

    async fn remove_all(&self) -> Result<(), RouterError> {
        // Rules first: while routes go one by one, nothing looks at them.
        let present = self.our_routes().await?;
        let mut applied = Applied::default();
        rules::apply(&self.netlink, self.options, &[], &mut applied).await;
        self.apply_routes(&BTreeMap::new(), &present, &mut applied)
            .await;
        applied.failures.into_iter().next().map_or(Ok(()), Err)
    }

    fn has_ipv6(&self) -> bool {
        sysctl::read(&format!("net/ipv6/conf/{}/disable_ipv6", self.name))
            .is_ok_and(|value| value == "0")
    }

    async fn set_link(&self, mtu: u32) -> Result<(), RouterError> {
        // No link-local address and no router solicitations in the tunnel: there is
        // no router that would answer. Cosmetic, so failing is fine.
        let _ = sysctl::write(&format!("net/ipv6/conf/{}/addr_gen_mode", self.name), "1");
        let message = LinkUnspec::new_with_index(self.index).mtu(mtu).up().build();
        self.netlink
            .handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(|error| match io_error(error) {
                error if error.raw_os_error() == Some(libc::ENODEV) => RouterError::NoInterface {
                    name: self.name.clone(),
                },
                error => fail(format!("bring up {} with MTU {mtu}", self.name))(error),
            })
    }

    async fn apply_addresses(
        &self,
        wanted: &BTreeSet<IpAddr>,
        applied: &mut Applied,
    ) -> Result<(), RouterError> {
        let dumped = self.netlink.addresses().await;
        let dumped = dumped.map_err(fail("list addresses"))?;
        let mut missing = wanted.clone();
        let mut failures = Vec::new();
        for message in dumped {
            if message.header.index != self.index || message.header.scope != AddressScope::Universe
            {
                continue;
            }
            let Some(address) = local_address(&message) else {
                continue;
            };
            let full = if address.is_ipv4() { 32 } else { 128 };
            if message.header.prefix_len == full && missing.remove(&address) {
                continue;
            }
            let deleted = self.netlink.handle.address().del(message).execute().await;
            match deleted.map_err(io_error) {
                Err(error) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
                    failures.push(fail(format!("remove the address {address}"))(error));
                }
                _ => applied.removed += 1,
            }
        }
        for address in missing {
            let full = if address.is_ipv4() { 32 } else { 128 };
            let request = self.netlink.handle.address().add(self.index, address, full);
            match request.execute().await.map_err(io_error) {
                Ok(()) => applied.added += 1,
                Err(error) => {
                    let action = format!("add the address {address} to {}", self.name);
                    failures.push(fail(action)(error));
                }
            }
        }
        applied.note_failures(failures);
        Ok(())
    }

    /// Our routes in our table, after checking that it has no others.
    async fn our_routes(&self) -> Result<Vec<(IpNet, Kind, RouteMessage)>, RouterError> {
        let mut ours = Vec::new();
        for family in FAMILIES {
            let dumped = self.netlink.routes(family, self.options.table).await;
            for route in dumped.map_err(fail("list routes"))? {
                let destination = destination_of(&route);
                let kind = match route.header.kind {
                    RouteType::Throw => Kind::Throw,
                    _ => Kind::Tunnel,
                };
                let interface = interface_of(&route);
                let protocol = u8::from(route.header.protocol);
                let is_ours =
                    protocol == PROTOCOL && (kind == Kind::Throw || interface == Some(self.index));
                if !is_ours {
                    return Err(RouterError::TableInUse {
                        table: self.options.table,
                        destination,
                        interface: self.interface_name(interface).await,
                        protocol,
                    });
                }
                ours.push((destination, kind, route));
            }
        }
        Ok(ours)
    }

    async fn interface_name(&self, index: Option<u32>) -> String {
        let links = self.netlink.links().await.unwrap_or_default();
        links
            .into_iter()
            .filter(|link| Some(link.header.index) == index)
            .flat_map(|link| link.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
            .unwrap_or_else(|| "no interface".to_owned())
    }

    async fn apply_routes(
        &self,
        wanted: &BTreeMap<IpNet, Kind>,
        present: &[(IpNet, Kind, RouteMessage)],
        applied: &mut Applied,
    ) {
        let routes = self.netlink.handle.route();
        let mut missing = wanted.clone();
        let [mut failures_v4, mut failures_v6] = [Vec::new(), Vec::new()];
        let mut note = |destination: &IpNet, error| match destination {
            IpNet::V4(_) => failures_v4.push(error),
            IpNet::V6(_) => failures_v6.push(error),
        };
        for (destination, kind, message) in present {
            if missing.get(destination) == Some(kind) {
                missing.remove(destination);
                continue;
            }
            let deleted = routes.del(message.clone()).execute().await;
            match deleted.map_err(io_error) {
                // It went by itself, for example with the link.
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    let action = format!("remove the route to {destination}");
                    note(destination, fail(action)(error));
                }
                _ => applied.removed += 1,
            }
        }
        for (destination, kind) in missing {
            let request = routes.add(self.route(destination, kind));
            match request.execute().await.map_err(io_error) {
                Ok(()) => applied.added += 1,
                Err(error) => {
                    let action = format!("add the route to {destination}");
                    note(&destination, fail(action)(error));
                }
            }
        }
        applied.note_failures(failures_v4);
        applied.note_failures(failures_v6);
    }

    fn route(&self, destination: IpNet, kind: Kind) -> RouteMessage {
        let mut message = match destination {
            IpNet::V4(net) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .build(),
        };
        message.header.table = u8::try_from(self.options.table).unwrap_or(0);
        message
            .attributes
            .push(RouteAttribute::Table(self.options.table));
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        match kind {
            Kind::Tunnel => {
                message.header.kind = RouteType::Unicast;
                if destination.addr().is_ipv4() {
                    message.header.scope = RouteScope::Link;
                }
                message.attributes.push(RouteAttribute::Oif(self.index));
            }
            Kind::Throw => message.header.kind = RouteType::Throw,
        }
        message
    }

    /// With a default route in the tunnel, the reverse-path check of a reply
    /// to one of our marked packets must take the mark into account.
    fn care_for_reverse_path(&mut self, routes: &BTreeMap<IpNet, Kind>, applied: &mut Applied) {
        let takes_all = routes
            .iter()
            .any(|(route, kind)| route.prefix_len() == 0 && *kind == Kind::Tunnel);
        if !takes_all {
            return;
        }
        if self.src_valid_mark.is_none() {
            match sysctl::read(SRC_VALID_MARK) {
                Ok(value) if value != "1" && sysctl::write(SRC_VALID_MARK, "1").is_ok() => {
                    self.src_valid_mark = Some(value);
                }
                _ => {}
            }
        }
        let setting = "net/ipv4/conf/all/rp_filter";
        if sysctl::read(setting).is_ok_and(|value| value == "1") {
            applied.warnings.push(RouterWarning::StrictReversePath {
                setting: setting.replace('/', "."),
            });
        }
    }
}

fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    // IPv4 has both: `Local` is ours, `Address` the other end of a
    // point-to-point link. IPv6 has `Address` alone.
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
    };
    find(true).or_else(|| find(false))
}

fn destination_of(route: &RouteMessage) -> IpNet {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })
        // A default route has no destination attribute.
        .unwrap_or(match route.header.address_family {
            AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        });
    IpNet::new(address, route.header.destination_prefix_length).unwrap_or(IpNet::from(address))
}

fn interface_of(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn fail(action: impl Into<String>) -> impl FnOnce(io::Error) -> RouterError {
    let action = action.into();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => RouterError::NotPermitted { action },
        _ => RouterError::Io { action, source },
    }
}
