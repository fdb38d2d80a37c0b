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
use warren_policy::explain::{Diff, PolicyContext, Question, SyntheticTailnet, Why};
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
    let imagined = SyntheticTailnet::from_policies(&[&before, &after]);
    let offered = BTreeMap::new();
    let scene = PolicyContext {
        policy: &before,
        text: old.text(),
        file: &old.file,
        users: &imagined.users,
        nodes: &imagined.nodes,
        names: &imagined.names,
        offered: &offered,
    };
    let after = PolicyContext {
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
    fn scene<'a>(&'a self, given: &'a GivenPolicy, policy: &'a Policy) -> PolicyContext<'a> {
        PolicyContext {
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

/// A policy that was read, and that keeps its promises for the users and nodes
/// of one moment. Made by [`Tailnet::try_policy`], without keeping anybody
/// waiting; to be taken later.
#[derive(Debug, Clone)]
pub struct TriedPolicy {
    given: GivenPolicy,
    policy: Policy,
    users: Vec<PolicyUser>,
    nodes: Vec<PolicyNode>,
}

impl TriedPolicy {
    /// How many assertions hold.
    #[must_use]
    pub fn assertions(&self) -> usize {
        self.policy.count_tests()
    }
}

impl Tailnet {
    /// Checks a policy and its tests, without using it.
    ///
    /// # Errors
    /// What is wrong with it, or the promises that it breaks.
    pub fn try_policy(&self, given: &GivenPolicy) -> Result<TriedPolicy, AdminError> {
        let policy = given.parse()?;
        tests_hold(given, &policy, &self.users, &self.nodes)?;
        Ok(TriedPolicy {
            given: given.clone(),
            policy,
            users: self.users.clone(),
            nodes: self.nodes.clone(),
        })
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

fn tests_hold(
    given: &GivenPolicy,
    policy: &Policy,
    users: &[PolicyUser],
    nodes: &[PolicyNode],
) -> Result<(), AdminError> {
    let broken = crate::access::broken_tests(policy, users, nodes);
    if broken.is_empty() {
        return Ok(());
    }
    Err(AdminError::Policy(format!(
        "{}: test(s) failed: the policy breaks its own tests\n  {}",
        given.file,
        broken.join("\n  ")
    )))
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
        let tried = self.tailnet().try_policy(&GivenPolicy { file, text })?;
        self.put_tried(tried)?;
        Ok(())
    }

    /// Puts a policy in force. Its tests run again if there are other users or
    /// nodes now.
    fn put_tried(&mut self, tried: TriedPolicy) -> Result<GivenPolicy, AdminError> {
        let TriedPolicy {
            given,
            policy,
            users: users_then,
            nodes: nodes_then,
        } = tried;
        if policy.count_tests() > 0 {
            let (users, nodes) = (users(&self.data), nodes(&self.data));
            if users != users_then || nodes != nodes_then {
                tests_hold(&given, &policy, &users, &nodes)?;
            }
        }
        let access = match &given.text {
            None => Access::allow_all(),
            Some(_) => Access::of(policy),
        };
        self.put_in_force(access, given.text.clone());
        Ok(given)
    }

    /// Takes a policy from an administrator, who looked at `base`: the version
    /// that must still be in force, or `None`, none.
    ///
    /// # Errors
    /// It breaks its own tests meanwhile, another one came first, or a file is
    /// in charge; the policy stays as it was.
    pub fn take_policy(
        &mut self,
        wall: Duration,
        by: &str,
        tried: TriedPolicy,
        base: Option<i64>,
    ) -> Result<i64, AdminError> {
        if base != self.policy_version() {
            return Err(AdminError::PolicyChanged);
        }
        if let Some(file) = &self.policy_file {
            return Err(AdminError::PolicyFileInCharge(file.path.clone()));
        }
        self.take_policy_anyway(wall, by, tried)
    }

    /// Puts a file in charge; from now on only [`Coordinator::take_policy_file`]
    /// changes the policy.
    pub fn put_file_in_charge(&mut self, path: &str) {
        self.policy_file = Some(PolicyFile {
            path: path.to_owned(),
            problem: None,
        });
    }

    /// Whether the file in charge says what is in force already; then nothing
    /// is wrong with it.
    pub fn policy_file_says_the_same(&mut self, text: &str) -> bool {
        let same = self.data.policy.as_deref() == Some(text);
        if same {
            self.policy_file_is(None);
        }
        same
    }

    /// Takes what the file in charge says. A text that is in force already
    /// makes no new version.
    ///
    /// # Errors
    /// It breaks its own tests meanwhile; the policy stays as it was, and the
    /// problem is remembered.
    pub fn take_policy_file(
        &mut self,
        wall: Duration,
        tried: TriedPolicy,
    ) -> Result<bool, AdminError> {
        if self.policy_file.is_none() {
            return Ok(false);
        }
        let text = tried.given.text.as_deref();
        if text.is_some_and(|text| self.policy_file_says_the_same(text)) {
            return Ok(false);
        }
        match self.take_policy_anyway(wall, "the file", tried) {
            Ok(_) => {
                self.policy_file_is(None);
                Ok(true)
            }
            Err(error) => {
                self.policy_file_failed(wall, &error.to_string());
                Err(error)
            }
        }
    }

    /// The file in charge cannot be read, or what it says is no good.
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
        tried: TriedPolicy,
    ) -> Result<i64, AdminError> {
        let before = self.data.policy.clone();
        let given = self.put_tried(tried)?;
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
