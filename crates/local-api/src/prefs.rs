//! The JSON forms of preferences and of changes to some of them. The preferences
//! themselves are in the crate `warren-node-types`.
//!
//! One table (the `json_names!` call) names every preference once. In a change,
//! each key `X` comes with a boolean `XSet`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use warren_control_types::UserProfile;
pub use warren_node_types::{
    AppConnector, AutoUpdate, MaskedPrefs, NetfilterMode, Prefs, check_hostname, exit_routes,
};

use crate::go_json::{MaybeIp, canonical_keys, is_default};

/// The value of a preference in JSON. Empty lists are `null`, as Go writes them.
trait JsonForm: Sized {
    fn write(&self) -> Value;
    fn read(value: Value) -> Result<Self, String>;
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

macro_rules! same_in_json {
    ($($ty:ty),*) => {$(
        impl JsonForm for $ty {
            fn write(&self) -> Value {
                json!(self)
            }

            fn read(value: Value) -> Result<Self, String> {
                parse(value)
            }
        }
    )*};
}
same_in_json!(bool, String, Option<bool>, Option<u16>);

macro_rules! null_if_empty {
    ($($ty:ty),*) => {$(
        impl JsonForm for Vec<$ty> {
            fn write(&self) -> Value {
                if self.is_empty() { Value::Null } else { json!(self) }
            }

            fn read(value: Value) -> Result<Self, String> {
                parse(value)
            }
        }
    )*};
}
null_if_empty!(String, IpNet, SocketAddr, Value);

impl JsonForm for Option<IpAddr> {
    fn write(&self) -> Value {
        json!(MaybeIp(*self))
    }

    fn read(value: Value) -> Result<Self, String> {
        parse::<MaybeIp>(value).map(|ip| ip.0)
    }
}

impl JsonForm for NetfilterMode {
    fn write(&self) -> Value {
        json!(match self {
            Self::Off => 0,
            Self::NoDivert => 1,
            Self::On => 2,
        })
    }

    fn read(value: Value) -> Result<Self, String> {
        match value.as_u64() {
            Some(0) => Ok(Self::Off),
            Some(1) => Ok(Self::NoDivert),
            Some(2) => Ok(Self::On),
            _ => Err(format!(
                "{value} is not a valid netfilter mode; the modes are 0 (off), 1 (nodivert), 2 (on)"
            )),
        }
    }
}

impl JsonForm for AppConnector {
    fn write(&self) -> Value {
        json!({ "Advertise": self.advertise })
    }

    fn read(value: Value) -> Result<Self, String> {
        let advertise = match value.get("Advertise") {
            None => false,
            Some(advertise) => parse(advertise.clone())?,
        };
        Ok(Self { advertise })
    }
}

/// `AutoUpdate` in the order of the official client.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ShownAutoUpdate {
    check: bool,
    apply: Option<bool>,
}

/// Reads the value of `AutoUpdate`; keys that are missing are as in `default`.
fn read_auto_update(value: &Value, default: AutoUpdate) -> Result<AutoUpdate, String> {
    let mut read = default;
    if let Some(check) = value.get("Check") {
        read.check = parse(check.clone())?;
    }
    if let Some(apply) = value.get("Apply") {
        read.apply = parse(apply.clone())?;
    }
    Ok(read)
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

/// Preferences as local programs see them, and as they are stored: with the login.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShownPrefs {
    /// The preferences.
    pub prefs: Prefs,
    /// The login; not settable.
    pub config: Option<Persist>,
}

impl From<Prefs> for ShownPrefs {
    fn from(prefs: Prefs) -> Self {
        Self {
            prefs,
            config: None,
        }
    }
}

/// The preference that follows `AutoUpdate` in the order of the official client.
const BEHIND_AUTO_UPDATE: &str = "AppConnector";

/// Reads the value of one preference.
fn read<T: JsonForm>(key: &str, value: Value) -> Result<T, String> {
    T::read(value).map_err(|error| format!("{key}: {error}"))
}

/// Reads one preference of a change.
fn read_masked<T: JsonForm + Default>(
    object: &mut Map<String, Value>,
    key: &str,
    key_set: &str,
) -> Result<Option<T>, String> {
    if object.get(key_set) != Some(&Value::Bool(true)) {
        return Ok(None);
    }
    match object.remove(key) {
        None => Ok(Some(T::default())),
        Some(value) => read(key, value).map(Some),
    }
}

