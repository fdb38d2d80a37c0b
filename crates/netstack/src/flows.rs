//! UDP: a flow for each pair of addresses, with a queue of datagrams to read.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use warren_timers::DeadlineQueue;

use crate::{Event, FlowId, Limits, OpenError, Tuple};

#[derive(Debug)]
struct Flow {
    tuple: Tuple,
    is_incoming: bool,
    datagrams: VecDeque<Vec<u8>>,
    /// An event was sent that the application has not followed yet.
    is_reported: bool,
}

/// All flows.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    flows: BTreeMap<FlowId, Flow>,
    by_tuple: BTreeMap<Tuple, FlowId>,
    by_source: BTreeMap<IpAddr, usize>,
    deadlines: DeadlineQueue<FlowId>,
    waiting_bytes: usize,
}

/// The fate of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// It waits to be read; perhaps the application has to know.
    Queued(Option<Event>),
    /// The flow, or all of them, have too many datagrams.
    Dropped,
    /// There are too many flows of this source.
    Refused,
}

impl Flows {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn tuple(&self, id: FlowId) -> Option<Tuple> {
        self.flows.get(&id).map(|flow| flow.tuple)
    }

    pub(crate) fn is_used(&self, tuple: &Tuple) -> bool {
        self.by_tuple.contains_key(tuple)
    }

    /// Takes a datagram of the network. `id` is the number of the flow, if it is new.
    pub(crate) fn arrive(
        &mut self,
        now: Instant,
        limits: &Limits,
        tuple: Tuple,
        id: FlowId,
        payload: &[u8],
    ) -> Arrived {
        if !self.has_space(limits, payload.len()) {
            return Arrived::Dropped;
        }
        let known = self.by_tuple.get(&tuple).copied();
        let id = match known {
            Some(id) => id,
            None => {
                let source = tuple.remote.ip();
                if !self.has_share(limits, source) {
                    return Arrived::Refused;
                }
                *self.by_source.entry(source).or_default() += 1;
                self.insert(id, tuple, true);
                id
            }
        };
        self.deadlines.set(id, now + limits.flow_idle);
        let Some(flow) = self.flows.get_mut(&id) else {
            return Arrived::Dropped;
        };
        if flow.datagrams.len() >= limits.datagrams_per_flow {
            return Arrived::Dropped;
        }
        self.waiting_bytes += payload.len();
        flow.datagrams.push_back(payload.to_vec());
        let event = match known {
            None => Some(Event::IncomingFlow { id, tuple }),
            Some(_) if flow.is_reported => None,
            Some(_) => Some(Event::Flow(id)),
        };
        flow.is_reported = true;
        Arrived::Queued(event)
    }

    /// Whether the first datagram of a flow is taken, where there is a place for it.
    pub(crate) fn admits(&self, limits: &Limits, tuple: &Tuple, bytes: usize) -> bool {
        self.has_space(limits, bytes) && self.has_share(limits, tuple.remote.ip())
    }

    fn has_space(&self, limits: &Limits, bytes: usize) -> bool {
        self.waiting_bytes + bytes <= limits.datagram_bytes
    }

    fn has_share(&self, limits: &Limits, source: IpAddr) -> bool {
        self.by_source.get(&source).copied().unwrap_or(0) < limits.flows_per_source
    }

    /// Opens a flow from this side.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        limits: &Limits,
        tuple: Tuple,
        id: FlowId,
    ) -> Result<(), OpenError> {
        if self.is_used(&tuple) {
            return Err(OpenError::PortInUse);
        }
        self.insert(id, tuple, false);
        self.deadlines.set(id, now + limits.flow_idle);
        Ok(())
    }

    fn insert(&mut self, id: FlowId, tuple: Tuple, is_incoming: bool) {
        self.by_tuple.insert(tuple, id);
        let flow = Flow {
            tuple,
            is_incoming,
            datagrams: VecDeque::new(),
            is_reported: false,
        };
        self.flows.insert(id, flow);
    }

    /// The next datagram of the flow. `None`: none waits; the next one is reported.
    pub(crate) fn read(&mut self, id: FlowId) -> Option<Vec<u8>> {
        let flow = self.flows.get_mut(&id)?;
        let datagram = flow.datagrams.pop_front();
        match &datagram {
            Some(datagram) => self.waiting_bytes -= datagram.len(),
            None => flow.is_reported = false,
        }
        datagram
    }

    /// Lets the flow live on, because it was used.
    pub(crate) fn touch(&mut self, now: Instant, limits: &Limits, id: FlowId) {
        if self.flows.contains_key(&id) {
            self.deadlines.set(id, now + limits.flow_idle);
        }
    }

    /// Ends the flow. Whether there was one.
    pub(crate) fn close(&mut self, id: FlowId) -> bool {
        let Some(flow) = self.flows.remove(&id) else {
            return false;
        };
        self.deadlines.remove(&id);
        self.by_tuple.remove(&flow.tuple);
        self.waiting_bytes -= flow.datagrams.iter().map(Vec::len).sum::<usize>();
        let source = flow.tuple.remote.ip();
        if flow.is_incoming
            && let Some(count) = self.by_source.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
        true
    }

    /// The flow that was idle longest.
    pub(crate) fn longest_idle(&self) -> Option<FlowId> {
        self.deadlines.first().map(|(_, id)| *id)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next_deadline()
    }

    /// A flow whose time has passed.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<FlowId> {
        self.deadlines.pop_due(now)
    }
}
