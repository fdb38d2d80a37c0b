//! Our table in the packet filter: as `nft` reads it, beside other people's,
//! and gone afterwards.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::SockRef;

use crate::support::{in_network_namespace, ip, run, with_tun};
use warren_host::BYPASS_MARK;
use warren_host::firewall::{Firewall, FirewallConfig, not_forwarding};
use warren_host::router::{Router, RouterConfig, RouterOptions};
use warren_host::tun::{Tun, VNET_HEADER_LEN};

/// The rules of the namespace as `nft` shows them; `None` without `nft`.
fn ruleset() -> Option<String> {
    let output = Command::new("nft").args(["list", "ruleset"]).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(_) => {
            eprintln!("SKIPPED: the `nft` program is not installed");
            None
        }
    }
}

fn nft(rules: &str) {
    let status = Command::new("nft").arg(rules).status().unwrap();
    assert!(status.success(), "nft {rules}");
}

fn config(snat: bool, stateful: bool) -> FirewallConfig {
    FirewallConfig {
        interface: "warren0".to_owned(),
        tailnet: "100.64.0.0/10".parse().unwrap(),
        routes_everything: false,
        snat,
        stateful,
    }
}

#[test]
fn nft_reads_what_was_written_and_nothing_stays() {
    in_network_namespace(|| {
        if ruleset().is_none() {
            return;
        }
        nft("add table inet others { chain c { type filter hook forward priority 0 ; } ; }");
        let before = ruleset().unwrap();
        let mut firewall = Firewall::open().unwrap();
        assert_eq!(ruleset().unwrap(), before);
        assert!(firewall.apply(Some(&config(true, true))).unwrap());
        let rules = ruleset().unwrap();
        for line in [
            "type filter hook input priority filter; policy accept;",
            "iifname != \"warren0\" iifname != \"lo\" ip saddr 100.64.0.0/10 \
             fib saddr oifname \"warren0\" drop",
            "type filter hook forward priority filter; policy accept;",
            "iifname \"warren0\" meta mark set meta mark & 0xff04ffff | 0x00040000",
            "meta mark & 0x00ff0000 == 0x00040000 accept",
            "oifname \"warren0\" ip saddr 100.64.0.0/10 fib saddr oifname \"warren0\" drop",
            "oifname \"warren0\" ct state ! established,related drop",
            "type nat hook postrouting priority srcnat; policy accept;",
            "meta mark & 0x00ff0000 == 0x00040000 masquerade",
        ] {
            assert!(rules.contains(line), "{line} is not in\n{rules}");
        }
        assert!(!firewall.apply(Some(&config(true, true))).unwrap());
        assert!(firewall.apply(Some(&config(false, false))).unwrap());
        let rules = ruleset().unwrap();
        assert!(
            !rules.contains("masquerade") && !rules.contains("ct state"),
            "{rules}"
        );
        assert_eq!(rules.matches("table inet warren").count(), 1);
        // A second daemon cannot take the table away.
        let refused = Firewall::open().unwrap_err().to_string();
        assert!(refused.contains("not permitted"), "{refused}");
        firewall.cleanup().unwrap();
        firewall.cleanup().unwrap();
        assert_eq!(ruleset().unwrap(), before);
    });
}

#[test]
fn a_killed_daemon_leaves_no_rules_and_a_reload_takes_none() {
    in_network_namespace(|| {
        if ruleset().is_none() {
            return;
        }
        let mut firewall = Firewall::open().unwrap();
        firewall.apply(Some(&config(true, false))).unwrap();
        nft("flush ruleset");
        assert!(ruleset().unwrap().contains("masquerade"));
        // As after kill -9: the descriptor is closed, nothing is cleaned up.
        drop(firewall);
        assert_eq!(ruleset().unwrap(), "");
        // And of a kernel that binds no table to a process.
        nft(
            "add table inet warren { chain forward { type filter hook forward priority 0 ; drop ; } ; }",
        );
        let mut firewall = Firewall::open().unwrap();
        assert_eq!(ruleset().unwrap(), "");
        firewall.apply(Some(&config(false, false))).unwrap();
    });
}

#[test]
fn another_firewall_that_drops_is_named_with_what_helps() {
    in_network_namespace(|| {
        if ruleset().is_none() {
            return;
        }
        let mut firewall = Firewall::open().unwrap();
        firewall.apply(Some(&config(true, false))).unwrap();
        assert!(firewall.in_the_way("warren0").is_empty());
        // As Docker and ufw leave it, beside chains that do not drop.
        nft(
            "add table ip filter { chain FORWARD { type filter hook forward priority 0 ; policy drop ; } ; }",
        );
        nft(
            "add table ip6 mine { chain in { type filter hook input priority 0 ; policy drop ; } ; chain plain { } ; }",
        );
        nft(
            "add table inet open { chain f { type filter hook forward priority 5 ; policy accept ; } ; }",
        );
        let lines = firewall.in_the_way("warren0");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("nft insert rule ip filter FORWARD iifname warren0 accept"),
            "{lines:?}"
        );
        // The command of the message works as it is printed.
        nft("insert rule ip filter FORWARD iifname warren0 accept");
        firewall.cleanup().unwrap();
        assert_eq!(firewall.in_the_way("warren0").len(), 1);
    });
}

