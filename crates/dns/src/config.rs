//! The netmap's DNS configuration, worked out for answering.
//!
//! All names in here are lower case and end with a dot; [`canonical`] makes
//! them so. Upstreams are plain addresses: resolvers of other kinds (DNS over
//! HTTPS) are not spoken yet and are listed in
//! [`ResolverConfig::unsupported`], for a warning to the user.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use warren_control_types::{DnsConfig, Node, Resolver};

use crate::{SERVICE_NAME, SERVICE_V4, SERVICE_V6, is_service};

/// Capability of our own node: answer with the IPv6 addresses of nodes too.
const CAP_AAAA: &str = "magicdns-aaaa";

/// Capability of a node: it answers for all names below its own.
const CAP_SUBDOMAINS: &str = "dns-subdomain-resolve";

/// The settings beside the netmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The user wants the tailnet's DNS (preference `CorpDNS`).
    pub accept_dns: bool,
    /// Our own key has expired: nothing is configured at all.
    pub key_expired: bool,
}

/// Everything the resolver has to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolverConfig {
    /// Addresses by full name. A name without addresses exists, but has none.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Names by address.
    pub names: BTreeMap<IpAddr, String>,
    /// Hosts that answer for all names below theirs.
    pub subdomain_hosts: BTreeSet<String>,
    /// Domains for which only we answer.
    pub local_domains: BTreeSet<String>,
    /// Upstreams by suffix; `.` is for everything else.
    pub routes: BTreeMap<String, Vec<SocketAddr>>,
    /// Domains to try for short names, without the dot at the end.
    pub search_domains: Vec<String>,
    /// Single names of the tailnet outside its domains, which the operating
    /// system must send here.
    pub extra_names: BTreeSet<String>,
    /// Whether names of nodes resolve (MagicDNS).
    pub magic_dns: bool,
    /// Whether we have IPv6 addresses only.
    pub v6_only: bool,
    /// Resolvers in the configuration that we cannot use.
    pub unsupported: BTreeSet<String>,
}

/// A name in lower case (ASCII only) and with a dot at the end.
pub fn canonical(name: &str) -> String {
    let mut name = name.trim_start_matches('.').to_ascii_lowercase();
    if !name.ends_with('.') {
        name.push('.');
    }
    name
}

/// Whether `name` is `suffix` or below it; both canonical.
pub fn is_under(name: &str, suffix: &str) -> bool {
    suffix == "."
        || name
            .strip_suffix(suffix)
            .is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// The reverse zones of the tailnet's addresses: 100.64.0.0/10 and
/// fd7a:115c:a1e0::/48.
fn reverse_zones() -> impl Iterator<Item = String> {
    (64..=127)
        .map(|second| format!("{second}.100.in-addr.arpa."))
        .chain(std::iter::once(
            "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa.".to_owned(),
        ))
}

/// An upstream as an address; `None` for other kinds, and for the service
/// addresses: our own resolver would forward each question to itself.
fn upstream(resolver: &Resolver) -> Option<SocketAddr> {
    let text = resolver.addr.as_str();
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 53),
        Err(_) => text.parse().ok()?,
    };
    (!is_service(address.ip().to_canonical())).then_some(address)
}

/// The addresses of a node, without their prefix lengths.
fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    node.addresses
        .iter()
        .filter(|net| net.prefix_len() == net.max_prefix_len())
        .map(|net| net.addr())
}

