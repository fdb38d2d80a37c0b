//! Turning trials into the table and the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::trial::Trial;
use super::{JoinOptions, Pair, Servers, label};
use crate::machine;
use warren_lab::{Kind, foreign, ours};

/// Everything a run found.
pub struct Report<'a> {
    /// The options of the run.
    pub options: &'a JoinOptions,
    /// The trials that succeeded.
    pub trials: &'a [Trial],
    /// The failures, by kind of node.
    pub failures: &'a BTreeMap<&'static str, Vec<String>>,
    /// The load average before and after.
    pub load: (String, String),
}

/// One row's worth of figures of one kind of node. A figure that never came
/// (no direct path) is infinite.
struct Sample(Vec<f64>);

impl Sample {
    fn new(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        Self(figures)
    }

    /// The middle one, or the mean of the two in the middle.
    fn median(&self) -> Option<f64> {
        let upper = *self.0.get(self.0.len() / 2)?;
        let lower = *self.0.get((self.0.len() - 1) / 2)?;
        Some(if lower == upper {
            upper
        } else {
            f64::midpoint(lower, upper)
        })
    }

    fn shown(&self, digits: usize) -> String {
        let number = |figure: f64| {
            if figure.is_finite() {
                format!("{figure:.digits$}")
            } else {
                "never".to_owned()
            }
        };
        match (self.median(), self.0.first(), self.0.last()) {
            (Some(median), Some(&least), Some(&most)) => {
                format!("{} ({} - {})", number(median), number(least), number(most))
            }
            _ => "-".to_owned(),
        }
    }
}

/// Ours divided by the real one; empty where the real one is missing or zero.
fn ratio(ours: Option<f64>, real: Option<f64>) -> String {
    match (ours, real) {
        (Some(ours), Some(real)) if real > 0.0 && real.is_finite() && ours.is_finite() => {
            format!("{:.2}", ours / real)
        }
        _ => "-".to_owned(),
    }
}

const MIB: f64 = 1024.0 * 1024.0;

#[allow(clippy::cast_precision_loss)] // sizes far below 2^52
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[allow(clippy::cast_precision_loss)] // counts far below 2^52
fn count(packets: usize) -> f64 {
    packets as f64
}

