//! A port mapper with routers of many kinds: honest, half-broken, hostile and
//! absent.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use warren_node_types::Family;
use warren_portmap::{
    KeptMapping, MappingProtocols, Output, PortMapReport, PortMapper, Response, Router,
};
use warren_testkit::{CountingEntropy, SeededEntropy};
use warren_wire::{nat_pmp, pcp};

use crate::upnp_router::UpnpRouter;

mod upnp_router;

const LOCAL: &str = "10.0.0.2";
const PORT: u16 = 41641;

/// The behaviour of the router.
#[derive(Debug, Clone)]
struct Kind {
    pcp: bool,
    nat_pmp: bool,
    upnp: Option<UpnpRouter>,
    /// Every so many requests are lost; 0: none.
    loses: u32,
    lifetime: u32,
    refuses: bool,
}

const HONEST: Kind = Kind {
    pcp: true,
    nat_pmp: true,
    upnp: None,
    loses: 0,
    lifetime: 7200,
    refuses: false,
};

struct World {
    start: Instant,
    now: Instant,
    mapper: PortMapper,
    kind: Kind,
    external: Ipv4Addr,
    requests: u32,
    /// The mapping that the router has now, and the protocol of its last request.
    mapped: Option<(u16, &'static str)>,
    /// The nonce of the PCP mapping: the router takes no other one.
    nonce: Option<[u8; 12]>,
    /// The record on disk.
    kept: Option<KeptMapping>,
    reports: Vec<(Duration, PortMapReport)>,
    /// Exchanges that have not ended: id, port, request.
    waiting: VecDeque<(u64, u16, Vec<u8>)>,
    /// Exchanges end when a test says so.
    is_slow: bool,
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn router(last: u8) -> Router {
    Router {
        router: Ipv4Addr::new(10, 0, 0, last).into(),
        local: LOCAL.parse().unwrap(),
    }
}

impl World {
    fn new(kind: Kind) -> Self {
        let now = Instant::now();
        let mut world = Self {
            start: now,
            now,
            mapper: PortMapper::new(Family::V4, Box::new(CountingEntropy(1))),
            kind,
            external: Ipv4Addr::new(198, 51, 100, 1),
            requests: 0,
            mapped: None,
            nonce: None,
            kept: None,
            reports: Vec::new(),
            waiting: VecDeque::new(),
            is_slow: false,
        };
        world.mapper.want(now, Some(PORT));
        world.mapper.set_router(now, Some(router(1)));
        world.drain();
        world
    }

    /// The process is killed, and the next one begins with what is on disk.
    fn kill_and_start(&mut self) {
        self.mapper = PortMapper::new(Family::V4, Box::new(SeededEntropy(9)));
        self.reports.clear();
        let text = serde_json::to_string(&self.kept).unwrap();
        if let Some(kept) = serde_json::from_str(&text).unwrap() {
            self.mapper.restore(kept);
        }
        self.mapper.set_router(self.now, Some(router(1)));
        self.drain();
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        while let Some(at) = self.mapper.next_deadline().filter(|at| *at <= end) {
            assert!(at >= self.now, "a deadline in the past");
            self.now = at;
            self.mapper.handle_timeout(at);
            self.drain();
            steps += 1;
            assert!(steps < 10_000, "the clock stands still");
        }
        self.now = end;
    }

    /// The exchange that waits longest ends.
    fn end_exchange(&mut self) {
        if let Some((id, port, request)) = self.waiting.pop_front() {
            let kind = self.kind.upnp.as_mut();
            let answer = kind.and_then(|it| it.exchange(port, &request, self.external));
            let answer = answer.and_then(|bytes| Response::parse(&bytes, true).ok());
            self.mapper.handle_exchange(self.now, id, answer.as_ref());
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.mapper.poll_output() {
            match output {
                Output::Report(report) => self.reports.push((self.now - self.start, report)),
                Output::Keep(kept) => self.kept = kept,
                Output::Exchange { id, to, request } => {
                    assert_eq!(to.ip(), router(1).router, "no other machine is asked");
                    self.requests += 1;
                    self.waiting.push_back((id, to.port(), request));
                    if !self.is_slow {
                        self.end_exchange();
                    }
                }
                Output::Send { to, packet } if to.port() == 1900 => {
                    let kind = self.kind.upnp.as_ref();
                    if let Some(answer) = kind.and_then(|kind| kind.search(to, &packet)) {
                        let from = "10.0.0.1:1900".parse().unwrap();
                        self.mapper.handle_datagram(self.now, from, &answer);
                    }
                }
                Output::Send { to, packet } => {
                    assert_eq!(to, "10.0.0.1:5351".parse().unwrap());
                    self.requests += 1;
                    let loses = self.kind.loses;
                    if loses == 0 || !self.requests.is_multiple_of(loses) {
                        self.answer(to, &packet);
                    }
                }
            }
        }
    }

    fn answer(&mut self, router: SocketAddr, packet: &[u8]) {
        let answer = if let Some(request) = nat_pmp::Request::parse(packet) {
            self.kind.nat_pmp.then(|| self.answer_nat_pmp(request))
        } else {
            let request = pcp::Request::parse(packet).unwrap();
            assert_eq!(request.client, LOCAL.parse::<IpAddr>().unwrap());
            if self.kind.pcp {
                Some(self.answer_pcp(request))
            } else {
                let refusal = nat_pmp::Refusal::UnsupportedVersion;
                let refused = nat_pmp::Response::Refused { opcode: 0, refusal };
                self.kind.nat_pmp.then(|| refused.emit())
            }
        };
        if let Some(answer) = answer {
            self.mapper.handle_datagram(self.now, router, &answer);
        }
    }

    fn answer_nat_pmp(&mut self, request: nat_pmp::Request) -> Vec<u8> {
        let response = match request {
            nat_pmp::Request::ExternalAddress => nat_pmp::Response::ExternalAddress {
                epoch: 1,
                address: self.external,
            },
            nat_pmp::Request::MapUdp { .. } if self.kind.refuses => nat_pmp::Response::Refused {
                opcode: 1,
                refusal: nat_pmp::Refusal::NotAuthorized,
            },
            nat_pmp::Request::MapUdp {
                internal_port,
                lifetime,
                ..
            } => {
                self.mapped = (lifetime > 0).then_some((internal_port, "NAT-PMP"));
                nat_pmp::Response::MappedUdp {
                    epoch: 1,
                    internal_port,
                    external_port: if lifetime > 0 { 5000 } else { 0 },
                    lifetime: lifetime.min(self.kind.lifetime),
                }
            }
        };
        response.emit()
    }

    fn answer_pcp(&mut self, request: pcp::Request) -> Vec<u8> {
        let mut body = request.body;
        let mut result = pcp::ResultCode::Success;
        if let pcp::Body::Map(mapping) = &mut body {
            let other = self.nonce.is_some_and(|nonce| nonce != mapping.nonce);
            if self.kind.refuses || other {
                result = pcp::ResultCode::NotAuthorized;
            } else {
                self.nonce = (request.lifetime > 0).then_some(mapping.nonce);
                self.mapped = (request.lifetime > 0).then_some((mapping.internal_port, "PCP"));
            }
            mapping.external = SocketAddr::from((self.external, 5000));
        }
        let lifetime = request.lifetime.min(self.kind.lifetime);
        let response = pcp::Response {
            result,
            lifetime,
            epoch: 1,
            body,
        };
        response.emit()
    }

    fn last_mapping(&self) -> Option<SocketAddr> {
        self.reports
            .iter()
            .fold(None, |last, (_, report)| match report {
                PortMapReport::Mapped { external, .. } => Some(*external),
                PortMapReport::Unmapped(_) => None,
                PortMapReport::Protocols(_) => last,
            })
    }
}

fn mapped() -> SocketAddr {
    "198.51.100.1:5000".parse().unwrap()
}

#[test]
fn each_protocol_maps_and_pcp_is_preferred() {
    let both = [
        (true, true, Some("PCP")),
        (true, false, Some("PCP")),
        (false, true, Some("NAT-PMP")),
        (false, false, None),
    ];
    for (pcp, nat_pmp, protocol) in both {
        let mut world = World::new(Kind {
            pcp,
            nat_pmp,
            ..HONEST
        });
        world.run(seconds(8));
        assert_eq!(world.mapped, protocol.map(|name| (PORT, name)));
        assert_eq!(world.last_mapping(), protocol.map(|_| mapped()));
    }
}

#[test]
fn the_mapping_is_renewed_at_half_of_its_lifetime() {
    let mut world = World::new(HONEST);
    world.run(seconds(3600 * 12));
    let times: Vec<u64> = world
        .reports
        .iter()
        .filter(|(_, report)| matches!(report, PortMapReport::Mapped { .. }))
        .map(|(at, _)| at.as_secs())
        .collect();
    let expected: Vec<u64> = (0..=12).map(|hour| hour * 3600).collect();
    assert_eq!(times, expected);
}

#[test]
fn lost_requests_are_sent_again() {
    for (pcp, nat_pmp) in [(true, false), (false, true)] {
        for loses in 3..6 {
            let mut world = World::new(Kind {
                pcp,
                nat_pmp,
                loses,
                ..HONEST
            });
            world.run(seconds(10));
            assert_eq!(
                world.last_mapping(),
                Some(mapped()),
                "one request of {loses} is lost"
            );
        }
    }
}

#[test]
fn a_silent_router_is_asked_a_few_times_and_then_rarely() {
    let silent = Kind {
        pcp: false,
        nat_pmp: false,
        ..HONEST
    };
    let mut world = World::new(silent);
    world.run(seconds(9 * 60));
    assert_eq!(world.requests, 8);
    let none = MappingProtocols {
        upnp: Some(false),
        nat_pmp: Some(false),
        pcp: Some(false),
    };
    let reports: Vec<_> = world.reports.iter().map(|(_, report)| *report).collect();
    assert_eq!(reports, [PortMapReport::Protocols(none)]);
    world.kind = HONEST;
    world.run(seconds(2 * 60));
    assert_eq!(
        world.last_mapping(),
        Some(mapped()),
        "found at the next search"
    );
}

#[test]
fn a_network_in_which_no_router_answers_is_searched_ever_less() {
    let mut world = World::new(Kind {
        pcp: false,
        nat_pmp: false,
        ..HONEST
    });
    world.run(seconds(24 * 3600));
    let day = world.requests;
    assert!((8 * 10..8 * 14).contains(&day), "{day}");
    world.mapper.set_router(world.now, None);
    world.mapper.set_router(world.now, Some(router(1)));
    world.drain();
    world.run(seconds(11 * 60));
    assert_eq!(world.requests - day, 16, "another network is searched anew");
}

#[test]
fn a_router_that_goes_away_loses_the_mapping_when_it_expires() {
    let mut world = World::new(HONEST);
    world.run(seconds(1));
    world.kind = Kind {
        pcp: false,
        nat_pmp: false,
        ..HONEST
    };
    world.run(seconds(7198));
    assert_eq!(world.last_mapping(), Some(mapped()));
    world.run(seconds(2));
    assert_eq!(world.last_mapping(), None);
    // It comes back.
    world.kind = HONEST;
    world.run(seconds(11 * 60));
    assert_eq!(world.last_mapping(), Some(mapped()));
}

#[test]
fn another_external_address_is_reported_with_the_renewal() {
    let mut world = World::new(HONEST);
    world.run(seconds(1));
    world.external = Ipv4Addr::new(203, 0, 113, 7);
    world.run(seconds(3600));
    assert_eq!(
        world.last_mapping(),
        Some("203.0.113.7:5000".parse().unwrap())
    );
}

#[test]
fn the_mapping_is_deleted_when_it_is_not_wanted_any_more() {
    for (pcp, nat_pmp) in [(true, false), (false, true)] {
        let mut world = World::new(Kind {
            pcp,
            nat_pmp,
            ..HONEST
        });
        world.run(seconds(1));
        assert!(world.mapped.is_some());
        world.mapper.want(world.now, None);
        world.drain();
        assert_eq!((world.mapped, world.last_mapping()), (None, None));
        assert_eq!(world.mapper.next_deadline(), None);
        world.mapper.want(world.now, Some(PORT + 1));
        world.drain();
        assert_eq!(world.mapped.map(|(port, _)| port), Some(PORT + 1));
    }
}

#[test]
fn a_mapping_does_not_move_to_another_network() {
    let mut world = World::new(HONEST);
    world.run(seconds(1));
    let before = world.requests;
    world.mapper.set_router(world.now, None);
    world.drain();
    assert_eq!(world.last_mapping(), None);
    assert_eq!(
        (world.requests, world.mapper.next_deadline()),
        (before, None)
    );
}

#[test]
fn refusals_and_zero_lifetimes_lead_to_no_mapping_and_few_requests() {
    let kinds = [
        Kind {
            refuses: true,
            ..HONEST
        },
        Kind {
            lifetime: 0,
            ..HONEST
        },
        Kind {
            refuses: true,
            pcp: false,
            ..HONEST
        },
        Kind {
            lifetime: 0,
            pcp: false,
            ..HONEST
        },
    ];
    for kind in kinds {
        let mut world = World::new(kind.clone());
        world.run(seconds(3600));
        assert_eq!(world.last_mapping(), None, "{kind:?}");
        assert!(world.requests < 60 * 10, "{kind:?}: {}", world.requests);
    }
}

#[test]
fn very_short_lifetimes_do_not_make_it_hurry() {
    let mut world = World::new(Kind {
        lifetime: 1,
        ..HONEST
    });
    world.run(seconds(3600));
    assert!(world.requests < 130, "{}", world.requests);
}

#[test]
fn responses_of_other_hosts_and_with_another_nonce_do_not_count() {
    let silent = Kind {
        pcp: false,
        nat_pmp: false,
        ..HONEST
    };
    let mut world = World::new(silent);
    let announce = pcp::Response {
        result: pcp::ResultCode::Success,
        lifetime: 0,
        epoch: 1,
        body: pcp::Body::Announce,
    };
    let elsewhere = "10.0.0.1:5352".parse().unwrap();
    let router = "10.0.0.1:5351".parse().unwrap();
    let now = world.now;
    world
        .mapper
        .handle_datagram(now, elsewhere, &announce.emit());
    world.drain();
    assert_eq!(world.reports, []);
    world.mapper.handle_datagram(now, router, &announce.emit());
    let forged = pcp::Response {
        lifetime: 7200,
        body: pcp::Body::Map(pcp::Mapping {
            nonce: [9; 12],
            internal_port: PORT,
            external: mapped(),
        }),
        ..announce
    };
    world.mapper.handle_datagram(now, router, &forged.emit());
    world.run(seconds(60));
    assert_eq!(world.last_mapping(), None);
}

#[test]
fn routers_of_another_family_count_as_none() {
    let now = Instant::now();
    let mut mapper = PortMapper::new(Family::V6, Box::new(CountingEntropy(1)));
    mapper.want(now, Some(PORT));
    mapper.set_router(now, Some(router(1)));
    assert_eq!((mapper.poll_output(), mapper.next_deadline()), (None, None));
    let router = Router {
        router: "2001:db8::1".parse().unwrap(),
        local: "2001:db8::2".parse().unwrap(),
    };
    mapper.set_router(now, Some(router));
    let sent: Vec<_> = std::iter::from_fn(|| mapper.poll_output()).collect();
    assert_eq!(sent.len(), 1, "PCP only: {sent:?}");
    assert!(matches!(&sent[0], Output::Send { to, .. } if to.port() == pcp::PORT));
}

/// A datagram of a hostile router: any bytes, or a response that may fit.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let lifetime = prop_oneof![Just(0u32), Just(1), Just(7200), Just(u32::MAX)];
    let port = prop_oneof![Just(PORT), any::<u16>()];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..70),
        (any::<u8>(), lifetime.clone()).prop_map(|(code, lifetime)| {
            let mut bytes = pcp::Response {
                result: pcp::ResultCode::Success,
                lifetime,
                epoch: 1,
                body: pcp::Body::Announce,
            }
            .emit();
            bytes[3] = code % 3;
            bytes
        }),
        any::<Ipv4Addr>().prop_map(|address| {
            nat_pmp::Response::ExternalAddress { epoch: 1, address }.emit()
        }),
        (port, any::<u16>(), lifetime).prop_map(|(internal_port, external_port, lifetime)| {
            nat_pmp::Response::MappedUdp {
                epoch: 1,
                internal_port,
                external_port,
                lifetime,
            }
            .emit()
        }),
    ]
}

