//! Every text of every answer that is shown as text, with what a hostile machine could
//! put there: the terminal is not commanded, and no line is forged.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use warren_local_api::types::{PingType, Status};

use crate::{debug, inspect, netcheck, ping, shown, status};

const HOSTILE: &str = "\u{1b}[2J\r\n100.64.0.9  root  forged\u{9b}31m\u{202e}\u{2028}\u{7}";

/// Calls `each` with the value with one of its texts replaced, for each text, also those
/// that are names of members.
fn with_each_text(value: &Value, each: &mut dyn FnMut(Value)) {
    match value {
        Value::String(_) => each(HOSTILE.into()),
        Value::Array(values) => {
            for (at, inner) in values.iter().enumerate() {
                with_each_text(inner, &mut |inner| {
                    let mut values = values.clone();
                    values[at] = inner;
                    each(values.into());
                });
            }
        }
        Value::Object(members) => {
            for (name, inner) in members {
                with_each_text(inner, &mut |inner| {
                    let mut members = members.clone();
                    members[name] = inner;
                    each(members.into());
                });
                let mut members = members.clone();
                if let Some(inner) = members.remove(name) {
                    members.insert(HOSTILE.to_owned(), inner);
                    each(members.into());
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Checks the text of an answer; returns in how many forms it was tried.
fn check<T: Serialize + DeserializeOwned>(answer: Value, text: impl Fn(&T) -> String) -> usize {
    let plain: T = serde_json::from_value(answer.clone()).unwrap();
    // A user takes three lines where tags take one.
    let most = text(&plain).lines().count() + 2;
    let mut tried = 0;
    // Keys and addresses are typed: a hostile one is no answer.
    with_each_text(&answer, &mut |changed| {
        let Ok(hostile) = serde_json::from_value::<T>(changed) else {
            return;
        };
        tried += 1;
        let out = text(&shown(&hostile).unwrap());
        let acts = |c: &char| c.is_control() && *c != '\n' && *c != '\t';
        let bad = out.chars().find(acts);
        assert_eq!(bad, None, "{out:?}");
        assert!(!out.contains(['\u{202e}', '\u{2028}']), "{out:?}");
        assert!(out.lines().count() <= most, "{out:?}");
    });
    tried
}

fn table_text(status: &Status) -> String {
    let table = status::Table {
        header: true,
        show_self: true,
        active_only: false,
        now: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
    };
    table.render(status)
}

fn node() -> Value {
    json!({
        "ID": 2, "StableID": "n2", "Name": "db.net.example.", "User": 1,
        "Key": format!("nodekey:{}", "02".repeat(32)),
        "Addresses": ["100.64.0.2/32"], "AllowedIPs": ["100.64.0.2/32", "10.0.0.0/8"],
        "Tags": ["tag:db"], "Hostinfo": {"Hostname": "db", "OS": "linux"},
    })
}

#[test]
fn no_text_of_an_answer_commands_the_terminal() {
    let peer = |expired: bool| {
        json!({
            "ID": "n2", "PublicKey": format!("nodekey:{}", "02".repeat(32)),
            "HostName": "db", "DNSName": "db.net.example.", "OS": "linux", "UserID": 1,
            "TailscaleIPs": ["100.64.0.2"], "Tags": ["tag:db"], "Active": true,
            "CurAddr": "198.51.100.7:41641", "Relay": "ams", "PeerRelay": "198.51.100.8:1:vni:1",
            "Online": true, "Expired": expired, "ExitNode": true, "TxBytes": 1, "RxBytes": 2,
        })
    };
    let key = format!("nodekey:{}", "02".repeat(32));
    let whole = json!({
        "Version": "1", "BackendState": "Running", "AuthURL": "https://login.example/a",
        "TailscaleIPs": ["100.64.0.1"], "Self": peer(false), "Peer": { key: peer(true) },
        "User": {"1": {"ID": 1, "LoginName": "ann@example.com", "DisplayName": "Ann"}},
        "Health": ["no relay", "the server says: x"], "MagicDNSSuffix": "net.example",
        "CurrentTailnet": {"Name": "example", "MagicDNSSuffix": "net.example"},
    });
    assert!(check(whole.clone(), table_text) > 15);
    let mut unnamed = whole;
    unnamed["Self"]["DNSName"] = "".into();
    assert!(check(unnamed, table_text) > 15);

    let whois = json!({
        "Node": node(),
        "UserProfile": {"ID": 1, "LoginName": "ann@example.com", "DisplayName": "Ann"},
        "CapMap": {"example.com/cap": [{"a": "b"}], "https://c": null},
    });
    assert!(check(whois, inspect::whois_text) > 10);

    let pong = json!({
        "IP": "100.64.0.2", "NodeIP": "100.64.0.2", "NodeName": "db", "Err": "",
        "LatencySeconds": 0.1, "Endpoint": "198.51.100.7:1", "PeerRelay": "",
        "DERPRegionID": 1, "DERPRegionCode": "ams", "PeerAPIURL": "http://100.64.0.2:1",
    });
    for kind in [PingType::Disco, PingType::Tsmp, PingType::PeerApi] {
        assert!(check(pong.clone(), |result| ping::line(result, kind)) > 5);
    }

    let rule = json!({
        "Number": 1, "Filter": "base", "Passed": {"Packets": 1, "Bytes": 2},
        "Rule": {
            "SrcIPs": ["100.64.0.2", "cap:x"],
            "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 1, "Last": 2}}],
            "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"example.com/cap": []}}],
        },
    });
    let filter = json!({
        "Rules": [rule.clone()], "Problems": ["bad rule"],
        "WithoutRule": {"ping": {"Packets": 1, "Bytes": 2}},
        "DroppedIn": {"no rule": {"Packets": 1, "Bytes": 2}},
        "DroppedOut": {"no session": {"Packets": 1, "Bytes": 2}},
    });
    assert!(check(filter, debug::filter_text) > 8);
    let why = json!({
        "Verdict": "allowed", "Destination": "100.64.0.2", "CarriedBy": "peer",
        "Route": "100.64.0.2/32", "Peer": "db", "Rule": rule, "Because": ["a", "b"],
        "NotKnownHere": ["c"],
    });
    assert!(check(why, debug::why_text) > 5);

    let report = json!({
        "UDP": true, "IPv4": true, "GlobalV4": "198.51.100.7:1", "GlobalV6": "[2001:db8::1]:1",
        "PreferredDERP": 1, "RegionLatency": {"1": 1_000_000},
    });
    assert!(
        check(report.clone(), |report| netcheck::text(
            report,
            &Default::default(),
            jiff::Timestamp::UNIX_EPOCH
        )) > 1
    );
    let map = json!({"Regions": {"1": {
        "RegionID": 1, "RegionCode": "ams", "RegionName": "Amsterdam", "Nodes": [],
    }}});
    let report = serde_json::from_value(report).unwrap();
    assert!(
        check(map, |map| netcheck::text(
            &report,
            map,
            jiff::Timestamp::UNIX_EPOCH
        )) > 1
    );
}
