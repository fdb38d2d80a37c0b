//! Changes of name resolution.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Coordinator;
use crate::dns::{
    ConfiguredDns, DnsChange, DnsError, DnsKey, DnsName, ExtraRecord, MAX_RECORDS, StoredDns,
};
use crate::records::Change;

impl Coordinator {
    /// Replaces the part of the configuration, which is not stored.
    pub fn set_configured_dns(&mut self, dns: ConfiguredDns) {
        if self.config().dns == dns {
            return;
        }
        let view = Arc::make_mut(&mut self.view);
        Arc::make_mut(&mut view.config).dns = dns;
        self.dns_changed();
    }

    /// Changes settings by a command.
    ///
    /// # Errors
    /// The configuration is in charge of one of them, or a list is too long; nothing was
    /// changed.
    pub fn change_dns(&mut self, change: DnsChange) -> Result<(), DnsError> {
        let touched = |key: DnsKey| {
            let suffixes = key == DnsKey::Split && !change.suffixes.is_empty();
            change.set.gives(key) || change.unset.contains(&key) || suffixes
        };
        let configured = self.view.dns().configured();
        for key in DnsKey::ALL {
            if touched(key) && configured.gives(key) {
                return Err(DnsError::Configured(key.name()));
            }
        }
        let mut stored = self.view.directory.dns().clone();
        for key in change.unset {
            stored.part.unset(key);
        }
        let (part, set) = (&mut stored.part, change.set);
        part.magic_dns = set.magic_dns.or(part.magic_dns);
        part.override_local = set.override_local.or(part.override_local);
        part.nameservers = set.nameservers.or(part.nameservers.take());
        part.split = set.split.or(part.split.take());
        part.search_domains = set.search_domains.or(part.search_domains.take());
        for (suffix, servers) in change.suffixes {
            let split = part.split.get_or_insert_default();
            match servers {
                Some(servers) => drop(split.insert(suffix, servers)),
                None if split.remove(&suffix).is_some() => {}
                None => return Err(DnsError::NoSuffix(suffix.to_string())),
            }
        }
        part.check()?;
        self.store_dns(stored);
        Ok(())
    }

    /// Adds a record by a command.
    ///
    /// # Errors
    /// There are too many.
    pub fn add_dns_record(&mut self, record: ExtraRecord) -> Result<(), DnsError> {
        let mut stored = self.view.directory.dns().clone();
        stored.records.insert(record);
        if stored.records.len() > MAX_RECORDS {
            return Err(too_many_records());
        }
        self.store_dns(stored);
        Ok(())
    }

    /// Deletes records that a command added: those of this name, and of this type and
    /// value where these are given. Returns how many.
    ///
    /// # Errors
    /// There are none.
    pub fn delete_dns_records(
        &mut self,
        name: &DnsName,
        kind: Option<&str>,
        value: Option<&str>,
    ) -> Result<usize, DnsError> {
        let mut stored = self.view.directory.dns().clone();
        let before = stored.records.len();
        stored.records.retain(|record| {
            let same_kind = kind.is_none_or(|kind| kind.eq_ignore_ascii_case(record.data.kind()));
            let text = record.data.value();
            let same_value = value.is_none_or(|value| value.eq_ignore_ascii_case(&text));
            record.name != *name || !same_kind || !same_value
        });
        let gone = before - stored.records.len();
        if gone == 0 {
            let texts = [Some(name.as_str()), kind, value];
            let texts: Vec<&str> = texts.into_iter().flatten().collect();
            return Err(DnsError::NoRecord(texts.join(" ")));
        }
        self.store_dns(stored);
        Ok(gone)
    }

    /// Takes the content of the file with records; without a file, no records. Whether it
    /// is new.
    ///
    /// # Errors
    /// There are too many.
    pub fn take_dns_file(&mut self, records: BTreeSet<ExtraRecord>) -> Result<bool, DnsError> {
        if records.len() > MAX_RECORDS {
            return Err(too_many_records());
        }
        let mut stored = self.view.directory.dns().clone();
        let is_new = stored.file_records != records;
        stored.file_records = records;
        self.store_dns(stored);
        Ok(is_new)
    }

    fn store_dns(&mut self, stored: StoredDns) {
        if *self.view.directory.dns() != stored {
            self.commit(Change::Dns(Box::new(stored)), true);
        }
    }

    /// The stored part is another one.
    pub(super) fn dns_committed(&mut self, stored: StoredDns) {
        self.view_mut().directory.set_dns(stored);
        self.dns_changed();
    }

    fn dns_changed(&mut self) {
        self.sessions.invalidate_all(|pending| pending.dns = true);
    }
}

fn too_many_records() -> DnsError {
    DnsError::TooMany {
        what: "records",
        most: MAX_RECORDS,
    }
}
