//! Machines behind a node: a LAN behind a subnet router, the internet behind an
//! exit node, in both families, with our programs and with real ones.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use warren_lab::scenario::{Tailnet, address, installed, lab, more};
use warren_lab::{Host, Kind, Lab, Node, PATIENCE, Place, RelayKind, until, web};

const PORT: u16 = 4_000;

/// A UDP server on `host` that records the source of each request.
fn server(host: &Host) -> UdpSocket {
    let socket = host.inside(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)));
    let socket = socket.unwrap();
    let patience = Some(Duration::from_millis(200));
    socket.set_read_timeout(patience).unwrap();
    socket
}

/// Sends a request from `host` to `server` at `to`; returns the source that the server saw.
fn ask(host: &Host, to: IpAddr, server: &UdpSocket) -> IpAddr {
    let any: IpAddr = match to {
        IpAddr::V4(_) => [0, 0, 0, 0].into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = host.inside(move || UdpSocket::bind((any, 0))).unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut number = 0_u32;
    until(
        &format!("an answer of {to} to {}", host.name()),
        PATIENCE,
        || {
            number += 1;
            let question = number.to_be_bytes();
            client.send_to(&question, (to, PORT))?;
            let mut buffer = [0; 64];
            // Questions of earlier attempts may still come.
            let from = loop {
                let (len, from) = server.recv_from(&mut buffer)?;
                if buffer[..len] == question {
                    break from;
                }
            };
            server.send_to(&question, from)?;
            let (len, _) = client.recv_from(&mut buffer)?;
            assert_eq!(buffer[..len], question);
            Ok::<_, std::io::Error>(plain(from))
        },
    )
    .unwrap()
}

/// The address without IPv6 around IPv4.
fn plain(from: SocketAddr) -> IpAddr {
    from.ip().to_canonical()
}

fn rules(host: &Host) -> String {
    host.run("nft", &["list", "ruleset"]).unwrap()
}

/// A node with a LAN whose routes are offered and approved, and a node that
/// accepts them.
struct Site {
    tailnet: Tailnet,
    router: Node,
    alice: Node,
    lan: Host,
}

impl Site {
    fn new(lab: &mut Lab, router: Kind, client: Kind) -> Option<Self> {
        installed(Kind::Warren)?;
        installed(router)?;
        installed(client)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let router_host = lab.host("router", Place::Open).unwrap();
        let lan = lab.lan_host("printer", &router_host).unwrap();
        let alice_host = lab.host("alice", Place::Easy).unwrap();
        let routes = lan_routes(&lan);
        let router = Node::start(&router_host, router).unwrap();
        let offered = format!("--advertise-routes={routes}");
        let mut flags = vec![offered.as_str()];
        flags.extend(more(router.kind()));
        router
            .up(tailnet.control.url(), &tailnet.key, &flags)
            .unwrap();
        tailnet.approve("router", &routes);
        let alice = Node::start(&alice_host, client).unwrap();
        let mut flags = vec!["--accept-routes"];
        flags.extend(more(alice.kind()));
        alice
            .up(tailnet.control.url(), &tailnet.key, &flags)
            .unwrap();
        Some(Self {
            tailnet,
            router,
            alice,
            lan,
        })
    }

    /// The LAN's machine and the router's address in the LAN, by family.
    fn families(&self) -> [(IpAddr, IpAddr); 2] {
        let (v4, v6) = lan_addresses(&self.lan);
        let first = |address: IpAddr| -> IpAddr {
            match address {
                IpAddr::V4(v4) => {
                    let [a, b, c, _] = v4.octets();
                    [a, b, c, 1].into()
                }
                IpAddr::V6(v6) => {
                    let mut segments = v6.segments();
                    segments[7] = 1;
                    Ipv6Addr::from(segments).into()
                }
            }
        };
        [v4, v6].map(|address| (address, first(address)))
    }
}

fn lan_addresses(lan: &Host) -> (IpAddr, IpAddr) {
    (lan.address(), lan.address6().unwrap().into())
}

fn lan_routes(lan: &Host) -> String {
    let net = |address: IpAddr| match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    };
    let (v4, v6) = lan_addresses(lan);
    format!("{},{}", net(v4), net(v6))
}

