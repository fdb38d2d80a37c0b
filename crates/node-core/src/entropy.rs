//! One source of randomness for several owners.

use std::sync::{Arc, Mutex, PoisonError};

use warren_keys::Entropy;

/// Handles to one source. Each draw takes the next bytes, whichever handle it
/// comes from.
#[derive(Clone)]
pub(crate) struct SharedEntropy(Arc<Mutex<Box<dyn Entropy>>>);

impl SharedEntropy {
    pub(crate) fn new(source: Box<dyn Entropy>) -> Self {
        Self(Arc::new(Mutex::new(source)))
    }

    pub(crate) fn boxed(&self) -> Box<dyn Entropy> {
        Box::new(self.clone())
    }
}

impl Entropy for SharedEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        let mut source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        source.fill(out);
    }
}
