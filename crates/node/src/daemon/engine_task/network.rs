//! The network around this machine: sockets, local addresses, and what a
//! change of them means.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_host::link::{Change, LinkChange, LinkState, MajorChange};
use warren_paths::LocalAddresses;

use super::EngineTask;
use crate::daemon::wall_clock;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::go_json::GoTime;
use crate::localapi::types::NetcheckReport;

impl EngineTask {
    pub(super) fn tell_link(&mut self, now: Instant) {
        let sockets = self.shared.sockets.load();
        let port = |socket: &Option<warren_host::udp::UdpSocket>| {
            socket.as_ref().map(|socket| socket.local_addr().port())
        };
        let local = LocalAddresses {
            port_v4: port(&sockets.v4),
            port_v6: port(&sockets.v6),
            interfaces: addresses(&self.link).collect(),
            explicit: Vec::new(),
        };
        self.engine.set_local_addresses(now, local);
        let outside = self.link.interfaces.iter();
        let networks = outside
            .filter(|interface| interface.up && !interface.loopback)
            .flat_map(|interface| &interface.addrs);
        self.engine.set_host_networks(networks.copied().collect());
    }

    /// What was last measured of the network around.
    pub(in crate::daemon) fn netcheck(&mut self) -> Reply<NetcheckReport> {
        let report = self.engine.control_report();
        let Some(info) = &report.net_info else {
            self.engine.restun(Instant::now());
            return Err(ApiError::Unavailable(
                "nothing was measured yet; ask again in a second".to_owned(),
            ));
        };
        let mut out = NetcheckReport {
            now: GoTime::from_unix(wall_clock()),
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
            report
                .endpoints
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
        self.engine.restun(Instant::now());
    }

    /// Looks for paths anew, as after a change of the network.
    pub(in crate::daemon) fn rebind(&mut self) -> Reply<()> {
        let now = Instant::now();
        self.bind_missing_family()
            .map_err(|error| ApiError::Failed(error.to_string()))?;
        self.engine.link_changed(now);
        self.tell_link(now);
        Ok(())
    }

    /// The network around this machine is another one than before.
    ///
    /// The sockets stay: they are bound to no address, so they serve whatever
    /// network comes, and a new one would have another port, with which every
    /// mapping in every router, and all that peers know of us, would be lost.
    pub(super) fn link_changed(&mut self, now: Instant, change: LinkChange) {
        let before = std::mem::replace(&mut self.link, change.state);
        if let Change::Major(why) = change.change {
            tracing::info!(?why, "the network changed");
            if let Err(error) = self.bind_missing_family() {
                tracing::warn!(%error, "sockets are as before");
            }
            let here: Vec<IpAddr> = addresses(&self.link).collect();
            let stranded = self.relays.close_stranded(|it| here.contains(&it));
            for region in stranded {
                self.engine.relay_disconnected(now, region);
            }
            self.engine.link_changed(now);
            let lost_address = addresses(&before).any(|it| !here.contains(&it));
            // A person with a login address in hand is not given another one
            // for less than a lost connection.
            let in_a_pause = !self.stream_stands && self.auth_url.is_empty();
            let doubtful = lost_address || why == MajorChange::Slept || in_a_pause;
            if doubtful && self.session.is_some() && self.state.login.is_some() {
                // Its connection hangs in the old network, or it is in a pause
                // between attempts that could not succeed.
                self.connect(self.pending_key.clone());
            }
        }
        self.tell_link(now);
        // The networks beside the tunnel may be others.
        self.refresh_host();
    }

    /// A family that the machine lacked when the sockets were bound may be
    /// there now.
    fn bind_missing_family(&self) -> Result<(), warren_host::udp::UdpError> {
        if let Some(complete) = self.shared.sockets.load().completed(&self.socket_options)? {
            self.shared.sockets.store(Arc::new(complete));
            self.shared.in_waker.wake();
        }
        Ok(())
    }
}

/// All addresses of the interfaces that are up.
fn addresses(link: &LinkState) -> impl Iterator<Item = IpAddr> {
    let up = link.interfaces.iter().filter(|interface| interface.up);
    up.flat_map(|interface| interface.addrs.iter().map(ipnet::IpNet::addr))
}
