//! `bench/join`: the time from joining to the first reply and to the direct path.
//!
//! Each trial brings up two fresh nodes. It measures how long each needs to
//! reach the state Running, how long the first reply through the tunnel takes,
//! when the path is direct, and which packets are lost meanwhile. Our programs
//! and the official ones take turns in the same namespaces, because figures of
//! different machines or different hours cannot be compared.

mod places;
mod report;
mod trial;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::machine;
use warren_lab::{Kind, LabError, foreign};

pub use places::Pair;
use report::Report;
use trial::Trial;

/// The servers and relays between the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    /// `warren-control` and `warren-relay`: both kinds of node meet the same
    /// network, so a difference is a difference of the nodes.
    Ours,
    /// Headscale and `derper`: what the official client meets in the field.
    Reference,
}

/// The measurements to run, and how often.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Rounds; every pair is measured once per round and kind of node.
    pub rounds: u32,
    /// Which pairs of places.
    pub pairs: Vec<Pair>,
    /// The servers of our nodes.
    pub ours_on: Servers,
    /// The servers of official clients. When they differ, a difference is one of
    /// nodes and servers together.
    pub real_on: Servers,
    /// Gives the hosts IPv6, which is often a way around the NAT.
    pub ipv6: bool,
    /// Only our nodes.
    pub ours_only: bool,
    /// How long a direct path is waited for.
    pub limit: Duration,
    /// How long a node has been idle when its memory is read.
    pub idle: Duration,
    /// Also writes every trial to this file.
    pub json: Option<PathBuf>,
}

/// Runs the rounds and prints the table.
///
/// # Errors
/// When nothing could be measured at all, or the file cannot be written.
/// A trial that fails is reported and the rest goes on.
pub fn join(options: &JoinOptions) -> Result<(), LabError> {
    let mut kinds = vec![Kind::Warren];
    if options.ours_on == Servers::Reference
        && let Some(name) = ["headscale", "derper"]
            .into_iter()
            .find(|name| foreign(name).is_none())
    {
        return Err(LabError::new(format!("{name} is not installed")));
    }
    match missing(options) {
        _ if options.ours_only => {}
        None => kinds.push(Kind::Tailscale),
        Some(name) => println!(
            "not measured: official clients ({name} is neither in ${} nor in PATH)\n",
            warren_lab::PEERS_VARIABLE
        ),
    }
    let load = machine::load();
    let mut trials: Vec<Trial> = Vec::new();
    let mut failures: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for round in 0..options.rounds {
        for (index, pair) in options.pairs.iter().enumerate() {
            // Memory takes a long wait and does not depend on the place.
            let idle = (index == 0).then_some(options.idle);
            let mut order = kinds.clone();
            // Neither kind always gets the warm caches.
            if round % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                match trial::run(options, *pair, kind, idle) {
                    Ok(trial) => {
                        eprintln!("round {} {pair} {}: {trial}", round + 1, label(kind));
                        trials.push(trial);
                    }
                    Err(error) => {
                        eprintln!(
                            "round {} {pair} {}: FAILED: {error}",
                            round + 1,
                            label(kind)
                        );
                        failures
                            .entry(label(kind))
                            .or_default()
                            .push(format!("{pair}: {error}"));
                    }
                }
            }
        }
    }
    if trials.is_empty() {
        return Err(LabError::new("every trial failed; the reasons are above"));
    }
    let report = Report {
        options,
        trials: &trials,
        failures: &failures,
        load: (load, machine::load()),
    };
    println!("{}", report.text());
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", report.json()))?;
    }
    Ok(())
}

/// The first program that real-real trials lack.
fn missing(options: &JoinOptions) -> Option<&'static str> {
    let mut names = vec!["tailscaled", "tailscale"];
    if options.real_on == Servers::Reference {
        names.extend(["headscale", "derper"]);
    }
    names.into_iter().find(|name| foreign(name).is_none())
}

fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Warren => "ours",
        Kind::Tailscale | Kind::TailscaleWebSocket => "real",
    }
}
