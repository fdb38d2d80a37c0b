//! `warren ping`: shows the path that packets to a node take, and the time.

use std::time::Duration;

use super::args::Given;
use super::{Failure, Io, duration, not_running, shown};
use warren_local_api::address::CanonicalIp;
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetStatus, Ping};
use warren_local_api::types::{PeerStatus, PingResult, PingType, Status};

/// Pause between two pings.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let host = given.text("HOST").unwrap_or_default();
    let count: u64 = number(given, "c")?;
    let size: usize = number(given, "size")?;
    let timeout = duration::parse(given.text("timeout").unwrap_or("5s"))
        .map_err(|why| Failure::usage(format_args!("--timeout: {why}")))?;
    let until_direct = given.switch("until-direct").unwrap_or(true);
    let kind = kind(given)?;

    let status = client.call(GetStatus { peers: true }).await?;
    if let Some(text) = not_running(&status) {
        return Err(Failure::failed(text));
    }
    let ip = resolve(host, &status).await?;
    if status.tailscale_ips.contains(&ip.get()) {
        return io.say(format_args!("{ip} is local Tailscale IP"));
    }
    if given.is("verbose") && ip.to_string() != host {
        io.note(format_args!("lookup {host:?} => {ip}"));
    }

    let mut sent = 0;
    let mut answered = false;
    loop {
        sent += 1;
        match tokio::time::timeout(timeout, client.call(Ping { ip, kind, size })).await {
            Err(_) => io.say(format_args!("ping {:?} timed out", ip.to_string()))?,
            Ok(result) => {
                let result = result?;
                if result.is_local_ip {
                    return io.say(format_args!("{ip} is local Tailscale IP"));
                }
                if !result.err.is_empty() {
                    return Err(Failure::failed(warren_terminal::printable(&result.err)));
                }
                answered = true;
                io.say(line(&shown(&result)?, kind))?;
                if kind != PingType::Disco || (until_direct && !result.endpoint.is_empty()) {
                    return Ok(());
                }
            }
        }
        if count != 0 && sent >= count {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    match (answered, until_direct) {
        (false, _) => Err(Failure::failed("no reply")),
        (true, true) => Err(Failure::failed("direct connection not established")),
        (true, false) => Ok(()),
    }
}

fn number<T: std::str::FromStr>(given: &Given<'_>, name: &str) -> Result<T, Failure> {
    let text = given.text(name).unwrap_or("0");
    text.parse()
        .map_err(|_| Failure::usage(format_args!("-{name}: {text:?} is not a valid number")))
}

fn kind(given: &Given<'_>) -> Result<PingType, Failure> {
    let chosen = [
        ("tsmp", PingType::Tsmp),
        ("icmp", PingType::Icmp),
        ("peerapi", PingType::PeerApi),
    ];
    let mut chosen = chosen
        .into_iter()
        .filter(|(name, _)| given.is(name))
        .map(|(_, kind)| kind);
    match (chosen.next(), chosen.next()) {
        (_, Some(_)) => Err(Failure::usage("only one of --tsmp, --icmp and --peerapi")),
        (kind, None) => Ok(kind.unwrap_or_default()),
    }
}

/// One reply, in the words of the official client, which scripts match.
pub(super) fn line(result: &PingResult, kind: PingType) -> String {
    let took = Duration::try_from_secs_f64(result.latency_seconds).unwrap_or_default();
    let took = duration::millis(took);
    if kind == PingType::PeerApi {
        return format!(
            "hit peerapi of {} ({}) at {} in {took}",
            result.node_ip, result.node_name, result.peer_api_url
        );
    }
    let via = if !result.endpoint.is_empty() {
        result.endpoint.clone()
    } else if !result.peer_relay.is_empty() {
        format!("peer-relay({})", result.peer_relay)
    } else if result.derp_region_id != 0 {
        format!("DERP({})", result.derp_region_code)
    } else {
        kind.as_str().to_owned()
    };
    let port = match result.peer_api_port {
        0 => String::new(),
        port => format!(", {port}"),
    };
    format!(
        "pong from {} ({}{port}) via {via} in {took}",
        result.node_name, result.node_ip
    )
}

/// The address for a name: the name itself if it is an address, a peer's address, or
/// the answer of the system's resolver.
pub(super) async fn resolve(host: &str, status: &Status) -> Result<CanonicalIp, Failure> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let own = std::iter::once(&status.self_status);
    if let Some(peer) = status
        .peer
        .values()
        .chain(own)
        .find(|peer| is_called(peer, host))
    {
        return peer
            .tailscale_ips
            .first()
            .map(|ip| CanonicalIp::from(*ip))
            .ok_or_else(|| Failure::failed(format_args!("{host} has no address in the network")));
    }
    match tokio::net::lookup_host((host, 0)).await {
        Ok(mut found) => found
            .next()
            .map(|address| address.ip().into())
            .ok_or_else(|| Failure::failed(format_args!("no IPs found for {host:?}"))),
        Err(error) => Err(Failure::failed(format_args!(
            "node {host:?} not found in this network; the nodes that exist: warren status (a lookup in DNS failed too: {error})"
        ))),
    }
}

