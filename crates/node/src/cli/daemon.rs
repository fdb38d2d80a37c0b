//! `warren daemon`: only its arguments are known here. What it does is in the
//! function that the program hands to [`super::run`].

use std::path::PathBuf;
use std::process::ExitCode;

use super::args::Given;
use super::{Failure, socket};

/// Runs the daemon until it is told to stop.
pub type DaemonMain = fn(DaemonArgs) -> ExitCode;

/// What the daemon was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonArgs {
    /// Where to listen for the command line.
    pub socket: PathBuf,
    /// Folder for everything that must survive a restart.
    pub state_dir: PathBuf,
    /// File with keys and settings; usually in `state_dir`.
    pub state_file: PathBuf,
    /// UDP port; 0: any.
    pub port: u16,
    /// Name of the network interface.
    pub tun: String,
    /// How much to log: 0 normal, 1 debug, 2 and more everything.
    pub verbose: u8,
    /// Undo what an earlier daemon left, and exit.
    pub cleanup: bool,
}

/// Name of the state file in the state folder.
const STATE_FILE: &str = "warren.state";

impl DaemonArgs {
    pub(super) fn from_given(given: &Given<'_>) -> Result<Self, Failure> {
        let number = |name: &str, most: u32| -> Result<u32, Failure> {
            let text = given.text(name).unwrap_or("0");
            text.parse().ok().filter(|n| *n <= most).ok_or_else(|| {
                Failure::usage(format_args!(
                    "--{name}: expected a number up to {most}, got {text:?}"
                ))
            })
        };
        let port = u16::try_from(number("port", 65_535)?).unwrap_or(0);
        let verbose = u8::try_from(number("verbose", 255)?).unwrap_or(0);
        let tun = given.text("tun").unwrap_or_default().to_owned();
        check_interface(&tun)?;
        let (state_dir, state_file) = match (given.text("state-dir"), given.text("state")) {
            (_, Some(state))
                if state.starts_with("mem:")
                    || state.starts_with("kube:")
                    || state.starts_with("arn:") =>
            {
                return Err(Failure::failed(format_args!(
                    "--state {state}: only files are supported in this version"
                )));
            }
            (Some(dir), Some(file)) => (PathBuf::from(dir), PathBuf::from(file)),
            (Some(dir), None) => (PathBuf::from(dir), PathBuf::from(dir).join(STATE_FILE)),
            (None, Some(file)) => {
                let file = PathBuf::from(file);
                let dir = file.parent().map(PathBuf::from).unwrap_or_default();
                (
                    if dir.as_os_str().is_empty() {
                        ".".into()
                    } else {
                        dir
                    },
                    file,
                )
            }
            (None, None) => {
                let dir = default_state_dir()?;
                let file = dir.join(STATE_FILE);
                (dir, file)
            }
        };
        Ok(Self {
            socket: socket(given),
            state_dir,
            state_file,
            port,
            tun,
            verbose,
            cleanup: given.is("cleanup"),
        })
    }
}

fn check_interface(name: &str) -> Result<(), Failure> {
    if name.starts_with("userspace-networking") {
        return Err(Failure::failed(
            "--tun userspace-networking is not in this version yet; leave it out and run as root \
             (or with CAP_NET_ADMIN), which makes a network interface",
        ));
    }
    let fits = !name.is_empty()
        && name.len() <= 15
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
        && name != "."
        && name != "..";
    if fits {
        Ok(())
    } else {
        Err(Failure::usage(format_args!(
            "--tun: expected an interface name of 1 to 15 characters, got {name:?}"
        )))
    }
}

/// Root keeps state for the machine, others keep their own.
fn default_state_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/warren".into());
    }
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map(|dir| dir.join("warren"))
        .ok_or_else(|| {
            Failure::failed("where to keep state? Give --state-dir DIR (HOME is not set)")
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::{args, grammar};

    fn parse(line: &str) -> Result<DaemonArgs, Failure> {
        let grammar = grammar::command();
        let args = args::normalise(line.split(' ').map(Into::into).collect(), &grammar);
        let matches = grammar.try_get_matches_from(args).unwrap();
        DaemonArgs::from_given(&Given(matches.subcommand().unwrap().1))
    }

    #[test]
    fn the_arguments_of_the_daemon() {
        let args =
            parse("w daemon --state-dir /s -socket /x.sock --port 41641 --tun w0 --verbose=1")
                .unwrap();
        assert_eq!(
            args,
            DaemonArgs {
                socket: "/x.sock".into(),
                state_dir: "/s".into(),
                state_file: "/s/warren.state".into(),
                port: 41641,
                tun: "w0".into(),
                verbose: 1,
                cleanup: false,
            }
        );
        let args = parse("w --socket /y daemon -statedir=/s --state /t/file -cleanup").unwrap();
        assert_eq!(
            (args.socket, args.state_dir, args.state_file, args.cleanup),
            ("/y".into(), "/s".into(), "/t/file".into(), true)
        );
        assert_eq!(
            parse("w daemon --state f").unwrap().state_dir,
            PathBuf::from(".")
        );
    }

    #[test]
    fn wrong_arguments_say_why() {
        for wrong in [
            "--port 65536",
            "--port x",
            "--tun a-name-that-is-too-long",
            "--tun=",
            "--verbose=-1",
        ] {
            assert!(
                matches!(
                    parse(&format!("w daemon --state-dir /s {wrong}")),
                    Err(Failure::Usage(_))
                ),
                "{wrong}"
            );
        }
        assert!(
            matches!(parse("w daemon --tun userspace-networking"), Err(Failure::Failed(text)) if text.contains("not in this version yet"))
        );
        assert!(matches!(
            parse("w daemon --state mem:"),
            Err(Failure::Failed(_))
        ));
    }
}
