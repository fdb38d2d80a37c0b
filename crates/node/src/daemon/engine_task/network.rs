//! The network around this machine: sockets, local addresses, measurements.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use warren_host::link::{Change, LinkChange, LinkState, MajorChange};
use warren_host::udp::{UdpPair, UdpSocket};
use warren_node_core::node::{LocalNetwork, NetworkChange, NodeInput, Notice};
use warren_paths::{LocalAddresses, Measurements};

use super::EngineTask;
use crate::daemon::wall_clock;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::go_json::GoTime;
use crate::localapi::types::NetcheckReport;

/// The network around, as the node sees it.
pub(in crate::daemon) fn local_network(sockets: &UdpPair, link: &LinkState) -> LocalNetwork {
    let port = |socket: &Option<UdpSocket>| {
        let socket = socket.as_ref();
        socket.map(|socket| socket.local_addr().port())
    };
    let interfaces = link.interfaces.iter();
    let networks = interfaces
        .filter(|interface| interface.up && !interface.loopback)
        .flat_map(|interface| &interface.addrs);
    LocalNetwork {
        addresses: LocalAddresses {
            port_v4: port(&sockets.v4),
            port_v6: port(&sockets.v6),
            interfaces: addresses(link).collect(),
            explicit: Vec::new(),
        },
        networks: networks.copied().collect(),
    }
}

/// A program that waits for a measurement of the network around.
pub(super) struct AwaitedNetcheck {
    /// The number of the measurement whose end is the answer.
    measurement: u64,
    reply: oneshot::Sender<Reply<NetcheckReport>>,
}

impl EngineTask {
    /// Measures the network around, and answers when that is done. Where nothing can be
    /// measured, the answer is the last measurement, with its time.
    pub(in crate::daemon) fn netcheck(&mut self, reply: oneshot::Sender<Reply<NetcheckReport>>) {
        self.restun();
        match self.node.engine().measurements().awaited {
            Some(measurement) => self.netchecks.push(AwaitedNetcheck { measurement, reply }),
            // The program that asked may have gone.
            None => drop(reply.send(self.netcheck_report())),
        }
    }

    /// Answers the programs whose measurement is over.
    pub(super) fn answer_netchecks(&mut self) {
        if self.netchecks.is_empty() {
            return;
        }
        let Measurements {
            last_ended,
            awaited,
            ..
        } = self.node.engine().measurements();
        // A measurement can also be given up, as when the network is gone.
        let is_over = |netcheck: &mut AwaitedNetcheck| {
            netcheck.measurement <= last_ended || awaited.is_none()
        };
        let over: Vec<_> = self.netchecks.extract_if(.., is_over).collect();
        for netcheck in over {
            drop(netcheck.reply.send(self.netcheck_report()));
        }
    }

