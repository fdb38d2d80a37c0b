//! The command line: `warren COMMAND [flags]`.
//!
//! Every command but `daemon` is a client of the daemon's local socket. Flags
//! are typed as users of the official client type them (see [`args`]), texts
//! that scripts match are those of the official client, and the exit code names the
//! kind of failure: 0 done, 1 failed, 2 the command line is wrong.
//!
//! One command has one file; a command gets an [`Io`] instead of the terminal,
//! so that tests can read what it prints.

pub mod args;
pub mod daemon;
pub mod duration;

mod accounts;
mod completion;
mod connect;
mod container;
mod debug;
mod debug_daemon;
mod dns;
mod get;
mod grammar;
mod inspect;
mod lock;
mod missing;
mod nc;
mod netcheck;
mod ping;
mod pref_flags;
mod reports;
mod ssh;
mod status;
mod up;
mod wait;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod hostile_texts;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use args::Given;
use warren_local_api::VERSION;
use warren_local_api::client::{Client, ClientError};
use warren_terminal::SafeWriter;

pub use daemon::{DaemonArgs, DaemonMain};

/// The socket of the official daemon.
const OFFICIAL_SOCKET: &str = "/var/run/tailscale/tailscaled.sock";
/// The interface of the official daemon, which other programs name in their rules.
const OFFICIAL_INTERFACE: &str = "tailscale0";

/// The outputs of a command.
pub struct Io {
    /// The result that the user asked for.
    pub out: Box<dyn Write + Send>,
    /// Everything else: progress, hints, warnings.
    pub err: Box<dyn Write + Send>,
}

impl Io {
    /// The terminal (or pipe) that the program was started in.
    pub fn standard() -> Self {
        Self {
            out: Box::new(SafeWriter(io::stdout())),
            err: Box::new(SafeWriter(io::stderr())),
        }
    }

    /// Prints an answer as JSON.
    fn say_json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        self.say(warren_terminal::json(value).map_err(Failure::failed)?)
    }

    fn say(&mut self, text: impl std::fmt::Display) -> Result<(), Failure> {
        writeln!(self.out, "{text}")
            .and_then(|()| self.out.flush())
            .map_err(Failure::output)
    }

    /// A hint or warning; losing it does no harm.
    fn note(&mut self, text: impl std::fmt::Display) {
        let _ = writeln!(self.err, "{text}").and_then(|()| self.err.flush());
    }
}

/// An answer as it is shown in text: without characters that act on a terminal.
fn shown<T: serde::Serialize + serde::de::DeserializeOwned>(answer: &T) -> Result<T, Failure> {
    warren_terminal::shown(answer).map_err(Failure::failed)
}

/// The reason why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The command line is wrong: exit code 2.
    Usage(String),
    /// It did not work: exit code 1. An empty text prints nothing.
    Failed(String),
}

impl Failure {
    fn failed(text: impl std::fmt::Display) -> Self {
        Self::Failed(text.to_string())
    }

    fn usage(text: impl std::fmt::Display) -> Self {
        Self::Usage(text.to_string())
    }

    fn output(error: io::Error) -> Self {
        // The reader of a pipe has seen enough (`warren status | head`).
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Failed(String::new())
        } else {
            Self::Failed(format!("writing the output: {error}"))
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut text = error.to_string();
        if matches!(error, ClientError::AccessDenied(_)) && !rustix::process::geteuid().is_root() {
            text.push_str(
                "\n\nUse 'sudo warren ...'.\n\
                 To not require root, use 'sudo warren set --operator=$USER' once.",
            );
        }
        Self::Failed(text)
    }
}

/// Runs the program: parses `args` (with the program's name in front) and
/// carries them out. `daemon` runs the daemon.
pub fn run<I>(args: I, daemon: DaemonMain) -> ExitCode
where
    I: IntoIterator<Item = OsString>,
{
    run_with(args, daemon, Io::standard())
}

/// As [`run`], with other outputs than the terminal.
pub fn run_with<I>(args: I, daemon: DaemonMain, mut io: Io) -> ExitCode
where
    I: IntoIterator<Item = OsString>,
{
    let args = parsed_form(args.into_iter().collect());
    // The program's name and flags of the program stand before the command.
    let words = args.iter().skip(1).filter_map(|word| word.to_str());
    if let Some(why) = missing::reason(words.filter(|word| !word.starts_with('-'))) {
        io.note(why);
        return ExitCode::FAILURE;
    }
    let matches = match grammar::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            let text = error.render();
            return if error.use_stderr() {
                let _ = write!(io.err, "{text}");
                ExitCode::from(2)
            } else {
                let _ = write!(io.out, "{text}");
                ExitCode::SUCCESS
            };
        }
    };
    let Some((name, given)) = matches.subcommand() else {
        return ExitCode::from(2);
    };
    let given = Given(given);
    let result = match name {
        "daemon" if given.is("version") => io.say(VERSION),
        "daemon" => match DaemonArgs::from_given(&given) {
            Ok(args) => return daemon(args),
            Err(failure) => Err(failure),
        },
        "completion" if given.text("SHELL") != Some(completion::PEERS) => {
            completion::run(&given, &mut io)
        }
        "container" => return container::run(daemon, io),
        "licenses" => reports::licenses(&mut io),
        "update" => reports::update(&given, &mut io),
        "syspolicy" => reports::syspolicy(&mut io),
        _ => match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => {
                let result = runtime.block_on(run_client(name, &given, &mut io));
                // A thread that reads the terminal cannot be ended.
                runtime.shutdown_background();
                result
            }
            Err(error) => Err(Failure::failed(error)),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            io.note(format_args!("{text}\nsee: warren {name} --help"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(text)) => {
            if !text.is_empty() {
                io.note(text);
            }
            ExitCode::FAILURE
        }
    }
}

