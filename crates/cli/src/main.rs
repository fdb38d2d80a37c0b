//! `warren`: the daemon and the command line that drives it, in one file.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The daemon starts this program again for each SSH session.
    if std::env::args_os().skip(1).eq(warren_ssh::child::ARGUMENTS) {
        return warren_ssh::child::run();
    }
    warren_cli::run(std::env::args_os(), warren_cli::daemon::main)
}
