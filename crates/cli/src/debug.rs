//! `warren debug`: the packet filter, and why a connection may not work. Questions to the
//! daemon about its state are in [`super::debug_daemon`].

use std::fmt::Write as _;

use warren_wire::ip::Protocol;

use super::args::Given;
use super::ping::resolve;
use super::{Failure, Io, debug_daemon, shown};
use warren_local_api::address::CanonicalIp;
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetFilter, GetStatus, Why};
use warren_local_api::filter::{
    Counted, FilterReport, WhyAnswer, WhyQuestion, WhyVerdict, rule_line,
};
use warren_local_api::types::Status;

/// Runs the chosen one.
pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let Some((name, given)) = given.0.subcommand() else {
        return Err(Failure::usage(
            "give a subject; the subjects: warren debug --help",
        ));
    };
    let given = Given(given);
    match name {
        "filter" => filter(&given, client, io).await,
        "why" => why(&given, client, io).await,
        other => match debug_daemon::run(other, &given, client, io).await {
            Some(result) => result,
            None => Err(Failure::usage(format_args!(
                "debug command {other:?} not found"
            ))),
        },
    }
}

async fn filter(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let report = client.call(GetFilter).await?;
    if given.is("json") {
        return io.say_json(&report);
    }
    io.say(filter_text(&shown(&report)?).trim_end())
}

async fn why(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let status = client.call(GetStatus { peers: true }).await?;
    let asked = given.text("DST:PORT").unwrap_or_default();
    let protocol = protocol(given.text("proto").unwrap_or("tcp"))?;
    let (host, port) = split(asked, protocol)?;
    let dst = resolve(host, &status).await?;
    let from = match given.text("from") {
        None => None,
        Some(from) => Some(of_family(from, dst.get().is_ipv4(), &status).await?),
    };
    let question = WhyQuestion {
        dst,
        port,
        protocol: protocol_for(protocol, dst.get().is_ipv4()),
        from,
    };
    let answer = client.call(Why { question }).await?;
    if given.is("json") {
        io.say_json(&answer)?;
    } else {
        io.say(why_text(&shown(&answer)?).trim_end())?;
    }
    if answer.verdict == WhyVerdict::Blocked {
        // The answer has been given; scripts look at the code.
        return Err(Failure::Failed(String::new()));
    }
    Ok(())
}

/// The address of a peer in the same family as the destination.
async fn of_family(name: &str, v4: bool, status: &Status) -> Result<CanonicalIp, Failure> {
    let found = resolve(name, status).await?;
    if found.get().is_ipv4() == v4 {
        return Ok(found);
    }
    let peers = status.peer.values().chain([&status.self_status]);
    let same = peers
        .filter(|peer| peer.tailscale_ips.contains(&found.get()))
        .flat_map(|peer| &peer.tailscale_ips)
        .find(|ip| ip.is_ipv4() == v4);
    same.map(|ip| CanonicalIp::from(*ip)).ok_or_else(|| {
        Failure::failed(format_args!(
            "{name} ({found}) and the destination are of different address families"
        ))
    })
}

/// A protocol by name or number; ICMP is that of IPv4 until the address is known.
fn protocol(text: &str) -> Result<Protocol, Failure> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::TCP),
        "udp" => Ok(Protocol::UDP),
        "sctp" => Ok(Protocol::SCTP),
        "icmp" => Ok(Protocol::ICMPV4),
        other => other.parse().map(Protocol).map_err(|_| {
            Failure::usage(format_args!(
                "--proto: {text:?} is not a valid protocol; write tcp, udp, sctp, icmp or a number from 0 to 255"
            ))
        }),
    }
}

fn protocol_for(protocol: Protocol, v4: bool) -> u8 {
    match protocol {
        Protocol::ICMPV4 if !v4 => Protocol::ICMPV6.0,
        other => other.0,
    }
}

/// Host and port. Protocols without ports need none.
fn split(text: &str, protocol: Protocol) -> Result<(&str, u16), Failure> {
    let wrong = || {
        Failure::usage(format_args!(
            "{text:?} is not a valid destination; write it as db:5432 or [fd7a:115c:a1e0::1]:22"
        ))
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        (host, rest.strip_prefix(':'))
    } else {
        match text.split_once(':') {
            // More than one colon is an IPv6 address without a port.
            Some((_, port)) if port.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| wrong())?,
        None if !protocol.has_ports() => 0,
        None => return Err(wrong()),
    };
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host, port))
}

