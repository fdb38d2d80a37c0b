//! Tailnet lock between the other parts of the node.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use warren_control_types::MapResponse;
use warren_lock::Unauthorized;

use super::{LockAnswer, LockCommands, LockRequestId, Output, Surroundings, is_capable};
use crate::node::{Node, NodeOutput, NodeSettings, Notice, SessionId};
use crate::{Engine, LockGate};

fn surroundings<'a>(engine: &'a Engine, settings: &'a NodeSettings) -> Surroundings<'a> {
    let netmap = engine.netmap();
    Surroundings {
        info: netmap.tka_info.as_ref(),
        is_capable: netmap.self_node.as_ref().is_some_and(is_capable),
        node_key: engine.node_key(),
        server: &settings.server,
    }
}

impl Node {
    /// The commands that the user has for tailnet lock.
    pub fn lock_commands(&self) -> LockCommands<'_> {
        LockCommands {
            authority: self.lock.authority(),
            secret: self.logins.lock_key(),
            node_key: self
                .logins
                .account()
                .map(|account| account.node_key.public()),
            is_offered: self.netmap().self_node.as_ref().is_some_and(is_capable),
        }
    }

    /// Whether tailnet lock is on, or its chain cannot be read.
    pub fn is_locked(&self) -> bool {
        !matches!(self.lock.gate(), LockGate::Off)
    }

    /// The session with the server in which requests of the login are sent.
    pub fn session_id(&self) -> Option<SessionId> {
        self.logins.session_id()
    }

    pub(in crate::node) fn lock_problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.lock.problems().collect();
        if !self.settings.want_running {
            return problems;
        }
        let commands = self.lock_commands();
        if let Some(chain) = commands.chain()
            && !self.lock.autosign_tags().is_empty()
            && chain.state().key(&self.logins.lock_key().id()).is_none()
        {
            problems.push(
                "this node is to sign nodes by their tags, and its key is not trusted; add it on a \
                 node with a trusted key: `warren lock add`, or stop it with \
                 `warren lock autosign --off`"
                    .to_owned(),
            );
        }
        if let Some(Err(why)) = self.engine.own_authorization() {
            let why = match why {
                Unauthorized::Unsigned => String::new(),
                other => format!(" ({other})"),
            };
            problems.push(format!(
                "this node is locked out: tailnet lock is on and the node is not signed{why}, so \
                 the other nodes do not accept it; run on a node with a trusted key: \
                 warren lock sign {} {}",
                self.node_key.public(),
                self.logins.lock_key().id(),
            ));
        }
        problems
    }

    pub(in crate::node) fn disable_lock_here(&mut self) {
        if self.lock.local_disable().is_ok() {
            self.logins.save();
        }
    }

    pub(in crate::node) fn lock_answered(
        &mut self,
        now: Instant,
        wall: Duration,
        id: LockRequestId,
        answer: Result<Box<LockAnswer>, String>,
    ) {
        let around = surroundings(&self.engine, &self.settings);
        let answer = answer.map(|answer| *answer);
        self.lock.answered(now, wall, &around, id, answer);
        self.compare_lock();
    }

    /// Compares the chain with what the server said in this map stream.
    pub(in crate::node) fn compare_lock(&mut self) {
        self.note_locked_out();
        if !self.logins.is_connected() || self.netmap_is_cached {
            return;
        }
        self.lock
            .update(&surroundings(&self.engine, &self.settings));
        self.sign_by_tags();
    }

    /// Signs the nodes that the user wants to be signed without a person.
    fn sign_by_tags(&mut self) {
        if self.lock.autosign_tags().is_empty() {
            return;
        }
        for (node, key) in self.lock.due_signatures(self.engine.hidden_peers()) {
            // Without a trusted key there is nothing to do; `status` says so.
            if let Ok(signature) = self.lock_commands().sign(key, None) {
                self.lock.submit(node, key, signature);
            }
        }
    }

    /// The tags whose nodes this node signs without a person.
    pub fn autosign_tags(&self) -> &BTreeSet<String> {
        self.lock.autosign_tags()
    }

    pub(in crate::node) fn set_autosign_tags(&mut self, tags: BTreeSet<String>) {
        self.lock.set_autosign_tags(tags);
        self.logins.save();
        self.compare_lock();
    }

    fn note_locked_out(&mut self) {
        let own = self.engine.own_authorization();
        self.lock.note_locked_out(matches!(own, Some(Err(_))));
    }

    /// Prepares for the peers of a message, which may say that tailnet lock is on now.
    pub(in crate::node) fn expect_lock(
        &mut self,
        now: Instant,
        wall: Duration,
        message: &MapResponse,
    ) {
        let own = self.engine.netmap().self_node.as_ref();
        let own = message.node.as_ref().or(own);
        if let Some(info) = &message.tka_info
            && own.is_some_and(is_capable)
        {
            self.lock.expect(info);
            self.carry_out_lock(now, wall);
        }
    }

    /// Carries out the outputs of tailnet lock; returns whether there were any.
    pub(in crate::node) fn carry_out_lock(&mut self, now: Instant, wall: Duration) -> bool {
        let mut any = false;
        while let Some(output) = self.lock.poll_output() {
            any = true;
            match output {
                Output::Request(id, request) => {
                    // Without a session there is no answer, and a new one begins again.
                    if let Some(session) = self.logins.session_id() {
                        self.outputs.push_back(NodeOutput::LockRequest {
                            session,
                            id,
                            request,
                        });
                    }
                }
                Output::Store(chain) => self.outputs.push_back(NodeOutput::StoreLock(chain)),
                Output::Changed => {
                    self.engine.set_lock(now, wall, self.lock.gate());
                    self.note_locked_out();
                    self.describe(now);
                    self.outputs.push_back(NodeOutput::Notice(Notice::Health));
                }
                Output::SignedByTags(node, result) => {
                    let notice = Notice::SignedByTags(node, result);
                    self.outputs.push_back(NodeOutput::Notice(notice));
                }
                Output::Problem => self.outputs.push_back(NodeOutput::Notice(Notice::Health)),
            }
        }
        any
    }
}
