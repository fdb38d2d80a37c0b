//! The search for a path through a NAT that maps each destination to a random port.
//!
//! No message can name the port at which such a NAT would take a peer's datagrams: it is
//! chosen when the first datagram for that peer leaves. But ports can be guessed, if many of
//! them lead to the node. So the node behind the NAT (the *hard* side) sends to the peer from
//! [`SOCKETS`] sockets, each of which gets a port of the NAT, and the peer (the *easy*
//! side, whose own port is the same for all destinations) sends to random ports. With 256
//! of 64,512 ports open, 98 of 100 searches hit one within 1,024 guesses, and more than
//! 999 of 1,000 within [`PROBES`]: a birthday search.
//!
//! ```text
//!  hard side                       easy side
//!     ── Offer: outside address ──▶           through the relay
//!     ◀── Accept: address and port ──
//!     ── a ping from each socket ──▶          dropped by the easy side's NAT, ...
//!     ◀── a ping to each of many ports ──     ... until one is for a port in use
//!     ── pong, and a ping ──▶                 the socket is kept, the others are closed
//! ```
//!
//! Only the hard side offers: only it knows that its NAT is one of this kind. A peer that does
//! not know the message ignores it. Whichever side leaves a search, or comes to the end of its
//! guesses, reports that to the other one, so that neither waits or sends for nothing. A node
//! takes part in one search at a time, sends at most 500 probes a second, and does not repeat
//! a search that failed twice before something changed ([`crate::port_attempts`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_node_types::{PeerIndex, SearchSocket};
use warren_wire::disco::PortSearchRefusal;

use crate::port_forecast::{Forecast, PortPattern};

/// Sockets of the hard side.
pub(crate) const SOCKETS: u16 = 256;
/// Guesses of the easy side in one search.
pub(crate) const PROBES: u16 = 2_048;
/// One probe in this time, on each side.
const PROBE_GAP: Duration = Duration::from_millis(2);
/// Probes leave in groups of about so many, to wake up less often.
const GROUP: u32 = 5;
/// Probes that leave at once after a late wake-up: those of a tenth of a second.
const MAX_GROUP: u32 = 50;
/// How long an offer waits for its answer.
pub(crate) const ANSWER: Duration = Duration::from_millis(600);
/// How long the easy side waits for a pong after its last probe.
const LAST_PONG: Duration = Duration::from_secs(1);
/// How long the hard side keeps its sockets open, if the peer does not report the end of its
/// guesses: on a machine with too much to do they take longer. Its NAT keeps the ports as
/// long (many do for 30 s).
const HARD_SIDE: Duration = Duration::from_secs(20);
/// Sockets that are kept for paths at a time.
const MAX_KEPT: usize = 32;
/// A kept socket whose path is not confirmed by then is closed.
const TRIAL: Duration = Duration::from_secs(3);
/// The ports that a NAT may choose (RFC 4787, REQ-3: not the well-known ones).
const FIRST_PORT: u16 = 1_024;
const PORTS: u32 = 65_536 - 1_024;
/// Successive guesses are this far apart: about the golden ratio of all ports, so
/// that they are spread evenly from the first on, and without a common divisor, so that
/// none comes twice.
const STRIDE: u32 = 39_871;
/// The end of a port search, or the reason why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSearchOutcome {
    /// It found a path.
    Found,
    /// All guesses were made, and none hit.
    NotFound,
    /// The peer does not answer offers: it is not a Warren node, or an old one.
    Unanswered,
    /// The peer takes no part, or none any more.
    Refused(PortSearchRefusal),
    /// This node left it: another path, a change of the network, a setting.
    Ended,
}

/// The search in which this node takes part, and the sockets kept from earlier ones.
#[derive(Debug, Default)]
pub(crate) struct PortSearches {
    switched_off: bool,
    last_id: u32,
    running: Option<Running>,
    /// Of the running search, if its role is that.
    pub(crate) forecast: Option<Forecast>,
    /// How our NAT chooses ports, when that had to be found out.
    pub(crate) pattern: Option<PortPattern>,
    kept: BTreeMap<SocketAddr, Kept>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    pub(crate) id: u32,
    pub(crate) peer: PeerIndex,
    pub(crate) since: Instant,
    pub(crate) role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Our offer has no answer yet.
    Offering,
    /// The peer makes no searches; the ports of our NAT may be foreseen.
    Forecasting,
    /// We are behind the NAT, with so many probes sent.
    Hard { target: SocketAddr, sent: u16 },
    /// The peer is behind the NAT with this outside address.
    Easy {
        outside: IpAddr,
        /// The address of ours to which the peer sends.
        target: SocketAddr,
        first: u16,
        sent: u16,
    },
}

/// A probe that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// From a socket of the search.
    From(SearchSocket, SocketAddr),
    /// From the first socket.
    To(SocketAddr),
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    peer: PeerIndex,
    socket: SearchSocket,
    since: Instant,
}

