//! What is wrong with a policy file, as data: where, what, and what to do.

use std::fmt;
use std::ops::Range;

/// One error in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// What would be right, when that can be said.
    pub help: Option<String>,
    /// Bytes of the file that are meant.
    pub span: Range<usize>,
    /// Line of the first byte, from 1.
    pub line: usize,
    /// Column of the first byte in characters, from 1.
    pub column: usize,
    /// The piece of text that is meant, cut to its first line.
    pub text: String,
}

impl Diagnostic {
    /// An error about the bytes `span` of `source`.
    pub(crate) fn new(
        source: &str,
        span: Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Self {
        let before = source.get(..span.start).unwrap_or(source);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let text = source.get(span.clone()).unwrap_or_default();
        Self {
            message: message.into(),
            help,
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            text: text.lines().next().unwrap_or_default().to_owned(),
            span,
        }
    }

    /// The error with the line it is in and a mark under the piece of text,
    /// for a terminal. `source` is the file that was parsed.
    #[must_use]
    pub fn render(&self, file: &str, source: &str) -> String {
        let line = source
            .lines()
            .nth(self.line.saturating_sub(1))
            .unwrap_or_default();
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay tabs in front of the mark, so that it stands below.
        let lead: String = line
            .chars()
            .take(self.column.saturating_sub(1))
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let mark = "^".repeat(self.text.chars().count().max(1));
        let mut out = format!(
            "error: {}\n{margin}--> {file}:{}:{}\n{margin} |\n{number} | {line}\n{margin} | {lead}{mark}\n",
            self.message, self.line, self.column
        );
        if let Some(help) = &self.help {
            out.push_str(&format!("{margin} = help: {help}\n"));
        }
        out
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// "did you mean" for a name that is not among `known`, if one is close.
pub(crate) fn did_you_mean<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let limit = name.chars().count() / 3 + 1;
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| format!("did you mean {candidate:?}?"))
}

/// Edits (insert, delete, replace, swap of neighbours) between two names,
/// letter case aside.
fn distance(a: &str, b: &str) -> usize {
    // A name from a hostile file may be megabytes long; long names and those
    // that differ much in length are never close.
    if a.len().max(b.len()) > 256 || a.len().abs_diff(b.len()) > 16 {
        return usize::MAX;
    }
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    let at = |rows: &[Vec<usize>], i: usize, j: usize| -> usize {
        rows.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0)
    };
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let left = row.last().copied().unwrap_or(0);
            let mut best = (at(&rows, i, j) + usize::from(x != y))
                .min(at(&rows, i, j + 1) + 1)
                .min(left + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&rows, i - 1, j - 1) + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    at(&rows, a.len(), b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_suggested() {
        assert_eq!(
            did_you_mean("acl", ["acls", "hosts"]).as_deref(),
            Some("did you mean \"acls\"?")
        );
        assert_eq!(
            did_you_mean("tagowners", ["tagOwners"]).as_deref(),
            Some("did you mean \"tagOwners\"?")
        );
        assert_eq!(did_you_mean("zzzzz", ["acls", "hosts"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("tpc", "TCP"), 1);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn a_rendered_error_points_at_the_text() {
        let source = "{\n\t\"aclz\": []\n}";
        let found = Diagnostic::new(source, 3..9, "unknown field: \"aclz\"", None);
        assert_eq!(
            found.render("policy.hujson", source),
            "error: unknown field: \"aclz\"\n --> policy.hujson:2:2\n  |\n2 | \t\"aclz\": []\n  | \t^^^^^^\n"
        );
    }
}