impl Report<'_> {
    fn sample(
        &self,
        kind: Kind,
        pair: Option<Pair>,
        figures: impl Fn(&Trial) -> Vec<f64>,
    ) -> Sample {
        let mine = self
            .trials
            .iter()
            .filter(|trial| trial.kind == kind && pair.is_none_or(|pair| pair == trial.pair));
        Sample::new(mine.flat_map(figures))
    }

    fn row(
        &self,
        text: &mut String,
        names: (&str, &str, &str),
        digits: usize,
        pair: Option<Pair>,
        figures: impl Fn(&Trial) -> Vec<f64>,
    ) {
        let (place, what, goal) = names;
        let ours = self.sample(Kind::Warren, pair, &figures);
        let real = self.sample(Kind::Tailscale, pair, &figures);
        line(
            text,
            [
                place,
                what,
                &ours.shown(digits),
                &real.shown(digits),
                &ratio(ours.median(), real.median()),
                goal,
            ],
        );
    }

    /// The table, with what it was taken on.
    pub fn text(&self) -> String {
        let mut text = format!(
            "Machine: {}; load {} before, {} after\n\
             Rounds: {}, each trial with fresh hosts, servers and nodes; {}\n\
             Servers: {} for our nodes, {} for real ones{}\n\
             Figures: median (least - most)\n\n",
            machine::describe(),
            self.load.0,
            self.load.1,
            self.options.rounds,
            if self.options.ipv6 {
                "IPv4 and IPv6"
            } else {
                "IPv4 only"
            },
            servers(self.options.ours_on),
            servers(self.options.real_on),
            if self.options.ours_on == self.options.real_on {
                ""
            } else {
                ": ratios compare nodes AND servers"
            },
        );
        line(&mut text, ["pair", "what", "ours", "real", "ratio", "goal"]);
        let rule = "-".repeat(98);
        let _ = writeln!(text, "{rule}");
        for pair in &self.options.pairs {
            let name = pair.to_string();
            let pair = Some(*pair);
            let direct = |trial: &Trial| trial.direct.map_or(f64::INFINITY, |it| it.as_secs_f64());
            self.row(
                &mut text,
                (&name, "first reply, s", "< 0.2"),
                3,
                pair,
                |trial| vec![trial.first_reply.as_secs_f64()],
            );
            self.row(&mut text, ("", "direct, s", "< 1"), 3, pair, |trial| {
                vec![direct(trial)]
            });
            self.row(
                &mut text,
                ("", "lost before first reply", ""),
                0,
                pair,
                |trial| vec![count(trial.lost_before)],
            );
            self.row(&mut text, ("", "lost after it", "0"), 0, pair, |trial| {
                vec![count(trial.lost_after)]
            });
        }
        let _ = writeln!(text, "{rule}");
        self.row(
            &mut text,
            ("all", "up to Running, s", "< 0.5"),
            3,
            None,
            |trial| trial.up.iter().map(Duration::as_secs_f64).collect(),
        );
        self.row(
            &mut text,
            ("idle", "resident, MiB", "<= 15"),
            1,
            None,
            |trial| {
                let idle = trial.idle.iter().flatten();
                idle.map(|memory| mib(memory.resident)).collect()
            },
        );
        self.row(
            &mut text,
            ("", "of it anonymous, MiB", ""),
            1,
            None,
            |trial| {
                let idle = trial.idle.iter().flatten();
                idle.map(|memory| mib(memory.anonymous)).collect()
            },
        );
        let (ours, real) = binaries();
        let shown =
            |size: Option<u64>| size.map_or("-".to_owned(), |size| format!("{:.1}", mib(size)));
        let ratio = ratio(ours.map(mib), real.map(mib));
        line(
            &mut text,
            ["", "programs, MiB", &shown(ours), &shown(real), &ratio, ""],
        );
        for (kind, failures) in self.failures {
            let _ = writeln!(text, "\n{} trial(s) of {kind} failed:", failures.len());
            for failure in failures {
                let _ = writeln!(text, "  {}", failure.replace('\n', "\n    "));
            }
        }
        text
    }

    /// Every trial, for other programs.
    pub fn json(&self) -> Value {
        let trials = self.trials.iter().map(|trial| {
            let idle = trial.idle.map(|both| {
                both.map(
                    |memory| json!({ "resident": memory.resident, "anonymous": memory.anonymous }),
                )
            });
            json!({
                "pair": trial.pair.to_string(),
                "nodes": label(trial.kind),
                "up_s": trial.up.map(|up| up.as_secs_f64()),
                "first_reply_s": trial.first_reply.as_secs_f64(),
                "direct_s": trial.direct.map(|direct| direct.as_secs_f64()),
                "lost_before_first_reply": trial.lost_before,
                "lost_after_first_reply": trial.lost_after,
                "lost_after_sent_s": trial.lost_span.map(|span| span.map(|at| at.as_secs_f64())),
                "longest_silence_s": trial.silence.as_secs_f64(),
                "idle_bytes": idle,
            })
        });
        let (ours, real) = binaries();
        json!({
            "machine": machine::describe(),
            "load": [self.load.0, self.load.1],
            "rounds": self.options.rounds,
            "ipv6": self.options.ipv6,
            "servers": {
                "ours": servers(self.options.ours_on),
                "real": servers(self.options.real_on),
            },
            "program_bytes": { "ours": ours, "real": real },
            "trials": trials.collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}

fn servers(servers: Servers) -> &'static str {
    match servers {
        Servers::Ours => "warren-control and warren-relay",
        Servers::Reference => "Headscale and derper",
    }
}

/// The files that a node needs on a machine: one file of ours, two
/// of the reference.
fn binaries() -> (Option<u64>, Option<u64>) {
    let of = |name: &str| machine::size(foreign(name).as_deref());
    let real = of("tailscaled")
        .zip(of("tailscale"))
        .map(|(daemon, cli)| daemon + cli);
    (machine::size(ours("warren").ok().as_deref()), real)
}

fn line(text: &mut String, cells: [&str; 6]) {
    let [place, what, ours, real, ratio, goal] = cells;
    let written = format!("{place:<11} {what:<24} {ours:<23} {real:<23} {ratio:<6} {goal}");
    let _ = writeln!(text, "{}", written.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(figures: &[f64]) -> Sample {
        Sample::new(figures.iter().copied())
    }

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        assert_eq!(sample(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(sample(&[4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(sample(&[]).median(), None);
    }

    #[test]
    fn missing_figures_are_reported_and_give_no_ratio() {
        let never = sample(&[1.0, f64::INFINITY, f64::INFINITY]);
        assert_eq!(never.shown(1), "never (1.0 - never)");
        assert_eq!(
            sample(&[f64::INFINITY; 2]).shown(1),
            "never (never - never)"
        );
        assert_eq!(ratio(never.median(), Some(2.0)), "-");
        assert_eq!(ratio(Some(1.0), Some(0.0)), "-");
        assert_eq!(ratio(Some(1.0), Some(2.0)), "0.50");
    }
}
