//! Logins of people in browsers, at identity providers.
//!
//! The coordinator decides about each step ([`warren_control_core::LoginPage`]); here
//! are the requests of browsers, the cookies, and the providers:
//!
//! | path | what it does |
//! |---|---|
//! | `/register/ID` | shows the machine that waits, and a button for each provider |
//! | `/ssh-check/ID` | the same for a session over SSH |
//! | `/register/ID/login/PROVIDER` | begins a login and sends the browser to the provider |
//! | `/oidc/callback`, `/oidc/PROVIDER/callback` | takes the browser back |
//! | `/login/ID` | asks whether to connect; takes the decision; shows the result |
//!
//! All addresses are made from the URL of the server, never from a header of the
//! request. A request that comes from another site begins nothing and decides nothing.

mod client;
mod cookies;
mod pages;
mod requests;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use tokio::task::JoinSet;
use warren_dial::Dialer;
use warren_oidc::Provider;

pub use client::{ProviderClient, ProviderStatus};

use crate::coordinator::CoordinatorHandle;

/// The providers of a server, and the way to them.
#[derive(Debug)]
pub struct Logins {
    /// In the order of the configuration; the first one has the short callback.
    providers: Vec<Arc<ProviderClient>>,
    server_url: String,
}

impl Logins {
    /// The providers of the configuration. [`Logins::run`] makes them ready.
    pub fn new(providers: Vec<Provider>, server_url: &str) -> Arc<Self> {
        let clients = providers.into_iter().enumerate().map(|(n, provider)| {
            let redirect_uri = match n {
                0 => format!("{server_url}/oidc/callback"),
                _ => format!("{server_url}/oidc/{}/callback", provider.name),
            };
            if provider.rules.admit_all() {
                tracing::warn!(
                    provider = provider.name,
                    "all people with an account at this provider may join; limit them with \
                     allowed_domains, allowed_users or allowed_groups"
                );
            }
            Arc::new(ProviderClient::new(provider, redirect_uri, Dialer::new()))
        });
        Arc::new(Self {
            providers: clients.collect(),
            server_url: server_url.to_owned(),
        })
    }

    /// Starts a task for each provider that reads its document and keys, and again from
    /// time to time.
    pub fn run(&self, tasks: &mut JoinSet<()>) {
        for provider in &self.providers {
            tasks.spawn(provider.clone().run());
        }
    }

    /// The providers.
    pub fn providers(&self) -> &[Arc<ProviderClient>] {
        &self.providers
    }

    fn named(&self, name: &str) -> Option<&Arc<ProviderClient>> {
        self.providers
            .iter()
            .find(|client| client.provider().name == name)
    }

    /// Whether cookies are only sent over TLS.
    fn is_secure(&self) -> bool {
        self.server_url.starts_with("https://")
    }
}

/// The state of the handlers.
#[derive(Clone)]
struct Pages {
    coordinator: Arc<CoordinatorHandle>,
    logins: Arc<Logins>,
}

/// The routes of logins. Requests must carry their [`Connection`](crate::http::Connection).
pub(crate) fn router(coordinator: Arc<CoordinatorHandle>, logins: Arc<Logins>) -> Router {
    Router::new()
        .route("/register/{id}", get(requests::machine))
        .route(
            "/register/{id}/login/{provider}",
            get(requests::begin_machine),
        )
        .route("/ssh-check/{id}", get(requests::session))
        .route(
            "/ssh-check/{id}/login/{provider}",
            get(requests::begin_session),
        )
        .route("/oidc/callback", get(requests::callback_of_first))
        .route("/oidc/{provider}/callback", get(requests::callback))
        .route("/login/{id}", get(requests::show).post(requests::decide))
        .with_state(Pages {
            coordinator,
            logins,
        })
}
