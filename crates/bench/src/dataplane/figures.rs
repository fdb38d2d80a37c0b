//! The metrics, their names, and their goals.

use std::collections::BTreeMap;

use super::ends::Candidate;

/// One number of one round.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Key of a [`Metric`], or a by-product that only the file holds.
    pub metric: String,
    /// The candidate that was measured.
    pub candidate: Candidate,
    /// In which round, from 1.
    pub round: u32,
    /// In the metric's unit.
    pub value: f64,
}

/// A kind of number.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Item and name, with a point between.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// Whether more is better.
    pub more: bool,
    /// The goal for ours.
    pub goals: &'static [Goal],
}

/// The goal for ours: a minimum where more is better, else a maximum.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// That many times what it gives.
    Times(f64, Candidate),
    /// That much.
    Plain(f64),
    /// That many times another figure of ours.
    Own(f64, &'static str),
}

/// The least, the middle and the most of a row of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let upper = *figures.get(figures.len() / 2)?;
        let lower = *figures.get((figures.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            least: *figures.first()?,
            most: *figures.last()?,
        })
    }
}

/// All spreads, by metric and candidate.
#[derive(Debug, Default)]
pub struct Spreads(BTreeMap<(String, Candidate), Spread>);

impl Spreads {
    /// Sums up the rounds.
    pub fn of(figures: &[Figure]) -> Self {
        let mut rows: BTreeMap<(String, Candidate), Vec<f64>> = BTreeMap::new();
        for figure in figures {
            let row = rows
                .entry((figure.metric.clone(), figure.candidate))
                .or_default();
            row.push(figure.value);
        }
        let spreads = rows
            .into_iter()
            .filter_map(|(key, row)| Some((key, Spread::of(row)?)));
        Self(spreads.collect())
    }

    /// Of one metric.
    pub fn get(&self, metric: &Metric, candidate: Candidate) -> Option<Spread> {
        self.of_key(metric.key, candidate)
    }

    /// Of a metric or a by-product.
    pub fn of_key(&self, key: &str, candidate: Candidate) -> Option<Spread> {
        self.0.get(&(key.to_owned(), candidate)).copied()
    }

    /// Everything, for other programs.
    pub fn all(&self) -> impl Iterator<Item = (&str, Candidate, Spread)> {
        self.0
            .iter()
            .map(|((key, candidate), spread)| (key.as_str(), *candidate, *spread))
    }

    /// Ours divided by another's.
    pub fn ratio(&self, metric: &Metric, to: Candidate) -> Option<f64> {
        let (ours, theirs) = (self.get(metric, Candidate::Ours)?, self.get(metric, to)?);
        (theirs.median > 0.0).then(|| ours.median / theirs.median)
    }

    /// Whether the goal is reached; `None` when a figure is missing.
    pub fn reaches(&self, metric: &Metric, goal: Goal) -> Option<bool> {
        let ours = self.get(metric, Candidate::Ours)?.median;
        let limit = match goal {
            Goal::Times(times, candidate) => times * self.get(metric, candidate)?.median,
            Goal::Plain(limit) => limit,
            Goal::Own(times, key) => times * self.of_key(key, Candidate::Ours)?.median,
        };
        Some(if metric.more {
            ours >= limit
        } else {
            ours <= limit
        })
    }

    /// A goal in words, with whether it is reached.
    pub fn verdict(&self, metric: &Metric, goal: Goal) -> String {
        let sign = if metric.more { "≥" } else { "≤" };
        let text = match goal {
            Goal::Times(times, candidate) => format!("{sign} {times}x {candidate}"),
            Goal::Plain(limit) => format!("{sign} {limit}"),
            Goal::Own(times, key) => format!("{sign} {times}x {key}"),
        };
        match self.reaches(metric, goal) {
            Some(true) => format!("{text}: yes"),
            Some(false) => format!("{text}: **no**"),
            None => text,
        }
    }
}

use Candidate::{BoringTun, Reference, Roofline};
use Goal::{Own, Plain, Times};

