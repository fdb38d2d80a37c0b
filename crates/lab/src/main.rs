//! `warren-lab`: the demonstration, and the helper that its hosts run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A private network in miniature, on this machine.
#[derive(Parser)]
#[command(name = "warren-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings up a server, a relay and two nodes behind two NATs, and shows
    /// what they do.
    Demo {
        /// Leaves the network up until Ctrl-C, with commands to play with.
        #[arg(long)]
        keep: bool,
    },
    /// Opens http://NAME/ and prints the page.
    #[command(hide = true)]
    Fetch {
        /// The host's name.
        name: String,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Demo { keep } => demo(keep),
        Command::Fetch { name } => {
            report(warren_lab::web::fetch(&name).map(|page| print!("{page}")))
        }
    }
}

fn demo(keep: bool) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        return warren_lab::run_in_user_namespace();
    }
    let result = warren_lab::demo::run();
    match result {
        Ok(stage) if keep => {
            let shown = warren_lab::demo::how_to_play(&stage).map(|text| println!("{text}"));
            if shown.is_ok() {
                wait_for_interrupt();
            }
            drop(stage);
            report(shown)
        }
        other => report(other.map(drop)),
    }
}

fn report(result: Result<(), warren_lab::LabError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait_for_interrupt() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => drop(runtime.block_on(tokio::signal::ctrl_c())),
        Err(error) => eprintln!("warren-lab: cannot wait for Ctrl-C: {error}"),
    }
}
