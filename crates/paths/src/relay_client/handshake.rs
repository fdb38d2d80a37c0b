//! The handshake with a relay server: bind, challenge, answer, and pings to the peer until
//! one is answered.
//!
//! The server confirms nothing: a pong of the peer proves that both sides are bound. So
//! after the answer, the answer and a ping are sent again and again, ever less often, and
//! once more for each ping of the peer that arrives; [`MAX_PINGS`] in all.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::disco::RelayEndpoint;

use super::RelayAddr;
use super::offer::Offer;

/// The pauses behind each bind message, in milliseconds; after the last one the handshake
/// waits for its end.
const BIND_GAPS: [u64; 5] = [200, 400, 800, 1_600, 3_200];
/// The pauses behind each answer with its ping, in milliseconds.
const PING_GAPS: [u64; 6] = [100, 200, 400, 800, 1_600, 3_200];
/// The pauses behind each CallMeMaybeVia, in milliseconds.
const CALL_GAPS: [u64; 2] = [1_000, 2_000];
/// Pings in one handshake.
const MAX_PINGS: usize = 10;

/// A handshake under way.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) offer: Offer,
    pub(crate) generation: u32,
    ends: Instant,
    /// The CallMeMaybeVia messages to the peer, where the peer does not know the endpoint.
    calls: Option<(RelayEndpoint, Repeats)>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The server has not answered yet.
    Binding(Repeats),
    /// It answered from this address.
    Answered {
        address: SocketAddr,
        challenge: [u8; 32],
        pings: usize,
        repeats: Repeats,
    },
}

/// A message that is sent several times, with given pauses.
#[derive(Debug)]
struct Repeats {
    gaps: &'static [u64],
    sent: usize,
    next: Option<Instant>,
}

impl Repeats {
    fn new(now: Instant, gaps: &'static [u64]) -> Self {
        Self {
            gaps,
            sent: 0,
            next: Some(now),
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        if self.next.is_none_or(|at| now < at) {
            return false;
        }
        let gap = self.gaps.get(self.sent);
        self.next = gap.map(|gap| now + Duration::from_millis(*gap));
        self.sent += 1;
        true
    }
}

/// Messages that are due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// CallMeMaybeVia to the peer, with this endpoint.
    pub(crate) call: Option<RelayEndpoint>,
    /// Bind, to all addresses of the server.
    pub(crate) bind: bool,
    /// The answer, to this address, and a ping to the peer through it.
    pub(crate) answer: Option<(SocketAddr, [u8; 32])>,
}

impl Handshake {
    /// A handshake whose first message is due now. `call`: the endpoint as the peer must be
    /// sent it, where the peer does not know it.
    pub(crate) fn new(
        now: Instant,
        offer: Offer,
        generation: u32,
        call: Option<RelayEndpoint>,
    ) -> Self {
        Self {
            ends: now + offer.bind_lifetime,
            offer,
            generation,
            calls: call.map(|endpoint| (endpoint, Repeats::new(now, &CALL_GAPS))),
            stage: Stage::Binding(Repeats::new(now, &BIND_GAPS)),
        }
    }

    /// Where the server was found to be, once it was.
    pub(crate) fn address(&self) -> Option<RelayAddr> {
        match self.stage {
            Stage::Binding(_) => None,
            Stage::Answered { address, .. } => Some(RelayAddr {
                server: address,
                vni: self.offer.vni,
            }),
        }
    }

    pub(crate) fn has_ended(&self, now: Instant) -> bool {
        now >= self.ends
    }

    /// Whether a CallMeMaybeVia waits for the DERP relay of the peer.
    pub(crate) fn wants_call(&self, now: Instant) -> bool {
        let next = self.calls.as_ref().and_then(|(_, calls)| calls.next);
        next.is_some_and(|at| now >= at)
    }

    /// Takes a challenge that the server sent from `address`. Returns whether it is the
    /// first one, and from an address that was asked.
    pub(crate) fn challenged(
        &mut self,
        now: Instant,
        address: SocketAddr,
        challenge: [u8; 32],
    ) -> bool {
        let asked = self.offer.addresses.contains(&address);
        if !asked || matches!(self.stage, Stage::Answered { .. }) {
            return false;
        }
        self.stage = Stage::Answered {
            address,
            challenge,
            pings: 0,
            repeats: Repeats::new(now, &PING_GAPS),
        };
        true
    }

    /// A ping of the peer came through the relay: the peer is bound, and so are we. Returns
    /// whether to ping back.
    pub(crate) fn pinged(&mut self) -> bool {
        match &mut self.stage {
            Stage::Answered { pings, .. } if *pings < MAX_PINGS => {
                *pings += 1;
                true
            }
            Stage::Binding(_) | Stage::Answered { .. } => false,
        }
    }

