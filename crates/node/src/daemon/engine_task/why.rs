//! Whether a connection may work, as far as this node can know.

use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use warren_control_types::Node;
use warren_node_core::Engine;
use warren_node_types::{Destination, PathAddr};
use warren_wire::ip::Protocol;

use super::EngineTask;
use super::filter::rules;
use crate::daemon::status::region_code;
use crate::localapi::address::CanonicalIp;
use crate::localapi::filter::{WhyAnswer, WhyQuestion, WhyVerdict, rule_line};

#[cfg(test)]
mod tests;

impl EngineTask {
    /// Whether a connection may work.
    pub(in crate::daemon) fn why(&self, question: WhyQuestion) -> WhyAnswer {
        why(self.node.engine(), question)
    }
}

fn why(engine: &Engine, question: WhyQuestion) -> WhyAnswer {
    let mut answer = WhyAnswer {
        destination: Some(question.dst.get()),
        port: question.port,
        protocol: question.protocol,
        from: question.from.map(CanonicalIp::get),
        carried_by: "none".to_owned(),
        ..WhyAnswer::default()
    };
    let dst = question.dst.get();
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
    match question
        .from
        .map(CanonicalIp::get)
        .filter(|from| !is_own(*from))
    {
        Some(from) if engine.filter().local().contains(dst) => {
            inbound(engine, question, from, is_own(dst), &mut answer);
        }
        Some(from) => not_ours(engine, question, from, &mut answer),
        None if is_own(dst) => {
            answer.verdict = WhyVerdict::Allowed;
            answer.carried_by = "self".to_owned();
            answer.say(format!(
                "{dst} is this machine; its packets stay here and no filter is asked. \
                 To see which packets of a peer come in, add --from PEER."
            ));
        }
        None => outbound(engine, question, &mut answer),
    }
    answer
}

/// From here to somewhere.
fn outbound(engine: &Engine, question: WhyQuestion, answer: &mut WhyAnswer) {
    let dst = question.dst.get();
    if engine.ranges().is_service(dst) {
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
         which this machine does not know. The coordination server knows: \
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
    let (dst, filter) = (question.dst.get(), engine.filter());
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
    let dst = question.dst.get();
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
        Some(Destination::One(PathAddr::Udp(at))) => {
            format!("The path to {name} is direct, {at}.")
        }
        Some(Destination::One(path @ PathAddr::PeerRelay { .. })) => {
            format!("The path to {name} is through the peer relay {path}.")
        }
        Some(Destination::One(PathAddr::Derp(region))) => {
            format!("The path to {name} is through the relay {}.", relay(region))
        }
        Some(Destination::Both(path, region)) => format!(
            "The path to {name} is in doubt: packets go directly ({path}) and through the relay {}.",
            relay(region)
        ),
        Some(Destination::None) | None => {
            format!("There is no path to {name} yet; the first packet starts the search.")
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
