//! Notifications of the daemon to its listeners: one JSON object per line.
//!
//! A [`Notify`] carries only what changed. The first one after subscribing can
//! carry the state so far; the listener chooses that with a [`NotifyMask`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use warren_control_types::{
    ClientVersion, DerpMap, DisplayMessage, DnsConfig, FilterRule, Node, NodeId, PeerChange,
    SshPolicy, UserId, UserProfile,
};
use warren_keys::{MachinePublic, NodePublic};

use crate::go_json::{GoTime, null_is_default, nullable};
use crate::health::HealthState;
use crate::prefs::ShownPrefs;
use crate::types::Status;

/// The state of the daemon, as one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum State {
    /// Just started, nothing decided.
    #[default]
    NoState,
    /// Another user of this machine is using the daemon (Windows).
    InUseOtherUser,
    /// There is no login.
    NeedsLogin,
    /// Logged in; an administrator must approve the machine.
    NeedsMachineAuth,
    /// Logged in, and stopped by the user.
    Stopped,
    /// On the way up.
    Starting,
    /// Up.
    Running,
}

impl State {
    const ALL: [Self; 7] = [
        Self::NoState,
        Self::InUseOtherUser,
        Self::NeedsLogin,
        Self::NeedsMachineAuth,
        Self::Stopped,
        Self::Starting,
        Self::Running,
    ];

    /// The word, as in `BackendState`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoState => "NoState",
            Self::InUseOtherUser => "InUseOtherUser",
            Self::NeedsLogin => "NeedsLogin",
            Self::NeedsMachineAuth => "NeedsMachineAuth",
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// The number, as in notifications.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u8::deserialize(deserializer)?;
        Self::ALL
            .get(usize::from(number))
            .copied()
            .ok_or_else(|| serde::de::Error::custom(format!("unknown state number {number}")))
    }
}

/// The parts of notifications that a listener wants, as a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NotifyMask(pub u64);

impl NotifyMask {
    /// Traffic counters, whenever they change.
    pub const ENGINE_UPDATES: Self = Self(1);
    /// First: state, login address and session id.
    pub const INITIAL_STATE: Self = Self(2);
    /// First: preferences.
    pub const INITIAL_PREFS: Self = Self(4);
    /// First: netmap.
    pub const INITIAL_NETMAP: Self = Self(8);
    /// First: shared folders.
    pub const INITIAL_DRIVE_SHARES: Self = Self(32);
    /// First: health.
    pub const INITIAL_HEALTH: Self = Self(128);
    /// Not more often than a person can follow.
    pub const RATE_LIMIT: Self = Self(256);
    /// First: the exit node that the daemon suggests.
    pub const INITIAL_SUGGESTED_EXIT_NODE: Self = Self(1024);
    /// First: the statement of the coordination server about versions.
    pub const INITIAL_CLIENT_VERSION: Self = Self(2048);
    /// Additions, changes and removals of peers.
    pub const PEER_CHANGES: Self = Self(4096);
    /// Never the whole netmap.
    pub const NO_NETMAP: Self = Self(8192);
    /// First: the whole status.
    pub const INITIAL_STATUS: Self = Self(16384);
    /// Small changes of peers.
    pub const PEER_PATCHES: Self = Self(32768);
    /// Only for embedding programs; refused over the socket.
    pub const IN_PROCESS: Self = Self(65536);

    /// Policy settings of this system, first and whenever they change.
    pub const POLICY_CHANGES: Self = Self(131_072);
    /// First: the state of the sessions with peers.
    pub const PEER_WIREGUARD_STATE: Self = Self(262_144);

    /// The parts for which a first notification is sent, even where it has nothing
    /// to report: programs wait for it.
    const ANSWERED_AT_ONCE: [Self; 9] = [
        Self::INITIAL_STATE,
        Self::INITIAL_PREFS,
        Self::INITIAL_NETMAP,
        Self::INITIAL_STATUS,
        Self::INITIAL_DRIVE_SHARES,
        Self::INITIAL_SUGGESTED_EXIT_NODE,
        Self::INITIAL_CLIENT_VERSION,
        Self::POLICY_CHANGES,
        Self::PEER_WIREGUARD_STATE,
    ];

