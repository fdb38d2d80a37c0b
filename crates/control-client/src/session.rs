//! One session: register, follow the map stream, retry.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use warren_control_types::{
    MapRequest, MapResponse, PingRequest, RegisterRequest, RegisterResponse, UserProfile,
};
use warren_keys::{Entropy, LockPublic, NodePublic};
use warren_timers::{Backoff, Growth};

use crate::c2n::{C2nRequests, Reaction};
use crate::description::Description;

/// Longest silence of a map stream before the runtime ends it: twice the
/// keepalive interval of servers, and some.
pub const STREAM_WATCHDOG: Duration = Duration::from_secs(120);

/// Delay after the first failure, and the longest one.
const FAILURE_DELAY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(30));
/// Delay after the first refusal, and the longest one.
const REFUSAL_DELAY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Delay before the next request to a server that does not know the node.
const UNKNOWN_DELAY: Duration = Duration::from_secs(30);
/// Answers "unknown node" in a row before they are believed: a single one may
/// come from a server that is just starting.
const UNKNOWN_BELIEVED: u32 = 2;
/// Delay before the next follow-up when the server answered the last one at once
/// instead of waiting for the person.
const FOLLOWUP_DELAY: Duration = Duration::from_secs(2);
/// Delay when the server asks to slow down and gives no time.
const RATE_LIMIT_DELAY: Duration = Duration::from_secs(7);
/// The reason why a login ends when its node key cannot be signed.
const UNSIGNED: &str = "tailnet lock is on and the server does not accept the signature of this node's new key; join as a new node with `warren logout` and `warren up`, and have it signed on a trusted node with `warren lock sign`";
/// A stream that ended sooner was no success: another program with our keys may
/// be taking it away each time, or the server may be refusing.
const STABLE: Duration = Duration::from_secs(10);

/// The parameters of a session.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The node key to register.
    pub node_key: NodePublic,
    /// The key that it replaces.
    pub old_node_key: Option<NodePublic>,
    /// A key that lets the node in without a person.
    pub auth_key: Option<String>,
    /// The node's own key for tailnet lock, which signs the node keys after this one.
    pub lock_key: Option<LockPublic>,
    /// The signature of the node key for tailnet lock; empty if there is none yet.
    pub node_key_signature: Vec<u8>,
    /// Whether the server should forget the node when it goes away.
    pub ephemeral: bool,
    /// This machine.
    pub description: Description,
}

/// A request that had no answer, or not the one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server asks to slow down.
    #[error("the coordination server asks to slow down")]
    RateLimited {
        /// The delay that it asks for.
        retry_after: Option<Duration>,
    },
    /// The server answered "not found".
    #[error("{0}")]
    NotFound(String),
    /// The server's address cannot be used; repeating the request is useless.
    #[error("{0}")]
    BadAddress(String),
    /// Anything else, as shown to the user.
    #[error("{0}")]
    Failed(String),
}

/// The result of an [`Output`], or a change of the node.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The answer to [`Request::Register`].
    Registered(Result<Box<RegisterResponse>, RequestError>),
    /// The answer to [`Request::OpenStream`].
    StreamOpened(Result<(), RequestError>),
    /// A message of the map stream.
    Message(Box<MapResponse>),
    /// The map stream ended, with the reason as shown to the user.
    StreamEnded(String),
    /// The answer to [`Request::Update`].
    Updated(Result<(), RequestError>),
    /// The answer to [`Event::FreshKeyWanted`].
    FreshKey {
        /// The new node key.
        node_key: NodePublic,
        /// The key that it replaces.
        old_node_key: Option<NodePublic>,
        /// The signature of the new key, if the auth key carries a credential.
        node_key_signature: Vec<u8>,
    },
    /// The answer to [`Event::SignatureWanted`]: the signature of the node key, or
    /// nothing if it cannot be made.
    Signature(Vec<u8>),
    /// The answer to [`Event::C2n`].
    C2nAnswer {
        /// The number of the request.
        id: u64,
        /// A whole HTTP/1.1 response.
        response: Vec<u8>,
    },
    /// This machine changed.
    Description(Box<Description>),
}