macro_rules! json_names {
    ($( $field:ident = $key:literal, $key_set:literal $(, omitted if $test:ident)?; )*) => {
        /// The JSON names of all preferences.
        pub const PREF_KEYS: &[&str] = &[$($key,)* "AutoUpdate", "Config"];

        const MASKED_KEYS: &[&str] = &[$($key, $key_set,)* "AutoUpdate", "AutoUpdateSet"];

        impl Serialize for ShownPrefs {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let prefs = &self.prefs;
                let mut out = serializer.serialize_map(None)?;
                $(
                    if $key == BEHIND_AUTO_UPDATE {
                        let AutoUpdate { check, apply } = prefs.auto_update;
                        out.serialize_entry("AutoUpdate", &ShownAutoUpdate { check, apply })?;
                    }
                    let omitted = false $(|| $test(&prefs.$field))?;
                    if !omitted {
                        out.serialize_entry($key, &prefs.$field.write())?;
                    }
                )*
                out.serialize_entry("Config", &self.config)?;
                out.end()
            }
        }

        impl ShownPrefs {
            fn from_object(mut object: Map<String, Value>) -> Result<Self, String> {
                let mut prefs = Prefs::default();
                $( if let Some(value) = object.remove($key) {
                    prefs.$field = read($key, value)?;
                } )*
                if let Some(value) = object.remove("AutoUpdate") {
                    prefs.auto_update = read_auto_update(&value, AutoUpdate::default())
                        .map_err(|error| format!("AutoUpdate: {error}"))?;
                }
                let config = object.remove("Config").map(parse).transpose()?;
                Ok(Self { prefs, config })
            }
        }

        /// The JSON names of the preferences that change.
        pub fn changed_names(change: &MaskedPrefs) -> Vec<&'static str> {
            let mut names = Vec::new();
            $( if change.$field.is_some() { names.push($key); } )*
            if change.auto_update_check.is_some() || change.auto_update_apply.is_some() {
                names.push("AutoUpdate");
            }
            names
        }

        /// Reads a change from its JSON form.
        ///
        /// # Errors
        /// The text names the key whose value is not valid.
        pub fn read_change(bytes: &[u8]) -> Result<MaskedPrefs, String> {
            let mut object = canonical_keys(parse_object(bytes)?, MASKED_KEYS);
            let (auto_update_check, auto_update_apply) = read_auto_update_change(&mut object)?;
            Ok(MaskedPrefs {
                $( $field: read_masked(&mut object, $key, $key_set)?, )*
                auto_update_check,
                auto_update_apply,
            })
        }

        /// The JSON form of a change: the changed keys, each with its `Set` flag.
        pub fn write_change(change: &MaskedPrefs) -> Value {
            let mut out = Map::new();
            $( if let Some(value) = &change.$field {
                out.insert($key.to_owned(), value.write());
                out.insert($key_set.to_owned(), Value::Bool(true));
            } )*
            let (check, apply) = (change.auto_update_check, change.auto_update_apply);
            if check.is_some() || apply.is_some() {
                let value = json!({
                    "Check": check.unwrap_or_default(),
                    "Apply": apply.unwrap_or_default(),
                });
                out.insert("AutoUpdate".to_owned(), value);
                let set = json!({ "CheckSet": check.is_some(), "ApplySet": apply.is_some() });
                out.insert("AutoUpdateSet".to_owned(), set);
            }
            Value::Object(out)
        }
    };
}

json_names! {
    control_url = "ControlURL", "ControlURLSet";
    route_all = "RouteAll", "RouteAllSet";
    exit_node_id = "ExitNodeID", "ExitNodeIDSet";
    exit_node_ip = "ExitNodeIP", "ExitNodeIPSet";
    auto_exit_node = "AutoExitNode", "AutoExitNodeSet", omitted if is_default;
    internal_exit_node_prior = "InternalExitNodePrior", "InternalExitNodePriorSet";
    exit_node_allow_lan_access = "ExitNodeAllowLANAccess", "ExitNodeAllowLANAccessSet";
    corp_dns = "CorpDNS", "CorpDNSSet";
    run_ssh = "RunSSH", "RunSSHSet";
    run_web_client = "RunWebClient", "RunWebClientSet";
    want_running = "WantRunning", "WantRunningSet";
    logged_out = "LoggedOut", "LoggedOutSet";
    shields_up = "ShieldsUp", "ShieldsUpSet";
    advertise_tags = "AdvertiseTags", "AdvertiseTagsSet";
    hostname = "Hostname", "HostnameSet";
    notepad_urls = "NotepadURLs", "NotepadURLsSet";
    force_daemon = "ForceDaemon", "ForceDaemonSet", omitted if is_default;
    egg = "Egg", "EggSet", omitted if is_default;
    advertise_routes = "AdvertiseRoutes", "AdvertiseRoutesSet";
    advertise_services = "AdvertiseServices", "AdvertiseServicesSet";
    sync = "Sync", "SyncSet";
    no_snat = "NoSNAT", "NoSNATSet";
    no_stateful_filtering = "NoStatefulFiltering", "NoStatefulFilteringSet", omitted if is_default;
    netfilter_mode = "NetfilterMode", "NetfilterModeSet";
    operator_user = "OperatorUser", "OperatorUserSet", omitted if is_default;
    profile_name = "ProfileName", "ProfileNameSet", omitted if is_default;
    app_connector = "AppConnector", "AppConnectorSet";
    posture_checking = "PostureChecking", "PostureCheckingSet";
    netfilter_kind = "NetfilterKind", "NetfilterKindSet";
    remote_config = "RemoteConfig", "RemoteConfigSet";
    drive_shares = "DriveShares", "DriveSharesSet";
    relay_server_port = "RelayServerPort", "RelayServerPortSet", omitted if is_default;
    relay_server_static_endpoints = "RelayServerStaticEndpoints", "RelayServerStaticEndpointsSet", omitted if is_default;
    no_port_search = "NoPortSearch", "NoPortSearchSet", omitted if is_default;
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(bytes).map_err(|error| error.to_string())? {
        Value::Object(object) => Ok(object),
        _ => Err("expected a JSON object".to_owned()),
    }
}