impl ResolverConfig {
    /// Works out the configuration from the parts of a netmap.
    pub fn from_netmap<'a>(
        dns: &DnsConfig,
        self_node: &Node,
        peers: impl IntoIterator<Item = &'a Node>,
        options: Options,
    ) -> Self {
        let mut config = Self::default();
        if options.key_expired {
            return config;
        }
        let own: Vec<IpAddr> = addresses(self_node).collect();
        config.v6_only = !own.is_empty() && own.iter().all(IpAddr::is_ipv6);
        let want_v6 = self_node.cap_map.has(CAP_AAAA);

        config.add_host(SERVICE_NAME, [SERVICE_V4.into(), SERVICE_V6.into()]);
        config.add_node(self_node, want_v6);
        for peer in peers {
            config.add_node(peer, want_v6);
        }
        config.add_extra_records(dns);

        if !options.accept_dns {
            return config;
        }
        config.magic_dns = dns.proxied;
        config.search_domains = dns
            .domains
            .iter()
            .map(|domain| domain.trim_end_matches('.').to_ascii_lowercase())
            .collect();
        if dns.proxied {
            // The network's suffix follows the first label of our own name.
            if let Some((_, suffix)) = self_node.name.split_once('.')
                && !suffix.trim_end_matches('.').is_empty()
            {
                config.local_domains.insert(canonical(suffix));
            }
            config.local_domains.extend(reverse_zones());
        }
        config.add_upstreams(".", &dns.resolvers);
        for (suffix, resolvers) in &dns.routes {
            if resolvers.is_empty() {
                config.local_domains.insert(canonical(suffix));
            } else {
                config.add_upstreams(suffix, resolvers);
            }
        }
        for record in &dns.extra_records {
            let name = canonical(&record.name);
            let covered = config
                .local_domains
                .iter()
                .chain(config.routes.keys())
                .any(|suffix| suffix != "." && is_under(&name, suffix));
            if !covered && config.hosts.contains_key(&name) {
                config.extra_names.insert(name);
            }
        }
        config
    }

    fn add_host(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        let name = canonical(name);
        if name == "." {
            return;
        }
        let known = self.hosts.entry(name.clone()).or_default();
        for ip in addresses {
            if !known.contains(&ip) {
                known.push(ip);
            }
            self.names.entry(ip).or_insert_with(|| name.clone());
        }
    }

    fn add_node(&mut self, node: &Node, want_v6: bool) {
        let all: Vec<IpAddr> = addresses(node).collect();
        let has_v4 = all.iter().any(IpAddr::is_ipv4);
        let shown: Vec<IpAddr> = all
            .iter()
            .copied()
            .filter(|ip| match ip {
                IpAddr::V4(_) => !self.v6_only,
                IpAddr::V6(_) => self.v6_only || !has_v4 || want_v6,
            })
            .collect();
        self.add_host(&node.name, shown);
        // Backwards, every address has its name.
        let name = canonical(&node.name);
        if name != "." {
            for ip in all {
                self.names.entry(ip).or_insert_with(|| name.clone());
            }
            if node.cap_map.has(CAP_SUBDOMAINS) {
                self.subdomain_hosts.insert(name);
            }
        }
    }

    fn add_extra_records(&mut self, dns: &DnsConfig) {
        for record in &dns.extra_records {
            let Ok(ip) = record.value.parse::<IpAddr>() else {
                continue;
            };
            let fits = match record.kind.as_str() {
                "" => true,
                "A" => ip.is_ipv4(),
                "AAAA" => ip.is_ipv6(),
                _ => false,
            };
            if fits {
                let name = canonical(&record.name);
                let known = self.hosts.entry(name).or_default();
                if !known.contains(&ip) {
                    known.push(ip);
                }
            }
        }
    }

    fn add_upstreams(&mut self, suffix: &str, resolvers: &[Resolver]) {
        let mut usable = Vec::new();
        for resolver in resolvers {
            match upstream(resolver) {
                Some(address) => usable.push(address),
                None => {
                    self.unsupported.insert(resolver.addr.clone());
                }
            }
        }
        let suffix = if suffix == "." {
            ".".to_owned()
        } else {
            canonical(suffix)
        };
        // A suffix whose resolvers are all unusable must fail rather than leak
        // its names to the default resolvers.
        if suffix != "." || !usable.is_empty() {
            self.routes.entry(suffix).or_default().extend(usable);
        }
    }

    /// The longest domain that covers `name` (canonical): ours, or with
    /// upstreams.
    pub fn route(&self, name: &str) -> Route<'_> {
        let local = self
            .local_domains
            .iter()
            .filter(|suffix| is_under(name, suffix))
            .max_by_key(|suffix| suffix.len());
        let routed = self
            .routes
            .iter()
            .filter(|(suffix, _)| is_under(name, suffix))
            .max_by_key(|(suffix, _)| suffix.len());
        match (local, routed) {
            (Some(zone), Some((suffix, _))) if suffix.len() <= zone.len() => Route::Local(zone),
            (Some(zone), None) => Route::Local(zone),
            (_, Some((_, upstreams))) => Route::Upstreams(upstreams),
            (None, None) => Route::None,
        }
    }
}

