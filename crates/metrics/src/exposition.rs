//! The text form.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::family::{CounterFamily, GaugeFamily, Names};

/// The value of a gauge: a whole number, exactly, or a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GaugeValue {
    /// A whole number.
    Whole(u64),
    /// Any number, also an infinite one or none at all.
    Real(f64),
}

impl From<u64> for GaugeValue {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u16> for GaugeValue {
    fn from(value: u16) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for GaugeValue {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<f64> for GaugeValue {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl fmt::Display for GaugeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Real(f64::INFINITY) => f.write_str("+Inf"),
            Self::Real(f64::NEG_INFINITY) => f.write_str("-Inf"),
            // "NaN" is the same in Rust and in Prometheus.
            Self::Real(value) => write!(f, "{value}"),
        }
    }
}

/// The samples of one moment, to be rendered as text.
#[derive(Debug, Default)]
pub struct Exposition {
    /// In the order in which they were named first.
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    /// Rendered labels, with their braces, and rendered values.
    samples: BTreeMap<String, String>,
}

impl Exposition {
    /// Adds the value of a counter, with the values of its labels. A value that was
    /// added before with the same labels is replaced.
    pub fn counter<const LABELS: usize>(
        &mut self,
        family: &CounterFamily<LABELS>,
        labels: [&str; LABELS],
        value: u64,
    ) {
        self.sample(&family.0, "counter", labels, value.to_string());
    }

    /// Adds the value of a gauge, with the values of its labels. A value that was
    /// added before with the same labels is replaced.
    pub fn gauge<const LABELS: usize>(
        &mut self,
        family: &GaugeFamily<LABELS>,
        labels: [&str; LABELS],
        value: impl Into<GaugeValue>,
    ) {
        self.sample(&family.0, "gauge", labels, value.into().to_string());
    }

    fn sample<const LABELS: usize>(
        &mut self,
        names: &Names<LABELS>,
        kind: &'static str,
        labels: [&str; LABELS],
        value: String,
    ) {
        let known = self.families.iter().position(|f| f.name == names.name);
        let at = known.unwrap_or_else(|| {
            self.families.push(Family {
                name: names.name,
                help: names.help,
                kind,
                samples: BTreeMap::new(),
            });
            self.families.len() - 1
        });
        let labels = render_labels(&names.labels, &labels);
        self.families[at].samples.insert(labels, value);
    }

    /// The text form. The samples of a family are in the order of their labels.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for family in &self.families {
            let Family {
                name, help, kind, ..
            } = family;
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {}", Escaped(help, false));
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (labels, value) in &family.samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        }
        out
    }
}

fn render_labels(names: &[&str], values: &[&str]) -> String {
    let mut out = String::new();
    for (name, value) in names.iter().zip(values) {
        out.push(if out.is_empty() { '{' } else { ',' });
        // Writing to a String cannot fail.
        let _ = write!(out, "{name}=\"{}\"", Escaped(value, true));
    }
    if !out.is_empty() {
        out.push('}');
    }
    out
}

/// A text with its backslashes and line feeds escaped, and its quotes if the second
/// field is set.
struct Escaped<'a>(&'a str, bool);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' if self.1 => f.write_str("\\\"")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use warren_testkit::{Sample as Key, parse_metrics};

    use super::*;

    const BYTES: CounterFamily<1> = CounterFamily::new("bytes_total", "Bytes.", ["path"]);
    const PACKETS: CounterFamily<2> =
        CounterFamily::new("packets_total", "A \\ and\nan \"end\".", ["path", "reason"]);
    const PEERS: GaugeFamily<0> = GaugeFamily::new("peers", "", []);
    const LOAD: GaugeFamily<1> = GaugeFamily::new("load", "Load, by processor.", ["cpu"]);

    #[test]
    fn label_values_are_escaped_and_large_counters_are_exact() {
        let mut text = Exposition::default();
        text.counter(&BYTES, ["a\"b\\c\nd"], u64::MAX);
        assert_eq!(
            text.render(),
            "# HELP bytes_total Bytes.\n\
             # TYPE bytes_total counter\n\
             bytes_total{path=\"a\\\"b\\\\c\\nd\"} 18446744073709551615\n"
        );
    }

    #[test]
    fn gauges_may_be_infinite_or_no_number() {
        for (value, text) in [
            (2.5, "2.5"),
            (-3.0, "-3"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(GaugeValue::from(value).to_string(), text);
        }
    }

    /// One sample that a test adds.
    #[derive(Debug, Clone)]
    enum Sample {
        Bytes(String, u64),
        Packets(String, String, u64),
        Peers(u64),
        Load(String, f64),
    }

    impl Sample {
        fn add_to(&self, text: &mut Exposition) {
            match self {
                Self::Bytes(path, n) => text.counter(&BYTES, [path], *n),
                Self::Packets(path, reason, n) => text.counter(&PACKETS, [path, reason], *n),
                Self::Peers(n) => text.gauge(&PEERS, [], *n),
                Self::Load(cpu, load) => text.gauge(&LOAD, [cpu], *load),
            }
        }

        /// The name, the labels and the value that a reader should see.
        fn expected(&self) -> (Key, String) {
            let (name, labels, value): (&str, &[(&str, &String)], _) = match self {
                Self::Bytes(path, n) => ("bytes_total", &[("path", path)], n.to_string()),
                Self::Packets(path, reason, n) => (
                    "packets_total",
                    &[("path", path), ("reason", reason)],
                    n.to_string(),
                ),
                Self::Peers(n) => ("peers", &[], n.to_string()),
                Self::Load(cpu, load) => ("load", &[("cpu", cpu)], load.to_string()),
            };
            let own = |(name, value): &(&str, &String)| ((*name).to_owned(), (*value).clone());
            ((name.to_owned(), labels.iter().map(own).collect()), value)
        }
    }

    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let label = || prop_oneof!["[a-c]", "[\\\\\"\n{},= #é]{0,4}", any::<String>()];
        let sample = prop_oneof![
            (label(), any::<u64>()).prop_map(|(path, n)| Sample::Bytes(path, n)),
            (label(), label(), any::<u64>()).prop_map(|(a, b, n)| Sample::Packets(a, b, n)),
            any::<u64>().prop_map(Sample::Peers),
            (label(), -1e6..1e6).prop_map(|(cpu, load)| Sample::Load(cpu, load)),
        ];
        proptest::collection::vec(sample, 0..30)
    }

    proptest! {
        #[test]
        fn a_parser_reads_back_the_last_value_of_each_sample(samples in samples()) {
            let mut text = Exposition::default();
            for sample in &samples {
                sample.add_to(&mut text);
            }
            let expected: BTreeMap<_, _> = samples.iter().map(Sample::expected).collect();
            prop_assert_eq!(parse_metrics(&text.render()), Ok(expected));
        }
    }
}
