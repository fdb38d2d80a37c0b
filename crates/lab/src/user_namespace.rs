//! Entering a user namespace, for callers that are not root.

use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

/// Runs this program again as root of a user namespace, with the same
/// arguments. An ordinary user is root there, which is enough for everything
/// that the lab does. Returns only when that fails, after it printed the reason.
pub fn run_in_user_namespace() -> ExitCode {
    let Ok(own) = std::env::current_exe() else {
        eprintln!("cannot find the path of this program");
        return ExitCode::FAILURE;
    };
    println!("not root: entering a user namespace");
    let error = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .exec();
    eprintln!("cannot run `unshare` ({error}): run as root, or allow user namespaces");
    ExitCode::FAILURE
}
