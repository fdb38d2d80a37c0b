//! The access policy: its text, versions, tests, differences and explanations.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_control_core::GivenPolicy;

/// The policy that a request refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhichPolicy {
    /// The policy in force.
    InForce,
    /// A version of the history.
    Version(i64),
    /// A policy that comes with the request.
    Given(GivenPolicy),
}

/// Reads the text of a policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetPolicy {
    /// The version to read; the policy in force if left out.
    pub version: Option<i64>,
}

/// Sets the policy, if its tests hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The new policy.
    pub policy: WhichPolicy,
    /// Whether only the effect is reported and nothing is changed.
    pub dry_run: bool,
    /// The version that must still be in force; `null` for the present one.
    pub base: Option<i64>,
}

/// Runs the tests of a policy against the users and nodes of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestPolicy {
    /// The policy with the tests.
    pub policy: WhichPolicy,
}

/// Compares the access that two policies give.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparePolicies {
    /// The policy to start from.
    pub old: WhichPolicy,
    /// The policy to compare it with.
    pub new: WhichPolicy,
}

/// Explains why a machine reaches another, or which change would allow it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainPolicy {
    /// The policy to explain.
    pub policy: WhichPolicy,
    /// A machine, address, user, group, tag or host.
    pub source: String,
    /// The same with a port.
    pub destination: String,
    /// The protocol; TCP if left out.
    pub protocol: Option<String>,
}

/// Lists the versions of the policy, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListPolicyVersions {}

/// The text of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// The text; `null` for no policy, where every node may reach every node.
    pub policy: Option<String>,
    /// The name of its file.
    pub file: String,
    /// The version that was asked for, or else the version in force.
    pub version: Option<i64>,
    /// The file that is in charge of the policy, if one is.
    pub file_in_charge: Option<String>,
    /// The reason why every node may reach every node, if the policy in force
    /// allows that and is the one that was asked for.
    pub allow_all_reason: Option<String>,
    /// The reason why the content of that file is not in force.
    pub problem: Option<PolicyProblem>,
}

/// The reason why the content of the file in charge is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// The time since which it is so.
    pub since: Timestamp,
    /// The errors in the file.
    pub text: String,
}

/// The effect of setting a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetPolicyResult {
    /// Whether the new policy is none, so that every node may reach every node.
    pub allow_all: bool,
    /// The reason why every node may reach every node under the new policy, if
    /// that is so.
    pub allow_all_reason: Option<String>,
    /// Whether nothing was changed because that was asked for.
    pub dry_run: bool,
    /// The version that was in force before.
    pub before: Option<i64>,
    /// The version that is in force now; `null` for a dry run.
    pub version: Option<i64>,
    /// The number of assertions in its tests, all of which hold.
    pub tests: usize,
    /// The access that was added and removed.
    pub diff: Value,
    /// The same as text for people.
    pub text: String,
}

/// The result of tests that hold. Tests that fail are an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPolicyResult {
    /// The number of assertions.
    pub tests: usize,
}

/// A comparison or an explanation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// The report for programs.
    pub report: Value,
    /// The same as text for people.
    pub text: String,
}

/// A version of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersionInfo {
    /// The number of the version.
    pub version: i64,
    /// The time at which it came into force; `null` if it is older than the history.
    pub at: Option<Timestamp>,
    /// The administrator that set it.
    pub by: String,
    /// The name of its file.
    pub file: String,
    /// The length of its text in bytes; `null` for no policy, where every node may
    /// reach every node.
    pub bytes: Option<usize>,
    /// Whether it is in force.
    pub in_force: bool,
}
