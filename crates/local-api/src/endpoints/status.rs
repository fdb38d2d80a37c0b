//! Requests that look at the node and its network.

use super::without_content;
use crate::endpoint::{IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::{ApiError, Reply};
use crate::notify::NotifyMask;
use crate::types::WhoIsTarget;

/// The status of the node. The answer has no peers, and no users other than our
/// own, if `peers` is false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetStatus {
    /// Include the peers.
    pub peers: bool,
}

impl RequestForm for GetStatus {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        Ok(Self {
            peers: request.query.get("peers") != Some("false"),
        })
    }

    fn write(&self) -> OutgoingRequest {
        let request = OutgoingRequest::default();
        match self.peers {
            true => request,
            false => request.with("peers", false),
        }
    }
}

/// A subscription to notifications. The first one is
/// [`Notify::initial`](crate::notify::Notify::initial) for the mask, taken
/// together with the subscription, so that no change is missed or sent twice.
/// Later ones have gone through
/// [`Notify::for_mask`](crate::notify::Notify::for_mask). A listener that does not
/// keep up is dropped, which closes its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchBus {
    /// The parts of notifications that the listener wants.
    pub mask: NotifyMask,
}

impl RequestForm for WatchBus {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let mask = NotifyMask(request.query.optional("mask")?.unwrap_or_default());
        if mask.contains(NotifyMask::IN_PROCESS) {
            return Err(ApiError::Refused(
                "mask bit 65536 is for embedding programs only".to_owned(),
            ));
        }
        Ok(Self { mask })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with("mask", self.mask.0)
    }
}

/// A request for the node with an address, or with a node key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoIs {
    /// The address, `address:port`, or node key.
    pub target: WhoIsTarget,
}

impl RequestForm for WhoIs {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        Ok(Self {
            target: request.query.required("addr")?,
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with("addr", self.target)
    }
}

/// The relay map; `null` before the first netmap.
#[derive(Debug, Clone, Copy)]
pub struct GetDerpMap;

/// The DNS configuration of the netmap.
#[derive(Debug, Clone, Copy)]
pub struct GetDnsConfig;

/// The configuration of published services: empty in this version.
#[derive(Debug, Clone, Copy)]
pub struct GetServeConfig;

without_content!(GetDerpMap, GetDnsConfig, GetServeConfig);
