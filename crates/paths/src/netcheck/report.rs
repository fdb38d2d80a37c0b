//! The findings of one run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use warren_control_types::{NetInfo, RegionId};
use warren_node_types::Family;

/// The findings of one run.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    latency_v4: BTreeMap<RegionId, Duration>,
    latency_v6: BTreeMap<RegionId, Duration>,
    latency_https: BTreeMap<RegionId, Duration>,
    global_v4: Option<SocketAddr>,
    global_v6: Option<SocketAddr>,
    /// How often each address was seen.
    seen: BTreeMap<SocketAddr, u32>,
    varies: Option<bool>,
}

impl Report {
    /// Takes the answer of a STUN server of `region`, which saw us as `mapped`.
    /// Returns whether it changes what is known about our addresses.
    pub(super) fn take_stun(
        &mut self,
        region: RegionId,
        family: Family,
        latency: Duration,
        mapped: SocketAddr,
    ) -> bool {
        let measured = match family {
            Family::V4 => &mut self.latency_v4,
            Family::V6 => &mut self.latency_v6,
        };
        let least = measured.entry(region).or_insert(latency);
        *least = (*least).min(latency);

        let before = (self.addresses(), self.varies);
        *self.seen.entry(mapped).or_default() += 1;
        if mapped.is_ipv4() {
            match self.global_v4 {
                None => self.global_v4 = Some(mapped),
                Some(first) if first != mapped => self.varies = Some(true),
                Some(_) => {
                    self.varies.get_or_insert(false);
                }
            }
        } else {
            self.global_v6.get_or_insert(mapped);
        }
        (self.addresses(), self.varies) != before
    }

    /// Keeps what the report before found out about the NAT of the same network, where too
    /// few servers answered to find it out again.
    pub(super) fn inherit(&mut self, before: &Self) {
        let same_nat = match (self.global_v4, before.global_v4) {
            (Some(now), Some(before)) => now.ip() == before.ip(),
            _ => false,
        };
        self.varies = self.varies.or(before.varies.filter(|_| same_nat));
    }

    /// Takes the time of an HTTPS request to a relay of `region`.
    pub(super) fn take_https(&mut self, region: RegionId, latency: Duration) {
        self.latency_https.insert(region, latency);
    }

    /// The number of regions that answered HTTPS requests.
    pub(super) fn https_count(&self) -> usize {
        self.latency_https.len()
    }

    pub(super) fn has_udp(&self) -> bool {
        self.global_v4.is_some() || self.global_v6.is_some()
    }

    /// The address at which a STUN server saw us first.
    pub(super) fn global(&self, family: Family) -> Option<SocketAddr> {
        match family {
            Family::V4 => self.global_v4,
            Family::V6 => self.global_v6,
        }
    }

    /// Whether the NAT maps to another address for another destination, over
    /// IPv4; `None` before two servers have answered.
    pub(super) fn varies(&self) -> Option<bool> {
        self.varies
    }

    /// Whether another answer of `region` would change nothing in this report.
    pub(super) fn is_complete(&self, region: RegionId, family: Family) -> bool {
        let is_measured = [&self.latency_v4, &self.latency_v6, &self.latency_https]
            .iter()
            .any(|latency| latency.contains_key(&region));
        is_measured
            && match family {
                Family::V4 => self.global_v4.is_some() && self.varies.is_some(),
                Family::V6 => self.global_v6.is_some(),
            }
    }

    /// The least latency of each region.
    pub(super) fn latency(&self) -> BTreeMap<RegionId, Duration> {
        let mut all = BTreeMap::new();
        for (region, latency) in self
            .latency_v4
            .iter()
            .chain(&self.latency_v6)
            .chain(&self.latency_https)
        {
            let least = all.entry(*region).or_insert(*latency);
            *least = (*least).min(*latency);
        }
        all
    }

    /// The addresses to advertise: the first of each family, and others that
    /// more than one server saw.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let mut out: Vec<_> = self.global_v4.into_iter().chain(self.global_v6).collect();
        let often = self.seen.iter().filter(|(_, count)| **count >= 2);
        for (address, _) in often {
            if !out.contains(address) {
                out.push(*address);
            }
        }
        out
    }

    /// The report in the form that control gets. Before a run `is_done`, a "no"
    /// only means "not yet" and is left out.
    pub(super) fn net_info(&self, is_done: bool, os_has_v6: bool) -> NetInfo {
        let verdict = |yes: bool| (yes || is_done).then_some(yes);
        let seconds = |map: &BTreeMap<RegionId, Duration>, family: &str| {
            let named = map
                .iter()
                .map(|(id, time)| (format!("{id}-{family}"), time.as_secs_f64()));
            named.collect::<Vec<_>>()
        };
        let mut derp_latency = BTreeMap::new();
        derp_latency.extend(seconds(&self.latency_https, "v4"));
        derp_latency.extend(seconds(&self.latency_v4, "v4"));
        derp_latency.extend(seconds(&self.latency_v6, "v6"));
        NetInfo {
            mapping_varies_by_dest_ip: self.varies,
            working_ipv6: verdict(self.global_v6.is_some()),
            os_has_ipv6: Some(os_has_v6),
            working_udp: verdict(self.has_udp()),
            derp_latency,
            ..NetInfo::default()
        }
    }
}
