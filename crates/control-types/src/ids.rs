//! Numbers that name things, each a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id! {
    /// A node within one coordination server; greater than zero, never reused.
    NodeId(i64)
}
id! {
    /// A user within one coordination server; greater than zero.
    UserId(i64)
}
id! {
    /// A way for a user to log in.
    LoginId(i64)
}
id! {
    /// A relay region. 900 to 999 are for self-hosted regions; 0 is none.
    RegionId(u16)
}
id! {
    /// The protocol version that a client or server understands: a number that
    /// grows with each change. It is also the version in the Noise prologue.
    CapabilityVersion(u32)
}

impl CapabilityVersion {
    /// The version of our node. It relays for peers, and uses relays of peers.
    pub const CURRENT: Self = Self(121);
    /// The oldest client our server serves, release 1.80.
    pub const OLDEST_CLIENT: Self = Self(113);
    /// From here on a node can meet another one at a peer relay.
    pub const PEER_RELAYS: Self = Self(120);
    /// From here on a node can be asked over DERP for an endpoint on its peer relay.
    pub const RELAY_ALLOCATION: Self = Self(121);
    /// From here on a streaming map request only reads.
    pub const READ_ONLY_STREAM: Self = Self(68);
    /// From here on a client understands the early payload.
    pub const EARLY_PAYLOAD: Self = Self(49);
}

/// An opaque, printable name of a node that outlives database ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StableNodeId(pub String);

impl fmt::Display for StableNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for StableNodeId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