/// Whether this is a DNS name of the peer, in full or its first part.
pub(super) fn is_called(peer: &PeerStatus, name: &str) -> bool {
    let full = peer.dns_name.trim_end_matches('.');
    let name = name.trim_end_matches('.');
    !full.is_empty()
        && (full.eq_ignore_ascii_case(name)
            || full
                .split('.')
                .next()
                .is_some_and(|base| base.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_name_the_path() {
        let base = PingResult {
            node_name: "db".into(),
            node_ip: "100.64.0.2".into(),
            latency_seconds: 0.0314,
            ..PingResult::default()
        };
        let direct = PingResult {
            endpoint: "192.0.2.1:41641".into(),
            ..base.clone()
        };
        let relayed = PingResult {
            derp_region_id: 900,
            derp_region_code: "ams".into(),
            ..base.clone()
        };
        let peer_relayed = PingResult {
            peer_relay: "192.0.2.1:7:vni:3".into(),
            ..base.clone()
        };
        let tsmp = PingResult {
            peer_api_port: 4242,
            ..base.clone()
        };
        let peer_api = PingResult {
            peer_api_url: "http://100.64.0.2:1".into(),
            ..base
        };
        let table = [
            (
                direct,
                PingType::Disco,
                "pong from db (100.64.0.2) via 192.0.2.1:41641 in 31ms",
            ),
            (
                relayed,
                PingType::Disco,
                "pong from db (100.64.0.2) via DERP(ams) in 31ms",
            ),
            (
                peer_relayed,
                PingType::Disco,
                "pong from db (100.64.0.2) via peer-relay(192.0.2.1:7:vni:3) in 31ms",
            ),
            (
                tsmp,
                PingType::Tsmp,
                "pong from db (100.64.0.2, 4242) via TSMP in 31ms",
            ),
            (
                peer_api,
                PingType::PeerApi,
                "hit peerapi of 100.64.0.2 (db) at http://100.64.0.2:1 in 31ms",
            ),
        ];
        for (result, kind, expected) in table {
            assert_eq!(line(&result, kind), expected);
        }
    }

    #[test]
    fn peers_are_called_by_their_first_or_full_name() {
        let peer = PeerStatus {
            dns_name: "db.net.example.".into(),
            ..PeerStatus::default()
        };
        for name in ["db", "DB", "db.net.example", "db.net.example."] {
            assert!(is_called(&peer, name), "{name}");
        }
        for name in ["", "d", "net", "db.net"] {
            assert!(!is_called(&peer, name), "{name}");
        }
        assert!(!is_called(&PeerStatus::default(), ""));
    }
}
