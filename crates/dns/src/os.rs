//! The settings of the operating system's resolver.
//!
//! In order, the first that fits:
//! 1. there is nothing to resolve: the system is left alone;
//! 2. only default resolvers, and no names of ours: they are handed to the
//!    system, which then asks them itself;
//! 3. default resolvers and more: the system asks us about everything;
//! 4. some domains only, and the system can split: it asks us (or, if there is
//!    one plain set of resolvers for all of them, those) about these domains;
//! 5. some domains only, and the system cannot split: it asks us about
//!    everything, and we pass the rest to the resolvers it had before. When it had
//!    none, it is left alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::config::ResolverConfig;
use crate::{SERVICE_V4, SERVICE_V6, is_service};

/// The settings of the system's resolver without us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseOs {
    /// The name servers, best first.
    pub nameservers: Vec<SocketAddr>,
    /// The search domains.
    pub search_domains: Vec<String>,
}

/// The settings to apply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OsDnsDecision {
    /// Servers to ask; empty: leave the system alone (and undo what was set).
    pub nameservers: Vec<IpAddr>,
    /// Domains to try for short names.
    pub search_domains: Vec<String>,
    /// The domains for which `nameservers` are asked; empty: all.
    pub match_domains: Vec<String>,
    /// The system is left alone because all its names would come to us, and there is
    /// no resolver to pass the others to.
    pub lacks_upstreams: bool,
}

impl OsDnsDecision {
    /// Whether the system is left alone.
    pub fn is_nothing(&self) -> bool {
        self.nameservers.is_empty() && self.search_domains.is_empty()
    }
}

/// Decides about the settings of the system, and completes the configuration of our own
/// resolver where it takes over from the system's (case 5).
pub fn compile(
    mut config: ResolverConfig,
    can_split: bool,
    base: &BaseOs,
) -> (OsDnsDecision, ResolverConfig) {
    let ours = if config.v6_only {
        IpAddr::V6(SERVICE_V6)
    } else {
        IpAddr::V4(SERVICE_V4)
    };
    let search_domains = config.search_domains.clone();
    let match_domains = match_domains(&config);
    let default = config.routes.get(".").cloned().unwrap_or_default();

    // 1. Nothing to resolve.
    if default.is_empty() && match_domains.is_empty() {
        return (
            OsDnsDecision {
                search_domains,
                ..OsDnsDecision::default()
            },
            config,
        );
    }
    // 2. Default resolvers only.
    if let Some(nameservers) = plain(&default)
        && match_domains.is_empty()
    {
        return (
            OsDnsDecision {
                nameservers,
                search_domains,
                ..OsDnsDecision::default()
            },
            config,
        );
    }
    // 3. Default resolvers and more.
    if !default.is_empty() {
        return (
            OsDnsDecision {
                nameservers: vec![ours],
                search_domains,
                ..OsDnsDecision::default()
            },
            config,
        );
    }
    // 4. Some domains, and the system can split.
    if can_split {
        let nameservers = single_set(&config).unwrap_or_else(|| vec![ours]);
        return (
            OsDnsDecision {
                nameservers,
                search_domains,
                match_domains,
                ..OsDnsDecision::default()
            },
            config,
        );
    }
    // 5. Some domains, and the system cannot split.
    let upstreams: Vec<SocketAddr> = base
        .nameservers
        .iter()
        .copied()
        .filter(|to| !is_service(to.ip()))
        .collect();
    if upstreams.is_empty() {
        let decision = OsDnsDecision {
            lacks_upstreams: true,
            ..OsDnsDecision::default()
        };
        return (decision, config);
    }
    config.routes.insert(".".to_owned(), upstreams);
    let mut search_domains = search_domains;
    for domain in &base.search_domains {
        if !search_domains.contains(domain) {
            search_domains.push(domain.clone());
        }
    }
    (
        OsDnsDecision {
            nameservers: vec![ours],
            search_domains,
            ..OsDnsDecision::default()
        },
        config,
    )
}

/// The domains that must come to us or to particular upstreams, without the
/// dot at the end.
fn match_domains(config: &ResolverConfig) -> Vec<String> {
    let all: BTreeSet<&String> = config
        .local_domains
        .iter()
        .chain(config.routes.keys().filter(|suffix| *suffix != "."))
        .chain(&config.extra_names)
        .collect();
    all.into_iter()
        .map(|name| name.trim_end_matches('.').to_owned())
        .collect()
}

/// The servers as the system takes them: addresses with port 53 only.
fn plain(upstreams: &[SocketAddr]) -> Option<Vec<IpAddr>> {
    (!upstreams.is_empty() && upstreams.iter().all(|to| to.port() == 53))
        .then(|| upstreams.iter().map(SocketAddr::ip).collect())
}

