//! The filter in force, and its inputs.
//!
//! Messages come far more often than rules change. A filter is compiled only
//! when its rules, the addresses of this node, the routes it serves, the user's
//! wish to block everything, or the peers that hold a capability which the
//! rules name are different; counting goes on across the change.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_control_types::{FilterRule, Netmap};
use warren_filter::{
    CapabilityHolders, Filter, LocalAddresses, LocalSet, RuleProblem, capability_sources,
};
use warren_node_types::TailnetRanges;

use crate::NodePrefs;
use crate::host_config::single_addresses;

/// The inputs of a filter.
#[derive(Debug, Default, PartialEq)]
struct Inputs {
    rules: Vec<FilterRule>,
    local: LocalSet,
    holders: CapabilityHolders,
    shields_up: bool,
}

/// The filter in force.
#[derive(Debug)]
pub(crate) struct PacketFilter {
    ranges: TailnetRanges,
    inputs: Inputs,
    /// The networks that this machine is in, with its addresses there.
    networks: Vec<IpNet>,
    /// The capabilities that rules name as sources.
    capabilities: Vec<String>,
    filter: Arc<Filter>,
    jailed: Arc<Filter>,
    problems: Vec<RuleProblem>,
}

impl PacketFilter {
    /// A filter that lets nothing in, for a tailnet with these ranges.
    pub(crate) fn new(ranges: TailnetRanges) -> Self {
        let filter = Filter::block_all();
        Self {
            ranges,
            inputs: Inputs::default(),
            networks: Vec::new(),
            capabilities: Vec::new(),
            jailed: Arc::new(filter.jailed()),
            filter: Arc::new(filter),
            problems: Vec::new(),
        }
    }

    /// The filter for ordinary peers.
    pub(crate) fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// The filter for peers that may only reply.
    pub(crate) fn jailed(&self) -> &Arc<Filter> {
        &self.jailed
    }

    /// Sets the networks that this machine is in: as an exit node it does not open
    /// them. Counts from the next [`refresh`](Self::refresh).
    pub(crate) fn set_networks(&mut self, networks: Vec<IpNet>) {
        self.networks = networks;
    }

    /// The entries of the rules that could not be used.
    pub(crate) fn problems(&self) -> &[RuleProblem] {
        &self.problems
    }

    /// Brings the filter in line. `rules_changed`: whether those of the netmap
    /// may be others than last time. Returns whether the filter is a new one.
    pub(crate) fn refresh(
        &mut self,
        netmap: &Netmap,
        prefs: &NodePrefs,
        rules_changed: bool,
    ) -> bool {
        let mut changed = false;
        if rules_changed && !netmap.packet_filter().eq(&self.inputs.rules) {
            self.inputs.rules = netmap.packet_filter().cloned().collect();
            let names = capability_sources(&self.inputs.rules).into_iter();
            self.capabilities = names.map(str::to_owned).collect();
            changed = true;
        }
        let local = local(netmap, prefs, &self.networks, self.ranges);
        changed |= set(&mut self.inputs.local, local);
        changed |= set(
            &mut self.inputs.holders,
            holders(netmap, &self.capabilities),
        );
        changed |= set(&mut self.inputs.shields_up, prefs.shields_up);
        if changed {
            self.compile();
        }
        changed
    }

    fn compile(&mut self) {
        let inputs = &self.inputs;
        let local = inputs.local.clone();
        let (filter, problems) = if inputs.shields_up {
            (Filter::shields_up(local), Vec::new())
        } else {
            Filter::compile(&inputs.rules, local, &inputs.holders)
        };
        let filter = filter.keep_counts(&self.filter);
        self.problems = problems;
        self.jailed = Arc::new(filter.jailed());
        self.filter = Arc::new(filter);
    }
}

fn set<T: PartialEq>(to: &mut T, value: T) -> bool {
    let changed = *to != value;
    *to = value;
    changed
}

/// The destinations that are ours.
fn local(
    netmap: &Netmap,
    prefs: &NodePrefs,
    networks: &[IpNet],
    ranges: TailnetRanges,
) -> LocalSet {
    let own = netmap.self_node.as_ref();
    let addresses: Vec<IpAddr> = own.map(single_addresses).unwrap_or_default();
    // All that we advertise, approved or not: the server writes rules for what
    // it approved, and its own view of us need not name routes that we may not
    // use ourselves.
    LocalSet::new(&LocalAddresses {
        addresses: &addresses,
        advertised: &prefs.advertise_routes,
        host_networks: networks,
        host_addresses: &networks.iter().map(IpNet::addr).collect::<Vec<_>>(),
        ranges,
    })
}

