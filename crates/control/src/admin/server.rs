//! The health of the server, and requests to connected nodes.

use http::Method;
use warren_control_api::endpoints::{
    C2nResponse, GetHealth, HealthInfo, ProviderHealth, RefusalInfo, Reload, ReloadInfo, SendC2n,
};
use warren_control_api::{ApiError, Caller, ErrorCode, Handler, Reply};
use warren_control_core::SharedKey;

use super::Administration;
use crate::c2n;
use crate::coordinator::held_twice;

impl Handler<GetHealth> for Administration {
    async fn handle(&self, _: &Caller, _: GetHealth) -> Reply<HealthInfo> {
        let database = self.coordinator.is_healthy();
        let (waiting, shared) = self.coordinator.inspect(|c| {
            let shared: Vec<SharedKey> = c.shared_keys().cloned().collect();
            (c.pending().len(), shared)
        });
        let upgrades = self.coordinator.swallowed_upgrades().count();
        let providers = self.logins.providers().into_iter();
        let providers = providers.map(|client| {
            let status = client.status();
            ProviderHealth {
                name: client.provider().name.clone(),
                issuer: client.provider().issuer.clone(),
                redirect_uri: client.redirect_uri().to_owned(),
                ready: status.ready,
                problem: status.problem,
            }
        });
        let providers = providers.collect();
        let refusals = self.coordinator.refusals().all().into_iter();
        let refusals = refusals.map(|refusal| RefusalInfo {
            what: refusal.what.name().to_owned(),
            reason: refusal.reason,
            count: refusal.count,
            last: refusal.last,
        });
        let refusals = refusals.collect();
        Ok(self.coordinator.read(|c| HealthInfo {
            status: if database { "pass" } else { "fail" }.to_owned(),
            database,
            server_url: c.config().server_url.clone(),
            base_domain: c.config().base_domain.clone(),
            allow_all: c.allows_everything().is_some(),
            allow_all_reason: c.allows_everything(),
            policy_file: c.policy_file().map(|file| file.path.clone()),
            policy_problem: c
                .policy_file()
                .and_then(|file| file.problem.as_ref())
                .map(|(since, why)| format!("since {since:.0}: {why}"))
                .or_else(|| c.policy_fault().map(str::to_owned)),
            users: c.users().count(),
            nodes: c.node_count(),
            online: c.nodes().filter(|node| c.is_online(node.id)).count(),
            waiting,
            swallowed_upgrades: upgrades.requests,
            last_swallowed_upgrade: upgrades.last,
            refusals,
            shared_keys: shared.iter().map(|key| held_twice(c, key)).collect(),
            providers,
            certificate_problem: self.certificate.as_ref().and_then(|files| files.problem()),
            records_problem: self.records.as_ref().and_then(|file| file.problem()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}

impl Handler<SendC2n> for Administration {
    async fn handle(&self, _: &Caller, request: SendC2n) -> Reply<C2nResponse> {
        let method = match request.data {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let body = request.data.unwrap_or_default();
        let payload = c2n::request(&method, &request.path, body.as_bytes())?;
        let (status, body) = self.coordinator.send_c2n(&request.node, payload).await?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(C2nResponse { status, body })
    }
}

impl Handler<Reload> for Administration {
    async fn handle(&self, _: &Caller, _: Reload) -> Reply<ReloadInfo> {
        let reloaded = self.settings.reload().await;
        reloaded.map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))
    }
}