impl Running {
    fn sent(&self) -> u16 {
        match self.role {
            Role::Offering | Role::Forecasting => 0,
            Role::Hard { sent, .. } | Role::Easy { sent, .. } => sent,
        }
    }

    fn total(&self) -> u16 {
        match self.role {
            Role::Offering | Role::Forecasting => 0,
            Role::Hard { .. } => SOCKETS,
            Role::Easy { .. } => PROBES,
        }
    }

    /// When it ends without a result.
    fn ends_at(&self) -> Instant {
        match self.role {
            Role::Offering => self.since + ANSWER,
            // The forecast has its own times, which are shorter.
            Role::Forecasting | Role::Hard { .. } => self.since + HARD_SIDE,
            Role::Easy { .. } => self.since + PROBE_GAP * u32::from(PROBES) + LAST_PONG,
        }
    }

    fn probe_at(&self) -> Option<Instant> {
        let sent = u32::from(self.sent());
        (self.sent() < self.total()).then(|| self.since + PROBE_GAP * (sent + GROUP))
    }
}

impl PortSearches {
    pub(crate) fn set_switched_off(&mut self, off: bool) {
        self.switched_off = off;
    }

    pub(crate) fn is_switched_off(&self) -> bool {
        self.switched_off
    }

    pub(crate) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Whether another search may begin, as the hard side.
    pub(crate) fn may_offer(&self) -> bool {
        !self.switched_off && self.running.is_none() && self.kept.len() < MAX_KEPT
    }

    /// An offer goes to `peer`, under the number of an `open` one if there is one; returns
    /// its number.
    pub(crate) fn offer(
        &mut self,
        now: Instant,
        peer: PeerIndex,
        open: Option<u32>,
        random: u32,
    ) -> u32 {
        let id = open.unwrap_or_else(|| self.next_id(random));
        self.running = Some(Running {
            id,
            peer,
            since: now,
            role: Role::Offering,
        });
        id
    }

    /// Never 0, and never that of the search before.
    fn next_id(&mut self, random: u32) -> u32 {
        self.last_id = self.last_id.wrapping_add(1 + random % 0xffff).max(1);
        self.last_id
    }

    /// A forecast for `peer` begins; returns its number.
    pub(crate) fn begin_forecast(&mut self, now: Instant, peer: PeerIndex, random: u32) -> u32 {
        let id = self.next_id(random);
        self.running = Some(Running {
            id,
            peer,
            since: now,
            role: Role::Forecasting,
        });
        id
    }

    /// The peer accepted the offer `id`: the search begins.
    pub(crate) fn accepted(&mut self, now: Instant, peer: PeerIndex, id: u32, to: SocketAddr) {
        self.running = Some(Running {
            id,
            peer,
            since: now,
            role: Role::Hard {
                target: to,
                sent: 0,
            },
        });
    }

