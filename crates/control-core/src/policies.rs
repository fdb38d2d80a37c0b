//! Policies that are looked at, tried, taken, and remembered.
//!
//! A policy is taken as a whole or not at all: it has to read, and to keep the
//! promises it makes about itself for the users and nodes of the moment. Each
//! one that is taken becomes a version in the history, with the moment and the
//! person. Where a file is in charge, nobody else changes the policy; when the
//! file becomes wrong, the last good one stays in force, and what is wrong is
//! remembered for those who ask.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_control_types::NodeId;
use warren_policy::explain::{Diff, Imagined, Question, Scene, Why};
use warren_policy::{Policy, PolicyNode, PolicyUser};

use crate::access::{Access, nodes, users};
use crate::coordinator::{Coordinator, Output, timestamp};
use crate::error::AdminError;
use crate::records::Change;
use crate::routes::advertised;

/// How many versions are kept.
const KEPT_VERSIONS: usize = 100;
/// How many bytes their texts may have together; the newest is kept anyway.
const KEPT_BYTES: usize = 64 << 20;

/// A policy that was in force once, or is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Its number, from 1. Numbers are not used twice.
    pub version: i64,
    /// Since when it was in force. `None`: it is older than the history.
    pub at: Option<Timestamp>,
    /// Who set it.
    pub by: String,
    /// What its file is called.
    pub file: String,
    /// Its text. `None`: no policy, every node may reach every node.
    pub text: Option<String>,
}

/// A policy as somebody hands it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenPolicy {
    /// What its file is called in messages.
    pub file: String,
    /// Its text. `None`: no policy, every node may reach every node.
    pub text: Option<String>,
}

/// The file that is in charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// Its name.
    pub path: String,
    /// Why what it says now is not in force, and since when.
    pub problem: Option<(Timestamp, String)>,
}

impl GivenPolicy {
    /// Reads it.
    ///
    /// # Errors
    /// All that is wrong with the text, with its places.
    pub fn parse(&self) -> Result<Policy, AdminError> {
        match &self.text {
            None => Ok(Policy::allow_all()),
            Some(text) => crate::access::read(&self.file, text).map_err(AdminError::Policy),
        }
    }

    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

/// What two policies allow differently as far as the files alone can say,
/// without knowing which users and nodes there are.
///
/// # Errors
/// One of them does not read.
pub fn diff_of_files(old: &GivenPolicy, new: &GivenPolicy) -> Result<Diff, AdminError> {
    let (before, after) = (old.parse()?, new.parse()?);
    let imagined = Imagined::from_policies(&[&before, &after]);
    let offered = BTreeMap::new();
    let scene = Scene {
        policy: &before,
        text: old.text(),
        file: &old.file,
        users: &imagined.users,
        nodes: &imagined.nodes,
        names: &imagined.names,
        offered: &offered,
    };
    let after = Scene {
        policy: &after,
        text: new.text(),
        file: &new.file,
        ..scene.clone()
    };
    Ok(scene.diff(&after))
}

/// The users and nodes of one moment, for trying and explaining policies.
#[derive(Debug, Clone)]
pub struct Tailnet {
    users: Vec<PolicyUser>,
    nodes: Vec<PolicyNode>,
    names: BTreeMap<NodeId, String>,
    offered: BTreeMap<NodeId, Vec<IpNet>>,
}

impl Tailnet {
    fn scene<'a>(&'a self, given: &'a GivenPolicy, policy: &'a Policy) -> Scene<'a> {
        Scene {
            policy,
            text: given.text(),
            file: &given.file,
            users: &self.users,
            nodes: &self.nodes,
            names: &self.names,
            offered: &self.offered,
        }
    }
}

impl Tailnet {
    /// Checks a policy and its tests, without using it. Returns how many
    /// assertions hold.
    ///
    /// # Errors
    /// What is wrong with it, or the promises that it breaks.
    pub fn try_policy(&self, given: &GivenPolicy) -> Result<usize, AdminError> {
        let policy = given.parse()?;
        self.tests_hold(given, &policy)?;
        Ok(policy.count_tests())
    }

