//! One run: the STUN requests of a plan, their answers, and HTTPS requests where
//! UDP seems blocked.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, RegionId};
use warren_keys::Entropy;
use warren_wire::stun::{self, TransactionId};

use super::probe_plan::{ProbeSet, can_be_home};
use super::report::Report;
use super::stun_hosts::{StunHosts, Target};
use crate::api::{Counters, Event};

/// End of a run in which UDP works.
const STUN_PHASE: Duration = Duration::from_secs(3);
/// End of a run in which it does not.
const WHOLE_RUN: Duration = Duration::from_secs(5);
/// Without any answer for this long, HTTPS is tried beside STUN...
const HTTPS_AFTER: Duration = Duration::from_millis(800);
/// ...and sooner by a node that has no home yet.
const HTTPS_AFTER_WITHOUT_HOME: Duration = Duration::from_millis(300);
/// With answers of this many regions, the run ends soon.
const ENOUGH_REGIONS: usize = 3;
/// The least time between two tries of a set whose name took long to resolve.
const CATCH_UP_GAP: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Sent {
    set: usize,
    at: Instant,
}

pub(super) struct Run {
    pub(super) started: Instant,
    /// Whether every region is asked.
    pub(super) full: bool,
    sets: Vec<ProbeSet>,
    in_flight: BTreeMap<TransactionId, Sent>,
    pub(super) report: Report,
    pub(super) first_answer: Option<Instant>,
    ends_at: Instant,
    /// How many regions were asked over HTTPS.
    https_asked: Option<usize>,
}

impl Run {
    pub(super) fn new(now: Instant, full: bool, sets: Vec<ProbeSet>) -> Self {
        Self {
            started: now,
            full,
            sets,
            in_flight: BTreeMap::new(),
            report: Report::default(),
            first_answer: None,
            ends_at: now + STUN_PHASE,
            https_asked: None,
        }
    }

    /// When the run ends at the latest.
    fn end(&self) -> Instant {
        if self.report.has_udp() {
            self.ends_at
        } else {
            self.started + WHOLE_RUN
        }
    }

    /// Whether nothing more is expected.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let has_udp = self.report.has_udp();
        let all_answered = self.sets.iter().all(|set| set.answered) && has_udp;
        let https_done = self.https_asked.is_some_and(|asked| {
            !has_udp && now >= self.started + STUN_PHASE && self.report.https_count() >= asked
        });
        now >= self.end() || all_answered || https_done
    }

    /// When there is something to send, or the run ends.
    pub(super) fn deadline(&self, map: &DerpMap, hosts: &StunHosts, has_home: bool) -> Instant {
        let is_ready = |set: &ProbeSet, node: usize| {
            let region = map.regions.get(&set.region);
            let node = region.and_then(|region| region.nodes.get(node));
            node.is_some_and(|node| {
                !matches!(hosts.target(node, set.family), Target::Unresolved(_))
            })
        };
        let tries = self.sets.iter().filter_map(|set| {
            let (at, node) = *set.tries.front()?;
            is_ready(set, node).then_some(at)
        });
        let all = tries.chain(self.https_at(has_home));
        all.fold(self.end(), Instant::min)
    }

    /// Takes a STUN response. Returns whether it changes what is known about our
    /// addresses; `None` if it answers no request of this run.
    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        response: &stun::Response,
    ) -> Option<bool> {
        let sent = self.in_flight.remove(&response.transaction)?;
        let set = self.sets.get_mut(sent.set)?;
        set.answered = true;
        set.tries.clear();
        self.in_flight.retain(|_, other| other.set != sent.set);
        self.first_answer.get_or_insert(now);

        let latency = now.saturating_duration_since(sent.at);
        let changed = self
            .report
            .take_stun(set.region, set.family, latency, response.mapped);
        // The regions that have not answered get as long as the slowest took,
        // and twice that where all are asked.
        let regions = self.report.latency();
        if regions.len() >= ENOUGH_REGIONS {
            let slowest = regions.values().max().copied().unwrap_or_default();
            let rest = if self.full { slowest * 2 } else { slowest };
            self.ends_at = self.ends_at.min(now + rest);
        }
        Some(changed)
    }

    /// Takes the time of an HTTPS request, if the run asked for any.
    pub(super) fn handle_https(&mut self, region: RegionId, latency: Duration) {
        if self.https_asked.is_some() {
            self.report.take_https(region, latency);
        }
    }

    /// Sends the STUN requests that are due.
    pub(super) fn send_due(
        &mut self,
        now: Instant,
        map: &DerpMap,
        hosts: &mut StunHosts,
        entropy: &mut dyn Entropy,
        events: &mut VecDeque<Event>,
        counters: &mut Counters,
    ) {
        for (index, set) in self.sets.iter_mut().enumerate() {
            while let Some((at, node)) = set.tries.front().copied() {
                if now < at {
                    break;
                }
                let region = map.regions.get(&set.region);
                let Some(node) = region.and_then(|region| region.nodes.get(node)) else {
                    set.tries.clear();
                    break;
                };
                if self.report.is_complete(set.region, set.family) {
                    set.tries.clear();
                    set.answered = true;
                    break;
                }
                match hosts.target(node, set.family) {
                    Target::Unresolved(name) => {
                        if let Some(name) = name {
                            hosts.resolve(name, events);
                        }
                        break;
                    }
                    Target::Never => {
                        set.tries.pop_front();
                    }
                    Target::At(to) => {
                        set.tries.pop_front();
                        let mut id = [0; 12];
                        entropy.fill(&mut id);
                        let transaction = TransactionId(id);
                        let packet = stun::Request { transaction }.emit().to_vec();
                        let sent = Sent {
                            set: index,
                            at: now,
                        };
                        self.in_flight.insert(transaction, sent);
                        counters.stun_sent += 1;
                        events.push_back(Event::SendUdp { to, packet });
                        if let Some((next, _)) = set.tries.front_mut() {
                            *next = (*next).max(now + CATCH_UP_GAP);
                        }
                    }
                }
            }
            if set.tries.is_empty() && !self.in_flight.values().any(|sent| sent.set == index) {
                set.answered = true;
            }
        }
    }

    /// Asks for HTTPS requests to all regions, when UDP seems blocked.
    pub(super) fn ask_https(
        &mut self,
        now: Instant,
        map: &DerpMap,
        has_home: bool,
        events: &mut VecDeque<Event>,
    ) {
        if self.https_at(has_home).is_none_or(|at| now < at) {
            return;
        }
        let eligible = map.regions.iter().filter(|(_, region)| can_be_home(region));
        let mut asked = 0;
        for (region, _) in eligible {
            events.push_back(Event::ProbeRelayHttps { region: *region });
            asked += 1;
        }
        self.https_asked = Some(asked);
    }

    /// When HTTPS is tried, if it still has to be.
    fn https_at(&self, has_home: bool) -> Option<Instant> {
        if self.report.has_udp() || self.https_asked.is_some() {
            return None;
        }
        let after = if has_home {
            HTTPS_AFTER
        } else {
            HTTPS_AFTER_WITHOUT_HOME
        };
        Some(self.started + after)
    }
}
