//! Forecasts of the ports of our NAT: the measurement, and the call with its result.

use std::time::Instant;

use warren_node_types::SearchSocket;
use warren_wire::stun::Response;

use super::Paths;
use crate::port_forecast::{CALLING, CANDIDATES, PortPattern};
use crate::port_search::PortSearchOutcome;

impl Paths {
    /// How our NAT chooses ports, as far as a forecast had to find it out.
    pub fn port_pattern(&self) -> Option<PortPattern> {
        self.core.searches.pattern
    }

    /// A datagram came to a socket of the running forecast. Returns whether its content
    /// is settled.
    pub(super) fn handle_forecast_udp(&mut self, now: Instant, packet: &[u8]) -> bool {
        let Some(forecast) = &mut self.core.searches.forecast else {
            return false;
        };
        let Ok(response) = Response::parse(packet) else {
            return false;
        };
        if forecast.answered(&response) {
            self.call_with_forecast(now);
        }
        true
    }

    /// Pings again, calls when the answers are there, and ends the forecast.
    pub(super) fn drive_forecast(&mut self, now: Instant) {
        let Some(forecast) = &mut self.core.searches.forecast else {
            return;
        };
        if forecast.is_measured(now) {
            self.call_with_forecast(now);
        } else if forecast.is_over(now) {
            self.end_port_search(now, PortSearchOutcome::NotFound);
        } else if forecast.takes_turn(now) {
            self.ping_called(now);
        }
    }

    /// Sends the peer the ports that come next, and pings its candidates at once: the NAT
    /// gives these ports to the pings.
    fn call_with_forecast(&mut self, now: Instant) {
        let running = self.core.searches.running().copied();
        let (Some(running), Some(forecast)) = (running, &self.core.searches.forecast) else {
            return;
        };
        let (pattern, ahead) = forecast.pattern();
        self.core.searches.pattern = Some(pattern);
        let Some(peer) = self.peers.get_mut(&running.peer) else {
            return;
        };
        if pattern == PortPattern::Random {
            self.end_port_search(now, PortSearchOutcome::NotFound);
            return;
        }
        let called = peer.outside_candidates(CANDIDATES);
        if let Some(forecast) = &mut self.core.searches.forecast {
            forecast.call(now, ahead, called);
        }
        self.ping_called(now);
        if let Some(peer) = self.peers.get_mut(&running.peer) {
            peer.call_now(&mut self.core, now);
        }
    }

    fn ping_called(&mut self, now: Instant) {
        let running = self.core.searches.running().copied();
        let (Some(running), Some(forecast)) = (running, &self.core.searches.forecast) else {
            return;
        };
        let called = forecast.called.clone();
        let to = self.peers.get(&running.peer).and_then(|peer| peer.to());
        let socket = SearchSocket {
            search: running.id,
            number: CALLING,
        };
        for address in called {
            if let Some(to) = to {
                self.core.ping_from(now, to, socket, address);
            }
        }
    }
}