/// A router that speaks UPnP only.
fn upnp_only(upnp: UpnpRouter) -> Kind {
    Kind {
        pcp: false,
        nat_pmp: false,
        upnp: Some(upnp),
        ..HONEST
    }
}

#[test]
fn upnp_maps_where_nothing_else_does() {
    for igd2 in [false, true] {
        let mut world = World::new(upnp_only(UpnpRouter {
            igd2,
            ..UpnpRouter::default()
        }));
        world.run(seconds(8));
        let external = SocketAddr::from((world.external, PORT));
        assert_eq!(world.last_mapping(), Some(external));
        let held = &world.kind.upnp.as_ref().unwrap().mapped;
        assert_eq!(held, &[(PORT, PORT, 7200)]);
        let found = MappingProtocols {
            upnp: Some(true),
            nat_pmp: Some(false),
            pcp: Some(false),
        };
        assert!(
            world
                .reports
                .iter()
                .any(|(_, report)| *report == PortMapReport::Protocols(found))
        );
        world.run(seconds(3600));
        let renewed = world
            .reports
            .iter()
            .filter(|(_, report)| matches!(report, PortMapReport::Mapped { .. }));
        assert_eq!(renewed.count(), 2);
        world.mapper.want(world.now, None);
        world.drain();
        assert_eq!(world.kind.upnp.as_ref().unwrap().mapped, []);
        assert_eq!((world.last_mapping(), &world.kept), (None, &None));
    }
}

