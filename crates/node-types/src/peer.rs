//! The number of a peer.

use std::fmt;

/// A peer of this node: a small, dense number that the node assigns. It indexes
/// the tables of the data plane, and all cores know the peer by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

impl fmt::Display for PeerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.0)
    }
}
