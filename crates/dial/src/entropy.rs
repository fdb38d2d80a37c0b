//! Randomness of the operating system, for the protocol cores.

use warren_keys::Entropy;

/// The system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    /// # Panics
    /// When the system has no randomness to give: to go on with predictable
    /// keys would be worse.
    fn fill(&mut self, out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system has a random generator");
    }
}
