//! The files of a node: keys, preferences, login, the last netmap, and the time up to
//! which handshakes were sent.
//!
//! The state file has the form of the official client, so that a machine can change
//! programs without a new login: one JSON object from key to base64 value,
//! with `_machinekey`, `_profiles`, `_current-profile` and one `profile-…`
//! whose value is the preferences with the private keys in `Config`. It is
//! 0600 in a 0700 folder and written as a whole: a crash leaves the old file
//! or the new one.
//!
//! Keys that we do not know are kept as they are.
//!
//! A node whose state is in memory ([`StatePlace::Memory`]) has none of these files. It is
//! a new machine after each start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Map, Value, json};
use warren_control_types::StableNodeId;
use warren_host::atomic_file::write_atomic;
use warren_host::lock::{LockError, LockFile};
use warren_keys::{Entropy, MachineSecret, NodeSecret};
use warren_lock::LockSecret;
use warren_node_core::node::{Account, KeptNetmap, StoredLogin};
use zeroize::Zeroizing;

use super::config_file::ConfigFile;
use crate::localapi::prefs::{PREF_KEYS, Persist, Prefs, ShownPrefs};
use crate::localapi::types::{LoginProfile, NetworkProfile};

const MACHINE_KEY: &str = "_machinekey";
const PROFILES: &str = "_profiles";
const CURRENT_PROFILE: &str = "_current-profile";
const PROFILE_PREFIX: &str = "profile-";
const FIRST_PROFILE: &str = "profile-0001";
const NETMAP_FILE: &str = "netmap.json";
const CLOCK_FILE: &str = "handshake-clock";
/// The folder of the keys of the SSH server, in the state folder.
const SSH_FOLDER: &str = "ssh";
const PORT_MAPPING_FILE: &str = "port-mapping.json";
/// The key of a new login that the server has not answered yet. Other programs
/// keep it as they find it.
const CANDIDATE_KEY: &str = "_warren-candidate";
/// The key for tailnet lock before the first login, likewise. Later it is part of the login.
const LOCK_KEY: &str = "_warren-lock-key";
/// The tags of nodes that are signed without a person, a part of the login that other
/// programs do not know.
const AUTOSIGN_TAGS: &str = "WarrenAutosignTags";
/// The folder of tailnet lock, with a folder for each login.
const TAILNET_LOCK_FOLDER: &str = "tka-profiles";
const LOCK_FILE: &str = "warren.lock";

/// The state cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made or entered.
    #[error("cannot use the state folder {}: {source}; choose another with --state-dir", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another daemon runs on it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The file cannot be read.
    #[error("cannot read the state file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is damaged. It is left as it is.
    #[error(
        "the state file {} is damaged ({what}); restore it from a backup, or move it away to start \
         as a new machine",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damage shows.
        what: String,
    },
    /// It cannot be written; the old file is intact.
    #[error("cannot write the state file {}: {source}; the previous one is intact", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Where the state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatePlace {
    /// In files.
    Files {
        /// Folder for everything that must survive a restart.
        folder: PathBuf,
        /// File with keys and preferences, usually in the folder.
        file: PathBuf,
    },
    /// In memory only. The node is ephemeral, and a new machine after each start.
    Memory,
}

/// The files of a state, locked for this process.
struct Files {
    folder: PathBuf,
    file: PathBuf,
    _lock: LockFile,
}

/// The state of a node, in a locked folder or in memory.
pub struct StateFolder {
    /// `None`: in memory.
    files: Option<Files>,
    values: BTreeMap<String, Value>,
    profile: String,
    /// The network of the login in use, for the list of logins.
    pub network: NetworkProfile,
    /// The machine's identity to coordination servers.
    pub machine_key: MachineSecret,
    /// The preferences of the user.
    pub prefs: Prefs,
    /// The login in force, and the key of a new login that the server has not
    /// answered yet.
    pub login: StoredLogin,
    /// The file that sets preferences, if there is one.
    pub config: Option<ConfigFile>,
    /// No handshake so far had a timestamp above this: time since the UNIX
    /// epoch.
    pub clock_floor: Duration,
}

/// The parts of a [`StateFolder`] that belong to the login in use.
pub struct InMemory {
    values: BTreeMap<String, Value>,
    profile: String,
    network: NetworkProfile,
    prefs: Prefs,
    login: StoredLogin,
}