#[test]
fn all_protocols_are_reported_whichever_is_used() {
    let mut world = World::new(Kind {
        upnp: Some(UpnpRouter::default()),
        ..HONEST
    });
    world.run(seconds(8));
    assert_eq!(world.mapped, Some((PORT, "PCP")));
    let all = MappingProtocols {
        upnp: Some(true),
        nat_pmp: Some(true),
        pcp: Some(true),
    };
    let last = world
        .reports
        .iter()
        .rev()
        .find_map(|(_, report)| match report {
            PortMapReport::Protocols(protocols) => Some(*protocols),
            _ => None,
        });
    assert_eq!(last, Some(all));
}

#[test]
fn quirks_of_upnp_routers_cost_another_call_at_most() {
    let quirks = [
        UpnpRouter {
            permanent_only: true,
            ..UpnpRouter::default()
        },
        UpnpRouter {
            taken: vec![PORT],
            ..UpnpRouter::default()
        },
        UpnpRouter {
            first_line_is_down: true,
            ..UpnpRouter::default()
        },
        UpnpRouter {
            only_multicast: true,
            ..UpnpRouter::default()
        },
        UpnpRouter {
            names_another_host: true,
            ..UpnpRouter::default()
        },
    ];
    for quirk in quirks {
        let shown = format!("{quirk:?}");
        let mut world = World::new(upnp_only(quirk));
        world.run(seconds(8));
        let mapped = world.last_mapping().expect(&shown);
        let (external, internal, lease) = world.kind.upnp.as_ref().unwrap().mapped[0];
        assert_eq!((mapped.port(), internal), (external, PORT), "{shown}");
        assert_eq!(
            lease == 0,
            shown.contains("permanent_only: true"),
            "{shown}"
        );
        world.mapper.release(world.now);
        world.drain();
        assert_eq!(world.kind.upnp.as_ref().unwrap().mapped, [], "{shown}");
    }
}

