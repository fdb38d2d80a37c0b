//! The atomics of the table: those of the standard library, or of loom where its models
//! run (`bin/loom`).

#[cfg(not(warren_loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(warren_loom)]
pub(super) use in_models::{AtomicU32, AtomicU64};
#[cfg(warren_loom)]
pub(super) use loom::sync::atomic::Ordering;

/// Atomics of loom of which each operation reads and writes.
///
/// Loom remembers the last access of each atomic only. A store that comes after a load of
/// the same thread is then not tried before an earlier load of another thread. Operations
/// that read and write are in one order, so all interleavings are tried, under sequential
/// consistency.
#[cfg(warren_loom)]
mod in_models {
    use loom::sync::atomic::Ordering;

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            #[derive(Debug, Default)]
            pub(in super::super) struct $name(loom::sync::atomic::$name);

            impl $name {
                pub(in super::super) fn load(&self, _: Ordering) -> $value {
                    self.0.fetch_or(0, Ordering::AcqRel)
                }

                pub(in super::super) fn store(&self, value: $value, _: Ordering) {
                    self.0.swap(value, Ordering::AcqRel);
                }
            }
        };
    }

    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);

    impl AtomicU32 {
        pub(in super::super) fn fetch_or(&self, bits: u32, _: Ordering) {
            self.0.fetch_or(bits, Ordering::AcqRel);
        }

        pub(in super::super) fn fetch_and(&self, bits: u32, _: Ordering) {
            self.0.fetch_and(bits, Ordering::AcqRel);
        }
    }

    impl AtomicU64 {
        pub(in super::super) fn compare_exchange(
            &self,
            old: u64,
            new: u64,
            _: Ordering,
            _: Ordering,
        ) -> Result<u64, u64> {
            self.0
                .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
        }
    }
}
