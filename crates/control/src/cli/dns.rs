//! `warren-control dns`.

use warren_control_api::endpoints::{AddDnsRecord, DeleteDnsRecord, DnsInfo, GetDns, SetDns};

use super::args::{Dns, DnsRecords, Switch};
use super::session::Session;
use crate::failure::Failure;
use crate::terminal::table;

/// Runs a `dns` command.
pub(super) async fn run(session: &Session, command: Dns) -> Result<(), Failure> {
    match command {
        Dns::Show => drop(session.ask(&GetDns {}, |info, _| show(info)).await?),
        Dns::Set {
            magic_dns,
            override_local,
            nameservers,
            search_domains,
            unset,
        } => {
            let list = |given: Option<Vec<String>>| {
                given.map(|list| list.into_iter().filter(|text| !text.is_empty()).collect())
            };
            let request = SetDns {
                magic_dns: magic_dns.map(Switch::is_on),
                override_local: override_local.map(Switch::is_on),
                nameservers: list(nameservers),
                search_domains: list(search_domains),
                unset: unset.iter().map(|key| key.replace('-', "_")).collect(),
                ..SetDns::default()
            };
            session.ask(&request, |info, _| show(info)).await?;
        }
        Dns::Split {
            suffix,
            nameservers,
            remove,
        } => {
            let servers = (!remove).then_some(nameservers);
            let request = SetDns {
                split: [(suffix, servers)].into(),
                ..SetDns::default()
            };
            session.ask(&request, |info, _| show(info)).await?;
        }
        Dns::Records(DnsRecords::Add { name, kind, value }) => {
            let request = AddDnsRecord { name, kind, value };
            session.ask(&request, |info, _| show(info)).await?;
        }
        Dns::Records(DnsRecords::Delete { name, kind, value }) => {
            let request = DeleteDnsRecord { name, kind, value };
            session.ask(&request, |info, _| show(info)).await?;
        }
    }
    Ok(())
}

fn show(info: &DnsInfo) -> String {
    let mut out = String::new();
    let mut line = |key: &str, label: &str, text: &str| {
        let from = match info.configured.iter().any(|configured| configured == key) {
            true => "  (configuration)",
            false => "",
        };
        out += &format!("{label:<15} {text}{from}\n");
    };
    line("", "zone", &info.base_domain);
    line("magic_dns", "magic DNS", on_off(info.magic_dns));
    let servers = match (info.nameservers.is_empty(), info.override_local) {
        (true, _) => "those of each host".to_owned(),
        (false, true) => format!(
            "{} instead of those of each host",
            info.nameservers.join(", ")
        ),
        (false, false) => format!(
            "{} where a host has none to use",
            info.nameservers.join(", ")
        ),
    };
    line("nameservers", "name servers", &servers);
    line(
        "override_local",
        "override local",
        on_off(info.override_local),
    );
    let search = match info.search_domains.is_empty() {
        true => "none but the zone".to_owned(),
        false => info.search_domains.join(", "),
    };
    line("search_domains", "search domains", &search);
    for (suffix, servers) in &info.split {
        let servers = match servers.is_empty() {
            true => "answered by nodes themselves".to_owned(),
            false => servers.join(", "),
        };
        line("split", "split", &format!("{suffix}: {servers}"));
    }
    if !info.records.is_empty() {
        let rows: Vec<Vec<String>> = info
            .records
            .iter()
            .map(|record| {
                let addresses = match record.addresses.is_empty() {
                    true => "NONE: no such node or record".to_owned(),
                    false => record.addresses.join(" "),
                };
                vec![
                    record.name.clone(),
                    record.kind.clone(),
                    record.value.clone(),
                    record.source.clone(),
                    addresses,
                ]
            })
            .collect();
        out += &format!(
            "\n{}",
            table(&["NAME", "TYPE", "VALUE", "FROM", "ADDRESSES"], &rows)
        );
    }
    for server in &info.unknown_to_clients {
        out += &format!(
            "warning: official clients do not use {server}; they know the large public servers for DNS over HTTPS only\n"
        );
    }
    if let (Some(file), Some(problem)) = (&info.records_file, &info.records_problem) {
        out += &format!("warning: the last valid records of {file} are in force: {problem}\n");
    }
    out
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

#[cfg(test)]
mod tests {
    use warren_control_api::endpoints::DnsRecordInfo;

    use super::*;

    #[test]
    fn settings_are_shown_with_what_they_mean_and_where_they_come_from() {
        let mut info = DnsInfo {
            base_domain: "warren.internal".to_owned(),
            magic_dns: true,
            override_local: true,
            nameservers: Vec::new(),
            split: [("b.example".to_owned(), Vec::new())].into(),
            search_domains: Vec::new(),
            configured: vec!["split".to_owned()],
            unknown_to_clients: vec!["https://dns.example/q".to_owned()],
            records: vec![DnsRecordInfo {
                name: "db.example".to_owned(),
                kind: "CNAME".to_owned(),
                value: "db".to_owned(),
                source: "command".to_owned(),
                addresses: Vec::new(),
            }],
            records_file: Some("records.json".to_owned()),
            records_problem: Some("not valid".to_owned()),
        };
        let text = show(&info);
        for part in [
            "name servers    those of each host",
            "split           b.example: answered by nodes themselves  (configuration)",
            "NONE: no such node or record",
            "official clients do not use https://dns.example/q",
            "the last valid records of records.json are in force: not valid",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        info.nameservers = vec!["10.0.0.1".to_owned()];
        assert!(show(&info).contains("10.0.0.1 instead of those of each host"));
        info.override_local = false;
        assert!(show(&info).contains("10.0.0.1 where a host has none to use"));
    }
}
