//! The record of a mapping that outlives the process.
//!
//! After `kill -9` the router still forwards. The next process goes on with that mapping, or
//! deletes it: a router holds a PCP mapping for the nonce that made it, and many hold a UPnP
//! mapping for ever.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use warren_wire::upnp::{Location, Service, ServiceKind};

use crate::mapper::Router;

/// A mapping that was asked for, and that a router may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptMapping {
    pub(crate) router: IpAddr,
    pub(crate) local: IpAddr,
    pub(crate) port: u16,
    /// The address at the router, once it is known.
    pub(crate) external: Option<SocketAddr>,
    pub(crate) by: KeptBy,
}

/// The details that its deletion needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KeptBy {
    Pcp {
        nonce: [u8; 12],
    },
    NatPmp,
    Upnp {
        /// Known with the mapping.
        service: Option<KeptService>,
    },
}

/// A [`Service`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptService {
    kind: String,
    url: String,
}

impl KeptService {
    pub(crate) fn new(service: &Service) -> Self {
        Self {
            kind: service.kind.urn().to_owned(),
            url: format!(
                "http://router:{}{}",
                service.control.port, service.control.path
            ),
        }
    }

    fn service(&self) -> Option<Service> {
        let kind = ServiceKind::ALL
            .into_iter()
            .find(|kind| kind.urn() == self.kind)?;
        let control = Location::parse(&self.url)?;
        Some(Service { kind, control })
    }
}

impl KeptMapping {
    /// The UPnP service that holds it, and its address there; `None`: it was not asked for.
    pub(crate) fn upnp(&self) -> Option<(Service, SocketAddr)> {
        let KeptBy::Upnp { service } = &self.by else {
            return None;
        };
        Some((service.as_ref()?.service()?, self.external?))
    }

    /// Whether it is a mapping of this node at this router.
    pub(crate) fn is_at(&self, router: Router) -> bool {
        (self.router, self.local) == (router.router, router.local)
    }
}