    /// Whether all bits of `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The netmap, as far as local programs get to see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkMap {
    /// It comes from the disk; the coordination server was not reached yet.
    pub cached: bool,
    /// Ourselves.
    pub self_node: Option<Node>,
    /// The capabilities of our node, sorted.
    #[serde(with = "nullable")]
    pub all_caps: Vec<String>,
    /// Our node key.
    pub node_key: NodePublic,
    /// Our machine key.
    pub machine_key: Option<MachinePublic>,
    /// The peers, by id.
    #[serde(deserialize_with = "null_is_default")]
    pub peers: Vec<Node>,
    /// DNS configuration.
    #[serde(rename = "DNS")]
    pub dns: DnsConfig,
    /// The rules of the packet filter, as the coordination server sent them.
    #[serde(with = "nullable")]
    pub packet_filter_rules: Vec<FilterRule>,
    /// The rules for logins over SSH.
    #[serde(rename = "SSHPolicy")]
    pub ssh_policy: Option<SshPolicy>,
    /// Whether to report ports that listen.
    pub collect_services: bool,
    /// Relay map.
    #[serde(rename = "DERPMap")]
    pub derp_map: Option<DerpMap>,
    /// Messages of the coordination server, by id.
    #[serde(with = "nullable")]
    pub display_messages: BTreeMap<String, DisplayMessage>,
    /// Whether tailnet lock is on.
    #[serde(rename = "TKAEnabled")]
    pub tka_enabled: bool,
    /// Name of the tailnet.
    pub domain: String,
    /// For audit logs.
    #[serde(rename = "DomainAuditLogID")]
    pub domain_audit_log_id: String,
    /// Users that own us and the peers.
    #[serde(with = "nullable")]
    pub user_profiles: BTreeMap<UserId, UserProfile>,
}

/// Traffic counters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStatus {
    /// Bytes received.
    #[serde(rename = "RBytes")]
    pub r_bytes: i64,
    /// Bytes sent.
    #[serde(rename = "WBytes")]
    pub w_bytes: i64,
    /// Peers with a live session.
    #[serde(rename = "NumLive")]
    pub num_live: i64,
    /// Connected relays.
    #[serde(rename = "LiveDERPs")]
    pub live_derps: i64,
    /// The peers with a live session.
    #[serde(rename = "LivePeers")]
    pub live_peers: BTreeMap<NodePublic, LivePeer>,
}

/// A peer with a live session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LivePeer {
    /// Bytes sent to it.
    pub tx_bytes: i64,
    /// Bytes received from it.
    pub rx_bytes: i64,
    /// When the last handshake was finished.
    pub last_handshake: GoTime,
    /// Its node key.
    pub node_key: NodePublic,
}

/// One notification. A field that is `None` or empty did not change.
///
/// The fields of the official client that are always written, as `null` when
/// nothing changed, are so here; the newer ones are left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Notify {
    /// Long version of the daemon.
    pub version: String,
    /// Id of this subscription; in the first notification only.
    #[serde(rename = "SessionID", skip_serializing_if = "String::is_empty")]
    pub session_id: String,
    /// Something failed for good; shown to the user.
    pub err_message: Option<String>,
    /// A login has just succeeded.
    pub login_finished: Option<Empty>,
    /// The state.
    pub state: Option<State>,
    /// The preferences.
    pub prefs: Option<Box<ShownPrefs>>,
    /// Our own node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_change: Option<Box<Node>>,
    /// The whole status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_status: Option<Box<Status>>,
    /// The netmap.
    pub net_map: Option<Box<NetworkMap>>,
    /// Small changes of peers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peer_changed_patch: Vec<PeerChange>,
    /// Peers that are new or changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers_changed: Vec<Node>,
    /// Peers that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers_removed: Vec<NodeId>,
    /// Users that are new or changed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub user_profiles: BTreeMap<UserId, UserProfile>,
    /// Traffic counters.
    pub engine: Option<EngineStatus>,
    /// Open this address in a browser to log in.
    #[serde(rename = "BrowseToURL")]
    pub browse_to_url: Option<String>,
    /// The statement of the coordination server about versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<ClientVersion>,
    /// Shared folders; not in this version, hence always `null`.
    pub drive_shares: Option<Vec<Value>>,
    /// Problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthState>,
}

/// An object without content: `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Empty {}

/// The state so far, from which the first notification is made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Id of the subscription, any text unique in the daemon's life.
    pub session_id: String,
    /// The state.
    pub state: State,
    /// The preferences.
    pub prefs: ShownPrefs,
    /// The address for the login that the daemon waits for; empty: none.
    pub browse_to_url: String,
    /// The netmap, once there is one.
    pub net_map: Option<NetworkMap>,
    /// The whole status.
    pub status: Option<Status>,
    /// Problems.
    pub health: HealthState,
}

impl Notify {
    /// A notification in which nothing changed yet.
    pub fn new() -> Self {
        Self {
            version: super::VERSION.to_owned(),
            ..Self::default()
        }
    }

