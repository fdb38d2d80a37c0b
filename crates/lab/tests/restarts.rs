//! Daemons that end and start again: what they keep, and how soon they are
//! back.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant, SystemTime};

use warren_lab::probe::{Echo, Probe};
use warren_lab::scenario::{Tailnet, address, installed, lab, traffic_flows};
use warren_lab::{Kind, Lab, Node, PATIENCE, Place, RelayKind, until};

fn pair(lab: &mut Lab) -> Option<(Tailnet, Node, Node)> {
    installed(Kind::Warren)?;
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    let alice = lab.host("alice", Place::Open).unwrap();
    let bob = lab.host("bob", Place::Easy).unwrap();
    let (alice, bob) = (
        tailnet.join(&alice, Kind::Warren),
        tailnet.join(&bob, Kind::Warren),
    );
    Some((tailnet, alice, bob))
}

/// The second that the node keeps as the floor of its handshakes' clock.
fn kept_clock(node: &Node) -> Result<u64, String> {
    let path = node.host().folder().join("node/handshake-clock");
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    text.trim().parse().map_err(|_| text)
}

/// The machine's clock cannot be turned back here, so the kept one is turned
/// forward: to the node, that is the same.
#[test]
fn handshakes_go_on_where_the_last_run_ended() {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, mut alice, mut bob)) = pair(&mut lab) else {
        return;
    };
    traffic_flows(&alice, &bob);
    until("the clock on disk", PATIENCE, || kept_clock(&alice)).unwrap();
    alice.daemon().kill().unwrap();
    // A peer without a session does not start a handshake of its own.
    bob.daemon().kill().unwrap();
    bob.restart().unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ahead = (now + Duration::from_secs(86_400)).as_secs();
    let path = alice.host().folder().join("node/handshake-clock");
    std::fs::write(path, format!("{ahead}\n")).unwrap();
    alice.restart().unwrap();
    traffic_flows(&alice, &bob);
    until("a later clock on disk", PATIENCE, || {
        kept_clock(&alice).and_then(|kept| {
            if kept > ahead {
                Ok(())
            } else {
                Err(kept.to_string())
            }
        })
    })
    .unwrap();
    // After an orderly stop, the clock is not ahead of the last sent timestamp.
    alice.daemon().stop().unwrap();
    assert_eq!(kept_clock(&alice), Ok(ahead + 1));
    alice.restart().unwrap();
    traffic_flows(&bob, &alice);
}

/// A peer still sends on a session of the time before the restart, and does not know
/// that it is gone. The restarted node starts the handshake, as its kept clock shows.
#[test]
fn without_the_server_a_restarted_node_is_reached_again() {
    let Some(mut lab) = lab() else { return };
    let Some((mut tailnet, mut alice, bob)) = pair(&mut lab) else {
        return;
    };
    traffic_flows(&bob, &alice);
    let _echo = Echo::start(alice.host()).unwrap();
    let to = address(&alice, false);
    let probe = Probe::start(bob.host(), to, Duration::from_millis(10)).unwrap();
    until("a first answer", PATIENCE, || {
        probe.first_answer().ok_or("none")
    })
    .unwrap();
    tailnet.control.program().kill().unwrap();
    alice.daemon().kill().unwrap();
    let path = alice.host().folder().join("node/handshake-clock");
    if path.exists() {
        std::fs::remove_file(&path).unwrap();
    }
    alice.restart().unwrap();
    let restarted = Instant::now();
    let back = until("answers again", PATIENCE, || {
        let shots = probe.shots();
        let after = shots.iter().filter(|shot| shot.sent > restarted);
        after
            .filter_map(|shot| shot.answered)
            .min()
            .ok_or("silence")
    })
    .unwrap();
    println!("reached again after {:?}", back - restarted);
    until("its own handshake", PATIENCE, || kept_clock(&alice)).unwrap();
}
