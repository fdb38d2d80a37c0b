//! Flags for preferences: their grammar, the change that they mean, and the form of
//! a preference as a flag.
//!
//! `up` and `set` share them. `up` describes all preferences (those that are not
//! mentioned have their defaults), `set` only the mentioned ones.

use std::net::SocketAddr;

use clap::Arg;
use ipnet::IpNet;

use super::Failure;
use super::args::{Given, switch, value};
use warren_local_api::address::{CanonicalIp, canonical_net};
use warren_local_api::types::Status;
use warren_node_types::{
    AppConnector, MaskedPrefs, NetfilterMode, Prefs, check_hostname, exit_routes,
};

/// The commands that have flags for preferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Of `up` and `login`.
    Up,
    /// Of `set`.
    Set,
}

/// The flags, for the grammar.
pub(super) fn args(whose: For) -> Vec<Arg> {
    let mut args = vec![
        value("hostname", "NAME", "name to use instead of the machine's"),
        switch(
            "accept-dns",
            "use the network's DNS settings (default true)",
        ),
        switch(
            "accept-routes",
            "use subnet routes that other machines offer",
        ),
        value(
            "advertise-routes",
            "LIST",
            "routes to offer, as 10.0.0.0/8,192.168.0.0/24",
        ),
        switch("advertise-exit-node", "offer to be an exit node"),
        value(
            "exit-node",
            "NODE",
            "exit node to use, by address or name; empty: none",
        ),
        switch(
            "exit-node-allow-lan-access",
            "reach the local network while using an exit node",
        ),
        switch("shields-up", "refuse incoming connections"),
        switch(
            "ssh",
            "let nodes log in over SSH, as far as the policy of the network allows",
        ),
        value(
            "operator",
            "USER",
            "user who may use this command without root",
        ),
        switch(
            "snat-subnet-routes",
            "hide subnet traffic behind this machine (default true)",
        ),
        switch("stateful-filtering", "filter forwarded traffic statefully"),
        value("netfilter-mode", "MODE", "on, nodivert or off")
            .value_parser(["on", "nodivert", "off"]),
        switch("report-posture", "report device posture"),
        switch("advertise-connector", "offer to be an app connector"),
    ];
    if whose == For::Set {
        let help = "search for paths through NATs with random ports: on (default) or off";
        args.push(value("hard-nat", "MODE", help).value_parser(["on", "off"]));
    }
    if whose == For::Up {
        args.push(value("login-server", "URL", "the coordination server"));
        args.push(value(
            "advertise-tags",
            "LIST",
            "tags to ask for, as tag:web,tag:db",
        ));
    } else {
        args.push(value(
            "relay-server-port",
            "PORT",
            "UDP port on which to relay for peers that the policy lets; 0: any; empty: none",
        ));
        args.push(value(
            "relay-server-static-endpoints",
            "LIST",
            "more addresses of the relay, as 192.0.2.1:40000,[2001:db8::1]:40000",
        ));
    }
    args
}

/// All flags for preferences, in the order in which they are shown.
pub(super) const FLAGS: &[&str] = &[
    "login-server",
    "accept-dns",
    "accept-routes",
    "advertise-connector",
    "advertise-exit-node",
    "advertise-routes",
    "advertise-tags",
    "exit-node",
    "exit-node-allow-lan-access",
    "hostname",
    "netfilter-mode",
    "operator",
    "report-posture",
    "shields-up",
    "snat-subnet-routes",
    "ssh",
    "stateful-filtering",
];

/// The flags that `set` has beside [`FLAGS`]: `up` keeps what they set.
pub(super) const SET_ONLY: &[&str] = &[
    "hard-nat",
    "nickname",
    "relay-server-port",
    "relay-server-static-endpoints",
];

