//! Ports of this node that this process serves itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::network::{Arrival, Arrivals, Incoming};

/// Connections that may wait for a service.
const WAITING: usize = 128;

/// The services by port. Copies are handles on the same ones.
#[derive(Clone, Default)]
pub struct OwnServices {
    ports: Arc<Mutex<BTreeMap<u16, mpsc::Sender<Incoming>>>>,
}

impl OwnServices {
    /// Serves a port, until the connections are dropped. An earlier service of the port
    /// gets no more.
    pub fn serve(&self, port: u16) -> mpsc::Receiver<Incoming> {
        let (sender, connections) = mpsc::channel(WAITING);
        self.lock().insert(port, sender);
        connections
    }

    /// Gives a connection to the service of its port, or back where there is none. One that
    /// finds too many waiting is dropped, and with that refused.
    pub(crate) fn offer(&self, incoming: Incoming) -> Option<Incoming> {
        let mut ports = self.lock();
        let port = incoming.tuple().local.port();
        let Some(service) = ports.get(&port) else {
            return Some(incoming);
        };
        match service.try_send(incoming) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => None,
            Err(mpsc::error::TrySendError::Closed(incoming)) => {
                ports.remove(&port);
                Some(incoming)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, mpsc::Sender<Incoming>>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives everything that arrives to `services`, until the network ends. Connections
/// to other ports are refused, and everything else is dropped.
pub async fn serve_only(mut arrivals: Arrivals, services: OwnServices) {
    while let Some(arrival) = arrivals.next().await {
        if let Arrival::Connection(incoming) = arrival {
            // Dropping what comes back refuses it.
            drop(services.offer(incoming));
        }
    }
}
