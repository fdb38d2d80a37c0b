//! Every pair of places: when the first answer comes, which way packets go in
//! the end, and that none gets lost on the way there.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use warren_sim::{FlowSpec, Place, Sim, Way, millis, secs};

const PLACES: [(&str, Place); 7] = [
    ("open", Place::Open),
    ("cone", Place::Cone),
    ("easy", Place::Easy),
    ("cgnat", Place::Cgnat),
    ("firewall", Place::Firewall),
    ("hard", Place::Hard),
    ("no-udp", Place::NoUdp),
];

/// Whether RFC 4787 lets two places find a straight way without guessing
/// ports: a NAT that maps by destination can only talk to somebody who takes
/// datagrams from ports that were never asked for.
fn can_be_direct(a: Place, b: Place) -> bool {
    let takes_strangers = |place| matches!(place, Place::Open | Place::Cone);
    match (a, b) {
        (Place::NoUdp, _) | (_, Place::NoUdp) => false,
        (Place::Hard, other) | (other, Place::Hard) => takes_strangers(other),
        _ => true,
    }
}

struct Outcome {
    first_answer: Duration,
    direct_after: Option<Duration>,
    way: Way,
    lost: usize,
}

fn try_pair(seed: u64, a: Place, b: Place) -> Outcome {
    let mut sim = Sim::new(seed);
    sim.relay("ams");
    let alice = sim.node("alice", a);
    let bob = sim.node("bob", b);
    sim.run_until_joined();
    let began = sim.moment();
    let flow = sim.flow(alice, bob, FlowSpec::every(millis(20)));
    let both = |sim: &Sim| [sim.way(alice, bob), sim.way(bob, alice)] == [Way::Direct; 2];
    let direct_after = sim.wait_for(secs(20), both);
    sim.run_until(began + secs(25));
    let report = sim.report(flow);
    let lost = report.lost.len();
    if lost > 0 {
        println!(
            "{a:?} {b:?} lost {:?} {:?}",
            report.lost,
            sim.ways(alice, bob)
        );
        println!(
            "{} {:?}\n{} {:?}",
            sim.describe(alice),
            sim.drops(alice),
            sim.describe(bob),
            sim.drops(bob)
        );
    }
    Outcome {
        first_answer: report.first_answer.unwrap_or(Duration::MAX),
        direct_after,
        way: sim.way(alice, bob),
        lost,
    }
}

#[test]
fn every_pair_talks_at_once_and_goes_direct_where_it_can() {
    println!(
        "{:>9} {:<9} {:>12} {:>10}  way",
        "from", "to", "first answer", "direct"
    );
    let mut wrong = Vec::new();
    for (n, (name_a, a)) in PLACES.into_iter().enumerate() {
        for (m, (name_b, b)) in PLACES.into_iter().enumerate() {
            let outcome = try_pair((n * 10 + m) as u64, a, b);
            let ms = |time: Duration| format!("{} ms", time.as_millis());
            println!(
                "{name_a:>9} {name_b:<9} {:>12} {:>10}  {:?}, {} lost",
                ms(outcome.first_answer),
                outcome.direct_after.map_or("never".to_owned(), ms),
                outcome.way,
                outcome.lost,
            );
            let expected = if can_be_direct(a, b) {
                Way::Direct
            } else {
                Way::Relay
            };
            let in_time = outcome.direct_after.is_none_or(|time| time < secs(1));
            if outcome.first_answer >= millis(200)
                || outcome.way != expected
                || !in_time
                || outcome.lost > 0
            {
                wrong.push(format!("{name_a}-{name_b}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
