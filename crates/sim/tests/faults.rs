//! What goes wrong in a network, one thing at a time.

#![allow(clippy::unwrap_used)]

use warren_sim::{FlowSpec, Link, NodeIndex, Options, Place, RelayIndex, Sim, Way, millis, secs};

struct Pair {
    sim: Sim,
    relay: RelayIndex,
    alice: NodeIndex,
    bob: NodeIndex,
}

/// Two nodes that know each other.
fn pair(seed: u64, a: Place, b: Place) -> Pair {
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
    fn ways(&self) -> [Way; 2] {
        [
            self.sim.way(self.alice, self.bob),
            self.sim.way(self.bob, self.alice),
        ]
    }

    fn both_are(&mut self, way: Way, limit: u64) -> Option<std::time::Duration> {
        let (alice, bob) = (self.alice, self.bob);
        let both = |sim: &Sim| [sim.way(alice, bob), sim.way(bob, alice)] == [way; 2];
        self.sim.wait_for(secs(limit), both)
    }
}

#[test]
fn a_cut_path_falls_back_to_the_relay_and_comes_back() {
    let mut it = pair(1, Place::Easy, Place::Firewall);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(20)));
    it.both_are(Way::Direct, 5).unwrap();
    it.sim.run_for(secs(5));
    assert!(it.sim.report(flow).lost.is_empty());

    it.sim.cut(it.alice, it.bob);
    let cut_at = it.sim.moment();
    let away = it.both_are(Way::Relay, 60).unwrap();
    it.sim.run_for(secs(10));
    let report = it.sim.report(flow);
    println!(
        "back on the relay after {away:?}, {} datagrams lost, {:?} of silence",
        report.lost.len(),
        report.longest_silence
    );
    assert!(report.longest_silence < secs(5), "{report:?}");
    assert_eq!(it.ways(), [Way::Relay; 2]);
    let late = report.lost.iter().filter_map(|n| it.sim.sent_at(flow, *n));
    let last = late.max().unwrap();
    assert!(last < cut_at + secs(5), "still losing at {last:?}");

    it.sim.mend(it.alice, it.bob);
    let back = it.both_are(Way::Direct, 90).unwrap();
    println!("direct again after {back:?}");
    let before = it.sim.report(flow).lost.len();
    it.sim.run_for(secs(10));
    assert_eq!(
        it.sim.report(flow).lost.len(),
        before,
        "none is lost on the way back"
    );
}

#[test]
fn a_router_that_forgets_is_found_out() {
    let mut it = pair(2, Place::Easy, Place::Easy);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(20)));
    it.both_are(Way::Direct, 5).unwrap();
    it.sim.run_for(secs(3));
    it.sim.reboot_router(it.alice);
    it.sim.run_for(secs(30));
    let report = it.sim.report(flow);
    assert!(report.longest_silence < secs(5), "{report:?}");
    assert_eq!(
        it.ways(),
        [Way::Direct; 2],
        "{:?}",
        it.sim.ways(it.alice, it.bob)
    );
}

#[test]
fn a_restarted_peer_is_reached_again_though_its_disco_key_is_new() {
    for (a, b) in [(Place::Easy, Place::Easy), (Place::Hard, Place::Easy)] {
        let mut it = pair(3, a, b);
        let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
        it.sim.run_for(secs(5));
        let ways = it.ways();
        it.sim.restart(it.bob);
        let restarted = it.sim.moment();
        it.sim.run_for(secs(40));
        let report = it.sim.report(flow);
        let silence = report.longest_silence;
        println!(
            "{a:?} {b:?}: {silence:?} of silence, {} lost",
            report.lost.len()
        );
        let last = report
            .lost
            .iter()
            .filter_map(|n| it.sim.sent_at(flow, *n))
            .max()
            .unwrap();
        assert!(last - restarted < secs(1), "{report:?}");
        assert_eq!(it.ways(), ways);
    }
}

#[test]
fn a_restarted_node_that_speaks_first_is_heard_at_once() {
    let mut it = pair(4, Place::Easy, Place::Easy);
    let flow = it.sim.flow(it.bob, it.alice, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(5));
    it.sim.restart(it.bob);
    it.sim.run_for(secs(10));
    let report = it.sim.report(flow);
    assert!(report.longest_silence < secs(1), "{report:?}");
}

#[test]
fn a_node_that_roams_keeps_its_flows() {
    for (from, to) in [
        (Place::Easy, Place::Easy),
        (Place::Open, Place::Hard),
        (Place::Easy, Place::NoUdp),
        (Place::NoUdp, Place::Firewall),
    ] {
        let mut it = pair(5, from, Place::Easy);
        let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
        it.sim.run_for(secs(5));
        it.sim.roam(it.alice, to);
        it.sim.run_for(secs(30));
        let report = it.sim.report(flow);
        println!(
            "{from:?} to {to:?}: {:?} of silence",
            report.longest_silence
        );
        assert!(
            report.longest_silence < secs(2),
            "{from:?} {to:?} {report:?}"
        );
        let expected = match to {
            Place::Easy | Place::Firewall => Way::Direct,
            _ => Way::Relay,
        };
        assert_eq!(it.ways(), [expected; 2], "{from:?} {to:?}");
    }
}