    /// We accept the offer `id` of a peer.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        peer: PeerIndex,
        id: u32,
        outside: IpAddr,
        target: SocketAddr,
        random: u16,
    ) {
        self.running = Some(Running {
            id,
            peer,
            since: now,
            role: Role::Easy {
                outside,
                target,
                first: random,
                sent: 0,
            },
        });
    }

    pub(crate) fn end(&mut self) -> Option<Running> {
        self.forecast = None;
        self.running.take()
    }

    /// Whether the running search is over without a result.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| now >= running.ends_at())
    }

    /// The next probe, if it is due at `now`. Time that a late wake-up missed is not made up
    /// for with more probes at once.
    pub(crate) fn next_probe(&mut self, now: Instant) -> Option<Probe> {
        let running = self.running.as_mut()?;
        if running.sent() >= running.total() {
            return None;
        }
        let sent = u32::from(running.sent());
        let elapsed = now.saturating_duration_since(running.since);
        let due = elapsed.as_micros() / PROBE_GAP.as_micros();
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        running.since += PROBE_GAP * due.saturating_sub(sent + MAX_GROUP);
        if sent >= due {
            return None;
        }
        match &mut running.role {
            Role::Offering | Role::Forecasting => None,
            Role::Hard { target, sent } => {
                let socket = SearchSocket {
                    search: running.id,
                    number: *sent,
                };
                *sent += 1;
                Some(Probe::From(socket, *target))
            }
            Role::Easy {
                outside,
                first,
                sent,
                ..
            } => {
                let port = guess(*first, *sent);
                *sent += 1;
                Some(Probe::To(SocketAddr::new(*outside, port)))
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let forecast = self.forecast.as_ref().map(Forecast::deadline);
        let end = running.ends_at();
        let end = forecast.map_or(end, |at| at.min(end));
        Some(running.probe_at().map_or(end, |at| at.min(end)))
    }

    // ---- sockets that are kept ----

    /// The target of the running search, if `socket` belongs to it.
    pub(crate) fn target_of(&self, socket: SearchSocket) -> Option<(PeerIndex, SocketAddr)> {
        let running = self.running.as_ref().filter(|it| it.id == socket.search)?;
        match running.role {
            Role::Hard { target, .. } => Some((running.peer, target)),
            Role::Offering | Role::Forecasting | Role::Easy { .. } => None,
        }
    }

    /// The peer of the running forecast, if `socket` belongs to it.
    pub(crate) fn forecast_of(&self, socket: SearchSocket) -> Option<PeerIndex> {
        let running = self.running.as_ref().filter(|it| it.id == socket.search)?;
        (running.role == Role::Forecasting).then_some(running.peer)
    }

    /// The ports of our NAT that `peer` should try before they exist.
    pub(crate) fn ports_ahead(&self, peer: PeerIndex) -> &[SocketAddr] {
        let running = self.running.as_ref().filter(|it| it.peer == peer);
        let forecast = running.and(self.forecast.as_ref());
        forecast.map_or(&[], |forecast| &forecast.ahead)
    }

    pub(crate) fn keep(
        &mut self,
        now: Instant,
        peer: PeerIndex,
        socket: SearchSocket,
        remote: SocketAddr,
    ) {
        let kept = Kept {
            peer,
            socket,
            since: now,
        };
        self.kept.insert(remote, kept);
    }

    pub(crate) fn is_kept(&self, socket: SearchSocket, remote: SocketAddr) -> bool {
        let kept = self.kept.get(&remote);
        kept.is_some_and(|kept| kept.socket == socket)
    }

    /// Forgets the sockets of `peer` that it does not use: those for another address than
    /// `in_use`, once their trial is over. Returns their addresses.
    pub(crate) fn release(
        &mut self,
        now: Instant,
        peer: PeerIndex,
        in_use: Option<SocketAddr>,
    ) -> Vec<SocketAddr> {
        let unused = self.kept.iter().filter(|(remote, kept)| {
            kept.peer == peer && in_use != Some(**remote) && now >= kept.since + TRIAL
        });
        let unused: Vec<SocketAddr> = unused.map(|(remote, _)| *remote).collect();
        for remote in &unused {
            self.kept.remove(remote);
        }
        unused
    }

    /// Forgets all sockets of `peer`. Returns their addresses.
    pub(crate) fn release_all(&mut self, peer: PeerIndex) -> Vec<SocketAddr> {
        let of_peer = self.kept.iter().filter(|(_, kept)| kept.peer == peer);
        let remotes: Vec<SocketAddr> = of_peer.map(|(remote, _)| *remote).collect();
        self.kept.retain(|_, kept| kept.peer != peer);
        remotes
    }

    /// Forgets all kept sockets. Returns whether there were any.
    pub(crate) fn forget_kept(&mut self) -> bool {
        !std::mem::take(&mut self.kept).is_empty()
    }

    /// When the trial of a socket of `peer` ends.
    pub(crate) fn trial_ends(&self, now: Instant, peer: PeerIndex) -> Option<Instant> {
        let of_peer = self.kept.values().filter(|kept| kept.peer == peer);
        of_peer
            .map(|kept| kept.since + TRIAL)
            .filter(|at| *at > now)
            .min()
    }
}

/// The port of guess number `sent`, with `first` a random number.
fn guess(first: u16, sent: u16) -> u16 {
    let offset = (u32::from(first) + u32::from(sent) * STRIDE) % PORTS;
    // Below 64,512.
    FIRST_PORT + u16::try_from(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_guessed_twice_and_all_are_allowed() {
        for first in [0, 1, 40_000, u16::MAX] {
            let ports: BTreeSet<u16> = (0..PROBES).map(|sent| guess(first, sent)).collect();
            assert_eq!(ports.len(), usize::from(PROBES));
            assert!(ports.iter().all(|port| *port >= FIRST_PORT));
            let widest = ports.iter().zip(ports.iter().skip(1)).map(|(a, b)| b - a);
            assert!(widest.max() < Some(100), "they are spread evenly");
        }
    }

    #[test]
    fn probes_keep_to_their_rate_however_late_the_timer_is() {
        let start = Instant::now();
        for late in [0, 1, 7, 40] {
            let mut searches = PortSearches::default();
            let outside = IpAddr::from([203, 0, 113, 1]);
            let target = SocketAddr::from(([203, 0, 113, 2], 41_641));
            searches.accept(start, PeerIndex(1), 1, outside, target, 9);
            let (mut now, mut sent, mut most) = (start, 0, 0);
            while !searches.is_over(now) {
                let mut group = 0;
                while searches.next_probe(now).is_some() {
                    group += 1;
                }
                sent += group;
                most = most.max(group);
                let elapsed = now - start;
                assert!(u128::from(sent) <= elapsed.as_millis() / 2, "500 a second");
                let next = searches.deadline().unwrap_or(now);
                assert!(next > now, "nothing is due twice");
                now = next + Duration::from_millis(late);
            }
            assert!(sent <= u32::from(PROBES) && most <= MAX_GROUP);
            if late < 8 {
                assert_eq!(sent, u32::from(PROBES), "{late} ms late");
            }
        }
    }
}
