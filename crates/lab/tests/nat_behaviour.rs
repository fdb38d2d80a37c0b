//! The lab's routers behave as RFC 4787 names them, seen from outside with
//! plain UDP sockets. All other lab tests depend on this.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use support::lab;
use warren_lab::{Host, Place};

fn socket(host: &Host, port: u16) -> UdpSocket {
    let address = host.address();
    let socket = host
        .inside(move || UdpSocket::bind((address, port)))
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    socket
}

/// What `to` sees as the source of a packet from `from`, if it arrives.
fn source_seen(from: &UdpSocket, to: &UdpSocket, at: SocketAddr) -> Option<SocketAddr> {
    from.send_to(b"hello", at).unwrap();
    to.recv_from(&mut [0; 16]).ok().map(|(_, source)| source)
}

#[test]
fn mapping_and_filtering_of_every_place() {
    let Some(mut lab) = lab() else { return };
    let one = lab.host("one", Place::Open).unwrap();
    let two = lab.host("two", Place::Open).unwrap();
    let (one_socket, two_socket) = (socket(&one, 5000), socket(&two, 5000));
    let at = |host: &Host| SocketAddr::new(host.address(), 5000);

    for (place, name) in [
        (Place::Cone, "cone"),
        (Place::Easy, "easy"),
        (Place::CarrierNat, "cgnat"),
        (Place::Hard, "hard"),
        (Place::Firewall, "fw"),
        (Place::Open, "open"),
        (Place::NoUdp, "noudp"),
    ] {
        let host = lab.host(name, place).unwrap();
        let inner = socket(&host, 41641);
        let seen_one = source_seen(&inner, &one_socket, at(&one));
        let Some(seen_one) = seen_one else {
            assert_eq!(place, Place::NoUdp, "{place}: nothing came through");
            continue;
        };
        assert_ne!(place, Place::NoUdp);
        assert_eq!(seen_one.ip(), host.outside_address(), "{place}");

        // The third party was not called: only open doors let it in.
        let uninvited = source_seen(&two_socket, &inner, seen_one).is_some();
        assert_eq!(
            uninvited,
            matches!(place, Place::Cone | Place::Open),
            "{place}"
        );

        let seen_two = source_seen(&inner, &two_socket, at(&two)).unwrap();
        let same_mapping = seen_one == seen_two;
        assert_eq!(
            same_mapping,
            place != Place::Hard,
            "{place}: {seen_one} and {seen_two}"
        );

        let answer = source_seen(&two_socket, &inner, seen_two);
        assert_eq!(
            answer.map(|source| source.ip()),
            Some(two.address()),
            "{place}"
        );
    }
}

#[test]
fn ipv6_is_routed_and_filtered_but_not_translated() {
    let Some(mut lab) = lab() else { return };
    let open = lab.host("open", Place::Open).unwrap();
    let inside = lab.host("inside", Place::Easy).unwrap();
    let bind = |host: &Host| {
        let address: IpAddr = host.address6().unwrap().into();
        let socket = host
            .inside(move || UdpSocket::bind((address, 5000)))
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        (socket, SocketAddr::new(address, 5000))
    };
    let ((open_socket, open_at), (inner, inner_at)) = (bind(&open), bind(&inside));
    assert_eq!(source_seen(&open_socket, &inner, inner_at), None);
    assert_eq!(source_seen(&inner, &open_socket, open_at), Some(inner_at));
    assert_eq!(source_seen(&open_socket, &inner, inner_at), Some(open_at));
}

#[test]
fn a_cut_cable_and_its_repair() {
    let Some(mut lab) = lab() else { return };
    let one = lab.host("one", Place::Open).unwrap();
    let two = lab.host("two", Place::Open).unwrap();
    let (from, to) = (socket(&one, 5000), socket(&two, 5000));
    let at = SocketAddr::new(two.address(), 5000);
    assert!(source_seen(&from, &to, at).is_some());
    two.block_udp_with(&one).unwrap();
    assert!(source_seen(&from, &to, at).is_none());
    two.unblock().unwrap();
    assert!(source_seen(&from, &to, at).is_some());
}
