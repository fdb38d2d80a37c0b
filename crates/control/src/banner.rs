//! The banner of `serve`: where the server is, and how to add a machine.

use std::net::SocketAddr;
use std::path::Path;

use url::Url;

use crate::invite::Invitation;
use crate::second_dial::SecondDial;
use crate::self_map::OWN_REGION;
use crate::terminal::Hints;

/// The facts that the banner shows.
pub(crate) struct BannerFacts<'a> {
    pub(crate) state: &'a Path,
    pub(crate) new: bool,
    pub(crate) url: &'a Url,
    pub(crate) server_url: &'a str,
    pub(crate) own_tls: bool,
    pub(crate) with_relay: bool,
    pub(crate) stun_port: Option<u16>,
    pub(crate) second_dial: &'a SecondDial,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) allow_all: bool,
    pub(crate) invitation: &'a Invitation,
    pub(crate) policy_file: Option<&'a Path>,
    pub(crate) hints: &'a Hints,
}

/// The text that `serve` prints at start.
pub(crate) fn banner(facts: &BannerFacts<'_>) -> String {
    let state = facts.state.display();
    let new = if facts.new {
        " (new: keys, database)"
    } else {
        ""
    };
    let how = match (facts.url.scheme(), facts.own_tls) {
        ("https", true) => "",
        ("https", false) => "   plain HTTP here: a TLS proxy is needed in front",
        _ => &format!("   {}", facts.second_dial.remark()),
    };
    let stun = match facts.stun_port {
        Some(port) => format!(", STUN on {port}/udp"),
        None => ", no STUN".to_owned(),
    };
    let relay = if facts.with_relay {
        format!("region {OWN_REGION} here{stun}")
    } else {
        "as in the given map".to_owned()
    };
    let policy = if facts.allow_all {
        "allow-all until you set one: every node may reach every node"
    } else {
        match facts.policy_file {
            Some(_) => "from a file; see: warren-control policy get",
            None => "set; see: warren-control policy get",
        }
    };
    let metrics = facts.metrics.map_or_else(String::new, |address| {
        format!("  metrics   http://{address}/metrics\n")
    });
    let url = facts.server_url;
    let (title, key) = match facts.invitation {
        Invitation::Key(key, left) => {
            let time = match left.as_secs() / 60 {
                60 => "1 hour".to_owned(),
                minutes => format!("{minutes} minutes"),
            };
            (
                format!("Add a machine (key works once, for {time}):"),
                key.as_str(),
            )
        }
        Invitation::Make(user) => (
            format!(
                "Add a machine (KEY comes from: warren-control preauthkeys create --user {user}):"
            ),
            "KEY",
        ),
    };
    let title = facts.hints.complete(&title);
    let warning = facts.second_dial.warning();
    let policy = facts.hints.complete(policy);
    format!(
        "warren-control {}   state {state}{new}\n  control   {url}{how}\n  relay     {relay}\n  policy    {policy}\n{metrics}\n\
         {warning}{title}\n  \
         warren up --login-server {url} --auth-key {key}\n  \
         tailscale up --login-server {url} --auth-key {key}\n\n",
        env!("CARGO_PKG_VERSION"),
    )
}
