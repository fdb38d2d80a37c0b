//! `warren daemon`: its arguments, its log, and its exit code. The daemon itself
//! is the library `warren-node`.

use std::path::PathBuf;
use std::process::ExitCode;

use warren_logging::{LevelFilter, log_to_stderr};
use warren_node::daemon::{DaemonError, DaemonOptions, Proxies, StatePlace, Tunnel, clean_up, run};

use super::args::Given;
use super::{Failure, socket};

/// The function that runs the daemon until a signal stops it; [`main`], except in
/// tests of the command line.
pub type DaemonMain = fn(DaemonArgs) -> ExitCode;

/// The arguments of `warren daemon`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonArgs {
    /// The options of the daemon.
    pub options: DaemonOptions,
    /// The log level: 0 normal, 1 debug, 2 and more everything.
    pub verbose: u8,
    /// Undo what an earlier daemon left in the operating system, and exit.
    pub cleanup: bool,
}

/// Name of the state file in the state folder.
const STATE_FILE: &str = "warren.state";

/// Flags of `tailscaled` for features that are missing, with what to do.
pub(super) const MISSING_VALUES: &[(&str, &str)] = &[
    ("bird-socket", "leave it out"),
    ("syspolicy-file", "leave it out"),
];

/// The same, for switches.
pub(super) const MISSING_SWITCHES: &[(&str, &str)] = &[
    (
        "encrypt-state",
        "the state is in a file that only its owner can read",
    ),
    (
        "hardware-attestation",
        "the state is in a file that only its owner can read",
    ),
    ("syslog", "the log goes to standard error"),
];

/// Fails if a flag asks for a feature that is missing.
fn check_missing(given: &Given<'_>) -> Result<(), Failure> {
    let values = MISSING_VALUES.iter();
    let values = values.filter(|(flag, _)| given.text(flag).is_some_and(|text| !text.is_empty()));
    let switches = MISSING_SWITCHES.iter().filter(|(flag, _)| given.is(flag));
    match values.chain(switches).next() {
        None => Ok(()),
        Some((flag, remedy)) => Err(Failure::failed(format_args!(
            "--{flag} is not in this version yet; {remedy}"
        ))),
    }
}

impl DaemonArgs {
    pub(super) fn from_given(given: &Given<'_>) -> Result<Self, Failure> {
        check_missing(given)?;
        let number = |name: &str, most: u32| -> Result<u32, Failure> {
            let text = given.text(name).unwrap_or("0");
            text.parse().ok().filter(|n| *n <= most).ok_or_else(|| {
                Failure::usage(format_args!(
                    "--{name}: {text:?} is not a valid number; the largest is {most}"
                ))
            })
        };
        let port = u16::try_from(number("port", 65_535)?).unwrap_or(0);
        let verbose = u8::try_from(number("verbose", 255)?).unwrap_or(0);
        let tunnel = tunnel(given.text("tun").unwrap_or_default())?;
        let proxy = |name: &str| {
            let address = given.text(name).filter(|address| !address.is_empty());
            address
                .map(|address| check_listener(name, address))
                .transpose()
        };
        let proxies = Proxies {
            socks5: proxy("socks5-server")?,
            http: proxy("outbound-http-proxy-listen")?,
        };
        let (state_dir, state) = state_place(given.text("state-dir"), given.text("state"))?;
        let debug = given.text("debug").filter(|address| !address.is_empty());
        let debug = debug.map(|address| check_listener("debug", address));
        Ok(Self {
            options: DaemonOptions {
                socket: socket(given),
                state_dir,
                state,
                config: config_file(given.text("config").unwrap_or_default())?,
                debug: debug.transpose()?,
                port,
                tunnel,
                proxies,
            },
            verbose,
            cleanup: given.is("cleanup"),
        })
    }
}

