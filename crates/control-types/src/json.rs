//! The rules of Go's JSON encoder, as far as the protocol depends on them.
//!
//! Every field of every message follows these rules:
//!
//! * On input, `null` and an absent key both mean the zero value, and unknown
//!   keys are ignored. A `null` inside a list or as a map value is skipped
//!   where the sender's language would have had a nil pointer.
//! * On output a field is either always there or left out when zero; which of
//!   the two is set per field, because other implementations rely on it.
//! * `[]byte` is padded base64, nil is `null`.
//! * Times are RFC 3339. The year 1 is how Go writes "no time".
//! * A key of 64 zeros, region 0 and the empty address are "none".
//! * Durations are integer nanoseconds; maps with integer keys are objects
//!   with decimal string keys.
//!
//! The functions and modules here are named in the `serde` attributes of the
//! types. [`from_slice`] adds the last rule, keys that match in any case, for
//! documents that people write by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

pub use crate::folded::from_slice;

/// Reads a value; `null` is the zero value.
pub(crate) fn or_zero<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Whether a field is left out by `omitempty` or `omitzero`.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads a list; `null` is the empty list, and `null` elements are dropped.
pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    optional_list(deserializer).map(Option::unwrap_or_default)
}

/// Reads a list; `null` is `None`, and `null` elements are dropped.
pub(crate) fn optional_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct ListVisitor<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
        type Value = Option<Vec<T>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list or null")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
            inner.deserialize_seq(self)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some(element) = elements.next_element::<Option<T>>()? {
                out.extend(element);
            }
            Ok(Some(out))
        }
    }

    deserializer.deserialize_option(ListVisitor(PhantomData))
}

/// Reads a map whose values are lists; a `null` value is the empty list.
pub(crate) fn map_of_lists<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let map = Option::<BTreeMap<String, Option<Vec<T>>>>::deserialize(deserializer)?;
    let map = map.unwrap_or_default().into_iter();
    Ok(map
        .map(|(key, values)| (key, values.unwrap_or_default()))
        .collect())
}

/// Reads a map; entries whose value is `null` are dropped.
pub(crate) fn map_without_nulls<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Ord + Deserialize<'de>,
    V: Deserialize<'de>,
{
    optional_map_without_nulls(deserializer).map(Option::unwrap_or_default)
}

/// Like [`map_without_nulls`]; a `null` map is `None`.
pub(crate) fn optional_map_without_nulls<'de, D, K, V>(
    deserializer: D,
) -> Result<Option<BTreeMap<K, V>>, D::Error>
where
    D: Deserializer<'de>,
    K: Ord + Deserialize<'de>,
    V: Deserialize<'de>,
{
    let map = Option::<BTreeMap<K, Option<V>>>::deserialize(deserializer)?;
    Ok(map.map(|map| {
        map.into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }))
}

/// Endpoints as text. Addresses with a zone (`fe80::1%eth0`) mean something on
/// one host only; they are dropped.
pub(crate) fn endpoints<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SocketAddr>, D::Error> {
    optional_endpoints(deserializer).map(Option::unwrap_or_default)
}

/// Like [`endpoints`]; `null` is `None`.
pub(crate) fn optional_endpoints<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    let Some(texts) = optional_list::<D, String>(deserializer)? else {
        return Ok(None);
    };
    let mut out = Vec::with_capacity(texts.len());
    for text in texts
        .iter()
        .filter(|text| !text.is_empty() && !text.contains('%'))
    {
        out.push(text.parse().map_err(|_| {
            serde::de::Error::custom(format_args!("{text:?} is not an address and a port"))
        })?);
    }
    Ok(Some(out))
}

/// A value whose zero means "none": keys, region ids, node ids.
pub(crate) mod zeroable {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S, T>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        T: Default + Serialize,
    {
        match value {
            Some(value) => value.serialize(serializer),
            None => T::default().serialize(serializer),
        }
    }

    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: Default + PartialEq + Deserialize<'de>,
    {
        let value = Option::<T>::deserialize(deserializer)?;
        Ok(value.filter(|value| *value != T::default()))
    }
}

/// A time; `None` is written as the year 1 where the field cannot be left out.
pub(crate) mod time {
    use jiff::Timestamp;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    const ZERO: &str = "0001-01-01T00:00:00Z";

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_str(ZERO),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        parse(text.as_deref().unwrap_or_default()).map_err(D::Error::custom)
    }

    pub(super) fn parse(text: &str) -> Result<Option<Timestamp>, jiff::Error> {
        if text.is_empty() {
            return Ok(None);
        }
        let time: Timestamp = text.parse()?;
        let unset = ZERO.parse::<Timestamp>().is_ok_and(|zero| time <= zero);
        Ok((!unset).then_some(time))
    }
}

/// A time in a patch: `None` leaves the field as it is, `Some(None)` (the year
/// 1) removes the time.
pub(crate) mod patched_time {
    use jiff::Timestamp;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Option<Timestamp>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        super::time::serialize(&time.flatten(), serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<Timestamp>>, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            None => Ok(None),
            Some(text) => super::time::parse(&text)
                .map(Some)
                .map_err(D::Error::custom),
        }
    }
}

/// `[]byte`: padded base64; empty is `null`.
pub(crate) mod base64 {
    use data_encoding::BASE64;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        if bytes.is_empty() {
            return serializer.serialize_none();
        }
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

/// `[]byte` in a patch: `None` leaves the field as it is.
pub(crate) mod optional_base64 {
    use data_encoding::BASE64;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&BASE64.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| BASE64.decode(text.as_bytes()))
            .transpose()
            .map_err(D::Error::custom)
    }
}

/// An IP address as text; `""` is none.
pub(crate) mod address {
    use std::net::IpAddr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        address: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str(""),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let address = text.parse();
        address
            .map(Some)
            .map_err(|_| D::Error::custom(format_args!("{text:?} is not an IP address")))
    }
}

/// A duration in nanoseconds; a negative one is zero.
pub(crate) mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let nanoseconds = Option::<i64>::deserialize(deserializer)?.unwrap_or(0);
        Ok(Duration::from_nanos(
            u64::try_from(nanoseconds).unwrap_or(0),
        ))
    }
}
