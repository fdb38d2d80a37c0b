//! `warren-control`: the coordination server and its administration.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren_control::cli::main(std::env::args_os())
}