/// The one set of resolvers for all domains, where nothing is answered by us.
fn single_set(config: &ResolverConfig) -> Option<Vec<IpAddr>> {
    if !config.local_domains.is_empty() || !config.extra_names.is_empty() {
        return None;
    }
    let mut sets = config
        .routes
        .iter()
        .filter(|(suffix, _)| *suffix != ".")
        .map(|(_, set)| set);
    let first = sets.next()?;
    if sets.all(|set| set == first) {
        plain(first)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(local: &[&str], routes: &[(&str, &[&str])]) -> ResolverConfig {
        ResolverConfig {
            local_domains: local.iter().map(|name| (*name).to_owned()).collect(),
            routes: routes
                .iter()
                .map(|(suffix, set)| {
                    (
                        (*suffix).to_owned(),
                        set.iter().map(|to| to.parse().unwrap()).collect(),
                    )
                })
                .collect(),
            search_domains: vec!["net.example".to_owned()],
            ..ResolverConfig::default()
        }
    }

    #[test]
    fn the_first_case_that_fits_decides() {
        let base = BaseOs {
            nameservers: ["192.168.1.1:53", "100.100.100.100:53"]
                .map(|to| to.parse().unwrap())
                .into(),
            search_domains: vec!["lan".into(), "net.example".into()],
        };
        type Case<'a> = (ResolverConfig, bool, &'a [&'a str], &'a [&'a str]);
        let table: &[Case<'_>] = &[
            (config(&[], &[]), true, &[], &[]),
            (
                config(&[], &[(".", &["9.9.9.9:53", "1.1.1.1:53"])]),
                true,
                &["9.9.9.9", "1.1.1.1"],
                &[],
            ),
            (
                config(&[], &[(".", &["9.9.9.9:5353"])]),
                true,
                &["100.100.100.100"],
                &[],
            ),
            (
                config(&["net.example."], &[(".", &["9.9.9.9:53"])]),
                true,
                &["100.100.100.100"],
                &[],
            ),
            (
                config(&["net.example."], &[]),
                true,
                &["100.100.100.100"],
                &["net.example"],
            ),
            (
                config(&[], &[("a.", &["10.0.0.1:53"]), ("b.", &["10.0.0.1:53"])]),
                true,
                &["10.0.0.1"],
                &["a", "b"],
            ),
            (
                config(&[], &[("a.", &["10.0.0.1:53"]), ("b.", &["10.0.0.2:53"])]),
                true,
                &["100.100.100.100"],
                &["a", "b"],
            ),
            (
                config(&["net.example."], &[]),
                false,
                &["100.100.100.100"],
                &[],
            ),
        ];
        for (config, can_split, nameservers, match_domains) in table {
            let (decision, _) = compile(config.clone(), *can_split, &base);
            let found: Vec<String> = decision.nameservers.iter().map(IpAddr::to_string).collect();
            assert_eq!(found, *nameservers, "{config:?}");
            assert_eq!(decision.match_domains, *match_domains, "{config:?}");
        }
        let (decision, completed) = compile(config(&["net.example."], &[]), false, &base);
        assert_eq!(
            completed.routes["."],
            ["192.168.1.1:53".parse().unwrap()],
            "never back to ourselves"
        );
        assert_eq!(decision.search_domains, ["net.example", "lan"]);
    }

    #[test]
    fn system_is_not_taken_over_without_a_resolver_for_the_other_names() {
        for servers in [vec![], vec!["100.100.100.100:53".parse().unwrap()]] {
            let base = BaseOs {
                nameservers: servers,
                ..BaseOs::default()
            };
            let (decision, _) = compile(config(&["net.example."], &[]), false, &base);
            assert!(decision.lacks_upstreams && decision.is_nothing());
            // Where the system splits, or the tailnet has resolvers, none are needed.
            let (decision, _) = compile(config(&["net.example."], &[]), true, &base);
            assert!(!decision.lacks_upstreams && !decision.is_nothing());
            let default = [(".", &["9.9.9.9:53"][..])];
            let (decision, _) = compile(config(&["net.example."], &default), false, &base);
            assert!(!decision.lacks_upstreams && !decision.is_nothing());
        }
    }

    #[test]
    fn a_node_with_ipv6_only_uses_the_other_service_address() {
        let config = ResolverConfig {
            v6_only: true,
            ..config(&["net.example."], &[])
        };
        assert_eq!(
            compile(config, true, &BaseOs::default()).0.nameservers,
            [IpAddr::V6(SERVICE_V6)]
        );
    }
}
