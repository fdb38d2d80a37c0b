//! `warren dns status` and `warren dns query`.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::net::UdpSocket;
use warren_control_types::{DnsConfig, Resolver};

use super::args::Given;
use super::{Failure, Io, not_running, shown};
use warren_dns::lookup::{self, Family};
use warren_dns::message;
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetDnsConfig, GetPrefs, GetStatus};
use warren_local_api::types::{Status, TailnetStatus};

/// The address at which the daemon answers.
const SERVICE: &str = "100.100.100.100:53";
/// The time for one answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// The largest answer over UDP.
const MAX_ANSWER: usize = 4096;

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    match given.0.subcommand() {
        Some(("query", given)) => query(&Given(given), client, io).await,
        Some((_, given)) => status(&Given(given), client, io).await,
        None => Err(Failure::usage("give a subject: status or query")),
    }
}

async fn status(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let accepted = client.call(GetPrefs).await?.prefs.corp_dns;
    let status = shown(&client.call(GetStatus { peers: false }).await?)?;
    let config = match &status.current_tailnet {
        None => None,
        Some(tailnet) => Some((tailnet, shown(&client.call(GetDnsConfig).await?)?)),
    };
    let config = config.as_ref().map(|(tailnet, config)| (*tailnet, config));
    if given.is("json") {
        let form = shown_json(accepted, &status, config);
        return io.say_json(&form);
    }
    let text = shown_text(accepted, &status, config, given.is("all"));
    io.say(text.trim_end_matches('\n'))
}

/// The JSON form, with the keys and the order of the official client.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    #[serde(rename = "TailscaleDNS")]
    tailscale_dns: bool,
    #[serde(skip_serializing_if = "Value::is_null")]
    current_tailnet: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resolvers: Vec<Value>,
    #[serde(rename = "SplitDNSRoutes", skip_serializing_if = "Option::is_none")]
    split_dns_routes: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fallback_resolvers: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search_domains: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cert_domains: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extra_records: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exit_node_filtered_set: Vec<String>,
    #[serde(rename = "SystemDNSError", skip_serializing_if = "str::is_empty")]
    system_dns_error: &'static str,
}

fn shown_json(
    accepted: bool,
    status: &Status,
    config: Option<(&TailnetStatus, &DnsConfig)>,
) -> Shown {
    let nothing = DnsConfig::default();
    let known = config.map_or(&nothing, |(_, config)| config);
    let resolvers = |list: &[Resolver]| list.iter().map(resolver).collect::<Vec<_>>();
    // A suffix without resolvers is answered by the node, and is no split route.
    let routes = known.routes.iter().filter(|(_, list)| !list.is_empty());
    let mut domains = known.domains.clone();
    domains.sort();
    Shown {
        tailscale_dns: accepted,
        current_tailnet: config.map_or(Value::Null, |(tailnet, _)| {
            json!({
                "MagicDNSEnabled": tailnet.magic_dns_enabled,
                "MagicDNSSuffix": tailnet.magic_dns_suffix,
                "SelfDNSName": status.self_status.dns_name,
            })
        }),
        resolvers: resolvers(&known.resolvers),
        split_dns_routes: config.is_some().then(|| {
            routes
                .map(|(suffix, list)| (suffix.clone(), resolvers(list).into()))
                .collect()
        }),
        fallback_resolvers: resolvers(&known.fallback_resolvers),
        search_domains: domains,
        nameservers: known.nameservers.iter().map(ToString::to_string).collect(),
        cert_domains: known.cert_domains.clone(),
        extra_records: known
            .extra_records
            .iter()
            .map(|record| json!(record))
            .collect(),
        exit_node_filtered_set: known.exit_node_filtered_set.clone(),
        system_dns_error: if config.is_some() { NOT_READ } else { "" },
    }
}

const NOT_READ: &str = "this version does not read the DNS settings of the system";

fn resolver(resolver: &Resolver) -> Value {
    json!({ "Addr": resolver.addr })
}

