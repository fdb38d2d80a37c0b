//! The settings of the operating system: addresses, routes, forwarding, and name
//! resolution. One task, so that changes are applied one after the other and the
//! engine task never waits for the kernel.
//!
//! A node can live without each of these settings. One that cannot be made is
//! reported, the others are made all the same, and the task tries again later.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use warren_dns::ResolverConfig;
use warren_host::firewall::FirewallConfig;
use warren_host::router::RouterConfig;
use warren_node_core::node::HostReport;
use warren_node_core::{HostConfig, TUNNEL_MTU};

/// The time until a setting that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// The shortest time between two repairs, so that a program that deletes our settings as
/// soon as they are made does not keep the machine busy.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);

/// The settings that the operating system should have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostState {
    /// Addresses and routes.
    pub host: HostConfig,
    /// Networks around that are reached as if there were no tunnel, although
    /// a route into it covers them.
    pub bypass_networks: BTreeSet<IpNet>,
    /// Forwarding between the tunnel and other networks; `None` leaves the
    /// system's packet filter as it is.
    pub forwarding: Option<Forwarding>,
    /// Name resolution; `None` leaves the system's as it is.
    pub dns: Option<ResolverConfig>,
}

/// How packets go between the tunnel and the networks of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// Packets from the tunnel get this machine's address.
    pub snat: bool,
    /// Into the tunnel goes only what belongs to a connection from there.
    pub stateful: bool,
    /// Whether it is needed: routes are offered.
    pub offered: bool,
}

/// The parts of the operating system, as the task needs them. An error is a text
/// for the user.
pub trait System: Send + 'static {
    /// The name of the tunnel's interface.
    fn interface(&self) -> &str;

    /// Sets addresses, routes and policy rules.
    fn set_routes(&mut self, config: &RouterConfig) -> impl Future<Output = Outcome> + Send;

    /// Sets the packet filter; `None`: removes our rules.
    fn set_packet_filter(&mut self, config: Option<&FirewallConfig>) -> Result<(), String>;

    /// Whether this is a container that stands for a service: its entry point sends what
    /// comes from the tunnel on to another address (`TS_DEST_IP`, which the daemon inherits).
    fn stands_for_a_service(&self) -> bool;

    /// The rules of other programs that drop forwarded packets, one line for each.
    fn foreign_filters(&self) -> Vec<String>;

    /// Sets name resolution; `None`: as without us.
    fn set_resolver(
        &mut self,
        config: Option<&ResolverConfig>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Waits until the settings have to be made again: the resolver's settings without us
    /// changed, or another program deleted rules or routes of ours. Can be dropped and
    /// called again.
    fn altered(&mut self) -> impl Future<Output = ()> + Send;

    /// Takes everything back. Errors are logged.
    fn restore(&mut self) -> impl Future<Output = ()> + Send;
}

/// The result of a setting that can be made in part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The settings that could not be made.
    pub failures: Vec<String>,
    /// Settings that were made with limits that the user should know.
    pub warnings: Vec<String>,
}

/// A handle on the task.
pub struct Host {
    wanted: watch::Sender<HostState>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Host {
    /// Starts the task. `done` gets the result of every attempt that differs from the
    /// one before.
    pub fn start(system: impl System, done: mpsc::UnboundedSender<HostReport>) -> Self {
        let (wanted, changes) = watch::channel(HostState::default());
        let (stop, stopped) = oneshot::channel();
        let worker = Worker {
            system,
            done,
            reported: None,
        };
        let task = tokio::spawn(worker.run(changes, stopped));
        Self {
            wanted,
            stop: Some(stop),
            task: Some(task),
        }
    }

    /// Starts a task that leaves the system as it is: every state counts as
    /// applied. `done` gets a result without problems for each.
    pub fn untouched(done: mpsc::UnboundedSender<HostReport>) -> Self {
        let (wanted, mut changes) = watch::channel(HostState::default());
        let task = tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let addresses = changes.borrow_and_update().host.addresses.clone();
                drop(done.send(HostReport {
                    addresses,
                    problems: Vec::new(),
                }));
            }
        });
        Self {
            wanted,
            stop: None,
            task: Some(task),
        }
    }

    /// Asks the task to set the system up like this.
    pub fn apply(&self, state: HostState) {
        self.wanted.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }

    /// Takes everything back and ends.
    pub async fn stop(self) {
        let Self { wanted, stop, task } = self;
        drop((wanted, stop));
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the system's settings may not be restored");
        }
    }
}

