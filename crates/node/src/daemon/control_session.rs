//! The conversation with the coordination server: register, follow the netmap,
//! report what changed here.
//!
//! One task per login. It registers (waiting for a person where the server
//! wants one), then holds the map stream, and beside it sends an update
//! whenever what it knows of this machine changes. Whatever breaks, it tries
//! again, with growing pauses, until it is dropped. It decides nothing about
//! packets: every message of the stream goes to the engine as it is.
//!
//! Three answers need a person. An auth key that is refused ends the session:
//! the same key would get the same answer. A refusal without one may pass (the
//! server has a problem, an administrator thinks again), so it is told and the
//! question put again, seldom. So it is with a server that does not know the
//! node any more: it was deleted, or the server lost its memory and may get it
//! back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::StatusCode;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use warren_control_types::{
    CapabilityVersion, EndpointType, Hostinfo, MapRequest, MapResponse, PingRequest, RegisterAuth,
    RegisterRequest, UserProfile,
};
use warren_dial::Dialer;
use warren_dial::control::{ControlClient, ControlError, ServerUrl};
use warren_keys::{DiscoPublic, Entropy as _, MachineSecret, NodeSecret};

use super::entropy::SystemEntropy;
use super::{Inbox, Message, NodeHandle};
use crate::localapi::c2n;

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long to wait when the server does not, with a login that a person has
/// to finish.
const FOLLOWUP_PAUSE: Duration = Duration::from_secs(2);
/// Longest silence of a map stream: twice the keepalives and some.
const WATCHDOG: Duration = Duration::from_secs(120);
/// A stream that stood for less was no success: somebody else with our keys may
/// be taking it away from us each time, or the server may be refusing.
const STABLE: Duration = Duration::from_secs(10);
/// First pause after a refusal; each one more doubles it.
const FIRST_REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause between two refusals.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(300);
/// How often the server says that it does not know the node until we believe
/// it: once may be a server that is just starting.
const UNKNOWN_BELIEVED: u32 = 2;
/// How often to ask a server that does not know the node.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(30);
/// A logout is a register with an end in the past; this is the moment that
/// other clients use.
const LOGGED_OUT_AT: i64 = 123;

/// What this machine is like, as the server should know it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Description {
    /// The machine and its software.
    pub hostinfo: Hostinfo,
    /// Where it can be reached.
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
    /// Where its path-finding messages come from.
    pub disco_key: Option<DiscoPublic>,
}

/// Who registers, where, and how.
pub struct SessionConfig {
    /// The coordination server.
    pub server: ServerUrl,
    /// The machine's identity.
    pub machine_key: MachineSecret,
    /// The node key to use: of the login, or a fresh one.
    pub node_key: NodeSecret,
    /// The key it takes the place of.
    pub old_node_key: Option<NodeSecret>,
    /// A key that lets the node in.
    pub auth_key: Option<String>,
    /// Whether to forget the node when it goes away.
    pub ephemeral: bool,
}

/// What the conversation has to tell.
pub enum ControlEvent {
    /// A person must open this address.
    AuthUrl(String),
    /// The server took the node.
    Registered {
        /// Under this key, which may be another than the one offered.
        node_key: NodeSecret,
        /// The key before it.
        old_node_key: Option<NodeSecret>,
        /// Who owns it.
        user_profile: UserProfile,
    },
    /// The key has ended and only a new login helps.
    KeyExpired,
    /// A map stream begins.
    StreamBegins,
    /// A message of the map stream.
    Map(Box<MapResponse>),
    /// The server refused, with its reason.
    Refused {
        /// Its reason.
        reason: String,
        /// Whether the conversation is over: an auth key was refused.
        over: bool,
    },
    /// The server does not know the node (any more). Asked again now and then.
    Unknown(String),
    /// The server cannot be reached, or does not make sense; tried again.
    Trouble(String),
}

/// A running conversation. Dropping it ends it.
pub struct ControlSession {
    task: JoinHandle<()>,
    pings: mpsc::UnboundedSender<PingRequest>,
}

impl Drop for ControlSession {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlSession {
    /// Starts talking. What it tells carries `epoch`, so that the last words of
    /// an ended session are not taken for the next one's.
    pub fn start(
        epoch: u64,
        config: SessionConfig,
        dialer: Dialer,
        description: watch::Receiver<Description>,
        engine: Inbox,
    ) -> Self {
        let (pings, asked) = mpsc::unbounded_channel();
        let worker = Worker {
            epoch,
            config,
            dialer,
            description,
            engine,
            asked,
        };
        Self {
            task: tokio::spawn(worker.run()),
            pings,
        }
    }

