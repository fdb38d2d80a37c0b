//! Settings as text, and what differs between two.

use serde_json::{Value, json};

use super::reader::{Entry, Origin, Takes};

impl Entry {
    fn shown(&self) -> &str {
        self.hidden.as_ref().unwrap_or(&self.text)
    }

    /// The name of the key with its section.
    fn path(&self) -> String {
        format!("{} {}", self.section, self.name)
    }
}

/// The settings as a file would have them, each with where it comes from. Keys that were
/// not given are comments.
#[must_use]
pub fn to_toml(entries: &[Entry]) -> String {
    let mut out = String::new();
    let mut section = "";
    for entry in entries {
        if entry.section != section {
            section = &entry.section;
            if !out.is_empty() {
                out.push('\n');
            }
            // A provider is shown as it is written, with its name as a key.
            let header = section.split_once("]] ").map_or(section, |_| "[[oidc]]");
            out += &format!("{header}\n");
        }
        match entry.origin {
            Origin::Default => {
                let text = entry.shown();
                // Some defaults are descriptions.
                let is_value = text.starts_with(['"', '[', '{']) || !text.contains(' ');
                let sign = if is_value { " =" } else { ":" };
                out += &format!("# {}{sign} {text}\n", entry.name);
            }
            _ => out += &format!("{} = {}  # {}\n", entry.name, entry.shown(), entry.origin),
        }
    }
    out
}

/// The settings as JSON.
#[must_use]
pub fn to_json(entries: &[Entry]) -> Value {
    let entries = entries.iter().map(|entry| {
        json!({
            "section": entry.section,
            "key": entry.name,
            "value": entry.shown(),
            "origin": entry.origin.to_string(),
            "takes": match entry.takes {
                Takes::Reload => "reload",
                Takes::Restart => "restart",
            },
        })
    });
    entries.collect()
}

/// The names of the keys whose values differ: those that a reload takes, and those that
/// need a restart.
#[must_use]
pub fn changed(old: &[Entry], new: &[Entry]) -> (Vec<String>, Vec<String>) {
    let mut live = Vec::new();
    let mut restart = Vec::new();
    let same =
        |a: &Entry, b: &Entry| a.text == b.text && a.section == b.section && a.name == b.name;
    let added = new
        .iter()
        .filter(|new| !old.iter().any(|old| same(old, new)));
    let gone = old.iter().filter(|old| {
        let still = |new: &Entry| new.section == old.section && new.name == old.name;
        !new.iter().any(still)
    });
    for entry in added.chain(gone) {
        match entry.takes {
            Takes::Reload => live.push(entry.path()),
            Takes::Restart => restart.push(entry.path()),
        }
    }
    (live, restart)
}
