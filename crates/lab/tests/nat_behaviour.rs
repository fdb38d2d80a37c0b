//! The lab's routers behave as RFC 4787 names them, seen from outside with
//! plain UDP sockets. All other lab tests depend on this.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use warren_lab::scenario::lab;
use warren_lab::{Host, PATIENCE, Place};

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

/// The source of a packet from `from` as `to` sees it, if one arrives. A packet that has
/// to arrive is sent again, since a link that was just made may lose the first one.
fn source_seen(
    from: &UdpSocket,
    to: &UdpSocket,
    at: SocketAddr,
    arrives: bool,
) -> Option<SocketAddr> {
    // Late packets of earlier calls have other numbers.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let end = Instant::now() + PATIENCE;
    loop {
        from.send_to(&number, at).unwrap();
        let mut packet = [0; 4];
        while let Ok((_, source)) = to.recv_from(&mut packet) {
            if packet == number {
                return Some(source);
            }
        }
        if !arrives || Instant::now() > end {
            return None;
        }
    }
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
        let passes = place != Place::NoUdp;
        let seen_one = source_seen(&inner, &one_socket, at(&one), passes);
        let Some(seen_one) = seen_one else {
            assert_eq!(place, Place::NoUdp, "{place}: nothing came through");
            continue;
        };
        assert_ne!(place, Place::NoUdp);
        assert_eq!(seen_one.ip(), host.outside_address(), "{place}");

        // Nothing was sent to the third host: only filters without a condition let it in.
        let is_open = matches!(place, Place::Cone | Place::Open);
        let uninvited = source_seen(&two_socket, &inner, seen_one, is_open).is_some();
        assert_eq!(uninvited, is_open, "{place}");

        let seen_two = source_seen(&inner, &two_socket, at(&two), true).unwrap();
        let same_mapping = seen_one == seen_two;
        assert_eq!(
            same_mapping,
            place != Place::Hard,
            "{place}: {seen_one} and {seen_two}"
        );

        let answer = source_seen(&two_socket, &inner, seen_two, true);
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
    assert_eq!(source_seen(&open_socket, &inner, inner_at, false), None);
    assert_eq!(
        source_seen(&inner, &open_socket, open_at, true),
        Some(inner_at)
    );
    assert_eq!(
        source_seen(&open_socket, &inner, inner_at, true),
        Some(open_at)
    );
}

#[test]
fn a_cut_cable_and_its_repair() {
    let Some(mut lab) = lab() else { return };
    let one = lab.host("one", Place::Open).unwrap();
    let two = lab.host("two", Place::Open).unwrap();
    let (from, to) = (socket(&one, 5000), socket(&two, 5000));
    let at = SocketAddr::new(two.address(), 5000);
    assert!(source_seen(&from, &to, at, true).is_some());
    two.block_udp_with(&one).unwrap();
    assert!(source_seen(&from, &to, at, false).is_none());
    two.unblock().unwrap();
    assert!(source_seen(&from, &to, at, true).is_some());
}