/// The peers whose addresses `cap:` sources mean.
fn holders(netmap: &Netmap, capabilities: &[String]) -> CapabilityHolders {
    let mut holders = CapabilityHolders::new();
    for capability in capabilities {
        let peers = netmap.peers.values();
        for peer in peers.filter(|peer| peer.cap_map.has(capability)) {
            holders.add(capability, &peer.addresses);
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use serde_json::json;
    use warren_wire::ip::Protocol;

    /// A netmap from messages of the map stream.
    fn apply(netmap: &mut Netmap, message: serde_json::Value) {
        let message = serde_json::from_value(message).unwrap();
        netmap.apply(message, Duration::ZERO).unwrap();
    }

    fn start() -> Netmap {
        let mut netmap = Netmap::default();
        netmap.begin_stream();
        apply(
            &mut netmap,
            json!({
                "Node": {"ID": 1, "Addresses": ["100.64.0.1/32"], "AllowedIPs": ["100.64.0.1/32"]},
                "Peers": [
                    {"ID": 2, "Addresses": ["100.64.0.2/32"], "CapMap": {"example.com/x": null}},
                    {"ID": 3, "Addresses": ["100.64.0.3/32"]},
                ],
            }),
        );
        netmap
    }

    #[test]
    fn an_exit_node_opens_the_internet_and_not_the_network_it_stands_in() {
        let mut netmap = Netmap::default();
        netmap.begin_stream();
        let everything = json!({"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]});
        apply(
            &mut netmap,
            json!({
                "Node": {"ID": 1, "Addresses": ["100.64.0.1/32"], "AllowedIPs": ["100.64.0.1/32", "0.0.0.0/0"]},
                "PacketFilters": {"base": [everything]},
            }),
        );
        let prefs = NodePrefs {
            advertise_routes: vec!["0.0.0.0/0".parse().unwrap()],
            ..NodePrefs::default()
        };
        let mut filter = PacketFilter::new(TailnetRanges::DEFAULT);
        let reaches = |filter: &PacketFilter, destination: [u8; 4]| {
            filter.filter().allows(
                Protocol::TCP,
                [100, 64, 0, 2].into(),
                destination.into(),
                80,
            )
        };
        filter.refresh(&netmap, &prefs, true);
        assert!(reaches(&filter, [203, 0, 113, 77]));
        filter.set_networks(vec!["203.0.113.5/24".parse().unwrap()]);
        assert!(filter.refresh(&netmap, &prefs, false));
        assert!(!reaches(&filter, [203, 0, 113, 77]));
        assert!(reaches(&filter, [203, 0, 113, 5]), "the machine itself");
        assert!(reaches(&filter, [198, 51, 100, 1]));
    }

    fn rule(source: &str, port: u16) -> serde_json::Value {
        json!({"SrcIPs": [source], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": port, "Last": port}}]})
    }

    fn allows(filter: &PacketFilter, source: u8, port: u16) -> bool {
        let source = IpAddr::from([100, 64, 0, source]);
        filter
            .filter()
            .allows(Protocol::TCP, source, IpAddr::from([100, 64, 0, 1]), port)
    }

    #[test]
    fn named_filters_come_and_go_one_by_one() {
        let (mut netmap, prefs) = (start(), NodePrefs::default());
        let mut filter = PacketFilter::new(TailnetRanges::DEFAULT);
        let mut follow = |netmap: &Netmap| {
            let new = filter.refresh(netmap, &prefs, true);
            (new, [22, 80, 443].map(|port| allows(&filter, 2, port)))
        };
        assert_eq!(follow(&netmap), (true, [false; 3]), "our address came");
        assert_eq!(follow(&netmap), (false, [false; 3]));
        apply(
            &mut netmap,
            json!({"PacketFilters": {"base": [rule("*", 22)], "more": [rule("*", 80)]}}),
        );
        assert_eq!(follow(&netmap), (true, [true, true, false]));
        apply(
            &mut netmap,
            json!({"PacketFilters": {"more": [rule("*", 443)]}}),
        );
        assert_eq!(follow(&netmap), (true, [true, false, true]));
        assert_eq!(follow(&netmap), (false, [true, false, true]));
        apply(&mut netmap, json!({"PacketFilters": {"base": null}}));
        assert_eq!(follow(&netmap), (true, [false, false, true]));
        apply(
            &mut netmap,
            json!({"PacketFilters": {"*": null, "new": [rule("*", 80)]}}),
        );
        assert_eq!(follow(&netmap), (true, [false, true, false]));
        apply(&mut netmap, json!({"PacketFilter": [rule("*", 22)]}));
        assert_eq!(follow(&netmap), (true, [true, true, false]));
    }

    #[test]
    fn peers_that_gain_or_lose_a_capability_count_at_once() {
        let (mut netmap, prefs) = (start(), NodePrefs::default());
        apply(
            &mut netmap,
            json!({"PacketFilter": [rule("cap:example.com/x", 22)]}),
        );
        let mut filter = PacketFilter::new(TailnetRanges::DEFAULT);
        assert!(filter.refresh(&netmap, &prefs, true));
        assert_eq!([2, 3].map(|peer| allows(&filter, peer, 22)), [true, false]);
        assert!(!filter.refresh(&netmap, &prefs, false));
        apply(
            &mut netmap,
            json!({"PeersChanged": [
                {"ID": 3, "Addresses": ["100.64.0.3/32"], "CapMap": {"example.com/x": null}},
            ]}),
        );
        assert!(filter.refresh(&netmap, &prefs, false));
        assert_eq!([2, 3].map(|peer| allows(&filter, peer, 22)), [true, true]);
        apply(&mut netmap, json!({"PeersRemoved": [2]}));
        assert!(filter.refresh(&netmap, &prefs, false));
        assert_eq!([2, 3].map(|peer| allows(&filter, peer, 22)), [false, true]);
    }

    #[test]
    fn unreadable_rules_are_reported_and_the_others_work() {
        let mut netmap = start();
        let mut filter = PacketFilter::new(TailnetRanges::DEFAULT);
        apply(
            &mut netmap,
            json!({"PacketFilter": [rule("nonsense", 22), rule("100.64.0.2", 22)]}),
        );
        assert!(filter.refresh(&netmap, &NodePrefs::default(), true));
        assert!(allows(&filter, 2, 22));
        let reported: Vec<String> = filter.problems().iter().map(ToString::to_string).collect();
        assert_eq!(
            reported,
            ["rule 0: SrcIPs entry \"nonsense\" is not an address, a prefix, a range or *"]
        );
        let shields = NodePrefs {
            shields_up: true,
            ..NodePrefs::default()
        };
        assert!(filter.refresh(&netmap, &shields, false));
        assert!(!allows(&filter, 2, 22) && filter.problems().is_empty());
    }
}