pub(super) fn why_text(answer: &WhyAnswer) -> String {
    let mut text = match answer.verdict {
        WhyVerdict::Allowed => "Allowed.\n",
        WhyVerdict::NothingHere => "Nothing on this machine blocks it.\n",
        WhyVerdict::Blocked => "Blocked.\n",
        WhyVerdict::Unknown => "Not decided on this machine.\n",
    }
    .to_owned();
    for sentence in &answer.because {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {sentence}");
    }
    if !answer.not_known_here.is_empty() {
        text.push_str("Not known here:\n");
        for sentence in &answer.not_known_here {
            let _ = writeln!(text, "  {sentence}");
        }
    }
    text
}

pub(super) fn filter_text(report: &FilterReport) -> String {
    let mut text = String::new();
    if report.shields_up {
        text.push_str("Shields are up: the rules below do not apply, only answers come in.\n");
    }
    let _ = writeln!(
        text,
        "{} {}, {} KiB compiled",
        report.rules.len(),
        if report.rules.len() == 1 {
            "rule"
        } else {
            "rules"
        },
        report.compiled_bytes.div_ceil(1024)
    );
    if !report.rules.is_empty() {
        let _ = writeln!(text, "{:>5} {:>10} {:>14}  rule", "#", "packets", "bytes");
    }
    for rule in &report.rules {
        let Counted { packets, bytes } = rule.passed;
        let line = rule_line(&rule.rule);
        let _ = writeln!(text, "{:>5} {packets:>10} {bytes:>14}  {line}", rule.number);
    }
    let tables = [
        ("In without a rule", &report.without_rule),
        ("Dropped on the way in", &report.dropped_in),
        ("Dropped on the way out", &report.dropped_out),
    ];
    for (title, counts) in tables {
        if counts.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{title}");
        for (name, Counted { packets, bytes }) in counts {
            let _ = writeln!(text, "      {packets:>10} {bytes:>14}  {name}");
        }
    }
    if !report.problems.is_empty() {
        text.push_str("Entries that cannot be used (everything else applies):\n");
        for problem in &report.problems {
            let _ = writeln!(text, "  {problem}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn destinations_are_read_in_all_their_forms() {
        for (text, protocol, expected) in [
            ("db:22", Protocol::TCP, Some(("db", 22))),
            ("100.64.0.2:80", Protocol::UDP, Some(("100.64.0.2", 80))),
            ("[fd7a::1]:22", Protocol::TCP, Some(("fd7a::1", 22))),
            ("fd7a::1", Protocol::ICMPV4, Some(("fd7a::1", 0))),
            ("[fd7a::1]", Protocol::ICMPV4, Some(("fd7a::1", 0))),
            ("db", Protocol(47), Some(("db", 0))),
            ("db", Protocol::TCP, None),
            ("fd7a::1", Protocol::TCP, None),
            ("db:", Protocol::TCP, None),
            ("db:70000", Protocol::TCP, None),
            (":22", Protocol::TCP, None),
            ("[fd7a::1", Protocol::TCP, None),
            ("", Protocol::ICMPV4, None),
        ] {
            assert_eq!(split(text, protocol).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_report_shows_rules_drops_and_what_is_wrong() {
        let report: FilterReport = serde_json::from_value(serde_json::json!({
            "Rules": [{"Number": 0, "Filter": "base", "Passed": {"Packets": 3, "Bytes": 180},
                "Rule": {"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 22}}]}}],
            "WithoutRule": {"answer": {"Packets": 7, "Bytes": 9000}},
            "DroppedIn": {"acl": {"Packets": 1, "Bytes": 40}},
            "Problems": ["rule 1: SrcIPs entry \"x\" is not an address, a prefix, a range or *"],
            "CompiledBytes": 1025,
        }))
        .unwrap();
        assert_eq!(
            filter_text(&report),
            "1 rule, 2 KiB compiled\n    #    packets          bytes  rule\n\
             \x20   0          3            180  * -> *:22\n\
             In without a rule\n               7           9000  answer\n\
             Dropped on the way in\n               1             40  acl\n\
             Entries that cannot be used (everything else applies):\n  \
             rule 1: SrcIPs entry \"x\" is not an address, a prefix, a range or *\n"
        );
    }

    #[test]
    fn answers_begin_with_the_verdict() {
        let answer = WhyAnswer {
            verdict: WhyVerdict::NothingHere,
            because: vec!["100.64.0.2 is db, a peer of this network.".into()],
            not_known_here: vec!["Whether it listens.".into()],
            ..WhyAnswer::default()
        };
        assert_eq!(
            why_text(&answer),
            "Nothing on this machine blocks it.\n  100.64.0.2 is db, a peer of this network.\n\
             Not known here:\n  Whether it listens.\n"
        );
    }
}
