//! Nodes in containers: the variables of the official entry point bring them up.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use warren_lab::scenario::{Tailnet, address, lab, skip};
use warren_lab::{
    Container, EntryPoint, Host, Kind, Lab, LabError, PATIENCE, Place, RelayKind, until, web,
};

const PROXY: &str = "127.0.0.1:1055";
const LOCAL: &str = "127.0.0.1:9002";

/// A container with these variables in a new tailnet.
fn container(
    lab: &mut Lab,
    entry: EntryPoint,
    is_privileged: bool,
    more: &[(&str, &str)],
) -> Option<(Tailnet, Host, Container)> {
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    let host = lab.host("box", Place::Open).unwrap();
    let state = host.folder().join("state").display().to_string();
    let extra = format!("--login-server={} --accept-routes", tailnet.control.url());
    let fixed = [
        ("TS_AUTHKEY", tailnet.key.as_str()),
        ("TS_EXTRA_ARGS", &extra),
        ("TS_STATE_DIR", &state),
        ("TS_LOCAL_ADDR_PORT", LOCAL),
        ("TS_ENABLE_HEALTH_CHECK", "true"),
        ("TS_ENABLE_METRICS", "true"),
    ];
    let all = [&fixed[..], more].concat();
    match Container::start(&host, entry, is_privileged, &all).unwrap() {
        Some(container) => Some((tailnet, host, container)),
        None => skip("containerboot is neither in $WARREN_PEERS nor in PATH"),
    }
}

fn get(host: &Host, more: &[&str], url: &str) -> Result<String, LabError> {
    let fixed = [
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "10",
        "--noproxy",
        "",
    ];
    host.run("curl", &[&fixed, more, &[url]].concat())
}

fn own(container: &Container) -> Value {
    let status = container.cli(&["status", "--json"]).unwrap();
    serde_json::from_str::<Value>(&status).unwrap()["Self"].clone()
}

fn serves_without_privileges(entry: EntryPoint) {
    let Some(mut lab) = lab() else { return };
    let variables = [
        ("TS_USERSPACE", "true"),
        ("TS_HOSTNAME", "first"),
        ("TS_ROUTES", "10.77.0.0/24"),
        ("TS_SOCKS5_SERVER", PROXY),
        ("TS_OUTBOUND_HTTP_PROXY_LISTEN", PROXY),
    ];
    let Some((tailnet, host, mut container)) = container(&mut lab, entry, false, &variables) else {
        return;
    };
    container.wait_until_up(1).unwrap();
    let before = own(&container);
    assert_eq!(before["HostName"], "first");
    let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
    web::serve_page(&host).unwrap();
    web::serve_page(bob.host()).unwrap();
    for scheme in ["socks5h", "http"] {
        let proxy = format!("{scheme}://{PROXY}");
        let page = until("a page of bob", PATIENCE, || {
            get(&host, &["--proxy", &proxy], "http://bob/")
        });
        assert_eq!(page.unwrap().trim(), "hello from bob");
    }
    let page = until("a page of the container", PATIENCE, || {
        web::open_page(bob.host(), "first")
    });
    assert_eq!(page.unwrap().trim(), "hello from box");
    // The routes were announced: the administrator can approve them.
    let inside = ["addr", "add", "10.77.0.1/24", "dev", "lo"];
    host.run("ip", &inside).unwrap();
    tailnet.approve("first", "10.77.0.0/24");
    bob.cli(&["set", "--accept-routes"]).unwrap();
    let page = until("a page behind the container", PATIENCE, || {
        web::open_page(bob.host(), "10.77.0.1")
    });
    assert_eq!(page.unwrap().trim(), "hello from box");
    // Health and counters.
    until("health", PATIENCE, || {
        get(&host, &[], &format!("http://{LOCAL}/healthz"))
    })
    .unwrap();
    let metrics = get(&host, &[], &format!("http://{LOCAL}/metrics")).unwrap();
    assert!(
        metrics.contains("\ntailscaled_advertised_routes 1\n"),
        "{metrics}"
    );
    // Another start with other settings is the same node.
    container.stop().unwrap();
    container
        .restart(&[
            ("TS_AUTH_ONCE", "true"),
            ("TS_HOSTNAME", "second"),
            ("TS_ROUTES", ""),
        ])
        .unwrap();
    container.wait_until_up(2).unwrap();
    let after = until("the new name", PATIENCE, || {
        let own = own(&container);
        if own["HostName"] == "second" {
            Ok(own)
        } else {
            Err(own.to_string())
        }
    })
    .unwrap();
    assert_eq!(after["PublicKey"], before["PublicKey"]);
    until("the routes to be withdrawn", PATIENCE, || {
        let metrics = get(&host, &[], &format!("http://{LOCAL}/metrics"))?;
        if metrics.contains("\ntailscaled_advertised_routes 0\n") {
            Ok(())
        } else {
            Err(LabError::new(metrics))
        }
    })
    .unwrap();
    container.stop().unwrap();
}