    /// Answers a ping of the server.
    pub fn answer_ping(&self, request: PingRequest) {
        drop(self.pings.send(request));
    }
}

/// Gives up a node key at the server.
///
/// # Errors
/// When the server cannot be told; the key is then still good there.
pub async fn log_out(
    config: SessionConfig,
    dialer: Dialer,
    hostinfo: Hostinfo,
) -> Result<(), ControlError> {
    let client = ControlClient::new(config.server, config.machine_key.clone(), dialer);
    let request = RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key: config.node_key.public(),
        expiry: Timestamp::from_second(LOGGED_OUT_AT).ok(),
        hostinfo: Some(hostinfo),
        ..RegisterRequest::default()
    };
    client.register(&request).await.map(drop)
}

struct Worker {
    epoch: u64,
    config: SessionConfig,
    dialer: Dialer,
    description: watch::Receiver<Description>,
    engine: Inbox,
    asked: mpsc::UnboundedReceiver<PingRequest>,
}

/// How an attempt ended.
enum End {
    /// Try again after a pause.
    Again,
    /// A stream stood for a while and broke: try again at once.
    Broken,
    /// The server refused: try again, but not soon.
    Refused,
    /// The server does not know the node.
    Unknown(String),
    /// Nothing more to do.
    Done,
}

impl Worker {
    async fn run(mut self) {
        let client = ControlClient::new(
            self.config.server.clone(),
            self.config.machine_key.clone(),
            self.dialer.clone(),
        );
        let mut failures = 0u32;
        let mut refusals = 0u32;
        let mut unknown = 0u32;
        let mut registered = false;
        loop {
            let end = if registered {
                None
            } else {
                self.register(&client).await
            };
            let end = match end {
                Some(end) => end,
                None => {
                    registered = true;
                    self.follow(&client).await
                }
            };
            if registered {
                refusals = 0;
            }
            unknown = match &end {
                End::Unknown(_) => unknown.saturating_add(1),
                End::Done | End::Broken | End::Again | End::Refused => 0,
            };
            let wait = match end {
                End::Done => return,
                End::Broken => {
                    failures = 0;
                    pause(failures)
                }
                End::Again => {
                    failures = failures.saturating_add(1);
                    pause(failures)
                }
                End::Refused => {
                    refusals = refusals.saturating_add(1);
                    refused_pause(refusals)
                }
                End::Unknown(_) if unknown < UNKNOWN_BELIEVED => pause(unknown),
                End::Unknown(why) => {
                    self.tell(ControlEvent::Unknown(why));
                    varied(UNKNOWN_PAUSE)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Registers; `None` when the node is in.
    async fn register(&mut self, client: &ControlClient) -> Option<End> {
        let mut followup = String::new();
        let mut tried_fresh_key = false;
        loop {
            let hostinfo = self.description.borrow().hostinfo.clone();
            let auth_key = self.config.auth_key.clone().filter(|_| followup.is_empty());
            let with_key = auth_key.is_some();
            let request = RegisterRequest {
                version: CapabilityVersion::CURRENT,
                node_key: self.config.node_key.public(),
                old_node_key: self.config.old_node_key.as_ref().map(NodeSecret::public),
                auth: auth_key.map(|auth_key| RegisterAuth { auth_key }),
                followup: followup.clone(),
                hostinfo: Some(hostinfo),
                ephemeral: self.config.ephemeral,
                ..RegisterRequest::default()
            };
            let response = match client.register(&request).await {
                Ok(response) => response,
                Err(ControlError::RateLimited { retry_after }) => {
                    let wait = retry_after.unwrap_or_else(|| Duration::from_secs(5) + pause(20));
                    tokio::time::sleep(wait).await;
                    continue;
                }
                Err(error) => {
                    self.tell(ControlEvent::Trouble(error.to_string()));
                    return Some(End::Again);
                }
            };
            if !response.error.is_empty() {
                let reason = response.error;
                let over = with_key;
                self.tell(ControlEvent::Refused { reason, over });
                return Some(if over { End::Done } else { End::Refused });
            }
            if response.node_key_expired {
                if tried_fresh_key {
                    self.tell(ControlEvent::KeyExpired);
                    return Some(End::Done);
                }
                tried_fresh_key = true;
                let fresh = NodeSecret::generate(&mut SystemEntropy);
                let old = std::mem::replace(&mut self.config.node_key, fresh);
                self.config.old_node_key = Some(old);
                continue;
            }
            if !response.auth_url.is_empty() {
                if response.auth_url == followup {
                    // The server did not wait; do not ask it in a loop.
                    tokio::time::sleep(FOLLOWUP_PAUSE).await;
                } else {
                    self.tell(ControlEvent::AuthUrl(response.auth_url.clone()));
                }
                followup = response.auth_url;
                continue;
            }
            let old_node_key = self.config.old_node_key.take();
            // It has done its work; what comes later is no business of its.
            self.config.auth_key = None;
            self.tell(ControlEvent::Registered {
                node_key: self.config.node_key.clone(),
                old_node_key,
                user_profile: UserProfile {
                    id: response.user.id,
                    login_name: response.login.login_name,
                    display_name: response.login.display_name,
                    profile_pic_url: response.login.profile_pic_url,
                    ..UserProfile::default()
                },
            });
            return None;
        }
    }

    fn map_request(&self, stream: bool) -> MapRequest {
        let description = self.description.borrow();
        MapRequest {
            version: CapabilityVersion::CURRENT,
            compress: "zstd".to_owned(),
            keep_alive: stream,
            node_key: self.config.node_key.public(),
            disco_key: description.disco_key,
            stream,
            hostinfo: Some(description.hostinfo.clone()),
            endpoints: description
                .endpoints
                .iter()
                .map(|(address, _)| *address)
                .collect(),
            endpoint_types: description
                .endpoints
                .iter()
                .map(|(_, kind)| *kind)
                .collect(),
            omit_peers: !stream,
            ..MapRequest::default()
        }
    }

    /// Holds the map stream and reports changes, until something breaks.
    async fn follow(&mut self, client: &ControlClient) -> End {
        // The first update says what the stream's request may not: servers
        // ignore what stands in it.
        self.description.mark_unchanged();
        let first_update = self.map_request(false);
        let stream_request = self.map_request(true);
        let (updated, stream) = tokio::join!(
            client.update(&first_update),
            client.map_stream(&stream_request, WATCHDOG)
        );
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(ControlError::Status { status, body, .. }) if status == StatusCode::NOT_FOUND => {
                return End::Unknown(body);
            }
            Err(error) => {
                self.tell(ControlEvent::Trouble(error.to_string()));
                return End::Again;
            }
        };
        if let Err(error) = updated {
            self.tell(ControlEvent::Trouble(error.to_string()));
        }
        self.tell(ControlEvent::StreamBegins);
        let begun = Instant::now();
        let broken = || match begun.elapsed() {
            long if long >= STABLE => End::Broken,
            _ => End::Again,
        };
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Ok(Some(message)) => self.tell(ControlEvent::Map(Box::new(message))),
                    Err(error) => {
                        self.tell(ControlEvent::Trouble(error.to_string()));
                        return broken();
                    }
                    Ok(None) => {
                        self.tell(ControlEvent::Trouble(
                            "the coordination server ended the map stream".to_owned(),
                        ));
                        return broken();
                    }
                },
                changed = self.description.changed() => {
                    if changed.is_err() {
                        return End::Done;
                    }
                    let update = self.map_request(false);
                    if let Err(error) = client.update(&update).await {
                        // The stream tells whether the server is still there.
                        self.tell(ControlEvent::Trouble(error.to_string()));
                    }
                },
                Some(request) = self.asked.recv() => {
                    if let Err(error) = answer(client, &request, self.engine.clone()).await {
                        tracing::debug!(%error, "a ping of the server was not answered");
                    }
                }
            }
        }
    }

