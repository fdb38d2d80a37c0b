//! The state of our network: the addresses that STUN servers see, whether the
//! NAT varies its mappings, the latency of the relay regions.
//!
//! A [`Run`] sends the STUN requests of a plan and lives for 3 s at most. Each
//! answer is used when it arrives, not at the end. If UDP seems blocked, the
//! runtime is asked to time an HTTPS request at each region, and the run lives
//! for 5 s.
//!
//! Only one run exists at a time. A request during a run is remembered, and
//! starts the next one.

mod home;
mod probe_plan;
mod report;
mod run;
mod stun_hosts;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, NetInfo, RegionId};
use warren_keys::Entropy;
use warren_node_types::Family;
use warren_wire::stun;

use self::home::HomeChoice;
use self::probe_plan::{LastTime, can_be_home};
use self::report::Report;
use self::run::Run;
use self::stun_hosts::{StunHosts, Target};
use crate::api::{Counters, Event, Measurements};

/// How long the first choice of a home waits for a nearer answer.
const FIRST_HOME_WAIT: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(150));
/// A full run at least this often.
const FULL_EVERY: Duration = Duration::from_secs(300);

/// The effect of an input; the owner reads addresses and home afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// An outside address was seen, or the NAT showed that it varies.
    pub(crate) addresses: bool,
    /// The run is over.
    pub(crate) finished: bool,
}

/// The run to start when the current one is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum NextRun {
    #[default]
    None,
    /// One that asks the regions whose turn it is.
    Usual,
    /// One that asks all regions.
    Full,
}

