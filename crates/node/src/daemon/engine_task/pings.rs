//! Pings that a person asked for, in the shape of the local interface.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tokio::sync::oneshot;
use warren_node_core::node::{NodeInput, PingFailure, PingKind, PingReply, PingReport};
use warren_node_types::PathAddr;

use super::EngineTask;
use crate::daemon::status;
use crate::localapi::error::Reply;
use crate::localapi::types::{PingResult, PingType};

/// The programs that wait for a ping, with the address that they asked for.
#[derive(Default)]
pub(super) struct Pings {
    waiting: BTreeMap<u64, (IpAddr, oneshot::Sender<Reply<PingResult>>)>,
    last: u64,
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
        let node_kind = match kind {
            PingType::Disco => Some(PingKind::Disco(size)),
            PingType::Tsmp => Some(PingKind::Tsmp),
            PingType::Icmp | PingType::PeerApi => None,
        };
        self.pings.last += 1;
        let id = self.pings.last;
        self.pings.waiting.insert(id, (ip, reply));
        match node_kind {
            Some(kind) => self.give(NodeInput::Ping {
                id,
                address: ip,
                kind,
            }),
            None => {
                let report = self.node_at(ip).map(|node| PingReport {
                    asked: ip,
                    node_ip: node.addresses.first().map_or(ip, ipnet::IpNet::addr),
                    node_name: node.base_name().to_owned(),
                    outcome: Err(PingFailure::Failed(format!(
                        "{kind} pings are not supported yet"
                    ))),
                });
                self.ping_ended(id, report);
            }
        }
    }

    pub(super) fn ping_ended(&mut self, id: u64, report: Option<PingReport>) {
        let Some((ip, reply)) = self.pings.waiting.remove(&id) else {
            return;
        };
        let result = match report {
            Some(report) => self.ping_result(report),
            None => PingResult {
                ip: ip.to_string(),
                // The words of the official client, which programs know.
                err: "no matching peer".to_owned(),
                ..PingResult::default()
            },
        };
        // The program that asked may have gone.
        drop(reply.send(Ok(result)));
    }

    fn ping_result(&self, report: PingReport) -> PingResult {
        let asked = report.asked.to_string();
        let mut result = PingResult {
            ip: asked.clone(),
            node_ip: report.node_ip.to_string(),
            node_name: report.node_name,
            ..PingResult::default()
        };
        match report.outcome {
            Ok(PingReply { latency, via }) => {
                result.latency_seconds = latency.as_secs_f64();
                match via {
                    None => {}
                    Some(PathAddr::Udp(address)) => result.endpoint = address.to_string(),
                    Some(path @ PathAddr::PeerRelay { .. }) => {
                        result.peer_relay = path.to_string();
                    }
                    Some(PathAddr::Derp(region)) => {
                        result.derp_region_id = region.0;
                        let map = &self.node.netmap().derp_map;
                        result.derp_region_code = status::region_code(map, region);
                    }
                }
            }
            Err(PingFailure::OwnAddress) => {
                result.is_local_ip = true;
                result.err = format!("{asked} is local Tailscale IP");
            }
            Err(PingFailure::Failed(error)) => result.err = error,
        }
        result
    }
}
