//! Requests that read and change preferences.

use serde::{Deserialize, Serialize};

use super::without_content;
use crate::endpoint::{IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::{ApiError, Reply};
use crate::prefs::{MaskedPrefs, Prefs, ShownPrefs, read_change, write_change};
use crate::types::Status;

/// The current preferences, with `config` filled once logged in.
#[derive(Debug, Clone, Copy)]
pub struct GetPrefs;

without_content!(GetPrefs);

/// Reads the configuration file of the daemon again, and uses it.
#[derive(Debug, Clone, Copy)]
pub struct ReloadConfig;

without_content!(ReloadConfig);

/// The answer to [`ReloadConfig`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ReloadedConfig {
    /// Whether the file is in use; `false` without an error: there is none.
    pub reloaded: bool,
    /// The reason why the file cannot be used; the settings are as before then.
    #[serde(rename = "Err")]
    pub error: String,
}

/// A change of preferences. The answer is all preferences after it.
#[derive(Debug, Clone, PartialEq)]
pub struct EditPrefs {
    /// The change.
    pub change: MaskedPrefs,
}

impl EditPrefs {
    /// The change in the form in which it is stored: an exit node that is given by
    /// its address is given by its id.
    ///
    /// # Errors
    /// [`ApiError::Refused`] when the result could not be used.
    pub fn prepare(self, current: &Prefs, status: &Status) -> Reply<MaskedPrefs> {
        let mut change = self.change;
        if change.internal_exit_node_prior.is_some() {
            return Err(ApiError::Refused(
                "InternalExitNodePrior cannot be set".to_owned(),
            ));
        }
        if let Some(Some(ip)) = change.exit_node_ip
            && let Some(id) = status.exit_node_at(ip)
        {
            change.exit_node_id = Some(id.to_owned());
            change.exit_node_ip = Some(None);
        }
        let mut outcome = current.clone();
        change.apply_to(&mut outcome);
        outcome.check().map_err(ApiError::Refused)?;
        Ok(change)
    }
}

impl RequestForm for EditPrefs {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let change = read_change(&request.bytes().await?).map_err(ApiError::Refused)?;
        Ok(Self { change })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::with_body(write_change(&self.change).to_string())
    }
}

/// A request to find out whether these preferences could be used. It stores
/// nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckPrefs {
    /// The preferences.
    pub prefs: Prefs,
}

impl RequestForm for CheckPrefs {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let shown = ShownPrefs::from_json(&request.bytes().await?).map_err(ApiError::Refused)?;
        Ok(Self { prefs: shown.prefs })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::with_body(ShownPrefs::from(self.prefs.clone()).to_json())
    }
}

/// The answer to [`CheckPrefs`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckedPrefs {
    /// The reason why the preferences cannot be used; empty: they can.
    #[serde(rename = "Error", skip_serializing_if = "String::is_empty")]
    pub error: String,
}

impl CheckPrefs {
    /// Checks the preferences for a node with this status.
    pub fn check(mut self, status: &Status) -> CheckedPrefs {
        name_exit_node(&mut self.prefs, status);
        CheckedPrefs {
            error: self.prefs.check().err().unwrap_or_default(),
        }
    }
}

/// Replaces the address of the exit node by its stable id, if a peer with that
/// address offers to be one.
pub fn name_exit_node(prefs: &mut Prefs, status: &Status) {
    if let Some(ip) = prefs.exit_node_ip
        && let Some(id) = status.exit_node_at(ip)
    {
        prefs.exit_node_id = id.to_owned();
        prefs.exit_node_ip = None;
    }
}
