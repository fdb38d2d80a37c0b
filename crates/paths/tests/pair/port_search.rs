//! Port searches with peers that know nothing of them, that are wrong, or that are hostile.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_paths::{Event, Paths, PortSearchOutcome, SearchSocket, SocketOrder};
use warren_wire::disco::{
    Envelope, Message, PortSearch, PortSearchRefusal, PortSearchStep, looks_like_disco,
};
use warren_wire::stun;

use crate::bad_input::{PEER, disco, engine, events, node, ping, pings, sealed};
use crate::world::ms;

const REGION: RegionId = RegionId(1);

fn outside(last: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, last])
}

/// An engine whose NAT was measured: every server saw the same port, or each another.
fn measured(now: Instant, varies: bool) -> Paths {
    let mut paths = engine(now);
    let sent = events(&mut paths);
    answer_stun(&mut paths, now, &sent, varies);
    for region in [1, 2] {
        paths.relay_connected(now, RegionId(region));
    }
    paths
}

/// Answers the questions to STUN servers among the events.
fn answer_stun(paths: &mut Paths, now: Instant, events: &[Event], varies: bool) {
    for event in events {
        let Event::SendUdp { to, packet } = event else {
            continue;
        };
        if let Ok(request) = stun::Request::parse(packet) {
            let IpAddr::V4(server) = to.ip() else {
                continue;
            };
            let port = 5_000 + u16::from(server.octets()[3]) * u16::from(varies);
            let seen = SocketAddr::new(outside(1), port);
            let response = stun::Response::to(&request, seen).emit();
            assert!(paths.handle_udp(now, *to, &response));
        }
    }
}

/// The steps of port searches that were sent to the peer through a relay.
fn steps(events: &[Event]) -> Vec<PortSearch> {
    let key = disco(2).shared_with(disco(1).public().as_bytes()).unwrap();
    let read = |event: &Event| {
        let Event::SendRelay { packet, .. } = event else {
            return None;
        };
        let opened = key.open(Envelope::parse(packet).ok()?.sealed).ok()?;
        match Message::parse(&opened) {
            Ok(Message::PortSearch(search)) => Some(search),
            _ => None,
        }
    };
    events.iter().filter_map(read).collect()
}

fn orders(events: &[Event]) -> Vec<SocketOrder> {
    let orders = events.iter().filter_map(|event| match event {
        Event::Sockets(order) => Some(order.clone()),
        _ => None,
    });
    orders.collect()
}

/// Lets time pass while packets for the peer are sent; all events of it.
fn pass(paths: &mut Paths, now: &mut Instant, time: Duration) -> Vec<Event> {
    let end = *now + time;
    let varies = paths.net_info().mapping_varies_by_dest_ip == Some(true);
    let mut all = events(paths);
    while *now < end {
        *now += ms(5);
        if (*now - (end - time)).as_millis().is_multiple_of(1_000) {
            paths.note_sent(*now, PEER);
        }
        paths.handle_timeout(*now);
        let sent = events(paths);
        answer_stun(paths, *now, &sent, varies);
        all.extend(sent);
        all.extend(events(paths));
    }
    all
}

fn receive(paths: &mut Paths, now: Instant, nonce: u8, id: u32, step: PortSearchStep) {
    let message = Message::PortSearch(PortSearch { id, step });
    assert!(paths.handle_relay(now, REGION, node(2), &sealed(&disco(2), nonce, &message)));
}

fn offer(last: u8) -> PortSearchStep {
    let outside = outside(last);
    PortSearchStep::Offer {
        outside,
        needed: true,
    }
}