/// A request for the runtime to carry out, or an event for the node.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// A request for the runtime.
    Request(Request),
    /// An event for the node.
    Event(Event),
}

/// A request to the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Send this registration and answer with [`Input::Registered`]. The server
    /// may take its time: until a person has logged in.
    Register(Box<RegisterRequest>),
    /// Open the map stream and report its messages, until it ends. A stream with
    /// a silence of [`STREAM_WATCHDOG`] has ended.
    OpenStream(Box<MapRequest>),
    /// Send this update and answer with [`Input::Updated`].
    Update(Box<MapRequest>),
    /// Answer a request of the server that only wants a sign of life.
    AnswerHead(Box<PingRequest>),
    /// Answer a c2n request with this HTTP response.
    AnswerC2n(Box<PingRequest>, Vec<u8>),
}

/// An event from the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A person must open this address to let the node in.
    AuthUrl(String),
    /// The server accepted the node key of the session.
    Registered(Box<UserProfile>),
    /// The server wants another node key; answer with [`Input::FreshKey`].
    FreshKeyWanted,
    /// Tailnet lock is on, and the node key that is to be replaced has this signature.
    /// The new key needs one that rests on it; answer with [`Input::Signature`].
    SignatureWanted {
        /// The new node key.
        node_key: NodePublic,
        /// The signature of the key before it.
        before: Vec<u8>,
    },
    /// The node key has expired and a fresh one did not help. The session is over.
    KeyExpired,
    /// A map stream begins.
    StreamBegins,
    /// A message of the map stream.
    Map(Box<MapResponse>),
    /// The server refused the registration.
    Refused {
        /// Its reason.
        reason: String,
        /// Whether the session is over, because the auth key was refused.
        over: bool,
    },
    /// The server does not know the node. The session repeats the request.
    Unknown(String),
    /// The server cannot be reached, or its answers make no sense. The session
    /// tries again.
    Trouble(String),
    /// A request of the server to the node; answer with [`Input::C2nAnswer`].
    C2n {
        /// The number of the request.
        id: u64,
        /// A whole HTTP/1.1 request.
        request: Vec<u8>,
    },
}

/// The reason for a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Try again after a failure or a refusal.
    Retry,
    /// Ask again whether the person has logged in.
    FollowUp,
    /// The server asked to slow down.
    RateLimit,
    /// Send an update again that failed.
    Update,
}

impl Reason {
    /// The reason in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "next attempt to reach the coordination server",
            Self::FollowUp => "next question whether a person has logged in",
            Self::RateLimit => "end of the pause that the coordination server asked for",
            Self::Update => "next attempt to update the coordination server",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing is under way until then.
    Paused(Instant, Reason),
    /// A registration is under way.
    Registering,
    /// The server asked for another node key.
    NeedsFreshKey,
    /// The server asked for a signature of the node key.
    NeedsSignature,
    /// The map stream is being opened.
    Opening,
    /// The map stream is open, since then.
    Following(Instant),
    /// There is nothing more to do.
    Over,
}

/// A session with a coordination server. See the crate's documentation.
#[derive(Debug)]
pub struct ControlSession {
    config: SessionConfig,
    phase: Phase,
    is_registered: bool,
    /// The address that the person must open; empty before the server gave one.
    followup: String,
    /// Whether a fresh key was tried because the server asked for one.
    fresh_key_tried: bool,
    failures: Backoff,
    refusals: Backoff,
    unknown: u32,
    updates: Updates,
    c2n: C2nRequests,
    outputs: VecDeque<Output>,
}

/// The updates that report changes of this machine, one at a time.
#[derive(Debug)]
struct Updates {
    /// The description that the server has, as far as is known.
    sent: Option<Description>,
    in_flight: bool,
    retry: Option<Instant>,
    failures: Backoff,
}

