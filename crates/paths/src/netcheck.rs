//! What our network is like: addresses seen from outside, whether the NAT
//! varies its mappings, how far the relay regions are.
//!
//! A *run* sends the STUN requests of a plan and lives for 3 s at most. Nobody
//! waits for its end: each answer is used when it arrives. If UDP seems
//! blocked, the shell is asked to time an HTTPS request at each region, and the
//! run lives for 5 s.
//!
//! Only one run exists at a time. A request during a run is remembered, and
//! starts the next one.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, NetInfo, RegionId};
use warren_keys::Entropy;
use warren_node_types::Family;
use warren_wire::stun::{self, TransactionId};

use crate::api::{Counters, Event};
use crate::home::HomeChoice;
use crate::probe_plan::{self, LastTime, ProbeSet, StunAddress, can_be_home, stun_address};

/// End of a run in which UDP works.
const STUN_PHASE: Duration = Duration::from_secs(3);
/// End of a run in which it does not.
const WHOLE_RUN: Duration = Duration::from_secs(5);
/// Without any answer for this long, HTTPS is tried beside STUN...
const HTTPS_AFTER: Duration = Duration::from_millis(800);
/// ...and sooner by a node that has no home yet.
const HTTPS_AFTER_WITHOUT_HOME: Duration = Duration::from_millis(300);
/// How long the first choice of a home waits for a nearer answer.
const FIRST_HOME_WAIT: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(150));
/// A full run at least this often.
const FULL_EVERY: Duration = Duration::from_secs(300);
/// With answers of this many regions, the slower rest gets as long again.
const ENOUGH_REGIONS: usize = 3;

/// What changed by an input; the owner reads addresses and home afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// An outside address was seen, or the NAT showed that it varies.
    pub(crate) addresses: bool,
    /// The run is over.
    pub(crate) finished: bool,
}

/// The findings of one run.
#[derive(Debug, Clone, Default)]
struct Report {
    latency_v4: BTreeMap<RegionId, Duration>,
    latency_v6: BTreeMap<RegionId, Duration>,
    latency_https: BTreeMap<RegionId, Duration>,
    global_v4: Option<SocketAddr>,
    global_v6: Option<SocketAddr>,
    /// How often each address was seen.
    seen: BTreeMap<SocketAddr, u32>,
    varies: Option<bool>,
}

impl Report {
    fn has_udp(&self) -> bool {
        self.global_v4.is_some() || self.global_v6.is_some()
    }

    fn latency(&self) -> BTreeMap<RegionId, Duration> {
        let mut all = BTreeMap::new();
        for (region, latency) in self
            .latency_v4
            .iter()
            .chain(&self.latency_v6)
            .chain(&self.latency_https)
        {
            let least = all.entry(*region).or_insert(*latency);
            *least = (*least).min(*latency);
        }
        all
    }

    /// The addresses worth telling: the first of each family, and others that
    /// more than one server saw.
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut out: Vec<_> = self.global_v4.into_iter().chain(self.global_v6).collect();
        let often = self.seen.iter().filter(|(_, count)| **count >= 2);
        for (address, _) in often {
            if !out.contains(address) {
                out.push(*address);
            }
        }
        out
    }
}

#[derive(Debug)]
struct Sent {
    set: usize,
    at: Instant,
}

struct Run {
    started: Instant,
    full: bool,
    sets: Vec<ProbeSet>,
    in_flight: BTreeMap<TransactionId, Sent>,
    report: Report,
    first_answer: Option<Instant>,
    ends_at: Instant,
    https_asked: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Asked,
    Known(Vec<IpAddr>),
}

#[derive(Default)]
pub(crate) struct Netcheck {
    map: DerpMap,
    hosts: BTreeMap<String, Host>,
    has_v4: bool,
    has_v6: bool,
    run: Option<Run>,
    again: bool,
    last: Option<Report>,
    last_time: LastTime,
    last_started: Option<Instant>,
    last_full: Option<Instant>,
    choice: HomeChoice,
    home: Option<RegionId>,
    /// While control is away home does not move.
    control_away: bool,
    /// Breaks the tie when nothing can be measured; stable for this node.
    draw: u64,
}

