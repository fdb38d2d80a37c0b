//! `warren completion SHELL`: a script for the shell.

use clap_complete::Shell;

use super::args::Given;
use super::{Failure, Io, grammar};

pub(super) fn run(given: &Given<'_>, io: &mut Io) -> Result<(), Failure> {
    let shell = match given.text("SHELL") {
        Some("bash") => Shell::Bash,
        Some("zsh") => Shell::Zsh,
        Some("fish") => Shell::Fish,
        Some("powershell") => Shell::PowerShell,
        other => return Err(Failure::usage(format_args!("unknown shell {other:?}"))),
    };
    // The generator would panic on a closed pipe, so it writes into memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar::command(), "warren", &mut script);
    io.out
        .write_all(&script)
        .and_then(|()| io.out.flush())
        .map_err(Failure::output)
}