fn quadratic(delay: (Duration, Duration)) -> Backoff {
    Backoff::new(Growth::Quadratic, delay.0, delay.1)
}

impl ControlSession {
    /// Begins with the registration.
    pub fn new(config: SessionConfig) -> Self {
        let mut session = Self {
            config,
            phase: Phase::Registering,
            is_registered: false,
            followup: String::new(),
            fresh_key_tried: false,
            failures: quadratic(FAILURE_DELAY),
            refusals: Backoff::new(Growth::Doubling, REFUSAL_DELAY.0, REFUSAL_DELAY.1),
            unknown: 0,
            updates: Updates {
                sent: None,
                in_flight: false,
                retry: None,
                failures: quadratic(FAILURE_DELAY),
            },
            c2n: C2nRequests::default(),
            outputs: VecDeque::new(),
        };
        session.register();
        session
    }

    /// The auth key, until it is used.
    pub fn auth_key(&self) -> Option<&str> {
        self.config.auth_key.as_deref()
    }

    /// The node key that the session registers or has registered.
    pub fn node_key(&self) -> NodePublic {
        self.config.node_key
    }

    /// Whether a map stream is open.
    pub fn is_following(&self) -> bool {
        matches!(self.phase, Phase::Following(_))
    }

    /// Whether the session has ended by itself. A new one is needed.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// The next request or event, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The time at which [`handle_timeout`](Self::handle_timeout) has something
    /// to do, with the reason.
    pub fn next_deadline(&self) -> Option<(Instant, Reason)> {
        match self.phase {
            Phase::Paused(until, reason) => Some((until, reason)),
            Phase::Following(_) if !self.updates.in_flight => {
                self.updates.retry.map(|at| (at, Reason::Update))
            }
            _ => None,
        }
    }

