//! The packet filter with its counters, whether a connection may work as far
//! as this node can tell, and the counters that the reference publishes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use warren_control_types::Node;
use warren_dataplane::{DropReason as PathDrop, Drops, ServiceAddresses};
use warren_filter::{Count, Direction, DropReason, Filter, Without};
use warren_node_core::Engine;
use warren_paths::Destination;
use warren_wire::ip::Protocol;

use super::EngineTask;
use crate::daemon::status::region_code;
use crate::localapi::filter::{
    Counted, FilterReport, RuleReport, WhyAnswer, WhyQuestion, WhyVerdict, rule_line,
};
use crate::localapi::metrics::{Metric, MetricKind};

impl EngineTask {
    /// The packet filter in force.
    pub(in crate::daemon) fn filter_report(&self) -> FilterReport {
        filter_report(&self.engine)
    }

    /// Whether a connection may work.
    pub(in crate::daemon) fn why(&self, question: WhyQuestion) -> WhyAnswer {
        why(&self.engine, question)
    }

    /// Rules that could not be used, for the list of what is wrong.
    pub(super) fn filter_health(&self) -> Option<String> {
        let problems = self.engine.filter_problems();
        let first = problems.first()?;
        let count = problems.len();
        Some(format!(
            "the coordination server sent packet filter rules that cannot be used in full; \
             {count} left out, the first: {first} (see: warren debug filter)"
        ))
    }

    /// The counters under the reference's names.
    pub(super) fn user_metrics(&self) -> Vec<Metric> {
        let mut metrics = dropped(self.engine.filter(), &self.shared.drops);
        let gauge = |name, help, labels, value: f64| Metric {
            name,
            kind: MetricKind::Gauge,
            help,
            labels,
            value,
        };
        let offered = &self.engine.prefs().advertise_routes;
        let own = self.engine.netmap().self_node.as_ref();
        let allowed = own.map(Node::allowed_ips).unwrap_or_default();
        let approved = offered.iter().filter(|route| allowed.contains(route));
        metrics.push(gauge(
            "tailscaled_advertised_routes",
            "routes this machine offers",
            Vec::new(),
            offered.len() as f64,
        ));
        metrics.push(gauge(
            "tailscaled_approved_routes",
            "offered routes that are approved",
            Vec::new(),
            approved.count() as f64,
        ));
        metrics.push(gauge(
            "tailscaled_health_messages",
            "what is wrong, by kind",
            vec![("type", "warning".to_owned())],
            self.health().len() as f64,
        ));
        let info = self.engine.control_report().net_info.as_ref();
        let home = info.and_then(|info| info.preferred_derp);
        metrics.push(gauge(
            "tailscaled_home_derp_region_id",
            "the relay region peers reach this machine by; 0: none",
            Vec::new(),
            home.map_or(0.0, |home| f64::from(home.0)),
        ));
        metrics
    }
}

/// Dropped packets by the reference's reasons, each name once per reason.
fn dropped(filter: &Filter, drops: &Drops) -> Vec<Metric> {
    let directions = [
        (
            Direction::In,
            "tailscaled_inbound_dropped_packets_total",
            "packets from peers that were dropped, by reason",
            &[PathDrop::MalformedInner][..],
        ),
        (
            Direction::Out,
            "tailscaled_outbound_dropped_packets_total",
            "packets to peers that were dropped, by reason",
            &[
                PathDrop::Malformed,
                PathDrop::Exhausted,
                PathDrop::StagingFull,
            ][..],
        ),
    ];
    let mut metrics = Vec::new();
    for (direction, name, help, errors) in directions {
        let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
        for reason in DropReason::ALL {
            let packets = filter.dropped(direction, reason).packets;
            *by_reason.entry(reason.reference_name()).or_default() += packets;
        }
        let failed = errors.iter().map(|reason| drops.get(*reason)).sum();
        by_reason.insert("error", failed);
        metrics.extend(by_reason.into_iter().map(|(reason, packets)| Metric {
            name,
            kind: MetricKind::Counter,
            help,
            labels: vec![("reason", reason.to_owned())],
            value: packets as f64,
        }));
    }
    metrics
}

