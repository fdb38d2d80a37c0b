//! Name resolution as nodes are sent it: settings, extra records, and their rendering.
//!
//! A setting comes from the configuration of the server, else from the store, where
//! commands put it, else it has its default. Records come from the configuration, from
//! the store and from a file, and all of them count. The last valid content of the file
//! is in the store too, so that it survives a restart with a broken file.
//!
//! The wire carries addresses only (`DNSConfig.ExtraRecords`, types A and AAAA), so an
//! alias (CNAME) is resolved here, for each node with the peers that it sees, and again when
//! one of them changes. It follows the name: a node that takes a name that is free takes
//! the aliases that lead to it.

mod name;
mod record;
mod render;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use name::{DnsName, NameError, Nameserver, NameserverError};
pub use record::{ExtraRecord, RecordData, RecordError};

/// The most records of one source.
pub const MAX_RECORDS: usize = 4096;
/// The most name servers in one list.
pub const MAX_NAMESERVERS: usize = 16;
/// The most suffixes with name servers of their own.
pub const MAX_SUFFIXES: usize = 512;
/// The most search domains.
pub const MAX_SEARCH_DOMAINS: usize = 32;

/// The settings that one source gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsPart {
    /// Whether names of nodes resolve. Default: yes.
    pub magic_dns: Option<bool>,
    /// Whether the name servers replace those of the host; otherwise they are used only
    /// where the host has none to use. Default: yes.
    pub override_local: Option<bool>,
    /// Name servers for all names.
    pub nameservers: Option<Vec<Nameserver>>,
    /// Name servers by suffix; an empty list means that nodes answer for it themselves.
    pub split: Option<BTreeMap<DnsName, Vec<Nameserver>>>,
    /// Search domains after the zone of the nodes.
    pub search_domains: Option<Vec<DnsName>>,
}

/// A setting of [`DnsPart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DnsKey {
    /// [`DnsPart::magic_dns`].
    MagicDns,
    /// [`DnsPart::override_local`].
    OverrideLocal,
    /// [`DnsPart::nameservers`].
    Nameservers,
    /// [`DnsPart::split`].
    Split,
    /// [`DnsPart::search_domains`].
    SearchDomains,
}

impl DnsKey {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MagicDns,
        Self::OverrideLocal,
        Self::Nameservers,
        Self::Split,
        Self::SearchDomains,
    ];

    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MagicDns => "magic_dns",
            Self::OverrideLocal => "override_local",
            Self::Nameservers => "nameservers",
            Self::Split => "split",
            Self::SearchDomains => "search_domains",
        }
    }
}

impl DnsPart {
    /// Whether the source gives a setting.
    #[must_use]
    pub fn gives(&self, key: DnsKey) -> bool {
        match key {
            DnsKey::MagicDns => self.magic_dns.is_some(),
            DnsKey::OverrideLocal => self.override_local.is_some(),
            DnsKey::Nameservers => self.nameservers.is_some(),
            DnsKey::Split => self.split.is_some(),
            DnsKey::SearchDomains => self.search_domains.is_some(),
        }
    }

    /// Takes a setting away.
    pub fn unset(&mut self, key: DnsKey) {
        match key {
            DnsKey::MagicDns => self.magic_dns = None,
            DnsKey::OverrideLocal => self.override_local = None,
            DnsKey::Nameservers => self.nameservers = None,
            DnsKey::Split => self.split = None,
            DnsKey::SearchDomains => self.search_domains = None,
        }
    }

    /// Checks the lengths of the lists.
    ///
    /// # Errors
    /// One is too long.
    pub fn check(&self) -> Result<(), DnsError> {
        let too_many = |key: DnsKey, have: usize, most: usize| {
            let what = key.name();
            (have > most).then_some(DnsError::TooMany { what, most })
        };
        let length = |list: &Option<Vec<_>>| list.as_ref().map_or(0, Vec::len);
        let suffixes = self.split.iter().flatten();
        let longest = suffixes.clone().map(|(_, servers)| servers.len()).max();
        let searches = self.search_domains.as_ref().map_or(0, Vec::len);
        let found = [
            too_many(
                DnsKey::Nameservers,
                length(&self.nameservers),
                MAX_NAMESERVERS,
            ),
            too_many(DnsKey::Split, suffixes.count(), MAX_SUFFIXES),
            too_many(DnsKey::Split, longest.unwrap_or(0), MAX_NAMESERVERS),
            too_many(DnsKey::SearchDomains, searches, MAX_SEARCH_DOMAINS),
        ];
        found.into_iter().flatten().next().map_or(Ok(()), Err)
    }
}

