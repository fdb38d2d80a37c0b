//! `warren-lab bench dataplane`: how fast bytes go through a tunnel, what that
//! costs, and how far it is from what the machine could do.
//!
//! Ours, the reference and other things are up side by side, each on two hosts
//! of its own, and get every piece of work in turns: the order changes with
//! each round. The *roofline* takes its turns too. It moves the same bytes
//! through the same kernel interfaces with the same cipher, in the least code
//! that can do so; see [`pipeline`].
//!
//! Nothing here passes or fails. Missing or failing parts are reported, and the
//! rest goes on.

mod batches;
mod boringtun;
mod datagrams;
mod drive;
mod ends;
mod figures;
mod inet;
mod join;
mod load;
mod many;
mod many_nodes;
mod measure;
mod parts;
mod picture;
mod pipeline;
mod profile;
mod segment;
mod stamp;
mod synthetic_peers;
mod table;
mod usage;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::machine::{self, Memory};
use figures::{Figure, Spreads};
use measure::Spans;
use warren_lab::{Kind, LabError, RelayKind, foreign, ours};

pub use ends::Candidate;
use ends::{Ends, Route};
pub use load::{LoadKind, run as run_load};
pub use many::PEERS;
pub use work::Item;

/// How long nodes do nothing before their memory counts as idle.
const IDLE: Duration = Duration::from_secs(10);
const IDLE_QUICK: Duration = Duration::from_secs(3);
const MIB: f64 = 1024.0 * 1024.0;

/// The measurements to run, and how often.
#[derive(Debug, Clone)]
pub struct DataplaneOptions {
    /// How often everything is measured.
    pub rounds: u32,
    /// Short pieces of work, for a look.
    pub quick: bool,
    /// Which pieces of work.
    pub items: Vec<Item>,
    /// The candidates to measure.
    pub candidates: Vec<Candidate>,
    /// Numbers of synthetic peers, of [`PEERS`].
    pub peers: Vec<u16>,
    /// Also records where our daemons' time goes.
    pub profile: bool,
    /// Where table, figures and picture are written.
    pub folder: PathBuf,
}

/// Everything a run found.
pub struct Outcome {
    figures: Vec<Figure>,
    spreads: Spreads,
    rounds: u32,
    quick: bool,
    load: (String, String),
    missing: Vec<(Candidate, String)>,
    failures: Vec<String>,
    profile: Option<String>,
}

/// Set by Ctrl-C; everything that takes long looks at it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn check_interrupt() -> Result<(), LabError> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(LabError::new("interrupted"));
    }
    Ok(())
}

/// Lets `span` pass: the length of a measurement, never a wait for something.
fn pause(span: Duration) -> Result<(), LabError> {
    let end = Instant::now() + span;
    loop {
        check_interrupt()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::park_timeout(left.min(Duration::from_millis(50)));
    }
}

/// As [`warren_lab::until`], and ends at once after Ctrl-C.
fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, LabError>,
) -> Result<T, LabError> {
    warren_lab::until(what, limit, || match check_interrupt() {
        Err(interrupted) => Ok(Err(interrupted)),
        Ok(()) => look().map(Ok),
    })?
}

/// Measures, prints the table, and writes it to the folder beside the figures
/// and the picture. After Ctrl-C, with what there is by then.
///
/// # Errors
/// When nothing could be measured at all, or a file cannot be written.
pub fn run(options: &DataplaneOptions) -> Result<(), LabError> {
    std::fs::create_dir_all(&options.folder)?;
    watch_for_interrupt();
    let mut run = Run::new(options);
    for round in 1..=options.rounds {
        if run.round(round).is_err() {
            break;
        }
    }
    run.sizes();
    let outcome = run.finish();
    if outcome.figures.is_empty() {
        for failure in &outcome.failures {
            eprintln!("{failure}");
        }
        return Err(LabError::new("nothing could be measured"));
    }
    let table = table::markdown(&outcome);
    print!("{table}");
    let write = |name: &str, text: &str| std::fs::write(options.folder.join(name), text);
    write("dataplane.md", &table)?;
    write("dataplane.json", &format!("{:#}\n", table::json(&outcome)))?;
    if let Some(picture) = picture::svg(&outcome) {
        write("dataplane.svg", &picture)?;
    }
    eprintln!(
        "written: {}/dataplane.{{md,json,svg}}",
        options.folder.display()
    );
    check_interrupt()
}