/// Warnings for mentioned flags that are stored, shown and passed on, but change
/// nothing on this machine yet. There is no warning for a value that has the same
/// effect as the default.
pub(super) fn without_effect(given: &Given<'_>) -> Vec<String> {
    let mut warnings: Vec<String> = ["report-posture", "advertise-connector"]
        .into_iter()
        .filter(|flag| given.switch(flag) == Some(true))
        .map(|flag| format!("warning: --{flag} has no effect yet; it is only stored"))
        .collect();
    let mode = given
        .text("netfilter-mode")
        .filter(|mode| *mode == "nodivert");
    // Our rules are a table of their own: there is nothing to divert to.
    warnings
        .extend(mode.map(|_| "warning: --netfilter-mode=nodivert does what off does".to_owned()));
    warnings
}

/// The change that the mentioned flags mean, given the current preferences
/// (whose routes are kept where only one of two flags is mentioned).
pub(super) fn change(
    given: &Given<'_>,
    base: &Prefs,
    status: &Status,
) -> Result<MaskedPrefs, Failure> {
    let list = |name: &str| -> Option<Vec<&str>> {
        given.text(name).map(|text| {
            text.split(',')
                .map(str::trim)
                .filter(|element| !element.is_empty())
                .collect()
        })
    };
    let mut change = MaskedPrefs {
        control_url: given.text("login-server").map(login_server).transpose()?,
        route_all: given.switch("accept-routes"),
        corp_dns: given.switch("accept-dns"),
        run_ssh: given.switch("ssh"),
        shields_up: given.switch("shields-up"),
        hostname: given.text("hostname").map(str::to_owned),
        operator_user: given.text("operator").map(str::to_owned),
        exit_node_allow_lan_access: given.switch("exit-node-allow-lan-access"),
        no_snat: given.switch("snat-subnet-routes").map(|on| !on),
        no_stateful_filtering: given.switch("stateful-filtering").map(|on| Some(!on)),
        posture_checking: given.switch("report-posture"),
        app_connector: given
            .switch("advertise-connector")
            .map(|advertise| AppConnector { advertise }),
        profile_name: given.text("nickname").map(str::to_owned),
        no_port_search: given.text("hard-nat").map(|mode| mode == "off"),
        ..MaskedPrefs::default()
    };
    if let Some(name) = change.hostname.as_deref().filter(|name| !name.is_empty()) {
        check_hostname(name).map_err(|why| Failure::usage(format_args!("--hostname: {why}")))?;
    }
    change.netfilter_mode = match given.text("netfilter-mode") {
        Some("on") => Some(NetfilterMode::On),
        Some("nodivert") => Some(NetfilterMode::NoDivert),
        Some("off") => Some(NetfilterMode::Off),
        _ => None,
    };
    change.relay_server_port = given
        .text("relay-server-port")
        .map(relay_port)
        .transpose()?;
    change.relay_server_static_endpoints = list("relay-server-static-endpoints")
        .map(|texts| texts.into_iter().map(endpoint).collect())
        .transpose()?;
    change.advertise_tags = list("advertise-tags").map(|tags| tags.into_iter().map(tag).collect());
    if let Some(node) = given.text("exit-node") {
        set_exit_node(&mut change, node, status)?;
    }
    let routes = list("advertise-routes")
        .map(|texts| texts.into_iter().map(route).collect::<Result<Vec<_>, _>>())
        .transpose()?;
    change.advertise_routes = routes_change(routes, given.switch("advertise-exit-node"), base);
    Ok(change)
}

/// The coordination server's address: with a scheme, without a slash at the
/// end.
fn login_server(text: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Failure::usage(format_args!(
            "--login-server {text:?}: {why}; expected http://HOST or https://HOST, as \
             https://net.example or http://192.0.2.1:8080"
        ))
    };
    let has_scheme = text.contains("://");
    let with_scheme = if has_scheme {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let url = url::Url::parse(&with_scheme).map_err(|error| wrong(&error.to_string()))?;
    // Servers without a certificate have these; to assume TLS would fail much later, with
    // an error about certificates.
    let is_ambiguous = url.port().is_some() || !matches!(url.host(), Some(url::Host::Domain(_)));
    if !has_scheme && is_ambiguous {
        return Err(Failure::usage(format_args!(
            "--login-server {text:?} lacks http:// or https://; write --login-server \
             http://{text}, as warren-control prints it, or https://{text} for a server with a \
             certificate"
        )));
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("nodes reach servers over HTTP"));
    }
    if !url.has_host() {
        return Err(wrong("no host"));
    }
    Ok(with_scheme.trim_end_matches('/').to_owned())
}