/// The text form, with the headings of the official client.
fn shown_text(
    accepted: bool,
    status: &Status,
    config: Option<(&TailnetStatus, &DnsConfig)>,
    all: bool,
) -> String {
    let mut text = String::from("\n=== 'Use Tailscale DNS' status ===\n\n");
    text.push_str(match accepted {
        true => {
            "Tailscale DNS: enabled.\n\nThis machine uses the DNS settings of the network.\n\
             To use only its own: warren set --accept-dns=false\n"
        }
        false => {
            "Tailscale DNS: disabled.\n\nThis machine uses its own DNS settings.\n\
             To use those of the network: warren set --accept-dns=true\n"
        }
    });
    text.push_str("\n=== MagicDNS configuration ===\n\n");
    let Some((tailnet, config)) = config else {
        text.push_str("The coordination server has sent no settings; log in with: warren up\n");
        return text;
    };
    // Writing into a String cannot fail.
    let _ = match tailnet.magic_dns_enabled {
        true => writeln!(
            text,
            "MagicDNS: enabled tailnet-wide (suffix = {})\n\nThe name of this machine: {}\n",
            tailnet.magic_dns_suffix, status.self_status.dns_name
        ),
        false => writeln!(text, "MagicDNS: disabled tailnet-wide.\n"),
    };
    let mut section = |title: &str, none: &str, lines: Vec<String>| {
        let _ = writeln!(text, "{title}:");
        if lines.is_empty() {
            let _ = writeln!(text, "  ({none})");
        }
        for line in lines {
            let _ = writeln!(text, "  - {}", line.escape_debug());
        }
        text.push('\n');
    };
    let addresses = |list: &[Resolver]| -> Vec<String> {
        list.iter().map(|resolver| resolver.addr.clone()).collect()
    };
    let routes = config.routes.iter().flat_map(|(suffix, list)| {
        list.iter()
            .map(move |resolver| format!("{suffix:<30} -> {}", resolver.addr))
    });
    let records = config.extra_records.iter().map(|record| {
        let kind = match record.kind.as_str() {
            "" => "A or AAAA",
            kind => kind,
        };
        format!("{:<30} {kind}  {}", record.name, record.value)
    });
    section(
        "Resolvers (in preference order)",
        "none; those of the system are used",
        addresses(&config.resolvers),
    );
    section("Split DNS Routes", "none", routes.collect());
    if all {
        section(
            "Fallback Resolvers",
            "none",
            addresses(&config.fallback_resolvers),
        );
    }
    section("Search Domains", "none", config.domains.clone());
    if all {
        let servers = config.nameservers.iter().map(ToString::to_string);
        section("Nameservers IP Addresses", "none", servers.collect());
        section("Certificate Domains", "none", config.cert_domains.clone());
        section("Additional DNS Records", "none", records.collect());
        section(
            "Filtered suffixes when forwarding DNS queries as an exit node",
            "none",
            config.exit_node_filtered_set.clone(),
        );
    }
    text
}

/// Asks the name server of the daemon for the addresses of a name.
async fn query(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let name = given.text("NAME").unwrap_or_default();
    let (kind, family) = match given.text("TYPE") {
        None => ("A", Family::V4),
        Some(text) if text.eq_ignore_ascii_case("A") => ("A", Family::V4),
        Some(text) if text.eq_ignore_ascii_case("AAAA") => ("AAAA", Family::V6),
        Some(other) => {
            return Err(Failure::usage(format_args!(
                "{other:?}: this version asks for A and AAAA; for other types: \
                 dig @100.100.100.100 {name} {other}"
            )));
        }
    };
    let question = lookup::query(name, family)
        .ok_or_else(|| Failure::usage(format_args!("{name:?} is not a valid DNS name")))?;
    let status = client.call(GetStatus { peers: false }).await?;
    if let Some(text) = not_running(&status) {
        return Err(Failure::Failed(text));
    }
    if !status.tun {
        return Err(Failure::failed(
            "the daemon has no network interface, so its name server cannot be asked",
        ));
    }
    let answer = match tokio::time::timeout(PATIENCE, ask(&question)).await {
        Ok(answer) => {
            answer.map_err(|error| Failure::failed(format_args!("{SERVICE}: {error}")))?
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(Failure::failed(format_args!(
                "{SERVICE} did not answer in {seconds} s; look at: warren dns status"
            )));
        }
    };
    io.say(answer_text(name, kind, &answer).trim_end())
}

