//! `warren`: the daemon and the command line that drives it, in one file.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren_cli::run(std::env::args_os(), warren_cli::daemon::main)
}
