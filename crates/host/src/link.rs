//! Changes of the network under us: interfaces, their addresses, the default
//! route, and sleep of the machine.
//!
//! The kernel reports at once that *something* changed, often ten times for one
//! cable. [`LinkMonitor::next`] waits until it is quiet, takes a fresh
//! [`snapshot()`], compares it with the last one and reports a difference with
//! its weight ([`Change`]):
//!
//! - *minor*: other addresses or interfaces; candidates should be gathered again;
//! - *major*: the way out is another one (default interface, its addresses, an
//!   address family, or the machine slept): sockets should be bound again and the
//!   measurements of paths are void.
//!
//! If events are lost (the socket's buffer was full, the connection broke) the
//! monitor starts again and compares, so nothing is missed for good. Where the kernel
//! gives no events at all, the network is read every 15 seconds, and
//! [`LinkMonitor::problem`] says so.

mod clocks;
mod snapshot;

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use clocks::Clocks;
pub use snapshot::snapshot;

/// How long it must be quiet before a change is looked at.
const QUIET: Duration = Duration::from_millis(200);

/// How long a change waits at most while it does not get quiet.
const LATEST: Duration = Duration::from_secs(1);

/// How often the clocks are compared.
const CLOCK_INTERVAL: Duration = Duration::from_secs(15);

/// The time until the network is read again after an attempt that failed.
const RETRY: Duration = Duration::from_secs(1);

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The system's number for it.
    pub index: u32,
    /// Whether it is switched on and has a carrier.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Its addresses with their prefix lengths, host bits kept; not those
    /// that are still being checked for duplicates. Sorted.
    pub addrs: Vec<IpNet>,
}

impl Interface {
    /// Whether it is up and has an address that reaches beyond the link.
    pub fn is_usable(&self) -> bool {
        self.up && !self.loopback && self.routable().next().is_some()
    }

    fn routable(&self) -> impl Iterator<Item = &IpNet> {
        self.addrs.iter().filter(|net| match net {
            IpNet::V4(net) => !net.addr().is_link_local() && !net.addr().is_loopback(),
            IpNet::V6(net) => !net.addr().is_unicast_link_local() && !net.addr().is_loopback(),
        })
    }
}

/// The network as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// All interfaces but the ignored, by index.
    pub interfaces: Vec<Interface>,
    /// Name of the interface of the IPv4 default route in the main table.
    pub default_route_v4: Option<String>,
    /// Name of the interface of the IPv6 default route in the main table.
    pub default_route_v6: Option<String>,
    /// The router of the IPv4 default route; a tunnel has none.
    pub gateway_v4: Option<Ipv4Addr>,
}

impl LinkState {
    /// The interface `name`.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.name == name)
    }

    /// Whether any interface reaches beyond its link.
    pub fn any_usable(&self) -> bool {
        self.interfaces.iter().any(Interface::is_usable)
    }

    /// The addresses that decide whether the way out is the same.
    fn way_out(&self, default_route: &Option<String>) -> Vec<IpNet> {
        default_route
            .as_ref()
            .and_then(|name| self.interface(name))
            .map(|interface| interface.routable().copied().collect())
            .unwrap_or_default()
    }

    fn has_family(&self, v6: bool) -> bool {
        let mut usable = self.interfaces.iter().filter(|it| it.up && !it.loopback);
        usable.any(|it| it.routable().any(|net| net.addr().is_ipv6() == v6))
    }

    fn has_way_out(&self) -> bool {
        [&self.default_route_v4, &self.default_route_v6]
            .into_iter()
            .flatten()
            .filter_map(|name| self.interface(name))
            .any(Interface::is_usable)
    }
}

/// How much a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Gather candidates again.
    Minor,
    /// Bind sockets again and forget the measurements of paths.
    Major(MajorChange),
}

/// Why a change is major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MajorChange {
    /// The default route goes by another interface, or to another router.
    DefaultRoute,
    /// The interface of the default route has other addresses.
    Addresses,
    /// IPv4 or IPv6 came or went.
    Families,
    /// The machine slept, or its clock jumped as if it had.
    Slept,
}

/// A report of [`LinkMonitor::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    /// Its weight.
    pub change: Change,
    /// The network after it.
    pub state: LinkState,
    /// As [`LinkMonitor::problem`].
    pub problem: Option<String>,
}

