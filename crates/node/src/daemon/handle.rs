//! The handle of a running node. Programs reach the node through it: the local
//! interface, requests of the coordination server, and programs that embed a node.
//!
//! A request is a type of [`endpoints`](crate::localapi::endpoints), and
//! [`NodeHandle::call`] carries it out. It becomes work for the engine task, which
//! alone owns the state; the handle waits for the answer and holds nothing else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::oneshot;
use warren_control_types::{DerpMap, DnsConfig, FilterRule, Node, UserProfile};
use warren_keys::Entropy as _;

use super::engine_task::EngineTask;
use super::{Inbox, Message};
use crate::localapi::c2n::Echo;
use crate::localapi::endpoint::{Endpoint, EventStream, Handler};
use crate::localapi::endpoints::{
    BugReport, CheckIpForwarding, CheckPrefs, CheckUdpForwarding, Checked, CheckedPrefs, Debug,
    DebugAction, DeleteProfile, Dial, Dialed, EditPrefs, GetCertDomains, GetCurrentProfile,
    GetDerpMap, GetDnsConfig, GetFileTargets, GetFilter, GetFilterRules, GetMetrics, GetNetcheck,
    GetPrefs, GetProfile, GetProfiles, GetServeConfig, GetServices, GetStatus, GetUserMetrics,
    LogIn, LogOut, NewProfile, PeerById, Ping, ReloadConfig, ReloadedConfig, ResetLogin, Start,
    SuggestExitNode, SuggestedExitNode, SwitchProfile, UserById, WatchBus, WhoIs, Why,
};
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::filter::{FilterReport, WhyAnswer};
use crate::localapi::notify::Notify;
use crate::localapi::prefs::ShownPrefs;
use crate::localapi::types::{LoginProfile, NetcheckReport, PingResult, Status, WhoIsResponse};
use warren_dial::SystemEntropy;

/// Work for the engine task.
pub type Request = dyn FnOnce(&mut EngineTask) + Send;

/// Sends requests to the engine task.
#[derive(Clone)]
pub struct NodeHandle {
    engine: Inbox,
}

impl NodeHandle {
    /// A handle for the task that reads the other end of `engine`.
    pub fn new(engine: Inbox) -> Self {
        Self { engine }
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// [`ApiError`], with its text for the user.
    pub async fn call<E: Endpoint>(&self, request: E) -> Reply<E::Answer>
    where
        Self: Handler<E>,
    {
        self.handle(request).await
    }

    /// The address of a host of the network, by its name.
    pub(super) async fn address_of(&self, name: &str) -> Option<IpAddr> {
        let name = name.to_owned();
        self.now(move |task| Ok(task.address_of(&name)))
            .await
            .ok()?
    }

    /// Lets the task run `work`, which may answer later. The log lines of the work
    /// belong to the request.
    async fn later<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut EngineTask, oneshot::Sender<Reply<T>>) + Send + 'static,
    ) -> Reply<T> {
        let stopping = || ApiError::Unavailable("the daemon is stopping".to_owned());
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let request = Message::Request(Box::new(move |task| {
            span.in_scope(|| work(task, reply));
        }));
        if self.engine.is_closed() {
            return Err(stopping());
        }
        self.engine.send(request);
        answer.await.map_err(|_| stopping())?
    }

    /// Lets the task run `work`, which answers at once.
    pub(super) async fn now<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut EngineTask) -> Reply<T> + Send + 'static,
    ) -> Reply<T> {
        // A caller that has gone does not wait for the answer.
        self.later(move |task, reply| drop(reply.send(work(task))))
            .await
    }
}

/// The answer to a request that needs a netmap, before there is one.
fn no_netmap() -> ApiError {
    ApiError::Unavailable("no netmap".to_owned())
}

/// An answer whose JSON form is a text for the table of endpoints.
fn json_text(text: serde_json::Result<String>) -> Reply<String> {
    text.map_err(|error| ApiError::Failed(format!("the answer has no JSON form: {error}")))
}

// ---- status ----

impl Handler<GetStatus> for NodeHandle {
    async fn handle(&self, request: GetStatus) -> Reply<Status> {
        self.now(move |task| Ok(task.status(request.peers))).await
    }
}

impl Handler<WatchBus> for NodeHandle {
    async fn handle(&self, request: WatchBus) -> Reply<EventStream<Notify>> {
        self.now(move |task| Ok(task.subscribe(request.mask).into()))
            .await
    }
}

impl Handler<WhoIs> for NodeHandle {
    async fn handle(&self, request: WhoIs) -> Reply<WhoIsResponse> {
        self.now(move |task| task.whois(request.target)).await
    }
}

impl Handler<GetDerpMap> for NodeHandle {
    async fn handle(&self, _: GetDerpMap) -> Reply<Option<DerpMap>> {
        self.now(|task| Ok(task.known_netmap().map(|map| map.derp_map.clone())))
            .await
    }
}

