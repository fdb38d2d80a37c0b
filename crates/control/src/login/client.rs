//! One identity provider: its document and keys, and the exchange of codes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, watch};
use url::Url;
use warren_dial::fetch::{Fetch, FetchError, Fetched, fetch};
use warren_dial::{Dialer, SystemEntropy};
use warren_oidc::id_token::{self, Expected};
use warren_oidc::request::authorization_url;
use warren_oidc::{
    Account, AccountError, Callback, Claims, Discovery, DiscoveryError, Exchange, KeyEnd, KeySet,
    KeySetError, LoginSecrets, Provider, TokenAnswer, TokenAnswerError, TokenError,
};
use warren_timers::{Backoff, Growth};

use crate::clock::{now, wall_clock};

/// How long one request to a provider may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer of a provider, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// How many codes are exchanged at a time.
const MAX_EXCHANGES: usize = 32;
/// How often the document and the keys are read again.
const REFRESH: Duration = Duration::from_secs(3600);
/// The shortest time between two readings of the keys because of an unknown one.
const KEYS_INTERVAL: Duration = Duration::from_secs(10);
/// The delay after the first failure to read the document, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// The document and the keys.
#[derive(Debug)]
struct Ready {
    discovery: Discovery,
    keys: KeySet,
}

#[derive(Debug, Default)]
struct Status {
    ready: Option<Arc<Ready>>,
    problem: Option<String>,
}

impl Status {
    fn shown(&self) -> ProviderStatus {
        ProviderStatus {
            ready: self.ready.is_some(),
            problem: self.problem.clone(),
        }
    }
}

/// Whether people can log in at a provider, for `health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderStatus {
    /// Whether they can.
    pub ready: bool,
    /// Why its document or keys could not be read at the last try, if that is so.
    pub problem: Option<String>,
}

/// One provider. See the module.
#[derive(Debug)]
pub struct ProviderClient {
    provider: Provider,
    redirect_uri: String,
    dialer: Dialer,
    status: watch::Sender<Status>,
    /// When the keys were last read because of an unknown one.
    keys_read: Mutex<Option<Instant>>,
    exchanges: Semaphore,
}

/// The document or the keys cannot be read.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{url} answers with the status {status}")]
    Status { url: Url, status: StatusCode },
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Keys(#[from] KeySetError),
    #[error("the provider publishes no key that can be used")]
    NoKeys,
    #[error("the issuer is no address")]
    Issuer,
}

