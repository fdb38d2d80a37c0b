//! Families of metrics, whose names are checked by the compiler.

/// The names of a family: those of the metric and of its labels, and the help text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<const LABELS: usize> {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) labels: [&'static str; LABELS],
}

impl<const LABELS: usize> Names<LABELS> {
    const fn new(name: &'static str, help: &'static str, labels: [&'static str; LABELS]) -> Self {
        assert!(
            is_name(name),
            "a metric name has letters, digits and underscores, and does not begin with a digit"
        );
        let mut i = 0;
        while i < LABELS {
            assert!(
                is_name(labels[i]),
                "a label name has letters, digits and underscores, and does not begin with a digit"
            );
            let mut j = 0;
            while j < i {
                assert!(!same(labels[i], labels[j]), "a label has one name only");
                j += 1;
            }
            i += 1;
        }
        Self { name, help, labels }
    }
}

/// Whether Prometheus takes `text` as the name of a metric and of a label. Colons,
/// which are for rules of the Prometheus server, are left out.
const fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes[0].is_ascii_digit() {
        return false;
    }
    let mut i = 0;
    while i < bytes.len() {
        if !bytes[i].is_ascii_alphanumeric() && bytes[i] != b'_' {
            return false;
        }
        i += 1;
    }
    true
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    a.len() == b.len() && i == a.len()
}

/// A family of counters with `LABELS` labels.
#[derive(Debug, Clone, Copy)]
pub struct CounterFamily<const LABELS: usize>(pub(crate) Names<LABELS>);

impl<const LABELS: usize> CounterFamily<LABELS> {
    /// A family with the names of its labels.
    ///
    /// # Panics
    /// If a name is not valid or a label occurs twice. In a constant, this is an error
    /// of the compiler.
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; LABELS],
    ) -> Self {
        Self(Names::new(name, help, labels))
    }
}

/// A family of gauges with `LABELS` labels: numbers that go up and down.
#[derive(Debug, Clone, Copy)]
pub struct GaugeFamily<const LABELS: usize>(pub(crate) Names<LABELS>);

impl<const LABELS: usize> GaugeFamily<LABELS> {
    /// A family with the names of its labels.
    ///
    /// # Panics
    /// If a name is not valid or a label occurs twice. In a constant, this is an error
    /// of the compiler.
    pub const fn new(
        name: &'static str,
        help: &'static str,
        labels: [&'static str; LABELS],
    ) -> Self {
        Self(Names::new(name, help, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_prometheus_takes() {
        for name in ["a", "_", "tailscaled_inbound_bytes_total", "B2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "2b", "a-b", "a b", "a:b", "grün", "a\n"] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    #[should_panic(expected = "a label has one name only")]
    fn a_label_cannot_occur_twice() {
        let _ = CounterFamily::new("a", "", ["way", "reason", "way"]);
    }
}