impl Handler<GetDnsConfig> for NodeHandle {
    async fn handle(&self, _: GetDnsConfig) -> Reply<DnsConfig> {
        self.now(|task| {
            let netmap = task.known_netmap().ok_or_else(no_netmap)?;
            Ok(netmap.dns_config.clone())
        })
        .await
    }
}

impl Handler<GetServeConfig> for NodeHandle {
    async fn handle(&self, _: GetServeConfig) -> Reply<Value> {
        Ok(Value::Null)
    }
}

impl Handler<GetProfiles> for NodeHandle {
    async fn handle(&self, _: GetProfiles) -> Reply<Vec<LoginProfile>> {
        self.now(|task| Ok(task.profiles())).await
    }
}

impl Handler<GetCurrentProfile> for NodeHandle {
    async fn handle(&self, _: GetCurrentProfile) -> Reply<LoginProfile> {
        self.now(|task| Ok(task.current_profile())).await
    }
}

impl Handler<GetProfile> for NodeHandle {
    async fn handle(&self, request: GetProfile) -> Reply<LoginProfile> {
        self.now(move |task| task.profile(&request.id)).await
    }
}

impl Handler<NewProfile> for NodeHandle {
    async fn handle(&self, _: NewProfile) -> Reply<()> {
        self.now(EngineTask::new_profile).await
    }
}

impl Handler<SwitchProfile> for NodeHandle {
    async fn handle(&self, request: SwitchProfile) -> Reply<()> {
        self.now(move |task| task.switch_profile(&request.id)).await
    }
}

impl Handler<DeleteProfile> for NodeHandle {
    async fn handle(&self, request: DeleteProfile) -> Reply<()> {
        self.now(move |task| task.delete_profile(&request.id)).await
    }
}

// ---- parts of the netmap, and what this machine can do ----

impl Handler<PeerById> for NodeHandle {
    async fn handle(&self, request: PeerById) -> Reply<Node> {
        self.now(move |task| task.peer_by_id(request.id)).await
    }
}

impl Handler<UserById> for NodeHandle {
    async fn handle(&self, request: UserById) -> Reply<UserProfile> {
        self.now(move |task| task.user_by_id(request.id)).await
    }
}

impl Handler<GetServices> for NodeHandle {
    async fn handle(&self, _: GetServices) -> Reply<BTreeMap<String, Value>> {
        self.now(|task| {
            task.known_netmap()
                .map(|_| BTreeMap::new())
                .ok_or_else(no_netmap)
        })
        .await
    }
}

impl Handler<GetFileTargets> for NodeHandle {
    async fn handle(&self, _: GetFileTargets) -> Reply<Vec<Value>> {
        let not_connected = || ApiError::Failed("not connected to the tailnet".to_owned());
        self.now(move |task| {
            task.known_netmap()
                .map(|_| Vec::new())
                .ok_or_else(not_connected)
        })
        .await
    }
}

impl Handler<GetCertDomains> for NodeHandle {
    async fn handle(&self, _: GetCertDomains) -> Reply<Option<Vec<String>>> {
        self.now(|task| {
            let netmap = task.known_netmap();
            let mut domains = netmap.map(|netmap| netmap.dns_config.cert_domains.clone());
            if let Some(domains) = &mut domains {
                domains.sort();
            }
            Ok(domains.filter(|domains| !domains.is_empty()))
        })
        .await
    }
}

impl Handler<GetFilterRules> for NodeHandle {
    async fn handle(&self, _: GetFilterRules) -> Reply<Vec<FilterRule>> {
        self.now(|task| {
            let netmap = task
                .known_netmap()
                .ok_or_else(|| ApiError::NotFound("no netmap".to_owned()))?;
            Ok(netmap.filters.values().flatten().cloned().collect())
        })
        .await
    }
}

impl Handler<CheckIpForwarding> for NodeHandle {
    async fn handle(&self, _: CheckIpForwarding) -> Reply<Checked> {
        let warning = self.now(|task| Ok(task.forwarding_problem())).await?;
        Ok(Checked { warning })
    }
}

impl Handler<CheckUdpForwarding> for NodeHandle {
    async fn handle(&self, _: CheckUdpForwarding) -> Reply<Checked> {
        Ok(Checked::default())
    }
}

impl Handler<SuggestExitNode> for NodeHandle {
    async fn handle(&self, _: SuggestExitNode) -> Reply<SuggestedExitNode> {
        Ok(SuggestedExitNode::default())
    }
}

impl Handler<Dial> for NodeHandle {
    async fn handle(&self, request: Dial) -> Reply<Dialed> {
        let Dial { host, port } = request;
        let programs = self.now(|task| Ok(task.programs())).await?;
        let programs = programs.ok_or_else(|| {
            ApiError::Unavailable("no connections can be made through this node".to_owned())
        })?;
        programs.dial_for_program(&host, port).await
    }
}