/// The two parts of `AutoUpdate` that change.
type AutoUpdateChange = (Option<bool>, Option<Option<bool>>);

fn read_auto_update_change(object: &mut Map<String, Value>) -> Result<AutoUpdateChange, String> {
    let Some(Value::Object(set)) = object.remove("AutoUpdateSet") else {
        return Ok((None, None));
    };
    let set = canonical_keys(set, &["CheckSet", "ApplySet"]);
    let value = match object.remove("AutoUpdate") {
        Some(value) => read_auto_update(&value, AutoUpdate::default())
            .map_err(|error| format!("AutoUpdate: {error}"))?,
        None => AutoUpdate {
            check: false,
            apply: None,
        },
    };
    let is_set = |key| set.get(key) == Some(&Value::Bool(true));
    Ok((
        is_set("CheckSet").then_some(value.check),
        is_set("ApplySet").then_some(value.apply),
    ))
}

impl<'de> Deserialize<'de> for ShownPrefs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(value).map_err(serde::de::Error::custom)
    }
}

impl ShownPrefs {
    /// Reads preferences as other programs send them.
    ///
    /// # Errors
    /// The text names the key whose value is not valid.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        Self::from_object(canonical_keys(parse_object(bytes)?, PREF_KEYS))
    }

    /// The JSON form.
    pub fn to_json(&self) -> String {
        // Preferences are texts, numbers, flags and lists of these: none of them
        // can fail to become JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    fn from_value(value: Value) -> Result<Self, String> {
        let Value::Object(object) = value else {
            return Err("expected a JSON object".to_owned());
        };
        Self::from_object(canonical_keys(object, PREF_KEYS))
    }
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
            .map(|value| ShownPrefs::from_value(value).map(|shown| shown.prefs))
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
            "UpdatePrefs": self.update_prefs.clone().map(ShownPrefs::from),
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

    #[test]
    fn preferences_and_changes_survive_as_json() {
        let prefs = Prefs {
            control_url: "http://c".into(),
            exit_node_ip: Some("100.64.0.1".parse().unwrap()),
            netfilter_mode: NetfilterMode::NoDivert,
            advertise_routes: vec!["10.0.0.0/8".parse().unwrap()],
            relay_server_port: Some(0),
            sync: Some(false),
            app_connector: AppConnector { advertise: true },
            auto_update: AutoUpdate {
                check: false,
                apply: Some(true),
            },
            ..Prefs::default()
        };
        let shown = ShownPrefs::from(prefs.clone());
        let text = serde_json::to_vec(&shown).unwrap();
        assert_eq!(ShownPrefs::from_json(&text).unwrap(), shown);
        let change = MaskedPrefs::all(&prefs);
        let text = write_change(&change).to_string();
        assert_eq!(read_change(text.as_bytes()).unwrap(), change);
        assert_eq!(changed_names(&change).len(), PREF_KEYS.len() - 1);
    }

    #[test]
    fn default_preferences_are_written_as_the_official_client_writes_them() {
        let value = serde_json::to_value(ShownPrefs::default()).unwrap();
        let keys = value.as_object().unwrap();
        for omitted in [
            "AutoExitNode",
            "ForceDaemon",
            "Egg",
            "OperatorUser",
            "ProfileName",
            "RelayServerPort",
            "RelayServerStaticEndpoints",
            "NoPortSearch",
        ] {
            assert!(!keys.contains_key(omitted), "{omitted}");
        }
        assert_eq!(keys.len(), PREF_KEYS.len() - 8);
        assert_eq!(value["ExitNodeIP"], "");
        assert_eq!(value["NetfilterMode"], 2);
        assert_eq!(value["NoStatefulFiltering"], true);
        assert_eq!(value["AutoUpdate"], json!({ "Check": true, "Apply": null }));
        for null in [
            "AdvertiseTags",
            "AdvertiseRoutes",
            "DriveShares",
            "Sync",
            "Config",
        ] {
            assert!(value[null].is_null(), "{null}");
        }
    }
}
