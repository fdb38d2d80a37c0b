//! The first hour of a network: a server with plain HTTP that is restarted, and a
//! measurement of the network around.
#![allow(clippy::unwrap_used)]

use warren_lab::scenario::{Tailnet, installed, lab};
use warren_lab::{Kind, PATIENCE, Place, RelayKind, until};

/// The server's URL is `http://` with a public address. An official client that dials for
/// the second time within two minutes dials port 443 with TLS and nothing else.
#[test]
fn official_client_comes_back_after_restarts_of_a_server_without_a_certificate() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Tailscale).is_none() {
        return;
    }
    let Some(mut tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let host = lab.host("carol", Place::Open).unwrap();
    let carol = tailnet.join(&host, Kind::Tailscale);
    for _ in 0..2 {
        tailnet.control.program().kill().unwrap();
        tailnet.control.restart().unwrap();
        until("carol to be connected again", PATIENCE, || {
            tailnet.control.cli(&["debug", "c2n", "carol", "/echo"])
        })
        .unwrap();
    }
    // The client does not take the certificate for that of an interceptor.
    let status = carol.status_json().unwrap();
    let health = status["Health"].to_string();
    assert!(
        !health.contains("intercept") && !health.contains("ncrypted"),
        "{health}"
    );
}

#[test]
fn netcheck_shows_at_once_that_udp_is_blocked() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let host = lab.host("alice", Place::Open).unwrap();
    let alice = tailnet.join(&host, Kind::Warren);
    let udp = || {
        let text = alice.cli(&["netcheck", "--format=json"]).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        report["UDP"].as_bool()
    };
    assert_eq!(udp(), Some(true));
    let drop_stun = "chain out { type filter hook output priority 0; udp dport 3478 drop; }";
    host.nft(&format!("table inet cut {{ {drop_stun} }}"))
        .unwrap();
    assert_eq!(udp(), Some(false));
    host.nft("delete table inet cut").unwrap();
    assert_eq!(udp(), Some(true));
}