#[test]
fn our_entry_point_serves_without_privileges() {
    serves_without_privileges(EntryPoint::Warren);
}

#[test]
fn containerboot_without_privileges_starts_our_node() {
    serves_without_privileges(EntryPoint::Containerboot);
}

fn serves_with_an_interface(entry: EntryPoint) {
    let Some(mut lab) = lab() else { return };
    let variables = [("TS_USERSPACE", "false"), ("TS_HOSTNAME", "first")];
    let Some((tailnet, host, mut container)) = container(&mut lab, entry, true, &variables) else {
        return;
    };
    container.wait_until_up(1).unwrap();
    host.run("ip", &["link", "show", "tailscale0"]).unwrap();
    let before = own(&container);
    let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
    web::serve_page(&host).unwrap();
    web::serve_page(bob.host()).unwrap();
    let to = address(&bob, true).to_string();
    let page = until("a page of bob", PATIENCE, || web::open_page(&host, &to));
    assert_eq!(page.unwrap().trim(), "hello from bob");
    let page = until("a page of the container", PATIENCE, || {
        web::open_page(bob.host(), "first")
    });
    assert_eq!(page.unwrap().trim(), "hello from box");
    // A new container with the same state logs in again, as the same node.
    container.stop().unwrap();
    container.restart(&[]).unwrap();
    container.wait_until_up(2).unwrap();
    assert_eq!(own(&container)["TailscaleIPs"], before["TailscaleIPs"]);
    container.stop().unwrap();
    let links = host.run("ip", &["-o", "link"]).unwrap();
    assert!(!links.contains("tailscale0"), "{links}");
}

#[test]
fn our_entry_point_serves_with_an_interface() {
    serves_with_an_interface(EntryPoint::Warren);
}

#[test]
fn containerboot_with_an_interface_starts_our_node() {
    serves_with_an_interface(EntryPoint::Containerboot);
}

#[test]
fn containerboot_forwards_what_comes_from_the_tailnet() {
    let Some(mut lab) = lab() else { return };
    let service = lab.host("service", Place::Open).unwrap();
    web::serve_page(&service).unwrap();
    let target = service.address().to_string();
    let variables = [
        ("TS_USERSPACE", "false"),
        ("TS_DEST_IP", target.as_str()),
        ("TS_HOSTNAME", "proxy"),
        ("TS_DEBUG_FIREWALL_MODE", "nftables"),
    ];
    let entry = EntryPoint::Containerboot;
    let Some((tailnet, host, mut container)) = container(&mut lab, entry, true, &variables) else {
        return;
    };
    host.allow_forwarding().unwrap();
    container.wait_until_up(1).unwrap();
    let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
    let page = until("a page of the service", PATIENCE, || {
        web::open_page(bob.host(), "proxy")
    });
    assert_eq!(page.unwrap().trim(), "hello from service");
}

#[test]
fn a_container_whose_node_cannot_come_up_ends_with_the_reason() {
    let Some(mut lab) = lab() else { return };
    let entry = EntryPoint::Warren;
    let key = [("TS_AUTHKEY", "wk-1-wrong")];
    let Some((_tailnet, host, mut container)) = container(&mut lab, entry, false, &key) else {
        return;
    };
    container.wait_until_ended().unwrap();
    let log = container.log();
    assert!(log.contains("warren container: "), "{log}");
    assert!(log.contains("invalid pre auth key"), "{log}");
    get(&host, &[], &format!("http://{LOCAL}/healthz")).unwrap_err();
}
