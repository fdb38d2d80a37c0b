//! `warren ip`, `whois`, `whoami` and `version`.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;
use warren_control_types::CapabilityVersion;

use super::args::Given;
use super::ping::{is_called, resolve};
use super::{Failure, Io, shown};
use warren_local_api::VERSION;
use warren_local_api::address::CanonicalIp;
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetStatus, WhoIs};
use warren_local_api::types::{Status, TailnetStatus, WhoIsResponse, WhoIsTarget};

/// Addresses of this machine or a peer.
pub(super) async fn ip(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let (one, v4, v6) = (given.is("1"), given.is("4"), given.is("6"));
    if u8::from(one) + u8::from(v4) + u8::from(v6) > 1 {
        return Err(Failure::usage("only one of -1, -4 and -6"));
    }
    let status = client.call(GetStatus { peers: true }).await?;
    if let Some(text) = given.text("assert") {
        let wanted: CanonicalIp = text.parse().map_err(|_| {
            Failure::usage(format_args!("--assert: {text:?} is not a valid IP address"))
        })?;
        if status.tailscale_ips.contains(&wanted.get()) {
            return Ok(());
        }
        return Err(Failure::failed(format_args!(
            "assertion failed: IP {wanted} not found on this machine"
        )));
    }
    let addresses = match given.text("PEER") {
        None => status.tailscale_ips.clone(),
        Some(peer) => peer_addresses(peer, &status).await?,
    };
    if addresses.is_empty() {
        return Err(Failure::failed(format_args!(
            "no current Tailscale IPs; state: {}",
            status.backend_state
        )));
    }
    let (mut shown, six): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|ip| ip.is_ipv4());
    shown.extend(six);
    shown.retain(|ip| (!v4 || ip.is_ipv4()) && (!v6 || ip.is_ipv6()));
    if one {
        shown.truncate(1);
    }
    if shown.is_empty() {
        let family = if v4 { "IPv4" } else { "IPv6" };
        return Err(Failure::failed(format_args!("no {family} address")));
    }
    for ip in shown {
        io.say(ip)?;
    }
    Ok(())
}

async fn peer_addresses(name: &str, status: &Status) -> Result<Vec<IpAddr>, Failure> {
    let own = std::iter::once(&status.self_status);
    let mut all = status.peer.values().chain(own);
    if let Some(peer) = all.clone().find(|peer| is_called(peer, name)) {
        return Ok(peer.tailscale_ips.clone());
    }
    let ip = resolve(name, status).await?;
    match all.find(|peer| peer.tailscale_ips.contains(&ip.get())) {
        Some(peer) => Ok(peer.tailscale_ips.clone()),
        None => Err(Failure::failed(format_args!("no peer found with IP {ip}"))),
    }
}

/// The node and the user that have an address.
pub(super) async fn whois(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let target = given.text("IP[:PORT]").unwrap_or_default();
    let target = target.parse().map_err(Failure::Failed)?;
    let found = client.call(WhoIs { target }).await?;
    if given.is("json") {
        return io.say_json(&found);
    }
    io.say(whois_text(&shown(&found)?).trim_end())
}

/// This machine, its user and its network.
pub(super) async fn whoami(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let status = client.call(GetStatus { peers: false }).await?;
    let Some(ip) = status.tailscale_ips.first() else {
        return Err(Failure::failed(format_args!(
            "no current Tailscale IP address; state: {}",
            status.backend_state
        )));
    };
    let target = WhoIsTarget::Ip(CanonicalIp::from(*ip));
    let found = client.call(WhoIs { target }).await?;
    if given.is("json") {
        let whole = WhoAmI {
            found,
            current_tailnet: status.current_tailnet,
        };
        return io.say_json(&whole);
    }
    let mut text = whois_text(&shown(&found)?);
    if let Some(tailnet) = &shown(&status)?.current_tailnet {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "Tailnet:\n  Name:                {}\n  MagicDNS Suffix:     {}\n",
            tailnet.name, tailnet.magic_dns_suffix
        );
    }
    io.say(text.trim_end())
}

