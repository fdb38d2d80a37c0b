//! Tailnet lock at the node: the chain, and its synchronisation with the server.
//!
//! ```text
//!            server: on            genesis              messages             head
//!   Off ──────────────▶ bootstrap ─────────▶ On: offer ──────────▶ On: send ──────▶ On
//!                                             ▲  another head at the server          │
//!                                             └──────────────────────────────────────┘
//!   On ── server: off ─▶ bootstrap ── a right disablement secret ──▶ Off
//!                                 └── anything else ──▶ On, and a problem
//! ```
//!
//! The server says whether the lock is on and what its head is, and nothing of that is
//! believed: a chain grows only by messages that it verifies, and ends only by a
//! disablement secret or by the user of this machine. Only the first message of the chain of
//! a new node is the server's word, as is everything else that it knows then.
//! While it waits for that message, it accepts no peers that it did not have before.
//!
//! After each change, the whole chain is handed over to be stored
//! ([`Output::Store`]) before the engine uses it. When the disk fails, the engine goes on
//! with the new chain: an older one would admit keys that were revoked since.

mod autosign;
mod commands;
mod node;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_control_types::{
    CapabilityVersion, Encoded, NodeId, TkaBootstrapRequest, TkaBootstrapResponse, TkaInfo,
    TkaSubmitSignatureRequest, TkaSyncOfferRequest, TkaSyncOfferResponse, TkaSyncSendRequest,
    TkaSyncSendResponse,
};
use warren_keys::{Entropy, NodePublic};
use warren_lock::{
    Aum, AumHash, Authority, Change, Compaction, DecodeError, DisablementSecret, StoredAum,
    SyncOffer,
};
use warren_timers::{Backoff, Growth};

use self::autosign::Autosign;
pub use self::commands::{LockCommandError, LockCommands, LockInit, Revocation, check_head};
use crate::engine::{HiddenPeer, LockGate};

/// The capability of a node that may take part in tailnet lock.
const CAPABILITY: &str = "https://tailscale.com/cap/tailnet-lock";
/// Delay after the first request that failed, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The longest disablement secret; usual ones have 32 bytes.
const MAX_SECRET: usize = 1024;

/// The chain as it is on disk.
#[derive(Debug, Clone, Default)]
pub enum KeptLock {
    /// There is none.
    #[default]
    Off,
    /// These messages.
    On(StoredChain),
    /// There is one, and it cannot be read, for this reason. No peer is accepted then.
    Unreadable(String),
}

/// A chain for the disk.
#[derive(Debug, Clone)]
pub struct StoredChain {
    /// The messages, of all branches.
    pub messages: Vec<StoredAum>,
    /// The message with which the chain begins.
    pub oldest: AumHash,
    /// The address of the server that it came from; empty if that is not known.
    pub server: String,
}

/// A request to the coordination server about tailnet lock.
#[derive(Debug, Clone, PartialEq)]
pub enum LockRequest {
    /// `bootstrap`.
    Bootstrap(TkaBootstrapRequest),
    /// `sync/offer`.
    Offer(TkaSyncOfferRequest),
    /// `sync/send`.
    Send(TkaSyncSendRequest),
    /// `sign`.
    Sign(TkaSubmitSignatureRequest),
}

/// The answer to a [`LockRequest`].
#[derive(Debug, Clone, PartialEq)]
pub enum LockAnswer {
    /// To [`LockRequest::Bootstrap`].
    Bootstrap(TkaBootstrapResponse),
    /// To [`LockRequest::Offer`].
    Offer(TkaSyncOfferResponse),
    /// To [`LockRequest::Send`].
    Send(TkaSyncSendResponse),
    /// To [`LockRequest::Sign`].
    Signed,
}

/// The number of a [`LockRequest`]. It is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockRequestId(u64);

/// Something for the node to do.
#[derive(Debug)]
pub(super) enum Output {
    /// Send a request in the session of the login.
    Request(LockRequestId, Box<LockRequest>),
    /// Store this chain; `None`: remove the stored one.
    Store(Option<Box<StoredChain>>),
    /// The engine should use another gate, and the server learn the head.
    Changed,
    /// The list of problems changed.
    Problem,
    /// A node was signed by its tags, or not for this reason.
    SignedByTags(NodeId, Result<(), String>),
}

/// The lock as the server reports it, and the identity of this node.
#[derive(Debug, Clone)]
pub(super) struct Surroundings<'a> {
    /// The state of the lock at the server; `None`: it never had one.
    pub(super) info: Option<&'a TkaInfo>,
    /// Whether the node has the capability.
    pub(super) is_capable: bool,
    /// The node's key.
    pub(super) node_key: NodePublic,
    /// The address of the server.
    pub(super) server: &'a str,
}