impl StateFolder {
    /// The state as it is now, to go back to where a change cannot be written.
    #[must_use]
    pub fn in_memory(&self) -> InMemory {
        InMemory {
            values: self.values.clone(),
            profile: self.profile.clone(),
            network: self.network.clone(),
            prefs: self.prefs.clone(),
            login: self.login.clone(),
        }
    }

    /// Goes back to an earlier state.
    pub fn restore(&mut self, before: InMemory) {
        self.values = before.values;
        self.profile = before.profile;
        self.network = before.network;
        self.prefs = before.prefs;
        self.login = before.login;
    }

    /// Takes the lock of the folder, which the running daemon holds.
    ///
    /// # Errors
    /// A daemon runs, or the folder cannot be written.
    pub fn lock(folder: &Path) -> Result<LockFile, LockError> {
        LockFile::acquire(&folder.join(LOCK_FILE))
    }

    /// Opens the folder and the state file `file`, usually in it, making both
    /// and the machine key where they are missing.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn open(folder: &Path, file: &Path, entropy: &mut dyn Entropy) -> Result<Self, StateError> {
        let failed = |source| StateError::Folder {
            path: folder.to_owned(),
            source,
        };
        make_private_folder(folder).map_err(failed)?;
        let lock = Self::lock(folder)?;
        let text = match std::fs::read(file) {
            Ok(text) => {
                if text.is_empty() {
                    tracing::warn!(
                        "the state file is empty, so this becomes a new machine; restore the \
                         file from a backup to be the old one again"
                    );
                }
                Zeroizing::new(text)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Zeroizing::default(),
            Err(source) => {
                let path = file.to_owned();
                return Err(StateError::Read { path, source });
            }
        };
        let files = Files {
            folder: folder.to_owned(),
            file: file.to_owned(),
            _lock: lock,
        };
        Self::read(Some(files), &text, entropy)
    }

    /// A state in memory, of a new machine.
    ///
    /// # Errors
    /// None.
    pub fn in_memory_only(entropy: &mut dyn Entropy) -> Result<Self, StateError> {
        Self::read(None, &[], entropy)
    }

