//! Our programs with the official ones. Each test skips, visibly,
//! where a foreign program is neither in `$WARREN_PEERS` nor in `PATH`.
#![allow(clippy::unwrap_used)]

use warren_lab::scenario::{
    Tailnet, address, installed, lab, more, skip, start_relays, tcp_flows, traffic_flows,
};
use warren_lab::{
    Headscale, Kind, Lab, Node, PATIENCE, Path, Place, RelayKind, derp_map, until, web,
};

fn sees(node: &Node, peers: &[&str]) {
    until(
        &format!("{} to see {peers:?}", node.host().name()),
        PATIENCE,
        || {
            let seen = node.peers()?;
            if seen == peers {
                Ok(())
            } else {
                Err(warren_lab_error(format!("{seen:?}")))
            }
        },
    )
    .unwrap();
}

fn warren_lab_error(text: String) -> warren_lab::LabError {
    std::io::Error::other(text).into()
}

/// A tailnet of ours with these two nodes, and traffic in both directions.
fn meet(lab: &mut Lab, relay: RelayKind, a: (Kind, Place), b: (Kind, Place)) -> Option<()> {
    installed(a.0)?;
    installed(b.0)?;
    let tailnet = Tailnet::new(lab, relay)?;
    let alice = tailnet.join(&lab.host("alice", a.1).unwrap(), a.0);
    let bob = tailnet.join(&lab.host("bob", b.1).unwrap(), b.0);
    sees(&alice, &["bob"]);
    sees(&bob, &["alice"]);
    traffic_flows(&alice, &bob);
    traffic_flows(&bob, &alice);
    web::serve_page(bob.host()).unwrap();
    tcp_flows(&alice, &bob);
    let bob_address = address(&bob, false).to_string();
    let pong = alice
        .cli(&["ping", "-c", "3", "--until-direct=false", &bob_address])
        .unwrap();
    assert!(pong.contains("pong from bob"), "{pong}");
    let no_udp = a.1 == Place::NoUdp || b.1 == Place::NoUdp;
    if !no_udp {
        alice.wait_until_direct("bob").unwrap();
        traffic_flows(&alice, &bob);
    }
    Some(())
}

/// A test for each row: relays, and program and place of both nodes.
macro_rules! meetings {
    ($($name:ident: $relay:ident, $a:ident in $a_place:ident, $b:ident in $b_place:ident;)*) => {$(
        #[test]
        fn $name() {
            let Some(mut lab) = lab() else { return };
            meet(
                &mut lab,
                RelayKind::$relay,
                (Kind::$a, Place::$a_place),
                (Kind::$b, Place::$b_place),
            );
        }
    )*};
}

meetings! {
    official_and_official_on_our_server_and_relay_direct: Warren, Tailscale in Open, Tailscale in Open;
    official_and_official_on_our_server_over_our_relay: Warren, Tailscale in NoUdp, Tailscale in Easy;
    official_and_ours_direct: Warren, Tailscale in Open, Warren in Easy;
    ours_and_official_behind_nats: Warren, Warren in Easy, Tailscale in Cone;
    ours_and_official_over_our_relay: Warren, Warren in Easy, Tailscale in NoUdp;
    ours_and_official_over_the_official_relay: Derper, Warren in NoUdp, Tailscale in Easy;
    ours_and_ours_over_the_official_relay: Derper, Warren in NoUdp, Warren in Easy;
}

/// Ours and an official client on Headscale, direct.
#[test]
fn ours_joins_headscale_beside_an_official_client() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(Kind::Tailscale)?;
        let relays = start_relays(lab, RelayKind::Warren)?;
        let map = derp_map(&relays.iter().collect::<Vec<_>>());
        let host = lab.host("headscale", Place::Open).unwrap();
        let Some(headscale) = Headscale::start(&host, &map).unwrap() else {
            return skip("headscale is neither in $WARREN_PEERS nor in PATH");
        };
        let key = headscale.auth_key("ann").unwrap();
        let alice = Node::start(&lab.host("alice", Place::Easy).unwrap(), Kind::Warren).unwrap();
        let bob = Node::start(&lab.host("bob", Place::Open).unwrap(), Kind::Tailscale).unwrap();
        alice
            .up(&headscale.url(), &key, more(Kind::Warren))
            .unwrap();
        bob.up(&headscale.url(), &key, more(Kind::Tailscale))
            .unwrap();
        sees(&alice, &["bob"]);
        sees(&bob, &["alice"]);
        traffic_flows(&alice, &bob);
        traffic_flows(&bob, &alice);
        alice.wait_until_direct("bob").unwrap();
        traffic_flows(&alice, &bob);
        Some(())
    };
    run(&mut lab);
}

