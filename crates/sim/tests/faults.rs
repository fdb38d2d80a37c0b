//! Faults of a network, one at a time.

#![allow(clippy::unwrap_used)]

use warren_sim::{
    FlowSpec, Link, NodeIndex, Options, PathKind, RelayIndex, Sim, Uplink, millis, secs,
};

struct Pair {
    sim: Sim,
    relay: RelayIndex,
    alice: NodeIndex,
    bob: NodeIndex,
}

/// Two nodes that know each other.
fn joined_pair(seed: u64, a: Uplink, b: Uplink) -> Pair {
    let mut sim = Sim::new(seed);
    let relay = sim.relay("ams");
    let alice = sim.node("alice", a);
    let bob = sim.node("bob", b);
    sim.run_until_joined();
    Pair {
        sim,
        relay,
        alice,
        bob,
    }
}

impl Pair {
    fn path_kinds(&self) -> [PathKind; 2] {
        [
            self.sim.path_kind(self.alice, self.bob),
            self.sim.path_kind(self.bob, self.alice),
        ]
    }

    fn both_are(&mut self, kind: PathKind, limit: u64) -> Option<std::time::Duration> {
        let (alice, bob) = (self.alice, self.bob);
        let both = |sim: &Sim| [sim.path_kind(alice, bob), sim.path_kind(bob, alice)] == [kind; 2];
        self.sim.wait_for(secs(limit), both)
    }
}

#[test]
fn a_cut_path_falls_back_to_the_relay_and_comes_back() {
    let mut pair = joined_pair(1, Uplink::Easy, Uplink::Firewall);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(20)));
    pair.both_are(PathKind::Direct, 5).unwrap();
    pair.sim.run_for(secs(5));
    assert!(pair.sim.report(flow).lost.is_empty());

    pair.sim.cut(pair.alice, pair.bob);
    let cut_at = pair.sim.elapsed();
    let away = pair.both_are(PathKind::Relay, 60).unwrap();
    pair.sim.run_for(secs(10));
    let report = pair.sim.report(flow);
    println!(
        "back on the relay after {away:?}, {} datagrams lost, {:?} of silence",
        report.lost.len(),
        report.longest_silence
    );
    assert!(report.longest_silence < secs(5), "{report:?}");
    assert_eq!(pair.path_kinds(), [PathKind::Relay; 2]);
    let last = pair.sim.last_loss(flow).unwrap();
    assert!(last < cut_at + secs(5), "still losing at {last:?}");

    pair.sim.mend(pair.alice, pair.bob);
    let back = pair.both_are(PathKind::Direct, 90).unwrap();
    println!("direct again after {back:?}");
    let before = pair.sim.report(flow).lost.len();
    pair.sim.run_for(secs(10));
    assert_eq!(
        pair.sim.report(flow).lost.len(),
        before,
        "none is lost on the way back"
    );
}

#[test]
fn a_router_that_loses_its_state_is_detected() {
    let mut pair = joined_pair(2, Uplink::Easy, Uplink::Easy);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(20)));
    pair.both_are(PathKind::Direct, 5).unwrap();
    pair.sim.run_for(secs(3));
    pair.sim.reboot_router(pair.alice);
    pair.sim.run_for(secs(30));
    let report = pair.sim.report(flow);
    assert!(report.longest_silence < secs(5), "{report:?}");
    assert_eq!(
        pair.path_kinds(),
        [PathKind::Direct; 2],
        "{:?}",
        pair.sim.path_history(pair.alice, pair.bob)
    );
}

#[test]
fn a_restarted_peer_is_reached_again_though_its_disco_key_is_new() {
    for (a, b) in [(Uplink::Easy, Uplink::Easy), (Uplink::Hard, Uplink::Easy)] {
        let mut pair = joined_pair(3, a, b);
        let flow = pair
            .sim
            .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
        pair.sim.run_for(secs(5));
        let path_kinds = pair.path_kinds();
        pair.sim.restart(pair.bob);
        let restarted = pair.sim.elapsed();
        pair.sim.run_for(secs(40));
        let report = pair.sim.report(flow);
        let silence = report.longest_silence;
        println!(
            "{a:?} {b:?}: {silence:?} of silence, {} lost",
            report.lost.len()
        );
        let last = pair.sim.last_loss(flow).unwrap();
        assert!(last - restarted < secs(1), "{report:?}");
        assert_eq!(pair.path_kinds(), path_kinds);
    }
}

