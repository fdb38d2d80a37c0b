//! Name resolution: settings of the configuration and of commands, records, aliases, and
//! attributes of the policy.

use std::collections::{BTreeMap, BTreeSet};

use warren_control_types::DnsConfig;

use super::world::{World, machine, map_request};
use crate::{
    ConfiguredDns, DnsChange, DnsError, DnsKey, DnsPart, ExtraRecord, Nameserver, SessionId,
    StoredDns,
};

fn record(text: &str) -> ExtraRecord {
    let parts: Vec<&str> = text.split(' ').collect();
    ExtraRecord::parse(parts[0], parts[1], parts[2]).unwrap()
}

fn servers(list: &[&str]) -> Vec<Nameserver> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// Two connected nodes that know everything.
fn pair() -> (World, SessionId, SessionId) {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    w.join(1, &auth);
    w.join(2, &auth);
    let (a, b) = (w.open(1).unwrap(), w.open(2).unwrap());
    w.read_all();
    (w, a, b)
}

/// The settings that the client of a session holds, after it read all messages.
fn held(w: &mut World, session: SessionId) -> DnsConfig {
    w.settle();
    w.read_all();
    w.clients[&session].dns_config.clone()
}

fn set(w: &mut World, part: DnsPart) -> Result<(), DnsError> {
    w.c.change_dns(DnsChange {
        set: part,
        ..DnsChange::default()
    })
}

fn records_of(config: &DnsConfig) -> Vec<String> {
    let records = config.extra_records.iter();
    records
        .map(|r| format!("{} {} {}", r.name, r.kind, r.value))
        .collect()
}

#[test]
fn without_settings_only_the_names_of_nodes_are_resolved() {
    let (mut w, a, _) = pair();
    let dns = held(&mut w, a);
    let zone = "warren.internal".to_owned();
    let expected = DnsConfig {
        proxied: true,
        domains: vec![zone.clone()],
        routes: BTreeMap::from([(zone, Vec::new())]),
        ..DnsConfig::default()
    };
    assert_eq!(dns, expected);
}

#[test]
fn change_of_a_setting_reaches_all_nodes_and_nothing_else_is_sent() {
    let (mut w, a, b) = pair();
    set(
        &mut w,
        DnsPart {
            nameservers: Some(servers(&["10.0.0.53", "https://dns.google/dns-query"])),
            split: Some(
                [(
                    "corp.example".parse().unwrap(),
                    servers(&["10.1.0.53:5353"]),
                )]
                .into(),
            ),
            search_domains: Some(vec!["corp.example".parse().unwrap()]),
            ..DnsPart::default()
        },
    )
    .unwrap();
    w.settle();
    for session in [a, b] {
        let messages = w.read(session);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].dns_config.is_some() && messages[0].node.is_none());
        let dns = &w.clients[&session].dns_config;
        assert_eq!(dns.resolvers[0].addr, "10.0.0.53");
        assert_eq!(dns.resolvers[1].addr, "https://dns.google/dns-query");
        assert_eq!(dns.routes["corp.example"][0].addr, "10.1.0.53:5353");
        assert_eq!(dns.domains, ["warren.internal", "corp.example"]);
    }
    // The same again is no change.
    set(
        &mut w,
        DnsPart {
            search_domains: Some(vec!["corp.example".parse().unwrap()]),
            ..DnsPart::default()
        },
    )
    .unwrap();
    w.settle();
    assert!(w.woken.is_empty());
    assert_eq!(w.stored, w.c.snapshot());

    set(
        &mut w,
        DnsPart {
            magic_dns: Some(false),
            override_local: Some(false),
            ..DnsPart::default()
        },
    )
    .unwrap();
    let dns = held(&mut w, a);
    assert!(!dns.proxied && dns.resolvers.is_empty());
    assert_eq!(dns.fallback_resolvers.len(), 2);
    assert_eq!(dns.domains, ["corp.example"]);
    assert!(!dns.routes.contains_key("warren.internal"));

    w.c.change_dns(DnsChange {
        unset: DnsKey::ALL.into(),
        ..DnsChange::default()
    })
    .unwrap();
    assert_eq!(w.c.snapshot().dns, StoredDns::default());
}

