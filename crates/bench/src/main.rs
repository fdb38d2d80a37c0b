//! `warren-bench`: the benchmarks, and the load generator that their hosts run.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use warren_bench::dataplane::{Candidate, DataplaneOptions, Item, LoadKind, PEERS};
use warren_bench::join::{JoinOptions, Pair, Servers};

/// Measures our programs beside others. Asserts nothing.
#[derive(Parser)]
#[command(name = "warren-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures the time from joining to the first reply and to the direct
    /// path, ours and official clients in turns.
    Join(Join),
    /// Measures throughput, loss, latency, CPU and memory: ours, the official
    /// client, and the limit of the machine.
    Dataplane(Dataplane),
    /// One end of a measurement; answers each line of its input.
    #[command(hide = true)]
    Load {
        #[command(subcommand)]
        kind: LoadKind,
    },
}

#[derive(Args)]
struct Dataplane {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// One short round, for a look.
    #[arg(long)]
    quick: bool,
    /// Only these: memory, ping, tcp1, tcp4, udp05, udp3, udpmax, pingload,
    /// flood, forward, peers, relay, parts.
    #[arg(long, value_name = "ITEMS", value_delimiter = ',', default_values_t = Item::ALL)]
    only: Vec<Item>,
    /// Only with these: ours, reference, boringtun, roofline, shuttle, raw.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values_t = Candidate::ALL)]
    candidates: Vec<Candidate>,
    /// Only with ours.
    #[arg(long, conflicts_with = "candidates")]
    ours_only: bool,
    /// How many peers the item `peers` gives to one node: 1, 10, 100, 1000.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_values_t = PEERS)]
    peers: Vec<u16>,
    /// Also records with `perf` where our daemons' time goes.
    #[arg(long)]
    profile: bool,
    /// Where table, figures and picture are written.
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "bench/results",
        overrides_with = "out"
    )]
    out: std::path::PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReferenceServers {
    /// The official clients; ratios then compare nodes and servers together.
    Real,
    /// Both kinds of node.
    All,
}

#[derive(Args)]
struct Join {
    /// How often every pair is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Pairs of places: open, cone, easy, cgnat, fw, hard, noudp.
    #[arg(long, value_delimiter = ',', default_values_t = Pair::USUAL)]
    pairs: Vec<Pair>,
    /// The nodes that use Headscale and derper instead of our servers.
    #[arg(long, value_name = "NODES", value_enum)]
    reference_servers: Option<ReferenceServers>,
    /// The hosts have IPv6 too.
    #[arg(long)]
    ipv6: bool,
    /// Leaves the official clients out.
    #[arg(long)]
    ours_only: bool,
    /// Seconds that a direct path is waited for.
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// Seconds that a node is idle before its memory is read.
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// Also writes every trial to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Join(join) => bench_join(join),
        Command::Dataplane(dataplane) => bench_dataplane(dataplane),
        Command::Load { kind } => report(warren_bench::dataplane::run_load(&kind)),
    }
}

fn bench_join(join: Join) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        return warren_lab::run_in_user_namespace();
    }
    let on = |reference: bool| {
        if reference {
            Servers::Reference
        } else {
            Servers::Ours
        }
    };
    report(warren_bench::join::join(&JoinOptions {
        rounds: join.rounds,
        pairs: join.pairs,
        ours_on: on(join.reference_servers == Some(ReferenceServers::All)),
        real_on: on(join.reference_servers.is_some()),
        ipv6: join.ipv6,
        ours_only: join.ours_only,
        limit: Duration::from_secs(join.limit),
        idle: Duration::from_secs(join.idle),
        json: join.json,
    }))
}

fn bench_dataplane(dataplane: Dataplane) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        return warren_lab::run_in_user_namespace();
    }
    report(warren_bench::dataplane::run(&DataplaneOptions {
        rounds: if dataplane.quick { 1 } else { dataplane.rounds },
        quick: dataplane.quick,
        items: dataplane.only,
        candidates: if dataplane.ours_only {
            vec![Candidate::Ours]
        } else {
            dataplane.candidates
        },
        peers: dataplane.peers,
        profile: dataplane.profile,
        folder: dataplane.out,
    }))
}

fn report(result: Result<(), warren_lab::LabError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
