//! The configuration file of a node (`--config`), in the form of the official client:
//! HuJSON with `"version": "alpha0"`.
//!
//! The file sets preferences at each start and when it is loaded again. Unless it says
//! `"Locked": false`, only the file sets them: requests that change preferences are
//! refused. Names match in any letter case; names that are not known are refused, since a
//! setting with a mistake in its name would do nothing.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use jsonc_parser::ParseOptions;
use serde::Deserialize;
use serde_json::{Map, Value};
use warren_node_types::{AppConnector, MaskedPrefs, NetfilterMode};

/// The only version of the format.
const VERSION: &str = "alpha0";
/// The longest file that is read, in bytes.
const MAX_LEN: u64 = 1 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the configuration file {}: {problem}", path.display())]
pub struct ConfigFileError {
    path: PathBuf,
    problem: String,
}

/// The names of the settings, as the official client writes them.
const NAMES: &[&str] = &[
    "Version",
    "Locked",
    "ServerURL",
    "AuthKey",
    "Enabled",
    "OperatorUser",
    "Hostname",
    "AcceptDNS",
    "AcceptRoutes",
    "ExitNode",
    "AllowLANWhileUsingExitNode",
    "AdvertiseRoutes",
    "AdvertiseExitNode",
    "DisableSNAT",
    "AdvertiseServices",
    "AppConnector",
    "NetfilterMode",
    "NoStatefulFiltering",
    "PostureChecking",
    "RunSSHServer",
    "RunWebClient",
    "ShieldsUp",
    "RemoteConfig",
    "AutoUpdate",
    "ServeConfigTemp",
    "StaticEndpoints",
    "RelayServerPort",
    "RelayServerStaticEndpoints",
];

/// The settings that this version cannot carry out, with the feature that is missing.
const MISSING: &[(&str, &str)] = &[
    ("ServeConfigTemp", "publishing services"),
    ("StaticEndpoints", "advertising addresses of your own"),
];

