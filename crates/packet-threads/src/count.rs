//! The number of threads that move packets.

use std::num::NonZeroUsize;

use super::queues::MAX_QUEUES;

/// The environment variable that sets the number, for experiments.
const VARIABLE: &str = "WARREN_PACKET_THREADS";
/// Most threads of one direction, unless the variable says otherwise: what
/// must be done in order keeps no more of them busy.
const MOST: usize = 4;

/// Threads of each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadCounts {
    /// From the host to the network, each with a queue of the device.
    pub out: usize,
    /// From the network to the host.
    pub inward: usize,
}

/// The environment variable has a value that is not a number of threads.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{VARIABLE} is {value:?}, not a number of packet threads from 1 to {MAX_QUEUES}; remove it to \
     have as many in each direction as fit this machine"
)]
pub struct BadThreads {
    value: String,
}

impl ThreadCounts {
    /// The value of the variable, or what fits the processors that we may use.
    ///
    /// # Errors
    /// [`BadThreads`] when the value of the variable is not a number of threads.
    pub fn choose() -> Result<Self, BadThreads> {
        match std::env::var_os(VARIABLE) {
            Some(value) if !value.is_empty() => Self::parse(&value.to_string_lossy()),
            _ => {
                let cores = std::thread::available_parallelism();
                Ok(Self::for_cores(cores.map_or(1, NonZeroUsize::get)))
            }
        }
    }

    fn parse(value: &str) -> Result<Self, BadThreads> {
        match value.trim().parse() {
            Ok(each @ 1..=MAX_QUEUES) => Ok(Self {
                out: each,
                inward: each,
            }),
            _ => Err(BadThreads {
                value: value.to_owned(),
            }),
        }
    }

    /// One or two processors are busy with one thread each way; sharing would
    /// only cost. A third one helps to decrypt, the most expensive step.
    fn for_cores(cores: usize) -> Self {
        let (out, inward) = match cores {
            0..=2 => (1, 1),
            3 => (1, 2),
            more => ((more / 2).min(MOST), (more / 2).min(MOST)),
        };
        Self { out, inward }
    }
}

/// The name of thread `i` of `count`.
pub(super) fn name(direction: &str, i: usize, count: usize) -> String {
    if count == 1 {
        format!("warren-{direction}")
    } else {
        format!("warren-{direction}-{i}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_number_of_threads_fits_the_processors() {
        let threads = |cores| {
            let threads = ThreadCounts::for_cores(cores);
            (threads.out, threads.inward)
        };
        assert_eq!([0, 1, 2].map(threads), [(1, 1); 3]);
        assert_eq!(threads(3), (1, 2));
        assert_eq!([4, 5].map(threads), [(2, 2); 2]);
        assert_eq!([6, 8, 64].map(threads), [(3, 3), (4, 4), (4, 4)]);
    }

    #[test]
    fn the_variable_is_read_strictly() {
        let both = |n| Ok(ThreadCounts { out: n, inward: n });
        assert_eq!(ThreadCounts::parse("1"), both(1));
        assert_eq!(ThreadCounts::parse(" 64\n"), both(64));
        for bad in ["0", "65", "-1", "two", "1.5", "99999999999999999999"] {
            let error = ThreadCounts::parse(bad).unwrap_err().to_string();
            assert!(error.contains(VARIABLE) && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn one_thread_has_no_number() {
        assert_eq!(name("out", 0, 1), "warren-out");
        assert_eq!(name("in", 3, 4), "warren-in-3");
    }
}