#[test]
fn a_peer_that_answers_no_offer_is_sent_four_and_one_forecast_is_tried() {
    let mut now = Instant::now();
    let mut paths = measured(now, true);
    paths.note_sent(now, PEER);
    let all = pass(&mut paths, &mut now, Duration::from_secs(120));
    let offers = steps(&all);
    assert_eq!(offers.len(), 4, "{offers:?}");
    let expected = offer(1);
    assert!(offers.iter().all(|offer| offer.step == expected));
    // Five sockets ask four questions, and are closed when there is no answer.
    let orders = orders(&all);
    assert!(matches!(orders[0], SocketOrder::Open { count: 5, .. }));
    assert!(
        orders[1..5]
            .iter()
            .all(|order| matches!(order, SocketOrder::Send { .. }))
    );
    assert!(matches!(orders[5..], [SocketOrder::Close { .. }]));
    let outcome = paths.port_search(PEER).unwrap().1;
    assert_eq!(outcome, PortSearchOutcome::Unanswered);
}

#[test]
fn a_search_is_bounded_and_a_failed_one_is_repeated_after_ever_longer_pauses() {
    let mut now = Instant::now();
    let mut paths = measured(now, false);
    paths.note_sent(now, PEER);
    pass(&mut paths, &mut now, ms(100));
    let mut accepted = Vec::new();
    let mut sent = 0;
    for second in 0..130 {
        // The same offer again: it is answered while its search runs.
        receive(&mut paths, now, second, 7, offer(9));
        let all = pass(&mut paths, &mut now, Duration::from_secs(1));
        let target = SocketAddr::new(outside(1), 5_000);
        let is_accepted = steps(&all)[0].step == PortSearchStep::Accept { target };
        accepted.extend(is_accepted.then_some(second));
        let to_nat = pings(&all);
        let to_nat = to_nat.iter().filter(|(to, _)| to.ip() == outside(9));
        let count = to_nat.count();
        assert!(count <= 505, "{count} probes in a second");
        sent += count;
    }
    let is_first = |second: &&u8| {
        second
            .checked_sub(1)
            .is_some_and(|it| !accepted.contains(&it))
    };
    let began: Vec<u8> = accepted.iter().filter(is_first).copied().collect();
    assert_eq!(began.len(), 2, "{accepted:?}");
    assert!(
        (20..24).contains(&began[0]) && (60..68).contains(&began[1]),
        "{began:?}"
    );
    assert_eq!(sent, 3 * 2_048);
    assert_eq!(paths.counters().search_probes_sent, sent as u64);
    let outcome = paths.port_search(PEER).unwrap().1;
    assert_eq!(outcome, PortSearchOutcome::NotFound);
}

/// Otherwise it could have us send without end to an address that it names.
#[test]
fn a_peer_that_leaves_each_search_for_another_gets_ever_fewer() {
    let mut now = Instant::now();
    let mut paths = measured(now, false);
    paths.note_sent(now, PEER);
    let mut searches = Vec::new();
    for second in 0..250 {
        receive(&mut paths, now, second, 100 + u32::from(second), offer(10));
        let before = paths.counters().searches_started;
        let all = pass(&mut paths, &mut now, Duration::from_secs(1));
        let is_accepted = matches!(steps(&all)[0].step, PortSearchStep::Accept { .. });
        searches.extend(is_accepted.then_some(second));
        assert_eq!(paths.counters().searches_started, before);
    }
    let gaps: Vec<_> = searches.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        gaps.windows(2).all(|pair| pair[1] >= pair[0]),
        "{searches:?}"
    );
    assert!(
        gaps.last() >= Some(&80) && searches.len() <= 8,
        "{searches:?}"
    );
    assert!(paths.counters().search_probes_sent <= 8 * 505);
}

