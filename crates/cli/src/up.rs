//! `warren up` and `login`: from whatever state the daemon is in to connected.
//!
//! Three ways lead there. Without flags, `up` only says "be up". With flags
//! that do not change the identity of the node, the preferences are edited in
//! place. Otherwise the daemon starts again, with a key or with a login in a
//! browser.
//!
//! `up` describes all settings. A command line that would change a setting without
//! mentioning it is refused, and the complete command line is printed, so that no
//! setting is lost because it was not repeated.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;
use warren_keys::NodePublic;

use super::args::Given;
use super::{Failure, Io, duration, pref_flags, shown};
use warren_local_api::client::{Client, ClientError};
use warren_local_api::endpoint::EventStream;
use warren_local_api::endpoints::{
    CheckPrefs, EditPrefs, GetPrefs, GetStatus, LogIn, Start, WatchBus,
};
use warren_local_api::notify::{Notify, NotifyMask, State};
use warren_local_api::prefs::Options;
use warren_local_api::types::Status;
use warren_node_types::{MaskedPrefs, Prefs};
use warren_terminal::printable;

/// The two commands that this file implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `up`.
    Up,
    /// `login`: always a new login, and nothing about the rest of the settings.
    Login,
}

/// The steps to take, decided from the command line and the daemon's state.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Only be up.
    Simple,
    /// Change these, staying connected.
    Edit(Box<MaskedPrefs>),
    /// Start with these.
    Start(Box<Prefs>),
}

pub(super) async fn run(
    kind: Kind,
    given: &Given<'_>,
    client: &Client,
    io: &mut Io,
) -> Result<(), Failure> {
    let began = Instant::now();
    let timeout = given
        .text("timeout")
        .map(duration::parse)
        .transpose()
        .map_err(|why| Failure::usage(format_args!("--timeout: {why}")))?
        .unwrap_or_default();
    let auth_key = auth_key(given.text("auth-key").unwrap_or_default())?;
    let status = client.call(GetStatus { peers: true }).await?;
    let current = client.call(GetPrefs).await?.prefs;
    let force = given.is("force-reauth") || (kind == Kind::Login && status.have_node_key);
    let plan = plan(kind, given, &status, &current, !auth_key.is_empty(), force)?;
    for warning in pref_flags::without_effect(given) {
        io.note(warning);
    }

    let work = async {
        let mut session = Session {
            client,
            io,
            json: given.is("json"),
            printed: false,
            asked_to_log_in: false,
            has_auth_key: !auth_key.is_empty(),
            old_key: if force { own_key(&status) } else { None },
            awaits_login: asks_for_tags(&plan, &status, &current),
        };
        let mask = NotifyMask(0);
        let mut events = client.call(WatchBus { mask }).await?;
        match plan {
            Plan::Edit(change) => {
                client.call(EditPrefs { change: *change }).await?;
                return Ok(());
            }
            Plan::Simple => {
                let change = MaskedPrefs {
                    want_running: Some(true),
                    ..MaskedPrefs::default()
                };
                client.call(EditPrefs { change }).await?;
            }
            Plan::Start(prefs) => {
                let prefs = *prefs;
                let checked = client
                    .call(CheckPrefs {
                        prefs: prefs.clone(),
                    })
                    .await?;
                if !checked.error.is_empty() {
                    return Err(Failure::failed(checked.error));
                }
                let options = Options {
                    auth_key,
                    update_prefs: Some(prefs),
                    force_login: force,
                };
                client.call(Start { options }).await?;
                session.asked_to_log_in = force;
                if !force && !status.have_node_key && !session.has_auth_key {
                    session.log_in().await?;
                }
            }
        }
        let status = session.until_running(&mut events).await?;
        session.summary(&status, began.elapsed())
    };
    let interrupted = async {
        // Without the signal handler Ctrl-C still ends the program.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let out_of_time = async {
        if timeout.is_zero() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(timeout).await;
    };
    tokio::select! {
        result = work => result,
        () = interrupted => Err(Failure::failed(
            "interrupted; the daemon continues. To see its state: warren status. To stop it: warren down",
        )),
        () = out_of_time => Err(Failure::failed(timeout_text(client, timeout).await)),
    }
}

async fn timeout_text(client: &Client, timeout: Duration) -> String {
    let mut text = format!("not connected after {}", duration::millis(timeout));
    if let Ok(status) = client
        .clone()
        .impatient()
        .call(GetStatus { peers: false })
        .await
    {
        let _ = write!(text, "; {}", unfinished(&status.backend_state));
        for problem in &status.health {
            let _ = write!(text, "\n  - {}", printable(problem));
        }
    }
    text.push_str("\ncheck with: warren status");
    text
}

