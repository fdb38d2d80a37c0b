//! The state of a port mapper.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_keys::Entropy;
use warren_node_types::{Family, MappingProtocols, PortMapReport};
use warren_wire::upnp::{
    Response, SEARCH_TARGETS, SSDP_GROUP, SSDP_PORT, Service, m_search, search_response,
};
use warren_wire::{nat_pmp, pcp};

use crate::kept::{KeptBy, KeptMapping, KeptService};
use crate::removal::{Next, Removal};
use crate::upnp::{Exchange, Progress, Upnp, Wanted};

/// The lifetime that is asked for, in seconds.
pub(crate) const LIFETIME: u32 = 7200;
/// Longer lifetimes count as this one (RFC 6887 section 15).
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The first gap between two tries of the same request; it doubles.
const FIRST_GAP: Duration = Duration::from_millis(250);
/// Tries of a probe.
const PROBES: u32 = 4;
/// Tries of a request for a mapping: about 8 s.
const REQUESTS: u32 = 5;
/// Probes after which UPnP is used where neither of the others answered: 0.75 s.
const PROBES_BEFORE_UPNP: u32 = 2;
/// How long an exchange by HTTP may take.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// After so long what did not answer is not spoken.
const SPOKEN_AFTER: Duration = Duration::from_secs(3);
/// A mapping of an earlier process is deleted when it is not wanted again by then.
const LEFT_BEHIND: Duration = Duration::from_secs(60);
/// Between searches of a router that speaks any protocol; twice as long after each one in a
/// network where nothing answers, up to 16 times.
const SEARCH_AGAIN: Duration = Duration::from_secs(10 * 60);
/// Deletions by UPnP at a time.
const MAX_REMOVALS: usize = 8;
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
    /// Connect to `to` by TCP, send `request`, and report the response with
    /// [`PortMapper::handle_exchange`], or that there is none within [`EXCHANGE_TIMEOUT`].
    /// Exchanges are made in their order, each after the end of the one before it, and none
    /// is given up: a deletion must not overtake the mapping that it deletes.
    Exchange {
        /// The number of the exchange.
        id: u64,
        /// The router.
        to: SocketAddr,
        /// The bytes to send.
        request: Vec<u8>,
    },
    /// Keep this on disk, instead of what was kept before, and return it to the next process
    /// with [`PortMapper::restore`]. `None`: remove it.
    Keep(Option<KeptMapping>),
    /// Report to the path engine.
    Report(PortMapReport),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Pcp,
    NatPmp,
    Upnp,
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
    /// A mapping is asked for by UPnP; the exchange under way.
    Exchanging { id: u64, until: Instant },
    /// Until the next search.
    Pausing { until: Instant },
    /// Until the next renewal.
    Renewing { protocol: Protocol, at: Instant },
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
    /// The end of the mapping that the router holds.
    held_until: Option<Instant>,
    /// Of the PCP mapping.
    nonce: [u8; 12],
    /// The two halves of a NAT-PMP grant, of the request that is under way.
    pmp_address: Option<Ipv4Addr>,
    pmp_mapping: Option<(u16, u32)>,
    upnp: Upnp,
    /// Searches in this network that nothing answered.
    silent_searches: u32,
    last_exchange: u64,
    protocols: MappingProtocols,
    /// When the protocols without an answer count as not spoken.
    protocols_at: Option<Instant>,
    no_upnp: bool,
    /// The record on disk.
    kept: Option<KeptMapping>,
    /// When it is deleted at the router, where nothing wants it.
    left_until: Option<Instant>,
    /// Deletions by UPnP that the router has not answered.
    removals: Vec<Removal>,
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
            held_until: None,
            nonce: [0; 12],
            pmp_address: None,
            pmp_mapping: None,
            upnp: Upnp::default(),
            silent_searches: 0,
            last_exchange: 0,
            protocols: MappingProtocols::default(),
            protocols_at: None,
            no_upnp: false,
            kept: None,
            left_until: None,
            removals: Vec::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Whether UPnP may be used; it may from the start.
    pub fn allow_upnp(&mut self, allowed: bool) {
        self.no_upnp = !allowed;
    }

    /// Takes the record of an earlier process, before there is a router.
    pub fn restore(&mut self, kept: KeptMapping) {
        self.kept = Some(kept);
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
        self.upnp = Upnp::default();
        self.silent_searches = 0;
        // The record stays: this node may come back to that router.
        self.unmapped();
        self.left_until = self.kept_here().map(|_| now + LEFT_BEHIND);
        self.restart(now);
    }

    /// Keeps a mapping to this local port; `None`: deletes it.
    pub fn want(&mut self, now: Instant, port: Option<u16>) {
        if self.port == port {
            return;
        }
        if self.port.is_some() {
            self.delete_kept();
            self.unmapped();
        }
        self.port = port;
        self.restart(now);
    }

    /// Deletes the mapping at the router, that of an earlier process too, and asks for no
    /// other one. The next outputs are the messages for it.
    pub fn release(&mut self, now: Instant) {
        self.delete_kept();
        self.unmapped();
        self.port = None;
        self.restart(now);
    }

    /// Takes a datagram from the socket of the mapper.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, packet: &[u8]) {
        if self.router.is_none_or(|router| router.router != from.ip()) {
            return;
        }
        let before = self.protocols;
        // Some routers answer searches from another port.
        if from.port() != pcp::PORT {
            if let Some(location) = search_response(packet).filter(|_| !self.no_upnp) {
                self.upnp.found(location);
                self.protocols.upnp = Some(true);
            }
        } else if let Some(response) = pcp::Response::parse(packet) {
            self.handle_pcp(now, response);
        } else if let Some(response) = nat_pmp::Response::parse(packet) {
            self.handle_nat_pmp(now, response);
        }
        if self.protocols != before {
            self.report(PortMapReport::Protocols(self.protocols));
        }
    }

    /// Takes the bytes that the router answered to an exchange, as a whole; `None`: it did not.
    pub fn handle_exchange(&mut self, now: Instant, id: u64, answer: Option<&Response>) {
        let waits = |removal: &Removal| removal.waits_for(id);
        if let Some(at) = self.removals.iter().position(waits) {
            let removal = self.removals.remove(at);
            self.go_on_removing(removal, answer);
            return;
        }
        let State::Exchanging { id: expected, .. } = self.state else {
            return;
        };
        if id == expected {
            self.exchanged(now, answer);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let state = match self.state {
            State::Idle => None,
            State::Probing { next, .. } | State::Requesting { next, .. } => Some(next),
            State::Pausing { until } | State::Exchanging { until, .. } => Some(until),
            State::Renewing { at, .. } => Some(at),
        };
        let all = [state, self.held_until, self.protocols_at, self.left_until];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.held_until.is_some_and(|at| now >= at) {
            self.drop_mapping();
        }
        if self.protocols_at.is_some_and(|at| now >= at) {
            self.protocols_at = None;
            let MappingProtocols { upnp, nat_pmp, pcp } = &mut self.protocols;
            for spoken in [nat_pmp, pcp] {
                spoken.get_or_insert(false);
            }
            // Where it is not searched for, nothing is known.
            if self.family == Family::V4 && !self.no_upnp {
                upnp.get_or_insert(false);
            }
            self.report(PortMapReport::Protocols(self.protocols));
        }
        if self.left_until.is_some_and(|at| now >= at) {
            self.left_until = None;
            if self.port.is_none() {
                self.delete_kept();
            }
        }
        match self.state {
            State::Probing { tries, next } if now >= next => self.probe(now, tries),
            State::Requesting {
                protocol,
                tries,
                next,
            } if now >= next => self.request(now, protocol, tries),
            State::Exchanging { until, .. } if now >= until => self.exchanged(now, None),
            State::Pausing { until } if now >= until => self.restart(now),
            State::Renewing { protocol, at } if now >= at => {
                self.begin_request(now, protocol);
            }
            State::Idle
            | State::Probing { .. }
            | State::Requesting { .. }
            | State::Exchanging { .. }
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
        self.protocols_at = None;
        if self.router.is_some() && self.port.is_some() {
            self.entropy.fill(&mut self.nonce);
            self.protocols_at = Some(now + SPOKEN_AFTER);
            self.state = State::Probing {
                tries: 0,
                next: now,
            };
            self.handle_timeout(now);
        }
    }

    fn probe(&mut self, now: Instant, tries: u32) {
        let Some(router) = self.router else { return };
        if tries >= PROBES_BEFORE_UPNP && self.upnp.is_found() {
            self.begin_request(now, Protocol::Upnp);
            return;
        }
        if tries == PROBES {
            let until = now + SEARCH_AGAIN * 2u32.pow(self.silent_searches.min(4));
            self.silent_searches += 1;
            self.state = State::Pausing { until };
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
            if tries.is_multiple_of(2) && !self.no_upnp && !self.upnp.is_found() {
                self.search_upnp(router);
            }
        }
        self.state = State::Probing {
            tries: tries + 1,
            next: now + FIRST_GAP * 2u32.pow(tries),
        };
    }

    /// Searches for UPnP, at the router and in the network: some answer only one of both.
    fn search_upnp(&mut self, router: Router) {
        for target in SEARCH_TARGETS {
            for ip in [router.router, SSDP_GROUP.into()] {
                let to = SocketAddr::new(ip, SSDP_PORT);
                let packet = m_search(target);
                self.outputs.push_back(Output::Send { to, packet });
            }
        }
    }

    fn begin_request(&mut self, now: Instant, protocol: Protocol) {
        self.pmp_address = None;
        self.pmp_mapping = None;
        self.use_kept(protocol);
        if protocol == Protocol::Upnp {
            let exchange = self.router.and_then(|router| self.upnp.begin(router));
            match exchange {
                Some(exchange) => self.exchange(now, exchange),
                None => self.failed(now, Protocol::Upnp, SEARCH_AGAIN),
            }
        } else {
            self.request(now, protocol, 0);
        }
    }

    /// Goes on with the mapping of the record, or deletes it. The new record is there before
    /// the router makes the mapping.
    fn use_kept(&mut self, protocol: Protocol) {
        let (Some(router), Some(port)) = (self.router, self.port) else {
            return;
        };
        self.left_until = None;
        let kept = self.kept_here();
        let same = kept.filter(|kept| kept.port == port);
        let external = same.as_ref().and_then(|kept| kept.external);
        let mut by = match protocol {
            Protocol::Pcp => KeptBy::Pcp { nonce: self.nonce },
            Protocol::NatPmp => KeptBy::NatPmp,
            Protocol::Upnp => KeptBy::Upnp { service: None },
        };
        match same.map(|kept| kept.by) {
            Some(KeptBy::Pcp { nonce }) if protocol == Protocol::Pcp => {
                self.nonce = nonce;
                by = KeptBy::Pcp { nonce };
            }
            Some(kept @ KeptBy::Upnp { .. }) if protocol == Protocol::Upnp => by = kept,
            Some(KeptBy::NatPmp) if protocol == Protocol::NatPmp => {}
            Some(_) | None => self.delete_kept(),
        }
        for removal in &mut self.removals {
            removal.holds_record = false;
        }
        self.keep(Some(KeptMapping {
            router: router.router,
            local: router.local,
            port,
            external,
            by,
        }));
    }

    /// The record, if it is one of this router.
    fn kept_here(&self) -> Option<KeptMapping> {
        let router = self.router?;
        self.kept.clone().filter(|kept| kept.is_at(router))
    }

    /// Deletes the mapping of the record at the router, if this is its router.
    fn delete_kept(&mut self) {
        let (Some(router), Some(kept)) = (self.router, self.kept_here()) else {
            return;
        };
        match &kept.by {
            KeptBy::Pcp { nonce } => {
                let mapping = pcp::Mapping {
                    nonce: *nonce,
                    internal_port: kept.port,
                    external: kept.external.unwrap_or(pcp::any_external(router.local)),
                };
                let request = pcp::Request {
                    lifetime: 0,
                    client: router.local,
                    body: pcp::Body::Map(mapping),
                };
                self.send(request.emit());
            }
            KeptBy::NatPmp => {
                let request = nat_pmp::Request::MapUdp {
                    internal_port: kept.port,
                    suggested_port: 0,
                    lifetime: 0,
                };
                self.send(request.emit());
            }
            // The record stays until the router has answered.
            KeptBy::Upnp { .. } => {
                self.left_until = None;
                self.begin_removal(router, kept);
                return;
            }
        }
        self.left_until = None;
        self.keep(None);
    }

    /// Deletes a mapping by UPnP. One that is being asked for is deleted when the answer has
    /// named its port.
    fn begin_removal(&mut self, router: Router, kept: KeptMapping) {
        let is_same = |removal: &Removal| removal.holds_record && removal.kept == kept;
        if self.removals.iter().any(is_same) {
            return;
        }
        match (self.state, self.upnp.asked()) {
            (State::Exchanging { id, .. }, Some(_)) => {
                let removal = Removal::after(id, router, kept, self.upnp.clone());
                self.removals.push(removal);
            }
            _ => self.remove(Removal::new(router, kept)),
        }
        // A router that does not answer for so long may have forgotten the oldest.
        let extra = self.removals.len().saturating_sub(MAX_REMOVALS);
        self.removals.drain(..extra);
    }

    fn remove(&mut self, removal: Removal) {
        if removal.holds_record && self.kept.is_some() {
            self.keep(Some(removal.kept.clone()));
        }
        match removal.call() {
            Some(call) => {
                let id = self.push_exchange(call);
                self.removals.push(removal.under_way(id));
            }
            // Nothing was asked for yet.
            None => self.removed(&removal),
        }
    }

    fn removed(&mut self, removal: &Removal) {
        if removal.holds_record && self.kept.as_ref() == Some(&removal.kept) {
            self.keep(None);
        }
    }

    fn go_on_removing(&mut self, removal: Removal, answer: Option<&Response>) {
        match removal.answered(answer) {
            Next::Remove(removal) => self.remove(removal),
            Next::Removed(removal) => self.removed(&removal),
            // The record stays for the next process.
            Next::Unknown => {}
        }
    }

    fn keep(&mut self, kept: Option<KeptMapping>) {
        if self.kept != kept {
            self.kept.clone_from(&kept);
            self.outputs.push_back(Output::Keep(kept));
        }
    }

    fn push_exchange(&mut self, exchange: Exchange) -> u64 {
        self.last_exchange += 1;
        let (id, Exchange { to, request }) = (self.last_exchange, exchange);
        self.outputs.push_back(Output::Exchange { id, to, request });
        id
    }

    fn exchange(&mut self, now: Instant, exchange: Exchange) {
        let id = self.push_exchange(exchange);
        let until = now + EXCHANGE_TIMEOUT;
        self.state = State::Exchanging { id, until };
    }

    fn exchanged(&mut self, now: Instant, answer: Option<&Response>) {
        let (Some(router), Some(internal_port)) = (self.router, self.port) else {
            return;
        };
        let kept = self.kept_here().and_then(|kept| kept.external);
        let wanted = Wanted {
            router,
            internal_port,
            external_port: kept.map_or(internal_port, |external| external.port()),
        };
        match self.upnp.answered(wanted, answer, self.entropy.as_mut()) {
            Progress::Next(exchange) => {
                self.keep_upnp();
                self.exchange(now, exchange);
            }
            Progress::Granted {
                external,
                lifetime,
                service,
            } => self.granted(now, Protocol::Upnp, external, lifetime, Some(service)),
            Progress::Failed => self.failed(now, Protocol::Upnp, SEARCH_AGAIN),
        }
    }

    /// Records the mapping that UPnP is about to ask for: the router may make it although its
    /// answer never comes.
    fn keep_upnp(&mut self) {
        if let (Some((service, external)), Some(mut kept)) = (self.upnp.asked(), self.kept_here()) {
            kept.external = Some(external);
            kept.by = KeptBy::Upnp {
                service: Some(KeptService::new(service)),
            };
            self.keep(Some(kept));
        }
    }

    /// There is no mapping by this protocol now. While an older one lives, it is tried again.
    fn failed(&mut self, now: Instant, protocol: Protocol, pause: Duration) {
        if self.held_until.is_some() {
            let at = now + MIN_PAUSE;
            self.state = State::Renewing { protocol, at };
        } else {
            self.pause(now, pause);
        }
    }

    /// The router refuses a mapping by this protocol. Another one may do.
    fn refused(&mut self, now: Instant, pause: Duration) {
        self.drop_mapping();
        if self.upnp.is_found() {
            self.begin_request(now, Protocol::Upnp);
        } else {
            self.pause(now, pause);
        }
    }

    fn request(&mut self, now: Instant, protocol: Protocol, tries: u32) {
        if tries == REQUESTS {
            self.failed(now, protocol, SEARCH_AGAIN);
            return;
        }
        self.send_request(protocol);
        self.state = State::Requesting {
            protocol,
            tries: tries + 1,
            next: now + FIRST_GAP * 2u32.pow(tries),
        };
    }

    /// Asks for a mapping.
    fn send_request(&mut self, protocol: Protocol) {
        let (Some(router), Some(internal_port)) = (self.router, self.port) else {
            return;
        };
        let any = pcp::any_external(router.local);
        let kept = self.kept.as_ref().and_then(|kept| kept.external);
        let external = kept.unwrap_or(any);
        match protocol {
            Protocol::Pcp => {
                let mapping = pcp::Mapping {
                    nonce: self.nonce,
                    internal_port,
                    external,
                };
                let request = pcp::Request {
                    lifetime: LIFETIME,
                    client: router.local,
                    body: pcp::Body::Map(mapping),
                };
                self.send(request.emit());
            }
            Protocol::NatPmp => {
                if self.pmp_address.is_none() {
                    self.send(nat_pmp::Request::ExternalAddress.emit());
                }
                if self.pmp_mapping.is_none() {
                    let request = nat_pmp::Request::MapUdp {
                        internal_port,
                        suggested_port: external.port(),
                        lifetime: LIFETIME,
                    };
                    self.send(request.emit());
                }
            }
            // By exchanges.
            Protocol::Upnp => {}
        }
    }

    fn handle_pcp(&mut self, now: Instant, response: pcp::Response) {
        let speaks = response.result != pcp::ResultCode::UnsupportedVersion;
        if response.body == pcp::Body::Announce {
            self.protocols.pcp = Some(speaks);
        }
        match (response.body, self.state) {
            (pcp::Body::Announce, State::Probing { .. }) => {
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
                let lifetime = Duration::from_secs(response.lifetime.into());
                if response.result == pcp::ResultCode::Success {
                    self.granted(now, Protocol::Pcp, mapping.external, lifetime, None);
                } else {
                    self.refused(now, lifetime);
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
            } => drop(self.protocols.pcp.get_or_insert(false)),
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
            nat_pmp::Response::Refused { .. } if requesting => self.refused(now, MAX_PAUSE),
            nat_pmp::Response::ExternalAddress { .. } => self.protocols.nat_pmp = Some(true),
            nat_pmp::Response::MappedUdp { .. } | nat_pmp::Response::Refused { .. } => {}
        }
    }

    fn combine_nat_pmp(&mut self, now: Instant) {
        if let (Some(address), Some((port, lifetime))) = (self.pmp_address, self.pmp_mapping) {
            let external = SocketAddr::from((address, port));
            let lifetime = Duration::from_secs(lifetime.into());
            self.granted(now, Protocol::NatPmp, external, lifetime, None);
        }
    }

    /// The router made or renewed the mapping.
    fn granted(
        &mut self,
        now: Instant,
        protocol: Protocol,
        external: SocketAddr,
        lifetime: Duration,
        service: Option<Service>,
    ) {
        let lifetime = lifetime.min(MAX_LIFETIME);
        let usable = Family::of_socket(external) == self.family
            && !external.ip().is_unspecified()
            && external.port() != 0
            && !lifetime.is_zero();
        if !usable {
            self.drop_mapping();
            self.pause(now, MAX_PAUSE);
            return;
        }
        self.silent_searches = 0;
        if let Some(mut kept) = self.kept_here() {
            kept.external = Some(external);
            if let KeptBy::Upnp { service: kept } = &mut kept.by {
                *kept = service.as_ref().map(KeptService::new);
            }
            self.keep(Some(kept));
        }
        self.held_until = Some(now + lifetime);
        self.report(PortMapReport::Mapped { external, lifetime });
        let at = now + (lifetime / 2).max(MIN_PAUSE);
        self.state = State::Renewing { protocol, at };
    }

    /// Forgets the mapping, which does not exist any more.
    fn drop_mapping(&mut self) {
        self.keep(None);
        self.unmapped();
    }

    fn unmapped(&mut self) {
        if self.held_until.take().is_some() {
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