/// A UDP port, or none.
fn relay_port(text: &str) -> Result<Option<u16>, Failure> {
    let port = text.trim();
    if port.is_empty() {
        return Ok(None);
    }
    port.parse().map(Some).map_err(|_| {
        Failure::usage(format_args!(
            "--relay-server-port: {text:?} is not a valid port; give a number from 0 to 65535, \
             or an empty text to turn the relay off"
        ))
    })
}

/// An address that clients of the relay can send to.
fn endpoint(text: &str) -> Result<SocketAddr, Failure> {
    let address = text.parse().ok().filter(|address: &SocketAddr| {
        let ip = address.ip();
        address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    });
    address.ok_or_else(|| {
        Failure::usage(format_args!(
            "--relay-server-static-endpoints: {text:?} is not a valid address; write it as \
             192.0.2.1:40000 or [2001:db8::1]:40000"
        ))
    })
}

fn tag(text: &str) -> String {
    if text.contains(':') {
        text.to_owned()
    } else {
        format!("tag:{text}")
    }
}

fn route(text: &str) -> Result<IpNet, Failure> {
    let wrong = |why: String| Failure::usage(format_args!("--advertise-routes: {why}"));
    let net: IpNet = text.parse().map_err(|_| {
        wrong(format!(
            "{text:?} is not a valid route; write it as 192.168.0.0/24"
        ))
    })?;
    let net = canonical_net(net);
    if net.trunc() != net {
        return Err(wrong(format!(
            "{text} has non-address bits set; expected {}",
            net.trunc()
        )));
    }
    if net.prefix_len() == 0 {
        return Err(wrong(format!(
            "{text} covers every address; offer it with --advertise-exit-node"
        )));
    }
    Ok(net)
}

/// Both flags write one preference; the part that is not mentioned stays.
fn routes_change(
    routes: Option<Vec<IpNet>>,
    exit_node: Option<bool>,
    base: &Prefs,
) -> Option<Vec<IpNet>> {
    if routes.is_none() && exit_node.is_none() {
        return None;
    }
    let mut routes = routes.unwrap_or_else(|| subnet_routes(base));
    routes.sort();
    routes.dedup();
    if exit_node.unwrap_or_else(|| base.advertises_exit_node()) {
        let (v4, v6) = exit_routes();
        routes.extend([v4, v6]);
    }
    Some(routes)
}

pub(super) fn subnet_routes(prefs: &Prefs) -> Vec<IpNet> {
    prefs
        .advertise_routes
        .iter()
        .copied()
        .filter(|net| net.prefix_len() != 0)
        .collect()
}

/// The exit node by address or name; names are looked up among the peers that
/// offer to be one.
fn set_exit_node(change: &mut MaskedPrefs, node: &str, status: &Status) -> Result<(), Failure> {
    change.exit_node_id = Some(String::new());
    change.exit_node_ip = Some(None);
    change.auto_exit_node = Some(String::new());
    if node.is_empty() {
        return Ok(());
    }
    if node == "auto:any" {
        change.auto_exit_node = Some("any".to_owned());
        return Ok(());
    }
    if let Ok(ip) = node.parse::<CanonicalIp>() {
        let ip = ip.get();
        if status.tailscale_ips.contains(&ip) {
            return Err(Failure::failed(format_args!(
                "cannot use {node} as an exit node as it is a local IP address to this machine"
            )));
        }
        change.exit_node_ip = Some(Some(ip));
        return Ok(());
    }
    let wanted = node.trim_end_matches('.');
    let mut found = status.peer.values().filter(|peer| {
        peer.id == node || {
            let name = peer.dns_name.trim_end_matches('.');
            name.eq_ignore_ascii_case(wanted)
                || name
                    .split('.')
                    .next()
                    .is_some_and(|base| base.eq_ignore_ascii_case(wanted))
        }
    });
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => Err(Failure::failed(format_args!(
            "--exit-node: several nodes are called {node:?}"
        ))),
        (Some(peer), None) if peer.exit_node_option => {
            change.exit_node_id = Some(peer.id.clone());
            Ok(())
        }
        (Some(_), None) => Err(Failure::failed(format_args!(
            "node {node:?} is not advertising an exit node"
        ))),
        (None, _) => Err(Failure::failed(format_args!(
            "invalid value {node:?} for --exit-node; must be IP or unique node name"
        ))),
    }
}