/// The present work of a daemon in this state, or the event that it waits for.
fn unfinished(state: &str) -> String {
    match state {
        "NeedsLogin" => "still logging in".to_owned(),
        "NeedsMachineAuth" => "this machine waits for approval at the server".to_owned(),
        "Starting" => "still connecting".to_owned(),
        other => format!("the state is {}", printable(other)),
    }
}

/// The key itself, or the content of the file it names.
fn auth_key(text: &str) -> Result<String, Failure> {
    let Some(path) = text.strip_prefix("file:") else {
        return Ok(text.trim().to_owned());
    };
    match std::fs::read_to_string(path) {
        Ok(key) if key.trim().is_empty() => Err(Failure::failed(format_args!(
            "--auth-key: the file {path} is empty"
        ))),
        Ok(key) => Ok(key.trim().to_owned()),
        Err(error) => Err(Failure::failed(format_args!(
            "--auth-key: reading {path}: {error}"
        ))),
    }
}

/// Whether the plan asks the server for other tags than the node has.
fn asks_for_tags(plan: &Plan, status: &Status, current: &Prefs) -> bool {
    match plan {
        Plan::Start(wanted) => {
            status.have_node_key && wanted.advertise_tags != current.advertise_tags
        }
        Plan::Simple | Plan::Edit(_) => false,
    }
}

fn own_key(status: &Status) -> Option<NodePublic> {
    status.self_status.public_key.non_zero()
}

fn plan(
    kind: Kind,
    given: &Given<'_>,
    status: &Status,
    current: &Prefs,
    has_auth_key: bool,
    force: bool,
) -> Result<Plan, Failure> {
    if given.is("exit-node-allow-lan-access") && given.text("exit-node").is_none_or(str::is_empty) {
        return Err(Failure::usage(
            "--exit-node-allow-lan-access can only be used with --exit-node",
        ));
    }
    let reset = given.is("reset");
    let mentioned: Vec<&str> = pref_flags::FLAGS
        .iter()
        .copied()
        .filter(|flag| given.mentioned(flag))
        .collect();
    if kind == Kind::Up
        && mentioned.is_empty()
        && !reset
        && !force
        && !has_auth_key
        && status.have_node_key
        && status.backend_state != "NeedsLogin"
    {
        return Ok(Plan::Simple);
    }

    let fresh = Prefs {
        want_running: true,
        ..Prefs::default()
    };
    // `login` leaves alone what it does not mention; `up` does not.
    let base = if kind == Kind::Login {
        current.clone()
    } else {
        fresh.clone()
    };
    let change = pref_flags::change(given, &base, status)?;
    let mut wanted = base;
    change.apply_to(&mut wanted);
    wanted.want_running = true;
    wanted.logged_out = false;
    // There is no default server, so the known one stays.
    if change.control_url.is_none() {
        wanted.control_url.clone_from(&current.control_url);
    }
    if wanted.control_url.is_empty() {
        return Err(Failure::failed(
            "which coordination server? This machine has not joined a network yet; name its server:\n\
             \n  warren up --login-server http://HOST:PORT\n\n\
             To run a server of your own: warren-control serve",
        ));
    }
    if kind == Kind::Up && !reset && !current.control_url.is_empty() {
        keep_implicit(&mut wanted, current, &change);
        check_forgotten(given, &mentioned, current, &wanted)?;
    }
    let same_server = wanted.control_url == current.control_url;
    let running = status.backend_state == State::Running.as_str();
    if running && !same_server && !force {
        return Err(Failure::failed(
            "can't change --login-server without --force-reauth",
        ));
    }
    let same_tags = wanted.advertise_tags == current.advertise_tags;
    if kind == Kind::Up && running && !force && !has_auth_key && same_server && same_tags {
        let change = if reset {
            MaskedPrefs::all(&wanted)
        } else {
            MaskedPrefs {
                want_running: Some(true),
                ..change
            }
        };
        // Not a client's to set.
        let change = MaskedPrefs {
            internal_exit_node_prior: None,
            ..change
        };
        return Ok(Plan::Edit(Box::new(change)));
    }
    Ok(Plan::Start(Box::new(wanted)))
}

