//! The state of a port mapper.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_keys::Entropy;
use warren_node_types::{Family, MappingProtocols, PortMapReport};
use warren_wire::{nat_pmp, pcp};

/// The lifetime that is asked for, in seconds.
const LIFETIME: u32 = 7200;
/// Longer lifetimes count as this one (RFC 6887 section 15).
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The first gap between two tries of the same request; it doubles.
const FIRST_GAP: Duration = Duration::from_millis(250);
/// Tries of a probe.
const PROBES: u32 = 4;
/// Tries of a request for a mapping: about 8 s.
const REQUESTS: u32 = 5;
/// Between searches of a router that speaks any protocol.
const SEARCH_AGAIN: Duration = Duration::from_secs(10 * 60);
/// Between requests, whatever lifetime or pause the router says.
const MIN_PAUSE: Duration = Duration::from_secs(30);
/// After a refusal, at most this long.
const MAX_PAUSE: Duration = Duration::from_secs(30 * 60);

/// The router of a network, and this node's address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// The address of the router.
    pub router: IpAddr,
    /// The address of this node, in the same family.
    pub local: IpAddr,
}

/// Something for the runtime to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram from a UDP socket of the mapper.
    Send {
        /// The receiver.
        to: SocketAddr,
        /// The datagram.
        packet: Vec<u8>,
    },
    /// Report to the path engine.
    Report(PortMapReport),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Pcp,
    NatPmp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No router, or no port.
    Idle,
    /// Both protocols are probed.
    Probing { tries: u32, next: Instant },
    /// A mapping is asked for.
    Requesting {
        protocol: Protocol,
        tries: u32,
        next: Instant,
    },
    /// Until the next search.
    Pausing { until: Instant },
    /// Until the next renewal.
    Renewing { protocol: Protocol, at: Instant },
}

#[derive(Debug, Clone, Copy)]
struct Held {
    protocol: Protocol,
    external: SocketAddr,
    expires: Instant,
}

/// Keeps a mapping of one UDP port at one router.
///
/// Every input takes the time and may leave outputs, read with
/// [`poll_output`](Self::poll_output) until it is empty. Then
/// [`next_deadline`](Self::next_deadline) says when to call
/// [`handle_timeout`](Self::handle_timeout); calling it early does nothing.
pub struct PortMapper {
    family: Family,
    entropy: Box<dyn Entropy>,
    router: Option<Router>,
    port: Option<u16>,
    state: State,
    held: Option<Held>,
    /// Of the PCP mapping.
    nonce: [u8; 12],
    /// The two halves of a NAT-PMP grant, of the request that is under way.
    pmp_address: Option<Ipv4Addr>,
    pmp_mapping: Option<(u16, u32)>,
    protocols: MappingProtocols,
    outputs: VecDeque<Output>,
}

impl PortMapper {
    /// A mapper for addresses of `family`. It does nothing before it has a router
    /// and a port.
    pub fn new(family: Family, entropy: Box<dyn Entropy>) -> Self {
        Self {
            family,
            entropy,
            router: None,
            port: None,
            state: State::Idle,
            held: None,
            nonce: [0; 12],
            pmp_address: None,
            pmp_mapping: None,
            protocols: MappingProtocols::default(),
            outputs: VecDeque::new(),
        }
    }

    /// The network has this router now. A mapping at another one is forgotten.
    /// Routers of the other family count as none.
    pub fn set_router(&mut self, now: Instant, router: Option<Router>) {
        let fits = |router: &Router| {
            Family::of(router.router) == self.family && Family::of(router.local) == self.family
        };
        let router = router.filter(fits);
        if self.router == router {
            return;
        }
        self.router = router;
        self.protocols = MappingProtocols::default();
        self.drop_mapping();
        self.restart(now);
    }

    /// Keeps a mapping to this local port; `None`: deletes it.
    pub fn want(&mut self, now: Instant, port: Option<u16>) {
        if self.port == port {
            return;
        }
        if let Some(held) = self.held {
            self.send_request(held.protocol, 0);
        }
        self.port = port;
        self.drop_mapping();
        self.restart(now);
    }