/// Compares two states; `None`: they are the same.
///
/// A change to a network without a way out is never major: there is nothing to
/// bind to, and the change back will be one.
pub fn compare(old: &LinkState, new: &LinkState) -> Option<Change> {
    if old == new {
        return None;
    }
    let major = if !new.has_way_out() {
        None
    } else if old.default_route_v4 != new.default_route_v4
        || old.default_route_v6 != new.default_route_v6
        || old.gateway_v4 != new.gateway_v4
    {
        Some(MajorChange::DefaultRoute)
    } else if old.way_out(&old.default_route_v4) != new.way_out(&new.default_route_v4)
        || old.way_out(&old.default_route_v6) != new.way_out(&new.default_route_v6)
        || !old.has_way_out()
    {
        Some(MajorChange::Addresses)
    } else if [false, true]
        .iter()
        .any(|v6| old.has_family(*v6) != new.has_family(*v6))
    {
        Some(MajorChange::Families)
    } else {
        None
    };
    Some(major.map_or(Change::Minor, Change::Major))
}

/// Watches the network of the thread that started it.
pub struct LinkMonitor {
    ignored: Vec<String>,
    state: LinkState,
    open_events: fn() -> io::Result<Events>,
    events: Option<Events>,
    /// The missing part, and what was last reported of it.
    problem: Option<String>,
    reported_problem: Option<String>,
    clocks: Clocks,
    clocks_due: Instant,
    /// When the first and the last event came that were not looked at yet.
    pending: Option<(Instant, Instant)>,
    slept: bool,
}

impl LinkMonitor {
    /// Takes the first snapshot and starts to watch. Interfaces named in
    /// `ignored` (our own tunnel) do not exist for it. A part that the kernel refuses is
    /// tried again later. Must be called inside a tokio runtime.
    pub async fn start(ignored: &[&str]) -> LinkMonitor {
        Self::start_with(ignored, Events::open).await
    }

    async fn start_with(ignored: &[&str], open_events: fn() -> io::Result<Events>) -> LinkMonitor {
        let now = Instant::now();
        let mut monitor = LinkMonitor {
            ignored: ignored.iter().map(|name| (*name).to_owned()).collect(),
            state: LinkState::default(),
            open_events,
            events: None,
            problem: None,
            reported_problem: None,
            clocks: Clocks::now(),
            clocks_due: now + CLOCK_INTERVAL,
            pending: None,
            slept: false,
        };
        // First the events, then the snapshot: a change in between is seen.
        monitor.watch();
        let _first = monitor.look(now).await;
        monitor.reported_problem = monitor.problem.clone();
        monitor
    }

    /// The network as last seen, as a change of everything.
    pub fn current(&self) -> LinkChange {
        LinkChange {
            change: Change::Minor,
            state: self.state.clone(),
            problem: self.problem.clone(),
        }
    }

    /// The missing part, for the user.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn watch(&mut self) {
        match (self.open_events)() {
            Ok(events) => {
                self.events = Some(events);
                self.problem = None;
            }
            Err(error) => {
                self.problem = Some(format!(
                    "changes of the network are noticed late, because the system reports none \
                     ({error}); allow the daemon netlink sockets"
                ));
            }
        }
    }

    /// The network as last seen.
    pub fn state(&self) -> &LinkState {
        &self.state
    }

    /// Waits for the next change. Can be dropped and called again without
    /// losing one.
    pub async fn next(&mut self) -> LinkChange {
        loop {
            let due = match self.pending {
                Some((first, last)) => (last + QUIET).min(first + LATEST).min(self.clocks_due),
                None => self.clocks_due,
            };
            let event = async {
                match &mut self.events {
                    Some(events) => events.stream.next().await,
                    // Broken; it is opened again when the clock is due.
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = event => Some(event),
                () = tokio::time::sleep_until(due) => None,
            };
            let now = Instant::now();
            match event {
                Some(Some(())) => {
                    let first = self.pending.map_or(now, |(first, _)| first);
                    self.pending = Some((first, now));
                    continue;
                }
                Some(None) => {
                    tracing::debug!("link events ended; subscribing again");
                    self.events = None;
                    continue;
                }
                None => {}
            }
            if now >= self.clocks_due {
                self.check_clocks(now);
            }
            let ripe = self
                .pending
                .is_some_and(|(first, last)| now >= last + QUIET || now >= first + LATEST);
            if ripe && let Some(change) = self.look(now).await {
                return change;
            }
        }
    }

    fn check_clocks(&mut self, now: Instant) {
        self.clocks_due = now + CLOCK_INTERVAL;
        let clocks = Clocks::now();
        if clocks.slept_since(self.clocks) {
            self.slept = true;
        }
        self.clocks = clocks;
        if self.events.is_none() {
            self.watch();
        }
        // Look every time: it costs little and heals a lost event.
        self.pending.get_or_insert((now - LATEST, now - QUIET));
    }

    async fn look(&mut self, now: Instant) -> Option<LinkChange> {
        let state = match snapshot::take(&self.ignored).await {
            Ok(state) => state,
            Err(error) => {
                tracing::debug!(%error, "cannot read the network's state; trying again");
                self.pending = Some((now + RETRY, now + RETRY));
                self.problem = Some(format!(
                    "the network interfaces cannot be read ({error}), so no direct paths are \
                     offered; allow the daemon netlink sockets"
                ));
                return None;
            }
        };
        self.pending = None;
        if self.events.is_some() {
            self.problem = None;
        }
        let mut change = if std::mem::take(&mut self.slept) {
            Some(Change::Major(MajorChange::Slept))
        } else {
            compare(&self.state, &state)
        };
        if self.problem != self.reported_problem {
            self.reported_problem.clone_from(&self.problem);
            change = change.or(Some(Change::Minor));
        }
        self.state = state.clone();
        Some(LinkChange {
            change: change?,
            state,
            problem: self.problem.clone(),
        })
    }
}

