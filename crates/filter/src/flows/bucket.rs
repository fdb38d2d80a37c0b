//! Eight places of the table of flows, and which flow is replaced when they are full.
//!
//! A place holds a flow's hash, the time of its last use, and a note: the kind of the
//! flow, its state, and a tag of the address that opened it. The note only decides
//! which flow is replaced when a new one finds no free place, from the top:
//!
//! | standing | entries |
//! |---|---|
//! | free | none |
//! | expired | without packets for longer than its kind may be |
//! | closed | TCP after a reset, or after a FIN of both ends |
//! | spare | not needed at present: a rule lets the answers in, or it only relates ICMP errors |
//! | asked | nothing came back yet |
//! | answered | UDP, SCTP and echo requests that were answered |
//! | connected | TCP connections |
//!
//! and among equals the longest idle. Two bounds keep one busy address from replacing
//! the flows of others:
//!
//! - A new flow cannot replace every other: a spare one never replaces one that is
//!   needed, and an incoming fragment never replaces an answered flow. Incoming
//!   packets make no other entries, so no peer can crowd out the connections of
//!   others by opening many to us.
//! - An address that has half of the places replaces its own flows. It is the address
//!   that opened the flow; behind a subnet router there are many.
//!
//! So a scanner, most of whose questions get no answer, takes at most one place in
//! eight from living flows, and after that only its own.

#[cfg(all(test, warren_loom))]
mod models;

use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::{FRAGMENT_SECS, IDLE_SECS, TCP_IDLE_SECS};

/// Slots that a flow may lie in. The models (`bin/loom`) have fewer, so that all
/// interleavings can be tried.
pub(super) const WAYS: usize = if cfg!(warren_loom) { 2 } else { 8 };

/// The hash of a slot that a thread is filling: no flow has it.
const BUSY: u64 = u64::MAX;

/// The hash of a free slot: no flow has it.
const FREE: u64 = 0;

/// A hash that stands for a flow: `hash`, unless that has another meaning.
pub(super) fn flow_hash(hash: u64) -> u64 {
    match hash {
        FREE | BUSY => 1,
        hash => hash,
    }
}

/// The state of a flow beside its hash: flags, and in the upper 24 bits a tag of the
/// end that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note(u32);

impl Note {
    /// TCP, which may be idle for days.
    pub(super) const TCP: u32 = 1;
    /// A first fragment that came in.
    pub(super) const FRAGMENT: u32 = 1 << 1;
    /// Not needed as long as the rules stay as they are.
    pub(super) const SPARE: u32 = 1 << 2;
    /// Something came back.
    pub(super) const ANSWERED: u32 = 1 << 3;
    /// We said that we are done.
    pub(super) const DONE_HERE: u32 = 1 << 4;
    /// They said that they are done.
    pub(super) const DONE_THERE: u32 = 1 << 5;

    /// Both are.
    pub(super) const CLOSED: u32 = Self::DONE_HERE | Self::DONE_THERE;
    /// Flags that a new connection over the same ports starts without.
    const PAST: u32 = Self::CLOSED | Self::ANSWERED;

    const OWNER_SHIFT: u32 = 8;

    /// A flow of this `state`; `tag` is that of the address that opened it.
    pub(super) fn new(state: u32, tag: u64) -> Self {
        // The lower 24 bits of the tag.
        Self(state | (tag as u32) << Self::OWNER_SHIFT)
    }

    fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    fn owner(self) -> u32 {
        self.0 >> Self::OWNER_SHIFT
    }

    /// Seconds without packets after which it is expired.
    fn idle(self) -> u32 {
        if self.has(Self::FRAGMENT) {
            FRAGMENT_SECS
        } else if self.has(Self::TCP) {
            TCP_IDLE_SECS
        } else {
            IDLE_SECS
        }
    }

    /// Where it stands while it is not expired.
    fn standing(self) -> Standing {
        if self.has(Self::CLOSED) {
            Standing::Closed
        } else if self.has(Self::SPARE) {
            Standing::Spare
        } else if !self.has(Self::ANSWERED) {
            Standing::Asked
        } else if self.has(Self::TCP) {
            Standing::Connected
        } else {
            Standing::Answered
        }
    }

