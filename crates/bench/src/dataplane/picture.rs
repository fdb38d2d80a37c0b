//! The figures as a picture: a group of bars per piece of work, each on a
//! scale of its own, since Gbit/s and milliseconds have none in common.

use std::fmt::Write as _;

use super::Outcome;
use super::ends::Candidate;
use super::figures::{Metric, metric};
use crate::machine;

/// The metrics of the picture, in two columns.
const SHOWN: [&str; 18] = [
    "tcp1.rate",
    "tcp4.rate",
    "udp05.rate",
    "udp3.rate",
    "udpmax.rate",
    "relay.rate",
    "many1000.out",
    "many1000.in",
    "tcp1.cpu_out",
    "tcp1.cpu_in",
    "ping.avg",
    "pingload.p99",
    "memory.idle",
    "memory.loaded",
    "many1000.idle",
    "many100.others_lost",
    "start.running",
    "size.files",
];
const BARS: [(Candidate, &str); 5] = [
    (Candidate::Ours, "#c2410c"),
    (Candidate::Reference, "#64748b"),
    (Candidate::BoringTun, "#b6c2d1"),
    (Candidate::Roofline, "#15803d"),
    (Candidate::Raw, "#a3a3a3"),
];

/// Whether that bar is drawn there. Superpackets over the bare cable go so much
/// faster that no other bar could be seen beside them.
fn belongs(metric: &Metric, candidate: Candidate) -> bool {
    candidate != Candidate::Raw || metric.key.starts_with("udp")
}

const WIDTH: usize = 980;
const COLUMN: usize = WIDTH / 2;
const TOP: usize = 96;
const BAR: usize = 18;
const TITLE: usize = 24;
const GAP: usize = 20;
const LABEL: usize = 84;
const ROOM: usize = 250;

/// The picture, or `None` where there is nothing to show.
pub fn svg(outcome: &Outcome) -> Option<String> {
    let panels: Vec<&Metric> = SHOWN
        .iter()
        .filter_map(|key| metric(key))
        .filter(|metric| outcome.spreads.get(metric, Candidate::Ours).is_some())
        .collect();
    if panels.is_empty() {
        return None;
    }
    let mut body = String::new();
    let mut y = TOP;
    for pair in panels.chunks(2) {
        let mut tallest = 0;
        for (column, metric) in pair.iter().enumerate() {
            let x = 24 + column * COLUMN;
            tallest = tallest.max(panel(&mut body, outcome, metric, x, y));
        }
        y += tallest + GAP;
    }
    let height = y + 8;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    write_text(
        &mut text,
        (24, 32),
        "font-size=\"19\" font-weight=\"600\" fill=\"#0f172a\"",
        "The data plane, measured",
    );
    let taken = format!(
        "{}; {} round(s), medians; thin line: least to most; in brackets: ours to the reference",
        machine::describe(),
        outcome.rounds
    );
    write_text(&mut text, (24, 54), "fill=\"#475569\"", &taken);
    let mut x = 24;
    for (candidate, colour) in BARS {
        let there = panels.iter().any(|metric| {
            belongs(metric, candidate) && outcome.spreads.get(metric, candidate).is_some()
        });
        if !there {
            continue;
        }
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"66\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        write_text(
            &mut text,
            (x + 18, 77),
            "fill=\"#0f172a\"",
            candidate.name(),
        );
        x += 120;
    }
    text += &body;
    text += "</svg>\n";
    Some(text)
}

/// One group of bars; gives its height.
fn panel(text: &mut String, outcome: &Outcome, metric: &Metric, x: usize, y: usize) -> usize {
    let better = if metric.more { "more" } else { "less" };
    let title = format!(
        "{} [{}], {better} is better",
        full_title(metric),
        metric.unit
    );
    let style = "font-weight=\"600\" fill=\"#0f172a\"";
    write_text(text, (x, y + 14), style, &title);
    let bars: Vec<_> = BARS
        .iter()
        .filter(|(candidate, _)| belongs(metric, *candidate))
        .filter_map(|(candidate, colour)| {
            Some((candidate, colour, outcome.spreads.get(metric, *candidate)?))
        })
        .collect();
    let longest = bars
        .iter()
        .map(|(_, _, spread)| spread.most)
        .fold(0.0, f64::max);
    #[allow(clippy::cast_precision_loss)] // pixels
    let scale = if longest > 0.0 {
        ROOM as f64 / longest
    } else {
        0.0
    };
    #[allow(clippy::cast_precision_loss)] // pixels
    let zero = (x + LABEL) as f64;
    for (i, (candidate, colour, spread)) in bars.iter().enumerate() {
        let at = y + TITLE + i * (BAR + 4);
        write_text(text, (x, at + 13), "fill=\"#334155\"", candidate.name());
        let _ = writeln!(
            text,
            "<rect x=\"{zero}\" y=\"{at}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>",
            (spread.median * scale).max(1.0)
        );
        let middle = at + BAR / 2;
        let _ = writeln!(
            text,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#0f172a\" \
             stroke-width=\"1.5\"/>",
            zero + spread.least * scale,
            zero + spread.most * scale,
        );
        let mut value = format!("{:.*}", metric.digits, spread.median);
        if **candidate == Candidate::Ours
            && let Some(ratio) = outcome.spreads.ratio(metric, Candidate::Reference)
        {
            let _ = write!(value, "  ({ratio:.2}x)");
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // pixels
        let end = (zero + spread.most * scale) as usize + 8;
        write_text(text, (end, at + 13), "fill=\"#0f172a\"", &value);
    }
    TITLE + bars.len() * (BAR + 4)
}

/// Titles of rows that hang below another say nothing alone.
fn full_title(metric: &Metric) -> &str {
    match metric.key {
        "udp05.rate" => "UDP 1,200 B, 0.5 Gbit/s offered, received",
        "udp3.rate" => "UDP 1,200 B, 3 Gbit/s offered, received",
        "tcp1.cpu_out" => "TCP, 1 stream, sending node",
        "tcp1.cpu_in" => "TCP, 1 stream, receiving node",
        "many100.others_lost" => "one of 100 peers floods, lost of the others",
        "ping.avg" => "round trip, idle, mean",
        "pingload.p99" => "round trip beside TCP, p99",
        _ => metric.title,
    }
}

fn write_text(text: &mut String, (x, y): (usize, usize), style: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" {style}>{words}</text>");
}