#[test]
fn a_machine_that_does_not_forward_is_told_so() {
    in_network_namespace(|| {
        let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/{name}"), value);
        set("ipv4/ip_forward", "0").unwrap();
        set("ipv6/conf/all/forwarding", "0").unwrap();
        let routes = [
            "192.168.1.0/24".parse().unwrap(),
            "2001:db8::/64".parse().unwrap(),
        ];
        let problems = not_forwarding(&routes);
        assert_eq!(problems.len(), 2);
        assert!(
            problems[0].contains("sysctl -w net.ipv4.ip_forward=1"),
            "{problems:?}"
        );
        assert!(
            problems[1].contains("net.ipv6.conf.all.forwarding=1"),
            "{problems:?}"
        );
        assert_eq!(not_forwarding(&routes[..1]).len(), 1);
        assert!(not_forwarding([]).is_empty());
        set("ipv4/ip_forward", "1").unwrap();
        assert_eq!(not_forwarding(&routes).len(), 1);
    });
}

/// An IPv4 packet with a UDP datagram from and to port 4000, without its checksum.
fn datagram(source: Ipv4Addr, destination: Ipv4Addr, content: &[u8]) -> Vec<u8> {
    let len = u8::try_from(28 + content.len()).unwrap();
    let mut header = [
        0x45, 0, 0, len, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let words = header
        .chunks(2)
        .map(|word| u16::from_be_bytes([word[0], word[1]]));
    let mut sum: u32 = words.map(u32::from).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let [high, low] = 4000_u16.to_be_bytes();
    let udp = [high, low, high, low, 0, len - 20, 0, 0];
    [&header[..], &udp, content].concat()
}

/// Only addresses that are routed into the tunnel are ours: other machines live in the
/// same range, in the LAN and behind the way out.
#[test]
fn forged_addresses_of_nodes_are_dropped_and_neighbours_in_the_range_are_not() {
    check_sources(
        &["100.64.0.2/32", "10.9.0.0/16"],
        &[],
        &["100.100.16.5", "100.100.2.136", "100.64.0.2"],
        &["100.100.16.5", "100.100.2.136"],
    );
}

/// With an exit node, the routing tables do not distinguish nodes from others.
#[test]
fn answers_from_the_range_arrive_while_an_exit_node_is_used() {
    check_sources(
        &["0.0.0.0/0"],
        &["100.100.2.136"],
        &["100.100.2.136", "100.100.2.137", "100.64.0.2"],
        &["100.100.2.136"],
    );
}

/// Of `sources`, whose packets come from outside the tunnel, those `expected` arrive.
/// This machine has sent a packet to those that were `asked`.
fn check_sources(
    routes: &'static [&str],
    asked: &'static [&str],
    sources: &'static [&str],
    expected: &'static [&str],
) {
    with_tun(move || {
        let tun = Tun::create("warren0").unwrap();
        // One TUN device stands for the LAN, where packets of any source come from.
        let lan = Tun::create("card0").unwrap();
        for words in [
            "addr add 100.100.16.1/24 dev card0",
            "addr add 192.0.2.1/24 dev card0",
            "link set card0 up",
            "route add default via 192.0.2.254 dev card0",
        ] {
            ip(words);
        }
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/card0/rp_filter", "0").unwrap();
        run(async {
            let mut router = Router::open(tun.name(), RouterOptions::default())
                .await
                .unwrap();
            let config = RouterConfig {
                addresses: ["100.64.0.1".parse().unwrap()].into(),
                routes: routes.iter().map(|it| it.parse().unwrap()).collect(),
                mtu: 1280,
                ..RouterConfig::default()
            };
            router.apply(&config).await.unwrap();
        });
        let mut firewall = Firewall::open().unwrap();
        let config = FirewallConfig {
            routes_everything: routes.contains(&"0.0.0.0/0"),
            ..config(false, false)
        };
        firewall.apply(Some(&config)).unwrap();

        let server = UdpSocket::bind("192.0.2.1:4000").unwrap();
        // As the node's own sockets: its packets go past the tunnel.
        SockRef::from(&server).set_mark(BYPASS_MARK).unwrap();
        for to in asked {
            server.send_to(b"question", (*to, 4000)).unwrap();
        }
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let send = |source: &str, content: &[u8]| {
            let source: Ipv4Addr = source.parse().unwrap();
            let packet = datagram(source, [192, 0, 2, 1].into(), content);
            let frame = [&[0; VNET_HEADER_LEN][..], &packet].concat();
            lan.write(&frame).unwrap();
        };
        // Packets are taken in order, so the last one ends the test.
        for source in sources.iter().chain(&["192.0.2.9"]) {
            send(source, source.as_bytes());
        }
        let mut arrived = Vec::new();
        loop {
            let mut buffer = [0; 64];
            match server.recv_from(&mut buffer) {
                Ok((_, from)) if from.ip() == IpAddr::from([192, 0, 2, 9]) => break,
                Ok((_, from)) => arrived.push(from.ip().to_string()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}, after {arrived:?}"),
            }
        }
        assert_eq!(arrived, expected);
    });
}