/// Why a person is not logged in, for that person.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginFailure {
    #[error("the provider cannot be reached from this server at the moment")]
    NotReady,
    #[error("too many people log in at the moment")]
    Busy,
    #[error("the provider does not answer this server: {0}")]
    Fetch(#[from] FetchError),
    #[error("the provider does not answer this server about groups; try again later")]
    NoGroups,
    #[error(transparent)]
    Answer(#[from] TokenAnswerError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Account(#[from] AccountError),
}

impl ProviderClient {
    /// The client of a provider, at which this server has that callback.
    pub(super) fn new(provider: Provider, redirect_uri: String, dialer: Dialer) -> Self {
        Self {
            provider,
            redirect_uri,
            dialer,
            status: watch::Sender::default(),
            keys_read: Mutex::default(),
            exchanges: Semaphore::new(MAX_EXCHANGES),
        }
    }

    /// The configuration.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// The address that must be registered at the provider.
    pub fn redirect_uri(&self) -> &str {
        &self.redirect_uri
    }

    /// Whether people can log in.
    pub fn status(&self) -> ProviderStatus {
        self.status.borrow().shown()
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, mut wanted: impl FnMut(&ProviderStatus) -> bool) {
        let mut changes = self.status.subscribe();
        // The sender lives as long as this does.
        let _ = changes.wait_for(|status| wanted(&status.shown())).await;
    }

    fn ready(&self) -> Option<Arc<Ready>> {
        self.status.borrow().ready.clone()
    }

    fn set(&self, loaded: Result<Ready, LoadError>) -> bool {
        let name = &self.provider.name;
        match loaded {
            Ok(ready) => {
                self.status.send_replace(Status {
                    ready: Some(Arc::new(ready)),
                    problem: None,
                });
                true
            }
            Err(error) => {
                tracing::warn!(
                    provider = name,
                    "the identity provider is not usable: {error}"
                );
                // The document that was read before stays: the failure may be short.
                self.status
                    .send_modify(|status| status.problem = Some(error.to_string()));
                false
            }
        }
    }

    /// Reads the document and the keys, and again from time to time.
    pub(super) async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(Growth::Doubling, RETRY.0, RETRY.1);
        loop {
            let loaded = self.load().await;
            let wait = if self.set(loaded) {
                backoff.reset();
                REFRESH
            } else {
                backoff.jittered(&mut SystemEntropy)
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn load(&self) -> Result<Ready, LoadError> {
        let url = Discovery::url(&self.provider.issuer).ok_or(LoadError::Issuer)?;
        let document = self.read(&url).await?;
        let discovery = Discovery::parse(&document.body, &self.provider)?;
        let keys = self.load_keys(&discovery).await?;
        Ok(Ready { discovery, keys })
    }

    async fn load_keys(&self, discovery: &Discovery) -> Result<KeySet, LoadError> {
        let document = self.read(&discovery.jwks_uri).await?;
        let keys = KeySet::parse(&document.body)?;
        match keys.is_empty() {
            true => Err(LoadError::NoKeys),
            false => Ok(keys),
        }
    }

    async fn read(&self, url: &Url) -> Result<Fetched, LoadError> {
        let request = Fetch {
            headers: accept_json(),
            limit: MAX_ANSWER,
            timeout: TIMEOUT,
            ..Fetch::get(url)
        };
        let answer = fetch(&self.dialer, request).await?;
        match answer.status {
            StatusCode::OK => Ok(answer),
            status => Err(LoadError::Status {
                url: url.clone(),
                status,
            }),
        }
    }

    /// The address to which a browser is sent. `None`: the provider was not reached yet.
    pub(super) fn authorization_url(&self, state: &str, secrets: &LoginSecrets) -> Option<Url> {
        let ready = self.ready()?;
        Some(authorization_url(
            &self.provider,
            &ready.discovery,
            &self.redirect_uri,
            state,
            secrets,
        ))
    }

    /// Whether the callback comes from this provider, as far as that can be seen.
    pub(super) fn sent(&self, callback: &Callback) -> bool {
        self.ready()
            .is_some_and(|ready| callback.is_from(&self.provider, &ready.discovery))
    }

    /// Exchanges a code for the account of the person.
    pub(super) async fn account(
        &self,
        code: &str,
        secrets: &LoginSecrets,
    ) -> Result<Account, LoginFailure> {
        let _turn = self
            .exchanges
            .try_acquire()
            .map_err(|_| LoginFailure::Busy)?;
        let ready = self.ready().ok_or(LoginFailure::NotReady)?;
        let tokens = self.tokens(&ready, code, secrets).await?;
        let access_token = tokens.access_token.as_deref();
        let expected = Expected {
            issuer: &self.provider.issuer,
            client_id: &self.provider.client_id,
            nonce: &secrets.nonce,
            access_token,
            wall: wall_clock(),
        };
        let claims = match id_token::check(&tokens.id_token, &ready.keys, &expected) {
            Err(TokenError::UnknownKey) => {
                // The provider may have rotated its keys.
                let keys = self.newer_keys(&ready).await;
                let keys = keys.ok_or(TokenError::UnknownKey)?;
                id_token::check(&tokens.id_token, &keys.keys, &expected)?
            }
            checked => checked?,
        };
        let subject = claims.text("sub").unwrap_or_default();
        let userinfo = match (&ready.discovery.userinfo_endpoint, access_token) {
            (Some(url), Some(token)) => {
                let found = self.userinfo(url, token, subject).await;
                // Groups that could not be read must not count as groups that were lost.
                let groups = self.provider.groups_claim.as_deref();
                if found.is_none() && groups.is_some_and(|claim| !claims.has(claim)) {
                    return Err(LoginFailure::NoGroups);
                }
                found
            }
            _ => None,
        };
        Ok(Account::admitted(
            &self.provider,
            &claims,
            userinfo.as_ref(),
        )?)
    }

    async fn tokens(
        &self,
        ready: &Ready,
        code: &str,
        secrets: &LoginSecrets,
    ) -> Result<TokenAnswer, LoginFailure> {
        let exchange = Exchange::new(
            &self.provider,
            ready.discovery.client_auth,
            &self.redirect_uri,
            code,
            &secrets.verifier,
        );
        let mut headers = accept_json();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        if let Some(authorization) = exchange.authorization
            && let Some(value) = secret_header(&authorization)
        {
            headers.insert(header::AUTHORIZATION, value);
        }
        let request = Fetch {
            method: Method::POST,
            headers,
            body: exchange.form.into_bytes(),
            limit: MAX_ANSWER,
            timeout: TIMEOUT,
            ..Fetch::get(&ready.discovery.token_endpoint)
        };
        let answer = fetch(&self.dialer, request).await?;
        Ok(TokenAnswer::parse(answer.status.as_u16(), &answer.body)?)
    }

    /// The claims at the userinfo endpoint, if they can be had: the ID token is enough
    /// without them.
    async fn userinfo(&self, url: &Url, access_token: &str, subject: &str) -> Option<Claims> {
        let mut headers = accept_json();
        headers.insert(
            header::AUTHORIZATION,
            secret_header(&format!("Bearer {access_token}"))?,
        );
        let request = Fetch {
            headers,
            limit: MAX_ANSWER,
            timeout: TIMEOUT,
            ..Fetch::get(url)
        };
        let claims = match fetch(&self.dialer, request).await {
            Ok(answer) if answer.status == StatusCode::OK => {
                Claims::of_userinfo(&answer.body, subject)
            }
            Ok(_) | Err(_) => None,
        };
        if claims.is_none() {
            tracing::info!(
                provider = self.provider.name,
                "the userinfo endpoint sent nothing usable; the claims of the ID token are used alone"
            );
        }
        claims
    }

    /// The keys as they are now, if they were not read a moment ago.
    async fn newer_keys(&self, old: &Ready) -> Option<Arc<Ready>> {
        {
            let mut read = self
                .keys_read
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let now = now();
            if read.is_some_and(|at| now.saturating_duration_since(at) < KEYS_INTERVAL) {
                // Another login has just read them.
                return self.ready();
            }
            *read = Some(now);
        }
        let discovery = old.discovery.clone();
        match self.load_keys(&discovery).await {
            Ok(keys) => {
                self.set(Ok(Ready { discovery, keys }));
                self.ready()
            }
            Err(error) => {
                tracing::warn!(
                    provider = self.provider.name,
                    "the keys cannot be read: {error}"
                );
                None
            }
        }
    }

    /// When the key of a node ends at the latest that joins by a login with this
    /// account. `None`: only the server's limit holds.
    pub(super) fn key_end(&self, account: &Account) -> Option<Timestamp> {
        let of_seconds = |seconds: i64| Timestamp::from_second(seconds).ok();
        match self.provider.key_end {
            KeyEnd::Server => None,
            KeyEnd::Token => of_seconds(account.token_expiry),
            KeyEnd::After(life) => {
                let wall = i64::try_from(wall_clock().as_secs()).ok()?;
                let life = SignedDuration::try_from(life).ok()?;
                of_seconds(wall)?.checked_add(life).ok()
            }
        }
    }
}

/// GitHub and others answer in other forms unless asked for this one.
fn accept_json() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers
}

/// A header value that is left out of debug output.
fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
