//! Sets of rule blocks, stored once each, and the smallest member that several
//! of them share.
//!
//! A set with one member is its own number, one with few is a sorted list, a
//! larger one a bitmap with a summary: one bit of the summary per word of the
//! bitmap that is not zero. Intersecting walks the shortest list, or else the
//! summaries, which for ten
//! thousand blocks are three words long. No step depends on how many blocks
//! there are in all, but for the summaries (one bit per 64 blocks).

use std::collections::{BTreeSet, HashMap};

/// Up to this many members are a list.
const FEW: usize = 12;

/// The number of the empty set.
pub(crate) const NONE: u32 = 0;

/// In a set's number: the rest is its only member.
const ONE: u32 = 1 << 31;

/// Where a set lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Members: from, count.
    Few(u32, u32),
    /// Bitmap: the first word of its summary, behind which its words are.
    Many(usize),
}

/// Interned sets, by number; number 0 is the empty set.
#[derive(Debug, Clone)]
pub(crate) struct Sets {
    places: Vec<Place>,
    members: Vec<u32>,
    words: Vec<u64>,
    /// Words of a bitmap, without its summary.
    width: usize,
}

/// One set, to look at.
#[derive(Debug, Clone, Copy)]
enum Look<'a> {
    One(u32),
    Few(&'a [u32]),
    Many {
        summary: &'a [u64],
        words: &'a [u64],
    },
}

impl Look<'_> {
    fn contains(self, member: u32) -> bool {
        match self {
            Self::One(only) => only == member,
            Self::Few(members) => members.contains(&member),
            Self::Many { words, .. } => words
                .get(member as usize / 64)
                .is_some_and(|word| word & (1 << (member % 64)) != 0),
        }
    }
}

impl Sets {
    fn look(&self, set: u32) -> Look<'_> {
        if set & ONE != 0 {
            return Look::One(set & !ONE);
        }
        match self.places.get(set as usize) {
            None => Look::Few(&[]),
            Some(Place::Few(from, count)) => {
                let range = *from as usize..*from as usize + *count as usize;
                Look::Few(self.members.get(range).unwrap_or_default())
            }
            Some(Place::Many(at)) => {
                let summary_len = self.width.div_ceil(64);
                let all = self.words.get(*at..).unwrap_or_default();
                let (summary, rest) = all.split_at_checked(summary_len).unwrap_or_default();
                Look::Many {
                    summary,
                    words: rest.get(..self.width).unwrap_or_default(),
                }
            }
        }
    }

    /// The smallest member of all three sets (`c` may be missing) that `fits`.
    #[inline]
    pub(crate) fn first_common(
        &self,
        a: u32,
        b: u32,
        c: Option<u32>,
        mut fits: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        if a == NONE || b == NONE || c == Some(NONE) {
            return None;
        }
        let (a, b) = (self.look(a), self.look(b));
        // A missing third set does not restrict: the second one twice.
        let c = c.map_or(b, |c| self.look(c));
        for look in [a, b, c] {
            if let Look::One(only) = look {
                let common = a.contains(only) && b.contains(only) && c.contains(only);
                return (common && fits(only)).then_some(only);
            }
        }
        let mut shortest: Option<&[u32]> = None;
        for look in [a, b, c] {
            if let Look::Few(members) = look
                && shortest.is_none_or(|known| members.len() < known.len())
            {
                shortest = Some(members);
            }
        }
        if let Some(members) = shortest {
            return members.iter().copied().find(|member| {
                a.contains(*member) && b.contains(*member) && c.contains(*member) && fits(*member)
            });
        }
        let (
            Look::Many {
                summary: sa,
                words: wa,
            },
            Look::Many {
                summary: sb,
                words: wb,
            },
            Look::Many {
                summary: sc,
                words: wc,
            },
        ) = (a, b, c)
        else {
            return None;
        };
        for (at, ((sa, sb), sc)) in sa.iter().zip(sb).zip(sc).enumerate() {
            let mut summary = sa & sb & sc;
            while summary != 0 {
                let word_at = at * 64 + summary.trailing_zeros() as usize;
                summary &= summary - 1;
                let word = |words: &[u64]| words.get(word_at).copied().unwrap_or(0);
                let mut word = word(wa) & word(wb) & word(wc);
                while word != 0 {
                    // Members are numbered in 32 bits.
                    let member = (word_at * 64) as u32 + word.trailing_zeros();
                    word &= word - 1;
                    if fits(member) {
                        return Some(member);
                    }
                }
            }
        }
        None
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.places.as_slice())
            + size_of_val(self.members.as_slice())
            + size_of_val(self.words.as_slice())
    }
}