fn counted(count: Count) -> Counted {
    Counted {
        packets: count.packets,
        bytes: count.bytes,
    }
}

fn filter_report(engine: &Engine) -> FilterReport {
    let filter = engine.filter();
    let drops = |direction| {
        let all = DropReason::ALL.into_iter();
        all.map(|reason| (reason.name().to_owned(), filter.dropped(direction, reason)))
            .filter(|(_, count)| count.packets > 0)
            .map(|(name, count)| (name, counted(count)))
            .collect()
    };
    FilterReport {
        shields_up: engine.prefs().shields_up,
        rules: rules(engine).collect(),
        without_rule: Without::ALL
            .into_iter()
            .map(|why| {
                (
                    why.name().to_owned(),
                    counted(filter.passed_without_rule(why)),
                )
            })
            .filter(|(_, count)| count.packets > 0)
            .collect(),
        dropped_in: drops(Direction::In),
        dropped_out: drops(Direction::Out),
        problems: engine
            .filter_problems()
            .iter()
            .map(ToString::to_string)
            .collect(),
        compiled_bytes: filter.bytes() as u64,
    }
}

/// The rules of all filters, numbered as the engine numbers them.
fn rules(engine: &Engine) -> impl Iterator<Item = RuleReport> + '_ {
    let named = engine
        .netmap()
        .filters
        .iter()
        .flat_map(|(name, rules)| rules.iter().map(move |rule| (name, rule)));
    named.enumerate().map(|(number, (name, rule))| RuleReport {
        number,
        filter: name.clone(),
        rule: rule.clone(),
        passed: counted(engine.filter().passed_by_rule(number)),
    })
}

fn why(engine: &Engine, question: WhyQuestion) -> WhyAnswer {
    let mut answer = WhyAnswer {
        destination: Some(question.dst),
        port: question.port,
        protocol: question.protocol,
        from: question.from,
        carried_by: "none".to_owned(),
        ..WhyAnswer::default()
    };
    let dst = question.dst;
    let own = engine.netmap().self_node.as_ref();
    let is_own =
        |ip: IpAddr| own.is_some_and(|own| own.addresses.iter().any(|prefix| prefix.addr() == ip));
    if own.is_none() {
        answer.verdict = WhyVerdict::Blocked;
        answer.say("This machine is not part of a network yet (see: warren up).");
        return answer;
    }
    if unfit(dst) {
        answer.verdict = WhyVerdict::Blocked;
        answer.say(format!(
            "{dst} is a multicast or link-local address; such packets do not enter the tunnel."
        ));
        return answer;
    }
    match question.from.filter(|from| !is_own(*from)) {
        Some(from) if engine.filter().local().contains(dst) => {
            inbound(engine, question, from, is_own(dst), &mut answer);
        }
        Some(from) => not_ours(engine, question, from, &mut answer),
        None if is_own(dst) => {
            answer.verdict = WhyVerdict::Allowed;
            answer.carried_by = "self".to_owned();
            answer.say(format!(
                "{dst} is this machine; its packets stay here and no filter is asked. \
                 Who may come in from outside: add --from PEER."
            ));
        }
        None => outbound(engine, question, &mut answer),
    }
    answer
}

