//! Single behaviours of the filter that a reader looks for by name.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use serde_json::json;
use warren_control_types::FilterRule;
use warren_filter::{
    CapabilityHolders, Direction, DropReason, Filter, FlowTable, LocalAddresses, LocalSet, Verdict,
    capability_sources, permits_unsigned,
};
use warren_testkit::FixedEntropy;
use warren_wire::ip::tsmp::{Message, RejectReason};
use warren_wire::ip::{IpPacket, Protocol, udp};

fn rules(value: serde_json::Value) -> Vec<FilterRule> {
    serde_json::from_value(value).unwrap()
}

fn local() -> LocalSet {
    let own: Vec<IpAddr> = ["100.64.0.1", "fd7a:115c:a1e0::1"]
        .map(|text| text.parse().unwrap())
        .into();
    LocalSet::new(&LocalAddresses {
        addresses: &own,
        ..LocalAddresses::default()
    })
}

fn compile(value: serde_json::Value) -> Filter {
    let (filter, problems) = Filter::compile(&rules(value), local(), &CapabilityHolders::new());
    assert!(problems.is_empty(), "{problems:?}");
    filter
}

fn syn(src: [u8; 4], dst: [u8; 4], port: u16) -> Vec<u8> {
    let mut out = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    out.extend(src);
    out.extend(dst);
    out.extend([0x30, 0x39]);
    out.extend(port.to_be_bytes());
    out.extend([0; 9]);
    out.extend([0x02, 0, 0, 0, 0, 0, 0]);
    out
}

const SSH_ONLY: fn() -> serde_json::Value = || {
    json!([{
        "SrcIPs": ["100.64.0.2"],
        "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 22}}],
    }])
};

#[test]
fn a_refused_connection_is_told_why() {
    let flows = FlowTable::with_slots(&mut FixedEntropy(0), 64);
    let filter = compile(SSH_ONLY());
    let allowed = syn([100, 64, 0, 2], [100, 64, 0, 1], 22);
    let refused = syn([100, 64, 0, 2], [100, 64, 0, 1], 23);
    let allowed = IpPacket::parse(&allowed).unwrap();
    let refused = IpPacket::parse(&refused).unwrap();
    assert_eq!(filter.check_in(&flows, &allowed, 0), Verdict::Accept);
    assert_eq!(
        filter.check_in(&flows, &refused, 0),
        Verdict::Drop(DropReason::NoRule)
    );
    for (filter, reason, sent) in [
        (filter.clone(), DropReason::NoRule, RejectReason::Acl),
        (
            filter.jailed(),
            DropReason::ShieldsUp,
            RejectReason::ShieldsUp,
        ),
    ] {
        assert_eq!(filter.check_in(&flows, &refused, 0), Verdict::Drop(reason));
        let answer = filter.rejection(&refused, reason).unwrap();
        let answer = IpPacket::parse(&answer).unwrap();
        assert_eq!((answer.src, answer.dst), (refused.dst, refused.src));
        let Some(Message::Reject(reject)) = answer.tsmp() else {
            panic!("no reject")
        };
        assert_eq!((reject.reason, reject.dst_port), (sent, 23));
        assert_eq!(reject.protocol, Protocol::TCP);
    }
    assert_eq!(filter.rejection(&refused, DropReason::NotLocal), None);
}

#[test]
fn counts_go_on_when_rules_change() {
    let flows = FlowTable::with_slots(&mut FixedEntropy(0), 64).without_grace();
    let rule = |src: &str, port: u16| {
        json!({
            "SrcIPs": [src],
            "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": port, "Last": port}}],
        })
    };
    let before = compile(json!([
        rule("100.64.0.2", 22),
        rule("100.64.0.2", 80),
        rule("*", 22)
    ]));
    let comes = |filter: &Filter, src: u8, port| {
        let bytes = syn([100, 64, 0, src], [100, 64, 0, 1], port);
        filter.check_in(&flows, &IpPacket::parse(&bytes).unwrap(), 0)
    };
    let packets = |filter: &Filter| -> Vec<u64> {
        (0..filter.rule_count())
            .map(|rule| filter.passed_by_rule(rule).packets)
            .collect()
    };
    assert!(comes(&before, 2, 22).is_accept() && comes(&before, 3, 22).is_accept());
    assert!(comes(&before, 2, 80).is_accept() && !comes(&before, 3, 80).is_accept());
    // The first rule that matches counts.
    assert_eq!(packets(&before), [1, 1, 1]);
    assert_eq!(before.passed_by_rule(0).bytes, 40);

    let after = compile(json!([
        rule("100.64.0.9", 9),
        rule("*", 22),
        rule("100.64.0.2", 22)
    ]))
    .keep_counts(&before);
    assert_eq!(packets(&after), [0, 1, 1]);
    // The thread that has not seen the change yet counts too.
    assert!(comes(&before, 2, 80).is_accept() && comes(&before, 2, 22).is_accept());
    assert_eq!(packets(&after), [0, 1, 2]);
    assert!(!comes(&after.jailed(), 2, 22).is_accept() && !comes(&after, 3, 80).is_accept());
    for filter in [&before, &after, &after.jailed()] {
        let drops = |reason| filter.dropped(Direction::In, reason).packets;
        assert_eq!(
            (drops(DropReason::NoRule), drops(DropReason::ShieldsUp)),
            (2, 1)
        );
    }
}

