//! The administrator's side of policies: get, set, test, diff, why, history.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use warren_control_core::{AdminError, GivenPolicy, Tailnet, View};
use warren_policy::explain::{Diff, Question};

use super::command::Refusal;
use crate::coordinator::CoordinatorHandle;

/// The policy that a command refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhichPolicy {
    /// The policy in force.
    InForce,
    /// A version of the history.
    Version(i64),
    /// A policy that comes with the command.
    Given(GivenPolicy),
}

/// A version of the policy, as `policy history` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// The number of the version.
    pub version: i64,
    /// When it came into force; `None` if it is older than the history.
    pub at: Option<Timestamp>,
    /// The administrator who set it.
    pub by: String,
    /// The name of its file.
    pub file: String,
    /// Bytes of its text; `None` for no policy, where every node may reach every node.
    pub bytes: Option<usize>,
    /// Whether it is in force.
    pub in_force: bool,
}

fn chosen(c: &View, which: &WhichPolicy) -> Result<GivenPolicy, AdminError> {
    match which {
        WhichPolicy::InForce => Ok(c.policy_in_force()),
        WhichPolicy::Given(given) => Ok(given.clone()),
        WhichPolicy::Version(number) => {
            let version = c.policy_at(*number)?;
            Ok(GivenPolicy {
                file: version.file.clone(),
                text: version.text.clone(),
            })
        }
    }
}

pub(super) fn get(
    coordinator: &Arc<CoordinatorHandle>,
    version: Option<i64>,
) -> Result<Value, Refusal> {
    let which = version.map_or(WhichPolicy::InForce, WhichPolicy::Version);
    coordinator.read(|c| {
        let given = chosen(c, &which)?;
        let file = c.policy_file();
        let problem = file.and_then(|file| file.problem.as_ref());
        Ok(json!({
            "policy": given.text,
            "file": given.file,
            "version": version.or(c.policy_version()),
            "file_in_charge": file.map(|file| &file.path),
            "problem": problem.map(|(since, text)| json!({ "since": since, "text": text })),
        }))
    })
}

/// Works on a copy of the users and nodes, without holding the coordinator's lock.
async fn on_copy<R: Send + 'static>(
    coordinator: &Arc<CoordinatorHandle>,
    policies: &[&WhichPolicy],
    work: impl FnOnce(&Tailnet, &[GivenPolicy]) -> Result<R, AdminError> + Send + 'static,
) -> Result<R, Refusal> {
    let (tailnet, given) = coordinator.read(|c| {
        let given: Result<Vec<GivenPolicy>, AdminError> =
            policies.iter().map(|which| chosen(c, which)).collect();
        given.map(|given| (c.tailnet(), given))
    })?;
    let done = tokio::task::spawn_blocking(move || work(&tailnet, &given)).await;
    let done = done.map_err(|error| Refusal(error.to_string()))?;
    Ok(done?)
}

pub(super) async fn set(
    coordinator: &Arc<CoordinatorHandle>,
    caller: &str,
    which: &WhichPolicy,
    dry_run: bool,
    base: Option<i64>,
) -> Result<Value, Refusal> {
    // Tests and difference come before anything changes.
    let (given, before) = coordinator.read(|c| {
        if let Some(file) = c.policy_file() {
            return Err(AdminError::PolicyFileInCharge(file.path.clone()));
        }
        Ok((chosen(c, which)?, c.policy_version()))
    })?;
    let allow_all = given.text.is_none();
    let which = [&WhichPolicy::InForce, &WhichPolicy::Given(given)];
    let (tried, diff) = on_copy(coordinator, &which, |tailnet, policies| {
        let [old, new] = policies else {
            return Ok((None, Diff::default()));
        };
        Ok((Some(tailnet.try_policy(new)?), tailnet.diff(old, new)?))
    })
    .await?;
    let tried = tried.ok_or_else(|| Refusal("no policy to set".to_owned()))?;
    let tests = tried.assertions();
    let version = if dry_run {
        None
    } else {
        let taken = coordinator
            .change_saved(|c, _, wall| c.take_policy(wall, caller, tried, base.or(before)))
            .await
            .map_err(|error| Refusal(error.to_string()))?;
        Some(taken?)
    };
    Ok(json!({
        "ok": true,
        "allow_all": allow_all,
        "dry_run": dry_run,
        "before": before,
        "version": version,
        "tests": tests,
        "diff": diff.json(),
        "text": diff.text(),
    }))
}

pub(super) async fn test(
    coordinator: &Arc<CoordinatorHandle>,
    which: &WhichPolicy,
) -> Result<Value, Refusal> {
    let run = |tailnet: &Tailnet, policies: &[GivenPolicy]| {
        let tried = policies.iter().map(|given| tailnet.try_policy(given));
        tried.map(|tried| Ok(tried?.assertions())).sum()
    };
    let tests: usize = on_copy(coordinator, &[which], run).await?;
    Ok(json!({ "ok": true, "tests": tests }))
}

pub(super) async fn diff(
    coordinator: &Arc<CoordinatorHandle>,
    old: &WhichPolicy,
    new: &WhichPolicy,
) -> Result<Value, Refusal> {
    let diff = on_copy(
        coordinator,
        &[old, new],
        |tailnet, policies| match policies {
            [old, new] => tailnet.diff(old, new),
            _ => Ok(Diff::default()),
        },
    )
    .await?;
    Ok(with_text(diff.json(), diff.text()))
}

pub(super) async fn why(
    coordinator: &Arc<CoordinatorHandle>,
    which: &WhichPolicy,
    source: &str,
    destination: &str,
    protocol: Option<&str>,
) -> Result<Value, Refusal> {
    let question = Question::parse(source, destination, protocol).map_err(AdminError::from)?;
    let answers = on_copy(coordinator, &[which], move |tailnet, policies| {
        policies
            .iter()
            .map(|given| tailnet.why(given, &question))
            .collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let mut answers = answers.into_iter();
    let why = answers
        .next()
        .ok_or_else(|| Refusal("no policy to ask".to_owned()))?;
    Ok(with_text(why.json(), why.text()))
}

pub(super) fn history(coordinator: &Arc<CoordinatorHandle>) -> Result<Value, Refusal> {
    let views: Vec<PolicyView> = coordinator.read(|c| {
        c.policy_versions()
            .map(|version| PolicyView {
                version: version.version,
                at: version.at,
                by: version.by.clone(),
                file: version.file.clone(),
                bytes: version.text.as_ref().map(String::len),
                in_force: c.policy_version() == Some(version.version),
            })
            .collect()
    });
    serde_json::to_value(views).map_err(|error| Refusal(error.to_string()))
}

/// The answer for programs, and beside it the one for people.
pub(crate) fn with_text(mut answer: Value, text: String) -> Value {
    if let Some(members) = answer.as_object_mut() {
        members.insert("text".to_owned(), text.into());
    }
    answer
}