    /// The messages that are due. `can_call`: whether the DERP relay of the peer is
    /// connected.
    pub(crate) fn due(&mut self, now: Instant, can_call: bool) -> Due {
        let mut due = Due::default();
        if let Some((endpoint, calls)) = self.calls.as_mut().filter(|_| can_call)
            && calls.take(now)
        {
            due.call = Some(endpoint.clone());
        }
        match &mut self.stage {
            Stage::Binding(repeats) => due.bind = repeats.take(now),
            Stage::Answered {
                address,
                challenge,
                pings,
                repeats,
            } => {
                if *pings < MAX_PINGS && repeats.take(now) {
                    *pings += 1;
                    due.answer = Some((*address, *challenge));
                }
            }
        }
        due
    }

    /// When [`due`](Self::due) has something, or the handshake ends.
    pub(crate) fn deadline(&self, can_call: bool) -> Instant {
        let calls = self.calls.as_ref().filter(|_| can_call);
        let stage = match &self.stage {
            Stage::Binding(repeats) => repeats.next,
            Stage::Answered { pings, repeats, .. } => repeats.next.filter(|_| *pings < MAX_PINGS),
        };
        let next = calls
            .and_then(|(_, calls)| calls.next)
            .into_iter()
            .chain(stage);
        next.fold(self.ends, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use warren_keys::DiscoSecret;
    use warren_node_types::Vni;

    use super::*;

    fn offer() -> Offer {
        Offer {
            server: DiscoSecret::from_bytes(&[9; 32]).public(),
            vni: Vni::new(5).unwrap(),
            lamport_id: 1,
            addresses: vec![address(1), address(2)],
            bind_lifetime: Duration::from_secs(30),
            steady_lifetime: Duration::from_secs(300),
        }
    }

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 40000).into()
    }

    /// The messages until the end, by the time of each in milliseconds.
    fn run(handshake: &mut Handshake, start: Instant, mut now: Instant) -> Vec<(u128, Due)> {
        let mut all = Vec::new();
        while !handshake.has_ended(now) {
            let due = handshake.due(now, true);
            if due != Due::default() {
                all.push(((now - start).as_millis(), due));
            }
            let next = handshake.deadline(true);
            assert!(next > now, "the clock stands still");
            now = next;
        }
        all
    }

    #[test]
    fn a_server_that_does_not_answer_gets_six_rounds() {
        let start = Instant::now();
        let endpoint = RelayEndpoint {
            server: offer().server,
            clients: [offer().server; 2],
            lamport_id: 1,
            vni: 5,
            bind_lifetime: 1,
            steady_lifetime: 1,
            addresses: offer().addresses,
        };
        let mut handshake = Handshake::new(start, offer(), 1, Some(endpoint));
        let all = run(&mut handshake, start, start);
        let times = |what: fn(&Due) -> bool| -> Vec<u128> {
            let those = all.iter().filter(|(_, due)| what(due));
            those.map(|(at, _)| *at).collect()
        };
        assert_eq!(times(|due| due.bind), [0, 200, 600, 1_400, 3_000, 6_200]);
        assert_eq!(times(|due| due.call.is_some()), [0, 1_000, 3_000]);
        assert!(times(|due| due.answer.is_some()).is_empty());
    }

    #[test]
    fn the_first_challenge_of_an_address_that_was_asked_counts() {
        let start = Instant::now();
        let mut handshake = Handshake::new(start, offer(), 1, None);
        assert!(handshake.due(start, true).bind);
        assert!(
            !handshake.challenged(start, address(3), [3; 32]),
            "a stranger"
        );
        assert!(handshake.challenged(start, address(2), [2; 32]));
        assert!(
            !handshake.challenged(start, address(1), [1; 32]),
            "too late"
        );
        let found = handshake.address().unwrap();
        assert_eq!((found.server, found.vni), (address(2), offer().vni));
        let all = run(&mut handshake, start, start);
        let expected = [0, 100, 300, 700, 1_500, 3_100, 6_300].map(|at| {
            let due = Due {
                answer: Some((address(2), [2; 32])),
                ..Due::default()
            };
            (at, due)
        });
        assert_eq!(all, expected);
    }

    #[test]
    fn no_more_than_ten_pings_are_sent() {
        let start = Instant::now();
        let mut handshake = Handshake::new(start, offer(), 1, None);
        assert!(!handshake.pinged(), "not bound yet");
        handshake.challenged(start, address(1), [1; 32]);
        let back = (0..50).filter(|_| handshake.pinged()).count();
        assert_eq!(back, MAX_PINGS);
        assert_eq!(run(&mut handshake, start, start), []);
    }
}
