//! Extra records: names beside those of nodes.
//!
//! The form is that of Headscale's file: `{"name": "db.x", "type": "A", "value": "10.0.0.1"}`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::name::{DnsName, NameError};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct ExtraRecord {
    /// Its full name.
    pub name: DnsName,
    /// Its type and value.
    pub data: RecordData,
}

/// The type and value of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordData {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// An alias of a node, by its name or full name, or of another record.
    Cname(DnsName),
}

/// The texts of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
    value: String,
}

/// The texts are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The name, or that of an alias.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The value does not fit the type.
    #[error("\"{value}\" is not the value of a record of type {kind}, which is {expected}")]
    Value {
        /// The type.
        kind: &'static str,
        /// The value.
        value: String,
        /// The form of values of that type.
        expected: &'static str,
    },
    /// Clients do not answer for the type.
    #[error(
        "type \"{0}\" is not possible: clients answer for A, AAAA and CNAME only; serve other records from a name server of your own, with split DNS for its zone"
    )]
    Kind(String),
}

impl ExtraRecord {
    /// A record from its texts. Without a type, it follows from the value.
    ///
    /// # Errors
    /// They are not one.
    pub fn parse(name: &str, kind: &str, value: &str) -> Result<Self, RecordError> {
        let wrong = |kind, expected| RecordError::Value {
            kind,
            value: value.to_owned(),
            expected,
        };
        let data = match (kind.to_ascii_uppercase().as_str(), value.parse::<IpAddr>()) {
            ("" | "A", Ok(IpAddr::V4(ip))) => RecordData::A(ip),
            ("" | "AAAA", Ok(IpAddr::V6(ip))) => RecordData::Aaaa(ip),
            ("A", _) => return Err(wrong("A", "an IPv4 address")),
            ("AAAA", _) => return Err(wrong("AAAA", "an IPv6 address")),
            ("CNAME", Err(_)) => RecordData::Cname(value.parse()?),
            ("CNAME", Ok(_)) => return Err(wrong("CNAME", "a name")),
            ("", Err(_)) => return Err(wrong("A or AAAA", "an address")),
            _ => return Err(RecordError::Kind(kind.to_owned())),
        };
        let name = name.parse()?;
        Ok(Self { name, data })
    }
}

impl RecordData {
    /// The type.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::A(_) => "A",
            Self::Aaaa(_) => "AAAA",
            Self::Cname(_) => "CNAME",
        }
    }

    /// The value as text.
    #[must_use]
    pub fn value(&self) -> String {
        match self {
            Self::A(ip) => ip.to_string(),
            Self::Aaaa(ip) => ip.to_string(),
            Self::Cname(name) => name.to_string(),
        }
    }
}

impl fmt::Display for ExtraRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.name,
            self.data.kind(),
            self.data.value()
        )
    }
}

impl TryFrom<Text> for ExtraRecord {
    type Error = RecordError;

    fn try_from(text: Text) -> Result<Self, RecordError> {
        Self::parse(&text.name, &text.kind, &text.value)
    }
}

impl From<ExtraRecord> for Text {
    fn from(record: ExtraRecord) -> Self {
        Self {
            name: record.name.to_string(),
            kind: record.data.kind().to_owned(),
            value: record.data.value(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types_that_clients_answer_for_are_records() {
        for (kind, value, shown) in [
            ("A", "10.0.0.1", "x.y A 10.0.0.1"),
            ("", "10.0.0.1", "x.y A 10.0.0.1"),
            ("aaaa", "fd00::1", "x.y AAAA fd00::1"),
            ("CNAME", "Db.net.example.", "x.y CNAME db.net.example"),
        ] {
            let record = ExtraRecord::parse("X.y.", kind, value).unwrap();
            assert_eq!(record.to_string(), shown);
            let json = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<ExtraRecord>(&json).unwrap(), record);
        }
        for (kind, value, why) in [
            ("A", "fd00::1", "an IPv4 address"),
            ("AAAA", "10.0.0.1", "an IPv6 address"),
            ("A", "x", "an IPv4 address"),
            ("", "x", "an address"),
            ("CNAME", "10.0.0.1", "a name"),
            ("TXT", "x", "split DNS"),
            ("CNAME", "*.x", "wildcards"),
        ] {
            let error = ExtraRecord::parse("x.y", kind, value).unwrap_err();
            assert!(error.to_string().contains(why), "{kind} {value}: {error}");
        }
        assert!(ExtraRecord::parse("*.y", "A", "10.0.0.1").is_err());
        let more = r#"{"name": "x", "type": "A", "value": "10.0.0.1", "ttl": 1}"#;
        assert!(serde_json::from_str::<ExtraRecord>(more).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(name in ".{0,20}", kind in "A|AAAA|CNAME|.{0,4}", value in ".{0,20}") {
            let _ = ExtraRecord::parse(&name, &kind, &value);
        }
    }
}