    /// The highest standing that a new flow may replace, of any address.
    fn takes_freely(self) -> Standing {
        if self.has(Self::SPARE) {
            Standing::Closed
        } else {
            Standing::Spare
        }
    }

    /// The best that it may take, as a newcomer.
    fn reaches(self) -> Standing {
        if self.has(Self::SPARE) {
            Standing::Spare
        } else if self.has(Self::FRAGMENT) {
            Standing::Asked
        } else {
            Standing::Connected
        }
    }
}

/// The order in which places are taken: see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Free,
    Expired,
    Closed,
    Spare,
    Asked,
    Answered,
    Connected,
    /// Another thread is filling it.
    Busy,
}

/// One place.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The hash of the flow, [`FREE`] or [`BUSY`].
    hash: AtomicU64,
    /// The last packet, in seconds.
    used: AtomicU32,
    note: AtomicU32,
}

impl Slot {
    /// Seconds without packets.
    fn age(&self, now: u32) -> u32 {
        // The other thread's clock reading may be a second ahead of ours. With the
        // store in `Bucket::put`: a reader of a new time sees that the slot is taken.
        now.saturating_sub(self.used.load(Ordering::Acquire))
    }

    /// A packet. Stores the time only when it changed: the line stays shared
    /// otherwise.
    pub(super) fn touch(&self, now: u32) {
        if self.used.load(Ordering::Relaxed) < now {
            // See `age`.
            self.used.store(now, Ordering::Release);
        }
    }

