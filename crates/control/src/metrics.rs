//! Metrics of the server, for Prometheus, on a listener of their own.
//!
//! Numbers that Headscale has too, with the same meaning, have its names (`headscale_*`,
//! as of its version 0.29), so that its dashboards show them. All others are
//! `warren_control_*`; an embedded relay adds those of a relay that is alone. Labels are
//! from fixed lists: no name, key or address is one, and senders that prove nothing
//! cannot add any.
//!
//! The README lists all families; a test compares the list with what a server serves.

use std::sync::Arc;

use http::StatusCode;
use tokio::net::TcpListener;
use warren_control_core::{MessageKind, View};
use warren_control_types::RegisterResponse;
use warren_dial::connections::ConnectionTable;
use warren_dial::pages::{self, Page};
use warren_metrics::{Counter, CounterFamily, Exposition, GaugeFamily};
use warren_relay::Relay;

use crate::coordinator::CoordinatorHandle;
use crate::refusals::Refused;

const MESSAGES_SENT: CounterFamily<2> = CounterFamily::new(
    "headscale_mapresponse_sent_total",
    "Map messages handed to connections, by their largest part.",
    ["status", "type"],
);
const MESSAGES_GENERATED: CounterFamily<1> = CounterFamily::new(
    "headscale_mapresponse_generated_total",
    "Map messages made, by their largest part. Signs of life are not among them.",
    ["response_type"],
);
const ENDPOINT_UPDATES: CounterFamily<1> = CounterFamily::new(
    "headscale_mapresponse_endpoint_updates_total",
    "Updates of endpoints and host that nodes sent beside their map streams.",
    ["status"],
);
const SESSIONS_ENDED: CounterFamily<1> = CounterFamily::new(
    "headscale_mapresponse_ended_total",
    "Map streams ended: cancelled by the server, or done by the client.",
    ["reason"],
);
const ALL_NODES: GaugeFamily<0> = GaugeFamily::new("headscale_nodestore_nodes", "Nodes.", []);

const BUILD: GaugeFamily<1> = GaugeFamily::new(
    "warren_control_build_info",
    "1, with the version of the server.",
    ["version"],
);
const NODES: GaugeFamily<1> = GaugeFamily::new(
    "warren_control_nodes",
    "Nodes, by whether peers see them online.",
    ["state"],
);
const USERS: GaugeFamily<0> = GaugeFamily::new("warren_control_users", "Users.", []);
const SESSIONS: GaugeFamily<0> =
    GaugeFamily::new("warren_control_map_sessions", "Open map streams.", []);
const CONNECTIONS: GaugeFamily<0> = GaugeFamily::new(
    "warren_control_connections",
    "Open connections of the ports for nodes.",
    [],
);
const WAITING: GaugeFamily<0> = GaugeFamily::new(
    "warren_control_registrations_waiting",
    "Machines that wait for a login or an approval.",
    [],
);
const REGISTRATIONS: CounterFamily<1> = CounterFamily::new(
    "warren_control_registrations_total",
    "Registrations, also those of known nodes, by result.",
    ["result"],
);
const REFUSALS: CounterFamily<1> = CounterFamily::new(
    "warren_control_refusals_total",
    "Refusals, by the kind of thing refused. Command health shows their reasons.",
    ["kind"],
);
const STORE_HEALTHY: GaugeFamily<0> = GaugeFamily::new(
    "warren_control_store_healthy",
    "1 if the last batch of rows reached the disk, else 0.",
    [],
);
const STORE_ROWS: GaugeFamily<0> = GaugeFamily::new(
    "warren_control_store_queued_rows",
    "Rows that wait for the writer of the database.",
    [],
);
const STORE_WRITES: CounterFamily<0> = CounterFamily::new(
    "warren_control_store_writes_total",
    "Changes written to the database.",
    [],
);
const STORE_FAILURES: CounterFamily<0> = CounterFamily::new(
    "warren_control_store_failures_total",
    "Batches of rows that could not be written and are tried again.",
    [],
);
const POLICY_VERSION: GaugeFamily<0> = GaugeFamily::new(
    "warren_control_policy_version",
    "The number of the policy in force; 0 before the first one.",
    [],
);
const POLICY_VALID: GaugeFamily<0> = GaugeFamily::new(
    "warren_control_policy_valid",
    "0 if the stored policy or the policy file has an error, else 1.",
    [],
);

/// The counters of the server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) messages: Messages,
    pub(crate) endpoint_updates: Counter,
    pub(crate) sessions_ended: SessionsEnded,
    pub(crate) registrations: Registrations,
}

/// Map messages, by kind.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    pub(crate) keepalive: Counter,
    full: Counter,
    peers: Counter,
    patch: Counter,
    policy: Counter,
    own: Counter,
    settings: Counter,
    ping: Counter,
}

impl Messages {
    /// The counter of messages of this kind.
    pub(crate) fn of(&self, kind: MessageKind) -> &Counter {
        match kind {
            MessageKind::Full => &self.full,
            MessageKind::Peers => &self.peers,
            MessageKind::Patch => &self.patch,
            MessageKind::Policy => &self.policy,
            MessageKind::Own => &self.own,
            MessageKind::Settings => &self.settings,
            MessageKind::Ping => &self.ping,
        }
    }
}