#[test]
fn a_upnp_router_without_sense_leads_to_no_mapping_and_few_requests() {
    let broken = [
        UpnpRouter {
            has_no_address: true,
            ..UpnpRouter::default()
        },
        UpnpRouter {
            answers_nonsense: true,
            ..UpnpRouter::default()
        },
        UpnpRouter {
            taken: (1..=u16::MAX).collect(),
            ..UpnpRouter::default()
        },
        UpnpRouter {
            is_silent: true,
            ..UpnpRouter::default()
        },
    ];
    for broken in broken {
        let mut world = World::new(upnp_only(broken));
        world.run(seconds(3600));
        assert_eq!(world.last_mapping(), None);
        assert!(world.requests < 200, "{}", world.requests);
    }
}

#[test]
fn upnp_is_left_alone_where_it_is_switched_off() {
    let now = Instant::now();
    let mut mapper = PortMapper::new(Family::V4, Box::new(CountingEntropy(1)));
    mapper.allow_upnp(false);
    mapper.want(now, Some(PORT));
    mapper.set_router(now, Some(router(1)));
    let answer = UpnpRouter::default().search(
        SocketAddr::from(([10, 0, 0, 1], 1900)),
        b"InternetGatewayDevice",
    );
    mapper.handle_datagram(now, "10.0.0.1:1900".parse().unwrap(), &answer.unwrap());
    mapper.handle_timeout(now + seconds(1));
    mapper.handle_timeout(now + seconds(2));
    while let Some(output) = mapper.poll_output() {
        assert!(matches!(output, Output::Send { to, .. } if to.port() == pcp::PORT));
    }
}