    /// Does what is due. An early call does nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Paused(until, _) if now >= until => {
                if self.is_registered {
                    self.open_stream();
                } else {
                    self.register();
                }
            }
            Phase::Following(_) if self.updates.retry.is_some_and(|at| now >= at) => {
                self.updates.retry = None;
                self.update();
            }
            _ => {}
        }
    }

    /// Takes the result of an output, or a change of the node. Results that
    /// belong to an earlier phase are ignored.
    pub fn handle(&mut self, now: Instant, input: Input, entropy: &mut dyn Entropy) {
        match input {
            Input::Registered(result) => {
                if self.phase == Phase::Registering {
                    match result {
                        Ok(response) => self.registered(now, *response, entropy),
                        Err(error) => self.failed(now, error, entropy),
                    }
                }
            }
            Input::StreamOpened(result) => {
                if self.phase == Phase::Opening {
                    match result {
                        Ok(()) => self.stream_opened(now),
                        Err(RequestError::NotFound(body)) => self.not_found(now, body, entropy),
                        Err(error) => self.failed(now, error, entropy),
                    }
                }
            }
            Input::Message(mut message) => {
                if matches!(self.phase, Phase::Following(_)) {
                    let request = message.ping_request.take();
                    self.emit(Event::Map(message));
                    if let Some(request) = request {
                        self.c2n_request(request);
                    }
                }
            }
            Input::StreamEnded(reason) => self.stream_ended(now, reason, entropy),
            Input::Updated(result) => self.updated(now, result, entropy),
            Input::FreshKey {
                node_key,
                old_node_key,
                node_key_signature,
            } => {
                if self.phase == Phase::NeedsFreshKey {
                    self.config.node_key = node_key;
                    self.config.old_node_key = old_node_key;
                    self.config.node_key_signature = node_key_signature;
                    self.register();
                }
            }
            Input::Signature(signature) => {
                if self.phase == Phase::NeedsSignature {
                    if signature.is_empty() {
                        self.refused(now, UNSIGNED.to_owned(), entropy);
                    } else {
                        self.config.node_key_signature = signature;
                        self.register();
                    }
                }
            }
            Input::C2nAnswer { id, response } => {
                if let Some(request) = self.c2n.take(id) {
                    self.request(Request::AnswerC2n(Box::new(request), response));
                }
            }
            Input::Description(description) => {
                self.config.description = *description;
                if matches!(self.phase, Phase::Following(_)) && self.updates.retry.is_none() {
                    self.update();
                }
            }
        }
    }

    fn request(&mut self, request: Request) {
        self.outputs.push_back(Output::Request(request));
    }

    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    // ---- registration ----

    fn register(&mut self) {
        // The auth key starts a login; the follow-ups wait for its end.
        let auth_key = self.config.auth_key.clone();
        let mut request = self.config.description.register_request(
            self.config.node_key,
            self.config.old_node_key,
            auth_key.filter(|_| self.followup.is_empty()),
            self.followup.clone(),
            self.config.ephemeral,
        );
        request.nl_key = self.config.lock_key;
        request
            .node_key_signature
            .clone_from(&self.config.node_key_signature);
        self.phase = Phase::Registering;
        self.request(Request::Register(Box::new(request)));
    }

    fn registered(&mut self, now: Instant, response: RegisterResponse, entropy: &mut dyn Entropy) {
        if !response.error.is_empty() {
            self.refused(now, response.error, entropy);
        } else if !response.node_key_signature.is_empty() {
            if self.config.node_key_signature.is_empty() {
                self.phase = Phase::NeedsSignature;
                self.emit(Event::SignatureWanted {
                    node_key: self.config.node_key,
                    before: response.node_key_signature,
                });
            } else {
                self.refused(now, UNSIGNED.to_owned(), entropy);
            }
        } else if response.node_key_expired {
            if self.fresh_key_tried {
                self.phase = Phase::Over;
                self.emit(Event::KeyExpired);
            } else {
                self.fresh_key_tried = true;
                self.phase = Phase::NeedsFreshKey;
                self.emit(Event::FreshKeyWanted);
            }
        } else if !response.auth_url.is_empty() {
            if response.auth_url == self.followup {
                self.phase = Phase::Paused(now + FOLLOWUP_DELAY, Reason::FollowUp);
            } else {
                self.followup.clone_from(&response.auth_url);
                self.emit(Event::AuthUrl(response.auth_url));
                self.register();
            }
        } else {
            // An auth key may be good for one use: it must not be sent again.
            self.config.auth_key = None;
            self.config.old_node_key = None;
            self.is_registered = true;
            self.followup.clear();
            self.refusals.reset();
            self.emit(Event::Registered(Box::new(UserProfile {
                id: response.user.id,
                login_name: response.login.login_name,
                display_name: response.login.display_name,
                profile_pic_url: response.login.profile_pic_url,
                ..UserProfile::default()
            })));
            self.open_stream();
        }
    }

    fn refused(&mut self, now: Instant, reason: String, entropy: &mut dyn Entropy) {
        let over = self.config.auth_key.is_some() && self.followup.is_empty();
        self.followup.clear();
        self.phase = if over {
            Phase::Over
        } else {
            Phase::Paused(now + self.refusals.jittered(entropy), Reason::Retry)
        };
        self.emit(Event::Refused { reason, over });
    }

    // ---- the map stream ----

    fn open_stream(&mut self) {
        let node_key = self.config.node_key;
        // The update carries everything about this machine: servers ignore the
        // description in the request for the stream.
        self.updates.retry = None;
        if !self.updates.in_flight {
            self.update();
        } else {
            self.updates.sent = None;
        }
        let request = self.config.description.map_request(node_key, true);
        self.phase = Phase::Opening;
        self.request(Request::OpenStream(Box::new(request)));
    }

    fn stream_opened(&mut self, now: Instant) {
        self.unknown = 0;
        self.phase = Phase::Following(now);
        self.emit(Event::StreamBegins);
        self.update_if_changed();
    }

    fn stream_ended(&mut self, now: Instant, reason: String, entropy: &mut dyn Entropy) {
        let Phase::Following(since) = self.phase else {
            return;
        };
        let was_stable = now.saturating_duration_since(since) >= STABLE;
        if was_stable {
            self.failures.reset();
        }
        let delay = self.failures.jittered(entropy);
        if was_stable {
            self.failures.reset();
        }
        self.lost(now + delay, Reason::Retry);
        self.emit(Event::Trouble(reason));
    }

    /// Both phases of a stream end here.
    fn lost(&mut self, until: Instant, reason: Reason) {
        self.updates.sent = None;
        self.updates.retry = None;
        self.phase = Phase::Paused(until, reason);
    }

    fn not_found(&mut self, now: Instant, body: String, entropy: &mut dyn Entropy) {
        self.unknown = self.unknown.saturating_add(1);
        let base = if self.unknown < UNKNOWN_BELIEVED {
            FAILURE_DELAY.0
        } else {
            self.emit(Event::Unknown(body));
            UNKNOWN_DELAY
        };
        let delay = quadratic((base, base)).jittered(entropy);
        self.lost(now + delay, Reason::Retry);
    }

    /// A registration or the opening of the stream failed.
    fn failed(&mut self, now: Instant, error: RequestError, entropy: &mut dyn Entropy) {
        self.unknown = 0;
        let is_opening = self.phase == Phase::Opening;
        match error {
            RequestError::RateLimited { retry_after } => {
                let delay = retry_after.unwrap_or_else(|| {
                    quadratic((RATE_LIMIT_DELAY, RATE_LIMIT_DELAY)).jittered(entropy)
                });
                self.lost(now + delay, Reason::RateLimit);
                if is_opening {
                    self.emit(Event::Trouble(error.to_string()));
                }
            }
            RequestError::BadAddress(reason) => {
                self.phase = Phase::Over;
                self.emit(Event::Refused { reason, over: true });
            }
            RequestError::NotFound(_) | RequestError::Failed(_) => {
                self.followup.clear();
                let delay = self.failures.jittered(entropy);
                self.lost(now + delay, Reason::Retry);
                self.emit(Event::Trouble(error.to_string()));
            }
        }
    }

    // ---- updates and requests of the server ----

    fn update_if_changed(&mut self) {
        if !self.updates.in_flight && self.updates.retry.is_none() {
            self.update();
        }
    }

    fn update(&mut self) {
        let description = &self.config.description;
        if self.updates.in_flight || self.updates.sent.as_ref() == Some(description) {
            return;
        }
        let request = description.map_request(self.config.node_key, false);
        self.updates.sent = Some(description.clone());
        self.updates.in_flight = true;
        self.request(Request::Update(Box::new(request)));
    }

    fn updated(
        &mut self,
        now: Instant,
        result: Result<(), RequestError>,
        entropy: &mut dyn Entropy,
    ) {
        self.updates.in_flight = false;
        match result {
            Ok(()) => self.updates.failures.reset(),
            Err(error) => {
                // Whether the server is still there, the stream shows.
                self.updates.sent = None;
                let delay = match error {
                    RequestError::RateLimited {
                        retry_after: Some(delay),
                    } => delay,
                    _ => self.updates.failures.jittered(entropy),
                };
                self.updates.retry = Some(now + delay);
            }
        }
        if matches!(self.phase, Phase::Following(_)) {
            self.update_if_changed();
        }
    }

    fn c2n_request(&mut self, request: PingRequest) {
        match self.c2n.receive(request) {
            Reaction::Ignore => {}
            Reaction::AnswerHead(request) => {
                self.request(Request::AnswerHead(Box::new(request)));
            }
            Reaction::Handle(id, request) => self.emit(Event::C2n { id, request }),
        }
    }
}

#[cfg(test)]
mod tests;
