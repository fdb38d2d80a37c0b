//! The figures as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Outcome;
use super::ends::Candidate;
use super::figures::{METRICS, Metric, PARTS, Spread};
use super::parts;
use crate::machine;

/// The columns and their titles.
const COLUMNS: [Candidate; 5] = [
    Candidate::Ours,
    Candidate::Reference,
    Candidate::BoringTun,
    Candidate::Roofline,
    Candidate::Raw,
];

/// All of it, as Markdown.
pub fn markdown(outcome: &Outcome) -> String {
    let mut text = head(outcome);
    let columns: Vec<Candidate> = COLUMNS
        .into_iter()
        .filter(|candidate| {
            METRICS
                .iter()
                .any(|metric| outcome.spreads.get(metric, *candidate).is_some())
        })
        .collect();
    text += "| what | unit |";
    for candidate in &columns {
        let _ = write!(text, " {candidate} |");
    }
    text += " ratio | of roofline | goal |\n|---|---|";
    text += &"--:|".repeat(columns.len());
    text += "--:|--:|---|\n";
    for metric in METRICS {
        let any = columns
            .iter()
            .any(|candidate| outcome.spreads.get(metric, *candidate).is_some());
        if any {
            row(&mut text, outcome, metric, &columns);
        }
    }
    text +=
        "\n`ratio` is ours divided by the reference, `of roofline` ours divided by the roofline.\n";
    text += &roofline(outcome);
    for failure in &outcome.failures {
        let _ = writeln!(text, "\nFAILED: {}", failure.replace('\n', "\n    "));
    }
    if let Some(profile) = &outcome.profile {
        let _ = writeln!(text, "\n## Where the time goes\n{profile}");
    }
    text
}

fn head(outcome: &Outcome) -> String {
    let mut text = String::from("# The data plane, measured\n\n");
    let _ = writeln!(
        text,
        "Machine: {}; load {} before, {} after. Both ends, the servers and the load generator \
         share it.  \nRounds: {}{}. Figures: median (least - most).",
        machine::describe(),
        outcome.load.0,
        outcome.load.1,
        outcome.rounds,
        if outcome.quick {
            ", short ones (`--quick`)"
        } else {
            ""
        },
    );
    if cfg!(debug_assertions) {
        text += "\nThe bench itself is not optimised: roofline and load generator say nothing.\n";
    }
    for (candidate, why) in &outcome.missing {
        let _ = writeln!(text, "\nNot measured: {candidate}, because {why}.");
    }
    text.push('\n');
    text
}

fn row(text: &mut String, outcome: &Outcome, metric: &Metric, columns: &[Candidate]) {
    let indented = metric.title.strip_prefix("  ");
    let title = indented.map_or_else(|| metric.title.to_owned(), |rest| format!("&emsp;{rest}"));
    let _ = write!(text, "| {title} | {} |", metric.unit);
    for candidate in columns {
        let _ = write!(text, " {} |", cell(outcome, metric, *candidate));
    }
    let ratio = |to| {
        let ratio = outcome.spreads.ratio(metric, to);
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
    };
    let goals: Vec<String> = metric
        .goals
        .iter()
        .map(|goal| outcome.spreads.verdict(metric, *goal))
        .collect();
    let _ = writeln!(
        text,
        " {} | {} | {} |",
        ratio(Candidate::Reference),
        ratio(Candidate::Roofline),
        goals.join(", ")
    );
}

fn cell(outcome: &Outcome, metric: &Metric, candidate: Candidate) -> String {
    let Some(spread) = outcome.spreads.get(metric, candidate) else {
        return String::new();
    };
    let limited = metric.key == "udpmax.rate" && is_limited(outcome, candidate);
    format!(
        "{}{}",
        if limited { "at least " } else { "" },
        shown(spread, metric.digits)
    )
}

/// Whether the generator could offer no more than what still got through.
fn is_limited(outcome: &Outcome, candidate: Candidate) -> bool {
    let by_product = outcome.spreads.of_key("udpmax.generator_limit", candidate);
    by_product.is_some()
}

/// Median and, where there is more than one, both ends.
pub fn shown(spread: Spread, digits: usize) -> String {
    let Spread {
        median,
        least,
        most,
    } = spread;
    if least == most {
        format!("{median:.digits$}")
    } else {
        format!("{median:.digits$} ({least:.digits$} - {most:.digits$})")
    }
}

