//! The conventions of Go's JSON package that programs for the official client rely
//! on.
//!
//! - A nil list or map is written as `null`, not left out ([`nullable`]).
//! - The zero time is `0001-01-01T00:00:00Z` ([`GoTime`]).
//! - The zero address is `""` ([`MaybeIp`]).
//! - On input, names match whatever their case, unknown names are ignored and
//!   `null` means "leave the default" ([`canonical_keys`]).

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::address::CanonicalIp;

/// The text form of the zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// A moment, or the zero time (`None`), which means "never".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoTime(pub Option<Timestamp>);

impl GoTime {
    /// The moment this long after the UNIX epoch; "never" when out of range.
    pub fn from_unix(since_epoch: Duration) -> Self {
        Self(
            i64::try_from(since_epoch.as_secs())
                .ok()
                .and_then(|seconds| {
                    Timestamp::new(seconds, i32::try_from(since_epoch.subsec_nanos()).ok()?).ok()
                }),
        )
    }

    /// Reads a time in RFC 3339, where the zero time and "" mean never.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text == ZERO_TIME {
            return Some(Self(None));
        }
        text.parse().ok().map(|at| Self(Some(at)))
    }

    /// The same moment, rounded to whole seconds.
    #[must_use]
    pub fn rounded(self) -> Self {
        let rounded = self.0.map(|at| at.round(Unit::Second).unwrap_or(at));
        Self(rounded)
    }

    /// Whether this is the zero time.
    pub fn is_never(&self) -> bool {
        self.0.is_none()
    }
}

impl From<Timestamp> for GoTime {
    fn from(at: Timestamp) -> Self {
        Self(Some(at))
    }
}

impl fmt::Display for GoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(at) => write!(f, "{at}"),
            None => f.write_str(ZERO_TIME),
        }
    }
}

impl Serialize for GoTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a valid time; expected RFC 3339"))
        })
    }
}

/// An address, or none, which is written as the empty text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MaybeIp(pub Option<IpAddr>);

impl Serialize for MaybeIp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(ip) => serializer.collect_str(&ip),
            None => serializer.serialize_str(""),
        }
    }
}

impl<'de> Deserialize<'de> for MaybeIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("") => Ok(Self(None)),
            Some(text) => text
                .parse()
                .map(|ip: CanonicalIp| Self(Some(ip.get())))
                .map_err(|_| D::Error::custom(format!("{text:?} is not a valid IP address"))),
        }
    }
}

/// Lists and maps that are `null` when empty; use with `#[serde(with = ..)]`.
pub mod nullable {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// A collection that can be empty.
    pub trait Collection {
        /// Whether there is nothing in it.
        fn is_empty(&self) -> bool;
    }

    impl<T> Collection for Vec<T> {
        fn is_empty(&self) -> bool {
            Vec::is_empty(self)
        }
    }

    impl<K, V> Collection for BTreeMap<K, V> {
        fn is_empty(&self) -> bool {
            BTreeMap::is_empty(self)
        }
    }

    /// Writes `null` for an empty collection.
    pub fn serialize<T: Collection + Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if value.is_empty() {
            serializer.serialize_none()
        } else {
            value.serialize(serializer)
        }
    }

    /// Reads `null` as an empty collection.
    pub fn deserialize<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
    }
}

/// Brings the names of a JSON object to the spelling in `known`, whatever case
/// they came in, and drops unknown names and `null` values.
///
/// If a name comes in several spellings, the exact one wins, otherwise the last.
pub fn canonical_keys(object: Map<String, Value>, known: &[&str]) -> Map<String, Value> {
    let mut out = Map::new();
    let mut exact = Vec::new();
    for (name, value) in object {
        let Some(key) = known.iter().find(|key| key.eq_ignore_ascii_case(&name)) else {
            continue;
        };
        if *key == name {
            exact.push(*key);
        } else if exact.contains(key) {
            continue;
        }
        if !value.is_null() {
            out.insert((*key).to_owned(), value);
        }
    }
    out
}

/// Reads `null` as the default; use with `#[serde(deserialize_with = ..)]`.
pub(crate) fn null_is_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// For `skip_serializing_if`.
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// For `skip_serializing_if`.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_zero_time_survives_both_ways() {
        assert_eq!(
            serde_json::to_string(&GoTime::default()).unwrap(),
            "\"0001-01-01T00:00:00Z\""
        );
        let zero: GoTime = serde_json::from_str("\"0001-01-01T00:00:00Z\"").unwrap();
        assert!(zero.is_never());
        let at: GoTime = serde_json::from_str("\"2026-02-03T04:05:06.000000007+01:00\"").unwrap();
        assert_eq!(at.to_string(), "2026-02-03T03:05:06.000000007Z");
        assert_eq!(
            GoTime::from_unix(Duration::from_secs(0)).to_string(),
            "1970-01-01T00:00:00Z"
        );
    }

    #[test]
    fn names_match_whatever_their_case() {
        let object = serde_json::json!({"wantrunning": true, "HOSTNAME": "a", "Hostname": "b", "hostname": "c", "Nope": 1, "CorpDNS": null});
        let Value::Object(object) = object else {
            unreachable!("an object literal")
        };
        let out = canonical_keys(object, &["WantRunning", "Hostname", "CorpDNS"]);
        assert_eq!(
            Value::Object(out),
            serde_json::json!({"WantRunning": true, "Hostname": "b"})
        );
    }

    #[test]
    fn no_address_is_an_empty_text() {
        assert_eq!(serde_json::to_string(&MaybeIp(None)).unwrap(), "\"\"");
        let ip: MaybeIp = serde_json::from_str("\"100.64.0.1\"").unwrap();
        assert_eq!(ip.0, Some("100.64.0.1".parse().unwrap()));
        assert!(serde_json::from_str::<MaybeIp>("\"x\"").is_err());
    }

    #[test]
    fn a_rounded_time_has_no_fraction() {
        for (text, expected) in [
            ("2026-02-03T04:05:06.298592884Z", "2026-02-03T04:05:06Z"),
            ("2026-02-03T04:05:59.5Z", "2026-02-03T04:06:00Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(GoTime::parse(text).unwrap().rounded().to_string(), expected);
        }
    }
}
