//! Taking a policy that was tried.

use std::time::Duration;

use warren_control_types::NodeId;

use super::Coordinator;
use crate::clock::timestamp;
use crate::error::AdminError;
use crate::policies::remember;
use crate::records::PolicyVersion;
use crate::tailnet::{GivenPolicy, Tailnet, TriedPolicy};

impl Coordinator {
    /// The users and nodes of this moment, for trying and explaining policies.
    #[must_use]
    pub fn tailnet(&self) -> Tailnet {
        self.view.tailnet()
    }

    /// Sets the policy without a check of the caller and without a history, for
    /// programs that embed the coordinator. `None` is allow-all.
    ///
    /// # Errors
    /// The text is wrong, or its tests fail; the policy stays as it was.
    pub fn set_policy(&mut self, text: Option<String>) -> Result<(), AdminError> {
        let file = "policy".to_owned();
        let tried = self.tailnet().try_policy(&GivenPolicy { file, text })?;
        self.put_in_force(tried)?;
        Ok(())
    }

    /// Puts a policy in force and approves the routes that it approves.
    fn put_in_force(&mut self, tried: TriedPolicy) -> Result<GivenPolicy, AdminError> {
        let (given, policy) = tried.confirm(&self.view.directory)?;
        self.commit_policy(policy, given.text.clone());
        let nodes: Vec<NodeId> = self.view.nodes().map(|node| node.id).collect();
        for node in nodes {
            self.approve_by_policy(node);
        }
        Ok(given)
    }

    /// Takes a policy from an administrator, who looked at `base`: the version
    /// that must still be in force, or `None`, none.
    ///
    /// # Errors
    /// Its tests fail meanwhile, another policy came first, or a file is in
    /// charge; the policy stays as it was.
    pub fn take_policy(
        &mut self,
        wall: Duration,
        by: &str,
        tried: TriedPolicy,
        base: Option<i64>,
    ) -> Result<i64, AdminError> {
        let present = self.view.policy_version();
        self.view.policies.may_be_set(base, present)?;
        self.take_tried(wall, by, tried)
    }

    /// Puts a file in charge; from now on only [`Coordinator::take_policy_file`]
    /// changes the policy.
    pub fn put_file_in_charge(&mut self, path: &str) {
        self.policies_mut().put_file_in_charge(path);
    }

    /// Whether the file in charge says what is in force already; then there is
    /// no problem with it.
    pub fn policy_file_says_the_same(&mut self, text: &str) -> bool {
        let same = self.view.directory.policy() == Some(text);
        if same {
            self.policies_mut().set_problem(None);
        }
        same
    }

    /// Takes the policy of the file in charge. A text that is in force already
    /// makes no new version.
    ///
    /// # Errors
    /// Its tests fail meanwhile; the policy stays as it was, and the problem is
    /// remembered.
    pub fn take_policy_file(
        &mut self,
        wall: Duration,
        tried: TriedPolicy,
    ) -> Result<bool, AdminError> {
        if self.view.policy_file().is_none() {
            return Ok(false);
        }
        let text = tried.text();
        if text.is_some_and(|text| self.policy_file_says_the_same(text)) {
            return Ok(false);
        }
        match self.take_tried(wall, "the file", tried) {
            Ok(_) => {
                self.policies_mut().set_problem(None);
                Ok(true)
            }
            Err(error) => {
                self.policy_file_failed(wall, &error.to_string());
                Err(error)
            }
        }
    }

    /// The file in charge cannot be read, or its policy is wrong.
    pub fn policy_file_failed(&mut self, wall: Duration, why: &str) {
        let problem = (timestamp(wall), why.to_owned());
        self.policies_mut().set_problem(Some(problem));
    }

    fn take_tried(
        &mut self,
        wall: Duration,
        by: &str,
        tried: TriedPolicy,
    ) -> Result<i64, AdminError> {
        let before = self.view.directory.policy().map(str::to_owned);
        let given = self.put_in_force(tried)?;
        let new = PolicyVersion {
            version: 0,
            at: Some(timestamp(wall)),
            by: by.to_owned(),
            file: given.file,
            text: given.text,
        };
        let (version, changes) = remember(self.view.policy_versions(), before, new);
        for change in changes {
            self.commit(change, true);
        }
        Ok(version)
    }

    fn policies_mut(&mut self) -> &mut crate::policies::Policies {
        &mut std::sync::Arc::make_mut(&mut self.view).policies
    }
}
