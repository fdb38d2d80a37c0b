//! The source of random bytes.

/// A source of cryptographically strong random bytes.
///
/// Protocol cores take one instead of asking the operating system, so that the
/// simulator can give them a seeded stream. In production it is the system's
/// generator; an implementation must never return predictable
/// bytes outside a test.
pub trait Entropy: Send {
    /// Fills `out` with random bytes.
    fn fill(&mut self, out: &mut [u8]);

    /// Returns `N` random bytes.
    fn bytes<const N: usize>(&mut self) -> [u8; N]
    where
        Self: Sized,
    {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

impl Entropy for Box<dyn Entropy> {
    fn fill(&mut self, out: &mut [u8]) {
        (**self).fill(out);
    }
}
