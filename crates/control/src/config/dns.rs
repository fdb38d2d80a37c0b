//! The keys of `[dns]` that nodes are sent.

use std::collections::BTreeMap;

use warren_control_core::{
    ConfiguredDns, DnsError, DnsKey, DnsName, DnsPart, ExtraRecord, MAX_RECORDS, Nameserver,
};

use super::given::{Given, Wrong};
use super::reader::{Key, Section};
use super::text;

/// Reads the keys.
pub(super) fn read(section: &mut Section<'_>) -> ConfiguredDns {
    let live = |key: DnsKey, default| Key::new(key.name(), default).live();
    let magic_dns = section.key(live(DnsKey::MagicDns, "true"), Given::boolean);
    let override_local = section.key(live(DnsKey::OverrideLocal, "true"), Given::boolean);
    let nameservers = section.key(live(DnsKey::Nameservers, "[]"), servers);
    let split = section.key(live(DnsKey::Split, "{}"), |given| {
        let by_text = given.map(|_, value| servers(value))?;
        let checked = by_text.into_iter().map(|(suffix, servers)| {
            let name = suffix.parse::<DnsName>();
            let name = name.map_err(|error| vec![(given.line, error.to_string())])?;
            Ok((name, servers))
        });
        checked.collect::<Result<BTreeMap<_, _>, Wrong>>()
    });
    let search_domains = section.key(live(DnsKey::SearchDomains, "[]"), |given| {
        given.list(|name| name.text(|text| text.parse::<DnsName>().map_err(|e| e.to_string())))
    });
    let records = section.key(Key::new("records", "[]").live(), |given| given.list(record));
    let part = DnsPart {
        magic_dns,
        override_local,
        nameservers,
        split,
        search_domains,
    };
    if let Err(error) = part.check() {
        section.wrong(&error.to_string());
    }
    let records = records.unwrap_or_default();
    if records.len() > MAX_RECORDS {
        let (what, most) = ("records", MAX_RECORDS);
        section.wrong(&DnsError::TooMany { what, most }.to_string());
    }
    ConfiguredDns {
        part,
        records: records.into_iter().collect(),
    }
}

fn servers(given: &Given) -> Result<Vec<Nameserver>, Wrong> {
    given.list(|server| server.text(|text| text.parse().map_err(|e| format!("{e}"))))
}

fn record(given: &Given) -> Result<ExtraRecord, Wrong> {
    let mut texts = given.map(|_, value| text(value))?;
    let mut take = |name: &str| texts.remove(name);
    let (name, kind, value) = (take("name"), take("type"), take("value"));
    let wrong = |what: String| vec![(given.line, what)];
    let (Some(name), Some(value), true) = (name, value, texts.is_empty()) else {
        let form = "a record is { name = \"db.example\", type = \"A\", value = \"10.0.0.1\" }";
        return Err(wrong(form.to_owned()));
    };
    ExtraRecord::parse(&name, &kind.unwrap_or_default(), &value)
        .map_err(|error| wrong(error.to_string()))
}
