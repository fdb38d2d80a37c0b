//! Sets of nodes by their slot: one bit each.

/// The index of a node in the tables of a compiled policy.
pub(super) type Slot = usize;

const WIDTH: usize = u64::BITS as usize;

/// A set of slots. Grows as needed; zeros at the end mean nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn get(&self, slot: Slot) -> bool {
        self.0
            .get(slot / WIDTH)
            .is_some_and(|word| word >> (slot % WIDTH) & 1 == 1)
    }

    /// Inserts or removes a slot; returns whether the set changed.
    pub(super) fn assign(&mut self, slot: Slot, value: bool) -> bool {
        let at = slot / WIDTH;
        if at >= self.0.len() {
            if !value {
                return false;
            }
            self.0.resize(at + 1, 0);
        }
        let Some(word) = self.0.get_mut(at) else {
            return false;
        };
        let bit = 1 << (slot % WIDTH);
        let before = *word & bit != 0;
        *word = if value { *word | bit } else { *word & !bit };
        before != value
    }

    pub(super) fn insert(&mut self, slot: Slot) {
        self.assign(slot, true);
    }

    pub(super) fn unite(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }

    pub(super) fn intersect(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own &= other;
        }
    }

    /// The slots that are in exactly one of the two sets.
    pub(super) fn difference(&self, other: &Self) -> Self {
        let (long, short) = if self.0.len() < other.0.len() {
            (other, self)
        } else {
            (self, other)
        };
        let mut out = long.clone();
        for (own, other) in out.0.iter_mut().zip(&short.0) {
            *own ^= other;
        }
        out
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.intersect(other);
        out
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.unite(other);
        out
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The slots, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(at * WIDTH + bit)
            })
        })
    }

    /// Equal sets have equal fingerprints.
    pub(super) fn fingerprint(&self) -> u64 {
        let words = self.0.iter().enumerate().filter(|(_, word)| **word != 0);
        words.fold(0, |sum: u64, (at, word)| {
            let mixed = (word ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                .wrapping_mul(0xbf58_476d_1ce4_e5b9);
            sum.wrapping_add(mixed ^ mixed >> 31)
        })
    }

    /// Releases excess capacity.
    pub(super) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }
}

impl PartialEq for Bits {
    fn eq(&self, other: &Self) -> bool {
        let common = self.0.len().min(other.0.len());
        let rest = |bits: &Self| bits.0.iter().skip(common).all(|word| *word == 0);
        self.0.iter().zip(&other.0).all(|(a, b)| a == b) && rest(self) && rest(other)
    }
}

impl FromIterator<Slot> for Bits {
    fn from_iter<T: IntoIterator<Item = Slot>>(slots: T) -> Self {
        let mut out = Self::default();
        for slot in slots {
            out.insert(slot);
        }
        out
    }
}
