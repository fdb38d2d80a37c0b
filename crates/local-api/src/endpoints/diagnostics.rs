//! Requests that measure the network, and that look inside the node.

use std::str::FromStr;

use super::without_content;
use crate::address::CanonicalIp;
use crate::endpoint::{IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::{ApiError, Reply};
use crate::filter::WhyQuestion;
use crate::types::PingType;

/// Pings once. The answer comes with the reply of the other node, or when the
/// ping failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// An address of the other node, or one that it routes to.
    pub ip: CanonicalIp,
    /// The way to ping.
    pub kind: PingType,
    /// The size of the packet in bytes; 0 for the smallest.
    pub size: usize,
}

impl RequestForm for Ping {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        Ok(Self {
            ip: request.query.required("ip")?,
            kind: request.query.required("type")?,
            size: request.query.optional("size")?.unwrap_or_default(),
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default()
            .with("ip", self.ip)
            .with("type", self.kind)
            .with("size", self.size)
    }
}

/// The network around the node. It is measured now; the answer comes with the result,
/// within 10 s. Without a network, the answer is the last measurement.
#[derive(Debug, Clone, Copy)]
pub struct GetNetcheck;

/// The counters that every user may see.
#[derive(Debug, Clone, Copy)]
pub struct GetUserMetrics;

/// All counters.
#[derive(Debug, Clone, Copy)]
pub struct GetMetrics;

/// The packet filter in force, with its counters.
#[derive(Debug, Clone, Copy)]
pub struct GetFilter;

without_content!(GetNetcheck, GetUserMetrics, GetMetrics, GetFilter);

/// Writes a marker into the log of the daemon, and answers with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BugReport {
    /// A note for the log; may be empty.
    pub note: String,
}

impl RequestForm for BugReport {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let note = request.query.get("note").unwrap_or_default().to_owned();
        Ok(Self { note })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with("note", &self.note)
    }
}

/// The actions of [`Debug`](struct@Debug).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugAction {
    /// Measure the network around again.
    Restun,
    /// Open the UDP sockets again.
    Rebind,
    /// Answer with the netmap.
    CurrentNetmap,
    /// Answer with the folder of the state.
    StateFolder,
}

impl DebugAction {
    const ALL: [(Self, &str); 4] = [
        (Self::Restun, "restun"),
        (Self::Rebind, "rebind"),
        (Self::CurrentNetmap, "current-netmap"),
        (Self::StateFolder, "statedir"),
    ];
}

impl FromStr for DebugAction {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
        found.map(|(action, _)| action).ok_or_else(|| {
            let names = Self::ALL.map(|(_, name)| name).join(", ");
            format!("unknown action {text:?}; the actions are {names}")
        })
    }
}

/// Carries out an action for debugging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Debug {
    /// The action.
    pub action: DebugAction,
}

impl RequestForm for Debug {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let action = request.query.get("action").unwrap_or_default();
        Ok(Self {
            action: action.parse().map_err(ApiError::Refused)?,
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with(
            "action",
            DebugAction::ALL
                .into_iter()
                .find_map(|(action, name)| (action == self.action).then_some(name))
                .unwrap_or_default(),
        )
    }
}

/// A request to find out whether a connection may work, as far as the node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Why {
    /// The connection.
    pub question: WhyQuestion,
}

impl RequestForm for Why {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        Ok(Self {
            question: WhyQuestion {
                from: request.query.optional("from")?,
                dst: request.query.required("dst")?,
                port: request.query.required("port")?,
                protocol: request.query.required("proto")?,
            },
        })
    }

    fn write(&self) -> OutgoingRequest {
        let request = OutgoingRequest::default()
            .with("dst", self.question.dst)
            .with("port", self.question.port)
            .with("proto", self.question.protocol);
        match self.question.from {
            Some(from) => request.with("from", from),
            None => request,
        }
    }
}