/// The parts of the roofline.
fn roofline(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut line = |title: &str, unit: &str, figure: String| {
        let _ = writeln!(text, "| {title} | {unit} | {figure} |");
    };
    let of = |key: &str, candidate| outcome.spreads.of_key(key, candidate);
    for (key, title, unit) in [
        (
            "tcp1.rate",
            "superpackets from TUN to TUN, TCP, 1 stream",
            "Gbit/s",
        ),
        ("tcp1.cpu_all", "&emsp;whole machine", "CPU s/GB"),
        (
            "tcp4.rate",
            "superpackets from TUN to TUN, TCP, 4 streams",
            "Gbit/s",
        ),
        (
            "udpmax.rate",
            "single packets from TUN to TUN, UDP 1,200 B, under 1 % lost",
            "Gbit/s",
        ),
        ("udpmax.cpu_all", "&emsp;whole machine", "CPU s/GB"),
    ] {
        if let Some(spread) = of(key, Candidate::Shuttle) {
            let limited = key == "udpmax.rate" && is_limited(outcome, Candidate::Shuttle);
            let least = if limited { "at least " } else { "" };
            line(title, unit, format!("{least}{}", shown(spread, 2)));
        }
    }
    for metric in PARTS {
        if let Some(spread) = outcome.spreads.get(metric, Candidate::Roofline) {
            let title = metric.title.replace("  ", "&emsp;");
            line(&title, metric.unit, shown(spread, metric.digits));
        }
    }
    for (what, bound) in [
        ("TCP", parts::bound(&outcome.spreads)),
        ("single datagrams", parts::udp_bound(&outcome.spreads)),
    ] {
        let Some((seconds, rate)) = bound else {
            continue;
        };
        let title = format!("sum of the parts, {what}, whole machine");
        line(&title, "CPU s/GB", format!("{seconds:.2}"));
        line(
            "&emsp;all cores busy with nothing else",
            "Gbit/s",
            format!("{rate:.2}"),
        );
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "\n## The roofline and its parts\n\n\
         The column `roofline` is measured: TUN read, cut and seal, UDP with GSO, GRO, open, join, \
         TUN write, in two threads per end, with one fixed session and no node around it. The column \
         `raw` is the same load over the bare virtual cable: what generator and receiver do without \
         any tunnel. The sums below are computed: processor time per GB from TUN to TUN (load \
         generator included), of UDP with GSO, of sealing and of opening, divided into the cores.\n\n\
         | part | unit | |\n|---|---|--:|\n{text}"
    )
}

/// Everything, round by round.
pub fn json(outcome: &Outcome) -> Value {
    let figures = outcome.figures.iter().map(|figure| {
        json!({
            "metric": figure.metric,
            "candidate": figure.candidate.name(),
            "round": figure.round,
            "value": figure.value,
        })
    });
    let summary = outcome.spreads.all().map(|(key, candidate, spread)| {
        json!({
            "metric": key,
            "candidate": candidate.name(),
            "median": spread.median,
            "least": spread.least,
            "most": spread.most,
        })
    });
    let units = METRICS.iter().chain(PARTS).map(|metric| {
        let entry = json!({ "unit": metric.unit, "more_is_better": metric.more });
        (metric.key.to_owned(), entry)
    });
    let missing = outcome
        .missing
        .iter()
        .map(|(candidate, why)| json!({ "candidate": candidate.name(), "why": why }));
    let sum = |bound: Option<(f64, f64)>| {
        bound.map(|(seconds, rate)| json!({ "cpu_s_per_gb": seconds, "gbit_s": rate }))
    };
    json!({
        "machine": machine::describe(),
        "load": [outcome.load.0, outcome.load.1],
        "rounds": outcome.rounds,
        "quick": outcome.quick,
        "metrics": units.collect::<serde_json::Map<_, _>>(),
        "summary": summary.collect::<Vec<_>>(),
        "figures": figures.collect::<Vec<_>>(),
        "sum_of_parts": sum(parts::bound(&outcome.spreads)),
        "sum_of_parts_udp": sum(parts::udp_bound(&outcome.spreads)),
        "missing": missing.collect::<Vec<_>>(),
        "failures": outcome.failures,
    })
}