/// The first Ctrl-C (or SIGTERM) ends the run in order, with everything that
/// was started; the second one at once, which the kernel cleans up after too.
fn watch_for_interrupt() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) = (
                signal(SignalKind::interrupt()),
                signal(SignalKind::terminate()),
            ) else {
                return;
            };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("ending; once more to end at once");
            }
        });
    });
}

/// A run on its way.
struct Run<'a> {
    options: &'a DataplaneOptions,
    spans: Spans,
    candidates: Vec<Candidate>,
    load: String,
    rounds: u32,
    figures: Vec<Figure>,
    missing: Vec<(Candidate, String)>,
    failures: Vec<String>,
    profile: Option<String>,
}

impl<'a> Run<'a> {
    fn new(options: &'a DataplaneOptions) -> Self {
        let (mut candidates, mut missing) = (Vec::new(), Vec::new());
        for candidate in Candidate::ALL
            .into_iter()
            .filter(|candidate| options.candidates.contains(candidate))
        {
            match lacks(candidate) {
                None => candidates.push(candidate),
                Some(why) => {
                    eprintln!("not measured: {candidate}, because {why}");
                    missing.push((candidate, why));
                }
            }
        }
        Self {
            options,
            spans: if options.quick {
                Spans::QUICK
            } else {
                Spans::FULL
            },
            candidates,
            load: machine::load(),
            rounds: 0,
            figures: Vec::new(),
            missing,
            failures: Vec::new(),
            profile: None,
        }
    }

    fn wants(&self, item: Item) -> bool {
        self.options.items.contains(&item)
    }

    /// One round. An error is the interruption and nothing else.
    fn round(&mut self, round: u32) -> Result<(), LabError> {
        self.rounds = round;
        self.direct(round)?;
        if self.wants(Item::Forward) {
            self.forwarded(round)?;
        }
        if self.wants(Item::Peers) {
            self.crowds(round)?;
        }
        if self.wants(Item::Relay) {
            self.relayed(round)?;
        }
        Ok(())
    }

    /// Everything that has a direct path, side by side.
    fn direct(&mut self, round: u32) -> Result<(), LabError> {
        let items: Vec<Item> = Item::ALL
            .into_iter()
            .filter(|item| !matches!(item, Item::Forward | Item::Peers | Item::Relay))
            .filter(|item| self.wants(*item))
            .collect();
        if items.is_empty() {
            return Ok(());
        }
        let mut stages: Vec<Ends> = Vec::new();
        for candidate in self.order(round) {
            let needed = items.iter().any(|item| match item {
                Item::Memory => candidate.kind().is_some(),
                Item::Parts => candidate == Candidate::Raw || candidate == Candidate::Shuttle,
                item => item.concerns(candidate),
            });
            if needed {
                let started = Ends::start(candidate, Route::Direct);
                if let Some(ends) = self.kept(round, candidate, "start", started)? {
                    self.starts(round, &ends);
                    stages.push(ends);
                }
            }
        }
        if self.wants(Item::Memory) {
            let idle = if self.options.quick { IDLE_QUICK } else { IDLE };
            pause(idle)?;
            for ends in stages
                .iter_mut()
                .filter(|ends| ends.candidate.kind().is_some())
            {
                let memory = ends.memory();
                self.memory(round, ends.candidate, ["idle", "idle_anon"], &memory);
            }
        }
        let mut most: BTreeMap<Candidate, Vec<Memory>> = BTreeMap::new();
        for item in items {
            for ends in &mut stages {
                if item == Item::Parts && ends.candidate == Candidate::Raw {
                    let measured = parts::measure(ends, self.spans);
                    if let Some(found) = self.kept(round, Candidate::Roofline, "parts", measured)? {
                        self.add(round, Candidate::Roofline, "parts", found);
                    }
                } else if item.concerns(ends.candidate) {
                    let measured = work::run(item, ends, self.spans);
                    if let Some(found) = self.kept(round, ends.candidate, item.name(), measured)? {
                        self.add(round, ends.candidate, item.name(), found);
                    }
                    // At once: others' turns would be time to give it back.
                    if ends.candidate.kind().is_some() {
                        raise(most.entry(ends.candidate).or_default(), &ends.memory());
                    }
                }
            }
        }
        if self.wants(Item::Memory) {
            for (candidate, memory) in most {
                self.memory(round, candidate, ["loaded", "loaded_anon"], &memory);
            }
        }
        if self.options.profile && round == self.options.rounds {
            self.record(&mut stages);
        }
        Ok(())
    }

