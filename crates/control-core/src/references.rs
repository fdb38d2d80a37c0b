//! References to nodes and users, as administrators type them.
//!
//! A reference names one thing whatever other things are called, because a
//! member chooses the name of a host and must not be able to catch a command
//! that was meant for another node:
//!
//! - a word of digits is always a number, never a name;
//! - `id:7` and `name:7` say which of the two is meant;
//! - names made from host names are never all digits
//!   ([`sanitize_hostname`](crate::sanitize_hostname)), and such names are
//!   refused where a person chooses one;
//! - an address is an address: no name has a dot or a colon.
//!
//! Where two records have one name all the same (one was imported), the
//! reference is refused and both are shown.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_control_types::{NodeId, UserId};

/// How a node is named in a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct NodeRef {
    text: String,
    target: NodeTarget,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeTarget {
    /// `None`: a number that no node can have.
    Number(Option<NodeId>),
    Address(IpAddr),
    /// In lower case, without a dot at the end; a label or a full name.
    Name(String),
}

impl NodeRef {
    pub(crate) fn target(&self) -> &NodeTarget {
        &self.target
    }
}

/// How a user is named in a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct UserRef {
    text: String,
    target: UserTarget,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserTarget {
    /// `None`: a number that no user can have.
    Number(Option<UserId>),
    /// Compared without regard to ASCII case.
    Name(String),
}

impl UserRef {
    pub(crate) fn target(&self) -> &UserTarget {
        &self.target
    }
}

/// A word that is a number or a name, by its form alone.
enum Word<'a> {
    Number(&'a str),
    Name(&'a str),
    /// Neither `id:` nor `name:` in front, and not only digits.
    Plain(&'a str),
}

fn word(text: &str) -> Word<'_> {
    if let Some(number) = text.strip_prefix("id:") {
        Word::Number(number)
    } else if let Some(name) = text.strip_prefix("name:") {
        Word::Name(name)
    } else if is_number(text) {
        Word::Number(text)
    } else {
        Word::Plain(text)
    }
}

/// Whether the text would read as a number.
pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn number(text: &str) -> Option<i64> {
    is_number(text).then(|| text.parse().ok()).flatten()
}

impl From<&str> for NodeRef {
    fn from(text: &str) -> Self {
        let name = |name: &str| {
            let lower = name.to_ascii_lowercase();
            NodeTarget::Name(lower.trim_end_matches('.').to_owned())
        };
        let target = match word(text) {
            Word::Number(digits) => NodeTarget::Number(number(digits).map(NodeId)),
            Word::Name(chosen) => name(chosen),
            Word::Plain(plain) => plain.parse().map_or_else(
                |_| name(plain),
                |address: IpAddr| NodeTarget::Address(address.to_canonical()),
            ),
        };
        Self {
            text: text.to_owned(),
            target,
        }
    }
}

impl From<&str> for UserRef {
    fn from(text: &str) -> Self {
        let target = match word(text) {
            Word::Number(digits) => UserTarget::Number(number(digits).map(UserId)),
            Word::Name(name) | Word::Plain(name) => UserTarget::Name(name.to_owned()),
        };
        Self {
            text: text.to_owned(),
            target,
        }
    }
}

impl From<NodeId> for NodeRef {
    fn from(id: NodeId) -> Self {
        Self {
            text: format!("id:{id}"),
            target: NodeTarget::Number(Some(id)),
        }
    }
}

impl From<UserId> for UserRef {
    fn from(id: UserId) -> Self {
        Self {
            text: format!("id:{id}"),
            target: UserTarget::Number(Some(id)),
        }
    }
}

macro_rules! text_conversions {
    ($reference:ty) => {
        impl From<&String> for $reference {
            fn from(text: &String) -> Self {
                Self::from(text.as_str())
            }
        }

        impl From<String> for $reference {
            fn from(text: String) -> Self {
                Self::from(text.as_str())
            }
        }

        impl From<$reference> for String {
            fn from(reference: $reference) -> Self {
                reference.text
            }
        }

        impl From<&$reference> for $reference {
            fn from(reference: &$reference) -> Self {
                reference.clone()
            }
        }

        impl fmt::Display for $reference {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.text)
            }
        }
    };
}

text_conversions!(NodeRef);
text_conversions!(UserRef);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn form_of_a_word_decides_its_kind() {
        let number = |n| NodeTarget::Number(Some(NodeId(n)));
        let name = |text: &str| NodeTarget::Name(text.to_owned());
        for (text, target) in [
            ("7", number(7)),
            ("007", number(7)),
            ("id:7", number(7)),
            ("id:db", NodeTarget::Number(None)),
            ("id:", NodeTarget::Number(None)),
            ("99999999999999999999", NodeTarget::Number(None)),
            ("name:7", name("7")),
            ("DB", name("db")),
            ("db.warren.internal.", name("db.warren.internal")),
            ("-7", name("-7")),
            ("+7", name("+7")),
            ("", name("")),
            (
                "100.64.0.7",
                NodeTarget::Address("100.64.0.7".parse().unwrap()),
            ),
            ("fd7a::7", NodeTarget::Address("fd7a::7".parse().unwrap())),
            (
                "::ffff:100.64.0.7",
                NodeTarget::Address("100.64.0.7".parse().unwrap()),
            ),
        ] {
            let reference = NodeRef::from(text);
            assert_eq!(reference.target, target, "{text:?}");
            let json = serde_json::to_string(&reference).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<NodeRef>(&json).unwrap(), reference);
        }
        let named = |text: &str| UserTarget::Name(text.to_owned());
        for (text, target) in [
            ("7", UserTarget::Number(Some(UserId(7)))),
            ("id:7", UserTarget::Number(Some(UserId(7)))),
            ("name:7", named("7")),
            ("Ann@example.com", named("Ann@example.com")),
        ] {
            assert_eq!(UserRef::from(text).target, target, "{text:?}");
        }
    }
}