/// Whether the program has this name, as one of the official ones.
fn is_called(args: &[OsString], name: &str) -> bool {
    let program = args
        .first()
        .and_then(|program| Path::new(program).file_name());
    program.is_some_and(|program| program == name)
}

/// The command line in the parser's form. A program that is called `tailscaled` is the
/// daemon; it and `tailscale` use the socket at which other programs look for the daemon,
/// and its interface has the name that they know. `containerboot` is the entry point of a
/// container.
fn parsed_form(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_daemon = is_called(&args, "tailscaled");
    if is_daemon {
        args.insert(1, "daemon".into());
    } else if is_called(&args, "containerboot") {
        args.insert(1, "container".into());
    }
    let mut args = args::normalise(args, &grammar::command());
    let is_given = |flag: &str, args: &[OsString]| {
        let mut words = args.iter();
        words.any(|word| word.to_string_lossy().starts_with(flag))
    };
    if is_daemon && !is_given("--tun=", &args) {
        args.push(format!("--tun={OFFICIAL_INTERFACE}").into());
    }
    let is_chosen = is_given("--socket", &args) || std::env::var_os("WARREN_SOCKET").is_some();
    if (is_daemon || is_called(&args, "tailscale")) && !is_chosen {
        args.insert(1, format!("--socket={OFFICIAL_SOCKET}").into());
    }
    args
}

/// The commands that talk to the daemon.
async fn run_client(name: &str, given: &Given<'_>, io: &mut Io) -> Result<(), Failure> {
    let client = Client::new(socket(given));
    match name {
        "up" => up::run(up::Kind::Up, given, &client, io).await,
        "login" => up::run(up::Kind::Login, given, &client, io).await,
        "set" => connect::set(given, &client, io).await,
        "get" => get::run(given, &client, io).await,
        "switch" => accounts::run(given, &client, io).await,
        "down" => connect::down(given, &client, io).await,
        "logout" => connect::logout(given, &client).await,
        "status" => status::run(given, &client, io).await,
        "ping" => ping::run(given, &client, io).await,
        "ip" => inspect::ip(given, &client, io).await,
        "whois" => inspect::whois(given, &client, io).await,
        "whoami" => inspect::whoami(given, &client, io).await,
        "dns" => dns::run(given, &client, io).await,
        "lock" => lock::run(given, &client, io).await,
        "exit-node" => reports::exit_node(given, &client, io).await,
        "metrics" => reports::metrics(given, &client, io).await,
        "bugreport" => reports::bug_report(given, &client, io).await,
        "nc" => nc::run(given, &client).await,
        "ssh" => ssh::run(given, &client).await,
        "completion" => completion::peers(&client, io).await,
        "version" => inspect::version(given, &client, io).await,
        "netcheck" => netcheck::run(given, &client, io).await,
        "wait" => wait::run(given, &client).await,
        "debug" => debug::run(given, &client, io).await,
        other => Err(Failure::usage(format_args!("command {other:?} not found"))),
    }
}

/// The socket to use: flag, environment, default.
fn socket(given: &Given<'_>) -> PathBuf {
    given
        .text("socket")
        .map_or_else(|| warren_local_api::DEFAULT_SOCKET.into(), PathBuf::from)
}

/// The reason why a daemon that is not up cannot serve the command, in the words that
/// scripts look for; `None` when it is up or on its way.
fn not_running(status: &warren_local_api::types::Status) -> Option<String> {
    match status.backend_state.as_str() {
        "Running" | "Starting" => None,
        "Stopped" => Some("Tailscale is stopped.".to_owned()),
        "NeedsLogin" if status.auth_url.is_empty() => Some("Logged out.".to_owned()),
        "NeedsLogin" => Some(format!("Logged out.\nLog in at: {}", status.auth_url)),
        "NeedsMachineAuth" => Some("Machine is not yet approved by tailnet admin.".to_owned()),
        other => Some(format!("unexpected state: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_the_names_of_official_ones_behave_as_those() {
        let form = |line: &str| {
            let words = parsed_form(line.split(' ').map(OsString::from).collect());
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            words.join(" ")
        };
        let socket = "--socket=/var/run/tailscale/tailscaled.sock";
        for (line, meant) in [
            (
                "/usr/sbin/tailscaled -cleanup",
                format!("/usr/sbin/tailscaled {socket} daemon --cleanup --tun=tailscale0"),
            ),
            (
                "tailscaled --version",
                format!("tailscaled {socket} daemon --version --tun=tailscale0"),
            ),
            (
                "tailscaled --socket=/x --tun w0 --port 1",
                "tailscaled daemon --socket=/x --tun=w0 --port=1".to_owned(),
            ),
            (
                "/usr/bin/containerboot",
                "/usr/bin/containerboot container".to_owned(),
            ),
            ("tailscale status", format!("tailscale {socket} status")),
            ("tailscale --version", format!("tailscale {socket} version")),
            (
                "tailscale -socket /x ip",
                "tailscale --socket=/x ip".to_owned(),
            ),
            (
                "/usr/bin/warren status",
                "/usr/bin/warren status".to_owned(),
            ),
        ] {
            assert_eq!(form(line), meant, "{line}");
        }
    }
}