const fn rate(key: &'static str, title: &'static str, goals: &'static [Goal]) -> Metric {
    Metric {
        key,
        title,
        unit: "Gbit/s",
        digits: 2,
        more: true,
        goals,
    }
}

const fn less(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    digits: usize,
    goals: &'static [Goal],
) -> Metric {
    Metric {
        key,
        title,
        unit,
        digits,
        more: false,
        goals,
    }
}

const fn cpu(key: &'static str, title: &'static str, goals: &'static [Goal]) -> Metric {
    less(key, title, "CPU s/GB", 2, goals)
}

const CPU_GOAL: &[Goal] = &[Times(0.4, Reference)];

/// The rows of the table, in their order.
pub const METRICS: &[Metric] = &[
    rate(
        "tcp1.rate",
        "TCP, 1 stream",
        &[Times(2.5, Reference), Times(0.75, Roofline)],
    ),
    cpu("tcp1.cpu_out", "  sending node", CPU_GOAL),
    cpu("tcp1.cpu_in", "  receiving node", CPU_GOAL),
    cpu("tcp1.cpu_all", "  whole machine", &[]),
    rate("tcp4.rate", "TCP, 4 streams", &[]),
    cpu("tcp4.cpu_out", "  sending node", &[]),
    cpu("tcp4.cpu_in", "  receiving node", &[]),
    cpu("tcp4.cpu_all", "  whole machine", &[]),
    rate("udp05.sent", "UDP 1,200 B, 0.5 Gbit/s offered: sent", &[]),
    rate("udp05.rate", "  received", &[]),
    less("udp05.lost", "  lost", "%", 2, &[Plain(0.1)]),
    cpu("udp05.cpu_out", "  sending node", &[]),
    cpu("udp05.cpu_in", "  receiving node", &[]),
    rate("udp3.sent", "UDP 1,200 B, 3 Gbit/s offered: sent", &[]),
    rate("udp3.rate", "  received", &[Own(0.9, "udpmax.rate")]),
    less("udp3.lost", "  lost", "%", 2, &[]),
    cpu("udp3.cpu_out", "  sending node", &[]),
    cpu("udp3.cpu_in", "  receiving node", &[]),
    rate(
        "udpmax.rate",
        "UDP 1,200 B, highest with under 1 % lost",
        &[Times(10.0, Reference), Times(2.0, BoringTun)],
    ),
    cpu("udpmax.cpu_out", "  sending node", &[]),
    cpu("udpmax.cpu_in", "  receiving node", &[]),
    cpu("udpmax.cpu_all", "  whole machine", &[]),
    less("udpmax.busy", "  processors busy", "%", 0, &[]),
    less("ping.min", "round trip, idle: least", "ms", 3, &[]),
    less("ping.avg", "  mean", "ms", 3, &[Times(0.6, Reference)]),
    less("ping.p99", "  p99", "ms", 3, &[]),
    less("ping.max", "  most", "ms", 3, &[]),
    less("pingload.avg", "round trip beside TCP: mean", "ms", 3, &[]),
    less("pingload.p99", "  p99", "ms", 3, &[Times(1.0, Reference)]),
    less("pingload.max", "  most", "ms", 3, &[]),
    less("pingload.lost", "  lost", "%", 2, &[]),
    rate("pingload.rate", "  TCP meanwhile", &[]),
    rate("flood.rate", "TCP while another host sends junk", &[]),
    rate("flood.junk", "  junk sent", &[]),
    cpu("flood.cpu_in", "  receiving node", &[]),
    rate("forward.rate", "TCP to a LAN behind a node", &[]),
    cpu("forward.cpu_out", "  sending node", &[]),
    cpu("forward.cpu_in", "  forwarding node", &[]),
    rate("peers10.rate", "TCP to 10 nodes, 1 stream each", &[]),
    less("peers10.spread", "  most of one by least", "times", 2, &[]),
    cpu("peers10.cpu_out", "  sending node", &[]),
    rate("many1.out", "UDP 1,200 B to 1 peer in turns", &[]),
    cpu("many1.out_cpu", "  sending node", &[]),
    rate("many1.out200", "  the same, 200 B", &[]),
    cpu("many1.out200_cpu", "  sending node", &[]),
    rate("many1.in", "UDP 1,200 B from 1 peer in turns", &[]),
    cpu("many1.in_cpu", "  receiving node", &[]),
    rate("many1.in200", "  the same, 200 B", &[]),
    cpu("many1.in200_cpu", "  receiving node", &[]),
    rate("many10.out", "UDP 1,200 B to 10 peers in turns", &[]),
    cpu("many10.out_cpu", "  sending node", &[]),
    rate("many10.out200", "  the same, 200 B", &[]),
    cpu("many10.out200_cpu", "  sending node", &[]),
    rate("many10.in", "UDP 1,200 B from 10 peers in turns", &[]),
    cpu("many10.in_cpu", "  receiving node", &[]),
    rate("many10.in200", "  the same, 200 B", &[]),
    cpu("many10.in200_cpu", "  receiving node", &[]),
    rate(
        "many10.flood",
        "one of 10 peers floods: received of it",
        &[],
    ),
    less("many10.others_lost", "  lost of the others", "%", 2, &[]),
    less("many10.others_worst", "  of the worst of them", "%", 2, &[]),
    less("many10.others_p50", "  their delay, median", "ms", 2, &[]),
    less("many10.others_p99", "  p99", "ms", 2, &[]),
    rate("many100.out", "UDP 1,200 B to 100 peers in turns", &[]),
    cpu("many100.out_cpu", "  sending node", &[]),
    rate("many100.out200", "  the same, 200 B", &[]),
    cpu("many100.out200_cpu", "  sending node", &[]),
    rate("many100.in", "UDP 1,200 B from 100 peers in turns", &[]),
    cpu("many100.in_cpu", "  receiving node", &[]),
    rate("many100.in200", "  the same, 200 B", &[]),
    cpu("many100.in200_cpu", "  receiving node", &[]),
    rate(
        "many100.flood",
        "one of 100 peers floods: received of it",
        &[],
    ),
    less("many100.others_lost", "  lost of the others", "%", 2, &[]),
    less(
        "many100.others_worst",
        "  of the worst of them",
        "%",
        2,
        &[],
    ),
    less("many100.others_p50", "  their delay, median", "ms", 2, &[]),
    less("many100.others_p99", "  p99", "ms", 2, &[]),
    rate("many1000.out", "UDP 1,200 B to 1,000 peers in turns", &[]),
    cpu("many1000.out_cpu", "  sending node", &[]),
    rate("many1000.out200", "  the same, 200 B", &[]),
    cpu("many1000.out200_cpu", "  sending node", &[]),
    rate("many1000.in", "UDP 1,200 B from 1,000 peers in turns", &[]),
    cpu("many1000.in_cpu", "  receiving node", &[]),
    rate("many1000.in200", "  the same, 200 B", &[]),
    cpu("many1000.in200_cpu", "  receiving node", &[]),
    rate(
        "many1000.flood",
        "one of 1,000 peers floods: received of it",
        &[],
    ),
    less("many1000.others_lost", "  lost of the others", "%", 2, &[]),
    less(
        "many1000.others_worst",
        "  of the worst of them",
        "%",
        2,
        &[],
    ),
    less("many1000.others_p50", "  their delay, median", "ms", 2, &[]),
    less("many1000.others_p99", "  p99", "ms", 2, &[]),
    less("many1000.up", "`up` with 1,000 peers", "s", 3, &[]),
    less(
        "many1000.idle",
        "resident, idle with 1,000 peers",
        "MiB",
        1,
        &[],
    ),
    less(
        "many1000.loaded",
        "  after traffic with all of them",
        "MiB",
        1,
        &[],
    ),
    rate(
        "relay.rate",
        "TCP by relay, each by their own",
        &[Times(10.0, Reference)],
    ),
    cpu("relay.cpu_out", "  sending node", &[]),
    cpu("relay.cpu_in", "  receiving node", &[]),
    cpu("relay.cpu_relay", "  relay", &[]),
    less("relay.p99", "  round trip beside it, p99", "ms", 2, &[]),
    rate(
        "derper.rate",
        "TCP by relay, both by derper",
        &[Times(5.0, Reference)],
    ),
    cpu("derper.cpu_out", "  sending node", &[]),
    cpu("derper.cpu_in", "  receiving node", &[]),
    cpu("derper.cpu_relay", "  relay", &[]),
    less("derper.p99", "  round trip beside it, p99", "ms", 2, &[]),
    less(
        "memory.idle",
        "resident, idle with one peer",
        "MiB",
        1,
        &[Plain(15.0)],
    ),
    less(
        "memory.idle_anon",
        "  of it anonymous",
        "MiB",
        1,
        &[Plain(4.0)],
    ),
    less(
        "memory.loaded",
        "resident, most after a piece of work",
        "MiB",
        1,
        &[Plain(40.0)],
    ),
    less("memory.loaded_anon", "  of it anonymous", "MiB", 1, &[]),
    less("start.running", "start to Running", "s", 3, &[]),
    less(
        "start.answering",
        "  of it until the daemon answers",
        "s",
        3,
        &[],
    ),
    less("size.files", "programs on disk", "MiB", 1, &[Plain(15.0)]),
];

