//! The preferences of the user, and changes to some of them.
//!
//! One table (the `prefs!` call) names every preference once; from it come
//! [`Prefs`], the whole set, [`MaskedPrefs`], a change to those that are
//! `Some`, and how a change is applied and travels as JSON: each key `X` of
//! the change comes with a boolean `XSet`.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::go_json::{MaybeIp, canonical_keys, is_false, nullable};
use warren_control_types::UserProfile;

/// The handling of the firewall (Linux).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetfilterMode {
    /// 0: touch nothing.
    Off,
    /// 1: make our chains, but do not jump to them.
    NoDivert,
    /// 2: make our chains and use them.
    On,
}

impl Serialize for NetfilterMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(match self {
            Self::Off => 0,
            Self::NoDivert => 1,
            Self::On => 2,
        })
    }
}

impl<'de> Deserialize<'de> for NetfilterMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Self::Off),
            1 => Ok(Self::NoDivert),
            2 => Ok(Self::On),
            other => Err(serde::de::Error::custom(format!(
                "expected a netfilter mode (0 off, 1 nodivert, 2 on), got {other}"
            ))),
        }
    }
}

/// Whether to look for updates, and whether to install them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutoUpdate {
    /// Look for them.
    #[serde(rename = "Check")]
    pub check: bool,
    /// Install them; `None`: as the tailnet decides.
    #[serde(rename = "Apply")]
    pub apply: Option<bool>,
}

impl Default for AutoUpdate {
    fn default() -> Self {
        Self {
            check: true,
            apply: None,
        }
    }
}

/// Whether this node offers to be an app connector.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AppConnector {
    /// Offer it.
    #[serde(rename = "Advertise")]
    pub advertise: bool,
}

/// The login, as shown to local programs.
///
/// The object of the official client also has the private keys, blanked before it leaves
/// the daemon. Ours has no place for them: the blanks are written as such.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Persist {
    /// The logged-in user.
    pub user_profile: UserProfile,
    /// The stable id of this node; empty before the first login.
    pub node_id: String,
}

impl Serialize for Persist {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let zeros = "0".repeat(64);
        // A signing key and its public half: the official client refuses the whole
        // object when one digit is missing.
        let signing_zeros = "0".repeat(128);
        let mut out = serializer.serialize_struct("Persist", 5)?;
        out.serialize_field("PrivateNodeKey", &format!("privkey:{zeros}"))?;
        out.serialize_field("OldPrivateNodeKey", &format!("privkey:{zeros}"))?;
        out.serialize_field("UserProfile", &self.user_profile)?;
        out.serialize_field("NetworkLockKey", &format!("nlpriv:{signing_zeros}"))?;
        out.serialize_field("NodeID", &self.node_id)?;
        out.end()
    }
}

impl<'de> Deserialize<'de> for Persist {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Shown {
            #[serde(rename = "UserProfile")]
            user_profile: Option<UserProfile>,
            #[serde(rename = "NodeID")]
            node_id: Option<String>,
        }
        let shown = Shown::deserialize(deserializer)?;
        Ok(Self {
            user_profile: shown.user_profile.unwrap_or_default(),
            node_id: shown.node_id.unwrap_or_default(),
        })
    }
}

/// One preference of the table: its JSON names and how to read a change.
fn masked<T: serde::de::DeserializeOwned + Default>(
    object: &mut Map<String, Value>,
    key: &str,
    key_set: &str,
) -> Result<Option<T>, String> {
    if object.get(key_set) != Some(&Value::Bool(true)) {
        return Ok(None);
    }
    match object.remove(key) {
        None => Ok(Some(T::default())),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|error| format!("{key}: {error}")),
    }
}

