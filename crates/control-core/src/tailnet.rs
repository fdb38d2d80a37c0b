//! Policies that are tried and explained on the users and nodes of one moment.
//!
//! A policy is taken as a whole or not at all: it has to parse, and its own
//! tests have to pass for the users and nodes of the moment.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use warren_control_types::NodeId;
use warren_policy::explain::{Diff, PolicyContext, Question, SyntheticTailnet, Why};
use warren_policy::{Context, Policy, PolicyNode, PolicyUser};

use crate::access::{NO_POLICY, nodes, users};
use crate::config::is_in_zone;
use crate::directory::Directory;
use crate::error::AdminError;
use crate::routes::advertised;

/// A policy as an administrator hands it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenPolicy {
    /// The name of its file in messages.
    pub file: String,
    /// Its text. `None`: no policy, every node may reach every node. A request
    /// has to say so: one without this member is refused.
    #[serde(deserialize_with = "present")]
    pub text: Option<String>,
}

/// Reads a member that may be null but must be there, because its absence would
/// allow more than any value.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

impl GivenPolicy {
    /// Parses it, without knowledge of the tailnet.
    ///
    /// # Errors
    /// All errors in the text, with their places.
    pub fn parse(&self) -> Result<Policy, AdminError> {
        self.parse_in(&Context::default())
    }

    fn parse_in(&self, context: &Context) -> Result<Policy, AdminError> {
        match &self.text {
            None => Ok(Policy::allow_all()),
            Some(text) => {
                crate::access::read(&self.file, text, context).map_err(AdminError::Policy)
            }
        }
    }

    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

/// The differences in what two policies allow, as far as the files alone can
/// say, without knowledge of users and nodes.
///
/// # Errors
/// One of them cannot be parsed.
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
    zone: String,
}

impl Tailnet {
    pub(crate) fn of(directory: &Directory, zone: &str) -> Self {
        let records = || directory.nodes();
        Self {
            users: users(directory),
            nodes: nodes(directory),
            names: records().map(|node| (node.id, node.name.clone())).collect(),
            offered: records()
                .map(|node| (node.id, advertised(node).into_iter().collect()))
                .collect(),
            zone: zone.to_owned(),
        }
    }

    /// The facts that a new policy must agree with: the login domains are those
    /// of the users. A policy that is in force is not checked again, so that it
    /// stays valid without the last user of a domain.
    fn context(&self) -> Context {
        let logins = self.users.iter().flat_map(|user| {
            let aliases = user.aliases.iter();
            std::iter::once(&user.login).chain(aliases)
        });
        let domains: BTreeSet<String> = logins
            .filter_map(|login| login.rsplit_once('@'))
            .map(|(_, domain)| domain.to_ascii_lowercase())
            .filter(|domain| !domain.is_empty())
            .collect();
        Context {
            domains: Some(domains),
        }
    }

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

/// A policy that was parsed, and whose tests pass for the users and nodes
/// of one moment. Made by [`Tailnet::try_policy`] without the coordinator; to be
/// taken later.
#[derive(Debug, Clone)]
pub struct TriedPolicy {
    given: GivenPolicy,
    policy: Policy,
    users: Vec<PolicyUser>,
    nodes: Vec<PolicyNode>,
}

impl TriedPolicy {
    /// The reason why every node may reach every node, if the policy allows that.
    #[must_use]
    pub fn allows_everything(&self) -> Option<String> {
        match self.given.text {
            None => Some(NO_POLICY.to_owned()),
            Some(_) => self.policy.allows_everything().map(|why| why.to_string()),
        }
    }

    /// How many assertions hold.
    #[must_use]
    pub fn assertions(&self) -> usize {
        self.policy.count_tests()
    }

    /// Runs the tests again if there are other users or nodes than when the
    /// policy was tried; then takes it apart.
    pub(crate) fn confirm(
        self,
        directory: &Directory,
    ) -> Result<(GivenPolicy, Policy), AdminError> {
        if self.policy.count_tests() > 0 {
            let (users, nodes) = (users(directory), nodes(directory));
            if users != self.users || nodes != self.nodes {
                tests_hold(&self.given, &self.policy, &users, &nodes)?;
            }
        }
        Ok((self.given, self.policy))
    }

    pub(crate) fn text(&self) -> Option<&str> {
        self.given.text.as_deref()
    }
}

impl Tailnet {
    /// Checks a policy and its tests, without using it.
    ///
    /// # Errors
    /// The errors in its text, or the tests that fail.
    pub fn try_policy(&self, given: &GivenPolicy) -> Result<TriedPolicy, AdminError> {
        let policy = given.parse_in(&self.context())?;
        relays_resolve(given, &policy, &self.zone)?;
        tests_hold(given, &policy, &self.users, &self.nodes)?;
        Ok(TriedPolicy {
            given: given.clone(),
            policy,
            users: self.users.clone(),
            nodes: self.nodes.clone(),
        })
    }

    /// The access that a new policy grants and the old one does not, and the
    /// reverse.
    ///
    /// # Errors
    /// One of them cannot be parsed.
    pub fn diff(&self, old: &GivenPolicy, new: &GivenPolicy) -> Result<Diff, AdminError> {
        let (before, after) = (old.parse()?, new.parse()?);
        let scene = self.scene(old, &before);
        Ok(scene.diff(&self.scene(new, &after)))
    }

    /// Why a machine reaches another one or not, under this policy.
    ///
    /// # Errors
    /// The policy cannot be parsed, or the question names no node.
    pub fn why(&self, given: &GivenPolicy, question: &Question) -> Result<Why, AdminError> {
        let policy = given.parse()?;
        Ok(self.scene(given, &policy).why(question)?)
    }
}

/// Nodes are the authority for the zone of their own names, and hold any other name in
/// it for one that does not exist.
fn relays_resolve(given: &GivenPolicy, policy: &Policy, zone: &str) -> Result<(), AdminError> {
    let regions = policy.relay_regions().regions.values().flatten();
    for relay in regions.flat_map(|region| &region.nodes) {
        if is_in_zone(&relay.host_name, zone) {
            return Err(AdminError::Policy(format!(
                "{}: derpMap: relay {:?} is named {:?}, which lies in the zone {zone} of the \
                 nodes' names, so nodes could not resolve it; give the relay another name",
                given.file, relay.name, relay.host_name
            )));
        }
    }
    Ok(())
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