/// The metric of that key.
pub fn metric(key: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.key == key)
}

/// The bare parts, measured alone. They are figures of [`Candidate::Roofline`].
pub const PARTS: &[Metric] = &[
    rate("parts.gso", "UDP with GSO and GRO, veth, 1,312 B", &[]),
    cpu("parts.gso_cpu", "  whole machine", &[]),
    Metric {
        key: "parts.seal",
        title: "seal, 1,312 B, one core",
        unit: "GB/s",
        digits: 2,
        more: true,
        goals: &[],
    },
    Metric {
        key: "parts.open",
        title: "open, 1,312 B, one core",
        unit: "GB/s",
        digits: 2,
        more: true,
        goals: &[],
    },
    Metric {
        key: "parts.seal_64k",
        title: "seal, 64 KiB, one core",
        unit: "GB/s",
        digits: 2,
        more: true,
        goals: &[],
    },
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn figures(metric: &str, candidate: Candidate, values: &[f64]) -> Vec<Figure> {
        let figure = |(round, value): (u32, &f64)| Figure {
            metric: metric.to_owned(),
            candidate,
            round,
            value: *value,
        };
        (1..).zip(values).map(figure).collect()
    }

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn goals_know_which_way_is_good() {
        let mut all = figures("tcp1.rate", Candidate::Ours, &[5.0]);
        all.extend(figures("tcp1.rate", Candidate::Reference, &[2.0]));
        all.extend(figures("udp05.lost", Candidate::Ours, &[0.2]));
        let spreads = Spreads::of(&all);
        let [tcp, lost] = ["tcp1.rate", "udp05.lost"].map(|key| metric(key).unwrap());
        assert_eq!(spreads.reaches(tcp, tcp.goals[0]), Some(true));
        assert_eq!(spreads.reaches(tcp, tcp.goals[1]), None);
        assert_eq!(spreads.reaches(lost, lost.goals[0]), Some(false));
        assert_eq!(spreads.verdict(tcp, tcp.goals[0]), "≥ 2.5x reference: yes");
        assert_eq!(spreads.verdict(lost, lost.goals[0]), "≤ 0.1: **no**");
    }

    #[test]
    fn every_metric_has_its_own_key_and_goals_name_metrics() {
        let mut keys: Vec<&str> = METRICS
            .iter()
            .chain(PARTS)
            .map(|metric| metric.key)
            .collect();
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
        for goal in METRICS.iter().flat_map(|metric| metric.goals) {
            if let Goal::Own(_, key) = goal {
                assert!(metric(key).is_some(), "{key}");
            }
        }
    }
}