/// From here to somewhere.
fn outbound(engine: &Engine, question: WhyQuestion, answer: &mut WhyAnswer) {
    let dst = question.dst;
    if ServiceAddresses::default().contains(dst) {
        answer.verdict = WhyVerdict::Allowed;
        answer.carried_by = "self".to_owned();
        answer.say(format!(
            "{dst} is the service address; this machine's daemon answers it."
        ));
        return;
    }
    let Some(peer) = engine.peer_at(dst) else {
        answer.verdict = WhyVerdict::Blocked;
        answer.say(no_route(engine, dst));
        return;
    };
    let name = name(peer);
    let route = peer
        .allowed_ips()
        .iter()
        .filter(|prefix| prefix.contains(&dst));
    let route = route.max_by_key(|prefix| prefix.prefix_len()).copied();
    let is_its_own = peer.addresses.iter().any(|prefix| prefix.addr() == dst);
    answer.peer = name.clone();
    answer.route = route;
    if is_its_own {
        answer.carried_by = "peer".to_owned();
        answer.say(format!("{dst} is {name}, a peer of this network."));
    } else if route.is_some_and(|route| route.prefix_len() == 0) {
        answer.carried_by = "exit-node".to_owned();
        answer.say(format!(
            "{dst} is outside the network; it goes through the exit node {name}."
        ));
    } else {
        answer.carried_by = "subnet-route".to_owned();
        let route = route.map(|route| route.to_string()).unwrap_or_default();
        answer.say(format!(
            "{dst} is in {route}, which the subnet router {name} carries."
        ));
    }
    answer.online = peer.online;
    match peer.online {
        Some(true) => answer.say(format!("{name} is online.")),
        Some(false) => answer.say(format!(
            "{name} is offline{}; nothing will answer until it is back.",
            peer.last_seen
                .map(|seen| format!(" since {seen}"))
                .unwrap_or_default()
        )),
        None => answer.say(format!("Whether {name} is online the server did not say.")),
    }
    answer.say(path(engine, peer));
    answer
        .say("Our own filter lets everything out to it, and the answers to what was sent back in.");
    answer.verdict = WhyVerdict::NothingHere;
    let what = what(question);
    answer.not_known_here.push(format!(
        "Whether {what} on {dst} lets this machine in: that is decided by the filter of {name}, \
         which is not told here. The coordination server knows: \
         warren-control policy why {} {}",
        own_address(engine, dst)
            .map(|own| own.to_string())
            .unwrap_or_default(),
        socket(dst, question.port),
    ));
    answer.not_known_here.push(if is_its_own {
        format!("Whether a program listens there, and whether a firewall on {name} lets it.")
    } else {
        format!("Whether {dst} is up, and what stands between it and {name}.")
    });
}

/// From a peer to here.
fn inbound(
    engine: &Engine,
    question: WhyQuestion,
    from: IpAddr,
    own: bool,
    answer: &mut WhyAnswer,
) {
    let (dst, filter) = (question.dst, engine.filter());
    answer.carried_by = "self".to_owned();
    if own {
        answer.say(format!("{dst} is this machine."));
    } else {
        let offered = engine.prefs().advertise_routes.iter();
        let route = offered
            .filter(|route| route.contains(&dst))
            .max_by_key(|route| route.prefix_len());
        let allowed = engine.netmap().self_node.as_ref().map(Node::allowed_ips);
        match route.filter(|route| !allowed.unwrap_or_default().contains(route)) {
            None => answer.say(format!("{dst} is behind a route that this machine serves.")),
            Some(route) => answer.say(format!(
                "{dst} is behind {route}, which this machine offers; the coordination server has \
                 not approved it, or does not name it here because this machine may not use it."
            )),
        }
    }
    let Some(peer) = engine.peer_at(from) else {
        answer.verdict = WhyVerdict::Blocked;
        answer.say(no_route(engine, from));
        answer.say("Packets from an address that no peer has are dropped before any rule.");
        return;
    };
    let name = name(peer);
    answer.peer = name.clone();
    answer.online = peer.online;
    answer.say(format!("{from} is {name}."));
    let what = what(question);
    if peer.is_jailed {
        answer.verdict = WhyVerdict::Blocked;
        answer.say(format!(
            "{name} may only answer: it cannot open anything here."
        ));
        return;
    }
    if engine.prefs().shields_up {
        answer.verdict = WhyVerdict::Blocked;
        answer.say(
            "Shields are up: nothing comes in but answers (see: warren set --shields-up=false).",
        );
        return;
    }
    let protocol = Protocol(question.protocol);
    let rule = filter.rule_for(protocol, from, dst, question.port);
    match rule.and_then(|number| rules(engine).nth(number)) {
        Some(rule) => {
            answer.verdict = WhyVerdict::Allowed;
            answer.say(format!(
                "Rule {} of this machine's filter lets {name} use {what}: {}.",
                rule.number,
                rule_line(&rule.rule)
            ));
            answer.rule = Some(rule);
            answer.not_known_here.push(if own {
                format!("Whether a program listens on {what}, and what the system's firewall does.")
            } else {
                format!("Whether {dst} is up, and whether this machine forwards to it.")
            });
        }
        None => {
            answer.verdict = WhyVerdict::Blocked;
            let count = filter.rule_count();
            answer.say(match count {
                0 => "The coordination server sent no rules: nothing comes in but answers."
                    .to_owned(),
                1 => format!(
                    "The only rule of this machine's filter does not let {name} use {what}."
                ),
                _ => format!(
                    "None of the {count} rules of this machine's filter lets {name} use {what}."
                ),
            });
            let pinged = filter.allows(icmp(dst), from, dst, 0);
            if count > 0 && pinged && protocol != icmp(dst) {
                answer.say(format!(
                    "Some rule lets {name} use another port, so it can ping."
                ));
            }
            answer.say(format!(
                "What would have to change in the policy: warren-control policy why {from} {}",
                socket(dst, question.port)
            ));
        }
    }
}