    /// Those that are nodes, in this round's order.
    fn nodes(&self, round: u32) -> Vec<Candidate> {
        let mut order = self.order(round);
        order.retain(|candidate| candidate.kind().is_some());
        order
    }

    /// TCP through a node that forwards.
    fn forwarded(&mut self, round: u32) -> Result<(), LabError> {
        for candidate in self.nodes(round) {
            let measured = Ends::start(candidate, Route::Forwarded)
                .and_then(|ends| work::run(Item::Forward, &ends, self.spans));
            if let Some(found) = self.kept(round, candidate, "forward", measured)? {
                self.add(round, candidate, "forward", found);
            }
        }
        Ok(())
    }

    /// One node and many: TCP to ten others of its kind, and datagrams to and
    /// from up to a thousand.
    fn crowds(&mut self, round: u32) -> Result<(), LabError> {
        for candidate in self.order(round) {
            if candidate.kind().is_some() || candidate == Candidate::Raw {
                let measured = many_nodes::measure(candidate, self.spans);
                if let Some(found) = self.kept(round, candidate, many_nodes::NAME, measured)? {
                    self.add(round, candidate, many_nodes::NAME, found);
                }
            }
        }
        let idle = if self.options.quick { IDLE_QUICK } else { IDLE };
        let sizes = many::SIZES.into_iter();
        for (peers, name) in sizes.filter(|(peers, _)| self.options.peers.contains(peers)) {
            for candidate in self.nodes(round) {
                let measured = many::measure(candidate, peers, self.spans, idle);
                if let Some(found) = self.kept(round, candidate, name, measured)? {
                    self.add(round, candidate, name, found);
                }
            }
        }
        Ok(())
    }

    /// TCP through relays, one after the other.
    fn relayed(&mut self, round: u32) -> Result<(), LabError> {
        let mut turns = vec![
            (Candidate::Ours, RelayKind::Warren, "relay"),
            (Candidate::Reference, RelayKind::Derper, "relay"),
            (Candidate::Ours, RelayKind::Derper, "derper"),
        ];
        turns.retain(|(candidate, relay, _)| {
            self.candidates.contains(candidate)
                && (*relay == RelayKind::Warren || foreign("derper").is_some())
        });
        if round.is_multiple_of(2) {
            turns.reverse();
        }
        for (candidate, relay, name) in turns {
            let measured = Ends::start(candidate, Route::Relayed(relay))
                .and_then(|ends| work::run(Item::Relay, &ends, self.spans));
            if let Some(found) = self.kept(round, candidate, name, measured)? {
                if candidate == Candidate::Reference {
                    // Its relay is derper in both comparisons.
                    self.add(round, candidate, "derper", found.clone());
                }
                self.add(round, candidate, name, found);
            }
        }
        Ok(())
    }

    /// Neither is always the first, with the caches cold.
    fn order(&self, round: u32) -> Vec<Candidate> {
        let mut order = self.candidates.clone();
        if round.is_multiple_of(2) {
            order.reverse();
        }
        order
    }

