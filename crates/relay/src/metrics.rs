//! The relay's metrics, and their text form.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use warren_derp::{Census, Drops};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// All counters of a relay.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) accepts: Counter,
    pub(crate) refused: Counter,
    pub(crate) websockets: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) packets_received: Counter,
    pub(crate) packets_forwarded_in: Counter,
    pub(crate) packets_forwarded_out: Counter,
    pub(crate) dropped_unknown: Counter,
    pub(crate) dropped_disco_full: Counter,
    pub(crate) dropped_data_full: Counter,
    pub(crate) dropped_data_old: Counter,
    pub(crate) unknown_frames: Counter,
    pub(crate) pings: Counter,
    pub(crate) peer_gone_disconnected: Counter,
    pub(crate) peer_gone_not_here: Counter,
    pub(crate) home_moves_in: Counter,
    pub(crate) home_moves_out: Counter,
    pub(crate) write_timeouts: Counter,
}

impl Metrics {
    pub(crate) fn note_drops(&self, drops: &Drops) {
        self.dropped_disco_full.add(drops.disco_full);
        self.dropped_data_full.add(drops.data_full);
        self.dropped_data_old.add(drops.data_old);
    }

    /// The text form of Prometheus.
    pub(crate) fn render(&self, census: &Census, homes: usize) -> String {
        let mut out = String::new();
        let gauges = [
            (
                "connections",
                census.connections,
                "Connections that are logged in.",
            ),
            (
                "home_connections",
                homes,
                "Connections whose home this relay is.",
            ),
            (
                "clients",
                census.keys,
                "Different keys among the connections.",
            ),
            (
                "duplicate_clients",
                census.duplicate_keys,
                "Keys with several connections.",
            ),
            (
                "remote_clients",
                census.remote_keys,
                "Keys reachable through the mesh.",
            ),
            (
                "watchers",
                census.watchers,
                "Mesh peers that watch this relay.",
            ),
        ];
        for (name, value, help) in gauges {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP warren_relay_{name} {help}");
            let _ = writeln!(
                out,
                "# TYPE warren_relay_{name} gauge\nwarren_relay_{name} {value}"
            );
        }
        let counters = [
            ("accepts_total", "", &self.accepts, "Logins taken."),
            (
                "refused_total",
                "",
                &self.refused,
                "Connections refused or ended by an error.",
            ),
            (
                "websockets_total",
                "",
                &self.websockets,
                "Connections over WebSocket.",
            ),
            (
                "received_bytes_total",
                "",
                &self.bytes_received,
                "DERP bytes from clients.",
            ),
            (
                "sent_bytes_total",
                "",
                &self.bytes_sent,
                "DERP bytes to clients.",
            ),
            (
                "packets_total",
                "",
                &self.packets_received,
                "Packets from clients.",
            ),
            (
                "forwarded_total",
                "{way=\"in\"}",
                &self.packets_forwarded_in,
                "Mesh packets.",
            ),
            (
                "forwarded_total",
                "{way=\"out\"}",
                &self.packets_forwarded_out,
                "",
            ),
            (
                "dropped_total",
                "{reason=\"unknown\"}",
                &self.dropped_unknown,
                "Packets lost here.",
            ),
            (
                "dropped_total",
                "{reason=\"disco_full\"}",
                &self.dropped_disco_full,
                "",
            ),
            (
                "dropped_total",
                "{reason=\"data_full\"}",
                &self.dropped_data_full,
                "",
            ),
            (
                "dropped_total",
                "{reason=\"data_old\"}",
                &self.dropped_data_old,
                "",
            ),
            (
                "unknown_frames_total",
                "",
                &self.unknown_frames,
                "Frames of unknown kind.",
            ),
            ("pings_total", "", &self.pings, "Pings answered."),
            (
                "peer_gone_total",
                "{reason=\"left\"}",
                &self.peer_gone_disconnected,
                "Peer gone.",
            ),
            (
                "peer_gone_total",
                "{reason=\"not_here\"}",
                &self.peer_gone_not_here,
                "",
            ),
            (
                "home_moves_total",
                "{way=\"in\"}",
                &self.home_moves_in,
                "Homes moved.",
            ),
            (
                "home_moves_total",
                "{way=\"out\"}",
                &self.home_moves_out,
                "",
            ),
            (
                "write_timeouts_total",
                "",
                &self.write_timeouts,
                "Clients that did not read.",
            ),
        ];
        for (name, labels, counter, help) in counters {
            if !help.is_empty() {
                let _ = writeln!(out, "# HELP warren_relay_{name} {help}");
                let _ = writeln!(out, "# TYPE warren_relay_{name} counter");
            }
            let value = counter.0.load(Ordering::Relaxed);
            let _ = writeln!(out, "warren_relay_{name}{labels} {value}");
        }
        out
    }
}