    /// Adds `bits` to the note, stores only what changes.
    pub(super) fn add(&self, bits: u32) {
        if !self.note().has(bits) {
            self.note.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Something came back that no rule lets in: this memory is needed.
    #[inline]
    pub(super) fn answered(&self, bits: u32) {
        let bits = bits | Note::ANSWERED;
        if self.note().0 & (bits | Note::SPARE) != bits {
            self.note.fetch_or(bits, Ordering::Relaxed);
            self.note.fetch_and(!Note::SPARE, Ordering::Relaxed);
        }
    }

    /// A connection is opened over this one's ports.
    pub(super) fn reopened(&self) {
        if self.note().has(Note::CLOSED) {
            self.note.fetch_and(!Note::PAST, Ordering::Relaxed);
        }
    }

    fn note(&self) -> Note {
        Note(self.note.load(Ordering::Relaxed))
    }

    fn standing(&self, now: u32) -> Standing {
        self.look(now).1
    }

    /// The hash, and the standing of the flow that has it.
    fn look(&self, now: u32) -> (u64, Standing) {
        // First of all: where time or note belong to a later flow, the hash is no longer
        // this one.
        let hash = self.hash.load(Ordering::Acquire);
        let note = self.note();
        let standing = if hash == FREE {
            Standing::Free
        } else if hash == BUSY {
            Standing::Busy
        } else if self.age(now) > note.idle() {
            Standing::Expired
        } else {
            note.standing()
        };
        (hash, standing)
    }
}

/// The slots that a flow may lie in: two lines of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket([Slot; WAYS]);

impl Bucket {
    #[inline]
    pub(super) fn find(&self, hash: u64) -> Option<&Slot> {
        // All eight are looked at: where one lies cannot be foreseen, and a
        // branch that goes wrong costs more than the other loads.
        let mut at = WAYS;
        for (n, slot) in self.0.iter().enumerate() {
            if slot.hash.load(Ordering::Acquire) == hash {
                at = n;
            }
        }
        self.0.get(at)
    }

    /// The place of the flow, unless it was without packets for more than `idle`
    /// seconds.
    #[inline]
    pub(super) fn find_live(&self, hash: u64, now: u32, idle: u32) -> Option<&Slot> {
        let slot = self.find(hash)?;
        let live = slot.age(now) <= idle;
        // The time may be that of a newcomer to this place. Then the place is no longer
        // that of this flow.
        (live && slot.hash.load(Ordering::Relaxed) == hash).then_some(slot)
    }

    /// Puts a flow that is not in here into the place that is easiest to give
    /// up, if it may have that.
    #[cold]
    pub(super) fn put(&self, hash: u64, note: Note, now: u32) {
        // Another thread may take the chosen slot meanwhile: then look again.
        for _ in 0..WAYS {
            let Some((slot, old)) = self.place_for(hash, note, now) else {
                return;
            };
            // Time and note change only while no flow can be found here.
            let claimed =
                slot.hash
                    .compare_exchange(old, BUSY, Ordering::Acquire, Ordering::Relaxed);
            if claimed.is_ok() {
                slot.used.store(now, Ordering::Release);
                slot.note.store(note.0, Ordering::Relaxed);
                slot.hash.store(hash, Ordering::Release);
                return;
            }
        }
    }

    /// The place that is easiest to give up, and the hash that it has now.
    fn place_for(&self, hash: u64, newcomer: Note, now: u32) -> Option<(&Slot, u64)> {
        // Among those of one second any: not always the same, which would be
        // the newcomer before this one.
        let any = (hash >> 32) as usize;
        let free_for_it = newcomer.takes_freely();
        let is_own = |slot: &Slot| slot.note().owner() == newcomer.owner();
        let own = self
            .0
            .iter()
            .filter(|slot| is_own(slot) && slot.standing(now) > free_for_it)
            .count();
        let only_own = own >= WAYS / 2;
        self.0
            .iter()
            .enumerate()
            .map(|(n, slot)| {
                let (hash, standing) = slot.look(now);
                (n, hash, standing, slot)
            })
            .filter(|&(_, _, standing, slot)| {
                standing <= free_for_it
                    || standing <= newcomer.reaches() && (!only_own || is_own(slot))
            })
            .min_by_key(|&(n, _, standing, slot)| {
                (standing, u32::MAX - slot.age(now), (n ^ any) % WAYS)
            })
            .map(|(_, hash, _, slot)| (slot, hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const US: u64 = 1;
    const OTHERS: u64 = 2;
    const CONNECTED: u32 = Note::TCP | Note::ANSWERED;

    fn knows(bucket: &Bucket, hash: u64) -> bool {
        bucket.find(hash).is_some()
    }

    /// A bucket with flows of these notes, hashes from 1, a second apart.
    fn filled(notes: impl IntoIterator<Item = Note>) -> Bucket {
        let bucket = Bucket::default();
        for (n, note) in (0..).zip(notes) {
            bucket.put(u64::from(n) + 1, note, n);
        }
        bucket
    }

    #[test]
    fn places_are_taken_in_the_order_of_the_table() {
        let ascending = [
            CONNECTED | Note::CLOSED,
            Note::TCP | Note::SPARE,
            Note::TCP,
            Note::ANSWERED,
            CONNECTED,
        ];
        // The best are the longest idle: age does not count across standings.
        let notes = ascending.map(|state| Note::new(state, US));
        let bucket = filled(notes.into_iter().rev());
        let order: Vec<Standing> = (1..=5)
            .rev()
            .filter_map(|hash| bucket.find(hash))
            .map(|slot| slot.standing(10))
            .collect();
        use Standing::{Answered, Asked, Closed, Connected, Free, Spare};
        assert_eq!(order, [Closed, Spare, Asked, Answered, Connected]);
        assert!(order.is_sorted());
        assert_eq!(Slot::default().standing(10), Free);
        // All of them expire, each in its time.
        let slot = bucket.find(1);
        assert_eq!(
            slot.map(|slot| slot.standing(TCP_IDLE_SECS + 1)),
            Some(Standing::Expired)
        );
        let slot = bucket.find(2);
        assert_eq!(
            slot.map(|slot| slot.standing(IDLE_SECS + 2)),
            Some(Standing::Expired)
        );
    }

    #[test]
    fn an_answer_that_no_rule_lets_in_makes_the_memory_needed() {
        let bucket = filled([Note::new(Note::TCP | Note::SPARE, US)]);
        let standing = || bucket.find(1).map(|slot| slot.standing(1));
        assert_eq!(standing(), Some(Standing::Spare));
        bucket.find(1).into_iter().for_each(|slot| slot.answered(0));
        assert_eq!(standing(), Some(Standing::Connected));
    }

    #[test]
    fn a_connection_over_the_ports_of_a_closed_one_is_new() {
        let bucket = filled([Note::new(CONNECTED, US)]);
        let slot = bucket.find(1).expect("it was put there");
        slot.add(Note::DONE_HERE);
        slot.reopened();
        assert_eq!(slot.standing(1), Standing::Connected, "half closed");
        slot.add(Note::DONE_THERE);
        assert_eq!(slot.standing(1), Standing::Closed);
        slot.reopened();
        assert_eq!(slot.standing(1), Standing::Asked);
    }

    fn state() -> impl Strategy<Value = u32> {
        proptest::sample::select(&[
            0,
            Note::TCP,
            Note::ANSWERED,
            CONNECTED,
            CONNECTED | Note::DONE_HERE,
            CONNECTED | Note::CLOSED,
            Note::SPARE,
            Note::TCP | Note::SPARE,
            Note::FRAGMENT,
        ])
    }

    fn note() -> impl Strategy<Value = Note> {
        (state(), 0u64..4).prop_map(|(state, tag)| Note::new(state, tag))
    }

    proptest! {
        /// Whatever fills the bucket, and however many come.
        #[test]
        fn spare_entries_never_replace_needed_ones(
            before in proptest::collection::vec(note(), 0..20),
            tags in proptest::collection::vec(0u64..4, 1..40),
        ) {
            let now = 30;
            let bucket = filled(before);
            let needed: Vec<u64> = bucket
                .0
                .iter()
                .filter(|slot| slot.standing(now) > Standing::Spare)
                .map(|slot| slot.hash.load(Ordering::Relaxed))
                .collect();
            for (n, tag) in (100..).zip(tags) {
                bucket.put(n, Note::new(Note::SPARE, tag), now);
            }
            for hash in needed {
                prop_assert!(knows(&bucket, hash));
            }
        }

        #[test]
        fn questions_without_answers_take_one_place_from_what_lives(
            living in proptest::collection::vec(
                proptest::sample::select(&[Note::ANSWERED, CONNECTED]), WAYS),
            tag in 0u64..4,
            questions in 1u64..40,
        ) {
            let bucket = filled(living.into_iter().map(|state| Note::new(state, US)));
            for n in 1..=questions {
                bucket.put(100 + n, Note::new(Note::TCP, tag), 60);
            }
            let left = (1..=WAYS as u64).filter(|hash| knows(&bucket, *hash)).count();
            prop_assert_eq!(left, WAYS - 1);
            // A newcomer always finds a place: the last one is there.
            prop_assert!(knows(&bucket, 100 + questions));
        }

        #[test]
        fn a_source_with_half_of_the_entries_replaces_its_own(
            ours in proptest::collection::vec(state(), WAYS / 2),
            theirs in proptest::collection::vec(state(), 1..40),
        ) {
            // Any new flow may replace closed and spare ones.
            let needed = |state: &u32| Note(*state).standing() > Standing::Spare;
            let ours: Vec<u32> = ours.into_iter().filter(needed).collect();
            let bucket = filled(ours.iter().map(|state| Note::new(*state, US)));
            for (n, state) in (100..).zip(theirs) {
                // At most connections: the best there is.
                bucket.put(n, Note::new(state, OTHERS), 30);
            }
            for hash in 1..=ours.len() as u64 {
                prop_assert!(knows(&bucket, hash));
            }
        }

        #[test]
        fn fragments_that_came_in_take_nothing_that_was_answered(
            before in proptest::collection::vec(note(), 0..20),
            tags in proptest::collection::vec(0u64..4, 1..40),
        ) {
            let now = 30;
            let bucket = filled(before);
            let answered: Vec<u64> = bucket
                .0
                .iter()
                .filter(|slot| slot.standing(now) > Standing::Asked)
                .map(|slot| slot.hash.load(Ordering::Relaxed))
                .collect();
            for (n, tag) in (100..).zip(tags) {
                bucket.put(n, Note::new(Note::FRAGMENT, tag), now);
            }
            for hash in answered {
                prop_assert!(knows(&bucket, hash));
            }
        }

        /// As it was before there were notes: among equals the oldest goes.
        #[test]
        fn among_equals_the_longest_idle_goes(state in state(), more in 1usize..WAYS) {
            let bucket = filled((0..WAYS).map(|_| Note::new(state, US)));
            for n in 0..more {
                bucket.put(100 + n as u64, Note::new(state, US), 20);
            }
            for n in 0..WAYS {
                prop_assert_eq!(knows(&bucket, n as u64 + 1), n >= more);
            }
        }
    }
}
