//! HuJSON (JSON with comments and trailing commas) as a tree of values with
//! their byte ranges in the file.
//!
//! The underlying parser is lenient. Everything that is not HuJSON is disabled
//! or refused here, so that a file that we accept is accepted by other readers
//! of the format too.

use std::ops::Range;

use jsonc_parser::ast;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};

use crate::diagnostic::Diagnostic;

/// A value and its byte range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spanned {
    pub(crate) span: Range<usize>,
    pub(crate) value: Value,
}

/// A JSON value; members in file order, duplicates included.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Spanned>),
    Object(Vec<Member>),
}

/// A member of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) name_span: Range<usize>,
    pub(crate) value: Spanned,
}

impl Spanned {
    pub(crate) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// The kind of the value, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }

    /// The value without positions, for values that are passed through.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(text) => serde_json::from_str(text).unwrap_or_default(),
            Value::String(text) => text.clone().into(),
            Value::Array(values) => values.iter().map(Self::to_json).collect(),
            Value::Object(members) => members
                .iter()
                .map(|member| (member.name.clone(), member.value.to_json()))
                .collect(),
        }
    }
}

/// Parses a file. It must hold a value: a file with nothing but white space and
/// comments may have been cut, so it is an error.
pub(crate) fn parse(source: &str) -> Result<Spanned, Diagnostic> {
    check_characters(source)?;
    let parsed = parse_to_ast(
        source,
        &CollectOptions {
            comments: CommentCollectionStrategy::Off,
            tokens: false,
        },
        &ParseOptions {
            allow_comments: true,
            allow_trailing_commas: true,
            allow_loose_object_property_names: false,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        },
    )
    .map_err(|error| {
        let range = error.range();
        let message = error.kind().to_string();
        let mut letters = message.chars();
        let message: String = letters
            .next()
            .map(|first| first.to_lowercase().chain(letters).collect())
            .unwrap_or_default();
        Diagnostic::new(source, range.start..range.end, message, None)
    })?;
    parsed.value.map(convert).ok_or_else(|| {
        let message = if source.trim().is_empty() {
            "the file is empty"
        } else {
            "the file holds only comments"
        };
        let help = "a policy is one object; {} is a policy without rules, which allows everything";
        let end = source.len();
        Diagnostic::new(source, end..end, message, Some(help.to_owned()))
    })
}

fn convert(value: ast::Value<'_>) -> Spanned {
    match value {
        ast::Value::NullKeyword(null) => spanned(null.range, Value::Null),
        ast::Value::BooleanLit(lit) => spanned(lit.range, Value::Bool(lit.value)),
        ast::Value::NumberLit(lit) => spanned(lit.range, Value::Number(lit.value.to_owned())),
        ast::Value::StringLit(lit) => spanned(lit.range, Value::String(lit.value.into_owned())),
        ast::Value::Array(array) => spanned(
            array.range,
            Value::Array(array.elements.into_iter().map(convert).collect()),
        ),
        ast::Value::Object(object) => {
            let members = object.properties.into_iter().map(|property| {
                let (name_range, name) = match property.name {
                    ast::ObjectPropName::String(lit) => (lit.range, lit.value.into_owned()),
                    ast::ObjectPropName::Word(lit) => (lit.range, lit.value.to_owned()),
                };
                Member {
                    name,
                    name_span: name_range.start..name_range.end,
                    value: convert(property.value),
                }
            });
            spanned(object.range, Value::Object(members.collect()))
        }
    }
}

fn spanned(range: jsonc_parser::common::Range, value: Value) -> Spanned {
    Spanned {
        span: range.start..range.end,
        value,
    }
}

/// The state of the character scan.
#[derive(Clone, Copy)]
enum ScanState {
    Outside,
    Slash,
    Text { escaped: bool },
    LineComment,
    BlockComment { star: bool },
}

/// The maximum nesting depth of arrays and objects. The language itself needs
/// five; the rest is for values that are passed through.
const MAX_DEPTH: usize = 64;

/// Refuses input that the parser would accept: white space that is not part of
/// JSON, control characters inside strings, and nesting that would cause deep
/// recursion.
fn check_characters(source: &str) -> Result<(), Diagnostic> {
    let mut state = ScanState::Outside;
    let mut depth: usize = 0;
    for (at, c) in source.char_indices() {
        if matches!(state, ScanState::Outside | ScanState::Slash) {
            match c {
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if depth > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} arrays and objects");
            return Err(Diagnostic::new(source, at..at + 1, message, None));
        }
        let refuse = |message: &str| {
            let span = at..at + c.len_utf8();
            let message = format!("{message} (U+{:04X})", u32::from(c));
            Err(Diagnostic::new(source, span, message, None))
        };
        state = match (state, c) {
            (ScanState::Text { .. }, c) if c < ' ' => {
                return refuse("control character inside a string; write it as an escape");
            }
            (ScanState::Text { escaped: true }, _) => ScanState::Text { escaped: false },
            (ScanState::Text { .. }, '\\') => ScanState::Text { escaped: true },
            (ScanState::Text { .. }, '"') => ScanState::Outside,
            (ScanState::Text { .. }, _) => state,
            (ScanState::LineComment, '\n') => ScanState::Outside,
            (ScanState::LineComment, _) => state,
            (ScanState::BlockComment { star: true }, '/') => ScanState::Outside,
            (ScanState::BlockComment { .. }, c) => ScanState::BlockComment { star: c == '*' },
            (ScanState::Slash, '/') => ScanState::LineComment,
            (ScanState::Slash, '*') => ScanState::BlockComment { star: false },
            (ScanState::Outside | ScanState::Slash, '"') => ScanState::Text { escaped: false },
            (ScanState::Outside, '/') => ScanState::Slash,
            (ScanState::Outside | ScanState::Slash, ' ' | '\t' | '\r' | '\n' | '!'..='~') => {
                ScanState::Outside
            }
            (ScanState::Outside | ScanState::Slash, _) => {
                return refuse("character is not allowed outside strings and comments");
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_hujson_is_accepted() {
        for good in [
            "{}",
            "// note\n{\"a\": [1, 2,], /* x */ \"b\": {},}",
            "{\"a\": \"é // no comment \\\" /* \"}",
            "{\"a\": -1.5e3, \"b\": null, \"c\": true}",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " \n",
            " // nothing\n",
            "/* {} */",
            "{} /* cut",
            "{a: 1}",
            "{'a': 1}",
            "{\"a\": 1 \"b\": 2}",
            "{\"a\": 0x10}",
            "{\"a\": +1}",
            "{\"a\": .5}",
            "{\"a\": NaN}",
            "{\"a\": \"x\ny\"}",
            "{\u{a0}\"a\": 1}",
            "\u{feff}{}",
            "{\"a\": 1",
            "# no\n{}",
            "{} {}",
            "{\"a\": \"\\x41\"}",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let bomb = parse(&"[{\"a\":".repeat(100_000)).unwrap_err();
        assert!(bomb.message.contains("nested deeper"), "{bomb}");
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert!(parse(&deep).is_ok());
    }

    #[test]
    fn values_have_their_byte_range() {
        let source = "{\n  \"a\": [\"xy\"]\n}";
        let tree = parse(source).unwrap();
        let Value::Object(members) = tree.value else {
            panic!("no object")
        };
        assert_eq!(&source[members[0].name_span.clone()], "\"a\"");
        let Value::Array(items) = &members[0].value.value else {
            panic!("no array")
        };
        assert_eq!(&source[items[0].span.clone()], "\"xy\"");
    }
}
