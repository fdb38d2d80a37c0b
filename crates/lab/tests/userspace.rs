//! A node of ours without a network interface and without privileges: reached by others,
//! and the way out for programs.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use warren_lab::probe::{Echo, Probe};
use warren_lab::scenario::{Tailnet, address, installed, lab};
use warren_lab::{Host, Kind, Lab, LabError, Node, PATIENCE, Place, RelayKind, until, web};

const PROXY: &str = "127.0.0.1:1055";
const PROXIES: [&str; 2] = [
    "--socks5-server=127.0.0.1:1055",
    "--outbound-http-proxy-listen=127.0.0.1:1055",
];

/// Alice without an interface, bob with one.
fn pair(lab: &mut Lab, bob: Kind, flags: &[&str]) -> Option<(Tailnet, Node, Node)> {
    installed(Kind::Warren)?;
    installed(bob)?;
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    let host = lab.host("alice", Place::Open).unwrap();
    let alice = Node::start_userspace(&host, Kind::Warren, &PROXIES).unwrap();
    alice
        .up(tailnet.control.url(), &tailnet.key, flags)
        .unwrap();
    let host = lab.host("bob", Place::Open).unwrap();
    let bob = tailnet.join(&host, bob);
    Some((tailnet, alice, bob))
}

/// The page at `url` through a proxy of `host`.
fn through(host: &Host, scheme: &str, url: &str) -> Result<String, LabError> {
    let proxy = format!("{scheme}://{PROXY}");
    let arguments = [
        "--silent",
        "--show-error",
        "--max-time",
        "10",
        "--noproxy",
        "",
    ];
    let arguments = [&arguments[..], &["--proxy", &proxy, url]].concat();
    host.run("curl", &arguments)
}

fn is_page_of(page: &str, name: &str) {
    assert_eq!(page.trim(), format!("hello from {name}"));
}

fn meets(kind: Kind) {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, alice, bob)) = pair(&mut lab, kind, &[]) else {
        return;
    };
    assert_eq!(alice.status_json().unwrap()["TUN"], false);
    web::serve_page(alice.host()).unwrap();
    web::serve_page(bob.host()).unwrap();
    // In: TCP and UDP, to the programs of alice's machine.
    for v6 in [false, true] {
        let to = address(&alice, v6).to_string();
        let page = until("a page of alice", PATIENCE, || {
            web::open_page(bob.host(), &to)
        });
        is_page_of(&page.unwrap(), "alice");
    }
    let _echo = Echo::start(alice.host()).unwrap();
    let probe = Probe::start(
        bob.host(),
        address(&alice, false),
        Duration::from_millis(20),
    )
    .unwrap();
    until("echoes of alice", PATIENCE, || {
        probe.first_answer().ok_or("none")
    })
    .unwrap();
    if kind == Kind::Tailscale {
        // An echo request through the tunnel.
        bob.cli(&["ping", "--c=1", "--until-direct=false", "--icmp", "alice"])
            .unwrap();
    }
    // Out: by name and by address, through all proxies.
    let v4 = format!("http://{}/", address(&bob, false));
    let v6 = format!("http://[{}]/", address(&bob, true));
    for url in ["http://bob/", &v4, &v6] {
        for scheme in ["socks5h", "http"] {
            let page = until("a page of bob", PATIENCE, || {
                through(alice.host(), scheme, url)
            });
            is_page_of(&page.unwrap(), "bob");
        }
    }
    let tunnelled = [
        "--silent",
        "--show-error",
        "--proxytunnel",
        "--proxy",
        "http://127.0.0.1:1055",
        "http://bob/",
    ];
    is_page_of(&alice.host().run("curl", &tunnelled).unwrap(), "bob");
    let refused = through(alice.host(), "socks5h", "http://bob:81/");
    assert!(refused.is_err(), "nothing listens there: {refused:?}");
}

#[test]
fn a_node_without_an_interface_meets_our_own() {
    meets(Kind::Warren);
}

#[test]
fn a_node_without_an_interface_meets_an_official_client() {
    meets(Kind::Tailscale);
}

#[test]
fn a_subnet_is_reached_through_a_router_without_an_interface() {
    let Some(mut lab) = lab() else { return };
    let route = "--advertise-routes=10.77.0.0/24";
    let Some((tailnet, alice, bob)) = pair(&mut lab, Kind::Warren, &[route]) else {
        return;
    };
    // A host behind alice that only her machine can reach.
    let inside = ["addr", "add", "10.77.0.1/24", "dev", "lo"];
    alice.host().run("ip", &inside).unwrap();
    web::serve_page(alice.host()).unwrap();
    tailnet.approve("alice", "10.77.0.0/24");
    bob.cli(&["set", "--accept-routes"]).unwrap();
    let page = until("a page behind alice", PATIENCE, || {
        web::open_page(bob.host(), "10.77.0.1")
    });
    is_page_of(&page.unwrap(), "alice");
}