    /// The first notification for a listener with this mask; `None` when it
    /// asked for nothing of what there is.
    pub fn initial(mask: NotifyMask, snapshot: Snapshot) -> Option<Self> {
        let mut notify = Self::new();
        if mask.contains(NotifyMask::INITIAL_STATE) {
            notify.session_id = snapshot.session_id;
            notify.state = Some(snapshot.state);
            if !snapshot.browse_to_url.is_empty() {
                notify.browse_to_url = Some(snapshot.browse_to_url);
            }
        }
        if mask.contains(NotifyMask::INITIAL_PREFS) {
            notify.prefs = Some(Box::new(snapshot.prefs));
        }
        if mask.contains(NotifyMask::INITIAL_NETMAP) {
            let own = snapshot.net_map.as_ref();
            notify.self_change = own.and_then(|map| map.self_node.clone()).map(Box::new);
            if !mask.contains(NotifyMask::NO_NETMAP) {
                notify.net_map = snapshot.net_map.map(Box::new);
            }
        }
        if mask.contains(NotifyMask::INITIAL_STATUS) {
            notify.initial_status = snapshot.status.map(Box::new);
        }
        let mut at_once = NotifyMask::ANSWERED_AT_ONCE.into_iter();
        let is_sent = at_once.any(|part| mask.contains(part));
        let wants_health = mask.contains(NotifyMask::INITIAL_HEALTH);
        if wants_health && (is_sent || !snapshot.health.is_well()) {
            notify.health = Some(snapshot.health);
        }
        (is_sent || notify.health.is_some()).then_some(notify)
    }

    /// The part of this notification that a listener with this mask gets; `None`:
    /// nothing.
    pub fn for_mask(mut self, mask: NotifyMask) -> Option<Self> {
        if !mask.contains(NotifyMask::ENGINE_UPDATES) {
            self.engine = None;
        }
        if mask.contains(NotifyMask::NO_NETMAP) {
            self.net_map = None;
        }
        if !mask.contains(NotifyMask::PEER_CHANGES) {
            self.peers_changed.clear();
            self.peers_removed.clear();
            self.user_profiles.clear();
        }
        if !mask.contains(NotifyMask::PEER_PATCHES) {
            self.peer_changed_patch.clear();
        }
        let empty = Self {
            version: self.version.clone(),
            ..Self::default()
        };
        (self != empty).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn states_keep_their_numbers_and_names() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state.number()), number);
            assert_eq!(State::from_name(state.as_str()), Some(state));
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
        }
        assert_eq!(State::Running.number(), 6);
        assert!(serde_json::from_str::<State>("7").is_err());
    }

    #[test]
    fn pointers_are_null_and_newer_fields_left_out() {
        let value = serde_json::to_value(Notify::new()).unwrap();
        let mut found: Vec<_> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "BrowseToURL",
                "DriveShares",
                "Engine",
                "ErrMessage",
                "LoginFinished",
                "NetMap",
                "Prefs",
                "State",
                "Version"
            ]
        );
        assert!(value["Prefs"].is_null());
    }

    #[test]
    fn the_first_notification_has_what_was_asked_for() {
        let snapshot = Snapshot {
            session_id: "s1".into(),
            state: State::NeedsLogin,
            browse_to_url: "http://x/register/1".into(),
            ..Snapshot::default()
        };
        assert_eq!(Notify::initial(NotifyMask(0), snapshot.clone()), None);
        let first = Notify::initial(NotifyMask(2 | 4), snapshot).unwrap();
        assert_eq!(first.state, Some(State::NeedsLogin));
        assert_eq!(first.session_id, "s1");
        assert_eq!(first.browse_to_url.as_deref(), Some("http://x/register/1"));
        assert!(first.prefs.is_some());
    }

    #[test]
    fn a_first_notification_is_sent_for_the_same_masks_as_by_the_official_client() {
        // Recorded from tailscaled 1.103.0 that is logged out, one mask at a time.
        for (mask, is_sent) in [
            (0, false),
            (1, false),
            (2, true),
            (4, true),
            (8, true),
            (16, false),
            (32, true),
            (64, false),
            (128, false),
            (256, false),
            (512, false),
            (1024, true),
            (2048, true),
            (4096, false),
            (16384, true),
            (32768, false),
            (262_144, true),
        ] {
            let first = Notify::initial(NotifyMask(mask), Snapshot::default());
            assert_eq!(first.is_some(), is_sent, "{mask}");
        }
        let unwell = Snapshot {
            health: HealthState::new(&["no relay".to_owned()]),
            ..Snapshot::default()
        };
        let first = Notify::initial(NotifyMask::INITIAL_HEALTH, unwell).unwrap();
        assert!(!first.health.unwrap().is_well());
        let first = Notify::initial(NotifyMask(2 | 128), Snapshot::default()).unwrap();
        assert!(first.health.unwrap().is_well());
    }

    #[test]
    fn a_listener_gets_only_what_its_mask_lets_through() {
        let notify = Notify {
            engine: Some(EngineStatus::default()),
            ..Notify::new()
        };
        assert_eq!(notify.clone().for_mask(NotifyMask(0)), None);
        assert!(notify.for_mask(NotifyMask::ENGINE_UPDATES).is_some());
        let netmap = Notify {
            net_map: Some(Box::default()),
            ..Notify::new()
        };
        assert_eq!(netmap.clone().for_mask(NotifyMask::NO_NETMAP), None);
        assert!(netmap.for_mask(NotifyMask(0)).is_some());
    }
}