/// Sends the question and waits for its answer. Other datagrams are ignored.
async fn ask(question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(SERVICE).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut answer).await?;
        if message::same_question(question, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

fn answer_text(name: &str, kind: &str, answer: &[u8]) -> String {
    let mut text = format!("DNS query for {name:?} ({kind}) using internal resolver:\n\n");
    let code = message::Header::parse(answer).map_or(2, |header| header.rcode);
    let code = match code {
        0 => "RCodeSuccess".to_owned(),
        1 => "RCodeFormatError".to_owned(),
        2 => "RCodeServerFailure".to_owned(),
        3 => "RCodeNameError".to_owned(),
        4 => "RCodeNotImplemented".to_owned(),
        5 => "RCodeRefused".to_owned(),
        other => other.to_string(),
    };
    // Writing into a String cannot fail.
    let _ = writeln!(text, "Response code: {code}\n");
    let addresses = lookup::addresses(answer);
    if addresses.is_empty() {
        text.push_str("No answers were returned.\n");
    }
    for address in addresses {
        let _ = writeln!(text, "{name}  {kind}  {address}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_local_api::types::PeerStatus;

    fn example() -> (TailnetStatus, DnsConfig, Status) {
        let tailnet = TailnetStatus {
            name: "net.example".into(),
            magic_dns_suffix: "net.example".into(),
            magic_dns_enabled: true,
        };
        let config = serde_json::from_value(json!({
            "Resolvers": [{"Addr": "9.9.9.9"}],
            "Routes": {"corp.example": [{"Addr": "10.0.0.53"}], "net.example": []},
            "Domains": ["net.example"],
            "Proxied": true,
        }))
        .unwrap();
        let status = Status {
            self_status: PeerStatus {
                dns_name: "laptop.net.example.".into(),
                ..PeerStatus::default()
            },
            ..Status::default()
        };
        (tailnet, config, status)
    }

    #[test]
    fn json_has_the_keys_and_the_order_of_the_official_client() {
        let (tailnet, config, status) = example();
        let form = shown_json(true, &status, Some((&tailnet, &config)));
        assert_eq!(
            serde_json::to_string(&form).unwrap(),
            format!(
                r#"{{"TailscaleDNS":true,"CurrentTailnet":{{"MagicDNSEnabled":true,"MagicDNSSuffix":"net.example","SelfDNSName":"laptop.net.example."}},"Resolvers":[{{"Addr":"9.9.9.9"}}],"SplitDNSRoutes":{{"corp.example":[{{"Addr":"10.0.0.53"}}]}},"SearchDomains":["net.example"],"SystemDNSError":"{NOT_READ}"}}"#
            )
        );
        let form = shown_json(false, &Status::default(), None);
        assert_eq!(
            serde_json::to_string(&form).unwrap(),
            r#"{"TailscaleDNS":false}"#
        );
    }

    #[test]
    fn text_has_a_section_for_each_part() {
        let (tailnet, config, status) = example();
        let text = shown_text(true, &status, Some((&tailnet, &config)), true);
        for part in [
            "Tailscale DNS: enabled.",
            "MagicDNS: enabled tailnet-wide (suffix = net.example)",
            "laptop.net.example.\n",
            "Resolvers (in preference order):\n  - 9.9.9.9\n",
            "  - corp.example                   -> 10.0.0.53\n",
            "Search Domains:\n  - net.example\n",
            "Additional DNS Records:\n  (none)\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let without_login = shown_text(false, &Status::default(), None, false);
        assert!(without_login.contains("disabled") && without_login.contains("warren up"));
    }

    #[test]
    fn an_answer_shows_its_code_and_addresses() {
        let question = lookup::query("db.net.example", Family::V4).unwrap();
        let failure = message::failure(&question, 3);
        let text = answer_text("db.net.example", "A", &failure);
        assert!(
            text.contains("Response code: RCodeNameError\n\nNo answers were returned."),
            "{text}"
        );
    }
}
