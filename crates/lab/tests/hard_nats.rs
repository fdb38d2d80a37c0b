//! NATs of the kernel with a random port for each destination (`masquerade fully-random`):
//! pairs of our programs become direct, from every place whose own port is the same for all.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use warren_lab::probe::{Echo, Probe};
use warren_lab::scenario::{Tailnet, address, installed, lab, tcp_flows};
use warren_lab::{Host, HostOptions, Kind, Lab, Node, Path, Place, RelayKind, until, web};

/// Tries of each pair, after each of which both nodes are started again.
const TRIES: u32 = 5;
/// A search takes less, and more is not waited for.
const LIMIT: Duration = Duration::from_secs(15);

/// A host without IPv6, over which it would be reached without any search.
fn host(lab: &mut Lab, name: &str, place: Place) -> Host {
    let options = HostOptions { ipv4_only: true };
    lab.host_with(name, place, options).unwrap()
}

/// Whether `node` sends to `peer` directly.
fn is_direct(node: &Node, peer: &str) -> Result<(), String> {
    match node.path_to(peer).unwrap() {
        Path::Direct(_) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn becomes_direct(place: Place) {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let alice = host(&mut lab, "alice", place);
    let bob = host(&mut lab, "bob", Place::Hard);
    let mut alice = tailnet.join(&alice, Kind::Warren);
    let mut bob = tailnet.join(&bob, Kind::Warren);
    web::serve_page(bob.host()).unwrap();
    for number in 0..TRIES {
        let _echo = Echo::start(bob.host()).unwrap();
        let pace = Duration::from_millis(20);
        let probe = Probe::start(alice.host(), address(&bob, false), pace).unwrap();
        let began = Instant::now();
        for (node, peer) in [(&alice, "bob"), (&bob, "alice")] {
            let what = format!("a direct path from {place} to {}", Place::Hard);
            until(&what, LIMIT, || is_direct(node, peer)).unwrap();
        }
        let took = began.elapsed();
        let sent = [&alice, &bob].map(|node| node.metric("port_search_probes_total").unwrap());
        println!("{place} x hard NAT, try {number}: direct after {took:?}, probes {sent:?}");
        assert!(sent.iter().all(|sent| *sent <= 2_048));
        // Through the socket that was kept.
        tcp_flows(&alice, &bob);
        is_direct(&alice, "bob").unwrap();
        drop(probe);
        if number + 1 < TRIES {
            for node in [&mut alice, &mut bob] {
                node.daemon().stop().unwrap();
                node.restart().unwrap();
            }
        }
    }
}

#[test]
fn easy_to_hard() {
    becomes_direct(Place::Easy);
}

#[test]
fn carrier_nat_to_hard() {
    becomes_direct(Place::CarrierNat);
}

#[test]
fn firewall_to_hard() {
    becomes_direct(Place::Firewall);
}

/// The official client does not know the search: it notices nothing, and both stay on the
/// relay.
#[test]
fn an_official_client_stays_on_the_relay_and_works() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() || installed(Kind::Tailscale).is_none() {
        return;
    }
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let alice = host(&mut lab, "alice", Place::Easy);
    let bob = host(&mut lab, "bob", Place::Hard);
    let alice = tailnet.join(&alice, Kind::Tailscale);
    let bob = tailnet.join(&bob, Kind::Warren);
    web::serve_page(bob.host()).unwrap();
    tcp_flows(&alice, &bob);
    let _echo = Echo::start(alice.host()).unwrap();
    let pace = Duration::from_millis(20);
    let _probe = Probe::start(bob.host(), address(&alice, false), pace).unwrap();
    // Longer than all offers take.
    let offers_end = Instant::now() + Duration::from_secs(12);
    until("the offers to end", LIMIT, || {
        (Instant::now() > offers_end)
            .then_some(())
            .ok_or("they may go on")
    })
    .unwrap();
    assert!(matches!(bob.path_to("alice").unwrap(), Path::Relay(_)));
    assert_eq!(bob.metric("port_search_probes_total").unwrap(), 0);
    tcp_flows(&alice, &bob);
}
