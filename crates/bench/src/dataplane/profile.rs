//! Where the time goes: `perf`, if there is one and the kernel lets it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ends::Ends;
use super::measure::Spans;
use super::work::Tcp;
use warren_lab::which;
use warren_lab::{LabError, PATIENCE, until};

/// Samples per second: not a divisor of the timer's rate.
const FREQUENCY: &str = "997";
/// Lines of each table.
const LINES: usize = 12;

/// Records both daemons during a TCP stream; gives the tables as text.
///
/// # Errors
/// The reason why there is no profile.
pub fn tcp(ends: &mut Ends, spans: Spans, folder: &Path) -> Result<String, LabError> {
    let perf = which("perf").ok_or_else(|| {
        LabError::new("the program `perf` is not installed (package linux-perf or linux-tools)")
    })?;
    let pids = ends.pids();
    let mut tcp = Tcp::start(ends, 1)?;
    super::pause(spans.warm_up)?;
    let mut recordings = Vec::new();
    for (end, pid) in ["sending", "receiving"].iter().zip(&pids) {
        let file = folder.join(format!("perf-{}-{end}.data", ends.candidate));
        let child = Command::new(&perf)
            .args([
                "record",
                "--quiet",
                "-g",
                "-F",
                FREQUENCY,
                "-e",
                "cpu-clock",
            ])
            .arg("-o")
            .arg(&file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        recordings.push((*end, file, Recording(Some(child))));
    }
    super::pause(spans.tcp)?;
    // Still there, or the profile would be of something else.
    tcp.measure(Spans {
        warm_up: std::time::Duration::ZERO,
        tcp: std::time::Duration::from_millis(100),
        ..spans
    })?;
    let mut text = String::new();
    for (end, file, recording) in recordings {
        recording.finish()?;
        text += &format!("\n{} ({end}), of its own time:\n\n", ends.candidate);
        text += &top(&perf, &file)?;
    }
    Ok(text)
}

/// A `perf record` that ends with this.
struct Recording(Option<std::process::Child>);

impl Recording {
    /// Lets it write its file.
    fn finish(mut self) -> Result<(), LabError> {
        let Some(mut child) = self.0.take() else {
            return Ok(());
        };
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already, with a reason that is read below.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let ended = until("perf to write its file", PATIENCE, || {
            child.try_wait()?.ok_or_else(|| LabError::new("not yet"))
        });
        if ended.is_err() {
            drop(child.kill());
        }
        let output = child.wait_with_output()?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // Ended by our signal it gives no success, but writes no complaint.
        if output.status.success() || words.is_empty() {
            return Ok(());
        }
        Err(LabError::new(format!(
            "perf cannot record (kernel.perf_event_paranoid forbids it?): {words}"
        )))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The functions with the most time of their own.
fn top(perf: &Path, file: &PathBuf) -> Result<String, LabError> {
    let output = Command::new(perf)
        .args([
            "report",
            "--stdio",
            "--quiet",
            "--no-children",
            "-g",
            "none",
        ])
        .args(["-F", "overhead,symbol,dso", "--percent-limit", "0.5", "-i"])
        .arg(file)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(narrow);
    let lines: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .take(LINES)
        .collect();
    if lines.is_empty() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(LabError::new(format!(
            "perf reports nothing: {}",
            words.trim()
        )));
    }
    Ok(format!("```\n{}\n```\n", lines.join("\n")))
}

/// A line without the width that the longest name of all gives its columns.
fn narrow(line: &str) -> String {
    let columns = line.split("  ").map(str::trim);
    let columns: Vec<&str> = columns.filter(|column| !column.is_empty()).collect();
    columns.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_move_together_and_names_stay_whole() {
        let line = "    40.03%  [.] <A as B<C, D>>::seal          warren  ";
        assert_eq!(narrow(line), "40.03%  [.] <A as B<C, D>>::seal  warren");
        assert_eq!(narrow("   "), "");
    }
}
