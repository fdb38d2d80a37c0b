//! The system's random generator, for the cores.

use warren_keys::Entropy;

/// Random bytes from the operating system.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        // Without random bytes no key or nonce is safe: better to stop.
        #[allow(clippy::expect_used)]
        getrandom::fill(out).expect("the system's random generator works");
    }
}