/// The JSON form of `whoami`.
#[derive(Serialize)]
struct WhoAmI {
    #[serde(flatten)]
    found: WhoIsResponse,
    #[serde(rename = "CurrentTailnet")]
    current_tailnet: Option<TailnetStatus>,
}

pub(super) fn whois_text(found: &WhoIsResponse) -> String {
    let node = &found.node;
    let mut text = String::from("Machine:\n");
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "  Name:           {}",
        node.name.trim_end_matches('.')
    );
    let _ = writeln!(text, "  ID:             {}", node.stable_id);
    let list = |nets: &[ipnet::IpNet]| {
        nets.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let _ = writeln!(text, "  Addresses:      [{}]", list(&node.addresses));
    let more: Vec<_> = node
        .allowed_ips
        .iter()
        .flatten()
        .copied()
        .filter(|net| !node.addresses.contains(net))
        .collect();
    if !more.is_empty() {
        let _ = writeln!(text, "  AllowedIPs:     [{}]", list(&more));
    }
    if node.tags.is_empty() {
        let _ = writeln!(text, "User:");
        let _ = writeln!(text, "  Name:     {}", found.user_profile.login_name);
        let _ = writeln!(text, "  ID:       {}", found.user_profile.id);
    } else {
        let _ = writeln!(text, "  Tags:           {}", node.tags.join(", "));
    }
    if !found.cap_map.is_empty() {
        let _ = writeln!(text, "Capabilities:");
        for (name, values) in &found.cap_map {
            let _ = match values {
                Value::Array(values) if !values.is_empty() => {
                    writeln!(text, "  - {name}: {}", Value::Array(values.clone()))
                }
                _ => writeln!(text, "  - {name}"),
            };
        }
    }
    text
}

/// The JSON form of `version`, in the order of the official client.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    major_minor_patch: &'static str,
    short: &'static str,
    long: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon_long: Option<String>,
    cap: u32,
}

/// Our version, and the daemon's.
pub(super) async fn version(
    given: &Given<'_>,
    client: &Client,
    io: &mut Io,
) -> Result<(), Failure> {
    let daemon = if given.is("daemon") {
        Some(client.call(GetStatus { peers: false }).await?.version)
    } else {
        None
    };
    if given.is("json") {
        let version = Version {
            major_minor_patch: VERSION,
            short: VERSION,
            long: VERSION,
            daemon_long: daemon,
            cap: CapabilityVersion::CURRENT.0,
        };
        return io.say_json(&version);
    }
    match daemon {
        None => io.say(VERSION),
        Some(daemon) => {
            io.say(format_args!("Client: {VERSION}"))?;
            io.say(format_args!("Daemon: {daemon}"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_control_types::{Node, StableNodeId, UserId, UserProfile};

    #[test]
    fn whois_shows_the_user_or_the_tags() {
        let mut found = WhoIsResponse {
            node: Node {
                name: "db.net.example.".into(),
                stable_id: StableNodeId("n1".into()),
                addresses: vec!["100.64.0.2/32".parse().unwrap()],
                allowed_ips: Some(vec![
                    "100.64.0.2/32".parse().unwrap(),
                    "10.0.0.0/8".parse().unwrap(),
                ]),
                ..Node::default()
            },
            user_profile: UserProfile {
                id: UserId(3),
                login_name: "ann@example.com".into(),
                ..UserProfile::default()
            },
            cap_map: [("example.com/cap".to_owned(), serde_json::json!([{"a": 1}]))].into(),
        };
        assert_eq!(
            whois_text(&found),
            "Machine:\n  Name:           db.net.example\n  ID:             n1\n  Addresses:      [100.64.0.2/32]\n  \
             AllowedIPs:     [10.0.0.0/8]\nUser:\n  Name:     ann@example.com\n  ID:       3\nCapabilities:\n  - example.com/cap: [{\"a\":1}]\n"
        );
        found.node.tags = vec!["tag:db".into()];
        let text = whois_text(&found);
        assert!(text.contains("Tags:           tag:db") && !text.contains("User:"));
    }
}