/// A set that changes: what covers the address a sweep has come to.
#[derive(Debug)]
pub(crate) struct Sweep {
    summary: Vec<u64>,
    words: Vec<u64>,
    count: usize,
    hash: u64,
}

impl Sweep {
    /// An empty set of members below `members`.
    pub(crate) fn new(members: usize) -> Self {
        let width = members.div_ceil(64);
        Self {
            summary: vec![0; width.div_ceil(64)],
            words: vec![0; width],
            count: 0,
            hash: 0,
        }
    }

    pub(crate) fn insert(&mut self, member: u32) {
        self.change(member, true);
    }

    pub(crate) fn remove(&mut self, member: u32) {
        self.change(member, false);
    }

    fn change(&mut self, member: u32, there: bool) {
        let at = member as usize / 64;
        let bit = 1u64 << (member % 64);
        let (Some(word), Some(summary)) = (self.words.get_mut(at), self.summary.get_mut(at / 64))
        else {
            return;
        };
        if (*word & bit != 0) == there {
            return;
        }
        *word ^= bit;
        let summary_bit = 1u64 << (at % 64);
        if *word == 0 {
            *summary &= !summary_bit;
        } else {
            *summary |= summary_bit;
        }
        self.hash ^= spread(u64::from(member) + 1);
        if there {
            self.count += 1;
        } else {
            self.count -= 1;
        }
    }

    fn members(&self) -> impl Iterator<Item = u32> + '_ {
        let words = ones(&self.summary);
        words.flat_map(|at| {
            let word = self.words.get(at as usize).copied().unwrap_or(0);
            ones_of(word).map(move |bit| at * 64 + bit)
        })
    }
}

fn ones_of(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

fn ones(words: &[u64]) -> impl Iterator<Item = u32> + '_ {
    (0u32..)
        .zip(words)
        .flat_map(|(at, word)| ones_of(*word).map(move |bit| at * 64 + bit))
}

/// The finaliser of SplitMix64: sets are compared by the exclusive or of their
/// members' values, which costs nothing to keep while sweeping. Equal
/// values are compared in full.
fn spread(value: u64) -> u64 {
    let mut z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Builds [`Sets`].
#[derive(Debug)]
pub(crate) struct Interner {
    sets: Sets,
    by_hash: HashMap<u64, Vec<u32>>,
    members: usize,
}

/// A moment in the life of an [`Interner`], to go back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    places: usize,
    members: usize,
    words: usize,
}

impl Interner {
    /// For sets with members below `members`.
    pub(crate) fn new(members: usize) -> Self {
        Self {
            sets: Sets {
                places: vec![Place::Few(0, 0)],
                members: Vec::new(),
                words: Vec::new(),
                width: members.div_ceil(64),
            },
            by_hash: HashMap::new(),
            members,
        }
    }

    /// An empty set to sweep with.
    pub(crate) fn sweep(&self) -> Sweep {
        Sweep::new(self.members)
    }

