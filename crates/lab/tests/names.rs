//! Names of the internet on a machine whose resolv.conf is ours.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use warren_lab::scenario::{Tailnet, installed, lab};
use warren_lab::{Host, Kind, PATIENCE, Place, RelayKind, until};

const ADDRESSES: u8 = 40;

/// The answer of a name server to any question: so many addresses for its name.
fn answer(question: &[u8], addresses: u8) -> Vec<u8> {
    // Header, name, type and class; what follows (EDNS) is not repeated.
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap();
    let end = 12 + name + 5;
    let is_v4 = question[end - 3] == 1;
    let mut answer = question[..end].to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80;
    answer[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    for host in (1..=addresses).filter(|_| is_v4) {
        answer[7] = host;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(Ipv4Addr::new(198, 51, 100, host).octets());
    }
    answer
}

/// A name server on `host` that gives each name so many addresses, and cuts answers over
/// UDP at 512 bytes, until the test ends.
fn serve(host: &Host, addresses: u8) {
    let udp = host
        .inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)))
        .unwrap();
    let tcp = host
        .inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 53)))
        .unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((len, from)) = udp.recv_from(&mut question) {
            let mut whole = answer(&question[..len], addresses);
            if whole.len() > 512 {
                let name = whole[12..].iter().position(|byte| *byte == 0).unwrap();
                whole.truncate(12 + name + 5);
                whole[2] |= 0x02;
                whole[7] = 0;
            }
            drop(udp.send_to(&whole, from));
        }
    });
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut len = [0; 2];
            if stream.read_exact(&mut len).is_err() {
                continue;
            }
            let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
            if stream.read_exact(&mut question).is_ok() {
                let whole = answer(&question, addresses);
                let len = u16::try_from(whole.len()).unwrap().to_be_bytes();
                drop(stream.write_all(&[&len[..], &whole].concat()));
            }
        }
    });
}

/// The addresses of a name, as programs of `host` find them.
fn addresses(host: &Host, name: &str) -> Result<Vec<String>, String> {
    let found = host
        .run("getent", &["ahostsv4", name])
        .map_err(|error| error.to_string())?;
    let lines = found.lines().filter(|line| line.contains("STREAM"));
    let found = lines.filter_map(|line| line.split_whitespace().next());
    let found: Vec<String> = found.map(str::to_owned).collect();
    match found.is_empty() {
        true => Err("none".to_owned()),
        false => Ok(found),
    }
}

fn resolved(host: &Host) -> Result<usize, String> {
    Ok(addresses(host, "many.example")?.len())
}

/// The C library asks without EDNS, so an answer that the server cuts at 512 bytes
/// sends it to TCP, which our name server does not have.
#[test]
fn name_with_many_addresses_has_all_of_them_with_us_too() {
    let Some(mut lab) = lab() else { return };
    let Some(()) = installed(Kind::Warren) else {
        return;
    };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let [dns, alice] = ["dns", "alice"].map(|name| lab.host(name, Place::Open).unwrap());
    serve(&dns, ADDRESSES);
    let text = format!(
        "nameserver {}\nsearch corp.example\noptions ndots:5 timeout:2\n",
        dns.address()
    );
    let original = text.clone();
    alice
        .inside(move || std::fs::write("/etc/resolv.conf", text))
        .unwrap();
    let count = until("addresses without us", PATIENCE, || resolved(&alice)).unwrap();
    assert_eq!(count, usize::from(ADDRESSES));

    let mut node = tailnet.join(&alice, Kind::Warren);
    let read = || std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let ours = alice.inside(read);
    assert!(ours.contains("nameserver 100.100.100.100\n"), "{ours}");
    assert!(ours.contains("options ndots:5 timeout:2\n"), "{ours}");
    let count = until("addresses with us", PATIENCE, || resolved(&alice)).unwrap();
    assert_eq!(count, usize::from(ADDRESSES));

    node.daemon().stop().unwrap();
    assert_eq!(alice.inside(read), original);
}

/// Waits until a name has so many addresses.
fn until_many(host: &Host, name: &str, wanted: usize) {
    until("another number of addresses", PATIENCE, || {
        let found = addresses(host, name)?;
        match found.len() == wanted {
            true => Ok(()),
            false => Err(format!("{name}: {found:?}")),
        }
    })
    .unwrap();
}

/// Waits until a name has this address alone.
fn until_at(host: &Host, name: &str, wanted: &str) {
    until("another address", PATIENCE, || {
        let found = addresses(host, name)?;
        match found == [wanted] {
            true => Ok(()),
            false => Err(format!("{name}: {found:?}")),
        }
    })
    .unwrap();
}

/// Name servers, search domains and records that an administrator sets while the node is
/// connected.
fn settings_of_the_server_resolve(kind: Kind) {
    let Some(mut lab) = lab() else { return };
    let Some(()) = installed(kind) else { return };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let names = ["dns", "corp", "alice"];
    let [dns, corp, alice] = names.map(|name| lab.host(name, Place::Open).unwrap());
    serve(&dns, 1);
    serve(&corp, 3);
    let text = format!("nameserver {}\n", dns.address());
    alice
        .inside(move || std::fs::write("/etc/resolv.conf", text))
        .unwrap();
    let node = tailnet.join(&alice, kind);
    if kind == Kind::Tailscale {
        node.cli(&["set", "--accept-dns=true"]).unwrap();
    }
    let own = warren_lab::scenario::address(&node, false).to_string();
    until_at(&alice, "web.test", "198.51.100.1");
    let control = |words: &[&str]| tailnet.control.cli(words).unwrap();
    let server = corp.address().to_string();

    control(&["dns", "records", "add", "web.test", "A", "10.99.0.1"]);
    until_at(&alice, "web.test", "10.99.0.1");
    control(&["dns", "records", "add", "alias.test", "CNAME", "alice"]);
    until_at(&alice, "alias.test", &own);
    control(&["dns", "records", "delete", "web.test"]);
    until_at(&alice, "web.test", "198.51.100.1");

    control(&["dns", "split", "corp.test", &server]);
    until_many(&alice, "many.corp.test", 3);
    until_many(&alice, "many.other.test", 1);
    control(&["dns", "set", "--search-domains", "corp.test"]);
    until_many(&alice, "many", 3);
    control(&["dns", "set", "--nameservers", &server]);
    until_many(&alice, "many.other.test", 3);
    control(&["dns", "set", "--unset", "nameservers,split,search-domains"]);
    until_many(&alice, "many.corp.test", 1);
}

#[test]
fn settings_of_the_server_resolve_with_us_after_each_change() {
    settings_of_the_server_resolve(Kind::Warren);
}

#[test]
fn settings_of_the_server_resolve_with_the_official_client_after_each_change() {
    settings_of_the_server_resolve(Kind::Tailscale);
}