    fn tell(&self, event: ControlEvent) {
        // The engine ends after us.
        self.engine.tell(Message::Control(self.epoch, event));
    }
}

/// Answers a ping of the server: a sign of life, or a request to the node.
async fn answer(
    client: &ControlClient,
    request: &PingRequest,
    engine: Inbox,
) -> Result<(), ControlError> {
    if request.types == "c2n" {
        let node = std::sync::Arc::new(NodeHandle::new(engine));
        let response = c2n::respond(node, &request.payload).await;
        client.post_c2n_response(request, response).await
    } else if request.types.is_empty() {
        client.answer_head_ping(request).await
    } else {
        tracing::debug!(
            types = request.types,
            "the server asks for pings we do not make"
        );
        Ok(())
    }
}

/// The pause before attempt number `failures`: grows with the square.
fn pause(failures: u32) -> Duration {
    let base = Duration::from_millis(10).saturating_mul(failures.saturating_mul(failures));
    varied(base.clamp(Duration::from_millis(10), LONGEST_PAUSE))
}

/// The pause after refusal number `refusals`, from 1.
fn refused_pause(refusals: u32) -> Duration {
    let doubled = 1u32
        .checked_shl(refusals.saturating_sub(1))
        .unwrap_or(u32::MAX);
    let base = FIRST_REFUSED_PAUSE.saturating_mul(doubled.max(1));
    varied(base.min(LONGEST_REFUSED_PAUSE))
}

/// Half as long to one and a half times as long, so that many nodes do not come
/// back at once.
fn varied(base: Duration) -> Duration {
    let [byte] = SystemEntropy.bytes::<1>();
    base / 2 + base.saturating_mul(byte.into()) / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bounds() {
        for _ in 0..50 {
            assert!(pause(0) <= Duration::from_millis(15));
            for (refusals, base) in [
                (1, 10),
                (2, 20),
                (3, 40),
                (6, 300),
                (40, 300),
                (u32::MAX, 300),
            ] {
                let wait = refused_pause(refusals);
                let base = Duration::from_secs(base);
                assert!(
                    wait >= base / 2 && wait < base * 3 / 2,
                    "{refusals}: {wait:?}"
                );
            }
            assert!(pause(u32::MAX) < LONGEST_PAUSE * 3 / 2);
        }
    }
}
