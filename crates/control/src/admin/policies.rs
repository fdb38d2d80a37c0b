//! The access policy: get, set, test, compare, explain, versions.

use warren_control_api::endpoints::{
    ComparePolicies, ExplainPolicy, GetPolicy, ListPolicyVersions, PolicyProblem, PolicyReport,
    PolicyText, PolicyVersionInfo, SetPolicy, SetPolicyResult, TestPolicy, TestPolicyResult,
    WhichPolicy,
};
use warren_control_api::{ApiError, Caller, Handler, Reply};
use warren_control_core::{AdminError, GivenPolicy, View};
use warren_policy::explain::Question;

use super::Administration;

/// The text of the policy that a request refers to.
fn resolve(state: &View, which: WhichPolicy) -> Result<GivenPolicy, AdminError> {
    match which {
        WhichPolicy::InForce => Ok(state.policy_in_force()),
        WhichPolicy::Given(given) => Ok(given),
        WhichPolicy::Version(number) => {
            let version = state.policy_at(number)?;
            Ok(GivenPolicy {
                file: version.file.clone(),
                text: version.text.clone(),
            })
        }
    }
}

/// Runs `work` on a thread that may block. It compiles policies, which takes long in
/// a large network, and works on copies, so that the coordinator is not locked.
async fn compute<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, AdminError> + Send + 'static,
) -> Reply<R> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(ApiError::internal)??)
}

impl Handler<GetPolicy> for Administration {
    async fn handle(&self, _: &Caller, request: GetPolicy) -> Reply<PolicyText> {
        let which = request
            .version
            .map_or(WhichPolicy::InForce, WhichPolicy::Version);
        let state = self.coordinator.view();
        let given = resolve(&state, which)?;
        let file = state.policy_file();
        let problem = file.and_then(|file| file.problem.clone());
        Ok(PolicyText {
            policy: given.text,
            file: given.file,
            version: request.version.or(state.policy_version()),
            file_in_charge: file.map(|file| file.path.clone()),
            allow_all_reason: match request.version {
                None => state.allows_everything(),
                Some(_) => None,
            },
            problem: problem.map(|(since, text)| PolicyProblem { since, text }),
        })
    }
}

impl Handler<SetPolicy> for Administration {
    async fn handle(&self, caller: &Caller, request: SetPolicy) -> Reply<SetPolicyResult> {
        let state = self.coordinator.view();
        if let Some(file) = state.policy_file() {
            return Err(AdminError::PolicyFileInCharge(file.path.clone()).into());
        }
        let new = resolve(&state, request.policy)?;
        let allow_all = new.text.is_none();
        let before = state.policy_version();
        // Tests and difference come before anything changes.
        let (old, tailnet) = (state.policy_in_force(), state.tailnet());
        let (tried, diff) =
            compute(move || Ok((tailnet.try_policy(&new)?, tailnet.diff(&old, &new)?))).await?;
        let (tests, allow_all_reason) = (tried.assertions(), tried.allows_everything());
        let version = if request.dry_run {
            None
        } else {
            let (by, base) = (caller.to_string(), request.base.or(before));
            Some(
                self.change(|c, wall| c.take_policy(wall, &by, tried, base))
                    .await?,
            )
        };
        Ok(SetPolicyResult {
            allow_all,
            allow_all_reason,
            dry_run: request.dry_run,
            before,
            version,
            tests,
            diff: diff.json(),
            text: diff.text(),
        })
    }
}

impl Handler<TestPolicy> for Administration {
    async fn handle(&self, _: &Caller, request: TestPolicy) -> Reply<TestPolicyResult> {
        let state = self.coordinator.view();
        let (given, tailnet) = (resolve(&state, request.policy)?, state.tailnet());
        let tried = compute(move || tailnet.try_policy(&given)).await?;
        Ok(TestPolicyResult {
            tests: tried.assertions(),
        })
    }
}

impl Handler<ComparePolicies> for Administration {
    async fn handle(&self, _: &Caller, request: ComparePolicies) -> Reply<PolicyReport> {
        let state = self.coordinator.view();
        let (old, new) = (resolve(&state, request.old)?, resolve(&state, request.new)?);
        let tailnet = state.tailnet();
        let diff = compute(move || tailnet.diff(&old, &new)).await?;
        Ok(PolicyReport {
            report: diff.json(),
            text: diff.text(),
        })
    }
}

impl Handler<ExplainPolicy> for Administration {
    async fn handle(&self, _: &Caller, request: ExplainPolicy) -> Reply<PolicyReport> {
        let (source, destination) = (&request.source, &request.destination);
        let question = Question::parse(source, destination, request.protocol.as_deref())
            .map_err(AdminError::from)?;
        let state = self.coordinator.view();
        let (given, tailnet) = (resolve(&state, request.policy)?, state.tailnet());
        let why = compute(move || tailnet.why(&given, &question)).await?;
        Ok(PolicyReport {
            report: why.json(),
            text: why.text(),
        })
    }
}

impl Handler<ListPolicyVersions> for Administration {
    async fn handle(&self, _: &Caller, _: ListPolicyVersions) -> Reply<Vec<PolicyVersionInfo>> {
        let state = self.coordinator.view();
        let versions = state.policy_versions().map(|version| PolicyVersionInfo {
            version: version.version,
            at: version.at,
            by: version.by.clone(),
            file: version.file.clone(),
            bytes: version.text.as_ref().map(String::len),
            in_force: state.policy_version() == Some(version.version),
        });
        Ok(versions.collect())
    }
}