/// Each protocol, and what the router holds by it.
fn each_protocol() -> [Kind; 3] {
    let upnp = UpnpRouter {
        permanent_only: true,
        ..UpnpRouter::default()
    };
    [
        HONEST,
        Kind {
            pcp: false,
            ..HONEST
        },
        upnp_only(upnp),
    ]
}

impl World {
    /// The internal port that the router maps.
    fn held(&self) -> Option<u16> {
        let upnp = self.kind.upnp.iter().flat_map(|upnp| &upnp.mapped);
        let upnp: Vec<u16> = upnp.map(|(_, internal, _)| *internal).collect();
        assert!(upnp.len() <= 1, "mappings were left behind: {upnp:?}");
        let upnp = upnp.first().copied();
        self.mapped.map(|(port, _)| port).or(upnp)
    }
}

#[test]
fn the_next_process_goes_on_with_the_mapping_of_one_that_was_killed() {
    for kind in each_protocol() {
        let mut world = World::new(kind);
        world.run(seconds(8));
        let before = world.last_mapping();
        assert!(before.is_some() && world.held() == Some(PORT));
        world.kill_and_start();
        world.mapper.want(world.now, Some(PORT));
        world.drain();
        world.run(seconds(8));
        assert_eq!(world.last_mapping(), before);
        world.mapper.release(world.now);
        world.drain();
        assert_eq!((world.held(), &world.kept), (None, &None));
    }
}

