//! `warren container`: the entry point of a container, with settings from the environment.
//!
//! It takes the variables of the official entry point (see [`settings`]), so that an image
//! with this program alone replaces the official one. Daemon and entry point are one
//! process: the daemon runs on the main thread, and a second thread logs in and watches.
//!
//! The container ends with exit code 1 when the node cannot be brought up in time, or
//! leaves the state in which it is up, so that the runtime starts it again. It ends with 0
//! after SIGTERM.
//!
//! Source: tailscale: cmd/containerboot/.

mod settings;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ArgMatches;
use http::StatusCode;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::{Signal, getpid, kill_process};
use tokio::net::TcpListener;
use warren_dial::pages::{self, Page};
use warren_local_api::client::{Client, ClientError};
use warren_local_api::endpoints::{GetStatus, GetUserMetrics, WatchBus};
use warren_local_api::notify::{NotifyMask, State};

use super::args::{Given, normalise};
use super::daemon::{DaemonArgs, DaemonMain};
use super::{Failure, Io, OFFICIAL_SOCKET, grammar, run_client};
use settings::{Pages, Settings};

/// The pause between two looks at a daemon that does not answer yet.
const RETRY: Duration = Duration::from_millis(100);
/// The device of interfaces.
const TUN: &str = "/dev/net/tun";
/// The line that scripts wait for.
const UP: &str = "Startup complete, waiting for shutdown signal";

/// Runs the container to its end.
pub(super) fn run(daemon: DaemonMain, mut io: Io) -> ExitCode {
    let prepared = Settings::read(|name| std::env::var(name).ok()).and_then(|settings| {
        let command = [words(&["daemon"]), settings.daemon.clone()].concat();
        let matches = parsed(&settings.socket, command)?;
        let arguments = match matches.subcommand() {
            Some((_, given)) => DaemonArgs::from_given(&Given(given))?,
            None => return Err(Failure::usage("a command is missing")),
        };
        if settings.interface {
            make_device()?;
        }
        Ok((settings, arguments))
    });
    let (settings, arguments) = match prepared {
        Ok(prepared) => prepared,
        Err(Failure::Usage(text) | Failure::Failed(text)) => {
            io.note(format_args!("warren container: {text}"));
            return ExitCode::FAILURE;
        }
    };
    let has_failed = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&has_failed);
    let watching = std::thread::Builder::new()
        .name("container".to_owned())
        .spawn(move || {
            let why = match watch(&settings, &mut io) {
                Ok(never) => match never {},
                Err(Failure::Usage(text) | Failure::Failed(text)) => text,
            };
            io.note(format_args!("warren container: {why}"));
            shared.store(true, Ordering::SeqCst);
            // The daemon ends as if the runtime had asked for it.
            if let Err(error) = kill_process(getpid(), Signal::TERM) {
                io.note(format_args!("warren container: cannot stop: {error}"));
            }
        });
    if let Err(error) = watching {
        eprintln!("warren container: cannot start a thread: {error}");
        return ExitCode::FAILURE;
    }
    let code = daemon(arguments);
    if has_failed.load(Ordering::SeqCst) {
        ExitCode::FAILURE
    } else {
        code
    }
}

/// The value of work that goes on until it fails.
enum Never {}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Parses a command with the socket of the container.
fn parsed(socket: &str, command: Vec<OsString>) -> Result<ArgMatches, Failure> {
    let socket = format!("--socket={socket}");
    let line = [words(&["warren", &socket]), command].concat();
    let grammar = grammar::command();
    let line = normalise(line, &grammar);
    let matches = grammar.try_get_matches_from(line);
    matches.map_err(|error| Failure::usage(error.render()))
}

/// Makes the device of interfaces, which minimal images do not have.
fn make_device() -> Result<(), Failure> {
    if Path::new(TUN).exists() {
        return Ok(());
    }
    let made = std::fs::create_dir_all("/dev/net").and_then(|()| {
        let mode = Mode::RUSR | Mode::WUSR;
        let device = makedev(10, 200);
        mknodat(CWD, TUN, FileType::CharacterDevice, mode, device).map_err(Into::into)
    });
    made.map_err(|error| {
        Failure::failed(format_args!(
            "cannot make {TUN}: {error}; give the container the device (--device {TUN}), or set \
             TS_USERSPACE=true"
        ))
    })
}