#[test]
fn a_cable_that_was_out_changes_nothing_for_good() {
    let mut it = pair(6, Place::Easy, Place::Easy);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(5));
    it.sim.unplug(it.bob);
    it.sim.run_for(secs(60));
    it.sim.plug(it.bob);
    let plugged = it.sim.moment();
    it.sim.run_for(secs(30));
    let report = it.sim.report(flow);
    let last = report
        .lost
        .iter()
        .filter_map(|n| it.sim.sent_at(flow, *n))
        .max()
        .unwrap();
    println!(
        "still lost {:?} after the cable was back",
        last.saturating_sub(plugged)
    );
    assert!(last < plugged + secs(7), "{:?} {last:?}", plugged);
    assert_eq!(it.ways(), [Way::Direct; 2]);
}

#[test]
fn a_relay_restart_disturbs_nobody_who_goes_direct() {
    let mut it = pair(7, Place::Easy, Place::Easy);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(20)));
    it.both_are(Way::Direct, 5).unwrap();
    it.sim.run_for(secs(1));
    it.sim.stop_relay(it.relay);
    it.sim.run_for(secs(20));
    it.sim.start_relay(it.relay);
    it.sim.run_for(secs(20));
    assert!(it.sim.report(flow).lost.is_empty());
    assert_eq!(it.ways(), [Way::Direct; 2]);
    assert_eq!(it.sim.relay_clients(it.relay), 2);
}

#[test]
fn those_who_need_the_relay_are_back_soon_after_it() {
    let mut it = pair(8, Place::Hard, Place::Hard);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(5));
    it.sim.stop_relay(it.relay);
    it.sim.run_for(secs(3));
    it.sim.start_relay(it.relay);
    let started = it.sim.moment();
    it.sim.run_for(secs(30));
    let report = it.sim.report(flow);
    let last = report
        .lost
        .iter()
        .filter_map(|n| it.sim.sent_at(flow, *n))
        .max()
        .unwrap();
    println!(
        "still lost {:?} after the relay was back",
        last.saturating_sub(started)
    );
    assert!(last < started + secs(7), "{started:?} {last:?}");
}

#[test]
fn another_relay_takes_over_from_one_that_dies() {
    let mut sim = Sim::new(9);
    let near = sim.relay("near");
    let far = sim.relay_with(
        "far",
        Link {
            latency: millis(40),
            ..Link::default()
        },
    );
    let alice = sim.node("alice", Place::Hard);
    let bob = sim.node("bob", Place::Hard);
    sim.run_until_joined();
    let flow = sim.flow(alice, bob, FlowSpec::every(millis(50)));
    sim.run_for(secs(5));
    sim.stop_relay(near);
    let died = sim.moment();
    sim.run_for(secs(60));
    let report = sim.report(flow);
    println!("{:?} of silence", report.longest_silence);
    assert!(
        report.longest_silence < secs(5),
        "{:?}",
        report.longest_silence
    );
    let last = report
        .lost
        .iter()
        .filter_map(|n| sim.sent_at(flow, *n))
        .max()
        .unwrap();
    assert!(last < died + secs(5));
    assert_eq!(sim.relay_clients(far), 2);
}

#[test]
fn everything_goes_on_while_control_is_away() {
    let mut it = pair(10, Place::Easy, Place::Firewall);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(2));
    it.sim.stop_control();
    it.sim.run_for(secs(150));
    let report = it.sim.report(flow);
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    assert_eq!(it.ways(), [Way::Direct; 2]);

    // A node starts from the netmap it kept; its peer learns its new disco key
    // from nobody but itself.
    it.sim.restart(it.bob);
    let restarted = it.sim.moment();
    it.sim.run_for(secs(60));
    let report = it.sim.report(flow);
    let last = report
        .lost
        .iter()
        .filter_map(|n| it.sim.sent_at(flow, *n))
        .max()
        .unwrap();
    println!("restart without control: lost for {:?}", last - restarted);
    // It sees that its peer sends on a session of the time before.
    assert!(last - restarted < secs(1), "{report:?}");
    let started = it.sim.engine(it.bob).handshakes().counters();
    assert_eq!(started.initiations_sent, 1);

    it.sim.start_control();
    it.both_are(Way::Direct, 60).unwrap();
    assert!(it.sim.sees(it.alice, it.bob) && it.sim.sees(it.bob, it.alice));
}