/// A relay may take longer than an offer waits.
#[test]
fn a_late_answer_begins_the_search_and_one_to_no_offer_ends_the_peers() {
    let mut now = Instant::now();
    let mut paths = measured(now, true);
    paths.note_sent(now, PEER);
    let mut offered = steps(&pass(&mut paths, &mut now, ms(1_000)));
    let id = offered[0].id;
    assert_eq!(
        paths.port_search(PEER).unwrap().1,
        PortSearchOutcome::Unanswered
    );
    offered.extend(steps(&pass(&mut paths, &mut now, ms(2_500))));
    assert!(offered.len() > 1 && offered.iter().all(|offer| offer.id == id));
    let target = SocketAddr::new(outside(7), 4_000);
    receive(&mut paths, now, 1, id, PortSearchStep::Accept { target });
    assert_eq!(paths.counters().searches_started, 1);
    events(&mut paths);

    // The peer leaves it, and accepts it once more.
    let ended = PortSearchStep::Refuse(PortSearchRefusal::Ended);
    receive(&mut paths, now, 2, id, ended);
    let outcome = paths.port_search(PEER).unwrap().1;
    assert_eq!(
        outcome,
        PortSearchOutcome::Refused(PortSearchRefusal::Ended)
    );
    assert_eq!(
        orders(&events(&mut paths)),
        [SocketOrder::Close { search: id }]
    );
    receive(&mut paths, now, 3, id, PortSearchStep::Accept { target });
    assert_eq!(paths.counters().searches_started, 1);
    assert_eq!(steps(&events(&mut paths)), [PortSearch { id, step: ended }]);
    let again = steps(&pass(&mut paths, &mut now, Duration::from_secs(5)));
    assert!(!again.is_empty(), "and it is offered again");
}

#[test]
fn addresses_that_no_nat_has_are_not_probed() {
    let now = Instant::now();
    let mut paths = measured(now, false);
    paths.note_sent(now, PEER);
    let wrong = [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.1.1",
        "::1",
        "2001:db8::1",
        "10.0.0.1",
    ];
    for (nonce, ip) in wrong.into_iter().enumerate() {
        let step = PortSearchStep::Offer {
            outside: ip.parse().unwrap(),
            needed: true,
        };
        receive(&mut paths, now, nonce as u8, 1, step);
    }
    assert_eq!(paths.counters().search_messages_refused, 8);
    assert_eq!(paths.counters().searches_started, 0);
    for answer in steps(&events(&mut paths)) {
        assert!(matches!(answer.step, PortSearchStep::Refuse(_)));
    }
}

#[test]
fn the_reason_of_a_refusal_is_sent_and_kept() {
    for (varies, off, needed, reason) in [
        (true, false, true, PortSearchRefusal::PortVaries),
        (false, true, true, PortSearchRefusal::SwitchedOff),
        (false, false, false, PortSearchRefusal::NotNeeded),
    ] {
        let now = Instant::now();
        let mut paths = measured(now, varies);
        events(&mut paths);
        paths.set_port_search(now, !off);
        let step = PortSearchStep::Offer {
            outside: outside(3),
            needed,
        };
        receive(&mut paths, now, 1, 1, step);
        let answers = steps(&events(&mut paths));
        assert_eq!(answers[0].step, PortSearchStep::Refuse(reason));

        // The other side.
        let mut now = Instant::now();
        let mut paths = measured(now, true);
        paths.note_sent(now, PEER);
        let offered = steps(&pass(&mut paths, &mut now, ms(300)));
        receive(
            &mut paths,
            now,
            1,
            offered[0].id,
            PortSearchStep::Refuse(reason),
        );
        let outcome = paths.port_search(PEER).unwrap().1;
        assert_eq!(outcome, PortSearchOutcome::Refused(reason));
    }
}

/// An engine behind a NAT with random ports whose offer was accepted, and its search.
fn searching(now: &mut Instant, target: SocketAddr) -> (Paths, u32) {
    let mut paths = measured(*now, true);
    paths.note_sent(*now, PEER);
    let offered = steps(&pass(&mut paths, now, ms(300)));
    let id = offered[0].id;
    let accept = PortSearchStep::Accept { target };
    receive(&mut paths, *now, 1, id + 1, accept);
    assert_eq!(paths.counters().search_messages_refused, 1, "another id");
    receive(&mut paths, *now, 2, id, accept);
    let all = events(&mut paths);
    let ended = PortSearchStep::Refuse(PortSearchRefusal::Ended);
    assert_eq!(
        steps(&all).iter().map(|it| it.step).collect::<Vec<_>>(),
        [ended]
    );
    let opened = orders(&all);
    let open = SocketOrder::Open {
        search: id,
        count: 256,
    };
    assert_eq!(opened, [open]);
    receive(&mut paths, *now, 3, id, accept);
    assert_eq!(paths.counters().search_messages_refused, 2, "once");
    (paths, id)
}