    /// The last measurement of the network around.
    fn netcheck_report(&self) -> Reply<NetcheckReport> {
        let engine = self.node.engine();
        let Some(ended_at) = engine.measurements().ended_at else {
            return Err(ApiError::Unavailable(
                "nothing was measured yet: this machine knows no relays before it has joined a \
                 network, or has no network at all; see: warren status"
                    .to_owned(),
            ));
        };
        let age = Instant::now().saturating_duration_since(ended_at);
        let info = engine.net_info();
        let mut out = NetcheckReport {
            now: GoTime::from_unix(wall_clock().saturating_sub(age)),
            udp: info.working_udp.unwrap_or_default(),
            ipv6: info.working_ipv6.unwrap_or_default(),
            os_has_ipv6: info.os_has_ipv6.unwrap_or_default(),
            mapping_varies_by_dest_ip: info.mapping_varies_by_dest_ip,
            upnp: info.upnp,
            pmp: info.pmp,
            pcp: info.pcp,
            preferred_derp: info
                .preferred_derp
                .map(|region| region.0)
                .unwrap_or_default(),
            ..NetcheckReport::default()
        };
        for (name, seconds) in &info.derp_latency {
            let Some((region, family)) = name.split_once('-') else {
                continue;
            };
            let Ok(region) = region.parse::<u16>() else {
                continue;
            };
            let nanoseconds = Duration::try_from_secs_f64(*seconds)
                .unwrap_or_default()
                .as_nanos();
            let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
            let best = out.region_latency.entry(region).or_insert(nanoseconds);
            *best = (*best).min(nanoseconds);
            match family {
                "v4" => drop(out.region_v4_latency.insert(region, nanoseconds)),
                _ => drop(out.region_v6_latency.insert(region, nanoseconds)),
            }
        }
        out.ipv4 = !out.region_v4_latency.is_empty();
        out.ipv4_can_send = self.link.default_route_v4.is_some();
        out.ipv6_can_send = self.link.default_route_v6.is_some();
        let seen = |v4: bool| {
            let endpoints = &engine.control_report().endpoints;
            endpoints
                .iter()
                .find(|(address, kind)| {
                    address.is_ipv4() == v4 && *kind == warren_control_types::EndpointType::Stun
                })
                .map(|(address, _)| address.to_string())
                .unwrap_or_default()
        };
        out.global_v4 = seen(true);
        out.global_v6 = seen(false);
        Ok(out)
    }

    /// Measures the network around again.
    pub(in crate::daemon) fn restun(&mut self) {
        self.give(NodeInput::Remeasure);
    }

    /// Looks for paths again, as after a change of the network.
    pub(in crate::daemon) fn rebind(&mut self) -> Reply<()> {
        self.bind_missing_family()
            .map_err(|error| ApiError::Failed(error.to_string()))?;
        let network = Box::new(local_network(&self.packets.sockets(), &self.link));
        self.give(NodeInput::Network(NetworkChange::Minor, network));
        self.give(NodeInput::FindPaths);
        Ok(())
    }

    /// The network around this machine changed.
    ///
    /// The sockets stay: they are bound to no address, so they serve whatever
    /// network comes, and a new one would have another port, with which every
    /// mapping in every router, and all that peers know of us, would be lost.
    pub(super) fn link_changed(&mut self, change: LinkChange) {
        self.link = change.state;
        self.use_router();
        if self.link_problem != change.problem {
            self.link_problem = change.problem;
            self.on_notice(Notice::Health);
        }
        let change = match change.change {
            Change::Minor => NetworkChange::Minor,
            Change::Major(why) => {
                tracing::info!(?why, "the network changed");
                if let Err(error) = self.bind_missing_family() {
                    tracing::warn!(%error, "sockets are as before");
                }
                match why {
                    MajorChange::Slept => NetworkChange::Slept,
                    MajorChange::DefaultRoute | MajorChange::Addresses | MajorChange::Families => {
                        NetworkChange::Major
                    }
                }
            }
        };
        let network = Box::new(local_network(&self.packets.sockets(), &self.link));
        self.give(NodeInput::Network(change, network));
        // Networks that this machine is attached to do not go into the tunnel.
        self.refresh_host();
    }

    /// Reports the router of this network to the port mapper.
    pub(super) fn use_router(&self) {
        if let Some(mapping) = &self.port_mapping {
            mapping.use_network(&self.link);
        }
    }

    /// A family that the machine lacked when the sockets were bound may be
    /// there now.
    fn bind_missing_family(&self) -> Result<(), warren_host::udp::UdpError> {
        if let Some(complete) = self.packets.sockets().completed(&self.socket_options)? {
            self.packets.replace_sockets(complete);
        }
        Ok(())
    }
}

/// All addresses of the interfaces that are up.
pub(super) fn addresses(link: &LinkState) -> impl Iterator<Item = IpAddr> {
    let up = link.interfaces.iter().filter(|interface| interface.up);
    up.flat_map(|interface| interface.addrs.iter().map(ipnet::IpNet::addr))
}