#[test]
fn a_lan_behind_our_router_is_reached_with_and_without_its_address() {
    let Some(mut lab) = lab() else { return };
    let Some(mut site) = Site::new(&mut lab, Kind::Warren, Kind::Warren) else {
        return;
    };
    // Forwarding is still off, and the router reports it.
    let status = site.router.cli(&["status"]).unwrap();
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        assert!(status.contains(setting), "{status}");
    }
    site.router.host().allow_forwarding().unwrap();
    let status = site.router.cli(&["status"]).unwrap();
    assert!(!status.contains("forwarding is off"), "{status}");

    // The machine in the LAN has no way to a tailnet address: what it answers
    // must seem to come from the router.
    let printer = server(&site.lan);
    for (machine, gateway) in site.families() {
        assert_eq!(ask(site.alice.host(), machine, &printer), gateway);
    }
    web::serve_page(&site.lan).unwrap();
    let (v4, v6) = lan_addresses(&site.lan);
    for address in [v4, v6] {
        let page = until("a page of the LAN", PATIENCE, || {
            web::open_page(site.alice.host(), &address.to_string())
        });
        assert_eq!(page.unwrap().trim(), "hello from printer");
    }

    // Without translation both see each other's own address, and either side
    // may begin, once the LAN knows the way back.
    site.router
        .cli(&["set", "--snat-subnet-routes=false"])
        .unwrap();
    for ((machine, gateway), tailnet) in site
        .families()
        .into_iter()
        .zip(["100.64.0.0/10", "fd7a:115c:a1e0::/48"])
    {
        let way = ["route", "add", tailnet, "via", &gateway.to_string()];
        site.lan.run("ip", &way).unwrap();
        let v6 = machine.is_ipv6();
        let own = address(&site.alice, v6);
        until("no translation", PATIENCE, || {
            match ask(site.alice.host(), machine, &printer) {
                seen if seen == own => Ok(()),
                seen => Err(format!("seen as {seen}")),
            }
        })
        .unwrap();
    }
    let alice = server(site.alice.host());
    for (machine, _) in site.families() {
        let own = address(&site.alice, machine.is_ipv6());
        assert_eq!(ask(&site.lan, own, &alice), machine);
    }

    // Stateful: the LAN may answer, not begin.
    site.router.cli(&["set", "--stateful-filtering"]).unwrap();
    until("the rule", PATIENCE, || {
        let rules = rules(site.router.host());
        if rules.contains("ct state") {
            Ok(())
        } else {
            Err(rules)
        }
    })
    .unwrap();
    for (machine, _) in site.families() {
        let own = address(&site.alice, machine.is_ipv6());
        let knocking = site
            .lan
            .inside(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)));
        let knocking = knocking.unwrap();
        let to = match own {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        for _ in 0..5 {
            knocking.send_to(b"let me in", (to, PORT)).unwrap();
        }
        // A later packet has arrived, so this one would have arrived too.
        assert_eq!(ask(site.alice.host(), machine, &printer), own);
        let received = alice.recv_from(&mut [0; 64]);
        assert!(received.is_err(), "{received:?} began a connection");
    }

    // An orderly end and a crash leave nothing behind.
    assert!(rules(site.router.host()).contains("table inet warren"));
    site.router.daemon().kill().unwrap();
    until("the table to go", PATIENCE, || {
        match rules(site.router.host()) {
            rules if rules.is_empty() => Ok(()),
            rules => Err(rules),
        }
    })
    .unwrap();
    site.router.restart().unwrap();
    let (machine, _) = site.families()[0];
    assert_eq!(
        ask(site.alice.host(), machine, &printer),
        address(&site.alice, false)
    );
    site.router.daemon().stop().unwrap();
    assert_eq!(rules(site.router.host()), "");
    drop(site.tailnet);
}

/// Routes of the LAN, in both families, and TCP.
fn lan_is_reached(router: Kind, client: Kind) {
    let Some(mut lab) = lab() else { return };
    let Some(site) = Site::new(&mut lab, router, client) else {
        return;
    };
    site.router.host().allow_forwarding().unwrap();
    let printer = server(&site.lan);
    for (machine, gateway) in site.families() {
        assert_eq!(ask(site.alice.host(), machine, &printer), gateway);
    }
    web::serve_page(&site.lan).unwrap();
    let page = until("a page of the LAN", PATIENCE, || {
        web::open_page(site.alice.host(), &site.lan.address().to_string())
    });
    assert_eq!(page.unwrap().trim(), "hello from printer");
}

#[test]
fn a_real_client_uses_our_router() {
    lan_is_reached(Kind::Warren, Kind::Tailscale);
}

#[test]
fn ours_uses_a_real_router() {
    lan_is_reached(Kind::Tailscale, Kind::Warren);
}

