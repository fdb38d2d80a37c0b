//! The login: starting a session with the coordination server, what it says,
//! and giving the login up again.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use warren_control_types::PingRequest;
use warren_keys::{DiscoSecret, NodeSecret};
use warren_node_core::{Engine, EngineConfig};

use super::EngineTask;
use crate::daemon::control_session::{ControlEvent, ControlSession, SessionConfig, log_out};
use crate::daemon::entropy::SystemEntropy;
use crate::daemon::state::Login;
use crate::localapi::backend::{BackendError, Reply};
use crate::localapi::notify::Empty;
use crate::localapi::prefs::Options;

impl EngineTask {
    /// Starts talking to the server, with what is stored and this key.
    pub(super) fn connect(&mut self, auth_key: Option<String>) {
        let server = match self.state.prefs.control_url.parse() {
            Ok(server) => server,
            Err(error) => {
                self.error = format!(
                    "the address of the coordination server, {:?}, makes no sense: {error}",
                    self.state.prefs.control_url
                );
                self.settle();
                return;
            }
        };
        let (node_key, old_node_key) = match &self.state.login {
            Some(login) => (login.node_key.clone(), login.old_node_key.clone()),
            None => (self.candidate_key.clone(), None),
        };
        let config = SessionConfig {
            server,
            machine_key: self.state.machine_key.clone(),
            node_key,
            old_node_key,
            auth_key,
            ephemeral: false,
        };
        self.error.clear();
        self.trouble = None;
        self.refresh_description();
        self.epoch += 1;
        self.stream_stands = false;
        self.session = Some(ControlSession::start(
            self.epoch,
            config,
            self.dialer.clone(),
            self.description.subscribe(),
            self.inbox.clone(),
        ));
        self.settle();
    }

    pub(super) fn control(&mut self, now: Instant, wall: Duration, event: ControlEvent) {
        match event {
            ControlEvent::AuthUrl(url) => {
                self.auth_url = url.clone();
                self.notify(|notify| notify.browse_to_url = Some(url));
            }
            ControlEvent::Registered {
                node_key,
                old_node_key,
                user_profile,
            } => {
                self.registered(now, node_key, old_node_key, user_profile);
            }
            ControlEvent::KeyExpired => self.settle(),
            ControlEvent::StreamBegins => {
                self.trouble = None;
                self.stream_stands = true;
                self.engine.set_control_connected(true);
                self.engine.begin_map_stream();
            }
            ControlEvent::Map(message) => {
                self.netmap_is_cached = false;
                match self.engine.apply_map(now, wall, *message) {
                    Ok(notices) => {
                        if let Some(request) = notices.ping_request {
                            self.answer_server(request);
                        }
                        if let Some(url) = notices.pop_browser_url {
                            self.notify(|notify| notify.browse_to_url = Some(url));
                        }
                    }
                    Err(error) => self.trouble = Some(error.to_string()),
                }
            }
            ControlEvent::Refused(reason) => {
                tracing::warn!(reason, "the coordination server refused");
                self.error = reason.clone();
                self.session = None;
                self.notify(|notify| notify.err_message = Some(reason));
                self.settle();
            }
            ControlEvent::Trouble(what) => {
                self.stream_stands = false;
                self.engine.set_control_connected(false);
                if self.trouble.as_ref() != Some(&what) {
                    tracing::info!(what, "coordination server");
                }
                self.trouble = Some(what);
            }
        }
    }

    pub(super) fn answer_server(&mut self, request: PingRequest) {
        if request.url.is_empty() || request.url == self.last_server_ping {
            return;
        }
        self.last_server_ping = request.url.clone();
        if let Some(session) = &self.session {
            session.answer_ping(request);
        }
    }

    pub(super) fn registered(
        &mut self,
        now: Instant,
        node_key: NodeSecret,
        old_node_key: Option<NodeSecret>,
        user_profile: warren_control_types::UserProfile,
    ) {
        if node_key.public() != self.engine.node_key() {
            self.replace_engine(now, &node_key);
        }
        let node_id = self.state.login.as_ref().map(|login| login.node_id.clone());
        self.state.login = Some(Login {
            node_key,
            old_node_key,
            user_profile,
            node_id: node_id.unwrap_or_default(),
        });
        self.state.prefs.logged_out = false;
        if let Err(error) = self.save_state() {
            // Running on is better than stopping; the next start needs a login.
            self.error = error.to_string();
            tracing::error!("{error}");
        }
        self.auth_url.clear();
        self.notify(|notify| notify.login_finished = Some(Empty {}));
        self.settle();
    }

