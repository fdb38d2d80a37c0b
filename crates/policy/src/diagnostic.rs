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

/// Edits (insert, delete, replace) between two names, letter case aside.
fn distance(a: &str, b: &str) -> usize {
    // A name from a hostile file may be megabytes long; names that differ so
    // much in length are never close.
    if a.len().abs_diff(b.len()) > 16 {
        return usize::MAX;
    }
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let cost = diagonal + usize::from(x != *y);
            left = cost.min(above + 1).min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
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
