//! The metrics of a node. Names with `tailscaled_` are those of the official client.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use warren_control_types::Node;
use warren_dataplane::{DropReason as PathDrop, Drops};
use warren_filter::{Direction, DropReason, Filter};
use warren_metrics::{CounterFamily, Exposition, GaugeFamily};

use super::EngineTask;

const ADVERTISED_ROUTES: GaugeFamily<0> = GaugeFamily::new(
    "tailscaled_advertised_routes",
    "routes this machine offers",
    [],
);
const APPROVED_ROUTES: GaugeFamily<0> = GaugeFamily::new(
    "tailscaled_approved_routes",
    "offered routes that are approved",
    [],
);
const HEALTH_MESSAGES: GaugeFamily<1> =
    GaugeFamily::new("tailscaled_health_messages", "problems, by kind", ["type"]);
const HOME_REGION: GaugeFamily<0> = GaugeFamily::new(
    "tailscaled_home_derp_region_id",
    "the relay region peers reach this machine by; 0: none",
    [],
);
const INBOUND_DROPS: CounterFamily<1> = CounterFamily::new(
    "tailscaled_inbound_dropped_packets_total",
    "packets from peers that were dropped, by reason",
    ["reason"],
);
const OUTBOUND_DROPS: CounterFamily<1> = CounterFamily::new(
    "tailscaled_outbound_dropped_packets_total",
    "packets to peers that were dropped, by reason",
    ["reason"],
);
const DROPS: CounterFamily<1> = CounterFamily::new(
    "warren_dropped_packets_total",
    "packets dropped, by reason",
    ["reason"],
);
const INBOUND_BYTES: CounterFamily<0> =
    CounterFamily::new("warren_inbound_bytes_total", "bytes from peers", []);
const OUTBOUND_BYTES: CounterFamily<0> =
    CounterFamily::new("warren_outbound_bytes_total", "bytes to peers", []);
const SEND_FAILURES: CounterFamily<0> = CounterFamily::new(
    "warren_send_failures_total",
    "datagrams or frames the system refused",
    [],
);
const DNS_FORWARDED: CounterFamily<0> = CounterFamily::new(
    "warren_dns_forwarded_questions_total",
    "DNS questions passed to upstreams",
    [],
);
const DNS_WRONG_ANSWERS: CounterFamily<0> = CounterFamily::new(
    "warren_dns_wrong_answers_total",
    "messages in the name of an upstream that were not its answer",
    [],
);
const DNS_EVICTED: CounterFamily<0> = CounterFamily::new(
    "warren_dns_evicted_questions_total",
    "DNS questions ended early because too many were under way",
    [],
);
const DNS_REFUSED: CounterFamily<0> = CounterFamily::new(
    "warren_dns_refused_attempts_total",
    "attempts with upstreams not made because too many were under way",
    [],
);
const PORT_SEARCHES: CounterFamily<1> = CounterFamily::new(
    "warren_port_searches_total",
    "searches for a path through a NAT with random ports, begun and successful",
    ["event"],
);
const PORT_SEARCH_PROBES: CounterFamily<0> = CounterFamily::new(
    "warren_port_search_probes_total",
    "probes sent in these searches",
    [],
);
const LIVE_RELAYS: GaugeFamily<0> = GaugeFamily::new("warren_live_relays", "relay connections", []);

impl EngineTask {
    /// The metrics of this moment.
    pub(in crate::daemon) fn metrics(&self) -> Exposition {
        let mut text = Exposition::default();
        let engine = self.node.engine();
        add_drops(&mut text, engine.filter(), self.packets.drops());

        let offered = &engine.prefs().advertise_routes;
        let own = engine.netmap().self_node.as_ref();
        let allowed = own.map(Node::allowed_ips).unwrap_or_default();
        let approved = offered.iter().filter(|route| allowed.contains(route));
        text.gauge(&ADVERTISED_ROUTES, [], offered.len());
        text.gauge(&APPROVED_ROUTES, [], approved.count());
        text.gauge(&HEALTH_MESSAGES, ["warning"], self.health().len());
        let info = engine.control_report().net_info.as_ref();
        let home = info.and_then(|info| info.preferred_derp);
        text.gauge(&HOME_REGION, [], home.map_or(0, |home| home.0));

        for reason in PathDrop::ALL {
            let label = format!("{reason:?}").to_lowercase();
            text.counter(&DROPS, [&label], self.packets.drops().get(reason));
        }
        let (received, sent) = engine
            .peer_reports(Instant::now())
            .into_iter()
            .fold((0, 0), |(rx, tx), report| {
                (rx + report.traffic.rx_bytes, tx + report.traffic.tx_bytes)
            });
        text.counter(&INBOUND_BYTES, [], received);
        text.counter(&OUTBOUND_BYTES, [], sent);
        let failures = self.packets.send_failures();
        text.counter(&SEND_FAILURES, [], failures);
        let dns = &self.dns;
        for (family, counter) in [
            (&DNS_FORWARDED, &dns.forwarded),
            (&DNS_WRONG_ANSWERS, &dns.wrong_answers),
            (&DNS_EVICTED, &dns.evicted),
            (&DNS_REFUSED, &dns.refused),
        ] {
            text.counter(family, [], counter.load(Ordering::Relaxed));
        }
        let paths = engine.paths().counters();
        text.counter(&PORT_SEARCHES, ["begun"], paths.searches_started);
        text.counter(&PORT_SEARCHES, ["found"], paths.searches_won);
        text.counter(&PORT_SEARCH_PROBES, [], paths.search_probes_sent);
        text.gauge(&LIVE_RELAYS, [], self.node.open_relay_links());
        text
    }
}

/// Dropped packets by the reasons of the official client, each name once per
/// reason.
fn add_drops(text: &mut Exposition, filter: &Filter, drops: &Drops) {
    let directions = [
        (
            Direction::In,
            &INBOUND_DROPS,
            &[PathDrop::MalformedInner][..],
        ),
        (
            Direction::Out,
            &OUTBOUND_DROPS,
            &[
                PathDrop::Malformed,
                PathDrop::Exhausted,
                PathDrop::StagingFull,
            ][..],
        ),
    ];
    for (direction, family, errors) in directions {
        let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
        for reason in DropReason::ALL {
            let packets = filter.dropped(direction, reason).packets;
            *by_reason.entry(reason.reference_name()).or_default() += packets;
        }
        let failed = errors.iter().map(|reason| drops.get(*reason)).sum();
        by_reason.insert("error", failed);
        for (reason, packets) in by_reason {
            text.counter(family, [reason], packets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_have_the_names_of_the_official_client() {
        let mut text = Exposition::default();
        add_drops(&mut text, &Filter::block_all(), &Drops::new());
        let text = text.render();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let mut expected = Vec::new();
        for way in ["inbound", "outbound"] {
            for reason in [
                "acl",
                "error",
                "fragment",
                "link_local_unicast",
                "multicast",
            ] {
                expected.push(format!(
                    "tailscaled_{way}_dropped_packets_total{{reason=\"{reason}\"}} 0"
                ));
            }
        }
        assert_eq!(samples, expected);
    }
}