    /// The state in the text of a state file.
    fn read(
        files: Option<Files>,
        text: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Self, StateError> {
        let path = files.as_ref().map(|files| files.file.clone());
        let path = path.unwrap_or_default();
        let damaged = |what: String| StateError::Damaged {
            path: path.clone(),
            what,
        };
        let values: BTreeMap<String, Value> = if text.is_empty() {
            BTreeMap::new()
        } else {
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?
        };
        let mut fresh = !values.contains_key(MACHINE_KEY);
        let machine_key = match value(&values, MACHINE_KEY).map_err(damaged)? {
            None => MachineSecret::generate(entropy),
            Some(bytes) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| damaged(format!("{MACHINE_KEY} is not a private key")))?,
        };
        let profile = match value(&values, CURRENT_PROFILE).map_err(damaged)? {
            None => FIRST_PROFILE.to_owned(),
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        };
        let (prefs, mut login) = match value(&values, &profile).map_err(damaged)? {
            None => (fresh_prefs(), StoredLogin::default()),
            Some(bytes) => {
                read_profile(&bytes).map_err(|what| damaged(format!("{profile}: {what}")))?
            }
        };
        login.candidate = match value(&values, CANDIDATE_KEY).map_err(damaged)? {
            None => None,
            Some(bytes) => Some(
                std::str::from_utf8(&bytes)
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .ok_or_else(|| damaged(format!("{CANDIDATE_KEY} is not a private key")))?,
            ),
        };
        if login.lock_key.is_none()
            && let Some(bytes) = value(&values, LOCK_KEY).map_err(damaged)?
        {
            let key = std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| damaged(format!("{LOCK_KEY} is not a private key")))?;
            login.lock_key = Some(key);
        }
        if login.lock_key.is_none() {
            login.lock_key = Some(LockSecret::generate(entropy));
            fresh = true;
        }
        let clock = files.as_ref().map(|files| files.folder.join(CLOCK_FILE));
        let mut state = Self {
            files,
            values,
            profile,
            network: NetworkProfile::default(),
            machine_key,
            prefs,
            login,
            config: None,
            clock_floor: clock.map_or(Duration::ZERO, |path| read_clock(&path)),
        };
        if fresh {
            state.save()?;
        }
        Ok(state)
    }

    /// The folder; `None` in memory.
    pub fn folder(&self) -> Option<&Path> {
        self.files.as_ref().map(|files| files.folder.as_path())
    }

    /// Whether the node ends with this process: its state is in memory.
    pub fn is_ephemeral(&self) -> bool {
        self.files.is_none()
    }

    /// The name of the login in the state file.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// Writes everything, if there is a file.
    ///
    /// # Errors
    /// [`StateError::Write`]; the file is then as before.
    pub fn save(&mut self) -> Result<(), StateError> {
        let mut prefs =
            serde_json::to_value(ShownPrefs::from(self.prefs.clone())).unwrap_or_default();
        let account = self.login.account.as_ref();
        prefs["Config"] = match account {
            None => Value::Null,
            Some(login) => json!({
                "PrivateNodeKey": &**login.node_key.to_text(),
                "OldPrivateNodeKey": login.old_node_key.as_ref().map_or_else(
                    || Zeroizing::new(format!("{}{}", NodeSecret::PREFIX, "0".repeat(64))),
                    NodeSecret::to_text,
                ).as_str(),
                "UserProfile": login.user_profile,
                "NodeID": login.node_id.0,
                "NetworkLockKey": self.login.lock_key.as_ref().map_or_else(
                    || Zeroizing::new(format!("{}{}", LockSecret::PREFIX, "0".repeat(128))),
                    LockSecret::to_text,
                ).as_str(),
                "DisallowedTKAStateIDs": self.login.refused_locks,
                AUTOSIGN_TAGS: self.login.autosign_tags,
            }),
        };
        self.keep_unknown(&mut prefs);
        let id = self.profile_id().to_owned();
        let mut profiles = self.other_profiles();
        if let Some(login) = account {
            let profile = LoginProfile {
                id: id.clone(),
                name: self.profile_name(),
                network_profile: self.network.clone(),
                key: self.profile.clone(),
                user_profile: login.user_profile.clone(),
                node_id: login.node_id.0.clone(),
                control_url: self.prefs.control_url.clone(),
                ..LoginProfile::default()
            };
            // The server knows this machine once: an older login there has ended.
            let is_same = |other: &Value| {
                !profile.node_id.is_empty()
                    && other["NodeID"] == profile.node_id.as_str()
                    && other["ControlURL"] == profile.control_url.as_str()
            };
            let (ended, kept): (Vec<_>, Vec<_>) =
                profiles.into_iter().partition(|(_, other)| is_same(other));
            for (id, _) in ended {
                self.values.remove(&format!("{PROFILE_PREFIX}{id}"));
            }
            profiles = kept.into_iter().collect();
            profiles.insert(id, json!(profile));
        }
        let profiles = Value::Object(profiles);
        let machine_key = self.machine_key.to_text();
        let mut set = |key: &str, bytes: &[u8]| {
            self.values
                .insert(key.to_owned(), Value::String(BASE64.encode(bytes)));
        };
        set(MACHINE_KEY, machine_key.as_bytes());
        set(CURRENT_PROFILE, self.profile.clone().as_bytes());
        set(PROFILES, profiles.to_string().as_bytes());
        set(
            &self.profile.clone(),
            Zeroizing::new(prefs.to_string()).as_bytes(),
        );
        match &self.login.candidate {
            Some(key) => set(CANDIDATE_KEY, key.to_text().as_bytes()),
            None => drop(self.values.remove(CANDIDATE_KEY)),
        }
        match &self.login.lock_key {
            Some(key) if account.is_none() => {
                let text = Value::String(BASE64.encode(key.to_text().as_bytes()));
                self.values.insert(LOCK_KEY.to_owned(), text);
            }
            _ => drop(self.values.remove(LOCK_KEY)),
        }
        let Some(files) = &self.files else {
            return Ok(());
        };
        let path = files.file.clone();
        let text = Zeroizing::new(serde_json::to_vec_pretty(&self.values).unwrap_or_default());
        write_atomic(&path, &text, 0o600).map_err(|source| StateError::Write { path, source })
    }

    /// Takes over the members of the stored profile that this version does not know: a
    /// newer one, to which the machine returns, finds its settings again.
    fn keep_unknown(&self, prefs: &mut Value) {
        let stored = value(&self.values, &self.profile).ok().flatten();
        let stored = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (Some(Value::Object(stored)), Value::Object(prefs)) = (stored, prefs) else {
            return;
        };
        for (key, value) in stored {
            let is_known = PREF_KEYS
                .iter()
                .any(|known| known.eq_ignore_ascii_case(&key));
            if !is_known {
                prefs.insert(key, value);
            }
        }
    }

    /// The id of the login in use, four hexadecimal digits as a rule.
    pub fn profile_id(&self) -> &str {
        self.profile.trim_start_matches(PROFILE_PREFIX)
    }

    /// The name of the login in use: the one that the user gave it, or its account.
    pub fn profile_name(&self) -> String {
        let account = self.login.account.as_ref();
        match self.prefs.profile_name.as_str() {
            "" => account
                .map(|login| login.user_profile.login_name.clone())
                .unwrap_or_default(),
            name => name.to_owned(),
        }
    }

    /// The stored logins besides the one in use, by id. Entries of other programs are
    /// kept as they are.
    pub fn other_profiles(&self) -> Map<String, Value> {
        let stored = value(&self.values, PROFILES).ok().flatten();
        let stored = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(Value::Object(mut profiles)) = stored else {
            return Map::new();
        };
        profiles.remove(self.profile_id());
        profiles
    }

    /// Uses another stored login, or, with `None`, a new one that is empty. The one in
    /// use stays in the file if it is a login. Nothing is written yet.
    ///
    /// # Errors
    /// The login with this id cannot be read; the one in use stays then.
    pub fn choose_profile(
        &mut self,
        id: Option<&str>,
        entropy: &mut dyn Entropy,
    ) -> Result<(), String> {
        let (profile, prefs, mut login) = match id {
            Some(id) => {
                let profile = format!("{PROFILE_PREFIX}{id}");
                let bytes = value(&self.values, &profile)?
                    .ok_or_else(|| format!("the login {id:?} is not in the state file"))?;
                let (prefs, login) = read_profile(&bytes)?;
                (profile, prefs, login)
            }
            None => (
                self.unused_profile(entropy),
                fresh_prefs(),
                StoredLogin::default(),
            ),
        };
        if login.lock_key.is_none() {
            login.lock_key = Some(LockSecret::generate(entropy));
        }
        if self.login.account.is_none() {
            self.values.remove(&self.profile);
        }
        self.profile = profile;
        self.prefs = prefs;
        self.network = NetworkProfile::default();
        self.login = login;
        Ok(())
    }

    /// Removes a stored login that is not in use. Nothing is written yet.
    pub fn remove_profile(&mut self, id: &str) {
        let mut profiles = self.other_profiles();
        profiles.remove(id);
        let text = Value::Object(profiles).to_string();
        self.values.remove(&format!("{PROFILE_PREFIX}{id}"));
        let text = Value::String(BASE64.encode(text.as_bytes()));
        self.values.insert(PROFILES.to_owned(), text);
    }

    /// A name that no stored login has.
    fn unused_profile(&self, entropy: &mut dyn Entropy) -> String {
        loop {
            let mut random = [0; 2];
            entropy.fill(&mut random);
            let name = format!(
                "{PROFILE_PREFIX}{}",
                data_encoding::HEXLOWER.encode(&random)
            );
            if name != self.profile && !self.values.contains_key(&name) {
                return name;
            }
        }
    }

    /// The login as local programs may see it.
    pub fn shown_login(&self) -> Option<Persist> {
        let login = self.login.account.as_ref()?;
        Some(Persist {
            user_profile: login.user_profile.clone(),
            node_id: login.node_id.0.clone(),
        })
    }

    /// The netmap of the last run. One that cannot be read is removed: the server
    /// sends it again, and nothing is lost but the head start.
    pub fn load_netmap(&self) -> Option<KeptNetmap<'static>> {
        let path = self.netmap_path()?;
        let read = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
            Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        };
        match read {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(
                    error,
                    "the kept netmap cannot be read and is dropped; the node waits for the one \
                     of the coordination server"
                );
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(%error, "the kept netmap cannot be removed");
                }
                None
            }
        }
    }

    /// The folder of tailnet lock of the login in use; `None` in memory, like all paths here.
    pub fn lock_folder(&self) -> Option<PathBuf> {
        self.lock_folder_of(self.profile_id())
    }

    /// The folder of tailnet lock of the login with this id.
    pub fn lock_folder_of(&self, id: &str) -> Option<PathBuf> {
        Some(self.folder()?.join(TAILNET_LOCK_FOLDER).join(id))
    }

    /// Where the netmap is kept.
    pub fn netmap_path(&self) -> Option<PathBuf> {
        Some(self.folder()?.join(NETMAP_FILE))
    }

    /// Where [`clock_floor`](Self::clock_floor) is kept: its whole seconds, in
    /// decimal.
    pub fn clock_path(&self) -> Option<PathBuf> {
        Some(self.folder()?.join(CLOCK_FILE))
    }

    /// The folder of the keys of the SSH server.
    pub fn ssh_folder(&self) -> Option<PathBuf> {
        Some(self.folder()?.join(SSH_FOLDER))
    }

    /// Where the port mapping at the router is recorded.
    pub fn port_mapping_path(&self) -> Option<PathBuf> {
        Some(self.folder()?.join(PORT_MAPPING_FILE))
    }
}

