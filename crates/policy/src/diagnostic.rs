//! Errors in a policy file as data: position, message and advice.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// One error in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The message: what is not valid.
    pub message: String,
    /// Advice on how to correct it, if there is any.
    pub help: Option<String>,
    /// The byte range in the file to which the error refers.
    pub span: Range<usize>,
    /// Line of the first byte, from 1.
    pub line: usize,
    /// Column of the first byte in characters, from 1.
    pub column: usize,
    /// The text of that range, cut to its first line and to 200 characters.
    pub text: String,
}

/// An error before its line and column are computed.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) span: Range<usize>,
    message: String,
    help: Option<String>,
}

impl Found {
    pub(crate) fn new(
        span: Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Self {
        Self {
            span,
            message: message.into(),
            help,
        }
    }
}

/// Characters of a line that [`Diagnostic::render`] shows.
const SHOWN: usize = 100;

/// Characters of a line shown in front of the piece of text that is meant, if
/// the line is too long.
const LEAD: usize = 40;

/// The length to which [`Diagnostic::text`] is cut, in characters.
const KEPT: usize = 200;

impl Diagnostic {
    /// An error about the bytes `span` of `source`.
    pub(crate) fn new(
        source: &str,
        span: Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Self {
        let mut cursor = LineCursor::default();
        cursor.advance(source, span.start);
        cursor.diagnostic(source, Found::new(span, message, help))
    }

    /// Computes the lines of errors in one pass over `source`. The errors must
    /// be in the order of their positions.
    pub(crate) fn locate(source: &str, found: Vec<Found>) -> Vec<Self> {
        let mut cursor = LineCursor::default();
        let found = found.into_iter().map(|found| {
            cursor.advance(source, found.span.start);
            cursor.diagnostic(source, found)
        });
        found.collect()
    }

    /// The error for a file that is not UTF-8.
    pub(crate) fn not_utf8(bytes: &[u8], error: std::str::Utf8Error) -> Self {
        let at = error.valid_up_to();
        let valid = bytes
            .get(..at)
            .and_then(|valid| std::str::from_utf8(valid).ok())
            .unwrap_or_default();
        let byte = bytes.get(at).copied().unwrap_or_default();
        let end = error.error_len().map_or(bytes.len(), |len| at + len);
        let help = "save the file as UTF-8, without byte order mark".to_owned();
        let message = format!("the file is not UTF-8: byte 0x{byte:02x} at offset {at}");
        let mut out = Self::new(valid, at..at, message, Some(help));
        out.span = at..end;
        out.text = char::REPLACEMENT_CHARACTER.to_string();
        out
    }

    /// The error with the line it is in and a mark under the piece of text,
    /// for a terminal. `source` is the file that was parsed. Of a very long
    /// line only the part around the mark is shown.
    #[must_use]
    pub fn render(&self, file: &str, source: &str) -> String {
        let start = self.span.start.min(source.len());
        let start = (0..=start)
            .rev()
            .find(|at| source.is_char_boundary(*at))
            .unwrap_or(0);
        let (before, after) = source.split_at(start);
        let before = before.rsplit('\n').next().unwrap_or_default();
        let after = after.lines().next().unwrap_or_default();
        let is_long = self.column - 1 + after.chars().take(SHOWN).count() > SHOWN;
        let lead_limit = if is_long { LEAD } else { SHOWN };
        let mut lead: String = before.chars().rev().take(lead_limit).collect();
        lead = lead.chars().rev().collect();
        if lead.len() < before.len() {
            lead.insert(0, '…');
        }
        let left = SHOWN.saturating_sub(lead.chars().count()).max(1);
        let mut shown: String = after.chars().take(left).collect();
        let marked = self
            .text
            .chars()
            .count()
            .clamp(1, shown.chars().count().max(1));
        if shown.len() < after.len() {
            shown.push('…');
        }
        let marked: usize = shown.chars().take(marked).map(char::len_utf8).sum();
        let line = format!("{lead}{shown}");
        // An error at the end of a line is marked behind its last character.
        let mark = lead.len()..lead.len() + marked;
        let snippet = Snippet::source(line.as_str())
            .line_start(self.line)
            .annotation(AnnotationKind::Primary.span(mark));
        // Only a part of the line is passed on, so title and position, which
        // speak of the whole file, are written here.
        let body = Renderer::plain().render(&[Group::with_level(Level::ERROR).element(snippet)]);
        let margin = " ".repeat(self.line.to_string().len());
        let mut out = format!(
            "error: {}\n{margin}--> {file}:{}:{}\n{body}\n",
            self.message, self.line, self.column
        );
        if let Some(help) = &self.help {
            out.push_str(&format!("{margin} = help: {help}\n"));
        }
        out
    }

    /// The error for programs: `message`, `help` (or null), `line`, `column`,
    /// `start` and `end` (bytes of the file), `text`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "message": self.message,
            "help": self.help,
            "line": self.line,
            "column": self.column,
            "start": self.span.start,
            "end": self.span.end,
            "text": self.text,
        })
    }
}