#[test]
fn a_restarted_node_that_sends_first_gets_replies_at_once() {
    let mut pair = joined_pair(4, Uplink::Easy, Uplink::Easy);
    let flow = pair
        .sim
        .flow(pair.bob, pair.alice, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(5));
    pair.sim.restart(pair.bob);
    pair.sim.run_for(secs(10));
    let report = pair.sim.report(flow);
    assert!(report.longest_silence < secs(1), "{report:?}");
}

#[test]
fn a_node_that_roams_keeps_its_flows() {
    for (from, to) in [
        (Uplink::Easy, Uplink::Easy),
        (Uplink::Open, Uplink::Hard),
        (Uplink::Easy, Uplink::NoUdp),
        (Uplink::NoUdp, Uplink::Firewall),
    ] {
        let mut pair = joined_pair(5, from, Uplink::Easy);
        let flow = pair
            .sim
            .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
        pair.sim.run_for(secs(5));
        pair.sim.roam(pair.alice, to);
        pair.sim.run_for(secs(30));
        let report = pair.sim.report(flow);
        println!(
            "{from:?} to {to:?}: {:?} of silence",
            report.longest_silence
        );
        assert!(
            report.longest_silence < secs(2),
            "{from:?} {to:?} {report:?}"
        );
        let expected = match to {
            Uplink::Easy | Uplink::Firewall => PathKind::Direct,
            _ => PathKind::Relay,
        };
        assert_eq!(pair.path_kinds(), [expected; 2], "{from:?} {to:?}");
    }
}

#[test]
fn an_unplugged_node_recovers_when_it_is_plugged_in() {
    let mut pair = joined_pair(6, Uplink::Easy, Uplink::Easy);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(5));
    pair.sim.unplug(pair.bob);
    pair.sim.run_for(secs(60));
    pair.sim.plug(pair.bob);
    let plugged = pair.sim.elapsed();
    pair.sim.run_for(secs(30));
    let last = pair.sim.last_loss(flow).unwrap();
    println!(
        "still lost {:?} after the cable was back",
        last.saturating_sub(plugged)
    );
    assert!(last < plugged + secs(7), "{:?} {last:?}", plugged);
    assert_eq!(pair.path_kinds(), [PathKind::Direct; 2]);
}

#[test]
fn a_relay_restart_does_not_disturb_direct_paths() {
    let mut pair = joined_pair(7, Uplink::Easy, Uplink::Easy);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(20)));
    pair.both_are(PathKind::Direct, 5).unwrap();
    pair.sim.run_for(secs(1));
    pair.sim.stop_relay(pair.relay);
    pair.sim.run_for(secs(20));
    pair.sim.start_relay(pair.relay);
    pair.sim.run_for(secs(20));
    assert!(pair.sim.report(flow).lost.is_empty());
    assert_eq!(pair.path_kinds(), [PathKind::Direct; 2]);
    assert_eq!(pair.sim.relay_clients(pair.relay), 2);
}

#[test]
fn flows_through_a_relay_recover_soon_after_its_restart() {
    let mut pair = joined_pair(8, Uplink::Hard, Uplink::Hard);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(5));
    pair.sim.stop_relay(pair.relay);
    pair.sim.run_for(secs(3));
    pair.sim.start_relay(pair.relay);
    let started = pair.sim.elapsed();
    pair.sim.run_for(secs(30));
    let last = pair.sim.last_loss(flow).unwrap();
    println!(
        "still lost {:?} after the relay was back",
        last.saturating_sub(started)
    );
    assert!(last < started + secs(7), "{started:?} {last:?}");
}

#[test]
fn another_relay_takes_over_from_one_that_stops() {
    let mut sim = Sim::new(9);
    let near = sim.relay("near");
    let far = sim.relay_with(
        "far",
        Link {
            latency: millis(40),
            ..Link::default()
        },
    );
    let alice = sim.node("alice", Uplink::Hard);
    let bob = sim.node("bob", Uplink::Hard);
    sim.run_until_joined();
    let flow = sim.flow(alice, bob, FlowSpec::every(millis(50)));
    sim.run_for(secs(5));
    sim.stop_relay(near);
    let died = sim.elapsed();
    sim.run_for(secs(60));
    let report = sim.report(flow);
    println!("{:?} of silence", report.longest_silence);
    assert!(
        report.longest_silence < secs(5),
        "{:?}",
        report.longest_silence
    );
    let last = sim.last_loss(flow).unwrap();
    assert!(last < died + secs(5));
    assert_eq!(sim.relay_clients(far), 2);
}

