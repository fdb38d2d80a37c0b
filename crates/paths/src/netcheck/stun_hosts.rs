//! The addresses of STUN servers whose nodes in the relay map have only a name.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use warren_control_types::DerpNode;
use warren_node_types::Family;

use super::probe_plan::{StunAddress, stun_address};
use crate::api::Event;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Lookup {
    Pending,
    /// The addresses of the name, if it has any.
    Done(Vec<IpAddr>),
}

/// The destination of STUN requests to a node of the relay map.
pub(super) enum Target {
    At(SocketAddr),
    /// The node answers no STUN requests in this family.
    Never,
    /// A name must be resolved first; it is given if that was not asked for yet.
    Unresolved(Option<String>),
}

/// The host names of the relay map that were looked up.
#[derive(Default)]
pub(super) struct StunHosts(BTreeMap<String, Lookup>);

impl StunHosts {
    /// Forgets all names.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets the names without an address, so that they are looked up again.
    pub(super) fn retry_failed(&mut self) {
        self.0
            .retain(|_, lookup| matches!(lookup, Lookup::Done(list) if !list.is_empty()));
    }

    /// Asks the runtime to look a name up.
    pub(super) fn resolve(&mut self, name: String, events: &mut VecDeque<Event>) {
        events.push_back(Event::ResolveHost { name: name.clone() });
        self.0.insert(name, Lookup::Pending);
    }

    /// Takes the addresses of a name that was looked up; others are ignored.
    pub(super) fn resolved(&mut self, name: &str, addresses: Vec<IpAddr>) {
        if let Some(lookup) = self.0.get_mut(name) {
            *lookup = Lookup::Done(addresses);
        }
    }

    /// The destination of STUN requests to `node` in `family`.
    pub(super) fn target(&self, node: &DerpNode, family: Family) -> Target {
        match stun_address(node, family) {
            StunAddress::Never => Target::Never,
            StunAddress::At(address) => Target::At(address),
            StunAddress::Resolve { name, port } => match self.0.get(name) {
                None => Target::Unresolved(Some(name.to_owned())),
                Some(Lookup::Pending) => Target::Unresolved(None),
                Some(Lookup::Done(list)) => list
                    .iter()
                    .find(|ip| Family::of(**ip) == family)
                    .map_or(Target::Never, |ip| Target::At(SocketAddr::new(*ip, port))),
            },
        }
    }
}
