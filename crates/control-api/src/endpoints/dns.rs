//! Name resolution as nodes are sent it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Shows the settings and records of name resolution.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetDns {}

/// Changes settings; those that are left out stay.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetDns {
    /// Whether names of nodes resolve.
    pub magic_dns: Option<bool>,
    /// Whether the name servers replace those of the hosts.
    pub override_local: Option<bool>,
    /// The name servers for all names: addresses, addresses with a port, `https://` URLs.
    pub nameservers: Option<Vec<String>>,
    /// The search domains after the zone of the nodes.
    pub search_domains: Option<Vec<String>>,
    /// The name servers of suffixes; null takes a suffix away, and with an empty list nodes
    /// answer for it themselves.
    pub split: BTreeMap<String, Option<Vec<String>>>,
    /// The settings that get their defaults again: `magic_dns`, `override_local`,
    /// `nameservers`, `split`, `search_domains`.
    pub unset: Vec<String>,
}

/// Adds a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDnsRecord {
    /// Its full name.
    pub name: String,
    /// `A`, `AAAA` or `CNAME`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address, or the name that an alias leads to.
    pub value: String,
}

/// Deletes the records of a name that were added by commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteDnsRecord {
    /// Their full name.
    pub name: String,
    /// Only those of this type.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Only those of this value.
    #[serde(default)]
    pub value: Option<String>,
}

/// The settings and records of name resolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsInfo {
    /// The zone of the nodes' names.
    pub base_domain: String,
    /// Whether names of nodes resolve.
    pub magic_dns: bool,
    /// Whether the name servers replace those of the hosts.
    pub override_local: bool,
    /// The name servers for all names.
    pub nameservers: Vec<String>,
    /// The name servers of suffixes.
    pub split: BTreeMap<String, Vec<String>>,
    /// The search domains after the zone of the nodes.
    pub search_domains: Vec<String>,
    /// The settings that come from the configuration of the server, by their names there.
    pub configured: Vec<String>,
    /// The name servers that official clients do not use.
    pub unknown_to_clients: Vec<String>,
    /// The records.
    pub records: Vec<DnsRecordInfo>,
    /// The file with records, if there is one.
    pub records_file: Option<String>,
    /// The reason why its content is not in force.
    pub records_problem: Option<String>,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecordInfo {
    /// Its full name.
    pub name: String,
    /// `A`, `AAAA` or `CNAME`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address, or the name that an alias leads to.
    pub value: String,
    /// `configuration`, `file` or `command`.
    pub source: String,
    /// The addresses that nodes answer with. Empty for an alias that leads to no node and
    /// no record.
    pub addresses: Vec<String>,
}
