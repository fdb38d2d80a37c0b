//! The settings of a coordinator, made at start.

use std::time::Duration;

use warren_control_types::DerpMap;

use crate::dns::ConfiguredDns;

/// The configuration of a coordinator.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address at which nodes reach this server, without a slash at the
    /// end; addresses for people are built from it.
    pub server_url: String,
    /// The MagicDNS zone without a dot at the end; also the tailnet's name.
    pub base_domain: String,
    /// The relays that are sent to the nodes.
    pub derp_map: DerpMap,
    /// Name resolution, as far as the configuration decides about it.
    pub dns: ConfiguredDns,
    /// The time that an ephemeral node may be away before it is deleted.
    pub ephemeral_timeout: Duration,
    /// The time that a stream may be down before peers are informed, so that a
    /// reconnect goes unnoticed.
    pub offline_grace: Duration,
    /// The validity of the key of a node that belongs to a user. `None`: the
    /// key does not expire.
    pub key_lifetime: Option<Duration>,
}

impl Config {
    /// The defaults for a server at `server_url` with these relays.
    pub fn new(server_url: impl Into<String>, derp_map: DerpMap) -> Self {
        let server_url: String = server_url.into();
        Self {
            server_url: server_url.trim_end_matches('/').to_owned(),
            base_domain: "warren.internal".to_owned(),
            derp_map,
            dns: ConfiguredDns::default(),
            ephemeral_timeout: Duration::from_secs(120),
            offline_grace: Duration::from_secs(10),
            key_lifetime: Some(Duration::from_secs(180 * 24 * 3600)),
        }
    }
}

/// Whether the host name is the zone or lies in it. Nodes answer for all names of their
/// zone, so a server or relay that is named in it could not be resolved.
#[must_use]
pub fn is_in_zone(name: &str, zone: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let inside = name.strip_suffix(&zone.to_ascii_lowercase());
    inside.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
