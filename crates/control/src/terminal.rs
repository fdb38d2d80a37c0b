//! Text for terminals: printable names, commands in messages, aligned tables,
//! relative times. No colour.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use unicode_width::UnicodeWidthStr as _;
pub use warren_terminal::printable;

/// The default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "./warren-control";
/// The state folder of the service that the packages bring.
const SERVICE_STATE_DIR: &str = "/var/lib/warren-control";

/// The state folder where none is named: that of the service, if there is one and the
/// present folder has no server.
pub fn default_state_dir() -> PathBuf {
    let is_used = |folder: &str| Path::new(folder).join("noise.key").exists();
    if is_used(SERVICE_STATE_DIR) && !is_used(DEFAULT_STATE_DIR) {
        SERVICE_STATE_DIR.into()
    } else {
        DEFAULT_STATE_DIR.into()
    }
}

/// The beginning of commands in messages.
const PROGRAM: &str = "warren-control ";
/// Subcommands that ask a server.
const AREAS: [&str; 7] = [
    "users ",
    "nodes ",
    "preauthkeys ",
    "policy ",
    "ssh-checks ",
    "health",
    "debug ",
];

/// How commands are written in messages: for a state folder that is not the
/// default one, with its `--state-dir`, or they would speak to another server.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    option: Option<String>,
}

impl Hints {
    /// For the server of this state folder.
    pub fn new(state_dir: &Path) -> Self {
        let option = (state_dir != default_state_dir())
            .then(|| format!("--state-dir {}", shell_word(&state_dir.to_string_lossy())));
        Self { option }
    }

    /// The text, with the option in every command it names.
    pub fn complete(&self, text: &str) -> String {
        let Some(option) = &self.option else {
            return text.to_owned();
        };
        let mut out = String::with_capacity(text.len() + option.len());
        let mut rest = text;
        while let Some(at) = rest.find(PROGRAM) {
            let (before, command) = rest.split_at(at + PROGRAM.len());
            out.push_str(before);
            let has_one = command.starts_with("--state-dir")
                || command.starts_with("serve")
                || !AREAS.iter().any(|area| command.starts_with(area));
            if !has_one {
                out.push_str(option);
                out.push(' ');
            }
            rest = command;
        }
        out + rest
    }
}

/// A word that a shell takes as it is.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Rows under a heading, columns two spaces apart.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading = heading.iter().map(|cell| printable(cell)).collect();
    let rows = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.width() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// How long ago, or in how long, in the one unit that matters.
pub fn relative(then: Timestamp, now: Timestamp) -> String {
    let seconds = then.duration_since(now).as_secs();
    let (past, seconds) = (seconds <= 0, seconds.unsigned_abs());
    let amount = match seconds {
        0..=1 => return "now".to_owned(),
        2..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    };
    if past {
        format!("{amount} ago")
    } else {
        format!("in {amount}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hints_name_the_state_folder_of_the_server() {
        let text = "no node; `warren-control nodes list` shows them\nstart it with `warren-control serve`\nwarren-control 0.1.0\n";
        assert_eq!(
            Hints::new(Path::new(DEFAULT_STATE_DIR)).complete(text),
            text
        );
        let hints = Hints::new(Path::new("/srv/net"));
        let complete = hints.complete(text);
        assert_eq!(
            complete,
            "no node; `warren-control --state-dir /srv/net nodes list` shows them\nstart it with `warren-control serve`\nwarren-control 0.1.0\n"
        );
        assert_eq!(hints.complete(&complete), complete, "once");
        let odd = Hints::new(Path::new("my net's"));
        assert_eq!(
            odd.complete("warren-control health"),
            r"warren-control --state-dir 'my net'\''s' health"
        );
    }

    #[test]
    fn columns_of_tables_are_aligned() {
        let rows = vec![
            vec!["1".into(), "long name".into()],
            vec!["22".into(), "x".into()],
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows),
            "ID  NAME\n1   long name\n22  x\n"
        );
        let wide = vec![
            vec!["\u{6771}\u{4eac}".into(), "x".into()],
            vec!["db".into(), "y".into()],
        ];
        let shown = table(&["NAME", "OS"], &wide);
        assert_eq!(shown, "NAME  OS\n\u{6771}\u{4eac}  x\ndb    y\n");
    }

    #[test]
    fn a_host_name_cannot_command_the_terminal() {
        let rows = vec![vec!["\u{1b}[2Jroot\r\n".into(), "x".into()]];
        let shown = table(&["NAME", "OS"], &rows);
        assert_eq!(
            shown.lines().nth(1).unwrap(),
            "\u{fffd}[2Jroot\u{fffd}\u{fffd}  x"
        );
        assert_eq!(shown.lines().count(), 2);
    }

    #[test]
    fn times_are_relative_in_one_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |offset: i64| relative(Timestamp::from_second(1_000_000 + offset).unwrap(), now);
        assert_eq!(at(0), "now");
        assert_eq!(at(-5), "5 s ago");
        assert_eq!(at(-720), "12 min ago");
        assert_eq!(at(3 * 3600), "in 3 h");
        assert_eq!(at(180 * 86_400), "in 180 d");
    }
}
