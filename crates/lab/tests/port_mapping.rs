//! Port mappings at a real router (`miniupnpd`): two nodes behind NATs that no hole can be
//! punched through become direct, and the router is left as it was.
#![allow(clippy::unwrap_used)]

use warren_lab::scenario::{Tailnet, installed, lab, skip, traffic_flows};
use warren_lab::{
    Gateway, Host, HostOptions, Kind, Lab, LabError, MappingProtocol, Node, PATIENCE, Place,
    RelayKind, until,
};

/// A host without IPv6, over which it would be reached directly.
fn host(lab: &mut Lab, name: &str) -> Host {
    let options = HostOptions { ipv4_only: true };
    lab.host_with(name, Place::Hard, options).unwrap()
}

/// Waits until the router holds `count` mappings of our port.
fn holds(gateway: &Gateway, count: usize) {
    let what = format!("{count} mappings at the router");
    until(&what, PATIENCE, || {
        let mappings = gateway.mappings()?;
        let ours = mappings.iter().filter(|rule| rule.ends_with(":41641"));
        match ours.count() == count {
            true => Ok(()),
            false => Err(LabError::new(mappings.join("\n"))),
        }
    })
    .unwrap();
}

fn maps(protocols: &[MappingProtocol], shown: &str) {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    if Gateway::program().is_none() {
        return skip("miniupnpd is neither in $WARREN_PEERS nor in PATH").unwrap_or_default();
    }
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let alice_host = host(&mut lab, "alice");
    let gateway = Gateway::start(&lab, &alice_host, protocols).unwrap();
    let mut alice = tailnet.join(&alice_host, Kind::Warren);
    let bob = tailnet.join(&host(&mut lab, "bob"), Kind::Warren);
    holds(&gateway, 1);
    traffic_flows(&bob, &alice);
    let direct = bob.wait_until_direct("alice").unwrap();
    assert!(direct.starts_with("11.1.1."), "{direct}");
    until("netcheck to show the protocols", PATIENCE, || {
        let report = alice.cli(&["netcheck"])?;
        match report.contains(&format!("PortMapping: {shown}\n")) {
            true => Ok(()),
            false => Err(LabError::new(report)),
        }
    })
    .unwrap();

    alice.daemon().stop().unwrap();
    holds(&gateway, 0);
    alice.restart().unwrap();
    holds(&gateway, 1);
    // The next daemon goes on with the mapping of one that was killed.
    alice.daemon().kill().unwrap();
    holds(&gateway, 1);
    alice.restart().unwrap();
    traffic_flows(&bob, &alice);
    bob.wait_until_direct("alice").unwrap();
    holds(&gateway, 1);
    // Or it deletes it, where it must not map.
    alice.daemon().kill().unwrap();
    alice.set_environment(&[("TS_DISABLE_PORTMAPPER", "true")]);
    alice.restart().unwrap();
    holds(&gateway, 0);
    traffic_flows(&bob, &alice);
    assert_eq!(gateway.mappings().unwrap(), Vec::<String>::new());
}

#[test]
fn pcp_makes_a_pair_behind_hard_nats_direct() {
    maps(&[MappingProtocol::Pcp], "PCP");
}

#[test]
fn nat_pmp_makes_a_pair_behind_hard_nats_direct() {
    maps(&[MappingProtocol::NatPmp], "NAT-PMP");
}

#[test]
fn upnp_makes_a_pair_behind_hard_nats_direct() {
    maps(&[MappingProtocol::Upnp], "UPnP");
}

#[test]
fn all_protocols_of_a_router_are_shown() {
    use MappingProtocol::{NatPmp, Pcp, Upnp};
    maps(&[Upnp, NatPmp, Pcp], "UPnP, NAT-PMP, PCP");
}

/// The router stays, the address of the node changes: the old mapping leads nowhere.
#[test]
fn a_node_that_gets_another_address_has_a_mapping_to_it() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        if Gateway::program().is_none() {
            return skip("miniupnpd is neither in $WARREN_PEERS nor in PATH");
        }
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let alice_host = host(lab, "alice");
        let all = [
            MappingProtocol::Upnp,
            MappingProtocol::NatPmp,
            MappingProtocol::Pcp,
        ];
        let gateway = Gateway::start(lab, &alice_host, &all).unwrap();
        let alice = tailnet.join(&alice_host, Kind::Warren);
        let bob = tailnet.join(&host(lab, "bob"), Kind::Warren);
        holds(&gateway, 1);

        let old = alice_host.address().to_string();
        let network = old.strip_suffix(".2").unwrap();
        for command in [
            "addr flush dev eth0".to_owned(),
            format!("addr add {network}.3/24 dev eth0"),
            format!("route add default via {network}.1"),
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            alice_host.run("ip", &words).unwrap();
        }
        let rule = format!("dnat ip to {network}.3:41641");
        until("a mapping to the new address", PATIENCE, || {
            let mappings = gateway.mappings()?;
            match mappings.iter().any(|mapping| mapping.ends_with(&rule)) {
                true => Ok(()),
                false => Err(LabError::new(mappings.join("\n"))),
            }
        })
        .unwrap();
        traffic_flows(&bob, &alice);
        bob.wait_until_direct("alice").unwrap();
        Some(())
    };
    run(&mut lab);
}

/// An official client sends to the mapped address of a node of ours.
#[test]
fn an_official_client_uses_our_mapping() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(Kind::Tailscale)?;
        if Gateway::program().is_none() {
            return skip("miniupnpd is neither in $WARREN_PEERS nor in PATH");
        }
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let alice_host = host(lab, "alice");
        let gateway = Gateway::start(lab, &alice_host, &[MappingProtocol::Pcp]).unwrap();
        let alice = tailnet.join(&alice_host, Kind::Warren);
        let bob: Node = tailnet.join(&host(lab, "bob"), Kind::Tailscale);
        holds(&gateway, 1);
        traffic_flows(&bob, &alice);
        until("a direct path", PATIENCE, || {
            traffic_flows(&bob, &alice);
            bob.wait_until_direct("alice").map(drop)
        })
        .unwrap();
        Some(())
    };
    run(&mut lab);
}