    /// Another node key is another node: everything is learnt anew.
    pub(super) fn replace_engine(&mut self, now: Instant, node_key: &NodeSecret) {
        let config = EngineConfig {
            node_key: node_key.clone(),
            disco_key: DiscoSecret::generate(&mut SystemEntropy),
            flow_slots: None,
        };
        let entropy = || Box::new(SystemEntropy);
        self.engine = Engine::new(config, now, entropy(), entropy(), entropy());
        self.relays.set_node_key(node_key.clone());
        self.host_ready = false;
        self.engine.set_paused(now, !self.is_engaged());
        self.tell_link(now);
        self.apply_prefs(now);
    }

    /// Starts with these preferences.
    pub(in crate::daemon) fn start(&mut self, options: Options) -> Reply<()> {
        let before = self.state.prefs.clone();
        if let Some(prefs) = options.update_prefs {
            self.state.prefs = prefs;
        }
        self.state.prefs.logged_out = false;
        if let Err(error) = self.save_state() {
            self.state.prefs = before;
            return Err(error);
        }
        self.apply_prefs(Instant::now());
        let auth_key = Some(options.auth_key).filter(|key| !key.is_empty());
        if auth_key.is_some() || self.state.login.is_some() {
            self.state.prefs.want_running = true;
            self.connect(auth_key);
        } else {
            self.settle();
        }
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
        Ok(())
    }

    /// Lets a person log in.
    pub(in crate::daemon) fn login_interactive(&mut self) -> Reply<()> {
        if self.state.prefs.control_url.is_empty() {
            return Err(BackendError::Refused(
                "no coordination server is chosen; give one with --login-server".to_owned(),
            ));
        }
        self.state.prefs.want_running = true;
        if let Some(login) = self.state.login.take() {
            // Another key, so that the server asks a person again.
            self.candidate_key = NodeSecret::generate(&mut SystemEntropy);
            let key = self.candidate_key.clone();
            self.replace_engine(Instant::now(), &key);
            drop(login);
        }
        self.save_state()?;
        self.connect(None);
        Ok(())
    }

    /// Gives up the login, at the server and here.
    pub(in crate::daemon) fn logout(&mut self, reason: &str, reply: oneshot::Sender<Reply<()>>) {
        tracing::info!(reason, "logging out");
        let config = self.state.login.as_ref().and_then(|login| {
            Some(SessionConfig {
                server: self.state.prefs.control_url.parse().ok()?,
                machine_key: self.state.machine_key.clone(),
                node_key: login.node_key.clone(),
                old_node_key: None,
                auth_key: None,
                ephemeral: false,
            })
        });
        let forgotten = self.reset_auth();
        let (dialer, hostinfo) = (
            self.dialer.clone(),
            self.description.borrow().hostinfo.clone(),
        );
        tokio::spawn(async move {
            let told = match config {
                None => Ok(()),
                Some(config) => log_out(config, dialer, hostinfo).await.map_err(|error| {
                    BackendError::Failed(format!(
                        "logged out here, but the coordination server could not be told: {error}"
                    ))
                }),
            };
            drop(reply.send(forgotten.and(told)));
        });
    }

    /// Forgets the login here.
    pub(in crate::daemon) fn reset_auth(&mut self) -> Reply<()> {
        self.session = None;
        self.state.login = None;
        self.state.prefs.want_running = false;
        self.state.prefs.logged_out = true;
        self.forget_netmap();
        self.auth_url.clear();
        self.candidate_key = NodeSecret::generate(&mut SystemEntropy);
        let key = self.candidate_key.clone();
        self.replace_engine(Instant::now(), &key);
        self.relays.close_all();
        self.settle();
        self.refresh_host();
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
        self.save_state()
    }
}