// ---- preferences ----

impl Handler<GetPrefs> for NodeHandle {
    async fn handle(&self, _: GetPrefs) -> Reply<ShownPrefs> {
        self.now(|task| Ok(task.prefs())).await
    }
}

impl Handler<EditPrefs> for NodeHandle {
    async fn handle(&self, request: EditPrefs) -> Reply<ShownPrefs> {
        self.now(|task| {
            task.check_unlocked()?;
            let change = request.prepare(&task.prefs().prefs, &task.status(true))?;
            task.edit_prefs(&change)
        })
        .await
    }
}

impl Handler<CheckPrefs> for NodeHandle {
    async fn handle(&self, request: CheckPrefs) -> Reply<CheckedPrefs> {
        self.now(|task| Ok(request.check(&task.status(true)))).await
    }
}

impl Handler<ReloadConfig> for NodeHandle {
    async fn handle(&self, _: ReloadConfig) -> Reply<ReloadedConfig> {
        let reloaded = self.now(EngineTask::reload_config).await;
        Ok(match reloaded {
            Ok(reloaded) => ReloadedConfig {
                reloaded,
                error: String::new(),
            },
            Err(error) => ReloadedConfig {
                reloaded: false,
                error: error.to_string(),
            },
        })
    }
}

// ---- login ----

impl Handler<Start> for NodeHandle {
    async fn handle(&self, request: Start) -> Reply<()> {
        self.now(|task| {
            if request.options.update_prefs.is_some() {
                task.check_unlocked()?;
            }
            let options = request.prepare(&task.status(true))?;
            task.start(options)
        })
        .await
    }
}

impl Handler<LogIn> for NodeHandle {
    async fn handle(&self, _: LogIn) -> Reply<()> {
        self.now(EngineTask::login_interactive).await
    }
}

impl Handler<LogOut> for NodeHandle {
    async fn handle(&self, request: LogOut) -> Reply<()> {
        self.later(move |task, reply| task.logout(&request.reason, reply))
            .await
    }
}

impl Handler<ResetLogin> for NodeHandle {
    async fn handle(&self, _: ResetLogin) -> Reply<()> {
        self.now(EngineTask::reset_auth).await
    }
}

// ---- diagnostics ----

impl Handler<Ping> for NodeHandle {
    async fn handle(&self, request: Ping) -> Reply<PingResult> {
        let Ping { ip, kind, size } = request;
        self.later(move |task, reply| task.ping(ip.get(), kind, size, reply))
            .await
    }
}

impl Handler<GetNetcheck> for NodeHandle {
    async fn handle(&self, _: GetNetcheck) -> Reply<NetcheckReport> {
        self.later(|task, reply| task.netcheck(reply)).await
    }
}

impl Handler<GetUserMetrics> for NodeHandle {
    async fn handle(&self, _: GetUserMetrics) -> Reply<String> {
        self.call(GetMetrics).await
    }
}

impl Handler<GetMetrics> for NodeHandle {
    async fn handle(&self, _: GetMetrics) -> Reply<String> {
        let metrics = self.now(|task| Ok(task.metrics())).await?;
        Ok(metrics.render())
    }
}

impl Handler<BugReport> for NodeHandle {
    async fn handle(&self, request: BugReport) -> Reply<String> {
        let mut random = [0; 8];
        SystemEntropy.fill(&mut random);
        let now = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S");
        let random = data_encoding::HEXLOWER.encode(&random);
        let marker = format!("BUG-warren-{now}Z-{random}");
        tracing::info!(marker, note = request.note, "bug report");
        Ok(marker)
    }
}

impl Handler<Debug> for NodeHandle {
    async fn handle(&self, request: Debug) -> Reply<String> {
        self.now(move |task| {
            match request.action {
                DebugAction::Restun => task.restun(),
                DebugAction::Rebind => task.rebind()?,
                DebugAction::CurrentNetmap => {
                    return json_text(serde_json::to_string(&task.shown_netmap()?));
                }
                DebugAction::StateFolder => {
                    return json_text(serde_json::to_string(&task.state_folder()));
                }
            }
            Ok("done\n".to_owned())
        })
        .await
    }
}

impl Handler<GetFilter> for NodeHandle {
    async fn handle(&self, _: GetFilter) -> Reply<FilterReport> {
        self.now(|task| Ok(task.filter_report())).await
    }
}

impl Handler<Why> for NodeHandle {
    async fn handle(&self, request: Why) -> Reply<WhyAnswer> {
        self.now(move |task| Ok(task.why(request.question))).await
    }
}

// ---- requests of the coordination server ----

impl Handler<Echo> for NodeHandle {
    async fn handle(&self, request: Echo) -> Reply<Bytes> {
        Ok(request.body)
    }
}
