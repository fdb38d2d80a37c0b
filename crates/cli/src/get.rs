//! `warren get`: settings by the names of their `set` flags.

use serde_json::{Map, Value};

use super::args::Given;
use super::pref_flags::{quoted, subnet_routes};
use super::{Failure, Io};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetPrefs, GetStatus};
use warren_local_api::types::Status;
use warren_node_types::{NetfilterMode, Prefs};

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let prefs = client.call(GetPrefs).await?.prefs;
    let status = client.call(GetStatus { peers: true }).await?;
    let mut shown = settings(&prefs, &status);
    let wanted = given.text("NAME").filter(|name| *name != "all");
    if let Some(wanted) = wanted {
        shown.retain(|(name, _)| *name == wanted);
        if shown.is_empty() {
            return Err(Failure::failed(format_args!(
                "unknown setting {wanted:?}; the settings: warren get"
            )));
        }
    }
    if given.is("json") {
        let object: Map<String, Value> = shown
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        return io.say_json(&object);
    }
    if given.is("set-flags") {
        let flags: Vec<String> = shown
            .iter()
            .map(|(name, value)| flag(name, value))
            .collect();
        return io.say(flags.join(" "));
    }
    if let (Some(_), [(_, value)]) = (wanted, shown.as_slice()) {
        return io.say(text(value));
    }
    let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    io.say(format_args!("{:width$}VALUE", "NAME"))?;
    for (name, value) in &shown {
        io.say(format_args!("{name:width$}{}", text(value)))?;
    }
    Ok(())
}

/// All settings, sorted by name.
fn settings(prefs: &Prefs, status: &Status) -> Vec<(&'static str, Value)> {
    let list = |items: Vec<String>| Value::from(items.join(","));
    let routes = subnet_routes(prefs);
    let port = prefs.relay_server_port;
    let endpoints = &prefs.relay_server_static_endpoints;
    let mode = match prefs.netfilter_mode {
        NetfilterMode::Off => "off",
        NetfilterMode::NoDivert => "nodivert",
        NetfilterMode::On => "on",
    };
    vec![
        ("accept-dns", prefs.corp_dns.into()),
        ("accept-routes", prefs.route_all.into()),
        ("advertise-connector", prefs.app_connector.advertise.into()),
        ("advertise-exit-node", prefs.advertises_exit_node().into()),
        (
            "advertise-routes",
            list(routes.iter().map(ToString::to_string).collect()),
        ),
        (
            "auto-update",
            (prefs.auto_update.apply == Some(true)).into(),
        ),
        ("exit-node", exit_node(prefs, status).into()),
        (
            "exit-node-allow-lan-access",
            prefs.exit_node_allow_lan_access.into(),
        ),
        ("hostname", prefs.hostname.clone().into()),
        ("netfilter-mode", mode.into()),
        ("nickname", prefs.profile_name.clone().into()),
        ("operator", prefs.operator_user.clone().into()),
        (
            "relay-server-port",
            port.map(|port| port.to_string()).unwrap_or_default().into(),
        ),
        (
            "relay-server-static-endpoints",
            list(endpoints.iter().map(ToString::to_string).collect()),
        ),
        ("report-posture", prefs.posture_checking.into()),
        ("shields-up", prefs.shields_up.into()),
        ("snat-subnet-routes", (!prefs.no_snat).into()),
        ("ssh", prefs.run_ssh.into()),
        (
            "stateful-filtering",
            (prefs.no_stateful_filtering != Some(true)).into(),
        ),
        ("update-check", prefs.auto_update.check.into()),
        ("webclient", prefs.run_web_client.into()),
    ]
}

/// The exit node as `set` takes it: `auto:any`, an address, or the id of a node that is
/// not in the netmap.
fn exit_node(prefs: &Prefs, status: &Status) -> String {
    if !prefs.auto_exit_node.is_empty() {
        return format!("auto:{}", prefs.auto_exit_node);
    }
    if let Some(ip) = prefs.exit_node_ip {
        return ip.to_string();
    }
    let mut peers = status.peer.values();
    let peer = peers.find(|peer| peer.id == prefs.exit_node_id);
    let address = peer.and_then(|peer| peer.tailscale_ips.first());
    address.map_or_else(|| prefs.exit_node_id.clone(), ToString::to_string)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn flag(name: &str, value: &Value) -> String {
    match value {
        Value::Bool(true) => format!("--{name}"),
        other => format!("--{name}={}", quoted(&text(other))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_order_are_those_of_the_official_client() {
        // As `tailscale get --set-flags` 1.103.0 prints the defaults.
        let expected = "--accept-dns --accept-routes=false --advertise-connector=false \
            --advertise-exit-node=false --advertise-routes= --auto-update=false --exit-node= \
            --exit-node-allow-lan-access=false --hostname= --netfilter-mode=on --nickname= \
            --operator= --relay-server-port= --relay-server-static-endpoints= \
            --report-posture=false --shields-up=false --snat-subnet-routes --ssh=false \
            --stateful-filtering=false --update-check --webclient=false";
        let shown = settings(&Prefs::default(), &Status::default());
        let flags: Vec<String> = shown
            .iter()
            .map(|(name, value)| flag(name, value))
            .collect();
        assert_eq!(flags.join(" "), expected);
        assert!(shown.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn the_exit_node_is_shown_as_set_takes_it() {
        let mut prefs = Prefs {
            exit_node_id: "n1".to_owned(),
            ..Prefs::default()
        };
        assert_eq!(exit_node(&prefs, &Status::default()), "n1");
        prefs.exit_node_ip = Some("100.64.0.2".parse().unwrap());
        assert_eq!(exit_node(&prefs, &Status::default()), "100.64.0.2");
        prefs.auto_exit_node = "any".to_owned();
        assert_eq!(exit_node(&prefs, &Status::default()), "auto:any");
    }
}
