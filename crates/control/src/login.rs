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

use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::routing::get;
use tokio_util::task::AbortOnDropHandle;
use warren_dial::Dialer;
use warren_dial::proxies::OutgoingProxies;
use warren_oidc::Provider;

pub use client::{ProviderClient, ProviderStatus};

use crate::coordinator::CoordinatorHandle;

/// The providers of a server, and the way to them.
#[derive(Debug)]
pub struct Logins {
    /// In the order of the configuration; the first one has the short callback.
    providers: RwLock<Vec<Reached>>,
    server_url: String,
}

/// A provider, and the task that reads its document and keys.
#[derive(Debug)]
struct Reached {
    client: Arc<ProviderClient>,
    _task: AbortOnDropHandle<()>,
}

impl Logins {
    /// The providers of the configuration. A task for each one reads its document and
    /// keys, and again from time to time, until this is dropped.
    pub fn new(providers: Vec<Provider>, server_url: &str) -> Arc<Self> {
        let this = Arc::new(Self {
            providers: RwLock::default(),
            server_url: server_url.to_owned(),
        });
        this.replace(providers);
        this
    }

    /// Puts these providers in the place of the present ones. Those that are the same
    /// stay as they are, with what was read from them and the logins that are under way.
    pub fn replace(&self, providers: Vec<Provider>) {
        let mut present = self
            .providers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *present);
        let dialer = Dialer::new().with_proxies(OutgoingProxies::from_environment());
        for (n, provider) in providers.into_iter().enumerate() {
            let redirect_uri = match n {
                0 => format!("{}/oidc/callback", self.server_url),
                _ => format!("{}/oidc/{}/callback", self.server_url, provider.name),
            };
            let same = before.iter().position(|old| {
                *old.client.provider() == provider && old.client.redirect_uri() == redirect_uri
            });
            if let Some(same) = same {
                present.push(before.swap_remove(same));
                continue;
            }
            if provider.rules.admit_all() {
                tracing::warn!(
                    provider = provider.name,
                    "all people with an account at this provider may join; limit them with \
                     allowed_domains, allowed_users or allowed_groups"
                );
            }
            let client = ProviderClient::new(provider, redirect_uri, dialer.clone());
            let client = Arc::new(client);
            let task = tokio::spawn(client.clone().run());
            present.push(Reached {
                client,
                _task: AbortOnDropHandle::new(task),
            });
        }
    }

    /// The providers of this moment.
    pub fn providers(&self) -> Vec<Arc<ProviderClient>> {
        let present = self
            .providers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        present.iter().map(|known| known.client.clone()).collect()
    }

    fn named(&self, name: &str) -> Option<Arc<ProviderClient>> {
        let mut present = self.providers().into_iter();
        present.find(|client| client.provider().name == name)
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
