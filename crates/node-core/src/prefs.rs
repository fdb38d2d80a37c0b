//! The preferences of the user that concern packets.

use ipnet::IpNet;
use warren_control_types::StableNodeId;

/// The preferences that the engine acts on. The runtime keeps many more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodePrefs {
    /// Take subnet routes that peers offer.
    pub accept_routes: bool,
    /// Refuse connections that peers open.
    pub shields_up: bool,
    /// Prefixes we offer to route, as far as the server approves them.
    pub advertise_routes: Vec<IpNet>,
    /// Take no part in searches for a path through a NAT with random ports.
    pub no_port_search: bool,
    /// Give connections of peers to the SSH port of this node to a service of this process
    /// ([`SSH`](crate::SSH)).
    pub intercept_ssh: bool,
    /// The peer through which everything else goes.
    pub exit_node: Option<StableNodeId>,
}