/// The preferences before the first login.
fn fresh_prefs() -> Prefs {
    Prefs {
        logged_out: true,
        ..Prefs::default()
    }
}

/// The kept clock; the epoch where there is none or none that can be meant.
fn read_clock(path: &Path) -> Duration {
    /// Some 35,000 years: what is above was not written by us.
    const LIMIT: u64 = 1 << 40;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "the kept clock of handshakes cannot be read");
            }
            return Duration::ZERO;
        }
    };
    match text.trim().parse() {
        Ok(seconds) if seconds < LIMIT => Duration::from_secs(seconds),
        _ => {
            // It only matters when the machine's clock is set back as well.
            tracing::warn!("the kept clock of handshakes is damaged and is ignored");
            Duration::ZERO
        }
    }
}

fn value(
    values: &BTreeMap<String, Value>,
    key: &str,
) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    match values.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => BASE64
            .decode(text.as_bytes())
            .map(|bytes| Some(Zeroizing::new(bytes)))
            .map_err(|error| format!("{key} is not base64: {error}")),
        Some(_) => Err(format!("{key} is not a text")),
    }
}

/// The preferences and the login of a profile, without a candidate.
fn read_profile(bytes: &[u8]) -> Result<(Prefs, StoredLogin), String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let ShownPrefs {
        prefs,
        config: shown,
    } = serde_json::from_value(value.clone()).map_err(|error| format!("preferences: {error}"))?;
    let config = &value["Config"];
    let key = |name: &str| match config[name].as_str() {
        None => Ok(None),
        Some(text) if text.ends_with(&"0".repeat(64)) => Ok(None),
        Some(text) => text
            .parse::<NodeSecret>()
            .map(Some)
            .map_err(|error| format!("{name}: {error}")),
    };
    let Some(node_key) = key("PrivateNodeKey")? else {
        return Ok((prefs, StoredLogin::default()));
    };
    let shown = shown.unwrap_or_default();
    let account = Account {
        node_key,
        old_node_key: key("OldPrivateNodeKey")?,
        user_profile: shown.user_profile,
        node_id: StableNodeId(shown.node_id),
    };
    let lock_key = match config["NetworkLockKey"].as_str() {
        None => None,
        Some(text) if text.ends_with(&"0".repeat(128)) => None,
        Some(text) => {
            let key = text.parse::<LockSecret>();
            Some(key.map_err(|error| format!("NetworkLockKey: {error}"))?)
        }
    };
    let refused_locks = match &config["DisallowedTKAStateIDs"] {
        Value::Null => Vec::new(),
        ids => serde_json::from_value(ids.clone())
            .map_err(|error| format!("DisallowedTKAStateIDs: {error}"))?,
    };
    let autosign_tags = match &config[AUTOSIGN_TAGS] {
        Value::Null => Default::default(),
        tags => serde_json::from_value(tags.clone())
            .map_err(|error| format!("{AUTOSIGN_TAGS}: {error}"))?,
    };
    let login = StoredLogin {
        account: Some(account),
        candidate: None,
        lock_key,
        refused_locks,
        autosign_tags,
    };
    Ok((prefs, login))
}

fn make_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let private = std::fs::Permissions::from_mode(0o700);
    match std::fs::set_permissions(folder, private) {
        // The files in it are private by themselves.
        Err(error) if std::fs::metadata(folder)?.permissions().mode() & 0o077 != 0 => {
            tracing::warn!(%error, "the state folder cannot be closed to other users");
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