    /// The figures, or a note that the measurement failed.
    fn kept<T>(
        &mut self,
        round: u32,
        candidate: Candidate,
        what: &str,
        result: Result<T, LabError>,
    ) -> Result<Option<T>, LabError> {
        // Failures after Ctrl-C are caused by it.
        check_interrupt()?;
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let failure = format!("round {round} {what} {candidate}: {error}");
                eprintln!("FAILED: {failure}");
                self.failures.push(failure);
                Ok(None)
            }
        }
    }

    fn add(&mut self, round: u32, candidate: Candidate, item: &str, found: measure::Found) {
        let mut shown = String::new();
        for (name, value) in found {
            shown += &format!(" {name} {value:.3}");
            self.figures.push(Figure {
                metric: format!("{item}.{name}"),
                candidate,
                round,
                value,
            });
        }
        eprintln!("round {round} {item:<8} {candidate:<10}{shown}");
    }

    fn starts(&mut self, round: u32, ends: &Ends) {
        for start in &ends.start {
            let found = vec![
                ("running", start.running.as_secs_f64()),
                ("answering", start.answering.as_secs_f64()),
            ];
            self.add(round, ends.candidate, "start", found);
        }
    }

    #[allow(clippy::cast_precision_loss)] // sizes far below 2^52
    fn memory(
        &mut self,
        round: u32,
        candidate: Candidate,
        names: [&'static str; 2],
        memory: &[Memory],
    ) {
        for node in memory {
            let values = [node.resident, node.anonymous].map(|it| it as f64 / MIB);
            self.add(
                round,
                candidate,
                "memory",
                names.into_iter().zip(values).collect(),
            );
        }
    }

    fn record(&mut self, stages: &mut [Ends]) {
        for ends in stages {
            if ends.candidate.kind() != Some(Kind::Warren) {
                continue;
            }
            let text = profile::tcp(ends, self.spans, &self.options.folder);
            self.profile = Some(text.unwrap_or_else(|error| format!("\nNo profile: {error}.\n")));
        }
    }

    /// The files that a node needs on a machine: one file of ours,
    /// two of the reference.
    #[allow(clippy::cast_precision_loss)] // sizes far below 2^52
    fn sizes(&mut self) {
        if !self.wants(Item::Memory) {
            return;
        }
        let of = |name: &str| machine::size(foreign(name).as_deref());
        let sizes = [
            (
                Candidate::Ours,
                machine::size(ours("warren").ok().as_deref()),
            ),
            (
                Candidate::Reference,
                of("tailscaled").zip(of("tailscale")).map(|(a, b)| a + b),
            ),
            (Candidate::BoringTun, of(boringtun::PROGRAM)),
        ];
        for (candidate, size) in sizes {
            if let Some(size) = size.filter(|_| self.candidates.contains(&candidate)) {
                self.add(0, candidate, "size", vec![("files", size as f64 / MIB)]);
            }
        }
    }

    fn finish(self) -> Outcome {
        Outcome {
            spreads: Spreads::of(&self.figures),
            figures: self.figures,
            rounds: self.rounds,
            quick: self.options.quick,
            load: (self.load, machine::load()),
            missing: self.missing,
            failures: self.failures,
            profile: self.profile,
        }
    }
}

/// Keeps the most that was seen of each node.
fn raise(most: &mut Vec<Memory>, now: &[Memory]) {
    if most.is_empty() {
        most.extend_from_slice(now);
    }
    for (most, now) in most.iter_mut().zip(now) {
        if now.resident > most.resident {
            *most = *now;
        }
    }
}

/// Why it cannot be measured here.
fn lacks(candidate: Candidate) -> Option<String> {
    let programs: &[&str] = match candidate {
        Candidate::Ours => return ours("warren").err().map(|error| error.to_string()),
        Candidate::Reference => &["tailscaled", "tailscale"],
        Candidate::BoringTun => &[boringtun::PROGRAM],
        Candidate::Roofline | Candidate::Shuttle | Candidate::Raw => &[],
    };
    let missing = programs.iter().find(|name| foreign(name).is_none())?;
    Some(format!(
        "{missing} is neither in ${} nor in PATH",
        warren_lab::PEERS_VARIABLE
    ))
}
