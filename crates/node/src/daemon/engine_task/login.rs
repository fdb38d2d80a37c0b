//! Requests of local programs that concern the login.

use std::time::Instant;

use tokio::sync::oneshot;
use tracing::Instrument as _;
use warren_control_types::RegisterRequest;
use warren_node_core::node::NodeInput;
use warren_node_types::Prefs;

use super::{EngineTask, shown_state};
use crate::daemon::control_session::unregister;
use crate::daemon::wall_clock;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::prefs::Options;

impl EngineTask {
    /// Starts with these preferences, and with a new login if that is asked for.
    pub(in crate::daemon) fn start(&mut self, options: Options) -> Reply<()> {
        let before = self.state.prefs.clone();
        let auth_key = Some(options.auth_key).filter(|key| !key.is_empty());
        let runs = options.force_login || auth_key.is_some() || self.node.account().is_some();
        if let Some(prefs) = &options.update_prefs {
            self.check_ssh(&before, prefs)?;
        }
        self.change_state(|state| {
            if let Some(prefs) = options.update_prefs {
                state.prefs = prefs;
            }
            if options.force_login {
                require_server(&state.prefs)?;
            }
            state.prefs.logged_out = false;
            state.prefs.want_running |= runs;
            Ok(())
        })?;
        self.refresh_relay_server();
        let asks_for_tags = self.node.account().is_some()
            && self.state.prefs.want_running
            && self.state.prefs.advertise_tags != before.advertise_tags;
        let settings = Box::new(self.settings());
        let started = self.ask_for_login(NodeInput::Start {
            settings,
            force_login: options.force_login,
            auth_key,
        });
        self.notify_prefs();
        // Programs wait for the state after a start, also where it is the one from
        // before: the official command line waits for `Running`. Whether the node gets
        // other tags is known when the server has answered.
        if asks_for_tags {
            self.listeners.state_follows_login = true;
        } else {
            self.notify_state();
        }
        started
    }

    /// Logs in with an auth key and the present preferences.
    pub(in crate::daemon) fn log_in_with(&mut self, auth_key: String) -> Reply<()> {
        self.start(Options {
            auth_key,
            ..Options::default()
        })
    }

    pub(super) fn notify_state(&mut self) {
        let state = shown_state(self.node.state());
        self.listeners.notify(|notify| notify.state = Some(state));
    }

    /// Lets a person log in, or the key that came with a `start` just before.
    pub(in crate::daemon) fn login_interactive(&mut self) -> Reply<()> {
        self.change_state(|state| {
            require_server(&state.prefs)?;
            state.prefs.want_running = true;
            Ok(())
        })?;
        self.ask_for_login(NodeInput::LogIn)
    }

    /// Gives a request to the node; fails when its login cannot be written.
    fn ask_for_login(&mut self, input: NodeInput) -> Reply<()> {
        self.save_error = None;
        self.node.handle(Instant::now(), wall_clock(), input);
        self.carry_out();
        match self.save_error.take() {
            None => Ok(()),
            Some(error) => Err(ApiError::Failed(error)),
        }
    }

    /// Gives up the login, at the server and here.
    pub(in crate::daemon) fn logout(&mut self, reason: &str, reply: oneshot::Sender<Reply<()>>) {
        tracing::info!(reason, "logging out");
        self.logout_reply = Some(reply);
        let forgotten = self.forget_login(NodeInput::LogOut);
        // Without a login there is nothing to give up at the server. When the
        // disk failed, that is the answer.
        if let Some(reply) = self.logout_reply.take() {
            drop(reply.send(forgotten));
        }
    }

    /// Reports to the server that a login is given up. The first report answers the
    /// request.
    pub(super) fn unregister(&mut self, request: RegisterRequest) {
        let reply = self.logout_reply.take();
        let (server, machine_key, dialer) = (
            self.state.prefs.control_url.clone(),
            self.state.machine_key.clone(),
            self.dialer.clone(),
        );
        let work = async move {
            let done = unregister(&server, machine_key, dialer, request).await;
            let done = done.map_err(|error| {
                ApiError::Failed(format!(
                    "logged out here, but the coordination server was not notified: {error}"
                ))
            });
            match reply {
                Some(reply) => drop(reply.send(done)),
                None => tracing::debug!(?done, "a login that was not finished is given up"),
            }
        };
        tokio::spawn(work.in_current_span());
    }

    /// Forgets the login here.
    pub(in crate::daemon) fn reset_auth(&mut self) -> Reply<()> {
        self.forget_login(NodeInput::ResetLogin)
    }

    fn forget_login(&mut self, input: NodeInput) -> Reply<()> {
        self.change_state(|state| {
            state.prefs.want_running = false;
            state.prefs.logged_out = true;
            Ok(())
        })?;
        let forgotten = self.ask_for_login(input);
        self.notify_prefs();
        forgotten
    }
}

fn require_server(prefs: &Prefs) -> Reply<()> {
    if prefs.control_url.is_empty() {
        return Err(ApiError::Refused(
            "no coordination server is chosen; give one with --login-server".to_owned(),
        ));
    }
    Ok(())
}
