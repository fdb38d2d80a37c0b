//! The relay's metrics.

use warren_derp::{Census, Drops};
use warren_metrics::{Counter, CounterFamily, Exposition, GaugeFamily};

const CONNECTIONS: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_connections",
    "Connections that are logged in.",
    [],
);
const HOME_CONNECTIONS: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_home_connections",
    "Connections whose home this relay is.",
    [],
);
const CLIENTS: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_clients",
    "Different keys among the connections.",
    [],
);
const DUPLICATE_CLIENTS: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_duplicate_clients",
    "Keys with several connections.",
    [],
);
const REMOTE_CLIENTS: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_remote_clients",
    "Keys reachable through the mesh.",
    [],
);
const WATCHERS: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_watchers",
    "Mesh peers that watch this relay.",
    [],
);
const QUEUED_BYTES: GaugeFamily<0> = GaugeFamily::new(
    "warren_relay_queued_bytes",
    "Bytes that wait for receivers, in all queues together.",
    [],
);
const ACCEPTS: CounterFamily<0> =
    CounterFamily::new("warren_relay_accepts_total", "Logins accepted.", []);
const REFUSED: CounterFamily<0> = CounterFamily::new(
    "warren_relay_refused_total",
    "Connections refused or ended by an error.",
    [],
);
const WEBSOCKETS: CounterFamily<0> = CounterFamily::new(
    "warren_relay_websockets_total",
    "Connections over WebSocket.",
    [],
);
const RECEIVED_BYTES: CounterFamily<0> = CounterFamily::new(
    "warren_relay_received_bytes_total",
    "DERP bytes from clients.",
    [],
);
const SENT_BYTES: CounterFamily<0> = CounterFamily::new(
    "warren_relay_sent_bytes_total",
    "DERP bytes to clients.",
    [],
);
const PACKETS: CounterFamily<0> =
    CounterFamily::new("warren_relay_packets_total", "Packets from clients.", []);
const FORWARDED: CounterFamily<1> = CounterFamily::new(
    "warren_relay_forwarded_total",
    "Packets from and to other relays of the mesh.",
    ["way"],
);
const DROPPED: CounterFamily<1> = CounterFamily::new(
    "warren_relay_dropped_total",
    "Packets dropped, by reason.",
    ["reason"],
);
const UNKNOWN_FRAMES: CounterFamily<0> = CounterFamily::new(
    "warren_relay_unknown_frames_total",
    "Frames of unknown kind.",
    [],
);
const PINGS: CounterFamily<0> =
    CounterFamily::new("warren_relay_pings_total", "Pings answered.", []);
const PEER_GONE: CounterFamily<1> = CounterFamily::new(
    "warren_relay_peer_gone_total",
    "Reports to clients that a peer is gone, by reason.",
    ["reason"],
);
const HOME_MOVES: CounterFamily<1> = CounterFamily::new(
    "warren_relay_home_moves_total",
    "Clients that moved their home to this relay or away.",
    ["way"],
);
const WRITE_TIMEOUTS: CounterFamily<0> = CounterFamily::new(
    "warren_relay_write_timeouts_total",
    "Clients that did not read.",
    [],
);

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

    /// The text form of Prometheus. `homes` are the connections whose home this
    /// relay is; `queued` are the bytes in the queues.
    pub(crate) fn render(&self, census: &Census, homes: usize, queued: usize) -> String {
        let mut text = Exposition::default();
        text.gauge(&CONNECTIONS, [], census.connections);
        text.gauge(&HOME_CONNECTIONS, [], homes);
        text.gauge(&CLIENTS, [], census.keys);
        text.gauge(&DUPLICATE_CLIENTS, [], census.duplicate_keys);
        text.gauge(&REMOTE_CLIENTS, [], census.remote_keys);
        text.gauge(&WATCHERS, [], census.watchers);
        text.gauge(&QUEUED_BYTES, [], queued);
        for (family, counter) in [
            (&ACCEPTS, &self.accepts),
            (&REFUSED, &self.refused),
            (&WEBSOCKETS, &self.websockets),
            (&RECEIVED_BYTES, &self.bytes_received),
            (&SENT_BYTES, &self.bytes_sent),
            (&PACKETS, &self.packets_received),
            (&UNKNOWN_FRAMES, &self.unknown_frames),
            (&PINGS, &self.pings),
            (&WRITE_TIMEOUTS, &self.write_timeouts),
        ] {
            text.counter(family, [], counter.get());
        }
        for (family, label, counter) in [
            (&FORWARDED, "in", &self.packets_forwarded_in),
            (&FORWARDED, "out", &self.packets_forwarded_out),
            (&DROPPED, "unknown", &self.dropped_unknown),
            (&DROPPED, "disco_full", &self.dropped_disco_full),
            (&DROPPED, "data_full", &self.dropped_data_full),
            (&DROPPED, "data_old", &self.dropped_data_old),
            (&PEER_GONE, "left", &self.peer_gone_disconnected),
            (&PEER_GONE, "not_here", &self.peer_gone_not_here),
            (&HOME_MOVES, "in", &self.home_moves_in),
            (&HOME_MOVES, "out", &self.home_moves_out),
        ] {
            text.counter(family, [label], counter.get());
        }
        text.render()
    }
}
