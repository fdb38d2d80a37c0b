//! One assertion of a posture: parsing, and evaluation against the attributes
//! of a host.
//!
//! ```text
//! node:os == 'linux'             node:tsVersion >= '1.40'
//! node:os IN ['macos', 'linux']  falcon:ztaScore > 50
//! custom:tier NOT IN ['x']       custom:managed == true
//! node:tsAutoUpdate              ip:country IS SET
//! ```

use std::cmp::Ordering;
use std::fmt;

use super::{AttributeValue, Attributes, Number};

/// Attributes that a node reports about itself.
const NODE_ATTRIBUTES: [&str; 6] = [
    "node:os",
    "node:osVersion",
    "node:tsAutoUpdate",
    "node:tsReleaseTrack",
    "node:tsStateEncrypted",
    "node:tsVersion",
];

/// An assertion about one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assertion {
    pub(crate) attribute: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equal(AttributeValue),
    NotEqual(AttributeValue),
    In(Vec<AttributeValue>),
    NotIn(Vec<AttributeValue>),
    /// Comparison with this value. For attributes that hold versions, both are
    /// compared as versions.
    Ordered(Relation, AttributeValue),
    IsSet,
    NotSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// An error in an assertion, and its position as a byte offset in the text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) at: usize,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Assertion {
    /// Parses an assertion.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let mut words = Words { text, at: 0 };
        words.skip_space();
        let attribute = words.attribute()?;
        words.skip_space();
        let start = words.at;
        let test = match words.operator() {
            None => Test::Equal(AttributeValue::Bool(true)),
            Some("==") => Test::Equal(words.value()?),
            Some("!=") => Test::NotEqual(words.value()?),
            Some("IN") => Test::In(words.list()?),
            Some("NOT IN") => Test::NotIn(words.list()?),
            Some("IS SET") => Test::IsSet,
            Some("NOT SET") => Test::NotSet,
            Some(order) => {
                let relation = match order {
                    "<" => Relation::Less,
                    "<=" => Relation::LessOrEqual,
                    ">" => Relation::Greater,
                    _ => Relation::GreaterOrEqual,
                };
                words.skip_space();
                let at = words.at;
                let value = words.value()?;
                let fits = match &value {
                    AttributeValue::Number(_) => true,
                    AttributeValue::Text(text) => {
                        is_version(&attribute) && Version::parse(text).is_some()
                    }
                    AttributeValue::Bool(_) => false,
                };
                if !fits {
                    let message = format!("{attribute} cannot be compared by {order} with {value}");
                    let help = "expected a number, or a version such as '1.84' for node:tsVersion and node:osVersion";
                    return Err(words.problem_at(at, message, Some(help)));
                }
                Test::Ordered(relation, value)
            }
        };
        words.skip_space();
        if words.at < text.len() {
            let (at, help) = if words.at == start {
                (
                    start,
                    "expected ==, !=, <, <=, >, >=, IN [..], NOT IN [..], IS SET or NOT SET",
                )
            } else {
                (
                    words.at,
                    "one assertion a string; all of a posture must hold",
                )
            };
            return Err(words.problem_at(at, "unexpected text", Some(help)));
        }
        Ok(Self { attribute, test })
    }

    /// Whether a host with these attributes satisfies the assertion.
    pub(crate) fn holds(&self, attributes: &Attributes) -> bool {
        let Some(value) = attributes.get(&self.attribute) else {
            return self.test == Test::NotSet;
        };
        let equal = |wanted: &AttributeValue| self.compare(value, wanted) == Some(Ordering::Equal);
        match &self.test {
            Test::Equal(wanted) => equal(wanted),
            Test::NotEqual(wanted) => !equal(wanted),
            Test::In(wanted) => wanted.iter().any(equal),
            Test::NotIn(wanted) => !wanted.iter().any(equal),
            Test::Ordered(relation, wanted) => match (self.compare(value, wanted), relation) {
                (None, _) => false,
                (Some(order), Relation::Less) => order.is_lt(),
                (Some(order), Relation::LessOrEqual) => order.is_le(),
                (Some(order), Relation::Greater) => order.is_gt(),
                (Some(order), Relation::GreaterOrEqual) => order.is_ge(),
            },
            Test::IsSet => true,
            Test::NotSet => false,
        }
    }

    /// Compares two values; `None` if they are of different kinds.
    fn compare(&self, value: &AttributeValue, wanted: &AttributeValue) -> Option<Ordering> {
        match (value, wanted) {
            (AttributeValue::Text(value), AttributeValue::Text(wanted)) => {
                if is_version(&self.attribute)
                    && let (Some(value), Some(wanted)) =
                        (Version::parse(value), Version::parse(wanted))
                {
                    return Some(value.cmp(&wanted));
                }
                Some(value.cmp(wanted))
            }
            (AttributeValue::Number(value), AttributeValue::Number(wanted)) => {
                Some(value.cmp(wanted))
            }
            (AttributeValue::Bool(value), AttributeValue::Bool(wanted)) => Some(value.cmp(wanted)),
            _ => None,
        }
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &[AttributeValue]| {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            values.join(", ")
        };
        f.write_str(&self.attribute)?;
        match &self.test {
            Test::Equal(value) => write!(f, " == {value}"),
            Test::NotEqual(value) => write!(f, " != {value}"),
            Test::In(values) => write!(f, " IN [{}]", list(values)),
            Test::NotIn(values) => write!(f, " NOT IN [{}]", list(values)),
            Test::Ordered(relation, value) => {
                let sign = match relation {
                    Relation::Less => "<",
                    Relation::LessOrEqual => "<=",
                    Relation::Greater => ">",
                    Relation::GreaterOrEqual => ">=",
                };
                write!(f, " {sign} {value}")
            }
            Test::IsSet => f.write_str(" IS SET"),
            Test::NotSet => f.write_str(" NOT SET"),
        }
    }
}