/// A change at the server reaches a official client and ours without a restart.
#[test]
fn netmap_changes_reach_everyone() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(Kind::Tailscale)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let real = tailnet.join(&lab.host("real", Place::Open).unwrap(), Kind::Tailscale);
        let ours = tailnet.join(&lab.host("ours", Place::Open).unwrap(), Kind::Warren);
        let third = tailnet.join(&lab.host("third", Place::Open).unwrap(), Kind::Warren);
        for node in [&real, &ours] {
            until("the third node", PATIENCE, || node.peer("third")).unwrap();
        }
        let id = tailnet.control.node_id("third").unwrap();
        tailnet
            .control
            .cli(&["nodes", "rename", &id, "renamed"])
            .unwrap();
        for node in [&real, &ours] {
            until("the new name", PATIENCE, || node.peer("renamed")).unwrap();
        }
        tailnet.control.cli(&["nodes", "expire", &id]).unwrap();
        for node in [&real, &ours] {
            until("the expiry", PATIENCE, || {
                let peer = node.peer("renamed")?;
                if peer["Expired"] == true {
                    Ok(())
                } else {
                    Err(warren_lab_error(peer.to_string()))
                }
            })
            .unwrap();
        }
        until("the node itself to notice", PATIENCE, || {
            let state = third.status_json()?["BackendState"].to_string();
            if state.contains("NeedsLogin") {
                Ok(())
            } else {
                Err(warren_lab_error(state))
            }
        })
        .unwrap();
        tailnet.control.cli(&["nodes", "delete", &id]).unwrap();
        sees(&real, &["ours"]);
        sees(&ours, &["real"]);
        Some(())
    };
    run(&mut lab);
}

/// A person opens an address, an administrator approves, for both programs.
#[test]
fn interactive_login_is_approved_at_the_server() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        for (name, kind) in [("ours", Kind::Warren), ("real", Kind::Tailscale)] {
            if installed(kind).is_none() {
                continue;
            }
            let node = Node::start(&lab.host(name, Place::Open).unwrap(), kind).unwrap();
            std::thread::scope(|scope| {
                let server = format!("--login-server={}", tailnet.control.url());
                let hostname = format!("--hostname={name}");
                let node = &node;
                let up = scope.spawn(move || {
                    let mut arguments = vec!["up", &server, &hostname, "--timeout=60s"];
                    arguments.extend(more(kind));
                    node.cli(&arguments)
                });
                let url = until("an address to open", PATIENCE, || {
                    let status = node.status_json()?;
                    let url = status["AuthURL"].as_str().unwrap_or_default().to_owned();
                    if url.is_empty() {
                        Err(warren_lab_error(status.to_string()))
                    } else {
                        Ok(url)
                    }
                })
                .unwrap();
                let id = url.rsplit('/').next().unwrap();
                tailnet
                    .control
                    .cli(&["nodes", "approve", id, "--user", "ann"])
                    .unwrap();
                up.join().unwrap().unwrap();
            });
            assert_eq!(node.status_json().unwrap()["BackendState"], "Running");
        }
        Some(())
    };
    run(&mut lab);
}

