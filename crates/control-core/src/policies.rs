//! Policies that were in force, and the file that is in charge.
//!
//! Each policy that is taken becomes a version in the history, with the moment
//! and the person. Where a file is in charge, no administrator changes the
//! policy; when the file becomes wrong, the last good one stays in force, and
//! the error is remembered.

use jiff::Timestamp;

use crate::error::AdminError;
use crate::records::{Change, PolicyVersion};

/// How many versions are kept.
const KEPT_VERSIONS: usize = 100;
/// How many bytes their texts may have together; the newest is kept anyway.
const KEPT_BYTES: usize = 64 << 20;

/// The file that is in charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// Its name.
    pub path: String,
    /// The error because of which its text is not in force, and since when.
    pub problem: Option<(Timestamp, String)>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    file: Option<PolicyFile>,
}

impl Policies {
    pub(crate) fn file(&self) -> Option<&PolicyFile> {
        self.file.as_ref()
    }

    pub(crate) fn put_file_in_charge(&mut self, path: &str) {
        self.file = Some(PolicyFile {
            path: path.to_owned(),
            problem: None,
        });
    }

    /// The error of the file in charge; `None`: its text is in force.
    pub(crate) fn set_problem(&mut self, problem: Option<(Timestamp, String)>) {
        if let Some(file) = &mut self.file {
            file.problem = problem;
        }
    }

    /// Whether an administrator who saw the version `seen` may set the policy
    /// while `present` is in force.
    pub(crate) fn may_be_set(
        &self,
        seen: Option<i64>,
        present: Option<i64>,
    ) -> Result<(), AdminError> {
        if seen != present {
            return Err(AdminError::PolicyChanged);
        }
        match &self.file {
            Some(file) => Err(AdminError::PolicyFileInCharge(file.path.clone())),
            None => Ok(()),
        }
    }
}

/// The changes that add `new` to the history `kept`: its number, and the oldest
/// versions, which are removed. `before` is the text that was in force; it is the
/// first version where there is no history yet.
pub(crate) fn remember<'a>(
    kept: impl Iterator<Item = &'a PolicyVersion>,
    before: Option<String>,
    mut new: PolicyVersion,
) -> (i64, Vec<Change>) {
    let mut versions: Vec<PolicyVersion> = kept.cloned().collect();
    let mut changes = Vec::new();
    if versions.is_empty() && before.is_some() {
        let first = PolicyVersion {
            version: 1,
            at: None,
            by: "unknown".to_owned(),
            file: "policy".to_owned(),
            text: before,
        };
        versions.push(first.clone());
        changes.push(Change::PolicyVersion(first));
    }
    new.version = versions.last().map_or(1, |last| last.version + 1);
    let number = new.version;
    versions.push(new.clone());
    changes.push(Change::PolicyVersion(new));
    let bytes = |version: &PolicyVersion| version.text.as_ref().map_or(0, String::len);
    let mut total: usize = versions.iter().map(bytes).sum();
    let mut left = versions.len();
    for oldest in &versions {
        if left <= 1 || (left <= KEPT_VERSIONS && total <= KEPT_BYTES) {
            break;
        }
        total -= bytes(oldest);
        left -= 1;
        changes.push(Change::PolicyVersionGone(oldest.version));
    }
    (number, changes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn version(version: i64, text: &str) -> PolicyVersion {
        PolicyVersion {
            version,
            at: None,
            by: "ann".to_owned(),
            file: "policy".to_owned(),
            text: Some(text.to_owned()),
        }
    }

    #[test]
    fn policy_from_before_the_history_is_its_first_version() {
        let (number, changes) = remember([].iter(), Some("old".to_owned()), version(0, "new"));
        assert_eq!((number, changes.len()), (2, 2));
        assert!(matches!(&changes[0], Change::PolicyVersion(v) if v.version == 1));
        let (number, changes) = remember([].iter(), None, version(0, "new"));
        assert_eq!((number, changes.len()), (1, 1));
    }

    #[test]
    fn oldest_versions_go_when_there_are_too_many() {
        let kept: Vec<_> = (1..=100).map(|n| version(n, "x")).collect();
        let (number, changes) = remember(kept.iter(), None, version(0, "new"));
        assert_eq!(number, 101);
        assert_eq!(changes[1..], [Change::PolicyVersionGone(1)]);
        let big = [version(1, &"x".repeat(KEPT_BYTES))];
        let (_, changes) = remember(big.iter(), None, version(0, "new"));
        assert_eq!(changes[1..], [Change::PolicyVersionGone(1)]);
    }

    #[test]
    fn file_in_charge_and_a_newer_version_refuse_administrators() {
        let mut policies = Policies::default();
        assert_eq!(policies.may_be_set(Some(1), Some(1)), Ok(()));
        let newer = policies.may_be_set(Some(1), Some(2));
        assert_eq!(newer, Err(AdminError::PolicyChanged));
        policies.put_file_in_charge("p.hujson");
        let refused = policies.may_be_set(Some(1), Some(1));
        assert_eq!(
            refused,
            Err(AdminError::PolicyFileInCharge("p.hujson".to_owned()))
        );
    }
}
