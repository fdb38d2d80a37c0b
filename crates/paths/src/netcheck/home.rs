//! The choice of the home relay region.
//!
//! The nearest region is the best, but a move has a cost: every peer must learn
//! of it. So home stays while it is alive unless another region is clearly
//! nearer, by [`ABSOLUTE`] and to two thirds of the latency. While control is not
//! connected home never moves, because peers could not learn of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, RegionId};

use super::probe_plan::can_be_home;

/// A nearer region must save at least this much.
const ABSOLUTE: Duration = Duration::from_millis(10);
/// A packet from the relay makes it alive this long.
const RECEIVED_RECENTLY: Duration = Duration::from_secs(8);
/// How long measurements count: one full interval and a little.
const HISTORY: Duration = Duration::from_secs(305);

#[derive(Default)]
pub(super) struct HomeChoice {
    history: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
    received: BTreeMap<RegionId, Instant>,
}

impl HomeChoice {
    /// Something came from the relay of `region`.
    pub(super) fn received(&mut self, now: Instant, region: RegionId) {
        self.received.insert(region, now);
    }

    /// The connection to the relay of `region` broke: what came from it before
    /// says nothing about now.
    pub(super) fn lost(&mut self, region: RegionId) {
        self.received.remove(&region);
    }

    pub(super) fn retain(&mut self, map: &DerpMap) {
        self.received
            .retain(|region, _| map.regions.contains_key(region));
    }

    /// Keeps a finished measurement.
    pub(super) fn remember(&mut self, now: Instant, latency: BTreeMap<RegionId, Duration>) {
        self.history.push_back((now, latency));
        while self
            .history
            .front()
            .is_some_and(|(at, _)| now >= *at + HISTORY)
        {
            self.history.pop_front();
        }
    }

    /// The best home by `current`, the latencies of a measurement that began
    /// at `started`; `old` if nothing is known to be better.
    pub(super) fn choose(
        &self,
        now: Instant,
        started: Instant,
        map: &DerpMap,
        current: &BTreeMap<RegionId, Duration>,
        old: Option<RegionId>,
    ) -> Option<RegionId> {
        let eligible = map.regions.iter().filter(|(_, region)| can_be_home(region));
        let scored = eligible.filter_map(|(id, _)| {
            let measured = *current.get(id)?;
            let recent = self.history.iter().filter(|(at, _)| now < *at + HISTORY);
            let past = recent.filter_map(|(_, latency)| latency.get(id).copied());
            let least = past.fold(measured, Duration::min);
            Some((least.mul_f64(map.home_score(*id).clamp(0.01, 100.0)), *id))
        });
        let Some((best_latency, best)) = scored.min() else {
            return old;
        };
        let Some(old) = old.filter(|old| *old != best && map.regions.contains_key(old)) else {
            return Some(best);
        };
        let old_latency = current.get(&old).copied();
        let received = self.received.get(&old);
        let alive = old_latency.is_some()
            || received.is_some_and(|at| *at >= started || now < *at + RECEIVED_RECENTLY);
        // An old home that is alive but was not measured stays.
        let old_latency = old_latency.unwrap_or_default();
        let not_clearly_nearer = old_latency.saturating_sub(best_latency) < ABSOLUTE
            || best_latency > old_latency / 3 * 2;
        Some(if alive && not_clearly_nearer {
            old
        } else {
            best
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_control_types::{DerpNode, DerpRegion};

    fn map() -> DerpMap {
        let region = |id| DerpRegion {
            region_id: RegionId(id),
            nodes: vec![DerpNode::default()],
            ..DerpRegion::default()
        };
        let mut map = DerpMap::default();
        map.regions
            .extend((1..=3).map(|id| (RegionId(id), region(id))));
        map
    }

    #[test]
    fn moving_needs_a_good_reason() {
        let now = Instant::now();
        let millis = |list: &[(u16, u64)]| -> BTreeMap<RegionId, Duration> {
            list.iter()
                .map(|(id, ms)| (RegionId(*id), Duration::from_millis(*ms)))
                .collect()
        };
        let cases = [
            ("first choice", None, millis(&[(1, 30), (2, 20)]), Some(2)),
            (
                "little to gain",
                Some(1),
                millis(&[(1, 29), (2, 20)]),
                Some(1),
            ),
            (
                "clearly nearer",
                Some(1),
                millis(&[(1, 60), (2, 20)]),
                Some(2),
            ),
            (
                "far away, but not by a third",
                Some(1),
                millis(&[(1, 200), (2, 150)]),
                Some(1),
            ),
            ("silent home", Some(1), millis(&[(2, 20)]), Some(2)),
            ("nothing measured", Some(1), millis(&[]), Some(1)),
            ("home left the map", Some(9), millis(&[(3, 20)]), Some(3)),
        ];
        for (what, old, current, expected) in cases {
            let choice = HomeChoice::default();
            let chosen = choice.choose(now, now, &map(), &current, old.map(RegionId));
            assert_eq!(chosen, expected.map(RegionId), "{what}");
        }
    }

    #[test]
    fn an_unmeasured_home_stays_while_it_sends() {
        let now = Instant::now();
        let mut choice = HomeChoice::default();
        choice.received(now, RegionId(1));
        let current = BTreeMap::from([(RegionId(2), Duration::from_millis(20))]);
        let chosen = |at| choice.choose(at, at, &map(), &current, Some(RegionId(1)));
        assert_eq!(chosen(now + Duration::from_secs(7)), Some(RegionId(1)));
        assert_eq!(chosen(now + Duration::from_secs(9)), Some(RegionId(2)));
    }

    #[test]
    fn a_home_whose_connection_broke_is_not_alive() {
        let now = Instant::now();
        let mut choice = HomeChoice::default();
        choice.received(now, RegionId(1));
        choice.lost(RegionId(1));
        let mut current = BTreeMap::from([(RegionId(2), Duration::from_millis(20))]);
        let home = |current: &_| choice.choose(now, now, &map(), current, Some(RegionId(1)));
        assert_eq!(home(&current), Some(RegionId(2)));
        // It answers, so it only restarted.
        current.insert(RegionId(1), Duration::from_millis(25));
        assert_eq!(home(&current), Some(RegionId(1)));
    }

    #[test]
    fn one_slow_answer_is_forgiven() {
        let now = Instant::now();
        let mut choice = HomeChoice::default();
        choice.remember(
            now,
            BTreeMap::from([(RegionId(1), Duration::from_millis(10))]),
        );
        let current = BTreeMap::from([
            (RegionId(1), Duration::from_millis(90)),
            (RegionId(2), Duration::from_millis(40)),
        ]);
        let chosen = choice.choose(now, now, &map(), &current, None);
        assert_eq!(chosen, Some(RegionId(1)));
    }
}