#[test]
fn flows_continue_while_the_control_server_is_down() {
    let mut pair = joined_pair(10, Uplink::Easy, Uplink::Firewall);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(2));
    pair.sim.stop_control();
    pair.sim.run_for(secs(150));
    let report = pair.sim.report(flow);
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    assert_eq!(pair.path_kinds(), [PathKind::Direct; 2]);

    // A node starts from the netmap on its disk; its peer learns the new disco key
    // from the node itself.
    pair.sim.restart(pair.bob);
    let restarted = pair.sim.elapsed();
    pair.sim.run_for(secs(60));
    let report = pair.sim.report(flow);
    let last = pair.sim.last_loss(flow).unwrap();
    println!("restart without control: lost for {:?}", last - restarted);
    // It notices that its peer sends on a session from before the restart.
    assert!(last - restarted < secs(1), "{report:?}");
    let started = pair.sim.engine(pair.bob).handshakes().counters();
    assert_eq!(started.initiations_sent, 1);

    pair.sim.start_control();
    pair.both_are(PathKind::Direct, 60).unwrap();
    assert!(pair.sim.sees(pair.alice, pair.bob) && pair.sim.sees(pair.bob, pair.alice));
}

#[test]
fn nodes_start_from_netmaps_on_disk_without_the_control_server() {
    let mut pair = joined_pair(11, Uplink::Easy, Uplink::Easy);
    pair.sim.run_for(secs(5));
    pair.sim.stop_control();
    pair.sim.kill(pair.alice);
    pair.sim.kill(pair.bob);
    pair.sim.run_for(secs(60));
    pair.sim.start(pair.alice);
    pair.sim.start(pair.bob);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(30));
    let report = pair.sim.report(flow);
    println!("first answer after {:?}", report.first_answer);
    // An initiation that went to the relay before the peer was there is
    // repeated after five seconds.
    assert!(report.first_answer.unwrap() < millis(500), "{report:?}");
}

#[test]
fn an_expired_key_ends_the_traffic_and_a_new_key_resumes_it() {
    let mut pair = joined_pair(12, Uplink::Easy, Uplink::Easy);
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(5));
    pair.sim
        .admin(|control, wall| control.expire_node(wall, "bob").unwrap());
    pair.sim.run_for(secs(1));
    let before = pair.sim.report(flow);
    assert!(!pair.sim.sees(pair.alice, pair.bob));
    pair.sim.run_for(secs(10));
    assert_eq!(
        pair.sim.report(flow).reached,
        before.reached,
        "nothing reaches an expired node"
    );
    pair.sim.stop_flow(flow);

    pair.sim.renew_key(pair.bob);
    pair.sim.run_until_joined();
    let flow = pair
        .sim
        .flow(pair.alice, pair.bob, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(10));
    let report = pair.sim.report(flow);
    // An initiation that went to the relay before the peer was there is
    // repeated after five seconds.
    assert!(
        report.lost.is_empty() && report.first_answer.unwrap() < millis(500),
        "{report:?}"
    );
    assert_eq!(pair.path_kinds(), [PathKind::Direct; 2]);
}

#[test]
fn keys_expire_by_the_clock_while_the_control_server_is_down() {
    let mut sim = Sim::with(Options {
        seed: 13,
        key_lifetime: Some(secs(100)),
        ..Options::default()
    });
    sim.relay("ams");
    let alice = sim.node("alice", Uplink::Easy);
    let bob = sim.node("bob", Uplink::Easy);
    sim.run_until_joined();
    let flow = sim.flow(alice, bob, FlowSpec::every(millis(100)));
    sim.run_for(secs(10));
    sim.stop_control();
    sim.run_until(secs(98));
    assert!(sim.report(flow).lost.is_empty());
    sim.run_until(secs(103));
    let ended = sim.report(flow).reached;
    sim.run_for(secs(10));
    assert_eq!(sim.report(flow).reached, ended);
    assert!(!sim.sees(alice, bob));
}

