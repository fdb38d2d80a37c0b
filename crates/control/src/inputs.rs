//! The files that the settings name, read and checked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use warren_control_core::ExtraRecord;
use warren_control_types::DerpMap;
use warren_relay::tls::Certificate;

use crate::config::{Mistake, Mistakes, Settings, read_text};
use crate::dns_records;
use crate::policy_file;

/// The records of the file with records, or everything that is wrong with it.
pub(crate) type RecordsOfFile = Result<BTreeSet<ExtraRecord>, String>;

/// The content of the files.
pub(crate) struct Inputs {
    pub(crate) derp_map: Option<DerpMap>,
    /// The policy file, and its valid text or its errors.
    pub(crate) policy: Option<(PathBuf, Result<String, String>)>,
    pub(crate) certificate: Option<Certificate>,
    /// The file with extra records.
    pub(crate) records: Option<(PathBuf, RecordsOfFile)>,
}

impl Inputs {
    /// Reads all files. That the policy or the records are not valid is no mistake here, for
    /// the last ones may be in force.
    ///
    /// # Errors
    /// Everything else that is wrong with them.
    pub(crate) fn read(settings: &Settings) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut wrong = |section: &str, name: &str, what: String| {
            mistakes.push(Mistake {
                place: settings.origin(section, name),
                what,
            });
        };
        let derp_map = settings.derp_map.as_deref().map(read_derp_map).transpose();
        let derp_map = derp_map.unwrap_or_else(|why| {
            wrong("[relay]", "derp_map", why);
            None
        });
        let certificate = settings.certificate.as_ref();
        let certificate = certificate.map(|(chain, key)| Certificate::from_files(chain, key));
        let certificate = certificate.transpose().unwrap_or_else(|error| {
            wrong("[tls]", "certificate", error.to_string());
            None
        });
        let policy = settings.policy.as_ref();
        let policy = policy.map(|file| (file.clone(), policy_file::read_checked(file)));
        let records = settings.dns_records.as_ref();
        let records = records.map(|file| (file.clone(), dns_records::read_checked(file)));
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        Ok(Self {
            derp_map,
            policy,
            certificate,
            records,
        })
    }

    /// The error of the file with records, if it is not valid.
    pub(crate) fn records_error(&self) -> Option<&str> {
        let (_, read) = self.records.as_ref()?;
        read.as_ref().err().map(String::as_str)
    }

    /// The error of the policy file, if it is not valid.
    pub(crate) fn policy_error(&self) -> Option<&str> {
        let (_, read) = self.policy.as_ref()?;
        read.as_ref().err().map(String::as_str)
    }
}

fn read_derp_map(file: &Path) -> Result<DerpMap, String> {
    let named = |why: String| format!("{}: {why}", file.display());
    let text = read_text(file).map_err(|why| named(format!("cannot be read: {why}")))?;
    DerpMap::from_json(text.as_bytes()).map_err(|error| {
        let hint = if text.trim_start().starts_with('{') {
            ""
        } else {
            "; the file must be JSON, as warren-relay writes it to derp-map.json; YAML, as \
             Headscale reads it, is not supported"
        };
        named(format!("{error}{hint}"))
    })
}