/// The servers that answer for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// We answer; the zone that contains the name.
    Local(&'a str),
    /// These upstreams, in this order of preference.
    Upstreams(&'a [SocketAddr]),
    /// No server is configured.
    None,
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(crate) fn node(name: &str, addresses: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    pub(crate) fn example(change: impl FnOnce(&mut DnsConfig, &mut Node)) -> ResolverConfig {
        let mut dns: DnsConfig = serde_json::from_value(serde_json::json!({
            "Resolvers": [{"Addr": "9.9.9.9"}],
            "Routes": {"corp.example": [{"Addr": "10.0.0.53:5353"}], "local.example.": null,
                       "doh.example": [{"Addr": "https://dns.example/q"}]},
            "Domains": ["Net.Example.com"],
            "Proxied": true,
            "ExtraRecords": [{"Name": "Grafana.net.example.com", "Value": "100.64.0.9"},
                             {"Name": "single.example.org", "Type": "A", "Value": "100.64.0.8"},
                             {"Name": "text.example.org", "Type": "TXT", "Value": "x"}],
        }))
        .unwrap();
        let mut own = node(
            "Laptop.net.example.com.",
            &["100.64.0.1/32", "fd7a:115c:a1e0::1/128"],
        );
        change(&mut dns, &mut own);
        let peers = [
            node(
                "db.net.example.com.",
                &["100.64.0.2/32", "fd7a:115c:a1e0::2/128"],
            ),
            node("six.net.example.com.", &["fd7a:115c:a1e0::6/128"]),
            node("", &["100.64.0.3/32"]),
        ];
        let options = Options {
            accept_dns: true,
            key_expired: false,
        };
        ResolverConfig::from_netmap(&dns, &own, &peers, options)
    }

    #[test]
    fn the_longest_domain_decides() {
        let config = example(|_, _| ());
        assert_eq!(
            config.route("nope.net.example.com."),
            Route::Local("net.example.com.")
        );
        assert_eq!(
            config.route("net.example.com."),
            Route::Local("net.example.com.")
        );
        assert_eq!(
            config.route("xnet.example.com."),
            Route::Upstreams(&["9.9.9.9:53".parse().unwrap()])
        );
        assert_eq!(
            config.route("a.corp.example."),
            Route::Upstreams(&["10.0.0.53:5353".parse().unwrap()])
        );
        assert_eq!(
            config.route("b.local.example."),
            Route::Local("local.example.")
        );
        assert_eq!(
            config.route("9.9.100.100.in-addr.arpa."),
            Route::Local("100.100.in-addr.arpa.")
        );
        assert_eq!(config.route("x.doh.example."), Route::Upstreams(&[]));
        assert!(config.unsupported.contains("https://dns.example/q"));
    }

    #[test]
    fn own_service_addresses_are_no_upstreams() {
        let config = example(|dns, _| {
            for addr in ["100.100.100.100", "[fd7a:115c:a1e0::53]:53"] {
                let resolver = Resolver {
                    addr: addr.to_owned(),
                    ..Resolver::default()
                };
                dns.resolvers.push(resolver.clone());
                dns.routes.insert("loop.example".to_owned(), vec![resolver]);
            }
        });
        assert_eq!(
            config.route("example.org."),
            Route::Upstreams(&["9.9.9.9:53".parse().unwrap()])
        );
        assert_eq!(config.route("a.loop.example."), Route::Upstreams(&[]));
        assert!(config.unsupported.contains("100.100.100.100"));
    }

    #[test]
    fn hosts_show_the_family_that_fits() {
        let config = example(|_, _| ());
        let v4 = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        assert_eq!(config.hosts["laptop.net.example.com."], v4("100.64.0.1"));
        assert_eq!(config.hosts["db.net.example.com."], v4("100.64.0.2"));
        assert_eq!(
            config.hosts["six.net.example.com."],
            v4("fd7a:115c:a1e0::6")
        );
        assert_eq!(config.hosts["grafana.net.example.com."], v4("100.64.0.9"));
        assert!(!config.hosts.contains_key("text.example.org."));
        assert_eq!(
            config.extra_names,
            BTreeSet::from(["single.example.org.".to_owned()])
        );
        assert_eq!(config.search_domains, ["net.example.com"]);

        let both = example(|_, own| {
            own.cap_map.0.insert(CAP_AAAA.to_owned(), Vec::new());
        });
        assert_eq!(both.hosts["db.net.example.com."].len(), 2);
        let six = example(|_, own| own.addresses = vec!["fd7a:115c:a1e0::1/128".parse().unwrap()]);
        assert!(six.v6_only);
        assert_eq!(six.hosts["db.net.example.com."], v4("fd7a:115c:a1e0::2"));
    }

    #[test]
    fn refusing_dns_keeps_the_hosts_only() {
        let own = node("a.net.example.", &["100.64.0.1/32"]);
        let dns = DnsConfig {
            proxied: true,
            ..DnsConfig::default()
        };
        let with = |accept_dns, key_expired| {
            ResolverConfig::from_netmap(
                &dns,
                &own,
                [],
                Options {
                    accept_dns,
                    key_expired,
                },
            )
        };
        let refused = with(false, false);
        assert!(refused.hosts.contains_key("a.net.example."));
        assert!(
            refused.local_domains.is_empty() && refused.routes.is_empty() && !refused.magic_dns
        );
        assert_eq!(with(true, true), ResolverConfig::default());
    }
}
