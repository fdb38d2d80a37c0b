//! Our own programs, everywhere a machine can stand: join, first reply over
//! the relay, direct without loss, and back when the direct path breaks.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use warren_lab::probe::{Echo, Probe};
use warren_lab::scenario::{Tailnet, address, installed, lab, tcp_flows, traffic_flows};
use warren_lab::{Kind, Lab, Node, PATIENCE, Path, Place, RelayKind, until, web};

fn pair(lab: &mut Lab, places: (Place, Place)) -> Option<(Tailnet, Node, Node)> {
    installed(Kind::Warren)?;
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    let alice = lab.host("alice", places.0).unwrap();
    let bob = lab.host("bob", places.1).unwrap();
    let (alice, bob) = (
        tailnet.join(&alice, Kind::Warren),
        tailnet.join(&bob, Kind::Warren),
    );
    Some((tailnet, alice, bob))
}

/// Every pair goes direct that can, and loses no packet on the way there.
fn goes_direct(places: (Place, Place)) {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, alice, bob)) = pair(&mut lab, places) else {
        return;
    };
    let _echo = Echo::start(bob.host()).unwrap();
    let probe = Probe::start(
        alice.host(),
        address(&bob, false),
        Duration::from_millis(10),
    )
    .unwrap();
    alice.wait_until_direct("bob").unwrap();
    let first = until("a first answer", PATIENCE, || {
        probe.first_answer().ok_or("none")
    })
    .unwrap();
    let end = Instant::now();
    // The last packets may still be under way; they must return too.
    until("the last echoes", PATIENCE, || {
        let (sent, lost) = probe.lost_between(first, end);
        if lost == 0 {
            Ok(())
        } else {
            Err(format!("{lost} of {sent} lost"))
        }
    })
    .unwrap();
    tcp_pages(&alice, &bob);
    traffic_flows(&bob, &alice);
}

fn tcp_pages(alice: &Node, bob: &Node) {
    web::serve_page(bob.host()).unwrap();
    tcp_flows(alice, bob);
}

#[test]
fn open_to_open() {
    goes_direct((Place::Open, Place::Open));
}

#[test]
fn easy_to_easy() {
    goes_direct((Place::Easy, Place::Easy));
}

#[test]
fn easy_to_carrier_nat() {
    goes_direct((Place::Easy, Place::CarrierNat));
}

#[test]
fn firewall_to_cone() {
    goes_direct((Place::Firewall, Place::Cone));
}

#[test]
fn open_to_hard() {
    goes_direct((Place::Open, Place::Hard));
}

#[test]
fn blocked_udp_stays_on_the_relay_and_works() {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, alice, bob)) = pair(&mut lab, (Place::NoUdp, Place::Easy)) else {
        return;
    };
    traffic_flows(&alice, &bob);
    assert!(matches!(alice.path_to("bob").unwrap(), Path::Relay(_)));
    tcp_pages(&alice, &bob);
}