    /// The number of the set that `sweep` is now.
    pub(crate) fn number(&mut self, sweep: &Sweep) -> u32 {
        if sweep.count == 0 {
            return NONE;
        }
        // Blocks are fewer than 2^31: a message of rules is far smaller.
        if sweep.count == 1
            && let Some(only) = sweep.members().next()
        {
            return only | ONE;
        }
        let known = self.by_hash.get(&sweep.hash).into_iter().flatten();
        for number in known {
            let same = match self.sets.look(*number) {
                Look::One(_) => false,
                Look::Few(members) => {
                    members.len() == sweep.count && sweep.members().eq(members.iter().copied())
                }
                Look::Many { words, .. } => words == sweep.words.as_slice(),
            };
            if same {
                return *number;
            }
        }
        let sets = &mut self.sets;
        let number = sets.places.len() as u32;
        if sweep.count <= FEW {
            let from = sets.members.len() as u32;
            sets.members.extend(sweep.members());
            sets.places.push(Place::Few(from, sweep.count as u32));
        } else {
            sets.places.push(Place::Many(sets.words.len()));
            sets.words.extend_from_slice(&sweep.summary);
            sets.words.extend_from_slice(&sweep.words);
        }
        self.by_hash.entry(sweep.hash).or_default().push(number);
        number
    }

    /// Bytes that the sets take.
    pub(crate) fn bytes(&self) -> usize {
        self.sets.bytes()
    }

    /// This moment.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            places: self.sets.places.len(),
            members: self.sets.members.len(),
            words: self.sets.words.len(),
        }
    }

    /// Forgets the sets that came after `mark`.
    pub(crate) fn back_to(&mut self, mark: Mark) {
        self.sets.places.truncate(mark.places);
        self.sets.members.truncate(mark.members);
        self.sets.words.truncate(mark.words);
        self.by_hash.retain(|_, numbers| {
            numbers.retain(|number| (*number as usize) < mark.places);
            !numbers.is_empty()
        });
    }

    /// The sets, no larger than they need be.
    pub(crate) fn finish(self) -> Sets {
        let mut sets = self.sets;
        sets.places.shrink_to_fit();
        sets.members.shrink_to_fit();
        sets.words.shrink_to_fit();
        sets
    }
}

/// Members to take out later, unless they come back before.
pub(crate) type Pending = BTreeSet<u32>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn set() -> impl Strategy<Value = BTreeSet<u32>> {
        prop_oneof![
            proptest::collection::btree_set(0u32..5000, 0..40),
            proptest::collection::btree_set(0u32..5000, 200..2000),
            proptest::collection::btree_set(60u32..70, 0..10),
        ]
    }

    fn number(interner: &mut Interner, set: &BTreeSet<u32>) -> u32 {
        let mut sweep = interner.sweep();
        // There and back again leaves no trace.
        sweep.insert(4999);
        set.iter().for_each(|member| sweep.insert(*member));
        if !set.contains(&4999) {
            sweep.remove(4999);
        }
        interner.number(&sweep)
    }

    proptest! {
        #[test]
        fn the_first_common_member_is_the_least(
            a in set(), b in set(), c in proptest::option::of(set()), above in 0u32..5000,
        ) {
            let mut interner = Interner::new(5000);
            let (na, nb) = (number(&mut interner, &a), number(&mut interner, &b));
            let nc = c.as_ref().map(|c| number(&mut interner, c));
            prop_assert_eq!(number(&mut interner, &a), na, "stored once");
            let mark = interner.mark();
            let other = [1, 2, 3, 4998].into();
            let first = number(&mut interner, &other);
            interner.back_to(mark);
            if ![Some(na), Some(nb), nc].contains(&Some(first)) {
                prop_assert_eq!(number(&mut interner, &other), first, "forgotten and found again");
            }
            let sets = interner.finish();
            let wanted = |member: &u32| {
                *member >= above && b.contains(member) && c.as_ref().is_none_or(|c| c.contains(member))
            };
            let expected = a.iter().copied().find(wanted);
            prop_assert_eq!(sets.first_common(na, nb, nc, |member| member >= above), expected);
        }
    }
}
