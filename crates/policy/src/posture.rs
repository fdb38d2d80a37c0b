//! Postures: conditions on the source host of a rule.
//!
//! A posture is a list of assertions about attributes of the source node
//! (`node:os == 'linux'`), all of which must hold. Of the postures that a rule
//! names one must hold. An attribute that a node does not have fails every
//! comparison, `!=` and `NOT IN` included; only `NOT SET` asks for its absence.

mod assertion;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

pub(crate) use assertion::Assertion;

/// The attributes of a host, by name with namespace (`node:os`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(pub BTreeMap<String, AttributeValue>);

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttributeValue {
    /// Text, such as `linux` or the version `1.84.0`.
    Text(String),
    /// A number, such as a score.
    Number(Number),
    /// A boolean.
    Bool(bool),
}

/// A finite number.
#[derive(Debug, Clone, Copy)]
pub struct Number(f64);

impl Number {
    /// `None` for NaN and infinities.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        // Adding zero turns -0 into 0, so that equal numbers are equal.
        value.is_finite().then_some(Self(value + 0.0))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0.total_cmp(&other.0).is_eq()
    }
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "'{text}'"),
            Self::Number(Number(number)) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}

impl Attributes {
    /// The value of an attribute.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&AttributeValue> {
        self.0.get(name)
    }

    /// Sets an attribute to some text.
    pub fn set_text(&mut self, name: &str, text: impl Into<String>) {
        let value = AttributeValue::Text(text.into());
        self.0.insert(name.to_owned(), value);
    }

    /// Sets an attribute to a boolean.
    pub fn set_bool(&mut self, name: &str, value: bool) {
        self.0.insert(name.to_owned(), AttributeValue::Bool(value));
    }
}
