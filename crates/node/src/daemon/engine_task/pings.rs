//! Pings that a person asked for.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use warren_node_core::{PingAnswer, PingError, Pong};
use warren_paths::Via;

use super::EngineTask;
use crate::daemon::status;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::types::{PingResult, PingType};

/// How long a ping waits that the path engine does not look after.
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// Somebody waits for a ping.
pub(super) struct WaitingPing {
    asked: IpAddr,
    node_ip: IpAddr,
    node_name: String,
    since: Instant,
    reply: oneshot::Sender<Reply<PingResult>>,
}

impl EngineTask {
    /// Pings once.
    pub(in crate::daemon) fn ping(
        &mut self,
        ip: IpAddr,
        kind: PingType,
        size: usize,
        reply: oneshot::Sender<Reply<PingResult>>,
    ) {
        let own = self.engine.netmap().self_node.as_ref();
        if own.is_some_and(|own| own.addresses.iter().any(|prefix| prefix.addr() == ip)) {
            let result = PingResult {
                ip: ip.to_string(),
                node_ip: ip.to_string(),
                is_local_ip: true,
                err: format!("{ip} is local Tailscale IP"),
                ..PingResult::default()
            };
            drop(reply.send(Ok(result)));
            return;
        }
        let Some(node) = self.engine.peer_at(ip) else {
            drop(reply.send(Err(ApiError::NotFound(format!(
                "no node of this tailnet has the address {ip}"
            )))));
            return;
        };
        self.next_token += 1;
        let token = self.next_token;
        let node_ip = node.addresses.first().map_or(ip, ipnet::IpNet::addr);
        let waiting = WaitingPing {
            asked: ip,
            node_ip,
            node_name: node.base_name().to_owned(),
            since: Instant::now(),
            reply,
        };
        self.pings.insert(token, waiting);
        let started = match kind {
            PingType::Disco => self.engine.ping(Instant::now(), ip, token, size).map(drop),
            PingType::Tsmp => self.engine.ping_through_tunnel(ip, token),
            PingType::Icmp | PingType::PeerApi => {
                self.ping_failed(token, format!("{kind} pings are not supported yet"));
                return;
            }
        };
        if let Err(error) = started {
            self.ping_failed(token, error.to_string());
        }
    }

    pub(super) fn path_ping_ended(&mut self, answer: PingAnswer) {
        match answer.result {
            Ok(pong) => self.ping_answered(answer.token, Some(pong)),
            Err(PingError::Path(error)) => self.ping_failed(answer.token, error.to_string()),
            Err(error) => self.ping_failed(answer.token, error.to_string()),
        }
    }

    pub(super) fn ping_answered(&mut self, token: u64, pong: Option<Pong>) {
        let Some(ping) = self.pings.remove(&token) else {
            return;
        };
        let latency = pong.map_or_else(|| ping.since.elapsed(), |pong| pong.latency);
        let mut result = PingResult {
            ip: ping.asked.to_string(),
            node_ip: ping.node_ip.to_string(),
            node_name: ping.node_name,
            latency_seconds: latency.as_secs_f64(),
            ..PingResult::default()
        };
        match pong.map(|pong| pong.via) {
            None => {}
            Some(Via::Udp(address)) => result.endpoint = address.to_string(),
            Some(Via::Relay(region)) => {
                result.derp_region_id = region.0;
                result.derp_region_code =
                    status::region_code(&self.engine.netmap().derp_map, region);
            }
        }
        // Who asked may have gone.
        drop(ping.reply.send(Ok(result)));
    }

    pub(super) fn ping_failed(&mut self, token: u64, error: String) {
        let Some(ping) = self.pings.remove(&token) else {
            return;
        };
        let result = PingResult {
            ip: ping.asked.to_string(),
            node_ip: ping.node_ip.to_string(),
            node_name: ping.node_name,
            err: error,
            ..PingResult::default()
        };
        drop(ping.reply.send(Ok(result)));
    }

    /// Gives up on pings that were never answered.
    pub(super) fn end_late_pings(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .pings
            .iter()
            .filter(|(_, ping)| now - ping.since >= PING_PATIENCE)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.ping_failed(token, "no answer".to_owned());
        }
    }
}