/// The flag, as it would be written on the command line for these preferences.
pub(super) fn as_flag(name: &str, prefs: &Prefs) -> String {
    let switch = |on: bool| {
        if on {
            format!("--{name}")
        } else {
            format!("--{name}=false")
        }
    };
    let text = |value: &str| format!("--{name}={}", quoted(value));
    match name {
        "login-server" => text(&prefs.control_url),
        "accept-dns" => switch(prefs.corp_dns),
        "accept-routes" => switch(prefs.route_all),
        "advertise-connector" => switch(prefs.app_connector.advertise),
        "advertise-exit-node" => switch(prefs.advertises_exit_node()),
        "advertise-routes" => {
            let routes: Vec<String> = subnet_routes(prefs).iter().map(IpNet::to_string).collect();
            text(&routes.join(","))
        }
        "advertise-tags" => text(&prefs.advertise_tags.join(",")),
        "exit-node" => match prefs.exit_node_ip {
            Some(ip) => text(&ip.to_string()),
            None if !prefs.auto_exit_node.is_empty() => {
                text(&format!("auto:{}", prefs.auto_exit_node))
            }
            None => text(&prefs.exit_node_id),
        },
        "exit-node-allow-lan-access" => switch(prefs.exit_node_allow_lan_access),
        "hostname" => text(&prefs.hostname),
        "netfilter-mode" => text(match prefs.netfilter_mode {
            NetfilterMode::Off => "off",
            NetfilterMode::NoDivert => "nodivert",
            NetfilterMode::On => "on",
        }),
        "operator" => text(&prefs.operator_user),
        "report-posture" => switch(prefs.posture_checking),
        "shields-up" => switch(prefs.shields_up),
        "snat-subnet-routes" => switch(!prefs.no_snat),
        "ssh" => switch(prefs.run_ssh),
        "stateful-filtering" => switch(prefs.no_stateful_filtering == Some(false)),
        _ => String::new(),
    }
}