/// The chain of this node.
#[derive(Debug)]
enum Chain {
    Off,
    On(Arc<Authority>),
    Unreadable(String),
}

/// A request that is under way.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Idle,
    /// Bootstrap, to turn the lock on or off here.
    Bootstrapping(LockRequestId, Turn),
    Offering(LockRequestId),
    Sending(LockRequestId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    On,
    Off,
}

/// Whether the chain of the server is awaited while there is none here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    No,
    /// The server says that the lock is on. Until its chain is here, no other peers are
    /// accepted than before.
    Yes,
    /// The user does not want to wait for it.
    Ignored,
}

/// See the module.
pub(super) struct TailnetLock {
    chain: Chain,
    /// The address of the server that the chain came from; empty: not known.
    server: String,
    /// The identities of locks that the user turned off on this machine.
    refused: Vec<String>,
    autosign: Autosign,
    step: Step,
    /// The state of the server and our head for which nothing is left to do.
    settled: Option<(TkaInfo, Option<AumHash>)>,
    retry: Option<Instant>,
    failures: Backoff,
    problem: Option<String>,
    storage_problem: Option<String>,
    opening: Opening,
    /// Whether the other nodes keep this one out.
    is_locked_out: bool,
    last_id: u64,
    entropy: Box<dyn Entropy>,
    outputs: VecDeque<Output>,
}

impl TailnetLock {
    pub(super) fn new(kept: KeptLock, refused: Vec<String>, entropy: Box<dyn Entropy>) -> Self {
        let mut lock = Self {
            chain: Chain::Off,
            server: String::new(),
            refused,
            autosign: Autosign::default(),
            step: Step::Idle,
            settled: None,
            retry: None,
            failures: Backoff::new(Growth::Doubling, RETRY.0, RETRY.1),
            problem: None,
            storage_problem: None,
            opening: Opening::No,
            is_locked_out: false,
            last_id: 0,
            entropy,
            outputs: VecDeque::new(),
        };
        lock.open(kept);
        lock
    }

    fn open(&mut self, kept: KeptLock) {
        self.chain = match kept {
            KeptLock::Off => Chain::Off,
            KeptLock::Unreadable(why) => Chain::Unreadable(why),
            KeptLock::On(stored) => {
                self.server = stored.server;
                match Authority::open(stored.messages, stored.oldest) {
                    // Messages that are discarded are not needed: the server has them.
                    Ok((authority, _)) => Chain::On(Arc::new(authority)),
                    Err(refusal) => Chain::Unreadable(refusal.to_string()),
                }
            }
        };
    }

    /// Goes on with the chain of another login.
    pub(super) fn replace(&mut self, kept: KeptLock, refused: Vec<String>) {
        self.disconnected();
        self.server.clear();
        self.refused = refused;
        self.opening = Opening::No;
        (self.problem, self.storage_problem) = (None, None);
        self.open(kept);
    }

    // ---- views ----

    pub(super) fn gate(&self) -> LockGate {
        match &self.chain {
            Chain::Off if self.opening == Opening::Yes => LockGate::Pending,
            Chain::Off => LockGate::Off,
            Chain::On(authority) => LockGate::On(Arc::clone(authority)),
            Chain::Unreadable(_) => LockGate::Closed,
        }
    }

    pub(super) fn authority(&self) -> Option<&Authority> {
        match &self.chain {
            Chain::On(authority) => Some(authority),
            Chain::Off | Chain::Unreadable(_) => None,
        }
    }

    /// The head, as requests name it; empty while the lock is off.
    pub(super) fn head(&self) -> String {
        let head = self
            .authority()
            .map(|authority| authority.head().to_string());
        head.unwrap_or_default()
    }

    /// The tags whose nodes are signed without a person.
    pub(super) fn autosign_tags(&self) -> &BTreeSet<String> {
        self.autosign.tags()
    }

    pub(super) fn set_autosign_tags(&mut self, tags: BTreeSet<String>) {
        self.autosign = Autosign::new(tags);
    }

