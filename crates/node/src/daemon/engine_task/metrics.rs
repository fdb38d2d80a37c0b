//! The values of the metrics.

use std::collections::BTreeMap;
use std::time::Instant;

use warren_control_types::Node;
use warren_dataplane::{DropReason as PathDrop, Drops};
use warren_filter::{Direction, DropReason, Filter};

use super::EngineTask;
use crate::localapi::metrics::{Metric, MetricKind};

impl EngineTask {
    /// The counters.
    pub(in crate::daemon) fn metrics(&self) -> Vec<Metric> {
        let counter = |name, help, value: u64, labels| Metric {
            name,
            kind: MetricKind::Counter,
            help,
            labels,
            value: value as f64,
        };
        let mut metrics = self.user_metrics();
        metrics.extend(PathDrop::ALL.into_iter().map(|reason| {
            let labels = vec![("reason", format!("{reason:?}").to_lowercase())];
            let value = self.shared.drops.get(reason);
            counter(
                "warren_dropped_packets_total",
                "packets dropped, by reason",
                value,
                labels,
            )
        }));
        let traffic = self
            .node
            .engine()
            .peer_reports(Instant::now())
            .into_iter()
            .fold((0, 0), |(rx, tx), report| {
                (rx + report.traffic.rx_bytes, tx + report.traffic.tx_bytes)
            });
        metrics.push(counter(
            "warren_inbound_bytes_total",
            "bytes from peers",
            traffic.0,
            Vec::new(),
        ));
        metrics.push(counter(
            "warren_outbound_bytes_total",
            "bytes to peers",
            traffic.1,
            Vec::new(),
        ));
        let failures = self
            .shared
            .send_failures
            .load(std::sync::atomic::Ordering::Relaxed);
        metrics.push(counter(
            "warren_send_failures_total",
            "datagrams or frames the system refused",
            failures,
            Vec::new(),
        ));
        let dns = &self.shared.dns;
        for (name, help, value) in [
            (
                "warren_dns_forwarded_questions_total",
                "DNS questions passed to upstreams",
                &dns.forwarded,
            ),
            (
                "warren_dns_wrong_answers_total",
                "messages in the name of an upstream that were not its answer",
                &dns.wrong_answers,
            ),
            (
                "warren_dns_evicted_questions_total",
                "DNS questions ended early because too many were under way",
                &dns.evicted,
            ),
            (
                "warren_dns_refused_attempts_total",
                "attempts with upstreams not made because too many were under way",
                &dns.refused,
            ),
        ] {
            let value = value.load(std::sync::atomic::Ordering::Relaxed);
            metrics.push(counter(name, help, value, Vec::new()));
        }
        metrics.push(Metric {
            name: "warren_live_relays",
            kind: MetricKind::Gauge,
            help: "relay connections",
            labels: Vec::new(),
            value: self.node.open_relay_links() as f64,
        });
        metrics
    }

    /// The counters under the names of the official client.
    fn user_metrics(&self) -> Vec<Metric> {
        let mut metrics = dropped(self.node.engine().filter(), &self.shared.drops);
        let gauge = |name, help, labels, value: f64| Metric {
            name,
            kind: MetricKind::Gauge,
            help,
            labels,
            value,
        };
        let offered = &self.node.engine().prefs().advertise_routes;
        let own = self.node.engine().netmap().self_node.as_ref();
        let allowed = own.map(Node::allowed_ips).unwrap_or_default();
        let approved = offered.iter().filter(|route| allowed.contains(route));
        metrics.push(gauge(
            "tailscaled_advertised_routes",
            "routes this machine offers",
            Vec::new(),
            offered.len() as f64,
        ));
        metrics.push(gauge(
            "tailscaled_approved_routes",
            "offered routes that are approved",
            Vec::new(),
            approved.count() as f64,
        ));
        metrics.push(gauge(
            "tailscaled_health_messages",
            "problems, by kind",
            vec![("type", "warning".to_owned())],
            self.health().len() as f64,
        ));
        let info = self.node.engine().control_report().net_info.as_ref();
        let home = info.and_then(|info| info.preferred_derp);
        metrics.push(gauge(
            "tailscaled_home_derp_region_id",
            "the relay region peers reach this machine by; 0: none",
            Vec::new(),
            home.map_or(0.0, |home| f64::from(home.0)),
        ));
        metrics
    }
}

/// Dropped packets by the reasons of the official client, each name once per
/// reason.
fn dropped(filter: &Filter, drops: &Drops) -> Vec<Metric> {
    let directions = [
        (
            Direction::In,
            "tailscaled_inbound_dropped_packets_total",
            "packets from peers that were dropped, by reason",
            &[PathDrop::MalformedInner][..],
        ),
        (
            Direction::Out,
            "tailscaled_outbound_dropped_packets_total",
            "packets to peers that were dropped, by reason",
            &[
                PathDrop::Malformed,
                PathDrop::Exhausted,
                PathDrop::StagingFull,
            ][..],
        ),
    ];
    let mut metrics = Vec::new();
    for (direction, name, help, errors) in directions {
        let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
        for reason in DropReason::ALL {
            let packets = filter.dropped(direction, reason).packets;
            *by_reason.entry(reason.reference_name()).or_default() += packets;
        }
        let failed = errors.iter().map(|reason| drops.get(*reason)).sum();
        by_reason.insert("error", failed);
        metrics.extend(by_reason.into_iter().map(|(reason, packets)| Metric {
            name,
            kind: MetricKind::Counter,
            help,
            labels: vec![("reason", reason.to_owned())],
            value: packets as f64,
        }));
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_have_the_names_of_the_official_client() {
        let filter = Filter::block_all();
        let metrics = dropped(&filter, &Drops::new());
        let names = |wanted: &str| -> Vec<&str> {
            let named = metrics.iter().filter(|metric| metric.name == wanted);
            named.map(|metric| metric.labels[0].1.as_str()).collect()
        };
        let reasons = [
            "acl",
            "error",
            "fragment",
            "link_local_unicast",
            "multicast",
        ];
        assert_eq!(names("tailscaled_inbound_dropped_packets_total"), reasons);
        assert_eq!(names("tailscaled_outbound_dropped_packets_total"), reasons);
    }
}