    fn tests_hold(&self, given: &GivenPolicy, policy: &Policy) -> Result<(), AdminError> {
        let broken = crate::access::broken_tests(policy, &self.users, &self.nodes);
        if broken.is_empty() {
            return Ok(());
        }
        Err(AdminError::Policy(format!(
            "{}: test(s) failed: the policy breaks its own tests\n  {}",
            given.file,
            broken.join("\n  ")
        )))
    }

    /// What a new policy would let pass that the old one does not, and the
    /// reverse.
    ///
    /// # Errors
    /// One of them does not read.
    pub fn diff(&self, old: &GivenPolicy, new: &GivenPolicy) -> Result<Diff, AdminError> {
        let (before, after) = (old.parse()?, new.parse()?);
        let scene = self.scene(old, &before);
        Ok(scene.diff(&self.scene(new, &after)))
    }

    /// Why a machine reaches another one or not, under this policy.
    ///
    /// # Errors
    /// The policy does not read, or the question means nobody.
    pub fn why(&self, given: &GivenPolicy, question: &Question) -> Result<Why, AdminError> {
        let policy = given.parse()?;
        Ok(self.scene(given, &policy).why(question)?)
    }
}

impl Coordinator {
    /// What explanations draw on, as it is now. They take their time, and need
    /// nothing else of the coordinator.
    #[must_use]
    pub fn tailnet(&self) -> Tailnet {
        let records = || self.data.nodes.values();
        Tailnet {
            users: users(&self.data),
            nodes: nodes(&self.data),
            names: records().map(|node| (node.id, node.name.clone())).collect(),
            offered: records()
                .map(|node| (node.id, advertised(node).into_iter().collect()))
                .collect(),
        }
    }

    /// The policy in force, as it was handed over.
    #[must_use]
    pub fn policy_in_force(&self) -> GivenPolicy {
        let file = match self.data.policies.values().next_back() {
            Some(version) if version.text == self.data.policy => version.file.clone(),
            Some(_) | None => "policy".to_owned(),
        };
        GivenPolicy {
            file,
            text: self.data.policy.clone(),
        }
    }

    /// The number of the policy in force; `None` before the first.
    #[must_use]
    pub fn policy_version(&self) -> Option<i64> {
        let (number, last) = self.data.policies.last_key_value()?;
        (last.text == self.data.policy).then_some(*number)
    }

    /// All versions that are remembered, oldest first.
    pub fn policy_versions(&self) -> impl Iterator<Item = &PolicyVersion> {
        self.data.policies.values()
    }

    /// A version of the history.
    ///
    /// # Errors
    /// It is not remembered.
    pub fn policy_at(&self, version: i64) -> Result<&PolicyVersion, AdminError> {
        let found = self.data.policies.get(&version);
        found.ok_or(AdminError::NoPolicyVersion(version))
    }

    /// The file in charge, if one is.
    #[must_use]
    pub fn policy_file(&self) -> Option<&PolicyFile> {
        self.policy_file.as_ref()
    }

    /// Sets the policy without asking who may and without a history, for
    /// programs that embed the coordinator. `None` is allow-all.
    ///
    /// # Errors
    /// The text does not hold together; the policy stays as it was.
    pub fn set_policy(&mut self, text: Option<String>) -> Result<(), AdminError> {
        let file = "policy".to_owned();
        self.put_given(&GivenPolicy { file, text })
    }

    fn put_given(&mut self, given: &GivenPolicy) -> Result<(), AdminError> {
        let policy = given.parse()?;
        self.tailnet().tests_hold(given, &policy)?;
        let access = match &given.text {
            None => Access::allow_all(),
            Some(_) => Access::of(policy),
        };
        self.put_in_force(access, given.text.clone());
        Ok(())
    }

