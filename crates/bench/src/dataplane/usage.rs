//! Processor time, as `/proc` counts it.

use std::path::PathBuf;

/// Ticks in a second of `/proc`: USER_HZ, 100 wherever Linux runs today.
const TICKS: f64 = 100.0;

/// Processes, or threads of this one, whose time is counted as one.
#[derive(Debug, Clone, Default)]
pub struct Counted(Vec<PathBuf>);

impl Counted {
    /// A whole process.
    pub fn process(pid: u32) -> Self {
        Self(vec![format!("/proc/{pid}/stat").into()])
    }

    /// Threads of this process.
    pub fn threads(ids: impl IntoIterator<Item = u32>) -> Self {
        let files = ids
            .into_iter()
            .map(|id| format!("/proc/self/task/{id}/stat").into());
        Self(files.collect())
    }

    /// Whether there is nothing to count.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Seconds of processor time so far, user and system.
    pub fn seconds(&self) -> f64 {
        let texts = self
            .0
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok());
        texts.filter_map(|text| ticks(&text)).sum::<f64>() / TICKS
    }
}

/// `utime` and `stime`, fields 14 and 15 of proc_pid_stat(5). The name before
/// them may hold anything, spaces and brackets too.
fn ticks(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Seconds that all processors together were busy since the machine started.
pub fn machine() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy(&text) / TICKS
}

/// How many processors there are.
#[allow(clippy::cast_precision_loss)] // a few
pub fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// User, nice, system, irq, softirq: not idle, not waiting, not taken away.
fn busy(stat: &str) -> f64 {
    let fields = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> = fields
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    [0, 1, 2, 5, 6]
        .into_iter()
        .filter_map(|i| fields.get(i))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a b) (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(ticks("7 (x"), None);
    }

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let stat = "cpu  1 2 4 1000 500 8 16 300 0 0\ncpu0 9 9 9\n";
        assert!((busy(stat) - 31.0).abs() < 1e-9);
    }

    #[test]
    fn this_process_has_used_some() {
        let own = Counted::process(std::process::id());
        let start = own.seconds();
        let mut work = 0u64;
        while own.seconds() <= start {
            work = std::hint::black_box(work + 1);
        }
        assert!(own.seconds() > start);
    }
}
