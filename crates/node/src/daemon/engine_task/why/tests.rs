//! Questions about a network with a database, a subnet router and a laptop.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;
use warren_keys::{DiscoSecret, NodeSecret};
use warren_node_core::{EngineConfig, NodePrefs};
use warren_node_types::TailnetRanges;

use super::super::filter::filter_report;
use super::*;
use crate::localapi::filter::FilterReport;
use warren_dial::SystemEntropy;

/// Node 1, with a database (2), a router for 10.1.0.0/16 (3), which can be
/// an exit node too, and a laptop that is away (4).
fn engine() -> Engine {
    let config = EngineConfig {
        node_key: NodeSecret::generate(&mut SystemEntropy),
        disco_key: DiscoSecret::generate(&mut SystemEntropy),
        flow_slots: Some(64),
        aead: warren_tunnel::Aead::default(),
        ranges: TailnetRanges::DEFAULT,
        lock: Default::default(),
    };
    let mut engine = Engine::new(config, Instant::now(), Box::new(SystemEntropy));
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
fn an_outbound_answer_names_the_carrier_and_the_unknowns() {
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
fn an_unreachable_destination_has_a_reason() {
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
fn an_inbound_answer_names_the_rule() {
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
fn a_blocked_inbound_connection_has_a_reason() {
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
fn the_filter_report_has_all_rules_and_their_problems() {
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
