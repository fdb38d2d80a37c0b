//! The network, as far as the server needs to know it.

use std::net::IpAddr;
use std::pin::Pin;

use tokio::sync::watch;
use warren_control_types::{NodeId, SshAction, SshPolicy, StableNodeId};

/// An answer that takes time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The netmap as far as it concerns one peer.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The rules for logins to this node.
    pub policy: SshPolicy,
    /// The stable id of the peer.
    pub node: StableNodeId,
    /// The number of the peer.
    pub id: NodeId,
    /// The login name of its owner; empty when there is none.
    pub login: String,
    /// The number of this node.
    pub own: NodeId,
    /// Whether patterns for variables count on this node.
    pub accepts_env: bool,
}

/// The node that the server belongs to.
pub trait Tailnet: Send + Sync + 'static {
    /// The facts about the peer that has this address. `None`: there is no such peer, or
    /// this node does not serve SSH.
    fn facts(&self, source: IpAddr) -> Answer<'_, Option<Facts>>;

    /// Changes whenever facts may have changed.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Asks the coordination server for the next action, at this path and query.
    ///
    /// # Errors
    /// The reason why there is no answer; the question may be repeated.
    fn ask(&self, target: String) -> Answer<'_, Result<SshAction, String>>;
}