/// The runs so far, which are numbered from 1.
#[derive(Debug, Clone, Copy, Default)]
struct RunHistory {
    last_started: u64,
    /// The last run that came to its end, and when.
    last_ended: u64,
    ended_at: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Netcheck {
    map: DerpMap,
    hosts: StunHosts,
    has_v4: bool,
    has_v6: bool,
    run: Option<Run>,
    /// The run to start after this one.
    next: NextRun,
    history: RunHistory,
    last: Option<Report>,
    last_time: LastTime,
    last_started: Option<Instant>,
    last_full: Option<Instant>,
    choice: HomeChoice,
    home: Option<RegionId>,
    /// While control is not connected, home does not move.
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

    /// Something came from the relay of `region`.
    pub(crate) fn relay_received(&mut self, now: Instant, region: RegionId) {
        self.choice.received(now, region);
    }

    /// The connection to the relay of `region` broke.
    pub(crate) fn relay_lost(&mut self, region: RegionId) {
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

    /// The network changed: the next run asks all regions, and an old run is
    /// void.
    pub(crate) fn forget(&mut self) {
        self.run = None;
        self.last_full = None;
        self.last = None;
    }

    /// Starts a run, or remembers to start one after the current one.
    pub(crate) fn request(&mut self, now: Instant) {
        if self.run.is_some() {
            self.next = self.next.max(NextRun::Usual);
            return;
        }
        let next = std::mem::take(&mut self.next);
        let mut families = Vec::with_capacity(2);
        families.extend(self.has_v4.then_some(Family::V4));
        families.extend(self.has_v6.then_some(Family::V6));
        if self.map.regions.is_empty() || families.is_empty() {
            return;
        }
        let is_due = self.last_full.is_none_or(|at| now >= at + FULL_EVERY);
        let full = is_due || next == NextRun::Full;
        let sets = if full {
            self.hosts.retry_failed();
            probe_plan::full(now, &self.map, &families)
        } else {
            probe_plan::incremental(now, &self.map, &families, &self.last_time, self.home)
        };
        self.last_started = Some(now);
        self.history.last_started += 1;
        self.run = Some(Run::new(now, full, sets));
    }

    /// As [`request`](Self::request), for all regions.
    pub(crate) fn request_full(&mut self, now: Instant) {
        self.next = NextRun::Full;
        self.request(now);
    }

    /// The measurements so far, and the one that was asked for last.
    pub(crate) fn measurements(&self) -> Measurements {
        let RunHistory {
            last_started,
            last_ended,
            ended_at,
        } = self.history;
        let follows = u64::from(self.next != NextRun::None);
        Measurements {
            last_ended,
            ended_at,
            awaited: self.run.as_ref().map(|_| last_started + follows),
        }
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
        self.newest()?.global(family)
    }

    /// The outside IPv4 address of a NAT that varies its mappings.
    pub(crate) fn varying_v4(&self) -> Option<IpAddr> {
        let report = self.newest()?;
        let global = report.global(Family::V4)?;
        (report.varies() == Some(true)).then_some(global.ip())
    }

    /// Addresses of STUN servers, those of the home region first.
    pub(crate) fn stun_servers(&self, family: Family, most: usize) -> Vec<SocketAddr> {
        let mut regions: Vec<_> = self.map.regions.iter().collect();
        regions.sort_by_key(|(id, _)| Some(**id) != self.home);
        let nodes = regions.iter().flat_map(|(_, region)| &region.nodes);
        let targets = nodes.filter_map(|node| match self.hosts.target(node, family) {
            Target::At(address) => Some(address),
            Target::Never | Target::Unresolved(_) => None,
        });
        targets.take(most).collect()
    }

    /// Whether the address of a STUN server is known.
    pub(crate) fn has_stun_server(&self, family: Family) -> bool {
        !self.stun_servers(family, 1).is_empty()
    }

    /// Whether our NAT maps each destination to another port, over IPv4; `None` before
    /// two servers have answered in one run.
    pub(crate) fn varies(&self) -> Option<bool> {
        let running = self.run.as_ref().and_then(|run| run.report.varies());
        running.or_else(|| self.last.as_ref()?.varies())
    }

    fn newest(&self) -> Option<&Report> {
        let running = self
            .run
            .as_ref()
            .map(|run| &run.report)
            .filter(|report| report.has_udp());
        running.or(self.last.as_ref())
    }

    /// The findings, in the form that control gets.
    pub(crate) fn net_info(&self, os_has_v6: bool) -> NetInfo {
        let is_done = self.run.is_none() && self.last.is_some();
        let report = self.newest().cloned().unwrap_or_default();
        report.net_info(is_done, os_has_v6)
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
        let run = self.run.as_mut();
        let Some(addresses) = run.and_then(|run| run.handle_response(now, &response)) else {
            counters.stun_unknown_transaction += 1;
            return Progress::default();
        };
        Progress {
            addresses,
            finished: false,
        }
    }

    /// The runtime timed an HTTPS request.
    pub(crate) fn https_latency(&mut self, region: RegionId, latency: Duration) {
        if let Some(run) = &mut self.run
            && self.map.regions.contains_key(&region)
        {
            run.handle_https(region, latency);
        }
    }

    /// The runtime resolved a name that it was asked for.
    pub(crate) fn host_resolved(&mut self, name: &str, addresses: Vec<IpAddr>) {
        self.hosts.resolved(name, addresses);
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
        let has_home = self.home.is_some();
        if let Some(run) = &mut self.run {
            run.ask_https(now, &self.map, has_home, events);
        }
        let Some(run) = self.run.take_if(|run| run.is_over(now)) else {
            return Progress::default();
        };
        self.finish(now, run);
        if self.next != NextRun::None {
            self.request(now);
            self.send_due(now, entropy, events, counters);
        }
        Progress {
            addresses: false,
            finished: true,
        }
    }

    fn send_due(
        &mut self,
        now: Instant,
        entropy: &mut dyn Entropy,
        events: &mut VecDeque<Event>,
        counters: &mut Counters,
    ) {
        if let Some(run) = &mut self.run {
            run.send_due(now, &self.map, &mut self.hosts, entropy, events, counters);
        }
    }

    /// Keeps the findings of a run that is over, and chooses home by them.
    fn finish(&mut self, now: Instant, mut run: Run) {
        if let Some(last) = &self.last {
            run.report.inherit(last);
        }
        let latency = run.report.latency();
        self.history.last_ended = self.history.last_started;
        self.history.ended_at = Some(now);
        if run.full {
            self.last_full = run.report.has_udp().then_some(run.started);
            self.last_time = LastTime::default();
        }
        self.last_time
            .latency
            .extend(latency.iter().map(|(id, latency)| (*id, *latency)));
        self.last_time.had_v6 |= run.report.global(Family::V6).is_some();
        self.last = Some(run.report);
        if !(self.control_away && self.home.is_some()) {
            let chosen = self
                .choice
                .choose(now, run.started, &self.map, &latency, self.home);
            self.home = chosen.or_else(|| self.draw_home());
        }
        self.choice.remember(now, latency);
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

    /// When [`drive`](Self::drive) or
    /// [`pick_first_home`](Self::pick_first_home) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let run = self.run.as_ref()?;
        let due = run.deadline(&self.map, &self.hosts, self.home.is_some());
        self.first_home_at().into_iter().chain([due]).min()
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
        // Regions that were asked at the same time and are at most twice as far
        // as the nearest have answered by then.
        Some(run.first_answer.unwrap_or(run.started) + nearest.clamp(least, most))
    }
}