    /// Takes a datagram from the socket of the mapper.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, packet: &[u8]) {
        if self.router_address() != Some(from) {
            return;
        }
        let before = self.protocols;
        if let Some(response) = pcp::Response::parse(packet) {
            self.handle_pcp(now, response);
        } else if let Some(response) = nat_pmp::Response::parse(packet) {
            self.handle_nat_pmp(now, response);
        }
        if self.protocols != before {
            self.report(PortMapReport::Protocols(self.protocols));
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let state = match self.state {
            State::Idle => None,
            State::Probing { next, .. } | State::Requesting { next, .. } => Some(next),
            State::Pausing { until } => Some(until),
            State::Renewing { at, .. } => Some(at),
        };
        let expiry = self.held.map(|held| held.expires);
        state.into_iter().chain(expiry).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.held.is_some_and(|held| now >= held.expires) {
            self.drop_mapping();
        }
        match self.state {
            State::Probing { tries, next } if now >= next => self.probe(now, tries),
            State::Requesting {
                protocol,
                tries,
                next,
            } if now >= next => self.request(now, protocol, tries),
            State::Pausing { until } if now >= until => self.restart(now),
            State::Renewing { protocol, at } if now >= at => {
                self.begin_request(now, protocol);
            }
            State::Idle
            | State::Probing { .. }
            | State::Requesting { .. }
            | State::Pausing { .. }
            | State::Renewing { .. } => {}
        }
    }

