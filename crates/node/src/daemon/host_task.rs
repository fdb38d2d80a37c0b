//! The settings of the operating system: addresses, routes, forwarding, and name
//! resolution. One task, so that changes are applied one after the other and the
//! engine task never waits for the kernel.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use tokio::sync::{mpsc, oneshot, watch};
use warren_dns::{BaseOs, ResolverConfig, compile};
use warren_host::firewall::{Firewall, FirewallConfig, FirewallError};
use warren_host::resolver::{OsDnsConfig, ResolverOptions, SystemDns};
use warren_host::router::{Router, RouterConfig};
use warren_node_core::{HostConfig, TUNNEL_MTU};

use super::outside_names::OutsideNames;

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

/// The result of an attempt to make it so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplyResult {
    /// What did not work, or the user should know.
    pub problems: Vec<String>,
}

/// A handle on the task.
pub struct Host {
    wanted: watch::Sender<HostState>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Host {
    /// Starts the task. `done` gets the result of every attempt; `answers`
    /// configures our own name server, completed with what the system had; `names`
    /// learns the servers that the system had.
    pub fn start(
        router: Router,
        firewall: Result<Firewall, FirewallError>,
        interface: String,
        state_dir: std::path::PathBuf,
        answers: watch::Sender<ResolverConfig>,
        names: Arc<OutsideNames>,
        done: mpsc::UnboundedSender<ApplyResult>,
    ) -> Self {
        let (wanted, changes) = watch::channel(HostState::default());
        let (stop, stopped) = oneshot::channel();
        let worker = Worker {
            router,
            firewall,
            interface,
            state_dir,
            answers,
            names,
            done,
            dns: None,
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
    pub fn untouched(done: mpsc::UnboundedSender<ApplyResult>) -> Self {
        let (wanted, mut changes) = watch::channel(HostState::default());
        let task = tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                drop(done.send(ApplyResult::default()));
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

struct Worker {
    router: Router,
    firewall: Result<Firewall, FirewallError>,
    interface: String,
    state_dir: std::path::PathBuf,
    answers: watch::Sender<ResolverConfig>,
    names: Arc<OutsideNames>,
    done: mpsc::UnboundedSender<ApplyResult>,
    dns: Option<SystemDns>,
}

impl Worker {
    async fn run(
        mut self,
        mut changes: watch::Receiver<HostState>,
        mut stop: oneshot::Receiver<()>,
    ) {
        loop {
            tokio::select! {
                _ = &mut stop => break,
                changed = changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let wanted = changes.borrow_and_update().clone();
                    let result = self.apply(&wanted).await;
                    drop(self.done.send(result));
                }
            }
        }
        if let Some(dns) = &mut self.dns
            && let Err(error) = dns.revert().await
        {
            tracing::error!(%error, "the resolver settings are not restored");
        }
        if let Err(error) = self.router.cleanup().await {
            tracing::error!(%error, "routes or rules are left behind");
        }
        if let Ok(firewall) = &mut self.firewall
            && let Err(error) = firewall.cleanup()
        {
            tracing::error!(%error, "rules of the packet filter are left behind");
        }
    }

    async fn apply(&mut self, wanted: &HostState) -> ApplyResult {
        let mut result = ApplyResult::default();
        let config = RouterConfig {
            addresses: wanted.host.addresses.iter().copied().collect(),
            routes: wanted.host.routes.clone(),
            throw_routes: wanted.bypass_networks.clone(),
            mtu: TUNNEL_MTU.into(),
        };
        match self.router.apply(&config).await {
            Ok(applied) => {
                result
                    .problems
                    .extend(applied.warnings.iter().map(ToString::to_string));
            }
            Err(error) => result.problems.push(error.to_string()),
        }
        result
            .problems
            .extend(self.apply_forwarding(wanted.forwarding, wanted.host.ranges.v4));
        if let Ok(firewall) = &self.firewall
            && wanted.forwarding.is_some_and(|wanted| wanted.offered)
        {
            let lines = firewall.in_the_way(&self.interface);
            result.problems.extend(lines);
        }
        if let Err(error) = self.apply_dns(wanted.dns.as_ref()).await {
            result.problems.push(error);
        }
        result
    }

    /// Returns a problem for the user. A node that offers no routes lacks nothing on
    /// a machine whose packet filter cannot be set up.
    fn apply_forwarding(&mut self, wanted: Option<Forwarding>, tailnet: Ipv4Net) -> Option<String> {
        let config = wanted.map(|wanted| FirewallConfig {
            interface: self.interface.clone(),
            tailnet,
            // Without offered routes nothing is forwarded, and rewriting addresses
            // makes the kernel follow every connection, those of the tunnel too.
            snat: wanted.snat && wanted.offered,
            stateful: wanted.stateful,
        });
        let problem = match &mut self.firewall {
            Ok(firewall) => firewall.apply(config.as_ref()).err()?.to_string(),
            Err(error) => error.to_string(),
        };
        if wanted.is_some_and(|wanted| wanted.offered) {
            return Some(problem);
        }
        tracing::debug!(problem, "no rules in the packet filter");
        None
    }

    async fn apply_dns(&mut self, wanted: Option<&ResolverConfig>) -> Result<(), String> {
        let Some(wanted) = wanted else {
            self.names.set_servers([]);
            if let Some(dns) = &mut self.dns {
                dns.revert().await.map_err(|error| error.to_string())?;
            }
            return Ok(());
        };
        if self.dns.is_none() {
            let mut options = ResolverOptions::new(&self.interface);
            options.state_dir = Some(self.state_dir.clone());
            let opened = SystemDns::open(options)
                .await
                .map_err(|error| error.to_string())?;
            tracing::debug!(mode = %opened.mode(), "resolver settings");
            self.dns = Some(opened);
        }
        let Some(dns) = &mut self.dns else {
            return Ok(());
        };
        let base = dns.base_config();
        let base = BaseOs {
            nameservers: base.nameservers,
            search_domains: base.search_domains,
        };
        let (decision, answers) = compile(wanted.clone(), dns.supports_split_dns(), &base);
        // Our server first: the system asks it from the next moment on.
        self.answers.send_replace(answers);
        if decision.nameservers.is_empty() {
            self.names.set_servers([]);
        } else {
            self.names.set_servers(base.nameservers);
        }
        let config = OsDnsConfig {
            nameservers: decision.nameservers,
            search_domains: decision.search_domains,
            match_domains: decision.match_domains,
        };
        dns.apply(&config).await.map_err(|error| error.to_string())
    }
}