impl Netcheck {
    pub(crate) fn new(draw: u64) -> Self {
        Self {
            draw,
            ..Self::default()
        }
    }

    pub(crate) fn map(&self) -> &DerpMap {
        &self.map
    }

    pub(crate) fn home(&self) -> Option<RegionId> {
        self.home
    }

    pub(crate) fn has_family(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.has_v4,
            Family::V6 => self.has_v6,
        }
    }

    pub(crate) fn set_control_away(&mut self, away: bool) {
        self.control_away = away;
    }

    pub(crate) fn heard_relay(&mut self, now: Instant, region: RegionId) {
        self.choice.heard(now, region);
    }

    pub(crate) fn lost_relay(&mut self, region: RegionId) {
        self.choice.lost(region);
    }

    /// Takes a new map. Returns whether it differs.
    pub(crate) fn set_map(&mut self, map: &DerpMap) -> bool {
        if *map == self.map {
            return false;
        }
        self.map = map.clone();
        self.choice.retain(map);
        self.hosts.clear();
        self.home = self.home.filter(|home| map.regions.contains_key(home));
        self.last_full = None;
        true
    }

    /// Takes the usable families. Returns whether they differ.
    pub(crate) fn set_families(&mut self, v4: bool, v6: bool) -> bool {
        let changed = (v4, v6) != (self.has_v4, self.has_v6);
        (self.has_v4, self.has_v6) = (v4, v6);
        changed
    }

    /// The network changed: the next run asks everyone, and an old run is void.
    pub(crate) fn forget(&mut self) {
        self.run = None;
        self.last_full = None;
        self.last = None;
    }

    /// Starts a run, or remembers to start one after the current one.
    pub(crate) fn request(&mut self, now: Instant) {
        if self.run.is_some() {
            self.again = true;
            return;
        }
        self.again = false;
        let mut families = Vec::with_capacity(2);
        families.extend(self.has_v4.then_some(Family::V4));
        families.extend(self.has_v6.then_some(Family::V6));
        if self.map.regions.is_empty() || families.is_empty() {
            return;
        }
        let full = self.last_full.is_none_or(|at| now >= at + FULL_EVERY);
        let sets = if full {
            // Names that did not resolve get another chance.
            self.hosts
                .retain(|_, host| matches!(host, Host::Known(list) if !list.is_empty()));
            probe_plan::full(now, &self.map, &families)
        } else {
            probe_plan::incremental(now, &self.map, &families, &self.last_time, self.home)
        };
        self.last_started = Some(now);
        self.run = Some(Run {
            started: now,
            full,
            sets,
            in_flight: BTreeMap::new(),
            report: Report::default(),
            first_answer: None,
            ends_at: now + STUN_PHASE,
            https_asked: None,
        });
    }

    pub(crate) fn is_running(&self) -> bool {
        self.run.is_some()
    }

    pub(crate) fn last_started(&self) -> Option<Instant> {
        self.last_started
    }

    /// The addresses seen in this run, or in the last one.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.newest().map(Report::addresses).unwrap_or_default()
    }

    /// The address that STUN servers see in this family.
    pub(crate) fn global(&self, family: Family) -> Option<SocketAddr> {
        let report = self.newest()?;
        match family {
            Family::V4 => report.global_v4,
            Family::V6 => report.global_v6,
        }
    }

    /// The outside IPv4 address of a NAT that varies its mappings.
    pub(crate) fn varying_v4(&self) -> Option<IpAddr> {
        let report = self.newest()?;
        let global = report.global_v4.filter(|_| report.varies == Some(true))?;
        Some(global.ip())
    }

    fn newest(&self) -> Option<&Report> {
        let running = self
            .run
            .as_ref()
            .map(|run| &run.report)
            .filter(|report| report.has_udp());
        running.or(self.last.as_ref())
    }

    /// What control is told.
    pub(crate) fn net_info(&self, os_has_v6: bool) -> NetInfo {
        let running = self.run.as_ref();
        let report = self.newest().cloned().unwrap_or_default();
        let done = running.is_none() && self.last.is_some();
        // Before the end of a run "no" only means "not yet".
        let verdict = |yes: bool| (yes || done).then_some(yes);
        let seconds = |map: &BTreeMap<RegionId, Duration>, family: &str| {
            let named = map
                .iter()
                .map(|(id, time)| (format!("{id}-{family}"), time.as_secs_f64()));
            named.collect::<Vec<_>>()
        };
        let mut derp_latency = BTreeMap::new();
        derp_latency.extend(seconds(&report.latency_https, "v4"));
        derp_latency.extend(seconds(&report.latency_v4, "v4"));
        derp_latency.extend(seconds(&report.latency_v6, "v6"));
        NetInfo {
            mapping_varies_by_dest_ip: report.varies,
            working_ipv6: verdict(report.global_v6.is_some()),
            os_has_ipv6: Some(os_has_v6),
            working_udp: verdict(report.has_udp()),

            derp_latency,
            ..NetInfo::default()
        }
    }

    /// A STUN response came in.
    pub(crate) fn handle_stun(
        &mut self,
        now: Instant,
        datagram: &[u8],
        counters: &mut Counters,
    ) -> Progress {
        let Ok(response) = stun::Response::parse(datagram) else {
            counters.stun_malformed += 1;
            return Progress::default();
        };
        let Some(run) = &mut self.run else {
            counters.stun_unknown_transaction += 1;
            return Progress::default();
        };
        let Some(sent) = run.in_flight.remove(&response.transaction) else {
            counters.stun_unknown_transaction += 1;
            return Progress::default();
        };
        let set = &mut run.sets[sent.set];
        set.answered = true;
        set.tries.clear();
        run.in_flight.retain(|_, other| other.set != sent.set);
        run.first_answer.get_or_insert(now);

        let latency = now.saturating_duration_since(sent.at);
        let (region, family) = (set.region, set.family);
        let report = &mut run.report;
        let measured = match family {
            Family::V4 => &mut report.latency_v4,
            Family::V6 => &mut report.latency_v6,
        };
        let least = measured.entry(region).or_insert(latency);
        *least = (*least).min(latency);

        let before = (report.addresses(), report.varies);
        *report.seen.entry(response.mapped).or_default() += 1;
        if response.mapped.is_ipv4() {
            match report.global_v4 {
                None => report.global_v4 = Some(response.mapped),
                Some(first) if first != response.mapped => report.varies = Some(true),
                Some(_) => {
                    report.varies.get_or_insert(false);
                }
            }
        } else {
            report.global_v6.get_or_insert(response.mapped);
        }
        let addresses = (report.addresses(), report.varies) != before;

        let regions = report.latency();
        if regions.len() >= ENOUGH_REGIONS {
            let slowest = regions.values().max().copied().unwrap_or_default();
            let rest = if run.full { slowest * 2 } else { slowest };
            run.ends_at = run.ends_at.min(now + rest);
        }
        Progress {
            addresses,
            finished: false,
        }
    }

    /// The shell timed an HTTPS request.
    pub(crate) fn https_latency(&mut self, region: RegionId, latency: Duration) {
        if let Some(run) = &mut self.run
            && run.https_asked.is_some()
            && self.map.regions.contains_key(&region)
        {
            run.report.latency_https.insert(region, latency);
        }
    }

    /// The shell resolved a name that it was asked for.
    pub(crate) fn host_resolved(&mut self, name: &str, addresses: Vec<IpAddr>) {
        if let Some(host) = self.hosts.get_mut(name) {
            *host = Host::Known(addresses);
        }
    }

    /// Sends what is due, and ends the run when it is over.
    pub(crate) fn drive(
        &mut self,
        now: Instant,
        entropy: &mut dyn Entropy,
        events: &mut VecDeque<Event>,
        counters: &mut Counters,
    ) -> Progress {
        self.send_due(now, entropy, events, counters);
        self.ask_https(now, events);
        let Some(run) = &self.run else {
            return Progress::default();
        };
        let has_udp = run.report.has_udp();
        let all_answered = run.sets.iter().all(|set| set.answered) && has_udp;
        let https_done = run.https_asked.is_some_and(|asked| {
            !has_udp && now >= run.started + STUN_PHASE && run.report.latency_https.len() >= asked
        });
        let over = now >= Self::run_end(run) || all_answered || https_done;
        if !over {
            return Progress::default();
        }
        let Some(run) = self.run.take() else {
            return Progress::default();
        };
        let latency = run.report.latency();
        if run.full {
            self.last_full = has_udp.then_some(run.started);
            self.last_time = LastTime::default();
        }
        self.last_time
            .latency
            .extend(latency.iter().map(|(id, latency)| (*id, *latency)));
        self.last_time.had_v6 |= run.report.global_v6.is_some();
        self.last = Some(run.report);
        if !(self.control_away && self.home.is_some()) {
            let chosen = self
                .choice
                .choose(now, run.started, &self.map, &latency, self.home);
            self.home = chosen.or_else(|| self.draw_home());
        }
        self.choice.remember(now, latency);
        if self.again {
            self.request(now);
            self.send_due(now, entropy, events, counters);
        }
        Progress {
            addresses: false,
            finished: true,
        }
    }

    /// Picks the first home before the run is over. Returns whether it did.
    pub(crate) fn pick_first_home(&mut self, now: Instant) -> bool {
        if self.home.is_some() {
            return false;
        }
        let mut eligible = self
            .map
            .regions
            .iter()
            .filter(|(_, region)| can_be_home(region));
        if let (Some((only, _)), None) = (eligible.next(), eligible.next()) {
            self.home = Some(*only);
            return true;
        }
        let ready = self.first_home_at().is_some_and(|at| now >= at);
        if let (true, Some(run)) = (ready, &self.run) {
            let latency = run.report.latency();
            self.home = self
                .choice
                .choose(now, run.started, &self.map, &latency, None);
        }
        self.home.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let run = self.run.as_ref()?;
        let ready = |(_, node): &&(Instant, usize), set: &ProbeSet| {
            let region = self.map.regions.get(&set.region);
            let node = region.and_then(|region| region.nodes.get(*node));
            node.is_some_and(|node| !matches!(self.target(node, set.family), Target::Wait(_)))
        };
        let tries = run.sets.iter().filter_map(|set| {
            set.tries
                .front()
                .filter(|try_| ready(try_, set))
                .map(|(at, _)| *at)
        });
        let https = self.https_at();
        let home = self.first_home_at();
        tries
            .chain(https)
            .chain(home)
            .chain([Self::run_end(run)])
            .min()
    }

    fn run_end(run: &Run) -> Instant {
        if run.report.has_udp() {
            run.ends_at
        } else {
            run.started + WHOLE_RUN
        }
    }

    /// A stable choice among the regions, for a node that can measure none.
    fn draw_home(&self) -> Option<RegionId> {
        let all = self
            .map
            .regions
            .iter()
            .filter(|(_, region)| can_be_home(region));
        let all: Vec<RegionId> = all.map(|(id, _)| *id).collect();
        let count = u64::try_from(all.len()).ok().filter(|count| *count > 0)?;
        all.get(usize::try_from(self.draw % count).ok()?).copied()
    }

    fn first_home_at(&self) -> Option<Instant> {
        let run = self.run.as_ref().filter(|_| self.home.is_none())?;
        let latency = run.report.latency();
        let eligible = |id: &RegionId| self.map.regions.get(id).is_some_and(can_be_home);
        let nearest = latency
            .iter()
            .filter(|(id, _)| eligible(id))
            .map(|(_, time)| *time)
            .min()?;
        let (least, most) = FIRST_HOME_WAIT;
        // Those asked at the same time and not farther than twice the nearest
        // have answered by then.
        Some(run.first_answer.unwrap_or(run.started) + nearest.clamp(least, most))
    }

    fn https_at(&self) -> Option<Instant> {
        let run = self.run.as_ref()?;
        if run.report.has_udp() || run.https_asked.is_some() {
            return None;
        }
        let after = if self.home.is_some() {
            HTTPS_AFTER
        } else {
            HTTPS_AFTER_WITHOUT_HOME
        };
        Some(run.started + after)
    }

    fn ask_https(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        if self.https_at().is_none_or(|at| now < at) {
            return;
        }
        let Some(run) = &mut self.run else { return };
        let eligible = self
            .map
            .regions
            .iter()
            .filter(|(_, region)| can_be_home(region));
        let mut asked = 0;
        for (region, _) in eligible {
            events.push_back(Event::ProbeRelayHttps { region: *region });
            asked += 1;
        }
        run.https_asked = Some(asked);
    }

    fn send_due(
        &mut self,
        now: Instant,
        entropy: &mut dyn Entropy,
        events: &mut VecDeque<Event>,
        counters: &mut Counters,
    ) {
        let Some(mut run) = self.run.take() else {
            return;
        };
        for (index, set) in run.sets.iter_mut().enumerate() {
            while let Some((at, node)) = set.tries.front().copied() {
                if now < at {
                    break;
                }
                let region = self.map.regions.get(&set.region);
                let Some(node) = region.and_then(|region| region.nodes.get(node)) else {
                    set.tries.clear();
                    break;
                };
                if adds_nothing(set, &run.report) {
                    set.tries.clear();
                    set.answered = true;
                    break;
                }
                match self.target(node, set.family) {
                    Target::Wait(Some(name)) => {
                        events.push_back(Event::ResolveHost { name: name.clone() });
                        self.hosts.insert(name, Host::Asked);
                        break;
                    }
                    Target::Wait(None) => break,
                    Target::Never => {
                        set.tries.pop_front();
                    }
                    Target::At(to) => {
                        set.tries.pop_front();
                        let mut id = [0; 12];
                        entropy.fill(&mut id);
                        let transaction = TransactionId(id);
                        let packet = stun::Request { transaction }.emit().to_vec();
                        run.in_flight.insert(
                            transaction,
                            Sent {
                                set: index,
                                at: now,
                            },
                        );
                        counters.stun_sent += 1;
                        events.push_back(Event::SendUdp { to, packet });
                        // Tries that piled up while a name was resolved keep
                        // their distance.
                        if let Some((next, _)) = set.tries.front_mut() {
                            *next = (*next).max(now + Duration::from_millis(50));
                        }
                    }
                }
            }
            if set.tries.is_empty() && !run.in_flight.values().any(|sent| sent.set == index) {
                set.answered = true;
            }
        }
        self.run = Some(run);
    }

    fn target(&self, node: &warren_control_types::DerpNode, family: Family) -> Target {
        match stun_address(node, family) {
            StunAddress::Never => Target::Never,
            StunAddress::At(address) => Target::At(address),
            StunAddress::Resolve { name, port } => match self.hosts.get(name) {
                None => Target::Wait(Some(name.to_owned())),
                Some(Host::Asked) => Target::Wait(None),
                Some(Host::Known(list)) => list
                    .iter()
                    .find(|ip| Family::of(**ip) == family)
                    .map_or(Target::Never, |ip| Target::At(SocketAddr::new(*ip, port))),
            },
        }
    }
}

enum Target {
    At(SocketAddr),
    Never,
    /// For DNS; with a name that was not asked for yet.
    Wait(Option<String>),
}

/// Whether the answer to a probe would teach nothing that is not known from
/// earlier answers of this run.
fn adds_nothing(set: &ProbeSet, report: &Report) -> bool {
    if !report.latency().contains_key(&set.region) {
        return false;
    }
    match set.family {
        Family::V4 => report.global_v4.is_some() && report.varies.is_some(),
        Family::V6 => report.global_v6.is_some(),
    }
}