#[test]
fn flows_survive_jumps_of_wall_clocks() {
    for seconds in [86_400 * 30, -86_400 * 30, -5] {
        let mut pair = joined_pair(14, Uplink::Easy, Uplink::Easy);
        let flow = pair
            .sim
            .flow(pair.alice, pair.bob, FlowSpec::every(millis(100)));
        pair.sim.run_for(secs(5));
        pair.sim.jump_clock(pair.alice, seconds);
        pair.sim.jump_clock(pair.bob, -seconds / 2);
        // Long enough for new handshakes, which carry timestamps.
        pair.sim.run_for(secs(260));
        let report = pair.sim.report(flow);
        assert!(report.lost.is_empty(), "{seconds}: {:?}", report.lost);
    }
}

/// The peer took timestamps from before the restart, and the server is down, so
/// that the peer does not learn of the new process.
#[test]
fn a_clock_set_back_over_a_restart_does_not_block_handshakes() {
    let mut pair = joined_pair(18, Uplink::Easy, Uplink::Easy);
    let flow = pair
        .sim
        .flow(pair.bob, pair.alice, FlowSpec::every(millis(50)));
    pair.sim.run_for(secs(5));
    pair.sim.stop_control();
    pair.sim.kill(pair.bob);
    pair.sim.jump_clock(pair.bob, -86_400 * 30);
    pair.sim.start(pair.bob);
    pair.sim.run_for(secs(10));
    let refused = pair.sim.engine(pair.alice).handshakes().counters().replayed;
    assert_eq!(refused, 0);
    let report = pair.sim.report(flow);
    assert!(report.longest_silence < secs(1), "{report:?}");
}

#[test]
fn a_lossy_link_costs_only_the_packets_that_it_loses() {
    let link = Link {
        latency: millis(75),
        jitter: millis(20),
        loss: 0.025,
        mtu: 1_500,
    };
    for (a, b) in [(Uplink::Easy, Uplink::Easy), (Uplink::Hard, Uplink::Hard)] {
        let mut sim = Sim::new(15);
        sim.relay("ams");
        let alice = sim.node_with(warren_sim::NodeSpec::new("alice", a).link(link));
        let bob = sim.node_with(warren_sim::NodeSpec::new("bob", b).link(link));
        sim.run_until_joined();
        let flow = sim.flow(alice, bob, FlowSpec::every(millis(50)));
        sim.run_for(secs(120));
        let report = sim.report(flow);
        let lost = report.lost.len() as f64 / f64::from(report.sent);
        println!(
            "{a:?} {b:?}: {:.1} % lost, {:?}",
            lost * 100.0,
            report.longest_silence
        );
        // 5 % each way; a relayed packet is repeated by TCP.
        let expected = if a == Uplink::Easy {
            0.05..0.15
        } else {
            0.0..0.02
        };
        assert!(expected.contains(&lost), "{lost}");
        let changes = sim.path_history(alice, bob);
        assert!(changes.len() < 20, "the path flaps: {changes:?}");
        assert!(
            report.longest_silence < secs(3),
            "{:?}",
            report.longest_silence
        );
    }
}

#[test]
fn a_link_with_a_small_mtu_carries_full_packets() {
    // 1280 bytes of tunnel MTU, 32 of WireGuard, 28 of UDP and IPv4.
    let link = Link {
        mtu: 1_340,
        ..Link::default()
    };
    let mut sim = Sim::new(16);
    sim.relay("ams");
    let alice = sim.node_with(warren_sim::NodeSpec::new("alice", Uplink::Easy).link(link));
    let bob = sim.node_with(warren_sim::NodeSpec::new("bob", Uplink::Easy).link(link));
    sim.run_until_joined();
    let size = 1_280 - 28;
    let flow = sim.flow(
        alice,
        bob,
        FlowSpec {
            size,
            ..FlowSpec::default()
        },
    );
    sim.run_for(secs(10));
    let report = sim.report(flow);
    assert!(
        report.lost.is_empty(),
        "{:?} {:?}",
        report.lost,
        sim.losses()
    );
    assert_eq!(sim.path_kind(alice, bob), PathKind::Direct);
}
