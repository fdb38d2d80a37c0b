//! The operating system of the daemon, as its host task sets it up.
//!
//! Each part is opened when it is first needed, and again after an attempt that
//! failed: a kernel module may be loaded later, and a folder may become writable.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use warren_dns::{BaseOs, ResolverConfig, compile};
use warren_host::firewall::{Firewall, FirewallConfig};
use warren_host::resolver::{self, OsDnsConfig, ResolverOptions, SystemDns};
use warren_host::router::{Router, RouterConfig, RouterOptions, RouterWatch};

use super::host_task::{Outcome, System};
use super::outside_names::OutsideNames;

/// The parts that are open.
pub struct Machine {
    interface: String,
    options: ResolverOptions,
    router: Option<Router>,
    /// `None`: deleted rules come back with the next change only.
    watch: Option<RouterWatch>,
    firewall: Option<Firewall>,
    dns: Option<SystemDns>,
    /// The reason why the resolv.conf of an earlier run is still there.
    leftover: Option<String>,
    /// Configures our own name server, completed with what the system had.
    answers: watch::Sender<ResolverConfig>,
    /// Learns the servers that the system had.
    names: Arc<OutsideNames>,
}

impl Machine {
    /// Opens the parts that can be opened, which also removes what a killed daemon left.
    /// Parts that cannot are logged here, and reported when they are needed.
    pub async fn open(
        interface: String,
        state_dir: &Path,
        answers: watch::Sender<ResolverConfig>,
        names: Arc<OutsideNames>,
    ) -> Self {
        let options = resolver_options(&interface, state_dir);
        let leftover = resolver::recover(&options)
            .inspect_err(|error| tracing::warn!(%error, "an earlier run is not cleaned up"))
            .err();
        let router = Router::open(&interface, RouterOptions::default()).await;
        let router = router
            .inspect_err(|error| tracing::warn!(%error, "routes cannot be set"))
            .ok();
        let watch = RouterWatch::open(RouterOptions::default())
            .inspect_err(|error| tracing::warn!(%error, "deleted routes will not be noticed"))
            .ok();
        let firewall = Firewall::open()
            .inspect_err(|error| tracing::warn!(%error, "the packet filter cannot be set up"))
            .ok();
        Self {
            interface,
            options,
            router,
            watch,
            firewall,
            dns: None,
            leftover: leftover.map(|error| error.to_string()),
            answers,
            names,
        }
    }

    async fn router(&mut self) -> Result<&mut Router, String> {
        let router = match self.router.take() {
            Some(router) => router,
            None => Router::open(&self.interface, RouterOptions::default())
                .await
                .map_err(|error| error.to_string())?,
        };
        Ok(self.router.insert(router))
    }
}

impl System for Machine {
    fn interface(&self) -> &str {
        &self.interface
    }

    async fn set_routes(&mut self, config: &RouterConfig) -> Outcome {
        let consequence = "packets do not find the tunnel";
        let failed = |error: String| Outcome {
            failures: vec![format!("{consequence}: {error}")],
            warnings: Vec::new(),
        };
        let router = match self.router().await {
            Ok(router) => router,
            Err(error) => return failed(error),
        };
        match router.apply(config).await {
            Ok(applied) => Outcome {
                failures: applied
                    .failures
                    .iter()
                    .map(|error| format!("some {consequence}: {error}"))
                    .collect(),
                warnings: applied.warnings.iter().map(ToString::to_string).collect(),
            },
            Err(error) => failed(error.to_string()),
        }
    }

    fn set_packet_filter(&mut self, config: Option<&FirewallConfig>) -> Result<(), String> {
        let firewall = match (self.firewall.take(), config) {
            (Some(firewall), _) => firewall,
            (None, None) => return Ok(()),
            (None, Some(_)) => Firewall::open().map_err(|error| error.to_string())?,
        };
        let firewall = self.firewall.insert(firewall);
        firewall
            .apply(config)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn stands_for_a_service(&self) -> bool {
        ["TS_DEST_IP", "TS_EXPERIMENTAL_DEST_DNS_NAME"]
            .into_iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
    }

    fn foreign_filters(&self) -> Vec<String> {
        let firewall = self.firewall.as_ref();
        firewall.map_or_else(Vec::new, |firewall| firewall.in_the_way(&self.interface))
    }

    async fn set_resolver(&mut self, wanted: Option<&ResolverConfig>) -> Result<(), String> {
        let Some(wanted) = wanted else {
            self.names.set_servers([]);
            if let Some(dns) = &mut self.dns {
                dns.revert().await.map_err(|error| error.to_string())?;
            }
            return Ok(());
        };
        let dns = match self.dns.take() {
            Some(dns) => dns,
            None => {
                self.leftover = resolver::recover(&self.options)
                    .err()
                    .map(|error| error.to_string());
                let opened = SystemDns::open(self.options.clone()).await;
                tracing::debug!(mode = %opened.mode(), "resolver settings");
                opened
            }
        };
        let dns = self.dns.insert(dns);
        let found = dns.base_config();
        let base = BaseOs {
            nameservers: found.nameservers,
            search_domains: found.search_domains,
        };
        let (decision, answers) = compile(wanted.clone(), dns.supports_split_dns(), &base);
        let unusable = found.unusable.join(", ");
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
        let applied = dns.apply(&config).await;
        let consequence = "names of the tailnet do not resolve on this machine";
        let remedy = "or accept it with `warren set --accept-dns=false`";
        if decision.lacks_upstreams {
            return Err(format!(
                "{consequence}: the nameserver lines of its resolv.conf name no server that can \
                 be asked for other names ({unusable:?}); correct them, {remedy}"
            ));
        }
        if let Err(error) = applied {
            return Err(format!(
                "{consequence}: {error}; make it possible, {remedy}"
            ));
        }
        if let Some(error) = &self.leftover {
            return Err(format!(
                "the resolv.conf from before an earlier run is not restored, so other names may \
                 not resolve on this machine: {error}"
            ));
        }
        Ok(())
    }

    async fn altered(&mut self) {
        let Self { dns, watch, .. } = self;
        let resolver = async {
            match dns {
                Some(dns) => dns.base_changed().await,
                None => std::future::pending().await,
            }
        };
        let routes = async {
            match watch {
                Some(watch) => watch.deleted().await,
                None => std::future::pending().await,
            }
            tracing::info!("rules or routes of ours were deleted; they are restored");
        };
        tokio::select! {
            () = resolver => (),
            () = routes => (),
        }
    }

    async fn restore(&mut self) {
        if let Some(dns) = &mut self.dns
            && let Err(error) = dns.revert().await
        {
            tracing::error!(%error, "the resolver settings are not restored");
        }
        if let Some(router) = &mut self.router
            && let Err(error) = router.cleanup().await
        {
            tracing::error!(%error, "routes or rules are left behind");
        }
        if let Some(firewall) = &mut self.firewall
            && let Err(error) = firewall.cleanup()
        {
            tracing::error!(%error, "rules of the packet filter are left behind");
        }
    }
}

/// Where the resolver settings of this machine are.
pub fn resolver_options(interface: &str, state_dir: &Path) -> ResolverOptions {
    ResolverOptions {
        state_dir: Some(state_dir.to_owned()),
        ..ResolverOptions::new(interface)
    }
}