#[test]
fn both_start_from_kept_netmaps_without_control() {
    let mut it = pair(11, Place::Easy, Place::Easy);
    it.sim.run_for(secs(5));
    it.sim.stop_control();
    it.sim.kill(it.alice);
    it.sim.kill(it.bob);
    it.sim.run_for(secs(60));
    it.sim.start(it.alice);
    it.sim.start(it.bob);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(30));
    let report = it.sim.report(flow);
    println!("first answer after {:?}", report.first_answer);
    // An initiation that went to the relay before the peer was there is
    // repeated after five seconds.
    assert!(report.first_answer.unwrap() < millis(500), "{report:?}");
}

#[test]
fn an_expired_key_ends_the_traffic_and_a_new_one_begins_it_again() {
    let mut it = pair(12, Place::Easy, Place::Easy);
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(5));
    it.sim
        .admin(|control, wall| control.expire_node(wall, "bob").unwrap());
    it.sim.run_for(secs(1));
    let before = it.sim.report(flow);
    assert!(!it.sim.sees(it.alice, it.bob));
    it.sim.run_for(secs(10));
    assert_eq!(
        it.sim.report(flow).reached,
        before.reached,
        "nothing reaches an expired node"
    );
    it.sim.stop_flow(flow);

    it.sim.renew_key(it.bob);
    it.sim.run_until_joined();
    let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(10));
    let report = it.sim.report(flow);
    // An initiation that went to the relay before the peer was there is
    // repeated after five seconds.
    assert!(
        report.lost.is_empty() && report.first_answer.unwrap() < millis(500),
        "{report:?}"
    );
    assert_eq!(it.ways(), [Way::Direct; 2]);
}

#[test]
fn keys_end_by_the_clock_also_while_control_is_away() {
    let mut sim = Sim::with(Options {
        seed: 13,
        key_lifetime: Some(secs(100)),
        ..Options::default()
    });
    sim.relay("ams");
    let alice = sim.node("alice", Place::Easy);
    let bob = sim.node("bob", Place::Easy);
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
fn wall_clocks_may_jump() {
    for seconds in [86_400 * 30, -86_400 * 30, -5] {
        let mut it = pair(14, Place::Easy, Place::Easy);
        let flow = it.sim.flow(it.alice, it.bob, FlowSpec::every(millis(100)));
        it.sim.run_for(secs(5));
        it.sim.jump_clock(it.alice, seconds);
        it.sim.jump_clock(it.bob, -seconds / 2);
        // Long enough for new handshakes, which carry timestamps.
        it.sim.run_for(secs(260));
        let report = it.sim.report(flow);
        assert!(report.lost.is_empty(), "{seconds}: {:?}", report.lost);
    }
}

/// Its peer took timestamps of the time before; the server is away, so that
/// nobody tells the peer that it is another process.
#[test]
fn a_clock_that_is_set_back_over_a_restart_locks_nobody_out() {
    let mut it = pair(18, Place::Easy, Place::Easy);
    let flow = it.sim.flow(it.bob, it.alice, FlowSpec::every(millis(50)));
    it.sim.run_for(secs(5));
    it.sim.stop_control();
    it.sim.kill(it.bob);
    it.sim.jump_clock(it.bob, -86_400 * 30);
    it.sim.start(it.bob);
    it.sim.run_for(secs(10));
    let refused = it.sim.engine(it.alice).handshakes().counters().replayed;
    assert_eq!(refused, 0);
    let report = it.sim.report(flow);
    assert!(report.longest_silence < secs(1), "{report:?}");
}

#[test]
fn a_bad_line_costs_only_what_it_loses() {
    let line = Link {
        latency: millis(75),
        jitter: millis(20),
        loss: 0.025,
        mtu: 1_500,
    };
    for (a, b) in [(Place::Easy, Place::Easy), (Place::Hard, Place::Hard)] {
        let mut sim = Sim::new(15);
        sim.relay("ams");
        let alice = sim.node_with(warren_sim::NodeSpec::new("alice", a).link(line));
        let bob = sim.node_with(warren_sim::NodeSpec::new("bob", b).link(line));
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
        let expected = if a == Place::Easy {
            0.05..0.15
        } else {
            0.0..0.02
        };
        assert!(expected.contains(&lost), "{lost}");
        let changes = sim.ways(alice, bob);
        assert!(changes.len() < 20, "the path flaps: {changes:?}");
        assert!(
            report.longest_silence < secs(3),
            "{:?}",
            report.longest_silence
        );
    }
}

#[test]
fn a_narrow_line_carries_full_packets() {
    // 1280 bytes of tunnel MTU, 32 of WireGuard, 28 of UDP and IPv4.
    let line = Link {
        mtu: 1_340,
        ..Link::default()
    };
    let mut sim = Sim::new(16);
    sim.relay("ams");
    let alice = sim.node_with(warren_sim::NodeSpec::new("alice", Place::Easy).link(line));
    let bob = sim.node_with(warren_sim::NodeSpec::new("bob", Place::Easy).link(line));
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
    assert_eq!(sim.way(alice, bob), Way::Direct);
}