    /// Takes a policy from an administrator, who may have looked at `base`, a
    /// version that must still be in force.
    ///
    /// # Errors
    /// It does not read, breaks its own tests, or a file is in charge; the
    /// policy stays as it was.
    pub fn take_policy(
        &mut self,
        wall: Duration,
        by: &str,
        given: GivenPolicy,
        base: Option<i64>,
    ) -> Result<i64, AdminError> {
        if base.is_some() && base != self.policy_version() {
            return Err(AdminError::PolicyChanged);
        }
        if let Some(file) = &self.policy_file {
            return Err(AdminError::PolicyFileInCharge(file.path.clone()));
        }
        self.take_policy_anyway(wall, by, given)
    }

    /// Puts a file in charge; from now on only [`Coordinator::take_policy_file`]
    /// changes the policy.
    pub fn put_file_in_charge(&mut self, path: &str) {
        self.policy_file = Some(PolicyFile {
            path: path.to_owned(),
            problem: None,
        });
    }

    /// Takes what the file in charge says. A text that is in force already
    /// makes no new version.
    ///
    /// # Errors
    /// It does not read or breaks its own tests; the policy stays as it was,
    /// and the problem is remembered.
    pub fn take_policy_file(&mut self, wall: Duration, text: String) -> Result<bool, AdminError> {
        let Some(file) = self.policy_file.as_ref().map(|file| file.path.clone()) else {
            return Ok(false);
        };
        if self.data.policy.as_ref() == Some(&text) {
            self.policy_file_is(None);
            return Ok(false);
        }
        let given = GivenPolicy {
            file,
            text: Some(text),
        };
        match self.take_policy_anyway(wall, "the file", given) {
            Ok(_) => {
                self.policy_file_is(None);
                Ok(true)
            }
            Err(error) => {
                self.policy_file_is(Some((timestamp(wall), error.to_string())));
                Err(error)
            }
        }
    }

    /// The file in charge cannot be read.
    pub fn policy_file_failed(&mut self, wall: Duration, why: &str) {
        self.policy_file_is(Some((timestamp(wall), why.to_owned())));
    }

    fn policy_file_is(&mut self, problem: Option<(Timestamp, String)>) {
        if let Some(file) = &mut self.policy_file {
            file.problem = problem;
        }
    }

    fn take_policy_anyway(
        &mut self,
        wall: Duration,
        by: &str,
        given: GivenPolicy,
    ) -> Result<i64, AdminError> {
        let before = self.data.policy.clone();
        self.put_given(&given)?;
        // One from before there was a history is its first version.
        if self.data.policies.is_empty() && before.is_some() {
            self.remember(PolicyVersion {
                version: 1,
                at: None,
                by: "unknown".to_owned(),
                file: "policy".to_owned(),
                text: before,
            });
        }
        let last = self.data.policies.last_key_value();
        let version = last.map_or(1, |(number, _)| number + 1);
        self.remember(PolicyVersion {
            version,
            at: Some(timestamp(wall)),
            by: by.to_owned(),
            file: given.file,
            text: given.text,
        });
        Ok(version)
    }

    fn remember(&mut self, version: PolicyVersion) {
        self.store_policy_change(Change::PolicyVersion(version));
        let bytes = |version: &PolicyVersion| version.text.as_ref().map_or(0, String::len);
        let mut total: usize = self.data.policies.values().map(bytes).sum();
        while self.data.policies.len() > 1
            && (self.data.policies.len() > KEPT_VERSIONS || total > KEPT_BYTES)
        {
            let Some((number, oldest)) = self.data.policies.first_key_value() else {
                break;
            };
            total = total.saturating_sub(bytes(oldest));
            let gone = Change::PolicyVersionGone(*number);
            self.store_policy_change(gone);
        }
    }

    fn store_policy_change(&mut self, change: Change) {
        self.data.apply(change.clone());
        self.outputs.push_back(Output::Store {
            change,
            durable: true,
        });
    }
}