#[test]
fn settings_of_the_configuration_are_not_changed_by_commands() {
    let (mut w, a, _) = pair();
    w.c.set_configured_dns(ConfiguredDns {
        part: DnsPart {
            nameservers: Some(servers(&["10.0.0.53"])),
            ..DnsPart::default()
        },
        records: [record("cfg.example A 10.0.0.1")].into(),
    });
    let dns = held(&mut w, a);
    assert_eq!(dns.resolvers[0].addr, "10.0.0.53");
    assert_eq!(records_of(&dns), ["cfg.example A 10.0.0.1"]);
    let part = DnsPart {
        nameservers: Some(Vec::new()),
        magic_dns: Some(false),
        ..DnsPart::default()
    };
    let error = set(&mut w, part).unwrap_err();
    assert_eq!(error, DnsError::Configured("nameservers"));
    w.settle();
    assert!(w.woken.is_empty(), "a part was changed");
    // A setting that the configuration leaves out can be set.
    set(
        &mut w,
        DnsPart {
            magic_dns: Some(false),
            ..DnsPart::default()
        },
    )
    .unwrap();
    assert!(!held(&mut w, a).proxied);
    let error =
        w.c.delete_dns_records(&"cfg.example".parse().unwrap(), None, None);
    assert!(matches!(error, Err(DnsError::NoRecord(_))));
}

#[test]
fn suffixes_are_set_and_removed_one_by_one() {
    let (mut w, a, _) = pair();
    let suffix = |name: &str, list: Option<&[&str]>| DnsChange {
        suffixes: [(name.parse().unwrap(), list.map(servers))].into(),
        ..DnsChange::default()
    };
    w.c.change_dns(suffix("a.example", Some(&["10.0.0.1"])))
        .unwrap();
    w.c.change_dns(suffix("b.example", Some(&[]))).unwrap();
    let dns = held(&mut w, a);
    assert_eq!(dns.routes["a.example"][0].addr, "10.0.0.1");
    assert!(dns.routes["b.example"].is_empty());
    w.c.change_dns(suffix("a.example", None)).unwrap();
    assert!(!held(&mut w, a).routes.contains_key("a.example"));
    let error = w.c.change_dns(suffix("a.example", None)).unwrap_err();
    assert!(matches!(error, DnsError::NoSuffix(_)));
    let many: Vec<&str> = vec!["10.0.0.1"; 17];
    let error =
        w.c.change_dns(suffix("c.example", Some(&many)))
            .unwrap_err();
    assert!(matches!(error, DnsError::TooMany { most: 16, .. }));
}

#[test]
fn records_of_all_sources_count_and_are_sent_once() {
    let (mut w, a, _) = pair();
    w.c.add_dns_record(record("web.example A 10.0.0.1"))
        .unwrap();
    w.c.add_dns_record(record("web.example AAAA fd00::1"))
        .unwrap();
    let file = [
        record("web.example A 10.0.0.1"),
        record("web.example A 10.0.0.2"),
    ];
    assert_eq!(w.c.take_dns_file(file.clone().into()), Ok(true));
    assert_eq!(w.c.take_dns_file(file.into()), Ok(false));
    let all = [
        "web.example A 10.0.0.1",
        "web.example A 10.0.0.2",
        "web.example AAAA fd00::1",
    ];
    assert_eq!(records_of(&held(&mut w, a)), all);
    // One that a command added as well as the file stays.
    let name = "web.example".parse().unwrap();
    assert_eq!(w.c.delete_dns_records(&name, Some("a"), None), Ok(1));
    assert_eq!(records_of(&held(&mut w, a)), all);
    assert_eq!(w.c.take_dns_file(BTreeSet::new()), Ok(true));
    assert_eq!(records_of(&held(&mut w, a)), all[2..]);
    // All of it is there after a restart.
    let again = World::with(w.stored.clone());
    assert_eq!(again.c.snapshot(), w.c.snapshot());
    let ip = |n: u16| record(&format!("x.example A 10.1.{}.{}", n >> 8, n & 255));
    let many: BTreeSet<ExtraRecord> = (0..=4096).map(ip).collect();
    assert!(w.c.take_dns_file(many).is_err());
}

#[test]
fn aliases_follow_nodes_and_other_records() {
    let (mut w, a, _) = pair();
    for text in [
        "db.example CNAME host2",
        "full.example CNAME host2.warren.internal",
        "chain.example CNAME db.example",
        "web.example A 10.0.0.1",
        "alias.example CNAME web.example",
        "loop.example CNAME loop.example",
        "missing.example CNAME host9",
        "other.example CNAME host2.example",
    ] {
        w.c.add_dns_record(record(text)).unwrap();
    }
    let node = w.c.find_node("host2").unwrap().address;
    let (v4, v6) = (node.v4().to_string(), node.v6().to_string());
    let both = |name: &str| [format!("{name} A {v4}"), format!("{name} AAAA {v6}")];
    let mut expected = vec!["alias.example A 10.0.0.1".to_owned()];
    for name in ["chain.example", "db.example", "full.example"] {
        expected.extend(both(name));
    }
    expected.push("web.example A 10.0.0.1".to_owned());
    assert_eq!(records_of(&held(&mut w, a)), expected);
    // Another node has the name now.
    w.c.rename_node("host2", "db").unwrap();
    w.c.rename_node("host1", "host2").unwrap();
    let other = w.c.find_node("host2").unwrap().address.v4().to_string();
    let records = records_of(&held(&mut w, a));
    assert!(
        records.contains(&format!("db.example A {other}")),
        "{records:?}"
    );
    w.c.delete_node("host2").unwrap();
    w.settle();
    let viewer = w.open(2).unwrap();
    let records = records_of(&held(&mut w, viewer));
    assert_eq!(
        records,
        ["alias.example A 10.0.0.1", "web.example A 10.0.0.1"]
    );
}