macro_rules! prefs {
    ($( $(#[$doc:meta])* { $(#[serde($($serde:tt)*)])* } $field:ident : $ty:ty = $key:tt, $key_set:tt; )*) => {
        /// The preferences of a node.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Prefs {
            $( $(#[$doc])* #[serde(rename = $key)] $(#[serde($($serde)*)])* pub $field: $ty, )*
            /// Looking for updates and installing them.
            #[serde(rename = "AutoUpdate")]
            pub auto_update: AutoUpdate,
            /// The login; not settable.
            #[serde(rename = "Config")]
            pub config: Option<Persist>,
        }

        /// A change: every preference that is `Some` is set to that value.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct MaskedPrefs {
            $( $(#[$doc])* pub $field: Option<$ty>, )*
            /// Whether to look for updates.
            pub auto_update_check: Option<bool>,
            /// Whether to install updates.
            pub auto_update_apply: Option<Option<bool>>,
        }

        /// The JSON names of all preferences.
        pub const PREF_KEYS: &[&str] = &[$($key,)* "AutoUpdate", "Config"];

        const MASKED_KEYS: &[&str] = &[$($key, $key_set,)* "AutoUpdate", "AutoUpdateSet"];

        impl MaskedPrefs {
            /// The change that takes every preference from `prefs`.
            pub fn all(prefs: &Prefs) -> Self {
                Self {
                    $( $field: Some(prefs.$field.clone()), )*
                    auto_update_check: Some(prefs.auto_update.check),
                    auto_update_apply: Some(prefs.auto_update.apply),
                }
            }

            /// Applies the change.
            pub fn apply_to(&self, prefs: &mut Prefs) {
                $( if let Some(value) = &self.$field { prefs.$field = value.clone(); } )*
                if let Some(check) = self.auto_update_check { prefs.auto_update.check = check; }
                if let Some(apply) = self.auto_update_apply { prefs.auto_update.apply = apply; }
            }

            /// The JSON names of the preferences that change.
            pub fn names(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $( if self.$field.is_some() { names.push($key); } )*
                if self.auto_update_check.is_some() || self.auto_update_apply.is_some() {
                    names.push("AutoUpdate");
                }
                names
            }

            /// Reads a change from its JSON form.
            pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
                let Value::Object(object) =
                    serde_json::from_slice(bytes).map_err(|error| error.to_string())?
                else {
                    return Err("expected a JSON object".to_owned());
                };
                let mut object = canonical_keys(object, MASKED_KEYS);
                let mut auto_update_check = None;
                let mut auto_update_apply = None;
                if let Some(Value::Object(set)) = object.remove("AutoUpdateSet") {
                    let set = canonical_keys(set, &["CheckSet", "ApplySet"]);
                    let value: AutoUpdate = match object.remove("AutoUpdate") {
                        Some(value) => serde_json::from_value(value)
                            .map_err(|error| format!("AutoUpdate: {error}"))?,
                        None => AutoUpdate { check: false, apply: None },
                    };
                    if set.get("CheckSet") == Some(&Value::Bool(true)) {
                        auto_update_check = Some(value.check);
                    }
                    if set.get("ApplySet") == Some(&Value::Bool(true)) {
                        auto_update_apply = Some(value.apply);
                    }
                }
                Ok(Self {
                    $( $field: masked(&mut object, $key, $key_set)?, )*
                    auto_update_check,
                    auto_update_apply,
                })
            }

            /// The JSON form: the changed keys, each with its `Set` flag.
            pub fn to_json(&self) -> Value {
                let mut out = Map::new();
                // A preference is made of texts, numbers, flags and lists of
                // these; none of them can fail to become JSON.
                $( if let Some(value) = &self.$field {
                    out.insert($key.to_owned(), serde_json::to_value(value).unwrap_or(Value::Null));
                    out.insert($key_set.to_owned(), Value::Bool(true));
                } )*
                if self.auto_update_check.is_some() || self.auto_update_apply.is_some() {
                    out.insert("AutoUpdate".to_owned(), serde_json::json!({
                        "Check": self.auto_update_check.unwrap_or_default(),
                        "Apply": self.auto_update_apply.unwrap_or_default(),
                    }));
                    out.insert("AutoUpdateSet".to_owned(), serde_json::json!({
                        "CheckSet": self.auto_update_check.is_some(),
                        "ApplySet": self.auto_update_apply.is_some(),
                    }));
                }
                Value::Object(out)
            }
        }
    };
}

impl Default for NetfilterMode {
    /// The meaning of a change without a value, as for every number: zero. The
    /// default of the preference is [`NetfilterMode::On`].
    fn default() -> Self {
        Self::Off
    }
}

prefs! {
    /// Address of the coordination server; empty: none chosen yet.
    {} control_url: String = "ControlURL", "ControlURLSet";
    /// Accept subnet routes of other nodes.
    {} route_all: bool = "RouteAll", "RouteAllSet";
    /// Stable id of the exit node; empty: none.
    {} exit_node_id: String = "ExitNodeID", "ExitNodeIDSet";
    /// Address of the exit node, until the daemon turned it into an id.
    {} exit_node_ip: MaybeIp = "ExitNodeIP", "ExitNodeIPSet";
    /// `any`: let the daemon choose the exit node; else empty.
    { #[serde(skip_serializing_if = "String::is_empty")] } auto_exit_node: String = "AutoExitNode", "AutoExitNodeSet";
    /// The exit node used last; not settable by clients.
    {} internal_exit_node_prior: String = "InternalExitNodePrior", "InternalExitNodePriorSet";
    /// Reach the local network directly while an exit node is in use.
    {} exit_node_allow_lan_access: bool = "ExitNodeAllowLANAccess", "ExitNodeAllowLANAccessSet";
    /// Use the DNS configuration of the tailnet.
    {} corp_dns: bool = "CorpDNS", "CorpDNSSet";
    /// Run the SSH server.
    {} run_ssh: bool = "RunSSH", "RunSSHSet";
    /// Run the web interface.
    {} run_web_client: bool = "RunWebClient", "RunWebClientSet";
    /// Be connected.
    {} want_running: bool = "WantRunning", "WantRunningSet";
    /// The user logged out on purpose.
    {} logged_out: bool = "LoggedOut", "LoggedOutSet";
    /// Refuse incoming connections.
    {} shields_up: bool = "ShieldsUp", "ShieldsUpSet";
    /// Tags to ask for at login.
    { #[serde(with = "nullable")] } advertise_tags: Vec<String> = "AdvertiseTags", "AdvertiseTagsSet";
    /// Name to use instead of the machine's; empty: the machine's.
    {} hostname: String = "Hostname", "HostnameSet";
    /// Kept for compatibility, without effect.
    {} notepad_urls: bool = "NotepadURLs", "NotepadURLsSet";
    /// Stay connected when the user logs off (Windows).
    { #[serde(skip_serializing_if = "is_false")] } force_daemon: bool = "ForceDaemon", "ForceDaemonSet";
    /// Kept for compatibility, without effect.
    { #[serde(skip_serializing_if = "is_false")] } egg: bool = "Egg", "EggSet";
    /// Routes to offer; both default routes: offer to be an exit node.
    { #[serde(with = "nullable")] } advertise_routes: Vec<IpNet> = "AdvertiseRoutes", "AdvertiseRoutesSet";
    /// Services (`svc:name`) to offer.
    { #[serde(with = "nullable")] } advertise_services: Vec<String> = "AdvertiseServices", "AdvertiseServicesSet";
    /// Talk to the coordination server; `None` counts as true.
    {} sync: Option<bool> = "Sync", "SyncSet";
    /// Do not hide subnet-route traffic behind this node's address.
    {} no_snat: bool = "NoSNAT", "NoSNATSet";
    /// Do not filter forwarded traffic statefully.
    { #[serde(skip_serializing_if = "Option::is_none")] } no_stateful_filtering: Option<bool> = "NoStatefulFiltering", "NoStatefulFilteringSet";
    /// The handling of the firewall.
    {} netfilter_mode: NetfilterMode = "NetfilterMode", "NetfilterModeSet";
    /// User who may change things without being root.
    { #[serde(skip_serializing_if = "String::is_empty")] } operator_user: String = "OperatorUser", "OperatorUserSet";
    /// Name of this profile.
    { #[serde(skip_serializing_if = "String::is_empty")] } profile_name: String = "ProfileName", "ProfileNameSet";
    /// App connector.
    {} app_connector: AppConnector = "AppConnector", "AppConnectorSet";
    /// Report device posture.
    {} posture_checking: bool = "PostureChecking", "PostureCheckingSet";
    /// `iptables`, `nftables`, or empty for whatever fits.
    {} netfilter_kind: String = "NetfilterKind", "NetfilterKindSet";
    /// Let the coordination server edit everything.
    {} remote_config: bool = "RemoteConfig", "RemoteConfigSet";
    /// Shared folders.
    { #[serde(with = "nullable")] } drive_shares: Vec<Value> = "DriveShares", "DriveSharesSet";
    /// Port of the peer relay server; 0: any; `None`: off.
    { #[serde(skip_serializing_if = "Option::is_none")] } relay_server_port: Option<u16> = "RelayServerPort", "RelayServerPortSet";
    /// Addresses under which the peer relay server can be reached.
    { #[serde(skip_serializing_if = "Vec::is_empty", with = "nullable")] } relay_server_static_endpoints: Vec<SocketAddr> = "RelayServerStaticEndpoints", "RelayServerStaticEndpointsSet";
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            control_url: String::new(),
            route_all: false,
            exit_node_id: String::new(),
            exit_node_ip: MaybeIp(None),
            auto_exit_node: String::new(),
            internal_exit_node_prior: String::new(),
            exit_node_allow_lan_access: false,
            corp_dns: true,
            run_ssh: false,
            run_web_client: false,
            want_running: false,
            logged_out: false,
            shields_up: false,
            advertise_tags: Vec::new(),
            hostname: String::new(),
            notepad_urls: false,
            force_daemon: false,
            egg: false,
            advertise_routes: Vec::new(),
            advertise_services: Vec::new(),
            sync: None,
            no_snat: false,
            no_stateful_filtering: Some(true),
            netfilter_mode: NetfilterMode::On,
            operator_user: String::new(),
            profile_name: String::new(),
            app_connector: AppConnector::default(),
            posture_checking: false,
            netfilter_kind: String::new(),
            remote_config: false,
            drive_shares: Vec::new(),
            relay_server_port: None,
            relay_server_static_endpoints: Vec::new(),
            auto_update: AutoUpdate::default(),
            config: None,
        }
    }
}

impl Prefs {
    /// Reads preferences as other programs send them.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Self::from_value(value)
    }

    /// The JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        // Preferences are texts, numbers, flags and lists of these; none of them
        // can fail to become JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn from_value(value: Value) -> Result<Self, String> {
        let Value::Object(object) = value else {
            return Err("expected a JSON object".to_owned());
        };
        let object = canonical_keys(object, PREF_KEYS);
        serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
    }

    /// Whether these preferences ask for something this build cannot do.
    ///
    /// The text says which one and what to do; it is shown to the user as is.
    pub fn check(&self) -> Result<(), String> {
        if self.run_ssh {
            return Err("the SSH server is not in this version yet; leave out --ssh".to_owned());
        }
        if !self.auto_exit_node.is_empty() {
            return Err(
                "choosing an exit node automatically (auto:any) is not in this version yet; \
                        name one with --exit-node"
                    .to_owned(),
            );
        }
        if let (true, Some(ip)) = (self.exit_node_id.is_empty(), self.exit_node_ip.0) {
            return Err(format!(
                "no known node with the address {ip} offers to be an exit node; \
                 connect without one, look at: warren status, then: warren set --exit-node NAME"
            ));
        }
        if !self.hostname.is_empty() {
            check_hostname(&self.hostname)?;
        }
        Ok(())
    }

    /// Whether both default routes are offered.
    pub fn advertises_exit_node(&self) -> bool {
        let (v4, v6) = exit_routes();
        self.advertise_routes.contains(&v4) && self.advertise_routes.contains(&v6)
    }
}

/// The two default routes that make an exit node.
pub fn exit_routes() -> (IpNet, IpNet) {
    use std::net::{Ipv4Addr, Ipv6Addr};
    (
        IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    )
}

/// Checks a host name: letters, digits and hyphens in labels of at most 63,
/// at most 253 in all.
pub fn check_hostname(name: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("host name {name:?} is not usable in DNS: {why}"));
    if name.len() > 253 {
        return bad("it is longer than 253 characters");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return bad("it has an empty part");
        }
        if label.len() > 63 {
            return bad("a part is longer than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return bad("a part starts or ends with a hyphen");
        }
        if !label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return bad("only letters, digits and hyphens are allowed");
        }
    }
    Ok(())
}

/// Body of `start`: begin with these preferences, perhaps with an auth key.
#[derive(Clone, PartialEq, Default)]
pub struct Options {
    /// The auth key; empty: none. Never printed.
    pub auth_key: String,
    /// Preferences to store first.
    pub update_prefs: Option<Prefs>,
    /// Make a new login even if one exists, with the auth key if there is one.
    /// `ForceLogin` is our own: the official client asks for the login by a second
    /// request, when the first one has started with the old login.
    pub force_login: bool,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let auth_key = if self.auth_key.is_empty() {
            "none"
        } else {
            "given"
        };
        f.debug_struct("Options")
            .field("auth_key", &auth_key)
            .field("update_prefs", &self.update_prefs)
            .field("force_login", &self.force_login)
            .finish()
    }
}

impl Options {
    /// Reads the JSON form.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let Value::Object(object) =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?
        else {
            return Err("expected a JSON object".to_owned());
        };
        let known = ["FrontendLogID", "UpdatePrefs", "AuthKey", "ForceLogin"];
        let mut object = canonical_keys(object, &known);
        let auth_key = match object.remove("AuthKey") {
            None => String::new(),
            Some(Value::String(key)) => key,
            Some(_) => return Err("AuthKey: expected a text".to_owned()),
        };
        let update_prefs = object
            .remove("UpdatePrefs")
            .map(Prefs::from_value)
            .transpose()
            .map_err(|error| format!("UpdatePrefs: {error}"))?;
        let force_login = match object.remove("ForceLogin") {
            None => false,
            Some(Value::Bool(force)) => force,
            Some(_) => return Err("ForceLogin: expected true or false".to_owned()),
        };
        Ok(Self {
            auth_key,
            update_prefs,
            force_login,
        })
    }

    /// The JSON form.
    pub fn to_json(&self) -> Value {
        let mut form = serde_json::json!({
            "FrontendLogID": "",
            "UpdatePrefs": self.update_prefs,
            "AuthKey": self.auth_key,
        });
        if self.force_login {
            form["ForceLogin"] = Value::Bool(true);
        }
        form
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn blank_keys_have_the_length_that_other_programs_read() {
        let shown = serde_json::to_value(Persist::default()).unwrap();
        for (field, prefix, digits) in [
            ("PrivateNodeKey", "privkey:", 64),
            ("OldPrivateNodeKey", "privkey:", 64),
            ("NetworkLockKey", "nlpriv:", 128),
        ] {
            let text = shown[field].as_str().unwrap();
            assert_eq!(text, format!("{prefix}{}", "0".repeat(digits)), "{field}");
        }
    }
}