/// The settings of a file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Settings {
    locked: Option<bool>,
    #[serde(rename = "ServerURL")]
    server_url: Option<String>,
    auth_key: Option<String>,
    enabled: Option<bool>,
    operator_user: Option<String>,
    hostname: Option<String>,
    #[serde(rename = "AcceptDNS")]
    accept_dns: Option<bool>,
    accept_routes: Option<bool>,
    exit_node: Option<String>,
    #[serde(rename = "AllowLANWhileUsingExitNode")]
    allow_lan: Option<bool>,
    advertise_routes: Option<Vec<IpNet>>,
    advertise_exit_node: Option<bool>,
    #[serde(rename = "DisableSNAT")]
    disable_snat: Option<bool>,
    advertise_services: Option<Vec<String>>,
    app_connector: Option<Connector>,
    netfilter_mode: Option<String>,
    no_stateful_filtering: Option<bool>,
    posture_checking: Option<bool>,
    #[serde(rename = "RunSSHServer")]
    run_ssh: Option<bool>,
    run_web_client: Option<bool>,
    shields_up: Option<bool>,
    remote_config: Option<bool>,
    auto_update: Option<Updates>,
    relay_server_port: Option<u16>,
    relay_server_static_endpoints: Option<Vec<SocketAddr>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Connector {
    advertise: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Updates {
    check: Option<bool>,
    apply: Option<bool>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigFile {
    path: PathBuf,
    /// Whether only the file sets preferences.
    pub locked: bool,
    /// The preferences that it sets.
    pub change: MaskedPrefs,
    /// The auth key for a machine without a login.
    pub auth_key: Option<String>,
}

impl ConfigFile {
    /// Reads a file, and the file of the auth key if it names one (`file:PATH`).
    ///
    /// # Errors
    /// The file cannot be read, or holds something else than settings that this version
    /// can carry out.
    pub fn load(path: &Path) -> Result<Self, ConfigFileError> {
        let failed = |problem| ConfigFileError {
            path: path.to_owned(),
            problem,
        };
        let text = read(path).map_err(failed)?;
        let mut settings = parse(&text).map_err(failed)?;
        let auth_key = match settings.auth_key.take() {
            Some(key) => match key.strip_prefix("file:") {
                Some(file) => {
                    let key = read(Path::new(file));
                    let key =
                        key.map_err(|error| failed(format!("AuthKey: the file {file}: {error}")))?;
                    Some(key.trim().to_owned())
                }
                None => Some(key),
            },
            None => None,
        };
        let auth_key = auth_key.filter(|key| !key.is_empty());
        Ok(Self {
            path: path.to_owned(),
            locked: settings.locked.unwrap_or(true),
            change: settings.change(auth_key.is_some()).map_err(failed)?,
            auth_key,
        })
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(&self) -> Result<Self, ConfigFileError> {
        Self::load(&self.path)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MAX_LEN + 1)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_LEN {
        return Err(format!("it is longer than {MAX_LEN} bytes"));
    }
    Ok(text)
}

/// The settings of a text.
fn parse(text: &str) -> Result<Settings, String> {
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let value: Value = jsonc_parser::parse_to_serde_value(text, &options)
        .map_err(|error| format!("it is not HuJSON: {error}"))?;
    let Value::Object(members) = value else {
        return Err("it must be one object, in braces".to_owned());
    };
    let mut known = Map::new();
    for (name, value) in members {
        let canonical = NAMES.iter().find(|known| known.eq_ignore_ascii_case(&name));
        let Some(canonical) = canonical else {
            return Err(format!(
                "{name:?} is not a known setting; the settings are {}",
                NAMES.join(", ")
            ));
        };
        if known.insert((*canonical).to_owned(), value).is_some() {
            return Err(format!("{canonical} stands there twice"));
        }
    }
    match known.remove("Version") {
        Some(Value::String(version)) if version == VERSION => {}
        None => {
            return Err(format!(
                "\"version\" is missing; write \"version\": {VERSION:?}"
            ));
        }
        Some(other) => {
            return Err(format!(
                "\"version\" is {other}; this program knows {VERSION:?} only"
            ));
        }
    }
    for (name, feature) in MISSING {
        if known.get(*name).is_some_and(|value| !value.is_null()) {
            return Err(format!(
                "{name}: {feature} is not in this version yet; leave it out"
            ));
        }
    }
    // One by one, so that an error names its setting.
    for (name, value) in &known {
        let one = Map::from_iter([(name.clone(), value.clone())]);
        let one: Result<Settings, _> = serde_json::from_value(Value::Object(one));
        one.map_err(|error| format!("{name}: {error}"))?;
    }
    serde_json::from_value(Value::Object(known)).map_err(|error| error.to_string())
}

impl Settings {
    /// The preferences that they set.
    fn change(self, has_auth_key: bool) -> Result<MaskedPrefs, String> {
        let exit_node = self.exit_node;
        if let Some(text) = &exit_node
            && text.parse::<IpAddr>().is_ok()
        {
            return Err(format!(
                "ExitNode: {text:?} is an address; write the stable id of the node, which \
                 `warren status --json` shows as \"ID\""
            ));
        }
        let netfilter_mode = match self.netfilter_mode.as_deref() {
            None => None,
            Some("on") => Some(NetfilterMode::On),
            Some("nodivert") => Some(NetfilterMode::NoDivert),
            Some("off") => Some(NetfilterMode::Off),
            Some(other) => {
                return Err(format!(
                    "NetfilterMode: {other:?} is not a mode; the modes are on, nodivert and off"
                ));
            }
        };
        let mut routes = self.advertise_routes;
        if let Some(net) = routes.iter().flatten().find(|net| net.trunc() != **net) {
            return Err(format!(
                "AdvertiseRoutes: {net} has bits set behind its length; write {}",
                net.trunc()
            ));
        }
        if self.advertise_exit_node == Some(true) {
            let (v4, v6) = warren_node_types::exit_routes();
            routes.get_or_insert_default().extend([v4, v6]);
        }
        let change = MaskedPrefs {
            want_running: Some(self.enabled.unwrap_or(true)),
            control_url: self.server_url,
            logged_out: has_auth_key.then_some(false),
            operator_user: self.operator_user,
            hostname: self.hostname,
            corp_dns: self.accept_dns,
            route_all: self.accept_routes,
            exit_node_id: exit_node,
            exit_node_allow_lan_access: self.allow_lan,
            advertise_routes: routes,
            no_snat: self.disable_snat,
            no_stateful_filtering: self.no_stateful_filtering.map(Some),
            netfilter_mode,
            posture_checking: self.posture_checking,
            run_ssh: self.run_ssh,
            run_web_client: self.run_web_client,
            shields_up: self.shields_up,
            remote_config: self.remote_config,
            app_connector: self.app_connector.map(|connector| AppConnector {
                advertise: connector.advertise,
            }),
            auto_update_check: self.auto_update.as_ref().and_then(|updates| updates.check),
            auto_update_apply: self.auto_update.map(|updates| updates.apply),
            // The file is the only source of these: what it leaves out is off.
            advertise_services: Some(self.advertise_services.unwrap_or_default()),
            relay_server_port: Some(self.relay_server_port),
            relay_server_static_endpoints: Some(
                self.relay_server_static_endpoints.unwrap_or_default(),
            ),
            ..MaskedPrefs::default()
        };
        let mut outcome = warren_node_types::Prefs::default();
        change.apply_to(&mut outcome);
        outcome.check()?;
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn load(text: &str) -> Result<ConfigFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.hujson");
        std::fs::write(&path, text).unwrap();
        let loaded = ConfigFile::load(&path);
        loaded.map_err(|error| {
            let text = error.to_string();
            let named = format!("the configuration file {}: ", path.display());
            text.strip_prefix(&named).unwrap().to_owned()
        })
    }

    #[test]
    fn settings_become_preferences() {
        let config = load(
            r#"{
                // The only version.
                "version": "alpha0",
                "locked": false,
                "ServerURL": "https://control.example",
                "AuthKey": "wk-1-x",
                "Hostname": "db",
                "acceptDNS": false, "acceptRoutes": true,
                "exitNode": "n3", "allowLANWhileUsingExitNode": true,
                "AdvertiseRoutes": ["10.0.0.0/8"], "AdvertiseExitNode": true,
                "NetfilterMode": "off", "DisableSNAT": true,
                "ShieldsUp": null,
                "AppConnector": {"Advertise": false},
                "AutoUpdate": {"Check": false},
                "RelayServerPort": 40000,
            }"#,
        )
        .unwrap();
        assert!(!config.locked);
        assert_eq!(config.auth_key.as_deref(), Some("wk-1-x"));
        let change = config.change;
        assert_eq!(change.want_running, Some(true));
        assert_eq!(
            change.control_url.as_deref(),
            Some("https://control.example")
        );
        assert_eq!(change.hostname.as_deref(), Some("db"));
        assert_eq!(
            (change.corp_dns, change.route_all),
            (Some(false), Some(true))
        );
        assert_eq!(change.exit_node_id.as_deref(), Some("n3"));
        assert_eq!(change.advertise_routes.unwrap().len(), 3);
        assert_eq!(change.netfilter_mode, Some(NetfilterMode::Off));
        assert_eq!((change.no_snat, change.shields_up), (Some(true), None));
        assert_eq!(change.auto_update_check, Some(false));
        assert_eq!(change.relay_server_port, Some(Some(40000)));
        assert_eq!(change.operator_user, None);

        let least = load(r#"{"Version": "alpha0", "Enabled": false}"#).unwrap();
        assert!(least.locked && least.auth_key.is_none());
        assert_eq!(least.change.want_running, Some(false));
        assert_eq!(least.change.relay_server_port, Some(None));
    }

    #[test]
    fn the_auth_key_may_be_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "wk-1-y\n").unwrap();
        let text = format!(
            r#"{{"version":"alpha0","AuthKey":"file:{}"}}"#,
            key.display()
        );
        assert_eq!(load(&text).unwrap().auth_key.as_deref(), Some("wk-1-y"));
        std::fs::remove_file(&key).unwrap();
        let error = load(&text).unwrap_err();
        assert!(error.starts_with("AuthKey: the file "), "{error}");
    }

    #[test]
    fn mistakes_are_refused_with_the_name_of_the_setting() {
        for (text, expected) in [
            ("", "one object"),
            ("[]", "one object"),
            ("{\"version\": \"alpha0\",,}", "not HuJSON: "),
            ("{}", "\"version\" is missing"),
            (r#"{"version":"beta1"}"#, "\"version\" is \"beta1\""),
            (r#"{"version":1}"#, "\"version\" is 1"),
            (
                r#"{"version":"alpha0","Hostnam":"x"}"#,
                "\"Hostnam\" is not a known setting",
            ),
            (
                r#"{"version":"alpha0","Hostname":"x","hostname":"y"}"#,
                "Hostname stands there twice",
            ),
            (r#"{"version":"alpha0","Hostname":7}"#, "Hostname: "),
            (r#"{"version":"alpha0","Enabled":"yes"}"#, "Enabled: "),
            (
                r#"{"version":"alpha0","AdvertiseRoutes":["10.0.0.1/8"]}"#,
                "AdvertiseRoutes: 10.0.0.1/8",
            ),
            (
                r#"{"version":"alpha0","AdvertiseRoutes":["x"]}"#,
                "AdvertiseRoutes: ",
            ),
            (
                r#"{"version":"alpha0","RelayServerPort":70000}"#,
                "RelayServerPort: ",
            ),
            (
                r#"{"version":"alpha0","NetfilterMode":"maybe"}"#,
                "NetfilterMode: \"maybe\"",
            ),
            (
                r#"{"version":"alpha0","AppConnector":{"Advertize":true}}"#,
                "AppConnector: ",
            ),
            (
                r#"{"version":"alpha0","ServeConfigTemp":{}}"#,
                "ServeConfigTemp: ",
            ),
            (
                r#"{"version":"alpha0","StaticEndpoints":["192.0.2.1:1"]}"#,
                "StaticEndpoints: ",
            ),
            (
                r#"{"version":"alpha0","RunWebClient":true}"#,
                "not in this version yet",
            ),
            (
                r#"{"version":"alpha0","ExitNode":"100.64.0.1"}"#,
                "ExitNode: \"100.64.0.1\"",
            ),
            (
                r#"{"version":"alpha0","Hostname":"a b"}"#,
                "host name \"a b\"",
            ),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let missing = ConfigFile::load(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(
            missing
                .to_string()
                .starts_with("the configuration file /nowhere/at/all: ")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:a-z0-9/* \n]{0,60}") {
            let _ = parse(&text);
        }
    }
}