/// Keeps settings that need not be mentioned: those that have no flag of `up`, and
/// the operator, when root runs the command.
fn keep_implicit(wanted: &mut Prefs, current: &Prefs, change: &MaskedPrefs) {
    wanted.profile_name.clone_from(&current.profile_name);
    wanted.auto_update = current.auto_update.clone();
    wanted.run_web_client = current.run_web_client;
    wanted.remote_config = current.remote_config;
    wanted.sync = current.sync;
    wanted
        .advertise_services
        .clone_from(&current.advertise_services);
    wanted.drive_shares.clone_from(&current.drive_shares);
    wanted.relay_server_port = current.relay_server_port;
    wanted
        .relay_server_static_endpoints
        .clone_from(&current.relay_server_static_endpoints);
    wanted.netfilter_kind.clone_from(&current.netfilter_kind);
    wanted
        .internal_exit_node_prior
        .clone_from(&current.internal_exit_node_prior);
    if change.operator_user.is_none() && rustix::process::geteuid().is_root() {
        wanted.operator_user.clone_from(&current.operator_user);
    }
}

/// Refuses a command line that would change a setting it does not mention.
fn check_forgotten(
    given: &Given<'_>,
    mentioned: &[&str],
    current: &Prefs,
    wanted: &Prefs,
) -> Result<(), Failure> {
    let forgotten: Vec<String> = pref_flags::FLAGS
        .iter()
        .filter(|flag| !mentioned.contains(flag))
        .map(|flag| {
            (
                pref_flags::as_flag(flag, current),
                pref_flags::as_flag(flag, wanted),
            )
        })
        .filter(|(now, then)| now != then)
        .map(|(now, _)| now)
        .collect();
    if forgotten.is_empty() {
        return Ok(());
    }
    let mut words: Vec<String> = Vec::new();
    for flag in ["auth-key", "timeout", "force-reauth", "json"] {
        if given.mentioned(flag) {
            // The key itself is not repeated on the screen.
            words.push(match flag {
                "auth-key" => "--auth-key=...".to_owned(),
                "timeout" => format!("--timeout={}", given.text(flag).unwrap_or_default()),
                _ => format!("--{flag}"),
            });
        }
    }
    words.extend(
        mentioned
            .iter()
            .map(|flag| pref_flags::as_flag(flag, wanted)),
    );
    words.extend(forgotten);
    Err(Failure::failed(format_args!(
        "Error: changing settings via 'warren up' requires mentioning all\n\
         non-default flags. To proceed, either re-run your command with --reset or\n\
         use the command below to explicitly mention the current value of\n\
         all non-default settings:\n\n\twarren up {}\n",
        words.join(" ")
    )))
}

/// One line of `--json`.
#[derive(Serialize, Default)]
struct Progress<'a> {
    #[serde(rename = "AuthURL", skip_serializing_if = "str::is_empty")]
    auth_url: &'a str,
    #[serde(rename = "BackendState", skip_serializing_if = "str::is_empty")]
    backend_state: &'a str,
    #[serde(rename = "Error", skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

struct Session<'a> {
    client: &'a Client,
    io: &'a mut Io,
    json: bool,
    /// Something was printed that wants a "Success." at the end.
    printed: bool,
    asked_to_log_in: bool,
    has_auth_key: bool,
    /// The key that must change before we are done.
    old_key: Option<NodePublic>,
    /// The server must answer a registration before we are done.
    awaits_login: bool,
}