/// Whether the values of this attribute are versions.
fn is_version(attribute: &str) -> bool {
    matches!(attribute, "node:tsVersion" | "node:osVersion")
}

/// Compares versions: numbers between dots, part by part; a missing part is 0.
/// The text after a `-` (a build) is ignored.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(Vec<u64>);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let release = text.split('-').next().unwrap_or(text);
        let parts = release.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            part.parse().ok().filter(|_| digits)
        });
        let mut parts: Vec<u64> = parts.collect::<Option<_>>()?;
        while parts.last() == Some(&0) {
            parts.pop();
        }
        Some(Self(parts))
    }
}

/// The assertion under parse, and the current position.
struct Words<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Words<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn problem_at(&self, at: usize, message: impl Into<String>, help: Option<&str>) -> Problem {
        Problem {
            at: at.min(self.text.len()),
            message: message.into(),
            help: help.map(str::to_owned),
        }
    }

    fn attribute(&mut self) -> Result<String, Problem> {
        let start = self.at;
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        let rest = self.rest();
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default();
        self.at += end;
        let fits = name.split_once(':').is_some_and(|(space, name)| {
            !space.is_empty() && !name.is_empty() && !name.contains(':')
        });
        if !fits {
            let help = "expected an attribute with its name space, such as node:os or custom:tier";
            return Err(self.problem_at(
                start,
                format!("{name:?} is not a valid attribute name"),
                Some(help),
            ));
        }
        if name.starts_with("node:") && !NODE_ATTRIBUTES.contains(&name) {
            let help = crate::diagnostic::did_you_mean(name, NODE_ATTRIBUTES);
            return Err(self.problem_at(
                start,
                format!("nodes do not report {name:?}"),
                help.as_deref(),
            ));
        }
        Ok(name.to_owned())
    }

    fn operator(&mut self) -> Option<&'static str> {
        const SIGNS: [&str; 6] = ["==", "!=", "<=", ">=", "<", ">"];
        let rest = self.rest();
        if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            self.at += sign.len();
            return Some(sign);
        }
        let start = self.at;
        for (words, name) in [
            (&["IN"][..], "IN"),
            (&["NOT", "IN"], "NOT IN"),
            (&["IS", "SET"], "IS SET"),
            (&["NOT", "SET"], "NOT SET"),
        ] {
            if words.iter().all(|word| self.word(word)) {
                return Some(name);
            }
            self.at = start;
        }
        None
    }

    /// Consumes a keyword, in any letter case.
    fn word(&mut self, word: &str) -> bool {
        self.skip_space();
        let rest = self.rest();
        let fits = rest
            .get(..word.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(word));
        let ends = !rest
            .get(word.len()..)
            .unwrap_or_default()
            .starts_with(|c: char| c.is_alphanumeric());
        if fits && ends {
            self.at += word.len();
        }
        fits && ends
    }

    fn value(&mut self) -> Result<AttributeValue, Problem> {
        self.skip_space();
        let (start, rest) = (self.at, self.rest());
        if let Some(inside) = rest.strip_prefix('\'') {
            let Some(end) = inside.find('\'') else {
                return Err(self.problem_at(start, "the text has no closing '", None));
            };
            self.at += end + 2;
            return Ok(AttributeValue::Text(
                inside.get(..end).unwrap_or_default().to_owned(),
            ));
        }
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | ']'))
            .unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default();
        self.at += end;
        let is_number = word.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        let number = word
            .parse()
            .ok()
            .and_then(Number::new)
            .filter(|_| is_number);
        match (word, number) {
            ("true", _) => Ok(AttributeValue::Bool(true)),
            ("false", _) => Ok(AttributeValue::Bool(false)),
            (_, Some(number)) => Ok(AttributeValue::Number(number)),
            ("", _) => Err(self.problem_at(start, "a value is missing", None)),
            (word, None) => Err(self.problem_at(
                start,
                format!("{word:?} is not a valid value"),
                Some("expected text in single quotes, a number, true or false"),
            )),
        }
    }

    fn list(&mut self) -> Result<Vec<AttributeValue>, Problem> {
        self.skip_space();
        let rest = self.rest();
        if !rest.starts_with('[') {
            return Err(self.problem_at(self.at, "expected a list such as ['a', 'b']", None));
        }
        self.at += 1;
        let mut out = Vec::new();
        loop {
            self.skip_space();
            if self.rest().starts_with(']') {
                self.at += 1;
                return Ok(out);
            }
            out.push(self.value()?);
            self.skip_space();
            match self.rest().chars().next() {
                Some(',') => self.at += 1,
                Some(']') => {}
                _ => return Err(self.problem_at(self.at, "expected , or ] in the list", None)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn host() -> Attributes {
        let mut host = Attributes::default();
        host.set_text("node:os", "linux");
        host.set_text("node:tsVersion", "1.84.2-t1234");
        host.set_bool("node:tsAutoUpdate", true);
        host.set_bool("custom:managed", false);
        let score = AttributeValue::Number(Number::new(50.0).unwrap());
        host.0.insert("falcon:ztaScore".to_owned(), score);
        host
    }

    #[test]
    fn assertions_hold_for_matching_attributes() {
        for (text, holds) in [
            ("node:os == 'linux'", true),
            ("node:os=='Linux'", false),
            ("node:os != 'linux'", false),
            ("node:os != 'macos'", true),
            ("node:os IN ['macos', 'linux']", true),
            ("node:os in ['macos']", false),
            ("node:os NOT IN ['macos',]", true),
            ("node:os NOT  IN ['linux']", false),
            ("node:tsVersion >= '1.84'", true),
            ("node:tsVersion == '1.84.2'", true),
            ("node:tsVersion > '1.9'", true),
            ("node:tsVersion < '1.84.10'", true),
            ("node:tsVersion <= '1.84.1'", false),
            ("falcon:ztaScore > 49.5", true),
            ("falcon:ztaScore >= 51", false),
            ("falcon:ztaScore == '50'", false),
            ("node:tsAutoUpdate", true),
            ("custom:managed", false),
            ("custom:managed == false", true),
            ("custom:managed IS SET", true),
            ("custom:managed NOT SET", false),
            ("ip:country IS SET", false),
            ("ip:country NOT SET", true),
            ("ip:country == 'CH'", false),
            ("ip:country != 'CH'", false),
            ("ip:country NOT IN ['CH']", false),
            ("custom:none", false),
        ] {
            let assertion = Assertion::parse(text).unwrap();
            assert_eq!(assertion.holds(&host()), holds, "{text}");
        }
    }

    #[test]
    fn malformed_assertions_are_refused_with_their_position() {
        for (text, at) in [
            ("", 0),
            ("os == 'x'", 0),
            ("node:oz == 'x'", 0),
            ("node:os == x", 11),
            ("node:os == 'x", 11),
            ("node:os = 'x'", 8),
            ("node:os IN 'x'", 11),
            ("node:os IN ['x' 'y']", 16),
            ("node:os == 'x' && node:os == 'y'", 15),
            ("node:os > 'x'", 10),
            ("falcon:ztaScore > true", 18),
            ("node:os ==", 10),
        ] {
            let problem = Assertion::parse(text).unwrap_err();
            assert_eq!(problem.at, at, "{text}: {problem:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_the_parser_panic(text in "(node:os|custom:é|'|\\[|\\]|,| |==|IN|NOT|SET|IS|<|-?[0-9.]{1,4}|\\PC){0,12}") {
            if let Err(problem) = Assertion::parse(&text) {
                prop_assert!(problem.at <= text.len());
            }
        }

        #[test]
        fn formatted_durations_parse_to_the_same_value(
            name in "[a-z]{1,5}:[a-zA-Z]{1,6}",
            op in 0usize..6,
            text in "[^'\\PC]{0,6}",
            number in -1000i32..1000,
        ) {
            prop_assume!(!name.starts_with("node:"));
            let source = match op {
                0 => format!("{name} == '{text}'"),
                1 => format!("{name} != {number}"),
                2 => format!("{name} IN ['{text}', {number}, true]"),
                3 => format!("{name} NOT IN []"),
                4 => format!("{name} <= {number}"),
                _ => format!("{name} NOT SET"),
            };
            let read = Assertion::parse(&source).unwrap();
            prop_assert_eq!(Assertion::parse(&read.to_string()).unwrap(), read);
        }
    }
}
