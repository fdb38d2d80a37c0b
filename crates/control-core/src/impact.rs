//! The consequences of a change of a record for the maps of nodes.

use warren_control_types::Hostinfo;

use crate::map_sessions::{PatchFields, PeerUpdate};
use crate::records::{NodeRecord, UserRecord};
use crate::routes::effective;

/// The part of a host's description that peers need: its system, and the ports
/// of its services. The rest is between the node and this server.
pub(crate) fn peer_hostinfo(full: &Hostinfo) -> Hostinfo {
    Hostinfo {
        os: full.os.clone(),
        hostname: full.hostname.clone(),
        services: full.services.clone(),
        ssh_host_keys: full.ssh_host_keys.clone(),
        routable_ips: full.routable_ips.clone(),
        shields_up: full.shields_up,
        location: full.location.clone(),
        ..Default::default()
    }
}

/// The consequences of replacing a node's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeImpact {
    /// The policy may treat it differently.
    pub(crate) policy: bool,
    /// It routes other subnets.
    pub(crate) routes: bool,
    /// The update for its peers.
    pub(crate) peers: Option<PeerUpdate>,
    /// Its own section of its map.
    pub(crate) own: bool,
    /// Its stream belongs to a key that it no longer has.
    pub(crate) ends_stream: bool,
}

impl NodeImpact {
    /// `host_changes_policy` says whether the policy asks for what the two
    /// descriptions of the host say differently.
    pub(crate) fn of(
        old: Option<&NodeRecord>,
        new: &NodeRecord,
        host_changes_policy: impl Fn(&Hostinfo, &Hostinfo) -> bool,
    ) -> Self {
        let Some(old) = old else {
            return Self {
                policy: true,
                routes: true,
                peers: Some(PeerUpdate::Whole),
                own: true,
                ends_stream: false,
            };
        };
        let routes = effective(old) != effective(new);
        let policy = routes
            || old.user != new.user
            || old.tags != new.tags
            || old.address != new.address
            || host_changes_policy(&old.hostinfo, &new.hostinfo);
        let whole = policy
            || old.name != new.name
            || old.key_expiry != new.key_expiry
            || old.machine != new.machine
            || old.created != new.created
            || peer_hostinfo(&old.hostinfo) != peer_hostinfo(&new.hostinfo);
        let mut fields = PatchFields::default();
        for (differs, field) in [
            (old.endpoints != new.endpoints, PatchFields::ENDPOINTS),
            (old.disco != new.disco, PatchFields::DISCO),
            (old.home_relay != new.home_relay, PatchFields::RELAY),
            (
                old.key != new.key || old.key_signature != new.key_signature,
                PatchFields::KEY,
            ),
            (old.capability != new.capability, PatchFields::CAPABILITY),
        ] {
            if differs {
                fields = fields.with(field);
            }
        }
        let peers = if whole {
            Some(PeerUpdate::Whole)
        } else {
            (!fields.is_empty()).then_some(PeerUpdate::Patch(fields))
        };
        Self {
            policy,
            routes,
            peers,
            own: peers.is_some() || old.hostinfo != new.hostinfo,
            ends_stream: old.key != new.key,
        }
    }
}

/// Whether a user is shown differently: names and picture, and capabilities of its nodes.
pub(crate) fn of_user(old: Option<&UserRecord>, new: &UserRecord) -> (bool, bool) {
    old.map_or((false, false), |old| {
        let picture = |user: &UserRecord| user.account.as_ref()?.picture.clone();
        let renamed = old.name != new.name
            || old.display_name() != new.display_name()
            || picture(old) != picture(new);
        let capabilities = old.role.capabilities() != new.role.capabilities();
        (renamed, capabilities)
    })
}