#[test]
fn outgoing_packets_pass_if_the_tunnel_can_carry_them() {
    let flows = FlowTable::with_slots(&mut FixedEntropy(0), 64);
    let filter = compile(json!([]));
    for (dst, dropped) in [
        ("100.64.0.2:53", None),
        ("224.0.0.251:5353", Some(DropReason::Multicast)),
        ("169.254.0.9:53", Some(DropReason::LinkLocal)),
        ("169.254.169.254:80", None),
    ] {
        let bytes = udp::packet(
            "100.64.0.1:5000".parse().unwrap(),
            dst.parse().unwrap(),
            b"q",
        );
        let bytes = bytes.unwrap();
        let verdict = filter.check_out(&flows, &IpPacket::parse(&bytes).unwrap(), 0);
        assert_eq!(
            verdict,
            dropped.map_or(Verdict::Accept, Verdict::Drop),
            "{dst}"
        );
        if let Some(reason) = dropped {
            assert_eq!(filter.dropped(Direction::Out, reason).packets, 1);
            assert_eq!(filter.dropped(Direction::In, reason).packets, 0);
        }
    }
}

#[test]
fn the_rule_that_lets_in_has_a_number() {
    let filter = compile(json!([
        {"SrcIPs": ["100.64.0.2"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"a": null}}]},
        {"SrcIPs": ["100.64.0.0/24"], "DstPorts": [{"IP": "*", "Ports": {"First": 80, "Last": 90}}]},
        {"SrcIPs": ["100.64.0.2"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]},
    ]));
    let rule = |protocol, src: &str, dst: &str, port| {
        filter.rule_for(protocol, src.parse().unwrap(), dst.parse().unwrap(), port)
    };
    assert_eq!(rule(Protocol::TCP, "100.64.0.2", "100.64.0.1", 80), Some(1));
    assert_eq!(rule(Protocol::UDP, "100.64.0.2", "100.64.0.1", 91), Some(2));
    assert_eq!(rule(Protocol::UDP, "100.64.0.3", "100.64.0.1", 91), None);
    assert_eq!(rule(Protocol::SCTP, "100.64.0.2", "100.64.0.1", 91), None);
    assert_eq!(
        rule(Protocol::ICMPV4, "100.64.0.3", "100.64.0.1", 0),
        Some(1)
    );
    assert_eq!(
        rule(Protocol::TCP, "100.64.0.2", "100.64.0.7", 80),
        None,
        "not this host"
    );
}

#[test]
fn capabilities_add_up_over_all_grants() {
    let filter = compile(json!([
        {"SrcIPs": ["100.64.0.0/10"], "CapGrant": [
            {"Dsts": ["100.64.0.1/32"], "CapMap": {"example.com/cap/a": [1], "example.com/cap/b": null}},
        ]},
        {"SrcIPs": ["100.64.0.2"], "CapGrant": [
            {"Dsts": ["100.64.0.1/32"], "CapMap": {"example.com/cap/a": [2]}},
        ]},
    ]));
    let caps = |src: &str, dst: &str| {
        let map = filter.caps_for(src.parse().unwrap(), dst.parse().unwrap());
        serde_json::to_value(map.0).unwrap()
    };
    assert_eq!(
        caps("100.64.0.2", "100.64.0.1"),
        json!({"example.com/cap/a": [1, 2], "example.com/cap/b": []})
    );
    assert_eq!(
        caps("100.64.0.3", "100.64.0.1"),
        json!({"example.com/cap/a": [1], "example.com/cap/b": []})
    );
    assert_eq!(caps("100.64.0.2", "100.64.0.7"), json!({}));
}

#[test]
fn cap_sources_are_the_peers_that_hold_it() {
    let rules = rules(json!([{
        "SrcIPs": ["cap:example.com/x"],
        "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 22}}],
    }]));
    assert_eq!(capability_sources(&rules), ["example.com/x"]);
    let mut holders = CapabilityHolders::new();
    holders.add("example.com/x", &["100.64.0.2/32".parse().unwrap()]);
    let (filter, _) = Filter::compile(&rules, local(), &holders);
    let (own, other) = (
        "100.64.0.1".parse().unwrap(),
        "fd7a:115c:a1e0::1".parse().unwrap(),
    );
    let allows = |src: &str, dst| filter.allows(Protocol::TCP, src.parse().unwrap(), dst, 22);
    assert!(allows("100.64.0.2", own));
    assert!(!allows("100.64.0.3", own));
    assert!(!allows("100.64.0.2", other));
    // The destination counts for pings too.
    assert!(filter.allows(Protocol::ICMPV4, "100.64.0.2".parse().unwrap(), own, 0));
    assert!(!filter.allows(Protocol::ICMPV6, "fd7a::2".parse().unwrap(), other, 0));
}

#[test]
fn rules_for_unsigned_peers_are_noticed() {
    let rules = rules(SSH_ONLY());
    let none = CapabilityHolders::new();
    assert!(permits_unsigned(
        &rules,
        &none,
        &["100.64.0.2/32".parse().unwrap()]
    ));
    assert!(!permits_unsigned(
        &rules,
        &none,
        &["100.64.0.3/32".parse().unwrap()]
    ));
    assert!(!permits_unsigned(&rules, &none, &[]));
}
