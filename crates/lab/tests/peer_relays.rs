//! Two nodes behind NATs that no direct path passes meet at a third one that relays for
//! them, as the policy allows: nodes of ours and official clients in each role.
#![allow(clippy::unwrap_used)]

use warren_lab::scenario::{Tailnet, installed, lab, tcp_flows, traffic_flows};
use warren_lab::{
    Host, HostOptions, Kind, Lab, LabError, Node, Path, Place, RelayKind, until, web,
};

/// The official client looks for a peer relay every 30 s.
const RELAY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

const MAY_RELAY: &str = r#"{
    "grants": [
        {"src": ["*"], "dst": ["*"], "ip": ["*"]},
        {"src": ["*"], "dst": ["rita@"], "app": {"tailscale.com/cap/relay": [{}]}},
    ],
}"#;
const MUST_NOT_RELAY: &str = r#"{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}"#;

/// A host without IPv6, over which it would be reached directly.
fn host(lab: &mut Lab, name: &str, place: Place) -> Host {
    let options = HostOptions { ipv4_only: true };
    lab.host_with(name, place, options).unwrap()
}

fn set_policy(tailnet: &Tailnet, lab: &Lab, policy: &str) {
    let file = lab.folder().join("policy.hujson");
    std::fs::write(&file, policy).unwrap();
    let file = file.display().to_string();
    tailnet.control.cli(&["policy", "set", &file]).unwrap();
}

/// The peer relay on the path to `peer`, as `ADDRESS:PORT:vni:N`.
fn relay_to(node: &Node, peer: &str) -> Result<String, LabError> {
    let entry = node.peer(peer)?;
    match entry["PeerRelay"].as_str() {
        Some(relay) if !relay.is_empty() => Ok(relay.to_owned()),
        _ => Err(std::io::Error::other(format!("{:?}", node.path_to(peer)?)).into()),
    }
}

/// Alice and bob behind hard NATs meet at rita. Alice, a node of ours, is the only one with
/// packets to send. Prints the time from the first packet to the relayed path.
fn meet(lab: &mut Lab, bob: Kind, rita: Kind) -> Option<()> {
    for kind in [Kind::Warren, bob, rita] {
        installed(kind)?;
    }
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    set_policy(&tailnet, lab, MAY_RELAY);
    let key = tailnet.control.auth_key("rita").unwrap();
    let relay = Node::start(&host(lab, "rita", Place::Open), rita).unwrap();
    relay.up(tailnet.control.url(), &key, &[]).unwrap();
    relay.cli(&["set", "--relay-server-port=40000"]).unwrap();
    let alice = tailnet.join(&host(lab, "alice", Place::Hard), Kind::Warren);
    let other = tailnet.join(&host(lab, "bob", Place::Hard), bob);
    let expected = format!("{}:40000:vni:", relay.host().address());
    let began = std::time::Instant::now();
    let path = until("a path over the peer relay", RELAY_PATIENCE, || {
        traffic_flows(&alice, &other);
        relay_to(&alice, "bob")
    });
    println!(
        "bob {bob:?}, rita {rita:?}: in use after {:?}",
        began.elapsed()
    );
    let path = path.unwrap();
    assert!(path.starts_with(&expected), "{path}");
    web::serve_page(other.host()).unwrap();
    tcp_flows(&alice, &other);
    traffic_flows(&other, &alice);
    let ping = alice.cli(&["ping", "--c=1", "--until-direct=false", "bob"]);
    let ping = ping.unwrap();
    assert!(ping.contains(&format!("peer-relay({expected}")), "{ping}");
    let status = alice.cli(&["status"]).unwrap();
    assert!(
        status.contains(&format!("peer-relay {expected}")),
        "{status}"
    );

    // Off: the pair goes on over DERP.
    relay.cli(&["set", "--relay-server-port="]).unwrap();
    until("the peer relay to be left", RELAY_PATIENCE, || {
        traffic_flows(&alice, &other);
        match relay_to(&alice, "bob") {
            Ok(relay) => Err(LabError::from(std::io::Error::other(relay))),
            Err(_) => Ok(()),
        }
    })
    .unwrap();
    Some(())
}

#[test]
fn our_nodes_meet_at_our_peer_relay() {
    let Some(mut lab) = lab() else { return };
    meet(&mut lab, Kind::Warren, Kind::Warren);
}

#[test]
fn our_nodes_meet_at_an_official_peer_relay() {
    let Some(mut lab) = lab() else { return };
    meet(&mut lab, Kind::Warren, Kind::Tailscale);
}

#[test]
fn a_node_of_ours_and_an_official_client_meet_at_our_peer_relay() {
    let Some(mut lab) = lab() else { return };
    meet(&mut lab, Kind::Tailscale, Kind::Warren);
}

#[test]
fn a_node_of_ours_and_an_official_client_meet_at_an_official_peer_relay() {
    let Some(mut lab) = lab() else { return };
    meet(&mut lab, Kind::Tailscale, Kind::Tailscale);
}

#[test]
fn official_clients_behind_hard_nats_meet_at_our_peer_relay() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(Kind::Tailscale)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        set_policy(&tailnet, lab, MUST_NOT_RELAY);
        let key = tailnet.control.auth_key("rita").unwrap();
        let rita = Node::start(&host(lab, "rita", Place::Open), Kind::Warren).unwrap();
        rita.up(tailnet.control.url(), &key, &[]).unwrap();
        rita.cli(&["set", "--relay-server-port=40000"]).unwrap();
        let alice = tailnet.join(&host(lab, "alice", Place::Hard), Kind::Tailscale);
        let bob = tailnet.join(&host(lab, "bob", Place::Hard), Kind::Tailscale);
        traffic_flows(&alice, &bob);
        let path = alice.path_to("bob").unwrap();
        assert!(matches!(path, Path::Relay(_)), "{path:?}");
        assert!(
            relay_to(&alice, "bob").is_err(),
            "the policy allows no relay"
        );

        set_policy(&tailnet, lab, MAY_RELAY);
        let expected = format!("{}:40000:vni:", rita.host().address());
        // Traffic in between: an idle client looks for nothing.
        let relay = until("a path over the peer relay", RELAY_PATIENCE, || {
            traffic_flows(&alice, &bob);
            relay_to(&alice, "bob")
        });
        let relay = relay.unwrap();
        assert!(relay.starts_with(&expected), "{relay}");
        web::serve_page(bob.host()).unwrap();
        tcp_flows(&alice, &bob);
        traffic_flows(&bob, &alice);

        // Off: the clients go on over DERP.
        rita.cli(&["set", "--relay-server-port="]).unwrap();
        traffic_flows(&alice, &bob);
        until("the peer relay to be left", RELAY_PATIENCE, || {
            traffic_flows(&alice, &bob);
            match relay_to(&alice, "bob") {
                Ok(relay) => Err(LabError::from(std::io::Error::other(relay))),
                Err(_) => Ok(()),
            }
        })
        .unwrap();
        Some(())
    };
    run(&mut lab);
}
