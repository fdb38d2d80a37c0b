//! The file with extra records: watched, and taken when it changes.
//!
//! Its form is that of Headscale's `extra_records_path`: a JSON array of objects with
//! `name`, `type` and `value`. After an error, and when the file is gone, the last valid
//! records stay in force.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use warren_control_core::ExtraRecord;

use crate::coordinator::CoordinatorHandle;
use crate::store::StoreError;
use crate::watched_file::{Watched, aside, read};

/// See the module.
pub(crate) struct RecordsFile {
    path: PathBuf,
    coordinator: Arc<CoordinatorHandle>,
    /// The reason why the content is not in force.
    problem: Mutex<Option<String>>,
}

impl RecordsFile {
    /// The file, with what was read of it at start.
    pub(crate) async fn start(
        path: PathBuf,
        coordinator: Arc<CoordinatorHandle>,
        read: Result<BTreeSet<ExtraRecord>, String>,
    ) -> Result<Arc<Self>, StoreError> {
        let this = Self {
            path,
            coordinator,
            problem: Mutex::default(),
        };
        this.take(read).await?;
        Ok(Arc::new(this))
    }

    /// The reason why the content is not in force.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.clone()
    }

    fn set_problem(&self, why: Option<&str>) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = why
            && problem.as_deref() != Some(why)
        {
            tracing::error!("the extra records stay as they were: {why}");
        }
        *problem = why.map(str::to_owned);
    }

    async fn take(&self, read: Result<BTreeSet<ExtraRecord>, String>) -> Result<(), StoreError> {
        let taken = match read {
            Ok(records) => self
                .coordinator
                .change_saved(|c, _, _| c.take_dns_file(records))
                .await?
                .map_err(|error| format!("{}: {error}", self.path.display())),
            Err(why) => Err(why),
        };
        match taken {
            Ok(is_new) => {
                self.set_problem(None);
                if is_new {
                    tracing::info!("the extra records of {} are in force", self.path.display());
                }
            }
            Err(why) => self.set_problem(Some(&why)),
        }
        Ok(())
    }
}

impl Watched for RecordsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    async fn reload(&self) {
        let records = aside(&self.path, read_checked).await;
        let records = records.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(error) = self.take(records).await {
            tracing::error!("{error}");
        }
    }
}

/// Reads the file and checks it.
///
/// # Errors
/// It cannot be read, or everything that is wrong with it.
pub(crate) fn read_checked(path: &Path) -> Result<BTreeSet<ExtraRecord>, String> {
    parse(&read(path)?).map_err(|why| format!("{}: {why}", path.display()))
}

fn parse(text: &str) -> Result<BTreeSet<ExtraRecord>, String> {
    let elements: Vec<Value> = serde_json::from_str(text).map_err(|error| {
        format!(
            "{error}; the form is [{{\"name\": \"db.example\", \"type\": \"A\", \"value\": \"10.0.0.1\"}}]"
        )
    })?;
    let mut records = BTreeSet::new();
    let mut wrong = Vec::new();
    for (n, element) in elements.into_iter().enumerate() {
        match serde_json::from_value(element) {
            Ok(record) => drop(records.insert(record)),
            Err(error) => wrong.push(format!("record {}: {error}", n + 1)),
        }
    }
    if wrong.is_empty() {
        Ok(records)
    } else {
        Err(wrong.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn form_of_headscale_is_read_and_all_mistakes_are_numbered() {
        let records = parse(
            r#"[{"name": "grafana.x", "type": "A", "value": "100.64.0.3"},
                {"name": "db.x", "type": "CNAME", "value": "host1"}]"#,
        );
        assert_eq!(records.unwrap().len(), 2);
        assert!(parse("[]").unwrap().is_empty());
        let why = parse(
            r#"[{"name": "a", "type": "TXT", "value": "x"}, {"name": "b", "type": "A", "value": "10.0.0.1"},
                {"nam": "c"}, 7]"#,
        )
        .unwrap_err();
        for text in [
            "record 1: type \"TXT\"",
            "record 3: unknown field `nam`",
            "record 4:",
        ] {
            assert!(why.contains(text), "{why}");
        }
        assert!(parse("{}").unwrap_err().contains("the form is"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".*", element in ".{0,30}") {
            let _ = parse(&text);
            let _ = parse(&format!("[{{\"name\": \"{element}\", \"type\": \"A\", \"value\": \"1.2.3.4\"}}]"));
        }
    }
}