#[test]
fn a_broken_direct_path_falls_back_and_returns() {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, alice, bob)) = pair(&mut lab, (Place::Open, Place::Easy)) else {
        return;
    };
    let _echo = Echo::start(bob.host()).unwrap();
    let probe = Probe::start(
        alice.host(),
        address(&bob, false),
        Duration::from_millis(10),
    )
    .unwrap();
    alice.wait_until_direct("bob").unwrap();
    // IPv6 must not be the way out: the cut takes all UDP between the two.
    let cut = Instant::now();
    alice.host().block_udp_with(bob.host()).unwrap();
    until("the relay to take over", PATIENCE, || {
        match alice.path_to("bob").unwrap() {
            Path::Relay(code) => Ok(code),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    until("answers again", PATIENCE, || {
        let back = probe
            .shots()
            .iter()
            .filter(|shot| shot.sent > cut)
            .any(|shot| shot.answered.is_some());
        if back { Ok(()) } else { Err("silence") }
    })
    .unwrap();
    alice.host().unblock().unwrap();
    alice.wait_until_direct("bob").unwrap();
}

#[test]
fn names_resolve_and_the_resolver_file_is_given_back() {
    let Some(mut lab) = lab() else { return };
    let Some((tailnet, mut alice, bob)) = pair(&mut lab, (Place::Open, Place::Easy)) else {
        return;
    };
    web::serve_page(bob.host()).unwrap();
    let page = until("the page by name", PATIENCE, || {
        web::open_page(alice.host(), "bob")
    })
    .unwrap();
    assert_eq!(page.trim(), "hello from bob");
    dig_agrees(&alice, &bob);
    let resolv = |node: &Node| node.host().run("cat", &["/etc/resolv.conf"]).unwrap();
    assert!(resolv(&alice).contains("100.100.100.100"));
    alice.daemon().stop().unwrap();
    assert!(!resolv(&alice).contains("100.100.100.100"));
    let rules = alice.host().run("ip", &["rule", "list"]).unwrap();
    assert!(
        !rules.contains("5270"),
        "policy rules must be gone:\n{rules}"
    );
    drop(tailnet);
}

/// An official program reads the answers.
fn dig_agrees(alice: &Node, bob: &Node) {
    let dig = |arguments: &[&str]| {
        let all = [&["+short", "+time=2", "+tries=1"], arguments].concat();
        alice
            .host()
            .run("dig", &all)
            .map(|text| text.trim().to_owned())
    };
    if dig(&["-v"]).is_err() {
        warren_lab::scenario::skip::<()>("dig is not installed: its part of the test is left out");
        return;
    }
    let (v4, v6) = (
        address(bob, false).to_string(),
        address(bob, true).to_string(),
    );
    assert_eq!(dig(&["bob.warren.internal", "A"]).unwrap(), v4);
    assert_eq!(dig(&["BOB.warren.internal", "A"]).unwrap(), v4);
    assert_eq!(dig(&["-x", &v4]).unwrap(), "bob.warren.internal.");
    assert_eq!(dig(&["-x", &v6]).unwrap(), "bob.warren.internal.");
    assert_eq!(dig(&["missing.warren.internal", "A"]).unwrap(), "");
    // Nothing is served over TCP, and a client learns so at once.
    let refused = dig(&["+tcp", "bob.warren.internal", "A"])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("refused"), "{refused}");
}

#[test]
fn after_kill_9_everything_is_as_before_and_works_without_the_server() {
    let Some(mut lab) = lab() else { return };
    let Some((mut tailnet, mut alice, bob)) = pair(&mut lab, (Place::Open, Place::Easy)) else {
        return;
    };
    let before = alice.addresses().unwrap();
    traffic_flows(&alice, &bob);
    tailnet.control.program().kill().unwrap();
    alice.daemon().kill().unwrap();
    alice.restart().unwrap();
    assert_eq!(
        until("its addresses", PATIENCE, || alice.addresses()).unwrap(),
        before
    );
    traffic_flows(&alice, &bob);
    tailnet.control.restart().unwrap();
    until("the server to see it", PATIENCE, || {
        let nodes = tailnet.control.json(&["nodes", "list"]).unwrap();
        let online = nodes
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["online"] == true)
            .count();
        if online == 2 {
            Ok(())
        } else {
            Err(nodes.to_string())
        }
    })
    .unwrap();
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused_with_a_reason() {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, alice, _bob)) = pair(&mut lab, (Place::Open, Place::Open)) else {
        return;
    };
    let folder = format!(
        "--state-dir={}",
        alice.host().folder().join("node").display()
    );
    let other = format!(
        "--socket={}",
        alice.host().folder().join("other.sock").display()
    );
    let warren = warren_lab::ours("warren").unwrap().display().to_string();
    let refused = alice
        .host()
        .run(&warren, &["daemon", &folder, &other, "--tun=warren1"]);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("already running"), "{error}");
}