/// The folder for what the system needs after a crash, and the place of the state.
fn state_place(
    folder: Option<&str>,
    state: Option<&str>,
) -> Result<(PathBuf, StatePlace), Failure> {
    let given = folder.map(PathBuf::from);
    let file = match state {
        Some("mem:") => {
            let folder = given.map_or_else(default_state_dir, Ok)?;
            return Ok((folder, StatePlace::Memory));
        }
        Some(other)
            if ["mem:", "kube:", "arn:"]
                .iter()
                .any(|kind| other.starts_with(kind)) =>
        {
            return Err(Failure::failed(format_args!(
                "--state {other}: only files and mem: (in memory) are supported in this version"
            )));
        }
        file => file.map(PathBuf::from),
    };
    let folder = match (given, &file) {
        (Some(folder), _) => folder,
        (None, None) => default_state_dir()?,
        (None, Some(file)) => {
            let parent = file.parent().map(PathBuf::from).unwrap_or_default();
            match parent.as_os_str().is_empty() {
                true => ".".into(),
                false => parent,
            }
        }
    };
    let file = file.unwrap_or_else(|| folder.join(STATE_FILE));
    let place = StatePlace::Files {
        folder: folder.clone(),
        file,
    };
    Ok((folder, place))
}

/// The configuration file; `optional:` in front of it allows that there is none.
fn config_file(text: &str) -> Result<Option<PathBuf>, Failure> {
    match text.strip_prefix("optional:") {
        None if text.is_empty() => Ok(None),
        None if text == "vm:user-data" => Err(Failure::failed(
            "--config vm:user-data is not in this version yet; give a file",
        )),
        None => Ok(Some(text.into())),
        Some(path) => Ok(Some(PathBuf::from(path)).filter(|path| path.exists())),
    }
}