/// A position in a file: byte, line and column.
struct LineCursor {
    at: usize,
    line: usize,
    column: usize,
}

impl Default for LineCursor {
    fn default() -> Self {
        Self {
            at: 0,
            line: 1,
            column: 1,
        }
    }
}

impl LineCursor {
    fn advance(&mut self, source: &str, to: usize) {
        for c in source.get(self.at..to).unwrap_or_default().chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.at = self.at.max(to);
    }

    /// Completes an error at this position.
    fn diagnostic(&self, source: &str, found: Found) -> Diagnostic {
        let text = source.get(found.span.clone()).unwrap_or_default();
        let text = text.lines().next().unwrap_or_default();
        Diagnostic {
            message: found.message,
            help: found.help,
            line: self.line,
            column: self.column,
            text: text.chars().take(KEPT).collect(),
            span: found.span,
        }
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

/// The number of known names that an unknown one is compared with.
const CANDIDATES: usize = 2_000;

/// Advice "did you mean" for a name that is not among `known`, if one is
/// similar.
pub(crate) fn did_you_mean<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let limit = name.chars().count() / 3 + 1;
    known
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= limit * 4)
        .take(CANDIDATES)
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| format!("did you mean {candidate:?}?"))
}

/// The edit distance (insert, delete, replace, swap of neighbours) between two
/// names, ignoring letter case.
fn distance(a: &str, b: &str) -> usize {
    // A name in a hostile file may be megabytes long. Long names, and names of
    // very different length, are never similar.
    if a.len().max(b.len()) > 256 || a.len().abs_diff(b.len()) > 16 {
        return usize::MAX;
    }
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    // A common prefix and suffix cost nothing; names in one file often share
    // them.
    let alike = |(x, y): &(&char, &char)| x == y;
    let begin = a.iter().zip(&b).take_while(alike).count();
    let (a, b) = (
        a.get(begin..).unwrap_or_default(),
        b.get(begin..).unwrap_or_default(),
    );
    let end = a.iter().rev().zip(b.iter().rev()).take_while(alike).count();
    let (a, b) = (
        a.get(..a.len() - end).unwrap_or_default(),
        b.get(..b.len() - end).unwrap_or_default(),
    );
    if a.is_empty() || b.is_empty() {
        return a.len().max(b.len());
    }
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
    fn rendered_error_marks_the_text_in_its_line() {
        for (line, text, shown, mark) in [
            ("  \"aclz\": []", "\"aclz\"", "  \"aclz\": []", "  ^^^^^^"),
            // A tab is shown as four spaces.
            (
                "\t\"aclz\": []",
                "\"aclz\"",
                "    \"aclz\": []",
                "    ^^^^^^",
            ),
            // Wide characters and emoji take two columns, marks none.
            ("\"日本\": x", "x", "\"日本\": x", "        ^"),
            (
                "\"🦀\": \"🦀🦀\"",
                "\"🦀🦀\"",
                "\"🦀\": \"🦀🦀\"",
                "      ^^^^^^",
            ),
            ("\"e\u{301}\": x", "x", "\"e\u{301}\": x", "     ^"),
            // Control characters do not reach the terminal.
            ("\"\u{1b}[31m\": x", "x", "\"␛[31m\": x", "         ^"),
        ] {
            let source = format!("{{\n{line}\n}}");
            let start = source.rfind(text).unwrap_or_default();
            let found = Diagnostic::new(&source, start..start + text.len(), "wrong", None);
            let column = found.column;
            assert_eq!(
                found.render("policy.hujson", &source),
                format!(
                    "error: wrong\n --> policy.hujson:2:{column}\n  |\n2 | {shown}\n  | {mark}\n"
                )
            );
        }
    }
}
