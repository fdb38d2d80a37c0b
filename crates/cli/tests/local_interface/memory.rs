//! A node that is a few variables.

use std::net::IpAddr;
use std::sync::Mutex;

use tokio::sync::mpsc;
use warren_control_types::{DerpMap, DnsConfig, Node, UserProfile};
use warren_keys::NodePublic;
use warren_local_api::endpoint::{EventStream, Handler};
use warren_local_api::endpoints::*;
use warren_local_api::error::{ApiError, Reply};
use warren_local_api::filter::{FilterReport, WhyAnswer};
use warren_local_api::notify::{Notify, NotifyMask, Snapshot, State};
use warren_local_api::prefs::{ShownPrefs, changed_names};
use warren_local_api::types::{
    LoginProfile, NetcheckReport, PeerStatus, PingResult, PingType, Status, WhoIsResponse,
    WhoIsTarget,
};
use warren_node_types::Prefs;

/// The auth key that the node accepts.
pub const KEY: &str = "tskey-auth-good";

/// The state of the node.
#[derive(Default)]
pub struct Inner {
    pub state: State,
    pub prefs: Prefs,
    pub key: u8,
    pub auth_url: String,
    pub listeners: Vec<(NotifyMask, mpsc::Sender<Notify>)>,
    pub log: Vec<String>,
    pub health: Vec<String>,
}

/// The node.
#[derive(Default)]
pub struct Memory(pub Mutex<Inner>);

impl Inner {
    fn notify(&mut self, notify: Notify) {
        self.listeners
            .retain(|(mask, listener)| match notify.clone().for_mask(*mask) {
                Some(notify) => listener.try_send(notify).is_ok(),
                None => true,
            });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.notify(Notify {
            state: Some(state),
            ..Notify::new()
        });
    }

    fn join(&mut self) {
        self.key += 1;
        self.auth_url.clear();
        self.enter(State::Starting);
        self.enter(State::Running);
    }

    fn status(&self, peers: bool) -> Status {
        let mut status = Status {
            version: "0.0.0-test".into(),
            backend_state: self.state.to_string(),
            have_node_key: self.key != 0,
            auth_url: self.auth_url.clone(),
            health: self.health.clone(),
            magic_dns_suffix: "net.example".into(),
            ..Status::default()
        };
        if self.key != 0 {
            status.tailscale_ips = vec![ip("100.64.0.1"), ip("fd7a:115c:a1e0::1")];
            status.self_status = Some(PeerStatus {
                public_key: NodePublic::from_bytes([self.key; 32]),
                dns_name: "laptop.net.example.".into(),
                tailscale_ips: status.tailscale_ips.clone(),
                online: true,
                os: "linux".into(),
                ..PeerStatus::default()
            });
        }
        if peers && self.key != 0 {
            let key = NodePublic::from_bytes([200; 32]);
            let db = PeerStatus {
                public_key: key,
                id: "nDB".into(),
                exit_node_option: true,
                dns_name: "db.net.example.".into(),
                tailscale_ips: vec![ip("100.64.0.2")],
                online: true,
                os: "linux".into(),
                ..PeerStatus::default()
            };
            status.peer.insert(key, db);
        }
        status
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Memory {
    /// The requests that changed something.
    pub fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }
}

/// A pending login succeeds as soon as a status has shown its address.
impl Handler<GetStatus> for Memory {
    async fn handle(&self, request: GetStatus) -> Reply<Status> {
        let mut inner = self.0.lock().unwrap();
        let status = inner.status(request.peers);
        if !inner.auth_url.is_empty() {
            inner.join();
        }
        Ok(status)
    }
}

impl Handler<WatchBus> for Memory {
    async fn handle(&self, request: WatchBus) -> Reply<EventStream<Notify>> {
        let mask = request.mask;
        let mut inner = self.0.lock().unwrap();
        let (sender, receiver) = mpsc::channel(64);
        let snapshot = Snapshot {
            session_id: format!("s{}", inner.listeners.len()),
            state: inner.state,
            prefs: inner.prefs.clone().into(),
            ..Snapshot::default()
        };
        if let Some(first) = Notify::initial(mask, snapshot) {
            sender.try_send(first).unwrap();
        }
        inner.listeners.push((mask, sender));
        Ok(receiver.into())
    }
}

impl Handler<WhoIs> for Memory {
    async fn handle(&self, request: WhoIs) -> Reply<WhoIsResponse> {
        match request.target {
            WhoIsTarget::Ip(found) if found == ip("100.64.0.2") => Ok(WhoIsResponse {
                node: Node {
                    name: "db.net.example.".into(),
                    ..Node::default()
                },
                user_profile: UserProfile {
                    login_name: "ann@example.com".into(),
                    ..UserProfile::default()
                },
                cap_map: Default::default(),
            }),
            other => Err(ApiError::NotFound(format!("no match for {other:?}"))),
        }
    }
}

impl Handler<GetDerpMap> for Memory {
    async fn handle(&self, _: GetDerpMap) -> Reply<DerpMap> {
        Ok(DerpMap::default())
    }
}

impl Handler<GetDnsConfig> for Memory {
    async fn handle(&self, _: GetDnsConfig) -> Reply<DnsConfig> {
        Err(ApiError::Unavailable("no netmap yet".into()))
    }
}

impl Handler<GetServeConfig> for Memory {
    async fn handle(&self, _: GetServeConfig) -> Reply<serde_json::Value> {
        Ok(serde_json::json!({}))
    }
}

impl Handler<GetProfiles> for Memory {
    async fn handle(&self, _: GetProfiles) -> Reply<Vec<LoginProfile>> {
        Ok(vec![self.handle(GetCurrentProfile).await?])
    }
}

impl Handler<GetCurrentProfile> for Memory {
    async fn handle(&self, _: GetCurrentProfile) -> Reply<LoginProfile> {
        Ok(LoginProfile {
            id: "ab12".into(),
            ..LoginProfile::default()
        })
    }
}

impl Handler<GetPrefs> for Memory {
    async fn handle(&self, _: GetPrefs) -> Reply<ShownPrefs> {
        Ok(self.0.lock().unwrap().prefs.clone().into())
    }
}

impl Handler<EditPrefs> for Memory {
    async fn handle(&self, request: EditPrefs) -> Reply<ShownPrefs> {
        let mut inner = self.0.lock().unwrap();
        let change = request.prepare(&inner.prefs, &inner.status(true))?;
        inner
            .log
            .push(format!("edit {}", changed_names(&change).join(" ")));
        change.apply_to(&mut inner.prefs);
        match change.want_running {
            Some(true) => inner.enter(State::Running),
            Some(false) => inner.enter(State::Stopped),
            None => {}
        }
        Ok(inner.prefs.clone().into())
    }
}

impl Handler<CheckPrefs> for Memory {
    async fn handle(&self, request: CheckPrefs) -> Reply<CheckedPrefs> {
        Ok(request.check(&self.0.lock().unwrap().status(true)))
    }
}

impl Handler<Start> for Memory {
    async fn handle(&self, request: Start) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        let options = request.prepare(&inner.status(true))?;
        inner.log.push(format!("start {options:?}"));
        if let Some(prefs) = options.update_prefs {
            inner.prefs = prefs;
        }
        if options.force_login && options.auth_key.is_empty() {
            inner.auth_url = "http://control.example/register/again".into();
            inner.enter(State::NeedsLogin);
            return Ok(());
        }
        match options.auth_key.as_str() {
            "" if inner.key == 0 => inner.enter(State::NeedsLogin),
            "" => inner.enter(State::Running),
            KEY => inner.join(),
            _ => {
                let text = "the auth key is not known".to_owned();
                inner.enter(State::NeedsLogin);
                inner.notify(Notify {
                    err_message: Some(text),
                    ..Notify::new()
                });
            }
        }
        Ok(())
    }
}