/// Runs the daemon: logs to standard error, and maps the end to an exit code.
pub fn main(args: DaemonArgs) -> ExitCode {
    log_to_stderr(default_level(args.verbose));
    // Two workers serve the engine, the local interface and relays; packets
    // have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Err(source) => Err(DaemonError::System {
            what: "cannot start the runtime",
            source,
        }),
        Ok(runtime) if args.cleanup => runtime.block_on(clean_up(&args.options)),
        Ok(runtime) => runtime.block_on(run(args.options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The level that the flag asks for; the environment wins over it.
fn default_level(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// The name that asks for a network stack in the daemon.
const USERSPACE: &str = "userspace-networking";

fn tunnel(name: &str) -> Result<Tunnel, Failure> {
    if name == USERSPACE {
        return Ok(Tunnel::Userspace);
    }
    let fits = !name.is_empty()
        && name.len() <= 15
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
        && name != "."
        && name != "..";
    if fits {
        Ok(Tunnel::Interface(name.to_owned()))
    } else {
        Err(Failure::usage(format_args!(
            "--tun: {name:?} is not a valid interface name; write 1 to 15 characters without /, \
             : and %, or {USERSPACE}"
        )))
    }
}

/// An address to listen at, `host:port` or `:port`.
fn check_listener(flag: &str, address: &str) -> Result<String, Failure> {
    let port = address.rsplit_once(':').map(|(_, port)| port);
    if port.is_some_and(|port| port.parse::<u16>().is_ok()) {
        Ok(address.to_owned())
    } else {
        Err(Failure::usage(format_args!(
            "--{flag}: {address:?} is not an address to listen at; write host:port, for \
             instance localhost:1055"
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
    use crate::{args, grammar};

    fn parse(line: &str) -> Result<DaemonArgs, Failure> {
        let grammar = grammar::command();
        let args = args::normalise(line.split(' ').map(Into::into).collect(), &grammar);
        let matches = grammar.try_get_matches_from(args).unwrap();
        DaemonArgs::from_given(&Given(matches.subcommand().unwrap().1))
    }

    #[test]
    fn daemon_arguments_are_read_in_all_their_forms() {
        let args =
            parse("w daemon --state-dir /s -socket /x.sock --port 41641 --tun w0 --verbose=1")
                .unwrap();
        assert_eq!(
            args,
            DaemonArgs {
                options: DaemonOptions {
                    socket: "/x.sock".into(),
                    state_dir: "/s".into(),
                    state: StatePlace::Files {
                        folder: "/s".into(),
                        file: "/s/warren.state".into(),
                    },
                    config: None,
                    debug: None,
                    port: 41641,
                    tunnel: Tunnel::Interface("w0".into()),
                    proxies: Proxies::default(),
                },
                verbose: 1,
                cleanup: false,
            }
        );
        let args = parse("w --socket /y daemon -statedir=/s --state /t/file -cleanup").unwrap();
        assert_eq!(
            (
                args.options.socket,
                args.options.state_dir,
                args.options.state,
                args.cleanup
            ),
            (
                "/y".into(),
                "/s".into(),
                StatePlace::Files {
                    folder: "/s".into(),
                    file: "/t/file".into(),
                },
                true
            )
        );
        assert_eq!(
            parse("w daemon --state f").unwrap().options.state_dir,
            PathBuf::from(".")
        );
    }

    #[test]
    fn a_daemon_without_an_interface_has_proxies() {
        let line = "w daemon --state-dir /s --tun=userspace-networking \
                    --socks5-server=localhost:1055 -outbound-http-proxy-listen=:1056";
        let options = parse(line).unwrap().options;
        assert_eq!(options.tunnel, Tunnel::Userspace);
        assert_eq!(options.proxies.socks5.as_deref(), Some("localhost:1055"));
        assert_eq!(options.proxies.http.as_deref(), Some(":1056"));
    }

    #[test]
    fn a_daemon_may_keep_its_state_in_memory() {
        let options = parse("w daemon --state=mem: --statedir=/s")
            .unwrap()
            .options;
        assert_eq!(options.state, StatePlace::Memory);
        assert_eq!(options.state_dir, PathBuf::from("/s"));
    }

    #[test]
    fn a_daemon_takes_a_configuration_file_and_an_address_for_counters() {
        let options = parse("w daemon --state-dir /s --config /c --debug :9090");
        let options = options.unwrap().options;
        assert_eq!(options.config, Some("/c".into()));
        assert_eq!(options.debug.as_deref(), Some(":9090"));
        let absent = parse("w daemon --state-dir /s --config optional:/nowhere/at/all");
        assert_eq!(absent.unwrap().options.config, None);
        let user_data = parse("w daemon --state-dir /s --config vm:user-data");
        assert!(matches!(user_data, Err(Failure::Failed(_))));
        let unusable = parse("w daemon --state-dir /s --debug 9090");
        assert!(matches!(unusable, Err(Failure::Usage(_))));
    }

    #[test]
    fn invalid_daemon_arguments_are_usage_errors() {
        for wrong in [
            "--port 65536",
            "--port x",
            "--tun a-name-that-is-too-long",
            "--tun=",
            "--verbose=-1",
            "--tun=userspace-networking:x",
            "--socks5-server=localhost",
            "--outbound-http-proxy-listen=localhost:http",
        ] {
            assert!(
                matches!(
                    parse(&format!("w daemon --state-dir /s {wrong}")),
                    Err(Failure::Usage(_))
                ),
                "{wrong}"
            );
        }
        for place in ["kube:x", "arn:aws:ssm:x", "mem:x"] {
            assert!(matches!(
                parse(&format!("w daemon --state {place}")),
                Err(Failure::Failed(_))
            ));
        }
        // Flags of the official daemon: taken where nothing is asked for, else refused.
        let quiet = "w daemon --state-dir /s -no-logs-no-support --encrypt-state=false --debug=";
        assert!(parse(quiet).is_ok());
        for wanted in ["--encrypt-state", "--syspolicy-file /x", "-syslog"] {
            let parsed = parse(&format!("w daemon --state-dir /s {wanted}"));
            assert!(
                matches!(&parsed, Err(Failure::Failed(text)) if text.contains("not in this version yet")),
                "{wanted}: {parsed:?}"
            );
        }
    }
}
