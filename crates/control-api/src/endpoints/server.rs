//! The health of the server, and requests to connected nodes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Reports the health of the server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetHealth {}

/// Lets the server read its settings again, with the files that they name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {}

/// The result of reading the settings again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadInfo {
    /// The settings and files that are different, and are used now.
    pub changed: Vec<String>,
    /// The settings that are different, and are used after a restart.
    pub needs_restart: Vec<String>,
}

/// Sends a c2n request to a connected node and waits for the response.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendC2n {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
    /// The path of the request, as `/echo`.
    pub path: String,
    /// The body to send as a POST; without one the request is a GET.
    pub data: Option<String>,
}

/// The health of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthInfo {
    /// `pass` or `fail`.
    pub status: String,
    /// Whether rows reach the disk.
    pub database: bool,
    /// The URL at which nodes reach the server.
    pub server_url: String,
    /// The MagicDNS zone.
    pub base_domain: String,
    /// Whether every node may reach every node, for lack of a policy or because
    /// the policy allows everything.
    pub allow_all: bool,
    /// The reason for that.
    pub allow_all_reason: Option<String>,
    /// The file that is in charge of the policy, if one is.
    pub policy_file: Option<String>,
    /// The reason why the content of that file is not in force, or why the stored
    /// policy cannot be read; then nothing is allowed.
    pub policy_problem: Option<String>,
    /// The number of users.
    pub users: usize,
    /// The number of nodes.
    pub nodes: usize,
    /// The number of nodes that are online.
    pub online: usize,
    /// The number of machines that wait for approval.
    pub waiting: usize,
    /// The number of requests whose upgrade a proxy in front of the server swallowed,
    /// since its start.
    pub swallowed_upgrades: u64,
    /// When the last of them came.
    pub last_swallowed_upgrade: Option<Timestamp>,
    /// The reasons that kept machines out since the start of the server, the most recent first.
    #[serde(default)]
    pub refusals: Vec<RefusalInfo>,
    /// Keys that several machines held at the same time in the last minutes, and what
    /// to do about each.
    pub shared_keys: Vec<String>,
    /// The identity providers of the configuration.
    #[serde(default)]
    pub providers: Vec<ProviderHealth>,
    /// The reason why the content of the files with the certificate is not in use.
    #[serde(default)]
    pub certificate_problem: Option<String>,
    /// The reason why the content of the file with extra DNS records is not in force.
    #[serde(default)]
    pub records_problem: Option<String>,
    /// The version of the server.
    pub version: String,
}

/// Whether people can log in at an identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderHealth {
    /// The name in the configuration.
    pub name: String,
    /// Its issuer.
    pub issuer: String,
    /// The address that must be registered there for this server.
    pub redirect_uri: String,
    /// Whether people can log in.
    pub ready: bool,
    /// Why the provider could not be read at the last try, if that is so.
    pub problem: Option<String>,
}

/// A reason for which machines were refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalInfo {
    /// The kind of the refused thing: `registration`, `request`, `connection` or `relay`.
    pub what: String,
    /// The reason.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// When the last time was.
    pub last: Timestamp,
}

impl HealthInfo {
    /// Whether the server is healthy.
    pub fn passes(&self) -> bool {
        self.status == "pass"
    }
}

/// The response of a node to a c2n request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct C2nResponse {
    /// The HTTP status.
    pub status: u16,
    /// The body, as far as it is text.
    pub body: String,
}