    /// The next thing to do, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn restart(&mut self, now: Instant) {
        self.state = State::Idle;
        if self.router.is_some() && self.port.is_some() {
            self.entropy.fill(&mut self.nonce);
            self.state = State::Probing {
                tries: 0,
                next: now,
            };
            self.handle_timeout(now);
        }
    }

    fn probe(&mut self, now: Instant, tries: u32) {
        let Some(router) = self.router else { return };
        if tries == PROBES {
            self.protocols.pcp.get_or_insert(false);
            self.protocols.nat_pmp.get_or_insert(false);
            self.report(PortMapReport::Protocols(self.protocols));
            self.pause(now, SEARCH_AGAIN);
            return;
        }
        let announce = pcp::Request {
            lifetime: 0,
            client: router.local,
            body: pcp::Body::Announce,
        };
        self.send(announce.emit());
        if self.family == Family::V4 {
            self.send(nat_pmp::Request::ExternalAddress.emit());
        }
        self.state = State::Probing {
            tries: tries + 1,
            next: now + FIRST_GAP * 2u32.pow(tries),
        };
    }

    fn begin_request(&mut self, now: Instant, protocol: Protocol) {
        self.pmp_address = None;
        self.pmp_mapping = None;
        self.request(now, protocol, 0);
    }

    fn request(&mut self, now: Instant, protocol: Protocol, tries: u32) {
        if tries == REQUESTS {
            // While the mapping lives the same protocol is tried again, then all
            // are.
            if self.held.is_some() {
                let at = now + MIN_PAUSE;
                self.state = State::Renewing { protocol, at };
            } else {
                self.pause(now, SEARCH_AGAIN);
            }
            return;
        }
        self.send_request(protocol, LIFETIME);
        self.state = State::Requesting {
            protocol,
            tries: tries + 1,
            next: now + FIRST_GAP * 2u32.pow(tries),
        };
    }

    /// Asks for a mapping; with a lifetime of 0 deletes it.
    fn send_request(&mut self, protocol: Protocol, lifetime: u32) {
        let (Some(router), Some(internal_port)) = (self.router, self.port) else {
            return;
        };
        let any = pcp::any_external(router.local);
        let external = self.held.map_or(any, |held| held.external);
        match protocol {
            Protocol::Pcp => {
                let mapping = pcp::Mapping {
                    nonce: self.nonce,
                    internal_port,
                    external,
                };
                let request = pcp::Request {
                    lifetime,
                    client: router.local,
                    body: pcp::Body::Map(mapping),
                };
                self.send(request.emit());
            }
            Protocol::NatPmp => {
                if self.pmp_address.is_none() && lifetime != 0 {
                    self.send(nat_pmp::Request::ExternalAddress.emit());
                }
                if self.pmp_mapping.is_none() || lifetime == 0 {
                    let suggested_port = if lifetime == 0 { 0 } else { external.port() };
                    let request = nat_pmp::Request::MapUdp {
                        internal_port,
                        suggested_port,
                        lifetime,
                    };
                    self.send(request.emit());
                }
            }
        }
    }

    fn handle_pcp(&mut self, now: Instant, response: pcp::Response) {
        let speaks = response.result != pcp::ResultCode::UnsupportedVersion;
        match (response.body, self.state) {
            (pcp::Body::Announce, State::Probing { .. }) => {
                self.protocols.pcp = Some(speaks);
                if speaks {
                    self.begin_request(now, Protocol::Pcp);
                }
            }
            (
                pcp::Body::Map(mapping),
                State::Requesting {
                    protocol: Protocol::Pcp,
                    ..
                },
            ) if mapping.nonce == self.nonce && Some(mapping.internal_port) == self.port => {
                if response.result == pcp::ResultCode::Success {
                    self.granted(now, Protocol::Pcp, mapping.external, response.lifetime);
                } else {
                    self.drop_mapping();
                    self.pause(now, Duration::from_secs(response.lifetime.into()));
                }
            }
            // Late, or not asked for.
            (pcp::Body::Announce | pcp::Body::Map(_), _) => {}
        }
    }

    fn handle_nat_pmp(&mut self, now: Instant, response: nat_pmp::Response) {
        if self.family != Family::V4 {
            return;
        }
        let requesting = matches!(
            self.state,
            State::Requesting {
                protocol: Protocol::NatPmp,
                ..
            }
        );
        let probing = matches!(self.state, State::Probing { .. });
        match response {
            // The answer of a router that does not know PCP to a PCP request.
            nat_pmp::Response::Refused {
                refusal: nat_pmp::Refusal::UnsupportedVersion,
                ..
            } if probing => self.protocols.pcp = Some(false),
            nat_pmp::Response::ExternalAddress { .. } if probing => {
                self.protocols.nat_pmp = Some(true);
                self.begin_request(now, Protocol::NatPmp);
            }
            nat_pmp::Response::ExternalAddress { address, .. } if requesting => {
                self.pmp_address = Some(address);
                self.combine_nat_pmp(now);
            }
            nat_pmp::Response::MappedUdp {
                internal_port,
                external_port,
                lifetime,
                ..
            } if requesting && Some(internal_port) == self.port => {
                self.pmp_mapping = Some((external_port, lifetime));
                self.combine_nat_pmp(now);
            }
            nat_pmp::Response::Refused { .. } if requesting => {
                self.drop_mapping();
                self.pause(now, MAX_PAUSE);
            }
            nat_pmp::Response::ExternalAddress { .. }
            | nat_pmp::Response::MappedUdp { .. }
            | nat_pmp::Response::Refused { .. } => {}
        }
    }

    fn combine_nat_pmp(&mut self, now: Instant) {
        if let (Some(address), Some((port, lifetime))) = (self.pmp_address, self.pmp_mapping) {
            let external = SocketAddr::from((address, port));
            self.granted(now, Protocol::NatPmp, external, lifetime);
        }
    }

    /// The router made or renewed the mapping.
    fn granted(&mut self, now: Instant, protocol: Protocol, external: SocketAddr, lifetime: u32) {
        let lifetime = Duration::from_secs(lifetime.into()).min(MAX_LIFETIME);
        let usable = Family::of_socket(external) == self.family
            && !external.ip().is_unspecified()
            && external.port() != 0
            && !lifetime.is_zero();
        if !usable {
            self.drop_mapping();
            self.pause(now, MAX_PAUSE);
            return;
        }
        self.held = Some(Held {
            protocol,
            external,
            expires: now + lifetime,
        });
        self.report(PortMapReport::Mapped { external, lifetime });
        let at = now + (lifetime / 2).max(MIN_PAUSE);
        self.state = State::Renewing { protocol, at };
    }

    /// Forgets the mapping, which does not exist any more.
    fn drop_mapping(&mut self) {
        if self.held.take().is_some() {
            self.report(PortMapReport::Unmapped(self.family));
        }
    }

    fn pause(&mut self, now: Instant, wanted: Duration) {
        let until = now + wanted.clamp(MIN_PAUSE, MAX_PAUSE);
        self.state = State::Pausing { until };
    }

    fn router_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.router?.router, pcp::PORT))
    }

    fn send(&mut self, packet: Vec<u8>) {
        if let Some(to) = self.router_address() {
            self.outputs.push_back(Output::Send { to, packet });
        }
    }

    fn report(&mut self, report: PortMapReport) {
        self.outputs.push_back(Output::Report(report));
    }
}
