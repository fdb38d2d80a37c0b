//! `warren debug` commands that show what the daemon knows: `prefs`, `netmap`,
//! `derp-map`, `watch-ipn`, `metrics`, `localapi`, and actions: `restun`, `rebind`,
//! `reload-config`.

use serde::Serialize;

use super::args::Given;
use super::{Failure, Io};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{
    Debug, DebugAction, GetDerpMap, GetMetrics, GetPrefs, ReloadConfig, WatchBus,
};
use warren_local_api::notify::NotifyMask;
use warren_local_api::ordered_json::OrderedJson;

/// Runs a command of this file; `None` when it is none.
pub(super) async fn run(
    name: &str,
    given: &Given<'_>,
    client: &Client,
    io: &mut Io,
) -> Option<Result<(), Failure>> {
    Some(match name {
        "prefs" => prefs(given, client, io).await,
        "netmap" => netmap(client, io).await,
        "derp-map" => derp_map(client, io).await,
        "watch-ipn" => watch(given, client, io).await,
        "metrics" => metrics(client, io).await,
        "localapi" => local_api(given, client, io).await,
        "local-creds" => io.say(format_args!(
            "curl --unix-socket {} http://{}/localapi/v0/status",
            client.socket().display(),
            warren_local_api::HOST
        )),
        "restun" => act(DebugAction::Restun, client).await,
        "rebind" => act(DebugAction::Rebind, client).await,
        "reload-config" => reload_config(client, io).await,
        _ => return None,
    })
}

/// The JSON form, indented with tabs as by the official client.
fn indented(value: impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(&value).map_err(Failure::failed)?;
    let value: OrderedJson = serde_json::from_str(&text).map_err(Failure::failed)?;
    Ok(warren_terminal::escaped_json(&value.pretty("\t")))
}

async fn prefs(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let prefs = client.call(GetPrefs).await?;
    if !given.is("pretty") {
        return io.say(indented(prefs)?);
    }
    // Only what differs from the defaults.
    let nothing = warren_local_api::prefs::ShownPrefs::default();
    let (now, default) = (indented(prefs)?, indented(nothing)?);
    let default: Vec<&str> = default.lines().collect();
    let changed = now.lines().filter(|line| !default.contains(line));
    io.say(changed.collect::<Vec<_>>().join("\n"))
}

async fn netmap(client: &Client, io: &mut Io) -> Result<(), Failure> {
    let mask = NotifyMask::INITIAL_NETMAP;
    let first = client.call(WatchBus { mask }).await?.next().await?;
    match first.and_then(|notify| notify.net_map) {
        Some(map) => io.say(indented(map)?),
        None => Err(Failure::failed(
            "no netmap: the coordination server has not sent one yet; look at: warren status",
        )),
    }
}

async fn derp_map(client: &Client, io: &mut Io) -> Result<(), Failure> {
    let map = client.call(GetDerpMap).await?.unwrap_or_default();
    io.say(indented(map)?)
}

async fn metrics(client: &Client, io: &mut Io) -> Result<(), Failure> {
    io.say(client.call(GetMetrics).await?.trim_end())
}

async fn act(action: DebugAction, client: &Client) -> Result<(), Failure> {
    client.call(Debug { action }).await?;
    Ok(())
}

async fn reload_config(client: &Client, io: &mut Io) -> Result<(), Failure> {
    let answer = client.call(ReloadConfig).await?;
    match answer.reloaded {
        true => io.say("config reloaded"),
        false if answer.error.is_empty() => Err(Failure::failed(
            "the daemon has no configuration file; start it with: warren daemon --config FILE",
        )),
        false => Err(Failure::failed(answer.error)),
    }
}

async fn watch(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let count = given.text("count").unwrap_or("0");
    let count: u64 = count
        .parse()
        .map_err(|_| Failure::usage(format_args!("--count: {count:?} is not a valid number")))?;
    let mut mask = NotifyMask(0);
    if given.is("initial") {
        mask = mask
            .and(NotifyMask::INITIAL_STATE)
            .and(NotifyMask::INITIAL_PREFS)
            .and(NotifyMask::INITIAL_NETMAP);
    }
    if given.is("engine") {
        mask = mask.and(NotifyMask::ENGINE_UPDATES);
    }
    let shows_netmap = given.switch("netmap").unwrap_or(true);
    let mut events = client.call(WatchBus { mask }).await?;
    let mut shown = 0;
    while let Some(mut notify) = events.next().await? {
        if !shows_netmap {
            notify.net_map = None;
        }
        io.say(indented(notify)?)?;
        shown += 1;
        if shown == count {
            return Ok(());
        }
    }
    Err(Failure::failed("the daemon ended"))
}

async fn local_api(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let words = given.all("WORDS");
    let (method, path, body) = match words.as_slice() {
        [path] => ("GET", *path, ""),
        [method, path] => (*method, *path, ""),
        [method, path, body] => (*method, *path, *body),
        _ => return Err(Failure::usage("give [METHOD] PATH [BODY]")),
    };
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/localapi/v0/{path}"),
    };
    let (status, text) = client.raw(method, &path, body).await?;
    if given.is("v") {
        io.note(status);
    }
    match serde_json::from_str::<OrderedJson>(&text) {
        Ok(value) => io.say(warren_terminal::escaped_json(&value.pretty("\t")))?,
        Err(_) => io.say(warren_terminal::printable_lines(text.trim_end()))?,
    }
    match status.is_success() {
        true => Ok(()),
        false => Err(Failure::Failed(String::new())),
    }
}