/// A word as a shell would take it.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{args, grammar};
    use warren_keys::NodePublic;
    use warren_local_api::types::PeerStatus;

    fn changed_from(line: &str, base: &Prefs) -> Result<MaskedPrefs, Failure> {
        let grammar = grammar::command();
        let args = args::normalise(line.split(' ').map(Into::into).collect(), &grammar);
        let matches = grammar.try_get_matches_from(args).unwrap();
        let peer = PeerStatus {
            id: "n1".into(),
            dns_name: "exit.net.example.".into(),
            exit_node_option: true,
            ..PeerStatus::default()
        };
        let plain = PeerStatus {
            id: "n2".into(),
            dns_name: "plain.net.example.".into(),
            ..PeerStatus::default()
        };
        let status = Status {
            peer: [
                (NodePublic::from_bytes([1; 32]), peer),
                (NodePublic::from_bytes([2; 32]), plain),
            ]
            .into(),
            ..Status::default()
        };
        change(&Given(matches.subcommand().unwrap().1), base, &status)
    }

    fn changed(line: &str) -> Result<MaskedPrefs, Failure> {
        changed_from(line, &Prefs::default())
    }

    #[test]
    fn set_knows_each_of_its_flags() {
        for arg in args(For::Set) {
            let name = arg.get_id().as_str();
            let is_known = FLAGS.contains(&name) || SET_ONLY.contains(&name);
            assert!(is_known, "--{name} alone would be nothing to set");
        }
    }

    #[test]
    fn only_mentioned_flags_change_something() {
        assert_eq!(changed("w up").unwrap(), MaskedPrefs::default());
        let change = changed("w up --login-server http://c:8080/ -accept-routes --accept-dns=false --advertise-tags web,tag:db --hostname h --snat-subnet-routes=false --netfilter-mode off").unwrap();
        assert_eq!(
            change,
            MaskedPrefs {
                control_url: Some("http://c:8080".into()),
                route_all: Some(true),
                corp_dns: Some(false),
                advertise_tags: Some(vec!["tag:web".into(), "tag:db".into()]),
                hostname: Some("h".into()),
                no_snat: Some(true),
                netfilter_mode: Some(NetfilterMode::Off),
                ..MaskedPrefs::default()
            }
        );
    }

    #[test]
    fn routes_and_the_exit_node_are_changed_independently() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let routes = changed("w set --advertise-routes 10.0.0.0/8")
            .unwrap()
            .advertise_routes
            .unwrap();
        assert_eq!(routes, [net("10.0.0.0/8")]);
        let base = Prefs {
            advertise_routes: routes,
            ..Prefs::default()
        };
        let both = changed_from("w set --advertise-exit-node", &base)
            .unwrap()
            .advertise_routes
            .unwrap();
        assert_eq!(both, [net("10.0.0.0/8"), net("0.0.0.0/0"), net("::/0")]);
        let base = Prefs {
            advertise_routes: both,
            ..Prefs::default()
        };
        assert!(base.advertises_exit_node());
        let other = changed_from("w set --advertise-routes=", &base)
            .unwrap()
            .advertise_routes
            .unwrap();
        assert_eq!(other, [net("0.0.0.0/0"), net("::/0")]);
    }

    #[test]
    fn exit_nodes_are_found_by_name_or_address() {
        assert_eq!(
            changed("w set --exit-node exit")
                .unwrap()
                .exit_node_id
                .as_deref(),
            Some("n1")
        );
        assert_eq!(
            changed("w set --exit-node EXIT.net.example")
                .unwrap()
                .exit_node_id
                .as_deref(),
            Some("n1")
        );
        assert_eq!(
            changed("w set --exit-node 100.64.0.9")
                .unwrap()
                .exit_node_ip
                .unwrap(),
            Some("100.64.0.9".parse().unwrap())
        );
        assert_eq!(
            changed("w set --exit-node=")
                .unwrap()
                .exit_node_id
                .as_deref(),
            Some("")
        );
        assert!(matches!(
            changed("w set --exit-node plain"),
            Err(Failure::Failed(_))
        ));
        assert!(matches!(
            changed("w set --exit-node missing"),
            Err(Failure::Failed(_))
        ));
    }

    #[test]
    fn invalid_values_are_usage_errors() {
        for wrong in [
            "--login-server ftp://x",
            "--login-server http://",
            "--login-server http://h:99999",
            "--login-server 192.0.2.1",
            "--login-server 192.0.2.1:8080",
            "--login-server net.example:8080",
            "--advertise-routes 10.0.0.1/8",
            "--advertise-routes 0.0.0.0/0",
            "--advertise-routes x",
            "--hostname a_b",
            "--hostname -a",
            "--hostname a..b",
        ] {
            assert!(
                matches!(changed(&format!("w up {wrong}")), Err(Failure::Usage(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn every_flag_can_be_written_and_read_back() {
        let prefs = Prefs {
            control_url: "http://c".into(),
            route_all: true,
            corp_dns: false,
            hostname: "h".into(),
            advertise_tags: vec!["tag:a".into()],
            advertise_routes: vec![
                "10.0.0.0/8".parse().unwrap(),
                exit_routes().0,
                exit_routes().1,
            ],
            operator_user: "ann".into(),
            shields_up: true,
            no_snat: true,
            no_stateful_filtering: Some(false),
            netfilter_mode: NetfilterMode::NoDivert,
            ..Prefs::default()
        };
        let line: Vec<String> = FLAGS.iter().map(|flag| as_flag(flag, &prefs)).collect();
        let mut read = Prefs::default();
        changed(&format!("w up {}", line.join(" ")))
            .unwrap()
            .apply_to(&mut read);
        assert_eq!(read, prefs);
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
