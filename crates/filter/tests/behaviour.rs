//! Single behaviours of the filter that a reader looks for by name.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use serde_json::json;
use warren_control_types::FilterRule;
use warren_filter::{
    CapabilityHolders, DropReason, Filter, FlowTable, LocalAddresses, LocalSet, Verdict,
    capability_sources, permits_unsigned,
};
use warren_keys::Entropy;
use warren_wire::ip::tsmp::{Message, RejectReason};
use warren_wire::ip::{IpPacket, Protocol, icmp, udp};

struct Zero;

impl Entropy for Zero {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(0);
    }
}

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
    let flows = FlowTable::with_slots(&mut Zero, 64);
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
    for (filter, reason, told) in [
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
        assert_eq!((reject.reason, reject.dst_port), (told, 23));
        assert_eq!(reject.protocol, Protocol::TCP);
    }
    assert_eq!(filter.rejection(&refused, DropReason::NotLocal), None);
}

#[test]
fn an_error_passes_only_about_a_packet_of_ours() {
    let flows = FlowTable::with_slots(&mut Zero, 64);
    let filter = compile(json!([]));
    let ours = udp::packet(
        "100.64.0.1:5000".parse().unwrap(),
        "100.64.0.2:53".parse().unwrap(),
        b"q",
    )
    .unwrap();
    let others = udp::packet(
        "100.64.0.9:5000".parse().unwrap(),
        "100.64.0.2:53".parse().unwrap(),
        b"q",
    )
    .unwrap();
    for (kind, quoted, verdict) in [
        (3, &ours, Verdict::Accept),
        (12, &ours, Verdict::Accept),
        (3, &others, Verdict::Drop(DropReason::UnrelatedError)),
        (13, &ours, Verdict::Drop(DropReason::NoRule)),
    ] {
        // An echo request turned into an error: the checksum is not looked at.
        let mut error = icmp::echo_request(
            "100.64.0.2".parse().unwrap(),
            "100.64.0.1".parse().unwrap(),
            icmp::Echo {
                ident: 0,
                sequence: 0,
                data: quoted,
            },
        )
        .unwrap();
        error[20] = kind;
        let packet = IpPacket::parse(&error).unwrap();
        assert_eq!(filter.check_in(&flows, &packet, 0), verdict, "type {kind}");
    }
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
