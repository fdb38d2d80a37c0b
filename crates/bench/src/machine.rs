//! The machine on which the figures were taken.

use std::path::Path;

/// The load average of the last minute, as the kernel writes it.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

/// Processor, cores, kernel and its TCP in one line.
pub fn describe() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let tcp = wanted_tcp().unwrap_or_else(|| {
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
            .unwrap_or_else(|_| "unknown".to_owned())
    });
    format!(
        "{model}, {cores} cores, Linux {}, TCP {}",
        kernel.trim(),
        tcp.trim()
    )
}

/// Which congestion control the streams of the load use, if not the machine's:
/// `$WARREN_TCP`. How streams share a queue, and how long they make it, is its
/// decision.
pub fn wanted_tcp() -> Option<String> {
    std::env::var("WARREN_TCP")
        .ok()
        .filter(|name| !name.is_empty())
}

/// The size of a program in bytes.
pub fn size(binary: Option<&Path>) -> Option<u64> {
    Some(std::fs::metadata(binary?).ok()?.len())
}

/// Memory of a process.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All of it, in bytes: `VmRSS`.
    pub resident: u64,
    /// The part that no file backs, in bytes: `RssAnon`.
    pub anonymous: u64,
}

impl Memory {
    /// Of a running process.
    pub fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = |name: &str| -> Option<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            resident: kib("VmRSS:")? * 1024,
            anonymous: kib("RssAnon:")? * 1024,
        })
    }
}
