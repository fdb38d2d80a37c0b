//! The `DNSConfig` of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use warren_control_types::{CapMap, DnsConfig, DnsRecord, NodeId, Resolver};

use super::{Dns, DnsName, ExtraRecord, Nameserver, RecordData};
use crate::records::NodeRecord;
use crate::view::View;

/// The longest chain of aliases.
const MAX_ALIASES: usize = 8;
/// The beginning of attributes of the policy about NextDNS.
const NEXTDNS: &str = "nextdns:";
/// The attribute that keeps facts about the device from NextDNS.
const NO_DEVICE_INFO: &str = "nextdns:no-device-info";
/// The longest profile of NextDNS.
const MAX_PROFILE: usize = 64;

impl View {
    /// The settings of name resolution that are in force.
    #[must_use]
    pub fn dns(&self) -> Dns<'_> {
        Dns::new(&self.config.dns, self.directory.dns())
    }

    /// The addresses to which a record leads now.
    #[must_use]
    pub fn addresses_of(&self, record: &ExtraRecord) -> BTreeSet<IpAddr> {
        self.record_addresses(None, record, &self.records_by_name())
    }

    pub(crate) fn render_dns(&self, id: NodeId) -> DnsConfig {
        let dns = self.dns();
        let Some(node) = self.directory.node(id) else {
            return DnsConfig::default();
        };
        let attributes = self.access.attributes_of(node);
        let servers = |list: &[Nameserver]| -> Vec<Resolver> {
            list.iter()
                .map(|server| Resolver {
                    addr: self.for_node(server, node, &attributes),
                    ..Resolver::default()
                })
                .collect()
        };
        let mut routes: BTreeMap<String, Vec<Resolver>> = dns
            .split()
            .map(|(suffix, list)| (suffix.to_string(), servers(list)))
            .collect();
        let mut domains = Vec::new();
        if dns.magic_dns() {
            // No resolver: the node answers for this zone itself, unknown names in it
            // included.
            let zone = &self.config.base_domain;
            routes.entry(zone.clone()).or_default();
            domains.push(zone.clone());
        }
        let search = dns.search_domains().iter().map(ToString::to_string);
        domains.extend(search.filter(|domain| *domain != self.config.base_domain));
        let global = servers(dns.nameservers());
        let (resolvers, fallback_resolvers) = match dns.override_local() {
            true => (global, Vec::new()),
            false => (Vec::new(), global),
        };
        DnsConfig {
            resolvers,
            fallback_resolvers,
            routes,
            domains,
            proxied: dns.magic_dns(),
            extra_records: self.render_records(id),
            ..DnsConfig::default()
        }
    }

    fn records_by_name(&self) -> BTreeMap<&DnsName, Vec<&ExtraRecord>> {
        let mut by_name: BTreeMap<&DnsName, Vec<&ExtraRecord>> = BTreeMap::new();
        for (_, record) in self.dns().records() {
            by_name.entry(&record.name).or_default().push(record);
        }
        by_name
    }

    fn render_records(&self, viewer: NodeId) -> Vec<DnsRecord> {
        let by_name = self.records_by_name();
        let mut rendered = Vec::new();
        for (name, records) in &by_name {
            let addresses = records
                .iter()
                .flat_map(|record| self.record_addresses(Some(viewer), record, &by_name));
            // The same address may come from more than one source.
            for address in addresses.collect::<BTreeSet<_>>() {
                rendered.push(DnsRecord {
                    name: name.to_string(),
                    kind: match address {
                        IpAddr::V4(_) => "A",
                        IpAddr::V6(_) => "AAAA",
                    }
                    .to_owned(),
                    value: address.to_string(),
                });
            }
        }
        rendered
    }

    fn record_addresses(
        &self,
        viewer: Option<NodeId>,
        record: &ExtraRecord,
        by_name: &BTreeMap<&DnsName, Vec<&ExtraRecord>>,
    ) -> BTreeSet<IpAddr> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut next = vec![record];
        for _ in 0..=MAX_ALIASES {
            for record in std::mem::take(&mut next) {
                match &record.data {
                    RecordData::A(ip) => drop(found.insert(IpAddr::V4(*ip))),
                    RecordData::Aaaa(ip) => drop(found.insert(IpAddr::V6(*ip))),
                    RecordData::Cname(target) if seen.insert(target) => {
                        found.extend(self.node_addresses(viewer, target));
                        next.extend(by_name.get(target).into_iter().flatten());
                    }
                    RecordData::Cname(_) => {}
                }
            }
        }
        found
    }

    /// The addresses of the node with this name or full name.
    fn node_addresses(&self, viewer: Option<NodeId>, name: &DnsName) -> Vec<IpAddr> {
        let zone = self.config.base_domain.as_str();
        let mut addresses = Vec::new();
        let named = label_in(name, zone).map(|label| self.directory.nodes_named(label));
        for node in named.into_iter().flatten() {
            // Nodes learn nothing about peers that they do not see.
            let is_seen =
                viewer.is_none_or(|viewer| viewer == node.id || self.can_see(viewer, node.id));
            if !is_seen || !self.standing(node.id).is_valid() {
                continue;
            }
            let only_v6 = match viewer {
                Some(viewer) => self.is_without_ipv4(viewer, node),
                None => self.access.is_without_ipv4(node),
            };
            if !only_v6 {
                addresses.push(IpAddr::from(node.address.v4()));
            }
            addresses.push(IpAddr::from(node.address.v6()));
        }
        addresses
    }

    /// The nodes to which aliases lead at the moment, whether they are seen or not.
    pub(crate) fn alias_nodes(&self) -> BTreeSet<NodeId> {
        let zone = self.config.base_domain.as_str();
        let labels = self.dns().alias_targets();
        let labels = labels.filter_map(|target| label_in(target, zone));
        let nodes = labels.flat_map(|label| self.directory.nodes_named(label));
        nodes.map(|node| node.id).collect()
    }

    /// Whether an alias leads to the node.
    pub(crate) fn is_alias_target(&self, id: NodeId) -> bool {
        let zone = self.config.base_domain.as_str();
        let node = self.directory.node(id);
        node.is_some_and(|node| {
            let mut targets = self.dns().alias_targets();
            targets.any(|target| label_in(target, zone) == Some(node.name.as_str()))
        })
    }

    /// The address of a name server for this node: that of NextDNS has the profile of the
    /// policy, and facts about the device that its owner sees there.
    fn for_node(&self, server: &Nameserver, node: &NodeRecord, attributes: &CapMap) -> String {
        if !server.is_nextdns() {
            return server.to_string();
        }
        let mut address = match profile(attributes) {
            Some(profile) => format!("https://dns.nextdns.io/{profile}"),
            None => server.to_string(),
        };
        if attributes.contains_key(NO_DEVICE_INFO) {
            return address;
        }
        let ip = match self.access.is_without_ipv4(node) {
            true => IpAddr::from(node.address.v6()),
            false => IpAddr::from(node.address.v4()),
        };
        let facts = [
            ("device_name", node.name.as_str()),
            ("device_model", node.hostinfo.os.as_str()),
            ("device_ip", &ip.to_string()),
        ];
        for (name, value) in facts {
            address.push(if address.contains('?') { '&' } else { '?' });
            address.push_str(name);
            address.push('=');
            escape_into(&mut address, value);
        }
        address
    }
}

/// The label of a node that has this name or full name.
fn label_in<'a>(name: &'a DnsName, zone: &str) -> Option<&'a str> {
    match name.is_single_label() {
        true => Some(name.as_str()),
        false => name.as_str().strip_suffix(zone)?.strip_suffix('.'),
    }
}

/// The profile of NextDNS that the policy gives a node: the first one, in order.
fn profile(attributes: &CapMap) -> Option<&str> {
    let mut profiles = attributes.0.keys().filter_map(|name| {
        let profile = name.strip_prefix(NEXTDNS)?;
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        // It becomes a part of a URL.
        let is_profile = name != NO_DEVICE_INFO
            && (1..=MAX_PROFILE).contains(&profile.len())
            && profile.bytes().all(good)
            && profile.bytes().any(|b| b != b'.');
        is_profile.then_some(profile)
    });
    profiles.next()
}

/// Appends a text as a value in the query of a URL.
fn escape_into(out: &mut String, text: &str) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            // Writing to a text does not fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
}