#[test]
fn only_what_the_peer_sealed_and_sent_from_its_address_ends_a_search() {
    let mut now = Instant::now();
    let target = SocketAddr::new(outside(7), 4_000);
    let (mut paths, search) = searching(&mut now, target);
    let socket = SearchSocket { search, number: 9 };
    let good = sealed(&disco(2), 9, &ping(9, node(2)));
    let elsewhere = SocketAddr::new(outside(8), 4_000);
    let other = SearchSocket {
        search: search + 1,
        number: 9,
    };
    assert!(paths.handle_search_udp(now, socket, elsewhere, &good));
    assert!(paths.handle_search_udp(now, other, target, &good));
    assert!(paths.handle_search_udp(now, socket, target, &[4, 0, 0, 0]));
    let stranger = sealed(&disco(3), 9, &ping(9, node(3)));
    assert!(paths.handle_search_udp(now, socket, target, &stranger));
    assert_eq!(paths.counters().search_datagrams_refused, 4);
    assert_eq!(orders(&events(&mut paths)), []);

    assert!(paths.handle_search_udp(now, socket, target, &good));
    let all = events(&mut paths);
    let keep = SocketOrder::Keep {
        socket,
        remote: target,
    };
    assert_eq!(orders(&all), [keep, SocketOrder::Close { search }]);
    // The pong and a ping follow, through the socket that is kept now.
    let sent = all.iter().filter(|event| {
        matches!(event, Event::SendUdp { to, packet } if *to == target && looks_like_disco(packet))
    });
    assert_eq!(sent.count(), 2);
    // Without a pong the socket is given back.
    let later = pass(&mut paths, &mut now, Duration::from_secs(4));
    assert!(orders(&later).contains(&SocketOrder::Release { remote: target }));
}

#[test]
fn the_sockets_of_a_search_that_finds_nothing_are_closed() {
    let mut now = Instant::now();
    let target = SocketAddr::new(outside(7), 4_000);
    let (mut paths, search) = searching(&mut now, target);
    // The peer does not report that its guesses came to an end.
    let all = pass(&mut paths, &mut now, ms(20_200));
    let orders = orders(&all);
    let probes = orders
        .iter()
        .filter(|order| matches!(order, SocketOrder::Send { to, .. } if *to == target));
    assert_eq!(probes.count(), 256);
    assert_eq!(orders.last(), Some(&SocketOrder::Close { search }));
    assert_eq!(
        orders.len(),
        257,
        "and no other search begins without an answer"
    );
}

#[test]
fn a_link_change_and_the_switch_end_a_search() {
    let target = SocketAddr::new(outside(7), 4_000);
    for change in [Paths::link_changed, |paths: &mut Paths, now| {
        paths.set_port_search(now, false);
    }] {
        let mut now = Instant::now();
        let (mut paths, search) = searching(&mut now, target);
        change(&mut paths, now);
        let all = events(&mut paths);
        assert_eq!(orders(&all), [SocketOrder::Close { search }]);
        let ended = PortSearchStep::Refuse(PortSearchRefusal::Ended);
        let report = PortSearch {
            id: search,
            step: ended,
        };
        assert!(steps(&all).contains(&report), "the peer need not go on");
    }
}

#[test]
fn a_step_that_did_not_come_through_a_relay_is_refused() {
    let now = Instant::now();
    let mut paths = measured(now, false);
    let message = Message::PortSearch(PortSearch {
        id: 1,
        step: offer(1),
    });
    let from = SocketAddr::new(outside(2), 1);
    assert!(paths.handle_udp(now, from, &sealed(&disco(2), 1, &message)));
    assert_eq!(paths.counters().disco_wrong_transport, 1);
    assert_eq!(paths.counters().searches_started, 0);
}
