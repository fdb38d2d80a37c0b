//! SSH sessions that wait for a check. Decisions are not stored, so no write is
//! awaited.

use std::time::Instant;

use warren_control_api::endpoints::{ApproveSshCheck, DenySshCheck, ListSshChecks, SshCheckInfo};
use warren_control_api::{Caller, Handler, Reply};
use warren_control_core::{AdminError, Coordinator, NodeRecord, PendingId, SshCheckView, View};

use super::Administration;

pub(crate) fn ssh_check_info(state: &View, check: &SshCheckView) -> SshCheckInfo {
    let source = state.node(check.source);
    let user = source
        .and_then(|node| node.user)
        .and_then(|id| state.user(id));
    let owner = match (source, user) {
        (Some(node), _) if node.is_tagged() => {
            let tags: Vec<_> = node.tags.iter().cloned().collect();
            tags.join(",")
        }
        (_, user) => user.map(|user| user.name.clone()).unwrap_or_default(),
    };
    let name = |node: Option<&NodeRecord>| node.map(|n| n.name.clone()).unwrap_or_default();
    SshCheckInfo {
        id: check.id.0.clone(),
        owner,
        source: name(source),
        destination: name(state.node(check.destination)),
        local_user: check.local_user.clone(),
        since: check.since,
    }
}

/// The sessions that wait for a check, oldest first.
pub(crate) fn waiting_ssh_checks(coordinator: &Coordinator) -> Vec<SshCheckInfo> {
    let checks = coordinator.ssh_checks();
    let state = coordinator.view();
    let infos = checks.iter().map(|check| ssh_check_info(&state, check));
    infos.collect()
}

impl Administration {
    fn decide(
        &self,
        decision: impl FnOnce(&mut Coordinator, Instant) -> Result<SshCheckView, AdminError>,
    ) -> Reply<SshCheckInfo> {
        let (decided, _no_rows) = self.coordinator.change(|coordinator, now, _| {
            let check = decision(coordinator, now)?;
            Ok::<_, AdminError>(ssh_check_info(&coordinator.view(), &check))
        });
        Ok(decided?)
    }
}

impl Handler<ListSshChecks> for Administration {
    async fn handle(&self, _: &Caller, _: ListSshChecks) -> Reply<Vec<SshCheckInfo>> {
        Ok(self.coordinator.inspect(waiting_ssh_checks))
    }
}

impl Handler<ApproveSshCheck> for Administration {
    async fn handle(&self, _: &Caller, request: ApproveSshCheck) -> Reply<SshCheckInfo> {
        self.decide(|c, now| c.approve_ssh_check(now, &PendingId(request.id)))
    }
}

impl Handler<DenySshCheck> for Administration {
    async fn handle(&self, _: &Caller, request: DenySshCheck) -> Reply<SshCheckInfo> {
        self.decide(|c, now| c.deny_ssh_check(now, &PendingId(request.id)))
    }
}