impl Session<'_> {
    fn progress(&mut self, progress: &Progress<'_>) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        progress
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, format,
            ))
            .map_err(Failure::failed)?;
        let text = String::from_utf8_lossy(&bytes);
        self.io.say(warren_terminal::escaped_json(&text))
    }

    async fn log_in(&mut self) -> Result<(), ClientError> {
        self.asked_to_log_in = true;
        self.client.call(LogIn).await
    }

    /// Follows the daemon until it is up.
    async fn until_running(&mut self, events: &mut EventStream<Notify>) -> Result<Status, Failure> {
        // Changes from before the subscription are in the status.
        let status = self.client.call(GetStatus { peers: true }).await?;
        if let Some(state) = State::from_name(&status.backend_state)
            && let Some(status) = self.on_state(state).await?
        {
            return Ok(status);
        }
        let mut shown = String::new();
        if !status.auth_url.is_empty() {
            self.show_url(&status.auth_url)?;
            shown = status.auth_url;
        }
        while let Some(notify) = events.next().await? {
            let Notify {
                err_message,
                state,
                browse_to_url,
                self_change,
                login_finished,
                ..
            } = notify;
            if let Some(text) = err_message {
                if self.json {
                    self.progress(&Progress {
                        error: &text,
                        ..Progress::default()
                    })?;
                }
                return Err(Failure::failed(format_args!(
                    "backend error: {}",
                    printable(&text)
                )));
            }
            if let Some(url) = browse_to_url.filter(|url| !url.is_empty() && *url != shown) {
                self.show_url(&url)?;
                shown = url;
            }
            let is_login = login_finished.is_some() && std::mem::take(&mut self.awaits_login);
            // A key that changes while running shows as one of the others.
            let news = state.is_some() || self_change.is_some() || login_finished.is_some();
            let state = match state {
                Some(state) => state,
                None if is_login || (news && self.old_key.is_some()) => State::Running,
                None => continue,
            };
            if let Some(status) = self.on_state(state).await? {
                return Ok(status);
            }
        }
        Err(Failure::failed(
            "the daemon ended before it was connected; look at its log",
        ))
    }

    /// Reacts to a state; the status when we are done.
    async fn on_state(&mut self, state: State) -> Result<Option<Status>, Failure> {
        match state {
            State::Running if self.awaits_login => {}
            State::Running => {
                let status = self.client.call(GetStatus { peers: true }).await?;
                let changed = self.old_key.is_none_or(|old| own_key(&status) != Some(old));
                if status.backend_state == State::Running.as_str() && changed {
                    return Ok(Some(status));
                }
            }
            State::NeedsLogin => {
                if !self.has_auth_key && !self.asked_to_log_in {
                    self.log_in().await?;
                }
            }
            State::NeedsMachineAuth => {
                self.printed = true;
                if self.json {
                    self.progress(&Progress {
                        backend_state: state.as_str(),
                        ..Progress::default()
                    })?;
                } else {
                    self.io.note(
                        "\nThis machine is logged in and waits for the approval of an administrator.\n",
                    );
                }
            }
            State::NoState | State::InUseOtherUser | State::Stopped | State::Starting => {}
        }
        Ok(None)
    }

    fn show_url(&mut self, url: &str) -> Result<(), Failure> {
        self.printed = true;
        if self.json {
            return self.progress(&Progress {
                auth_url: url,
                ..Progress::default()
            });
        }
        self.io.note(format_args!(
            "\nTo authenticate, visit:\n\n\t{}\n",
            printable(url)
        ));
        Ok(())
    }

    fn summary(&mut self, status: &Status, took: Duration) -> Result<(), Failure> {
        if self.json {
            let state = status.backend_state.clone();
            return self.progress(&Progress {
                backend_state: &state,
                ..Progress::default()
            });
        }
        let status = &shown(status)?;
        if self.printed {
            self.io.note("Success.");
        }
        let own = &status.self_status;
        let name = own.dns_name.split('.').next();
        let name = name
            .filter(|name| !name.is_empty())
            .unwrap_or(&own.host_name);
        let mut line = format!("connected as {name}");
        for ip in &status.tailscale_ips {
            let _ = write!(line, "   {ip}");
        }
        let _ = write!(line, "   {:.1} s", took.as_secs_f64());
        self.io.say(line)?;
        let mut names = status
            .peer
            .values()
            .filter(|peer| !peer.sharee_node)
            .filter_map(|peer| {
                peer.dns_name
                    .split('.')
                    .next()
                    .filter(|name| !name.is_empty())
            });
        if let Some(first) = names.next() {
            let count = 1 + names.count();
            let peers = if count == 1 { "peer" } else { "peers" };
            self.io
                .say(format_args!("{count} {peers}; try: warren ping {first}"))?;
        }
        for problem in &status.health {
            self.io.note(format_args!("warning: {problem}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{args, grammar};
    use warren_local_api::prefs::changed_names;

    fn planned(line: &str, state: &str, current: &Prefs) -> Result<Plan, Failure> {
        let grammar = grammar::command();
        let args = args::normalise(line.split(' ').map(Into::into).collect(), &grammar);
        let matches = grammar.try_get_matches_from(args).unwrap();
        let (name, given) = matches.subcommand().unwrap();
        let given = Given(given);
        let kind = if name == "login" {
            Kind::Login
        } else {
            Kind::Up
        };
        let status = Status {
            backend_state: state.to_owned(),
            have_node_key: !matches!(state, "NoState" | "NeedsLogin"),
            ..Status::default()
        };
        let force = given.is("force-reauth") || (kind == Kind::Login && status.have_node_key);
        plan(
            kind,
            &given,
            &status,
            current,
            given.mentioned("auth-key"),
            force,
        )
    }

    fn joined() -> Prefs {
        Prefs {
            control_url: "http://c".into(),
            want_running: true,
            ..Prefs::default()
        }
    }

    #[test]
    fn timeouts_say_what_is_not_done_yet() {
        for (state, text) in [
            ("NeedsLogin", "still logging in"),
            ("Starting", "still connecting"),
            ("Stopped", "the state is Stopped"),
        ] {
            assert_eq!(unfinished(state), text);
        }
    }

    fn started(plan: Result<Plan, Failure>) -> Prefs {
        match plan.unwrap() {
            Plan::Start(prefs) => *prefs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_up_needs_a_server() {
        let none = Prefs::default();
        assert!(
            matches!(planned("w up", "NeedsLogin", &none), Err(Failure::Failed(text)) if text.contains("--login-server"))
        );
        let prefs = started(planned(
            "w up --login-server http://c --auth-key k --hostname h",
            "NeedsLogin",
            &none,
        ));
        assert_eq!(
            (
                prefs.control_url.as_str(),
                prefs.hostname.as_str(),
                prefs.want_running
            ),
            ("http://c", "h", true)
        );
    }

    #[test]
    fn a_bare_up_only_connects() {
        assert_eq!(planned("w up", "Stopped", &joined()).unwrap(), Plan::Simple);
        assert_eq!(
            planned("w up --timeout 5s", "Running", &joined()).unwrap(),
            Plan::Simple
        );
        let prefs = started(planned("w up", "NeedsLogin", &joined()));
        assert_eq!(
            prefs.control_url, "http://c",
            "a known server is not asked for again"
        );
    }

    #[test]
    fn settings_are_edited_in_place_while_running() {
        let Plan::Edit(change) = planned("w up --accept-routes", "Running", &joined()).unwrap()
        else {
            panic!()
        };
        assert_eq!(changed_names(&change), ["RouteAll", "WantRunning"]);
        let Plan::Edit(change) = planned(
            "w up --reset",
            "Running",
            &Prefs {
                shields_up: true,
                ..joined()
            },
        )
        .unwrap() else {
            panic!()
        };
        assert_eq!(change.shields_up, Some(false));
        assert_eq!(change.internal_exit_node_prior, None);
        for line in [
            "w up --accept-routes --auth-key k",
            "w up --accept-routes --force-reauth",
            "w up --advertise-tags a",
            "w login --accept-routes",
        ] {
            assert!(
                matches!(planned(line, "Running", &joined()).unwrap(), Plan::Start(_)),
                "{line}"
            );
        }
    }

    #[test]
    fn settings_in_force_must_be_mentioned() {
        let current = Prefs {
            hostname: "old".into(),
            corp_dns: false,
            ..joined()
        };
        let Err(Failure::Failed(text)) = planned("w up --accept-routes", "Running", &current)
        else {
            panic!()
        };
        assert!(
            text.contains("\twarren up --accept-routes --accept-dns=false --hostname=old\n"),
            "{text}"
        );
        assert!(!text.contains("--login-server"), "{text}");
        let Err(Failure::Failed(text)) = planned("w up --auth-key secret", "Stopped", &current)
        else {
            panic!()
        };
        assert!(!text.contains("secret"), "{text}");
        assert!(planned("w up --accept-routes --reset", "Running", &current).is_ok());
        assert!(
            planned(
                "w up --accept-routes --accept-dns=false --hostname new",
                "Running",
                &current
            )
            .is_ok()
        );
        let login = started(planned("w login", "NeedsLogin", &current));
        assert_eq!(login.hostname, "old", "login leaves the rest alone");
    }

    #[test]
    fn another_server_needs_force() {
        assert!(planned("w up --login-server http://d", "Running", &joined()).is_err());
        assert!(
            planned(
                "w up --login-server http://d --force-reauth",
                "Running",
                &joined()
            )
            .is_ok()
        );
        assert!(planned("w up --login-server http://d", "Stopped", &joined()).is_ok());
    }

    #[test]
    fn a_key_may_come_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "  tskey-auth-x\n").unwrap();
        assert_eq!(
            auth_key(&format!("file:{}", path.display())).unwrap(),
            "tskey-auth-x"
        );
        assert_eq!(auth_key("k").unwrap(), "k");
        std::fs::write(&path, "\n").unwrap();
        assert!(auth_key(&format!("file:{}", path.display())).is_err());
        assert!(auth_key("file:/nonexistent/key").is_err());
    }
}