#[test]
fn alias_shows_nothing_of_nodes_that_are_hidden_or_expired() {
    let (mut w, a, b) = pair();
    w.c.add_dns_record(record("db.example CNAME host2"))
        .unwrap();
    assert_eq!(held(&mut w, a).extra_records.len(), 2);
    // A rename of a node that no alias leads to concerns the node and its peers only, and
    // sends no settings.
    w.c.rename_node("host1", "other").unwrap();
    w.settle();
    assert!(w.read(b).iter().all(|message| message.dns_config.is_none()));
    w.read_all();
    w.c.set_policy(Some(r#"{"acls": []}"#.to_owned())).unwrap();
    assert!(held(&mut w, a).extra_records.is_empty());
    assert_eq!(held(&mut w, b).extra_records.len(), 2, "its own addresses");
    w.c.set_policy(None).unwrap();
    assert_eq!(held(&mut w, a).extra_records.len(), 2);
    w.c.expire_node(w.wall, "host2").unwrap();
    assert!(held(&mut w, a).extra_records.is_empty());
}

#[test]
fn nodes_without_ipv4_are_not_given_it_by_an_alias() {
    let (mut w, a, b) = pair();
    w.c.add_dns_record(record("db.example CNAME host2"))
        .unwrap();
    let policy = r#"{"tagOwners": {"tag:six": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        "nodeAttrs": [{"target": ["tag:six"], "attr": ["disable-ipv4"]}]}"#;
    w.c.set_policy(Some(policy.to_owned())).unwrap();
    assert_eq!(held(&mut w, a).extra_records.len(), 2);
    w.c.tag_node("host2", ["tag:six".to_owned()].into())
        .unwrap();
    for session in [a, b] {
        let dns = held(&mut w, session);
        assert_eq!(dns.extra_records.len(), 1, "{:?}", dns.extra_records);
        assert_eq!(dns.extra_records[0].kind, "AAAA");
    }
}

#[test]
fn attributes_of_the_policy_choose_the_profile_at_nextdns() {
    let (mut w, a, b) = pair();
    let urls = [
        "https://dns.nextdns.io/global",
        "https://dns.nextdns.io.example/x",
        "9.9.9.9",
    ];
    let part = DnsPart {
        nameservers: Some(servers(&urls)),
        ..DnsPart::default()
    };
    set(&mut w, part).unwrap();
    let of = |w: &mut World, session| -> Vec<String> {
        let resolvers = held(w, session).resolvers.into_iter();
        resolvers.map(|resolver| resolver.addr).collect()
    };
    let ip = w.c.find_node("host1").unwrap().address.v4();
    let facts = format!("device_name=host1&device_model=linux&device_ip={ip}");
    let plain = format!("https://dns.nextdns.io/global?{facts}");
    assert_eq!(of(&mut w, a), [&plain, urls[1], urls[2]]);

    let policy = |attributes: &str| {
        format!(
            r#"{{"tagOwners": {{"tag:kid": []}}, "acls": [],
                "nodeAttrs": [{{"target": ["tag:kid"], "attr": [{attributes}]}}]}}"#
        )
    };
    w.c.set_policy(Some(policy(r#""nextdns:kids1""#))).unwrap();
    assert_eq!(of(&mut w, a)[0], plain, "an attribute of others");
    w.c.tag_node("host1", ["tag:kid".to_owned()].into())
        .unwrap();
    assert_eq!(
        of(&mut w, a)[0],
        format!("https://dns.nextdns.io/kids1?{facts}")
    );
    assert!(of(&mut w, b)[0].starts_with("https://dns.nextdns.io/global?device_name=host2&"));
    let none = policy(r#""nextdns:kids1", "nextdns:no-device-info""#);
    w.c.set_policy(Some(none)).unwrap();
    assert_eq!(of(&mut w, a)[0], "https://dns.nextdns.io/kids1");
    // The facts follow the node.
    w.c.set_policy(None).unwrap();
    w.c.rename_node("host1", "tv").unwrap();
    assert!(of(&mut w, a)[0].contains("device_name=tv&"));
    let mut update = map_request(1);
    update.stream = false;
    update.omit_peers = true;
    let mut host = w.c.find_node("tv").unwrap().hostinfo.clone();
    host.os = "a b&c".to_owned();
    update.hostinfo = Some(host);
    w.c.update(machine(1), &update).unwrap();
    assert!(of(&mut w, a)[0].contains("device_model=a%20b%26c&"));
}
