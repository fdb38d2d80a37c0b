//! Counters, and their text form (Prometheus exposition format 0.0.4).

use std::fmt::Write as _;

/// The kinds of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Name, letters and underscores.
    pub name: &'static str,
    /// The kind.
    pub kind: MetricKind,
    /// The quantity that it counts, in one line.
    pub help: &'static str,
    /// Label names and values; metrics of one name are adjacent.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

/// Writes metrics as text, in the given order.
pub fn exposition(metrics: &[Metric]) -> String {
    let mut out = String::new();
    let mut last = "";
    for metric in metrics {
        if metric.name != last {
            last = metric.name;
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
            };
            // Writing into a String cannot fail.
            let _ = writeln!(
                out,
                "# HELP {} {}\n# TYPE {} {kind}",
                metric.name, metric.help, metric.name
            );
        }
        out.push_str(metric.name);
        for (i, (name, value)) in metric.labels.iter().enumerate() {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(out, "{}{name}=\"{value}\"", if i == 0 { '{' } else { ',' });
        }
        if !metric.labels.is_empty() {
            out.push('}');
        }
        let _ = writeln!(out, " {}", metric.value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_heads_not_repeated() {
        let metric = |path: &str, value| Metric {
            name: "tailscaled_inbound_bytes_total",
            kind: MetricKind::Counter,
            help: "Bytes received.",
            labels: vec![("path", path.to_owned())],
            value,
        };
        assert_eq!(
            exposition(&[metric("derp", 1.0), metric("a\"b", 12_345_678_901.0)]),
            "# HELP tailscaled_inbound_bytes_total Bytes received.\n\
             # TYPE tailscaled_inbound_bytes_total counter\n\
             tailscaled_inbound_bytes_total{path=\"derp\"} 1\n\
             tailscaled_inbound_bytes_total{path=\"a\\\"b\"} 12345678901\n"
        );
    }
}
