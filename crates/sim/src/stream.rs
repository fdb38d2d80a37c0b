//! Reliable streams: in order, delayed, and broken by faults of the network.
//!
//! TCP and TLS are not simulated, only their cost: two round trips to open, and a
//! retransmission timeout for every loss.

use std::collections::BTreeMap;

use warren_control_types::RegionId;
use warren_node_core::node::SessionId;

use crate::network::HostId;
use crate::time::SimTime;

/// One stream; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

/// An end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The use of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Relay(RegionId),
    Control(SessionId),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) node: usize,
    pub(crate) client: HostId,
    pub(crate) server: HostId,
    pub(crate) purpose: Purpose,
    pub(crate) is_open: bool,
    /// It broke, but the server does not know yet.
    pub(crate) is_frozen: bool,
    /// The arrival of the last bytes sent, at the client and at the server.
    arrives: [SimTime; 2],
}

/// The actions of a server on its streams.
#[derive(Default)]
pub(crate) struct StreamActions {
    pub(crate) send: Vec<(StreamId, Vec<u8>)>,
    pub(crate) close: Vec<StreamId>,
}

/// All streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    all: BTreeMap<StreamId, Stream>,
    next: u64,
}

impl Streams {
    pub(crate) fn add(
        &mut self,
        node: usize,
        client: HostId,
        server: HostId,
        purpose: Purpose,
    ) -> StreamId {
        self.next += 1;
        let id = StreamId(self.next);
        let arrives = [SimTime::ZERO; 2];
        let stream = Stream {
            node,
            client,
            server,
            purpose,
            is_open: false,
            is_frozen: false,
            arrives,
        };
        self.all.insert(id, stream);
        id
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<Stream> {
        self.all.get(&id).copied()
    }

    pub(crate) fn open(&mut self, id: StreamId) {
        if let Some(stream) = self.all.get_mut(&id) {
            stream.is_open = true;
        }
    }

    /// Nothing passes any more, and neither side is notified.
    pub(crate) fn freeze(&mut self, id: StreamId) {
        if let Some(stream) = self.all.get_mut(&id) {
            stream.is_open = false;
            stream.is_frozen = true;
        }
    }

    pub(crate) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        self.all.remove(&id)
    }

    /// The streams of a host, in order.
    pub(crate) fn of(&self, host: HostId) -> Vec<StreamId> {
        let there = |stream: &Stream| stream.client == host || stream.server == host;
        self.all
            .iter()
            .filter(|(_, stream)| there(stream))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The arrival at `to` of bytes sent now: never before bytes sent earlier.
    pub(crate) fn arrival(&mut self, id: StreamId, to: Side, wish: SimTime) -> SimTime {
        let Some(stream) = self.all.get_mut(&id) else {
            return wish;
        };
        let last = &mut stream.arrives[to as usize];
        *last = wish.max(*last);
        *last
    }
}