fn watch(settings: &Settings, io: &mut Io) -> Result<Never, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    runtime.block_on(async {
        let client = Client::new(&settings.socket);
        if let Pages::At { address, .. } = settings.pages {
            serve_pages(address, settings.pages, client.clone()).await?;
        }
        let up = tokio::time::timeout(settings.boot_timeout, bring_up(settings, &client, io));
        up.await.map_err(|_| {
            Failure::failed(format_args!(
                "the node was not up after {} s (TS_BOOT_TIMEOUT)",
                settings.boot_timeout.as_secs()
            ))
        })??;
        io.note(UP);
        until_down(&client).await
    })
}

/// From a daemon that starts to a node that is up.
async fn bring_up(settings: &Settings, client: &Client, io: &mut Io) -> Result<(), Failure> {
    while let Err(error) = client.call(GetStatus { peers: false }).await {
        match error {
            ClientError::Unreachable { .. } => tokio::time::sleep(RETRY).await,
            error => return Err(error.into()),
        }
    }
    link_sockets(settings, io);
    if !settings.auth_once || wants_up(client).await? {
        command(settings, "up", &settings.up, io).await?;
    }
    wait_for(client, |state| state == State::Running).await?;
    if settings.auth_once {
        command(settings, "set", &settings.set, io).await?;
    }
    Ok(())
}

/// Runs a command of the command line.
async fn command(
    settings: &Settings,
    name: &str,
    flags: &[OsString],
    io: &mut Io,
) -> Result<(), Failure> {
    let command = [words(&[name]), flags.to_vec()].concat();
    let matches = parsed(&settings.socket, command)?;
    match matches.subcommand() {
        Some((name, given)) => run_client(name, &Given(given), io).await,
        None => Err(Failure::usage("a command is missing")),
    }
}

/// Whether the node is logged out or stopped, once the daemon has decided.
async fn wants_up(client: &Client) -> Result<bool, Failure> {
    let decided = wait_for(client, |state| {
        matches!(state, State::NeedsLogin | State::Stopped | State::Running)
    });
    Ok(decided.await? != State::Running)
}

/// Waits for a state.
async fn wait_for(client: &Client, fits: impl Fn(State) -> bool) -> Result<State, Failure> {
    let mask = NotifyMask::INITIAL_STATE;
    let mut events = client.call(WatchBus { mask }).await?;
    while let Some(notify) = events.next().await? {
        if let Some(state) = notify.state.filter(|state| fits(*state)) {
            return Ok(state);
        }
    }
    Err(Failure::failed("the daemon ended"))
}

/// Waits until the node is not up any more.
async fn until_down(client: &Client) -> Result<Never, Failure> {
    let state = wait_for(client, |state| state != State::Running).await?;
    Err(Failure::failed(format_args!(
        "the node is not up any more (state {state}); the container ends, so that its runtime \
         starts it again"
    )))
}

/// Makes the socket reachable where command lines look for it.
fn link_sockets(settings: &Settings, io: &mut Io) {
    for path in [warren_local_api::DEFAULT_SOCKET, OFFICIAL_SOCKET] {
        let path = Path::new(path);
        if path == Path::new(&settings.socket) {
            continue;
        }
        let parent = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let linked = parent.and_then(|()| match std::fs::read_link(path) {
            Ok(target) if target == Path::new(&settings.socket) => Ok(()),
            _ => std::os::unix::fs::symlink(&settings.socket, path),
        });
        if let Err(error) = linked {
            io.note(format_args!(
                "warning: cannot make the link {}: {error}; commands need --socket={}",
                path.display(),
                settings.socket
            ));
        }
    }
}

/// Serves health and metrics from now on.
async fn serve_pages(address: SocketAddr, wanted: Pages, client: Client) -> Result<(), Failure> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::failed(format_args!(
            "cannot listen on {address}/tcp: {error}; choose another with TS_LOCAL_ADDR_PORT"
        ))
    })?;
    let client = client.impatient();
    tokio::spawn(pages::serve(listener, move |path| {
        let client = client.clone();
        async move {
            match path.as_str() {
                "/healthz" if wanted.has_health() => health(&client).await,
                "/metrics" if wanted.has_metrics() => metrics(&client).await,
                _ => Page::not_found(),
            }
        }
    }));
    Ok(())
}

/// Healthy is a node with an address in the network.
async fn health(client: &Client) -> Page {
    let status = client.call(GetStatus { peers: false }).await;
    let has_address = status.is_ok_and(|status| !status.tailscale_ips.is_empty());
    if has_address {
        Page::plain(StatusCode::OK, "ok")
    } else {
        let text = "node currently has no tailscale IPs\n";
        Page::plain(StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

async fn metrics(client: &Client) -> Page {
    match client.call(GetUserMetrics).await {
        Ok(text) => Page {
            status: StatusCode::OK,
            media_type: pages::PROMETHEUS,
            text,
        },
        Err(error) => Page::plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
