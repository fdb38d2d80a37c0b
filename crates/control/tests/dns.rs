//! Name resolution as nodes are sent it: from the configuration, from commands, and from
//! a file that changes.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use support::{Node, admin, options, reason, reusable};
use warren_control::serve::{Running, start};
use warren_control_api::endpoints::{
    AddDnsRecord, DeleteDnsRecord, DnsInfo, GetDns, GetHealth, Reload, SetDns,
};

/// A server with this configuration and file of records.
async fn serve(dir: &Path, config: &str) -> Running {
    fs::write(dir.join("control.toml"), config).unwrap();
    let mut options = options(dir);
    options.config = Some(dir.join("control.toml"));
    start(&dir.join("state"), options).await.unwrap()
}

const WITH_FILE: &str = "[dns]\nrecords_file = \"records.json\"\n";

fn file(names: &[&str]) -> String {
    let records = names
        .iter()
        .map(|name| format!(r#"{{"name": "{name}", "type": "A", "value": "10.0.0.1"}}"#));
    format!("[{}]", records.collect::<Vec<_>>().join(", "))
}

async fn node(dir: &Path, server: &Running) -> Node {
    let key = reusable(dir).await;
    let mut node = Node::new(&server.server_url, "a");
    node.register(&key).await;
    node.poll("").await;
    node
}

/// Reads messages until the node has records of exactly these names.
async fn until_named(node: &mut Node, names: &[&str]) {
    node.until(|map| {
        let records = map.dns_config.extra_records.iter();
        records
            .map(|record| record.name.as_str())
            .eq(names.iter().copied())
    })
    .await;
}

/// Scenario D02 of Headscale's suite.
#[tokio::test]
async fn every_way_to_change_the_file_reaches_connected_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.json");
    fs::write(&path, file(&["zero.example"])).unwrap();
    let server = serve(dir.path(), WITH_FILE).await;
    let mut node = node(dir.path(), &server).await;
    until_named(&mut node, &["zero.example"]).await;

    fs::write(&path, file(&["one.example", "zero.example"])).unwrap();
    until_named(&mut node, &["one.example", "zero.example"]).await;
    let other = dir.path().join("other");
    fs::write(&other, file(&["two.example"])).unwrap();
    fs::rename(&other, &path).unwrap();
    until_named(&mut node, &["two.example"]).await;
    fs::write(&other, file(&["three.example"])).unwrap();
    fs::copy(&other, &path).unwrap();
    until_named(&mut node, &["three.example"]).await;
    fs::write(&path, file(&["four.example"])).unwrap();
    until_named(&mut node, &["four.example"]).await;
    // A file that is gone takes nothing away.
    fs::remove_file(&path).unwrap();
    while admin(dir.path(), GetHealth {})
        .await
        .unwrap()
        .records_problem
        .is_none()
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(admin(dir.path(), GetDns {}).await.unwrap().records.len(), 1);
    fs::write(&path, file(&["five.example"])).unwrap();
    until_named(&mut node, &["five.example"]).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn broken_file_leaves_the_last_records_in_force_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.json");
    // A server that never had valid records says what is wrong.
    fs::write(&path, r#"[{"name": "a", "type": "TXT", "value": "x"}]"#).unwrap();
    fs::write(dir.path().join("control.toml"), WITH_FILE).unwrap();
    let mut with_file = options(dir.path());
    with_file.config = Some(dir.path().join("control.toml"));
    let failed = start(&dir.path().join("state"), with_file).await;
    let why = reason(failed.unwrap_err());
    assert!(
        why.contains("records.json: record 1: type \"TXT\""),
        "{why}"
    );

    fs::write(&path, file(&["good.example"])).unwrap();
    serve(dir.path(), WITH_FILE).await.stop().await.unwrap();
    fs::write(&path, "[{").unwrap();
    let server = serve(dir.path(), WITH_FILE).await;
    let health = admin(dir.path(), GetHealth {}).await.unwrap();
    assert!(health.records_problem.unwrap().contains("records.json"));
    let info = admin(dir.path(), GetDns {}).await.unwrap();
    assert_eq!(info.records[0].name, "good.example");
    assert!(info.records_problem.is_some());
    // Settings are not read again beside a broken file.
    let error = admin(dir.path(), Reload {}).await.unwrap_err();
    assert!(error.contains("records.json"), "{error}");
    server.stop().await.unwrap();
    // Without the file its records are gone.
    let server = serve(dir.path(), "").await;
    assert!(
        admin(dir.path(), GetDns {})
            .await
            .unwrap()
            .records
            .is_empty()
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn commands_and_the_configuration_share_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[dns]\nnameservers = [\"10.0.0.53\"]\nrecords = [{ name = \"cfg.example\", type = \"CNAME\", value = \"a\" }]\n";
    let server = serve(dir.path(), config).await;
    let mut node = node(dir.path(), &server).await;
    assert_eq!(node.map.dns_config.resolvers[0].addr, "10.0.0.53");
    assert_eq!(node.map.dns_config.extra_records.len(), 2, "both families");

    let set = SetDns {
        search_domains: Some(vec!["corp.example.".to_owned()]),
        split: [(
            "corp.example".to_owned(),
            Some(vec!["10.0.0.54".to_owned()]),
        )]
        .into(),
        ..SetDns::default()
    };
    let info = admin(dir.path(), set).await.unwrap();
    assert_eq!(info.configured, ["nameservers"]);
    assert_eq!(info.search_domains, ["corp.example"]);
    node.until(|map| map.dns_config.routes.contains_key("corp.example"))
        .await;
    let set = SetDns {
        nameservers: Some(vec!["10.0.0.1".to_owned()]),
        ..SetDns::default()
    };
    let error = admin(dir.path(), set).await.unwrap_err();
    assert!(
        error.contains("[dns]") && error.contains("reload"),
        "{error}"
    );

    let record = AddDnsRecord {
        name: "web.example".to_owned(),
        kind: "A".to_owned(),
        value: "10.0.0.80".to_owned(),
    };
    admin(dir.path(), record).await.unwrap();
    node.until(|map| map.dns_config.extra_records.len() == 3)
        .await;
    let config = config.replace("10.0.0.53", "10.9.9.9");
    fs::write(dir.path().join("control.toml"), config).unwrap();
    let info = admin(dir.path(), Reload {}).await.unwrap();
    assert_eq!(info.changed, ["[dns] nameservers"]);
    node.until(|map| map.dns_config.resolvers[0].addr == "10.9.9.9")
        .await;
    // All that commands set is there after a restart.
    let before: DnsInfo = admin(dir.path(), GetDns {}).await.unwrap();
    server.stop().await.unwrap();
    let mut again = options(dir.path());
    again.config = Some(dir.path().join("control.toml"));
    let server = start(&dir.path().join("state"), again).await.unwrap();
    assert_eq!(admin(dir.path(), GetDns {}).await.unwrap(), before);
    let delete = DeleteDnsRecord {
        name: "web.example".to_owned(),
        kind: None,
        value: None,
    };
    admin(dir.path(), delete.clone()).await.unwrap();
    let error = admin(dir.path(), delete).await.unwrap_err();
    assert!(error.contains("dns show"), "{error}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn requests_that_are_not_valid_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), "").await;
    let before = admin(dir.path(), GetDns {}).await.unwrap();
    let texts = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect());
    for (set, why) in [
        (
            SetDns {
                magic_dns: Some(false),
                nameservers: texts(&["10.0.0.1", "dns.example"]),
                ..SetDns::default()
            },
            "is not a name server",
        ),
        (
            SetDns {
                search_domains: texts(&["a b"]),
                ..SetDns::default()
            },
            "is not a domain name",
        ),
        (
            SetDns {
                magic_dns: Some(false),
                unset: vec!["colour".to_owned()],
                ..SetDns::default()
            },
            "those are magic_dns",
        ),
        (
            SetDns {
                nameservers: texts(&["10.0.0.1"; 17]),
                ..SetDns::default()
            },
            "at most 16",
        ),
    ] {
        let error = admin(dir.path(), set).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    for (kind, value, why) in [
        ("TXT", "x", "split DNS"),
        ("A", "fd00::1", "an IPv4 address"),
    ] {
        let record = AddDnsRecord {
            name: "x.example".to_owned(),
            kind: kind.to_owned(),
            value: value.to_owned(),
        };
        let error = admin(dir.path(), record).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(admin(dir.path(), GetDns {}).await.unwrap(), before);
    server.stop().await.unwrap();
}