    /// The nodes to sign by their tags.
    pub(super) fn due_signatures<'a>(
        &self,
        hidden: impl Iterator<Item = &'a HiddenPeer>,
    ) -> Vec<(NodeId, NodePublic)> {
        self.autosign.due(hidden)
    }

    /// Submits the signature of a node that has these tags.
    pub(super) fn submit(
        &mut self,
        node: NodeId,
        key: NodePublic,
        signature: TkaSubmitSignatureRequest,
    ) {
        let id = self.request(LockRequest::Sign(signature));
        self.autosign.submitted(id, node, key);
    }

    pub(super) fn refused(&self) -> &[String] {
        &self.refused
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let unreadable = match &self.chain {
            Chain::Unreadable(why) => Some(format!(
                "the tailnet lock of this machine cannot be read ({why}), so no peer is accepted; \
                 restore the folder tka-profiles in the state folder, or begin again with \
                 `warren lock local-disable`"
            )),
            Chain::Off | Chain::On(_) => None,
        };
        let problems = [&unreadable, &self.problem, &self.storage_problem];
        let problems: Vec<String> = problems.into_iter().flatten().cloned().collect();
        problems.into_iter()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.retry
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // ---- inputs ----

    /// The session with the server ended; requests under way get no answer.
    pub(super) fn disconnected(&mut self) {
        self.step = Step::Idle;
        self.autosign.disconnected();
        self.settled = None;
        self.retry = None;
        self.failures.reset();
    }

    /// Records whether the other nodes keep this one out.
    pub(super) fn note_locked_out(&mut self, is_locked_out: bool) {
        if self.is_locked_out != is_locked_out {
            self.is_locked_out = is_locked_out;
            self.outputs.push_back(Output::Problem);
        }
    }

    /// The chain was stored, or not.
    pub(super) fn stored(&mut self, now: Instant, result: Result<(), String>) {
        let problem = result.err().map(|error| {
            format!(
                "the tailnet lock cannot be written to disk ({error}); after a restart this \
                 machine may accept keys that were revoked since. Make room, or repair the \
                 state folder"
            )
        });
        if problem.is_some() && self.retry.is_none() {
            self.retry = Some(now + self.failures.jittered(&mut *self.entropy));
        }
        set(&mut self.storage_problem, problem, &mut self.outputs);
    }

    /// Does what is due; returns whether something was, after which the node compares with
    /// the server again.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let is_due = self.retry.is_some_and(|at| now >= at);
        if is_due {
            self.retry = None;
            if self.storage_problem.is_some() {
                self.store();
            }
        }
        is_due
    }

    /// The server is about to describe peers, and says this about the lock.
    pub(super) fn expect(&mut self, info: &TkaInfo) {
        if matches!(self.chain, Chain::Off) && self.opening == Opening::No && !info.disabled {
            self.set_opening(Opening::Yes);
        }
    }

    fn set_opening(&mut self, opening: Opening) {
        if self.opening != opening {
            self.opening = opening;
            self.outputs.push_back(Output::Changed);
        }
    }

    /// Compares with the server, and begins what is to be done. To be called while the
    /// map stream is open, whenever something changed.
    pub(super) fn update(&mut self, around: &Surroundings<'_>) {
        if self.step != Step::Idle || self.retry.is_some() {
            return;
        }
        let info = around.info.cloned().unwrap_or(TkaInfo {
            disabled: true,
            ..TkaInfo::default()
        });
        let head = self.authority().map(Authority::head);
        if self.settled == Some((info.clone(), head)) {
            return;
        }
        match &self.chain {
            Chain::Off
                if info.disabled || !around.is_capable || self.opening == Opening::Ignored =>
            {
                if self.opening == Opening::Yes {
                    self.set_opening(Opening::No);
                }
                self.problem_is(None);
                self.settled = Some((info, head));
            }
            Chain::Off => self.bootstrap(around, Turn::On),
            Chain::On(_) if info.disabled => self.bootstrap(around, Turn::Off),
            Chain::On(authority) if info.head == authority.head().to_string() => {
                self.problem_is(None);
                self.settled = Some((info, head));
            }
            Chain::On(_) => self.offer(around),
            Chain::Unreadable(_) => {}
        }
    }

    /// The server answered a request, or did not. `wall` is the time since 1970.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        wall: Duration,
        around: &Surroundings<'_>,
        id: LockRequestId,
        answer: Result<LockAnswer, String>,
    ) {
        if let Some(node) = self.autosign.answered(id) {
            let signed = answer.map(drop);
            self.outputs.push_back(Output::SignedByTags(node, signed));
            return;
        }
        let step = match &self.step {
            Step::Bootstrapping(expected, _)
            | Step::Offering(expected)
            | Step::Sending(expected)
                if *expected == id =>
            {
                std::mem::replace(&mut self.step, Step::Idle)
            }
            // The session that it belongs to has ended.
            _ => return,
        };
        let done = match (step, answer) {
            (_, Err(error)) => Err(format!(
                "the coordination server does not answer about tailnet lock: {error}"
            )),
            (Step::Bootstrapping(_, Turn::On), Ok(LockAnswer::Bootstrap(answer))) => {
                self.turn_on(wall, around, &answer)
            }
            (Step::Bootstrapping(_, Turn::Off), Ok(LockAnswer::Bootstrap(answer))) => {
                self.turn_off(&answer)
            }
            (Step::Offering(_), Ok(LockAnswer::Offer(answer))) => {
                self.offer_answered(wall, around, &answer)
            }
            (Step::Sending(_), Ok(LockAnswer::Send(answer))) => self.sent(wall, around, &answer),
            _ => Err("the coordination server answered another request".to_owned()),
        };
        match done {
            Ok(()) => self.failures.reset(),
            Err(problem) => {
                self.problem_is(Some(problem));
                self.retry = Some(now + self.failures.jittered(&mut *self.entropy));
            }
        }
    }

    /// Turns the lock off on this machine, because its user says so.
    pub(super) fn local_disable(&mut self) -> Result<(), LockCommandError> {
        match &self.chain {
            Chain::Off if self.opening == Opening::Yes => {
                self.problem_is(None);
                self.set_opening(Opening::Ignored);
                return Ok(());
            }
            Chain::Off => return Err(LockCommandError::NotOn),
            Chain::On(authority) => {
                let id = authority.state().id().to_string();
                if !self.refused.contains(&id) {
                    self.refused.push(id);
                }
            }
            Chain::Unreadable(_) => {}
        }
        self.forget();
        Ok(())
    }

    /// Removes the chain.
    pub(super) fn forget(&mut self) {
        if !matches!(self.chain, Chain::Off) {
            self.chain = Chain::Off;
            self.server.clear();
            self.settled = None;
            self.problem_is(None);
            self.store();
            self.outputs.push_back(Output::Changed);
        }
    }

    /// The login is given up, with everything that belongs to it.
    pub(super) fn logged_out(&mut self) {
        self.disconnected();
        self.refused.clear();
        self.autosign = Autosign::default();
        self.set_opening(Opening::No);
        self.forget();
    }

    /// A login at another server, which the user chose, has nothing to do with the chain
    /// of the one before.
    pub(super) fn login_accepted(&mut self, server: &str) {
        if !self.server.is_empty() && self.server != server {
            self.forget();
        }
    }

    // ---- steps ----

    fn problem_is(&mut self, problem: Option<String>) {
        set(&mut self.problem, problem, &mut self.outputs);
    }

    fn request(&mut self, request: LockRequest) -> LockRequestId {
        self.last_id += 1;
        let id = LockRequestId(self.last_id);
        self.outputs
            .push_back(Output::Request(id, Box::new(request)));
        id
    }

    fn bootstrap(&mut self, around: &Surroundings<'_>, turn: Turn) {
        let id = self.request(LockRequest::Bootstrap(TkaBootstrapRequest {
            version: CapabilityVersion::CURRENT,
            node_key: around.node_key,
            head: self.head(),
        }));
        self.step = Step::Bootstrapping(id, turn);
    }

    fn turn_on(
        &mut self,
        wall: Duration,
        around: &Surroundings<'_>,
        answer: &TkaBootstrapResponse,
    ) -> Result<(), String> {
        let unusable = |why: &dyn std::fmt::Display| {
            format!("the first message of the tailnet lock that the server sent is refused: {why}")
        };
        let genesis = Aum::decode(&answer.genesis_aum).map_err(|error| unusable(&error))?;
        if let Change::Checkpoint(checkpoint) = genesis.change()
            && self.refused.contains(&checkpoint.id().to_string())
        {
            self.settled = around.info.map(|info| (info.clone(), None));
            return self.declined(
                "tailnet lock is on and was turned off on this machine only, by \
                 `warren lock local-disable`; peers without a signature are accepted here",
            );
        }
        let authority =
            Authority::bootstrap(genesis, wall.as_secs()).map_err(|error| unusable(&error))?;
        self.server = around.server.to_owned();
        self.use_chain(authority);
        // The server learns by it that the lock is on here, also if the heads are equal.
        self.offer(around);
        Ok(())
    }

    /// Leaves the lock off, as the user of this machine wants it.
    fn declined(&mut self, why: &str) -> Result<(), String> {
        self.problem_is(Some(why.to_owned()));
        self.set_opening(Opening::No);
        Ok(())
    }

    fn turn_off(&mut self, answer: &TkaBootstrapResponse) -> Result<(), String> {
        let secret = &answer.disablement_secret;
        let is_right = self.authority().is_some_and(|authority| {
            (1..=MAX_SECRET).contains(&secret.len())
                && authority
                    .state()
                    .accepts_disablement(&DisablementSecret::from_bytes(secret))
        });
        if !is_right {
            return Err(
                "the coordination server says that tailnet lock is off and cannot prove it, so \
                 it stays on here; if an administrator did turn it off: `warren lock local-disable`"
                    .to_owned(),
            );
        }
        self.forget();
        Ok(())
    }

    fn offer(&mut self, around: &Surroundings<'_>) {
        let Some(offer) = self.authority().map(Authority::offer) else {
            return;
        };
        let id = self.request(LockRequest::Offer(TkaSyncOfferRequest {
            version: CapabilityVersion::CURRENT,
            node_key: around.node_key,
            head: offer.head.to_string(),
            ancestors: offer.ancestors.iter().map(AumHash::to_string).collect(),
        }));
        self.step = Step::Offering(id);
    }

    fn offer_answered(
        &mut self,
        wall: Duration,
        around: &Surroundings<'_>,
        answer: &TkaSyncOfferResponse,
    ) -> Result<(), String> {
        let Chain::On(authority) = &self.chain else {
            return Ok(());
        };
        let unreadable = |error: &dyn std::fmt::Display| {
            format!("the coordination server's offer of tailnet lock cannot be read: {error}")
        };
        let hash = |text: &String| text.parse::<AumHash>().map_err(|error| unreadable(&error));
        let theirs = SyncOffer {
            head: hash(&answer.head)?,
            ancestors: answer
                .ancestors
                .iter()
                .map(hash)
                .collect::<Result<_, _>>()?,
        };
        let updates = answer
            .missing_aums
            .iter()
            .map(|aum| Aum::decode(&aum.0))
            .collect::<Result<Vec<_>, DecodeError>>()
            .map_err(|error| unreadable(&error))?;
        // Before theirs are applied: ours may not be in the chain any more after that.
        let missing = authority.missing(&theirs).map_err(|_| {
            format!(
                "the coordination server has another chain of tailnet lock than this machine \
                 (head {} there, {} here); another node may have been given it too. This \
                 machine keeps its own",
                theirs.head,
                authority.head()
            )
        })?;
        let mut next = Authority::clone(authority);
        let new = next.inform(&updates, wall.as_secs()).map_err(|error| {
            format!("an update of tailnet lock from the coordination server is refused: {error}")
        })?;
        if !new.is_empty() {
            self.use_chain(next);
        }
        let id = self.request(LockRequest::Send(TkaSyncSendRequest {
            version: CapabilityVersion::CURRENT,
            node_key: around.node_key,
            head: self.head(),
            missing_aums: missing
                .iter()
                .map(|aum| Encoded(aum.as_bytes().to_vec()))
                .collect(),
            interactive: false,
        }));
        self.step = Step::Sending(id);
        Ok(())
    }

    fn sent(
        &mut self,
        wall: Duration,
        around: &Surroundings<'_>,
        answer: &TkaSyncSendResponse,
    ) -> Result<(), String> {
        let Chain::On(authority) = &mut self.chain else {
            return Ok(());
        };
        if answer.head != authority.head().to_string() {
            return Err(format!(
                "the coordination server keeps another head of tailnet lock ({}) than this \
                 machine ({}) after both exchanged their updates; it may hold some back",
                answer.head,
                authority.head()
            ));
        }
        let removed = Arc::make_mut(authority).compact(wall.as_secs(), Compaction::default());
        let head = authority.head();
        if !removed.is_empty() {
            self.store();
        }
        self.problem_is(None);
        // The server reports its new head by itself.
        if let Some(info) = around.info {
            self.settled = Some((info.clone(), Some(head)));
        }
        Ok(())
    }

    fn use_chain(&mut self, authority: Authority) {
        self.chain = Chain::On(Arc::new(authority));
        self.opening = Opening::No;
        self.store();
        self.outputs.push_back(Output::Changed);
    }

    fn store(&mut self) {
        let stored = self.authority().map(|authority| {
            Box::new(StoredChain {
                messages: authority.stored().cloned().collect(),
                oldest: authority.oldest(),
                server: self.server.clone(),
            })
        });
        self.outputs.push_back(Output::Store(stored));
    }
}

/// Whether the server lets a node with these capabilities take part in tailnet lock.
pub(super) fn is_capable(own: &warren_control_types::Node) -> bool {
    own.cap_map.has(CAPABILITY) || own.capabilities.iter().any(|name| name == CAPABILITY)
}

fn set(field: &mut Option<String>, problem: Option<String>, outputs: &mut VecDeque<Output>) {
    if *field != problem {
        *field = problem;
        outputs.push_back(Output::Problem);
    }
}