/// Map streams that ended.
#[derive(Debug, Default)]
pub(crate) struct SessionsEnded {
    /// The node was deleted, or opened another one.
    pub(crate) by_server: Counter,
    /// The client went away.
    pub(crate) by_client: Counter,
}

/// Registrations, by result.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    accepted: Counter,
    login_needed: Counter,
    key_expired: Counter,
    not_approved: Counter,
    refused: Counter,
    /// Too many machines wait already.
    pub(crate) busy: Counter,
    /// The result could not be saved.
    pub(crate) unsaved: Counter,
}

impl Registrations {
    /// The counter of registrations with this answer.
    pub(crate) fn of_answer(&self, answer: &RegisterResponse) -> &Counter {
        if !answer.error.is_empty() {
            &self.refused
        } else if !answer.auth_url.is_empty() {
            &self.login_needed
        } else if answer.node_key_expired {
            &self.key_expired
        } else if answer.machine_authorized {
            &self.accepted
        } else {
            &self.not_approved
        }
    }
}

/// The pages of the listener for metrics.
pub(crate) struct MetricsPages {
    pub(crate) coordinator: Arc<CoordinatorHandle>,
    pub(crate) connections: Arc<ConnectionTable>,
    pub(crate) relay: Option<Relay>,
}

impl MetricsPages {
    /// Serves them; never returns.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let shared = Arc::new(self);
        pages::serve(listener, move |path| {
            let shared = shared.clone();
            async move { shared.page(&path) }
        })
        .await;
    }

    fn page(&self, path: &str) -> Page {
        match path {
            "/metrics" => Page {
                status: StatusCode::OK,
                media_type: pages::PROMETHEUS,
                text: self.render(),
            },
            _ => Page::plain(StatusCode::NOT_FOUND, "not found; use /metrics\n"),
        }
    }

    fn render(&self) -> String {
        let mut text = Exposition::default();
        text.gauge(&BUILD, [env!("CARGO_PKG_VERSION")], 1_u64);
        self.coordinator.read(|view| render_view(view, &mut text));
        let waiting = self.coordinator.inspect(|c| c.pending().len());
        text.gauge(&WAITING, [], waiting);
        text.gauge(&SESSIONS, [], self.coordinator.session_count());
        text.gauge(&CONNECTIONS, [], self.connections.len());
        self.coordinator.metrics().render(&mut text);
        for kind in Refused::ALL {
            let total = self.coordinator.refusals().total(kind);
            text.counter(&REFUSALS, [kind.name()], total);
        }
        let store = self.coordinator.queue_state();
        let healthy = u64::from(self.coordinator.is_healthy());
        text.gauge(&STORE_HEALTHY, [], healthy);
        text.gauge(&STORE_ROWS, [], store.rows);
        text.counter(&STORE_WRITES, [], store.written);
        text.counter(&STORE_FAILURES, [], store.failures);
        let mut text = text.render();
        if let Some(relay) = &self.relay {
            text.push_str(&relay.metrics());
        }
        text
    }
}

fn render_view(view: &View, text: &mut Exposition) {
    let all = view.node_count();
    let online = view.nodes().filter(|node| view.is_online(node.id)).count();
    text.gauge(&ALL_NODES, [], all);
    text.gauge(&NODES, ["online"], online);
    text.gauge(&NODES, ["offline"], all.saturating_sub(online));
    text.gauge(&USERS, [], view.users().count());
    let version = view.policy_version().unwrap_or(0);
    text.gauge(&POLICY_VERSION, [], version.unsigned_abs());
    let file = view.policy_file();
    let file_is_valid = file.is_none_or(|file| file.problem.is_none());
    let is_valid = file_is_valid && view.policy_fault().is_none();
    text.gauge(&POLICY_VALID, [], u64::from(is_valid));
}

impl Metrics {
    fn render(&self, text: &mut Exposition) {
        let messages = &self.messages;
        text.counter(
            &MESSAGES_SENT,
            ["ok", "keepalive"],
            messages.keepalive.get(),
        );
        for (kind, counter) in [
            ("full", &messages.full),
            ("peers", &messages.peers),
            ("patch", &messages.patch),
            ("policy", &messages.policy),
            ("self", &messages.own),
            ("config", &messages.settings),
            ("ping", &messages.ping),
        ] {
            text.counter(&MESSAGES_SENT, ["ok", kind], counter.get());
            text.counter(&MESSAGES_GENERATED, [kind], counter.get());
        }
        let updates = self.endpoint_updates.get();
        text.counter(&ENDPOINT_UPDATES, ["ok"], updates);
        let (registrations, ended) = (&self.registrations, &self.sessions_ended);
        for (family, label, counter) in [
            (&SESSIONS_ENDED, "cancelled", &ended.by_server),
            (&SESSIONS_ENDED, "done", &ended.by_client),
            (&REGISTRATIONS, "accepted", &registrations.accepted),
            (&REGISTRATIONS, "login_needed", &registrations.login_needed),
            (&REGISTRATIONS, "key_expired", &registrations.key_expired),
            (&REGISTRATIONS, "not_approved", &registrations.not_approved),
            (&REGISTRATIONS, "refused", &registrations.refused),
            (&REGISTRATIONS, "busy", &registrations.busy),
            (&REGISTRATIONS, "unsaved", &registrations.unsaved),
        ] {
            text.counter(family, [label], counter.get());
        }
    }
}