/// The internet through an exit node, while control, relays and the tunnel
/// itself go around it.
fn internet_is_reached(exit: Kind, client: Kind) {
    let Some(mut lab) = lab() else { return };
    let mut run = || -> Option<()> {
        installed(Kind::Warren)?;
        installed(exit)?;
        installed(client)?;
        let tailnet = Tailnet::new(&mut lab, RelayKind::Warren)?;
        let shop_host = lab.host("shop", Place::Open).unwrap();
        let shop = server(&shop_host);
        let exit_host = lab.host("exit", Place::Open).unwrap();
        exit_host.allow_forwarding().unwrap();
        stand_alone(&exit_host);
        let exit = Node::start(&exit_host, exit).unwrap();
        let mut flags = vec!["--advertise-exit-node"];
        flags.extend(more(exit.kind()));
        exit.up(tailnet.control.url(), &tailnet.key, &flags)
            .unwrap();
        tailnet.approve("exit", "0.0.0.0/0,::/0");
        let alice_host = lab.host("alice", Place::Easy).unwrap();
        let alice = tailnet.join(&alice_host, client);
        let places = |host: &Host| -> [IpAddr; 2] {
            [host.outside_address(), host.address6().unwrap().into()]
        };
        for (shop_at, own) in places(&shop_host).into_iter().zip(places(&alice_host)) {
            assert_eq!(ask(&alice_host, shop_at, &shop), own);
        }
        let exit_address = address(&exit, false).to_string();
        until("the exit node to be offered", PATIENCE, || {
            alice.cli(&["set", &format!("--exit-node={exit_address}")])
        })
        .unwrap();
        for (shop_at, exit_at) in places(&shop_host).into_iter().zip(places(&exit_host)) {
            until("the way through the exit node", PATIENCE, || {
                match ask(&alice_host, shop_at, &shop) {
                    seen if seen == exit_at => Ok(()),
                    seen => Err(format!("seen as {seen}")),
                }
            })
            .unwrap();
        }
        web::serve_page(&shop_host).unwrap();
        let page = until("a page of the internet", PATIENCE, || {
            web::open_page(&alice_host, &shop_host.outside_address().to_string())
        });
        assert_eq!(page.unwrap().trim(), "hello from shop");

        // Neither the tunnel nor what the server says goes through itself.
        alice.wait_until_direct("exit").unwrap();
        let id = tailnet.control.node_id("exit").unwrap();
        tailnet
            .control
            .cli(&["nodes", "rename", &id, "way-out"])
            .unwrap();
        until("the new name", PATIENCE, || alice.peer("way-out")).unwrap();

        // The LAN goes along, unless it is to stay.
        let gateway = match alice_host.address() {
            IpAddr::V4(v4) => std::net::Ipv4Addr::from(u32::from(v4) - 1).to_string(),
            IpAddr::V6(_) => unreachable!("hosts of the lab have IPv4"),
        };
        let way = || alice_host.run("ip", &["route", "get", &gateway]);
        assert!(!way().unwrap().contains("eth0"), "{}", way().unwrap());
        alice.cli(&["set", "--exit-node-allow-lan-access"]).unwrap();
        until("the LAN", PATIENCE, || {
            let way = way().map_err(|error| error.to_string())?;
            if way.contains("eth0") {
                Ok(())
            } else {
                Err(way)
            }
        })
        .unwrap();

        // And back.
        alice.cli(&["set", "--exit-node="]).unwrap();
        for (shop_at, own) in places(&shop_host).into_iter().zip(places(&alice_host)) {
            until("the own way", PATIENCE, || {
                match ask(&alice_host, shop_at, &shop) {
                    seen if seen == own => Ok(()),
                    seen => Err(format!("seen as {seen}")),
                }
            })
            .unwrap();
        }
        Some(())
    };
    run();
}

/// Gives the host its addresses alone, as many providers do: an exit node does
/// not open the network that it is part of, and the lab's internet is one network.
fn stand_alone(host: &Host) {
    let (v4, v6) = (host.outside_address(), host.address6().unwrap());
    for (address, full, net, gateway) in [
        (v4, 32, 24, "203.0.113.1"),
        (v6.into(), 128, 64, "2001:db8::1"),
    ] {
        for words in [
            format!("addr del {address}/{net} dev eth0"),
            format!("addr add {address}/{full} dev eth0"),
            format!("route replace {gateway} dev eth0"),
            format!("route replace default via {gateway} dev eth0"),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            host.run("ip", &words).unwrap();
        }
    }
}

