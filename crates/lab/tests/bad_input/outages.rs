//! Servers that go away in the middle.

use std::time::{Duration, Instant};

use warren_lab::probe::{Echo, Probe};
use warren_lab::{Kind, Lab, PATIENCE, Path, Place, RelayKind, until};

use crate::refusals::{named, nodes, wait_online};
use warren_lab::scenario::{Tailnet, address, installed, lab, traffic_flows};

#[test]
fn a_map_stream_cut_in_the_middle_hurts_no_traffic_and_comes_back() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let mut tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let alice = tailnet.join(&lab.host("alice", Place::Open).unwrap(), Kind::Warren);
        let bob = tailnet.join(&lab.host("bob", Place::Easy).unwrap(), Kind::Warren);
        let _echo = Echo::start(bob.host()).unwrap();
        let pace = Duration::from_millis(20);
        let probe = Probe::start(alice.host(), address(&bob, false), pace).unwrap();
        alice.wait_until_direct("bob").unwrap();
        until("a first answer", PATIENCE, || {
            probe.first_answer().ok_or("none")
        })
        .unwrap();
        wait_online(&tailnet.control, 2);
        let before = nodes(&tailnet.control);
        let begin = Instant::now();
        let rename = |tailnet: &Tailnet, name: &str| {
            let id = before.iter().find(|node| node["name"] == "bob").unwrap()["id"].to_string();
            tailnet
                .control
                .cli(&["nodes", "rename", &id, name])
                .unwrap();
        };

        // A reset in the middle: the server's next words meet a dead connection.
        let server = tailnet.control.host().clone();
        server
            .nft(
                "table inet cut { chain in { type filter hook input priority 0; \
                 tcp dport 8080 reject with tcp reset; } }",
            )
            .unwrap();
        rename(&tailnet, "first");
        rename(&tailnet, "second");
        server.nft("delete table inet cut").unwrap();
        named(&alice, "second");
        wait_online(&tailnet.control, 2);

        // Death of the server, with everything it knew.
        tailnet.control.program().kill().unwrap();
        let dead = Instant::now();
        until("echoes without the server", PATIENCE, || {
            let shots = probe.shots();
            let later = shots.iter().filter(|shot| shot.sent > dead);
            match later.filter(|shot| shot.answered.is_some()).count() {
                count if count >= 20 => Ok(()),
                count => Err(count),
            }
        })
        .unwrap();
        tailnet.control.restart().unwrap();
        wait_online(&tailnet.control, 2);
        rename(&tailnet, "third");
        named(&alice, "third");
        for (was, is) in before.iter().zip(nodes(&tailnet.control)) {
            for field in [
                "id",
                "name",
                "node_key",
                "machine_key",
                "ip_addresses",
                "created_at",
                "user",
            ] {
                assert_eq!(was[field], is[field], "{field}");
            }
        }
        let end = Instant::now();
        until("the last echoes", PATIENCE, || {
            match probe.lost_between(begin, end) {
                (_, 0) => Ok(()),
                (sent, lost) => Err(format!("{lost} of {sent} lost")),
            }
        })
        .unwrap();
        Some(())
    };
    run(&mut lab);
}

#[test]
fn nodes_find_a_restarted_relay_again() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let mut tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let alice = tailnet.join(&lab.host("alice", Place::NoUdp).unwrap(), Kind::Warren);
        let bob = tailnet.join(&lab.host("bob", Place::Easy).unwrap(), Kind::Warren);
        traffic_flows(&alice, &bob);
        assert!(matches!(alice.path_to("bob").unwrap(), Path::Relay(_)));
        for relay in &mut tailnet.relays {
            relay.program().kill().unwrap();
        }
        for relay in &mut tailnet.relays {
            relay.restart().unwrap();
        }
        traffic_flows(&alice, &bob);
        traffic_flows(&bob, &alice);
        assert!(matches!(alice.path_to("bob").unwrap(), Path::Relay(_)));
        Some(())
    };
    run(&mut lab);
}
