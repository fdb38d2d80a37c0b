//! `warren-control health` and `warren-control debug`.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::json;
use warren_control_api::endpoints::{C2nResponse, GetHealth, HealthInfo, RefusalInfo, SendC2n};

use warren_dial::SystemEntropy;
use warren_keys::MachineSecret;

use super::args::Debugging;
use super::session::Session;
use crate::backup;
use crate::failure::Failure;
use crate::swallowed_upgrades::HINT;
use crate::terminal::{printable, relative};

/// Runs `health`. An unhealthy server is a failure.
pub(super) async fn health(session: &Session) -> Result<(), Failure> {
    let answer = session.ask(&GetHealth {}, show_health);
    if answer.await?.passes() {
        Ok(())
    } else {
        Err(Failure::Failed("the server is unhealthy".to_owned()))
    }
}

/// Runs `backup`.
pub(super) async fn backup(
    session: &Session,
    state: &Path,
    folder: PathBuf,
) -> Result<(), Failure> {
    let (state, target) = (state.to_owned(), folder.clone());
    let copied = move || backup::backup(&state, &target, Timestamp::now());
    let manifest = tokio::task::spawn_blocking(copied).await??;
    let text = format!(
        "{} files are in {}; keep it where only you can read it, for it holds the keys of the server\n",
        manifest.files.len(),
        folder.display()
    );
    session.show(&serde_json::to_value(&manifest)?, &text);
    Ok(())
}

/// Runs `restore`.
pub(super) async fn restore(
    session: &Session,
    state: &Path,
    folder: PathBuf,
) -> Result<(), Failure> {
    let target = state.to_owned();
    let copied = move || backup::restore(&folder, &target);
    let manifest = tokio::task::spawn_blocking(copied).await??;
    let text = format!(
        "the state of {} is in {}; start the server: warren-control serve\n",
        manifest.created.strftime("%Y-%m-%d %H:%M:%S UTC"),
        state.display()
    );
    session.show(&serde_json::to_value(&manifest)?, &text);
    Ok(())
}

/// Runs a `debug` command.
pub(super) async fn debug(session: &Session, command: Debugging) -> Result<(), Failure> {
    let Debugging::C2n { node, path, data } = command;
    let request = SendC2n { node, path, data };
    let response = session.ask_lines(&request, show_response);
    if response.await?.status >= 400 {
        return Err(Failure::Failed("the node refused the request".to_owned()));
    }
    Ok(())
}

/// Runs `version`.
pub(super) fn version(session: &Session) {
    let version = env!("CARGO_PKG_VERSION");
    let json = json!({
        "version": version,
        "commit": "",
        "buildTime": "",
        "go": { "version": "", "os": std::env::consts::OS, "arch": std::env::consts::ARCH },
        "dirty": false,
    });
    session.show(&json, &format!("warren-control {version}\n"));
}

/// Runs `generate private-key`.
pub(super) fn private_key(session: &Session) {
    let key = MachineSecret::generate(&mut SystemEntropy).to_text();
    session.show(&json!({ "private_key": *key }), &format!("{}\n", *key));
}

fn show_health(health: &HealthInfo, now: Timestamp) -> String {
    let database = if health.database {
        "ok"
    } else {
        "CANNOT SAVE; see the server's log"
    };
    let policy = match (&health.policy_file, &health.policy_problem) {
        (Some(file), Some(problem)) => {
            let problem = problem.trim_end();
            format!("the last good one; {file} IS NOT VALID {problem}")
        }
        (Some(file), None) => format!("from {file}"),
        (None, Some(problem)) => format!(
            "NOTHING IS ALLOWED, the stored policy is not valid; set another one with \
             warren-control policy set FILE: {}",
            problem.trim_end()
        ),
        (None, _) if health.allow_all => "allow-all".to_owned(),
        (None, _) => "set".to_owned(),
    };
    let policy = match &health.allow_all_reason {
        Some(why) => format!("{policy}; EVERY NODE MAY REACH EVERY NODE: {why}"),
        None => policy,
    };
    let mut problems = String::new();
    if let Some(last) = health.last_swallowed_upgrade {
        let (count, last) = (health.swallowed_upgrades, relative(last, now));
        problems +=
            &format!("proxy     {count} CLIENT(S) COULD NOT CONNECT, last {last}: {HINT}\n");
    }
    for provider in &health.providers {
        let state = match (&provider.problem, provider.ready) {
            (None, true) => "ok".to_owned(),
            (None, false) => "not read yet".to_owned(),
            (Some(why), true) => format!("works with what was read before; {why}"),
            (Some(why), false) => format!("LOGINS DO NOT WORK: {why}"),
        };
        let state = printable(&state);
        problems += &format!(
            "login     {} ({}) {state}\n",
            provider.name, provider.issuer
        );
    }
    if let Some(problem) = &health.certificate_problem {
        let problem = printable(problem);
        problems += &format!("tls       THE CERTIFICATE WAS NOT RENEWED: {problem}\n");
    }
    if let Some(problem) = &health.records_problem {
        let problem = printable(problem);
        problems += &format!("dns       the last valid extra records are in force: {problem}\n");
    }
    for refusal in &health.refusals {
        let RefusalInfo {
            what,
            reason,
            count,
            last,
        } = refusal;
        let (what, reason) = (printable(what), printable(reason));
        let last = relative(*last, now);
        problems += &format!("refused   {what}, {count} time(s), last {last}: {reason}\n");
    }
    for shared in &health.shared_keys {
        problems += &format!("keys      {}\n", printable(shared));
    }
    format!(
        "status    {}\nurl       {}\nzone      {}\ndatabase  {database}\npolicy    {policy}\n\
         users     {}\nnodes     {} ({} online, {} waiting for approval)\n{problems}",
        health.status,
        health.server_url,
        health.base_domain,
        health.users,
        health.nodes,
        health.online,
        health.waiting,
    )
}

fn show_response(response: &C2nResponse) -> String {
    let lines = response.body.split_inclusive('\n');
    let body: String = lines
        .map(|line| printable(line.strip_suffix('\n').unwrap_or(line)) + "\n")
        .collect();
    format!("{}\n{body}", response.status)
}