#[test]
fn a_mapping_that_the_next_process_does_not_want_is_deleted() {
    for kind in each_protocol() {
        // Another port, or none.
        for port in [Some(PORT + 1), None] {
            let mut world = World::new(kind.clone());
            world.run(seconds(8));
            world.kill_and_start();
            assert_eq!(world.held(), Some(PORT));
            world.mapper.want(world.now, port);
            world.drain();
            world.run(seconds(61));
            assert_eq!(world.held(), port);
            assert_eq!(world.kept.is_some(), port.is_some());
        }
    }
}

#[test]
fn a_mapping_whose_answer_never_came_is_deleted_too() {
    let mut world = World::new(upnp_only(UpnpRouter {
        loses_answers_to_mappings: true,
        ..UpnpRouter::default()
    }));
    world.run(seconds(4));
    assert_eq!((world.last_mapping(), world.held()), (None, Some(PORT)));
    world.kill_and_start();
    world.run(seconds(61));
    assert_eq!((world.held(), &world.kept), (None, &None));
}

#[test]
fn a_mapping_at_another_router_is_left_there() {
    let mut world = World::new(HONEST);
    world.run(seconds(1));
    let kept = world.kept.clone();
    world.mapper.set_router(world.now, Some(router(9)));
    while let Some(output) = world.mapper.poll_output() {
        if let Output::Send { packet, .. } = output {
            let request = pcp::Request::parse(&packet);
            assert!(request.is_none_or(|request| request.body == pcp::Body::Announce));
        }
    }
    assert_eq!(world.kept, kept, "it is known when this node comes back");
    world.mapper.set_router(world.now, Some(router(1)));
    world.drain();
    world.run(seconds(1));
    assert_eq!(
        world.last_mapping(),
        Some(mapped()),
        "with the nonce that the router knows"
    );
}

/// A daemon ends while the router has not answered: the mapping is deleted all the same.
#[test]
fn the_end_waits_for_the_exchange_that_makes_the_mapping() {
    for igd2 in [false, true] {
        // The exchanges that have ended: none, the description, the address, the mapping.
        for ended in 0..4 {
            let mut world = World::new(upnp_only(UpnpRouter {
                igd2,
                taken: vec![PORT],
                ..UpnpRouter::default()
            }));
            world.is_slow = true;
            world.run(seconds(1));
            for _ in 0..ended {
                world.end_exchange();
                world.drain();
            }
            let is_mapped = igd2 && ended == 3;
            assert_eq!(world.waiting.is_empty(), is_mapped, "{igd2} {ended}");
            world.mapper.want(world.now, None);
            world.drain();
            world.mapper.release(world.now);
            world.drain();
            while !world.waiting.is_empty() {
                world.end_exchange();
                world.drain();
            }
            assert_eq!((world.held(), &world.kept), (None, &None), "{igd2} {ended}");
        }
    }
}