impl std::fmt::Debug for LinkMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkMonitor")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// The kernel's notices; what they say does not matter, that they come does.
struct Events {
    stream: BoxStream<'static, ()>,
    task: JoinHandle<()>,
}

impl Events {
    fn open() -> io::Result<Events> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        Ok(Events {
            stream: messages.map(|_| ()).boxed(),
            task: tokio::spawn(connection),
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn interface(name: &str, index: u32, addrs: &[&str]) -> Interface {
        Interface {
            name: name.to_owned(),
            index,
            up: true,
            loopback: name == "lo",
            addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        }
    }

    fn home() -> LinkState {
        LinkState {
            interfaces: vec![
                interface("lo", 1, &["127.0.0.1/8"]),
                interface("eth0", 2, &["192.168.1.5/24", "fe80::5/64"]),
                interface("wlan0", 3, &["192.168.2.5/24"]),
            ],
            default_route_v4: Some("eth0".to_owned()),
            default_route_v6: None,
            gateway_v4: Some(Ipv4Addr::new(192, 168, 1, 1)),
        }
    }

    #[test]
    fn network_is_read_where_the_system_reports_no_changes() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let refused = || Err(io::ErrorKind::PermissionDenied.into());
            let mut monitor = LinkMonitor::start_with(&[], refused).await;
            assert!(monitor.problem().unwrap().contains("noticed late"));
            assert!(monitor.state().interface("lo").is_some());
            // It is tried again, and the end of the problem is reported.
            monitor.open_events = Events::open;
            let change = monitor.next().await;
            assert_eq!(change.problem, None);
            assert!(change.state.interface("lo").is_some());
        });
    }

    #[test]
    fn the_same_is_no_change() {
        assert_eq!(compare(&home(), &home()), None);
    }

    #[test]
    fn changes_of_the_default_route_are_major() {
        let mut new = home();
        new.default_route_v4 = Some("wlan0".to_owned());
        assert_eq!(
            compare(&home(), &new),
            Some(Change::Major(MajorChange::DefaultRoute))
        );
        let mut new = home();
        new.interfaces[1].addrs = vec!["192.168.1.6/24".parse().unwrap()];
        assert_eq!(
            compare(&home(), &new),
            Some(Change::Major(MajorChange::Addresses))
        );
        let mut new = home();
        new.interfaces[2]
            .addrs
            .push("2001:db8::5/64".parse().unwrap());
        assert_eq!(
            compare(&home(), &new),
            Some(Change::Major(MajorChange::Families))
        );
    }

    #[test]
    fn the_rest_is_minor() {
        let mut new = home();
        new.interfaces[2].up = false;
        assert_eq!(compare(&home(), &new), Some(Change::Minor));
        let mut new = home();
        new.interfaces[1].addrs.push("fe80::6/64".parse().unwrap());
        assert_eq!(compare(&home(), &new), Some(Change::Minor));
    }

    #[test]
    fn losing_the_network_is_minor_and_getting_it_back_major() {
        let mut lost = home();
        lost.interfaces[1].up = false;
        assert_eq!(compare(&home(), &lost), Some(Change::Minor));
        assert_eq!(
            compare(&lost, &home()),
            Some(Change::Major(MajorChange::Addresses))
        );
        lost.default_route_v4 = None;
        assert_eq!(compare(&home(), &lost), Some(Change::Minor));
        assert!(matches!(compare(&lost, &home()), Some(Change::Major(_))));
    }
}