/// The part of the configuration of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfiguredDns {
    /// Settings that commands do not change.
    pub part: DnsPart,
    /// Records.
    pub records: BTreeSet<ExtraRecord>,
}

/// The part that is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredDns {
    /// Settings of commands.
    pub part: DnsPart,
    /// Records of commands.
    pub records: BTreeSet<ExtraRecord>,
    /// Records of the file, as they were when it was last valid.
    pub file_records: BTreeSet<ExtraRecord>,
}

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordSource {
    /// The configuration of the server.
    Configuration,
    /// The file with records.
    File,
    /// A command.
    Command,
}

/// The settings that are in force.
#[derive(Debug, Clone, Copy)]
pub struct Dns<'a> {
    configured: &'a ConfiguredDns,
    stored: &'a StoredDns,
}

impl<'a> Dns<'a> {
    pub(crate) fn new(configured: &'a ConfiguredDns, stored: &'a StoredDns) -> Self {
        Self { configured, stored }
    }

    /// The settings of the configuration.
    #[must_use]
    pub fn configured(self) -> &'a DnsPart {
        &self.configured.part
    }

    fn setting<T>(self, of: impl Fn(&'a DnsPart) -> Option<T>) -> Option<T> {
        of(&self.configured.part).or_else(|| of(&self.stored.part))
    }

    /// Whether names of nodes resolve.
    #[must_use]
    pub fn magic_dns(self) -> bool {
        self.setting(|part| part.magic_dns).unwrap_or(true)
    }

    /// Whether the name servers replace those of the host.
    #[must_use]
    pub fn override_local(self) -> bool {
        self.setting(|part| part.override_local).unwrap_or(true)
    }

    /// Name servers for all names.
    #[must_use]
    pub fn nameservers(self) -> &'a [Nameserver] {
        let list = self.setting(|part| part.nameservers.as_deref());
        list.unwrap_or_default()
    }

    /// Name servers by suffix.
    pub fn split(self) -> impl Iterator<Item = (&'a DnsName, &'a [Nameserver])> {
        let map = self.setting(|part| part.split.as_ref());
        let entries = map.into_iter().flatten();
        entries.map(|(suffix, servers)| (suffix, servers.as_slice()))
    }

    /// Search domains after the zone of the nodes.
    #[must_use]
    pub fn search_domains(self) -> &'a [DnsName] {
        let list = self.setting(|part| part.search_domains.as_deref());
        list.unwrap_or_default()
    }

    /// All records with their sources, ordered by source.
    pub fn records(self) -> impl Iterator<Item = (RecordSource, &'a ExtraRecord)> {
        let of = |source, records: &'a BTreeSet<ExtraRecord>| {
            records.iter().map(move |record| (source, record))
        };
        of(RecordSource::Configuration, &self.configured.records)
            .chain(of(RecordSource::File, &self.stored.file_records))
            .chain(of(RecordSource::Command, &self.stored.records))
    }

    /// The names to which aliases lead.
    pub(crate) fn alias_targets(self) -> impl Iterator<Item = &'a DnsName> {
        self.records().filter_map(|(_, record)| match &record.data {
            RecordData::Cname(target) => Some(target),
            RecordData::A(_) | RecordData::Aaaa(_) => None,
        })
    }
}

/// A change of the settings by a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsChange {
    /// The settings to set.
    pub set: DnsPart,
    /// Suffixes of [`DnsPart::split`] to set one by one; `None` takes one away.
    pub suffixes: BTreeMap<DnsName, Option<Vec<Nameserver>>>,
    /// The settings that get their defaults again.
    pub unset: BTreeSet<DnsKey>,
}

/// The reason why name resolution is not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The configuration is in charge of the setting.
    #[error(
        "{0} is set in the configuration of the server: change it in [dns] there and run `warren-control reload`, or remove it there to set it here"
    )]
    Configured(&'static str),
    /// A list is too long.
    #[error("{what}: at most {most} entries are possible")]
    TooMany {
        /// The setting.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// No command made this record.
    #[error(
        "no record \"{0}\" was added by a command; `warren-control dns show` lists all records with where they come from"
    )]
    NoRecord(String),
    /// The suffix has no name servers.
    #[error(
        "the suffix \"{0}\" has no name servers; `warren-control dns show` lists those that do"
    )]
    NoSuffix(String),
}