/// The record stays until the router has answered, so that the next process deletes it.
#[test]
fn a_deletion_without_an_answer_is_tried_again_by_the_next_process() {
    let mut world = World::new(upnp_only(UpnpRouter::default()));
    world.run(seconds(8));
    assert_eq!(world.held(), Some(PORT));
    world.is_slow = true;
    world.mapper.release(world.now);
    world.drain();
    assert!(world.kept.is_some(), "the router has not answered");
    world.waiting.clear();
    world.is_slow = false;
    world.kill_and_start();
    world.run(seconds(61));
    assert_eq!((world.held(), &world.kept), (None, &None));
}

/// A router that fails now and then is asked again, and one that always fails a few times.
#[test]
fn a_deletion_that_fails_is_tried_three_times() {
    for (failures, held) in [(2, None), (3, Some(PORT))] {
        let mut world = World::new(upnp_only(UpnpRouter {
            fails_deletions: failures,
            ..UpnpRouter::default()
        }));
        world.run(seconds(8));
        let before = world.requests;
        world.mapper.release(world.now);
        world.drain();
        assert_eq!((world.held(), &world.kept), (held, &None));
        assert_eq!(world.requests - before, 3);
    }
}

proptest! {
    /// Whenever ports are wanted, and whenever the router answers, it holds in the end the one
    /// that is wanted, and the record names it.
    #[test]
    fn the_router_holds_what_is_wanted_last(
        igd2: bool,
        taken: bool,
        steps in prop::collection::vec((0u8..6, 0u64..3_000), 1..40),
        last in prop::option::of(0u16..2),
    ) {
        let taken = if taken { vec![PORT] } else { Vec::new() };
        let mut world = World::new(upnp_only(UpnpRouter { igd2, taken, ..UpnpRouter::default() }));
        world.is_slow = true;
        for (step, pause) in steps {
            match step {
                0 => world.mapper.want(world.now, None),
                1 | 2 => world.mapper.want(world.now, Some(PORT + u16::from(step - 1))),
                _ => world.end_exchange(),
            }
            world.drain();
            world.run(Duration::from_millis(pause));
        }
        world.is_slow = false;
        let last = last.map(|offset| PORT + offset);
        world.mapper.want(world.now, last);
        world.drain();
        while !world.waiting.is_empty() {
            world.end_exchange();
            world.drain();
        }
        // The next search after a router that was too slow is ten minutes later.
        world.run(seconds(3_600));
        prop_assert_eq!(world.held(), last);
        prop_assert_eq!(world.kept.is_some(), last.is_some());
    }

    /// Whatever a router sends, the rate of requests is bounded, the clock goes
    /// on, and reported mappings have a lifetime of at most a day.
    #[test]
    fn hostile_routers_gain_nothing(
        seed: u64, steps in prop::collection::vec((hostile(), 0u64..40), 1..80),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut mapper = PortMapper::new(Family::V4, Box::new(SeededEntropy(seed)));
        mapper.want(now, Some(PORT));
        mapper.set_router(now, Some(router(1)));
        let mut requests = 0u64;
        for (packet, pause) in steps {
            let end = now + seconds(pause);
            mapper.handle_datagram(now, "10.0.0.1:5351".parse().unwrap(), &packet);
            loop {
                while let Some(output) = mapper.poll_output() {
                    match output {
                        Output::Send { to, .. } => requests += u64::from(to.port() == 5351),
                        Output::Exchange { .. } => requests += 1,
                        Output::Keep(_) => {}
                        Output::Report(PortMapReport::Mapped { external, lifetime }) => {
                            prop_assert!(external.port() != 0 && !external.ip().is_unspecified());
                            prop_assert!(lifetime <= seconds(86_400) && !lifetime.is_zero());
                        }
                        Output::Report(_) => {}
                    }
                }
                let Some(at) = mapper.next_deadline().filter(|at| *at <= end) else { break };
                prop_assert!(at >= now);
                now = at;
                mapper.handle_timeout(now);
            }
            now = end;
        }
        // At most 8 probes and 10 requests in 30 s.
        let periods = (now - start).as_secs() / 30 + 1;
        prop_assert!(requests <= periods * 18, "{requests} in {periods} periods");
    }
}