struct Worker<S> {
    system: S,
    done: mpsc::UnboundedSender<HostReport>,
    /// The last result that was sent.
    reported: Option<HostReport>,
}

impl<S: System> Worker<S> {
    async fn run(
        mut self,
        mut changes: watch::Receiver<HostState>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut retry_at: Option<Instant> = None;
        let mut repaired_at: Option<Instant> = None;
        loop {
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let is_new = tokio::select! {
                _ = &mut stop => break,
                changed = changes.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => break,
                },
                () = retry => false,
                () = self.system.altered() => {
                    let now = Instant::now();
                    let next = repaired_at.map_or(now, |at| at + REPAIR_PAUSE);
                    if next > now {
                        retry_at = Some(retry_at.map_or(next, |at| at.min(next)));
                        continue;
                    }
                    false
                }
            };
            if !is_new {
                repaired_at = Some(Instant::now());
            }
            // A change may have come at the same moment as the others.
            let is_new = is_new || changes.has_changed().unwrap_or(false);
            let wanted = changes.borrow_and_update().clone();
            let (report, is_complete) = self.apply(&wanted).await;
            retry_at = (!is_complete).then(|| Instant::now() + RETRY);
            // The engine task waits for the result of every change.
            if is_new || self.reported.as_ref() != Some(&report) {
                self.reported = Some(report.clone());
                drop(self.done.send(report));
            }
        }
        self.system.restore().await;
    }

    /// Makes every setting that can be made; returns the report, and whether nothing
    /// has to be tried again.
    async fn apply(&mut self, wanted: &HostState) -> (HostReport, bool) {
        let config = RouterConfig {
            addresses: wanted.host.addresses.iter().copied().collect(),
            routes: wanted.host.routes.clone(),
            throw_routes: wanted.bypass_networks.clone(),
            mtu: TUNNEL_MTU.into(),
        };
        let Outcome {
            mut failures,
            mut warnings,
        } = self.system.set_routes(&config).await;
        let ranges = wanted.host.ranges.v4;
        failures.extend(self.apply_packet_filter(wanted, ranges));
        if wanted.forwarding.is_some_and(|wanted| wanted.offered) {
            warnings.extend(self.system.foreign_filters());
        }
        if let Err(error) = self.system.set_resolver(wanted.dns.as_ref()).await {
            failures.push(error);
        }
        let is_complete = failures.is_empty();
        let report = HostReport {
            addresses: wanted.host.addresses.clone(),
            problems: failures.into_iter().chain(warnings).collect(),
        };
        (report, is_complete)
    }

    fn apply_packet_filter(&mut self, state: &HostState, tailnet: Ipv4Net) -> Option<String> {
        let wanted = state.forwarding;
        let mut routes = state.host.routes.iter();
        let routes_everything =
            routes.any(|route| route.prefix_len() == 0 && route.addr().is_ipv4());
        let config = wanted.map(|wanted| FirewallConfig {
            routes_everything,
            interface: self.system.interface().to_owned(),
            tailnet,
            // Rewriting addresses makes the kernel follow every connection, those of the
            // tunnel too, and hides the sources of peers. Without offered routes nothing is
            // forwarded but by rules of other programs, which want sources kept; only the
            // service behind a container answers past it otherwise.
            snat: wanted.snat && (wanted.offered || self.system.stands_for_a_service()),
            stateful: wanted.stateful,
        });
        let problem = self.system.set_packet_filter(config.as_ref()).err()?;
        let consequence = match wanted {
            None => "rules of the packet filter stay",
            Some(Forwarding { offered: true, .. }) => "offered routes may lead nowhere",
            Some(_) => "machines near this one can send with addresses of nodes",
        };
        Some(format!(
            "{consequence}: {problem}; or accept it with `warren set --netfilter-mode=off`"
        ))
    }
}

#[cfg(test)]
mod tests;