#[test]
fn the_internet_through_our_exit_node() {
    internet_is_reached(Kind::Warren, Kind::Warren);
}

#[test]
fn a_real_client_uses_our_exit_node() {
    internet_is_reached(Kind::Warren, Kind::Tailscale);
}

#[test]
fn ours_uses_a_real_exit_node() {
    internet_is_reached(Kind::Tailscale, Kind::Warren);
}

/// Clouds have name servers and mirrors in 100.64.0.0/10, and carriers have whole
/// networks there.
#[test]
fn others_in_the_range_of_the_tailnet_stay_reachable() {
    let Some(mut lab) = lab() else { return };
    let Some(()) = installed(Kind::Warren) else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let [alice, bob, cloud] =
        ["alice", "bob", "cloud"].map(|name| lab.host(name, Place::Open).unwrap());
    let neighbour = lab.lan_host("neighbour", &alice).unwrap();
    let ip = |host: &Host, words: &str| {
        host.run("ip", &words.split(' ').collect::<Vec<_>>())
            .unwrap()
    };
    let links = ip(&alice, "-o link show");
    let lan = links
        .split_whitespace()
        .find_map(|word| {
            Some(
                word.strip_prefix("lan")?
                    .split(['@', ':'])
                    .next()?
                    .to_owned(),
            )
        })
        .unwrap();
    ip(&alice, &format!("addr add 100.100.16.1/24 dev lan{lan}"));
    ip(&neighbour, "addr add 100.100.16.5/24 dev eth0");
    ip(&cloud, "addr add 100.100.2.136/32 dev eth0");
    // The way out, for this test.
    ip(
        &alice,
        &format!("route add 100.100.0.0/16 via {}", cloud.address()),
    );
    let targets: [(&Host, IpAddr); 2] = [
        (&neighbour, [100, 100, 16, 5].into()),
        (&cloud, [100, 100, 2, 136].into()),
    ];
    let servers = targets.map(|(host, to)| (server(host), to));
    for (server, to) in &servers {
        ask(&alice, *to, server);
    }
    let node = tailnet.join(&alice, Kind::Warren);
    let bob = tailnet.join(&bob, Kind::Warren);
    for (server, to) in &servers {
        ask(&alice, *to, server);
    }
    // The neighbour reaches this machine too, and the tailnet works.
    let own = server(&alice);
    ask(&neighbour, [100, 100, 16, 1].into(), &own);
    drop(own);
    warren_lab::scenario::traffic_flows(&node, &bob);
    let status = node.status_json().unwrap();
    assert!(
        status["Health"].as_array().is_none_or(Vec::is_empty),
        "{status}"
    );
}

/// A machine that accepts a route to the network that it is in goes on reaching its
/// neighbours directly, and says so.
#[test]
fn network_of_this_machine_is_not_given_away_to_an_accepted_route() {
    let Some(mut lab) = lab() else { return };
    let Some(site) = Site::new(&mut lab, Kind::Warren, Kind::Warren) else {
        return;
    };
    let (v4, _) = lan_addresses(&site.lan);
    let IpAddr::V4(octets) = v4 else {
        unreachable!("an IPv4 address")
    };
    let [a, b, c, _] = octets.octets();
    // Another network with the same addresses, on the side of alice.
    let near = lab.lan_host("near", site.alice.host()).unwrap();
    let ip = |host: &Host, words: String| {
        host.run("ip", &words.split(' ').collect::<Vec<_>>())
            .unwrap()
    };
    let links = ip(site.alice.host(), "-o link show".to_owned());
    let lan = links
        .split_whitespace()
        .find_map(|word| {
            Some(
                word.strip_prefix("lan")?
                    .split(['@', ':'])
                    .next()?
                    .to_owned(),
            )
        })
        .unwrap();
    ip(
        site.alice.host(),
        format!("addr add {a}.{b}.{c}.77/24 dev lan{lan}"),
    );
    ip(&near, format!("addr add {a}.{b}.{c}.78/24 dev eth0"));
    let neighbour = server(&near);
    let from = ask(site.alice.host(), [a, b, c, 78].into(), &neighbour);
    assert_eq!(from, IpAddr::from([a, b, c, 77]));
    until("the overlap in the status", PATIENCE, || {
        let status = site.alice.status_json()?;
        let text = status["Health"].to_string();
        if text.contains("is reached directly") {
            Ok(())
        } else {
            Err(warren_lab::LabError::new(text))
        }
    })
    .unwrap();
}
