//! The relays to be connected to.
//!
//! The home relay always; others from the first packet for a peer there until
//! a minute after the last one. The shell connects once per request; this file
//! asks again, after a pause that doubles up to [`MAX_BACKOFF`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_timers::{Backoff, Growth};

use crate::api::Event;

/// A relay that is not home is closed this long after its last use.
const IDLE: Duration = Duration::from_secs(60);
/// The pauses between attempts to connect, up to [`MAX_BACKOFF`].
const RECONNECT: Backoff = Backoff::new(Growth::Doubling, Duration::from_millis(100), MAX_BACKOFF);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Connected,
    Down { retry_at: Instant },
}

struct Relay {
    state: State,
    backoff: Backoff,
    used: Instant,
}

#[derive(Default)]
pub(crate) struct Relays {
    relays: BTreeMap<RegionId, Relay>,
    home: Option<RegionId>,
}

impl Relays {
    /// Asks for a connection, or notes that an existing one is used.
    pub(crate) fn want(&mut self, now: Instant, region: RegionId, events: &mut VecDeque<Event>) {
        let relay = self.relays.entry(region).or_insert_with(|| {
            events.push_back(Event::ConnectRelay(region));
            Relay {
                state: State::Connecting,
                backoff: RECONNECT,
                used: now,
            }
        });
        relay.used = now;
    }

    /// Notes use of a connection, if there is one.
    pub(crate) fn touch(&mut self, now: Instant, region: RegionId) {
        if let Some(relay) = self.relays.get_mut(&region) {
            relay.used = now;
        }
    }

    pub(crate) fn is_connected(&self, region: RegionId) -> bool {
        self.relays
            .get(&region)
            .is_some_and(|relay| relay.state == State::Connected)
    }

    pub(crate) fn set_home(&mut self, now: Instant, home: RegionId, events: &mut VecDeque<Event>) {
        self.home = Some(home);
        self.want(now, home, events);
    }

    pub(crate) fn connected(&mut self, now: Instant, region: RegionId) {
        let relay = Relay {
            state: State::Connected,
            backoff: RECONNECT,
            used: now,
        };
        self.relays.insert(region, relay);
    }

    pub(crate) fn disconnected(&mut self, now: Instant, region: RegionId) {
        let is_home = self.home == Some(region);
        let Some(relay) = self.relays.get_mut(&region) else {
            return;
        };
        if !is_home && now >= relay.used + IDLE {
            self.relays.remove(&region);
            return;
        }
        relay.state = State::Down {
            retry_at: now + relay.backoff.delay(),
        };
    }

    /// Drops regions that are no longer in the map.
    pub(crate) fn retain(
        &mut self,
        exists: impl Fn(RegionId) -> bool,
        events: &mut VecDeque<Event>,
    ) {
        self.relays.retain(|region, _| {
            let keep = exists(*region);
            if !keep {
                events.push_back(Event::CloseRelay(*region));
            }
            keep
        });
        self.home = self.home.filter(|home| exists(*home));
    }

    /// After a change of network: do not wait for pauses that began before it.
    pub(crate) fn retry_now(&mut self, now: Instant) {
        for relay in self.relays.values_mut() {
            relay.backoff.reset();
            if let State::Down { retry_at } = &mut relay.state {
                *retry_at = now;
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let each = self
            .relays
            .iter()
            .filter_map(|(region, relay)| match relay.state {
                State::Down { retry_at } => Some(retry_at),
                State::Connected if self.home != Some(*region) => Some(relay.used + IDLE),
                State::Connected | State::Connecting => None,
            });
        each.min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        let home = self.home;
        self.relays.retain(|region, relay| {
            let needed = home == Some(*region) || now < relay.used + IDLE;
            match relay.state {
                State::Down { retry_at } if now >= retry_at && needed => {
                    relay.state = State::Connecting;
                    events.push_back(Event::ConnectRelay(*region));
                    true
                }
                State::Down { retry_at } => now < retry_at || needed,
                State::Connected if !needed => {
                    events.push_back(Event::CloseRelay(*region));
                    false
                }
                State::Connected | State::Connecting => true,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_home_stays() {
        let (home, other) = (RegionId(1), RegionId(2));
        let mut now = Instant::now();
        let mut events = VecDeque::new();
        let mut relays = Relays::default();
        relays.set_home(now, home, &mut events);
        relays.want(now, other, &mut events);
        assert_eq!(
            events,
            [Event::ConnectRelay(home), Event::ConnectRelay(other)]
        );
        events.clear();

        relays.connected(now, other);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            relays.disconnected(now, home);
            let at = relays.deadline().unwrap_or(now);
            pauses.push((at - now).as_millis());
            now = at;
            relays.handle_timeout(now, &mut events);
            assert_eq!(events.pop_front(), Some(Event::ConnectRelay(home)));
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);

        relays.connected(now, home);
        now += IDLE;
        relays.handle_timeout(now, &mut events);
        assert_eq!(events, [Event::CloseRelay(other)]);
        assert!(relays.is_connected(home) && !relays.is_connected(other));
        assert_eq!(relays.deadline(), None);
    }
}
