//! The postures that rules require, with the nodes that have them.

use super::bits::{Bits, Slot};
use super::network::{Network, NodeEntry};
use crate::model::Policy;

/// The postures of a rule, and the nodes that have one of them.
#[derive(Debug, Clone)]
pub(super) struct Posture {
    /// Ascending. Empty: no posture is required.
    pub(super) names: Vec<String>,
    pub(super) passes: Bits,
    /// The number of nodes without any of them.
    pub(super) lacking: usize,
}

impl Posture {
    pub(super) fn resolve(names: &[String], policy: &Policy, network: &Network) -> Self {
        let mut out = Self {
            names: names.to_vec(),
            passes: Bits::default(),
            lacking: 0,
        };
        out.refresh_all(policy, network);
        out
    }

    pub(super) fn refresh_all(&mut self, policy: &Policy, network: &Network) {
        if self.names.is_empty() {
            self.passes = network.present.clone();
            return;
        }
        self.passes = Bits::default();
        self.lacking = 0;
        for (slot, own) in network.all() {
            if policy.has_posture(&self.names, &own.node.attributes) {
                self.passes.insert(slot);
            } else {
                self.lacking += 1;
            }
        }
    }

    /// Evaluates one node again; returns whether its result changed.
    pub(super) fn refresh(
        &mut self,
        slot: Slot,
        policy: &Policy,
        before: Option<&NodeEntry>,
        own: Option<&NodeEntry>,
    ) -> bool {
        let passes = |own: &NodeEntry| {
            self.names.is_empty() || policy.has_posture(&self.names, &own.node.attributes)
        };
        let now = own.is_some_and(passes);
        let lacked = before.is_some() && !self.passes.get(slot);
        let lacks = own.is_some() && !now;
        self.lacking = self.lacking + usize::from(lacks) - usize::from(lacked);
        self.passes.assign(slot, now)
    }

    pub(super) fn all_pass(&self) -> bool {
        self.lacking == 0
    }
}
