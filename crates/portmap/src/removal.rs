//! The deletion of a mapping by UPnP.
//!
//! Routers without leases hold a mapping for ever, so its record stays on disk until the
//! router has answered the deletion.

use warren_wire::upnp::{Response, is_deleted, reserved_port};

use crate::kept::KeptMapping;
use crate::mapper::Router;
use crate::upnp::{Exchange, Upnp, unmap};

/// Calls until a router that answers with an error is left alone.
const TRIES: u32 = 3;

/// A deletion that has not ended.
#[derive(Debug)]
pub(crate) struct Removal {
    router: Router,
    /// The mapping.
    pub(crate) kept: KeptMapping,
    /// Whether the record on disk is still that of this mapping.
    pub(crate) holds_record: bool,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// The next call, with the number of calls before it.
    Next { tries: u32 },
    /// The exchange that asks for the mapping; its answer may name another port.
    Mapping { exchange: u64, upnp: Upnp },
    /// The router was asked to delete it, for the `tries`-th time.
    Deleting { exchange: u64, tries: u32 },
}

/// The effect of an answer.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask for the deletion.
    Remove(Removal),
    /// The router holds no mapping, or does not delete it.
    Removed(Removal),
    /// The router did not answer.
    Unknown,
}

impl Removal {
    pub(crate) fn new(router: Router, kept: KeptMapping) -> Self {
        Self {
            router,
            kept,
            holds_record: true,
            step: Step::Next { tries: 0 },
        }
    }

    /// Deletes what `exchange` asks for, after its end.
    pub(crate) fn after(exchange: u64, router: Router, kept: KeptMapping, upnp: Upnp) -> Self {
        Self {
            step: Step::Mapping { exchange, upnp },
            ..Self::new(router, kept)
        }
    }

    /// The call that deletes it; `None`: no service was asked for it.
    pub(crate) fn call(&self) -> Option<Exchange> {
        let (service, external) = self.kept.upnp()?;
        Some(unmap(self.router, &service, external.port()))
    }

    /// The call is made with `exchange`.
    pub(crate) fn under_way(mut self, exchange: u64) -> Self {
        let tries = match self.step {
            Step::Next { tries } => tries + 1,
            Step::Mapping { .. } | Step::Deleting { .. } => 1,
        };
        self.step = Step::Deleting { exchange, tries };
        self
    }

    pub(crate) fn waits_for(&self, id: u64) -> bool {
        match self.step {
            Step::Next { .. } => false,
            Step::Mapping { exchange, .. } | Step::Deleting { exchange, .. } => exchange == id,
        }
    }

    pub(crate) fn answered(mut self, answer: Option<&Response>) -> Next {
        match (&self.step, answer) {
            (Step::Mapping { upnp, .. }, _) => {
                let reserved = answer.and_then(|answer| reserved_port(answer).ok().flatten());
                if let Some((port, (_, mut external))) = reserved.zip(upnp.asked()) {
                    external.set_port(port);
                    self.kept.external = Some(external);
                }
                self.step = Step::Next { tries: 0 };
                Next::Remove(self)
            }
            (_, None) => Next::Unknown,
            (Step::Deleting { tries, .. }, Some(answer))
                if !is_deleted(answer) && *tries < TRIES =>
            {
                self.step = Step::Next { tries: *tries };
                Next::Remove(self)
            }
            (Step::Deleting { .. } | Step::Next { .. }, Some(_)) => Next::Removed(self),
        }
    }
}