/// Real clients that speak to the relay over WebSocket, and one that does not.
#[test]
fn a_real_client_uses_our_relay_over_websocket() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(Kind::TailscaleWebSocket)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        // In this form the client knows nothing of pins: like a browser it
        // wants certificates that the machine trusts.
        let trusted = lab.folder().join("trusted.pem");
        let chains = tailnet
            .relays
            .iter()
            .map(|relay| relay.certificate().unwrap());
        std::fs::write(&trusted, chains.collect::<String>()).unwrap();
        let trusted = trusted.display().to_string();
        let join = |lab: &mut Lab, name: &str, kind| {
            let host = lab.host(name, Place::NoUdp).unwrap();
            let node = Node::start_with(&host, kind, &[("SSL_CERT_FILE", &trusted)]).unwrap();
            node.up(tailnet.control.url(), &tailnet.key, more(kind))
                .unwrap();
            node
        };
        let alice = join(lab, "alice", Kind::TailscaleWebSocket);
        let bob = join(lab, "bob", Kind::TailscaleWebSocket);
        sees(&alice, &["bob"]);
        sees(&bob, &["alice"]);
        traffic_flows(&alice, &bob);
        traffic_flows(&bob, &alice);
        web::serve_page(bob.host()).unwrap();
        tcp_flows(&alice, &bob);
        assert!(matches!(alice.path_to("bob").unwrap(), Path::Relay(_)));
        let websockets = |tailnet: &Tailnet| -> u64 {
            let counts = tailnet
                .relays
                .iter()
                .map(|relay| relay.counter("websockets_total").unwrap());
            counts.sum()
        };
        let count = websockets(&tailnet);
        assert!(count >= 2, "{count} connections over WebSocket");
        // Both forms meet at the relay, which treats them alike.
        let carol = join(lab, "carol", Kind::Warren);
        traffic_flows(&carol, &alice);
        traffic_flows(&bob, &carol);
        Some(())
    };
    run(&mut lab);
}

/// The real command line drives our daemon.
#[test]
fn the_real_command_line_drives_our_daemon() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(Kind::Tailscale)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let alice = tailnet.join(&lab.host("alice", Place::Open).unwrap(), Kind::Warren);
        let bob = tailnet.join(&lab.host("bob", Place::Easy).unwrap(), Kind::Warren);
        let binary = warren_lab::foreign("tailscale")
            .unwrap()
            .display()
            .to_string();
        let socket = format!("--socket={}/node/s.sock", alice.host().folder().display());
        let tailscale = |words: &[&str]| {
            let mut all = vec![socket.as_str()];
            all.extend(words);
            alice.host().run(&binary, &all)
        };
        sees(&alice, &["bob"]);
        let status: serde_json::Value =
            serde_json::from_str(&tailscale(&["status", "--json"]).unwrap()).unwrap();
        assert_eq!(status["BackendState"], "Running");
        assert_eq!(status["Self"]["HostName"], "alice");
        assert_eq!(status["Peer"].as_object().unwrap().len(), 1);
        let text = tailscale(&["status"]).unwrap();
        assert!(text.contains("bob") && text.contains("linux"), "{text}");
        let addresses: Vec<String> = alice
            .addresses()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        let ip = tailscale(&["ip"]).unwrap();
        assert_eq!(ip.lines().collect::<Vec<_>>(), addresses);
        let bob_address = address(&bob, false).to_string();
        assert_eq!(tailscale(&["ip", "-4", "bob"]).unwrap().trim(), bob_address);
        let pong = tailscale(&["ping", "-c", "3", "--until-direct=false", "bob"]).unwrap();
        assert!(pong.contains("pong from bob"), "{pong}");
        let whois = tailscale(&["whois", &bob_address]).unwrap();
        assert!(whois.contains("bob") && whois.contains("ann"), "{whois}");
        let prefs: serde_json::Value =
            serde_json::from_str(&tailscale(&["debug", "prefs"]).unwrap()).unwrap();
        assert_eq!(prefs["ControlURL"], tailnet.control.url());
        tailscale(&["set", "--hostname=renamed"]).unwrap();
        until("the new name", PATIENCE, || bob.peer("renamed")).unwrap();
        tailscale(&["down"]).unwrap();
        assert_eq!(alice.status_json().unwrap()["BackendState"], "Stopped");
        tailscale(&[
            "up",
            "--hostname=renamed",
            &format!("--login-server={}", tailnet.control.url()),
        ])
        .unwrap();
        assert_eq!(alice.status_json().unwrap()["BackendState"], "Running");
        traffic_flows(&alice, &bob);
        tailscale(&["logout"]).unwrap();
        assert_eq!(alice.status_json().unwrap()["BackendState"], "NeedsLogin");
        Some(())
    };
    run(&mut lab);
}