/// Neither end is here.
fn not_ours(engine: &Engine, question: WhyQuestion, from: IpAddr, answer: &mut WhyAnswer) {
    let dst = question.dst;
    answer.verdict = WhyVerdict::Unknown;
    answer.say(format!(
        "{dst} is neither this machine nor behind a route that it serves; what {from} sends there \
         does not pass here, and if it came here it would be dropped."
    ));
    let offered = engine.prefs().advertise_routes.iter();
    let covering: Vec<&IpNet> = offered.filter(|route| route.contains(&dst)).collect();
    if let Some(route) = covering.first() {
        answer.verdict = WhyVerdict::Blocked;
        answer.say(format!(
            "This machine offers {route}, but the coordination server has not approved it, or it \
             does not open {dst} (an exit node does not open private networks)."
        ));
    }
    answer.not_known_here.push(format!(
        "The filters of others. The coordination server knows: warren-control policy why {from} {}",
        socket(dst, question.port)
    ));
}

/// Why nothing carries an address.
fn no_route(engine: &Engine, dst: IpAddr) -> String {
    let peers = || engine.netmap().peers.values();
    if let Some(peer) = peers().find(|peer| peer.addresses.iter().any(|own| own.addr() == dst)) {
        return format!(
            "{dst} is {}, whose key has expired; it must log in again.",
            name(peer)
        );
    }
    let offers = |peer: &&Node| {
        let mut routes = peer.allowed_ips().iter();
        routes.any(|route| route.prefix_len() != 0 && route.contains(&dst))
    };
    if let Some(router) = peers().find(offers) {
        let why = if engine.prefs().accept_routes {
            "whose key has expired"
        } else {
            "but routes of others are not accepted here (see: warren set --accept-routes)"
        };
        return format!("{dst} is behind the subnet router {}, {why}.", name(router));
    }
    let default_route = |peer: &&Node| {
        let mut routes = peer.allowed_ips().iter();
        routes.any(|route| route.prefix_len() == 0 && route.contains(&dst))
    };
    let exits = peers().filter(default_route).count();
    let exit = match (&engine.prefs().exit_node, exits) {
        (Some(_), _) => " The chosen exit node is not there.".to_owned(),
        (None, 0) => String::new(),
        (None, exits) => {
            format!(" No exit node is chosen ({exits} could be: warren set --exit-node).")
        }
    };
    format!(
        "No peer has {dst} and no route leads there: the network does not carry it, \
         or the policy does not let this machine see who has it.{exit}"
    )
}

