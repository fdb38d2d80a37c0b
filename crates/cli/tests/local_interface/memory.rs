//! An engine made of a few variables.

use std::net::IpAddr;
use std::sync::Mutex;

use tokio::sync::mpsc;
use warren_control_types::{DerpMap, DnsConfig, Node, UserProfile};
use warren_keys::NodePublic;
use warren_local_api::backend::{Backend, BackendError, Reply};
use warren_local_api::metrics::{Metric, MetricKind};
use warren_local_api::notify::{Notify, NotifyMask, Snapshot, State};
use warren_local_api::prefs::{MaskedPrefs, Options, Prefs};
use warren_local_api::types::{
    LoginProfile, NetcheckReport, PeerStatus, PingResult, PingType, Status, WhoIsResponse,
    WhoIsTarget,
};

/// The good key of this pretended network.
pub const KEY: &str = "tskey-auth-good";

/// What the daemon would know.
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

/// A daemon that is nothing else.
#[derive(Default)]
pub struct Memory(pub Mutex<Inner>);

impl Inner {
    fn tell(&mut self, notify: Notify) {
        self.listeners
            .retain(|(mask, listener)| match notify.clone().for_mask(*mask) {
                Some(notify) => listener.try_send(notify).is_ok(),
                None => true,
            });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.tell(Notify {
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
    /// What was asked of it that changes something.
    pub fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }
}

impl Backend for Memory {
    /// Whoever is to log in does so as soon as somebody has seen the address.
    async fn status(&self, peers: bool) -> Reply<Status> {
        let mut inner = self.0.lock().unwrap();
        let status = inner.status(peers);
        if !inner.auth_url.is_empty() {
            inner.join();
        }
        Ok(status)
    }

    async fn prefs(&self) -> Reply<Prefs> {
        Ok(self.0.lock().unwrap().prefs.clone())
    }

    async fn edit_prefs(&self, change: MaskedPrefs) -> Reply<Prefs> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("edit {}", change.names().join(" ")));
        change.apply_to(&mut inner.prefs);
        match change.want_running {
            Some(true) => inner.enter(State::Running),
            Some(false) => inner.enter(State::Stopped),
            None => {}
        }
        Ok(inner.prefs.clone())
    }

    async fn start(&self, options: Options) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
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
                inner.tell(Notify {
                    err_message: Some(text),
                    ..Notify::new()
                });
            }
        }
        Ok(())
    }

    async fn login_interactive(&self) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push("login".into());
        inner.auth_url = "http://control.example/register/abc".into();
        let url = inner.auth_url.clone();
        inner.tell(Notify {
            browse_to_url: Some(url),
            ..Notify::new()
        });
        Ok(())
    }

    async fn logout(&self, reason: String) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("logout {reason:?}"));
        inner.key = 0;
        inner.enter(State::NeedsLogin);
        Ok(())
    }

    async fn reset_auth(&self) -> Reply<()> {
        self.0.lock().unwrap().key = 0;
        Ok(())
    }

    async fn subscribe(&self, mask: NotifyMask) -> Reply<mpsc::Receiver<Notify>> {
        let mut inner = self.0.lock().unwrap();
        let (sender, receiver) = mpsc::channel(64);
        let snapshot = Snapshot {
            session_id: format!("s{}", inner.listeners.len()),
            state: inner.state,
            prefs: inner.prefs.clone(),
            ..Snapshot::default()
        };
        if let Some(first) = Notify::initial(mask, snapshot) {
            sender.try_send(first).unwrap();
        }
        inner.listeners.push((mask, sender));
        Ok(receiver)
    }

    async fn ping(&self, to: IpAddr, kind: PingType, _size: usize) -> Reply<PingResult> {
        if to == ip("100.64.0.99") {
            std::future::pending::<()>().await;
        }
        if to != ip("100.64.0.2") {
            return Err(BackendError::Failed(format!("no matching peer for {to}")));
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

    async fn whois(&self, target: WhoIsTarget) -> Reply<WhoIsResponse> {
        match target {
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
            other => Err(BackendError::NotFound(format!("no match for {other:?}"))),
        }
    }

    async fn derp_map(&self) -> Reply<DerpMap> {
        Ok(DerpMap::default())
    }

    async fn dns_config(&self) -> Reply<DnsConfig> {
        Err(BackendError::Unavailable("no netmap yet".into()))
    }

    async fn current_profile(&self) -> Reply<LoginProfile> {
        Ok(LoginProfile {
            id: "ab12".into(),
            ..LoginProfile::default()
        })
    }

    async fn netcheck(&self) -> Reply<NetcheckReport> {
        Ok(NetcheckReport {
            udp: true,
            ..NetcheckReport::default()
        })
    }

    async fn metrics(&self) -> Reply<Vec<Metric>> {
        Ok(vec![Metric {
            name: "tailscaled_home_derp_region_id",
            kind: MetricKind::Gauge,
            help: "Home relay.",
            labels: Vec::new(),
            value: 900.0,
        }])
    }

    async fn restun(&self) -> Reply<()> {
        self.0.lock().unwrap().log.push("restun".into());
        Ok(())
    }

    async fn rebind(&self) -> Reply<()> {
        self.0.lock().unwrap().log.push("rebind".into());
        Ok(())
    }
}