impl Handler<LogIn> for Memory {
    async fn handle(&self, _: LogIn) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push("login".into());
        inner.auth_url = "http://control.example/register/abc".into();
        let url = inner.auth_url.clone();
        inner.notify(Notify {
            browse_to_url: Some(url),
            ..Notify::new()
        });
        Ok(())
    }
}

impl Handler<LogOut> for Memory {
    async fn handle(&self, request: LogOut) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("logout {:?}", request.reason));
        inner.key = 0;
        inner.enter(State::NeedsLogin);
        Ok(())
    }
}

impl Handler<ResetLogin> for Memory {
    async fn handle(&self, _: ResetLogin) -> Reply<()> {
        self.0.lock().unwrap().key = 0;
        Ok(())
    }
}

impl Handler<Ping> for Memory {
    async fn handle(&self, request: Ping) -> Reply<PingResult> {
        let Ping { ip: to, kind, .. } = request;
        if to == ip("100.64.0.99") {
            std::future::pending::<()>().await;
        }
        if to != ip("100.64.0.2") {
            return Err(ApiError::Failed(format!("no matching peer for {to}")));
        }
        let endpoint = if kind == PingType::Disco {
            "192.0.2.7:41641"
        } else {
            ""
        };
        Ok(PingResult {
            ip: to.to_string(),
            node_ip: to.to_string(),
            node_name: "db".into(),
            latency_seconds: 0.008,
            endpoint: endpoint.into(),
            ..PingResult::default()
        })
    }
}

impl Handler<GetNetcheck> for Memory {
    async fn handle(&self, _: GetNetcheck) -> Reply<NetcheckReport> {
        Ok(NetcheckReport {
            udp: true,
            ..NetcheckReport::default()
        })
    }
}

impl Handler<GetUserMetrics> for Memory {
    async fn handle(&self, _: GetUserMetrics) -> Reply<String> {
        Ok(
            "# TYPE tailscaled_home_derp_region_id gauge\ntailscaled_home_derp_region_id 900\n"
                .into(),
        )
    }
}

impl Handler<GetMetrics> for Memory {
    async fn handle(&self, _: GetMetrics) -> Reply<String> {
        self.handle(GetUserMetrics).await
    }
}

impl Handler<BugReport> for Memory {
    async fn handle(&self, _: BugReport) -> Reply<String> {
        Ok("BUG-test".into())
    }
}

impl Handler<Debug> for Memory {
    async fn handle(&self, request: Debug) -> Reply<String> {
        let action = format!("debug {:?}", request.action);
        self.0.lock().unwrap().log.push(action);
        Ok("done\n".into())
    }
}

impl Handler<GetFilter> for Memory {
    async fn handle(&self, _: GetFilter) -> Reply<FilterReport> {
        Err(ApiError::NotFound("there is no packet filter".into()))
    }
}

impl Handler<Why> for Memory {
    async fn handle(&self, _: Why) -> Reply<WhyAnswer> {
        Err(ApiError::NotFound("there is no packet filter".into()))
    }
}