/// How packets reach the peer now.
fn path(engine: &Engine, peer: &Node) -> String {
    let name = name(peer);
    let reports = engine.peer_reports(Instant::now());
    let report = reports.iter().find(|report| report.node == peer.id);
    let relay = |region| region_code(&engine.netmap().derp_map, region);
    match report.map(|report| report.destination) {
        Some(Destination::Udp(at)) => format!("The path to {name} is direct, {at}."),
        Some(Destination::Relay(region)) => {
            format!("The path to {name} is through the relay {}.", relay(region))
        }
        Some(Destination::Both { udp, relay: region }) => format!(
            "The path to {name} is in doubt: packets go directly ({udp}) and through the relay {}.",
            relay(region)
        ),
        Some(Destination::None) | None => {
            format!("There is no path to {name} yet; the first packet makes one be looked for.")
        }
    }
}

fn unfit(dst: IpAddr) -> bool {
    dst.is_multicast()
        || match dst {
            IpAddr::V4(v4) => v4.is_link_local() && v4.octets() != [169, 254, 169, 254],
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
}

fn icmp(dst: IpAddr) -> Protocol {
    if dst.is_ipv4() {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    }
}

fn own_address(engine: &Engine, like: IpAddr) -> Option<IpAddr> {
    let own = engine.netmap().self_node.as_ref()?;
    let mut addresses = own.addresses.iter().map(IpNet::addr);
    addresses.find(|address| address.is_ipv4() == like.is_ipv4())
}

fn name(node: &Node) -> String {
    let name = node.name.trim_end_matches('.');
    if name.is_empty() {
        node.stable_id.0.clone()
    } else {
        name.to_owned()
    }
}

/// "TCP port 22", "ICMPv4".
fn what(question: WhyQuestion) -> String {
    let protocol = Protocol(question.protocol);
    if protocol.has_ports() {
        format!("{protocol} port {}", question.port)
    } else {
        protocol.to_string()
    }
}

fn socket(ip: IpAddr, port: u16) -> String {
    match ip {
        IpAddr::V4(v4) => format!("{v4}:{port}"),
        IpAddr::V6(v6) => format!("[{v6}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use serde_json::json;
    use warren_keys::{DiscoSecret, NodeSecret};
    use warren_node_core::{EngineConfig, NodePrefs};

    use super::*;
    use crate::daemon::entropy::SystemEntropy;

    /// Node 1, with a database (2), a router for 10.1.0.0/16 (3), which can be
    /// an exit node too, and a laptop that is away (4).
    fn engine() -> Engine {
        let config = EngineConfig {
            node_key: NodeSecret::generate(&mut SystemEntropy),
            disco_key: DiscoSecret::generate(&mut SystemEntropy),
            flow_slots: Some(64),
            aead: warren_tunnel::Aead::default(),
        };
        let entropy = || Box::new(SystemEntropy);
        let mut engine = Engine::new(config, Instant::now(), entropy(), entropy(), entropy());
        engine.begin_map_stream();
        let peer = |id: u8, name: &str, routes: &[&str], online: bool| {
            let key = NodeSecret::generate(&mut SystemEntropy).public();
            let address = format!("100.64.0.{id}/32");
            let mut allowed = vec![address.as_str()];
            allowed.extend(routes);
            json!({"ID": id, "StableID": format!("n{id}"), "Name": format!("{name}.net.example."),
                "Key": key, "Addresses": [address], "AllowedIPs": allowed, "Online": online})
        };
        let mut message = json!({
            "Node": peer(1, "here", &["192.168.7.0/24"], true),
            "Peers": [
                peer(2, "db", &[], true),
                peer(3, "router", &["10.1.0.0/16", "0.0.0.0/0", "::/0"], true),
                peer(4, "laptop", &[], false),
            ],
            "PacketFilters": {"base": [
                {"SrcIPs": ["100.64.0.2"], "DstPorts": [
                    {"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 22}},
                    {"IP": "192.168.7.0/24", "Ports": {"First": 80, "Last": 80}},
                ]},
            ], "more": [{"SrcIPs": ["nonsense", "100.64.0.4"], "DstPorts": [
                {"IP": "100.64.0.1", "Ports": {"First": 0, "Last": 65535}}]}]},
        });
        message["Peers"][2]["LastSeen"] = json!("2026-01-02T03:04:05Z");
        let message = serde_json::from_value(message).unwrap();
        engine
            .apply_map(Instant::now(), Duration::from_secs(1_800_000_000), message)
            .unwrap();
        engine
    }

    fn ask(engine: &Engine, dst: &str, port: u16, from: Option<&str>) -> WhyAnswer {
        why(
            engine,
            WhyQuestion {
                dst: dst.parse().unwrap(),
                port,
                protocol: 6,
                from: from.map(|from| from.parse().unwrap()),
            },
        )
    }

    fn prefs(change: impl FnOnce(&mut NodePrefs)) -> Engine {
        let mut engine = engine();
        let mut prefs = NodePrefs {
            advertise_routes: vec![
                "192.168.7.0/24".parse().unwrap(),
                "172.30.0.0/16".parse().unwrap(),
            ],
            ..NodePrefs::default()
        };
        change(&mut prefs);
        engine.set_prefs(Instant::now(), prefs);
        engine
    }

    #[test]
    fn a_way_out_names_what_carries_it_and_what_is_not_known() {
        let engine = prefs(|prefs| {
            prefs.accept_routes = true;
            prefs.exit_node = Some(warren_control_types::StableNodeId("n3".to_owned()));
        });
        for (dst, carried, peer, route) in [
            ("100.64.0.2", "peer", "db.net.example", "100.64.0.2/32"),
            (
                "10.1.2.3",
                "subnet-route",
                "router.net.example",
                "10.1.0.0/16",
            ),
            ("8.8.8.8", "exit-node", "router.net.example", "0.0.0.0/0"),
        ] {
            let answer = ask(&engine, dst, 5432, None);
            assert_eq!(
                (answer.carried_by.as_str(), answer.peer.as_str()),
                (carried, peer),
                "{dst}"
            );
            assert_eq!(answer.route, Some(route.parse().unwrap()));
            assert_eq!(
                (answer.verdict, answer.online),
                (WhyVerdict::NothingHere, Some(true))
            );
            assert!(answer.because.iter().any(|why| why.contains(" is online.")));
            let unknown = &answer.not_known_here[0];
            let command = format!("warren-control policy why 100.64.0.1 {dst}:5432");
            assert!(unknown.ends_with(&command), "{unknown}");
        }
        let away = ask(&engine, "100.64.0.4", 22, None);
        assert!(
            away.because
                .iter()
                .any(|why| why.contains("is offline since 2026-01-02T03:04:05Z")),
            "{:?}",
            away.because
        );
    }

    #[test]
    fn without_a_way_the_reason_is_told() {
        let engine = prefs(|_| {});
        for (dst, words) in [
            (
                "10.1.2.3",
                "behind the subnet router router.net.example, but routes of others are not accepted",
            ),
            ("8.8.8.8", "No exit node is chosen (1 could be"),
            ("100.64.0.77", "No peer has 100.64.0.77"),
            ("224.0.0.1", "multicast or link-local"),
        ] {
            let answer = ask(&engine, dst, 80, None);
            assert_eq!(
                (answer.verdict, answer.carried_by.as_str()),
                (WhyVerdict::Blocked, "none")
            );
            assert!(answer.because[0].contains(words), "{:?}", answer.because);
        }
        for local in ["100.64.0.1", "100.100.100.100"] {
            assert_eq!(ask(&engine, local, 53, None).verdict, WhyVerdict::Allowed);
        }
    }

    #[test]
    fn a_way_in_names_the_rule() {
        let engine = prefs(|_| {});
        let answer = ask(&engine, "100.64.0.1", 22, Some("100.64.0.2"));
        assert_eq!(answer.verdict, WhyVerdict::Allowed);
        let rule = answer.rule.unwrap();
        assert_eq!((rule.number, rule.filter.as_str()), (0, "base"));
        assert!(answer.because.last().unwrap().ends_with(
            "Rule 0 of this machine's filter lets db.net.example use TCP port 22: \
             100.64.0.2 -> 100.64.0.1:22, 192.168.7.0/24:80."
        ));
        assert_eq!(
            ask(&engine, "192.168.7.9", 80, Some("100.64.0.2")).verdict,
            WhyVerdict::Allowed
        );
        let other = ask(&engine, "100.64.0.1", 65000, Some("100.64.0.4"));
        assert_eq!(other.rule.unwrap().number, 1);
        // From ourselves is outwards.
        assert_eq!(
            ask(&engine, "100.64.0.2", 22, Some("100.64.0.1")).carried_by,
            "peer"
        );
    }

    #[test]
    fn a_way_in_that_is_closed_says_why() {
        let engine = prefs(|_| {});
        for (dst, port, from, verdict, words) in [
            (
                "100.64.0.1",
                23,
                "100.64.0.2",
                WhyVerdict::Blocked,
                "None of the 2 rules",
            ),
            (
                "100.64.0.1",
                23,
                "100.64.0.2",
                WhyVerdict::Blocked,
                "so it can ping",
            ),
            (
                "100.64.0.1",
                22,
                "100.64.0.77",
                WhyVerdict::Blocked,
                "dropped before any rule",
            ),
            (
                "172.30.1.1",
                22,
                "100.64.0.2",
                WhyVerdict::Blocked,
                "has not approved it",
            ),
            (
                "10.1.1.1",
                22,
                "100.64.0.2",
                WhyVerdict::Unknown,
                "does not pass here",
            ),
        ] {
            let answer = ask(&engine, dst, port, Some(from));
            assert_eq!(answer.verdict, verdict, "{dst} {from}");
            assert!(
                answer.because.iter().any(|why| why.contains(words)),
                "{:?}",
                answer.because
            );
        }
        let shields = prefs(|prefs| prefs.shields_up = true);
        let answer = ask(&shields, "100.64.0.1", 22, Some("100.64.0.2"));
        assert_eq!(answer.verdict, WhyVerdict::Blocked);
        assert!(
            answer
                .because
                .iter()
                .any(|why| why.starts_with("Shields are up"))
        );
    }

    #[test]
    fn the_report_has_all_rules_and_what_is_wrong_with_them() {
        let report = filter_report(&prefs(|_| {}));
        let names: Vec<_> = report
            .rules
            .iter()
            .map(|rule| (rule.number, rule.filter.as_str()))
            .collect();
        assert_eq!(names, [(0, "base"), (1, "more")]);
        assert_eq!(report.problems.len(), 1);
        assert!(report.problems[0].starts_with("rule 1: SrcIPs entry \"nonsense\""));
        let again: FilterReport =
            serde_json::from_value(serde_json::to_value(&report).unwrap()).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn drops_have_the_references_names() {
        let filter = Filter::block_all();
        let metrics = dropped(&filter, &Drops::new());
        let names = |wanted: &str| -> Vec<&str> {
            let named = metrics.iter().filter(|metric| metric.name == wanted);
            named.map(|metric| metric.labels[0].1.as_str()).collect()
        };
        let reasons = [
            "acl",
            "error",
            "fragment",
            "link_local_unicast",
            "multicast",
        ];
        assert_eq!(names("tailscaled_inbound_dropped_packets_total"), reasons);
        assert_eq!(names("tailscaled_outbound_dropped_packets_total"), reasons);
    }
}
