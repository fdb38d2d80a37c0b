//! Requests about tailnet lock.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use warren_control_types::Encoded;
use warren_keys::NodePublic;

use super::without_content;
use crate::endpoint::{IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::{ApiError, Reply};
use crate::go_json::nullable;
use crate::tailnet_lock::GivenKey;

/// The number of update messages that are listed without a limit in the request.
const USUAL_LOG: usize = 50;

/// The state of tailnet lock.
#[derive(Debug, Clone, Copy)]
pub struct GetLockStatus;

/// The tags whose nodes are signed without a person.
#[derive(Debug, Clone, Copy)]
pub struct GetAutosign;

without_content!(GetLockStatus, GetAutosign);

/// The newest update messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetLockLog {
    /// The most that are listed.
    pub limit: usize,
}

impl RequestForm for GetLockLog {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let limit: Option<i64> = request.query.optional("limit")?;
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(0));
        Ok(Self {
            limit: limit.unwrap_or(USUAL_LOG),
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with("limit", self.limit)
    }
}

/// A body of JSON.
async fn json<T: DeserializeOwned>(request: IncomingRequest) -> Reply<T> {
    let body = request.bytes().await?;
    // As the official daemon, which reads the first value only.
    let mut values = serde_json::Deserializer::from_slice(&body).into_iter();
    let first = values.next().transpose().ok().flatten();
    first.ok_or_else(|| ApiError::Refused("invalid JSON body".to_owned()))
}

macro_rules! json_requests {
    ($($(#[$doc:meta])* $request:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $request {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl RequestForm for $request {
            async fn read(request: IncomingRequest) -> Reply<Self> {
                json(request).await
            }

            fn write(&self) -> OutgoingRequest {
                // The fields are texts and numbers.
                OutgoingRequest::with_body(serde_json::to_vec(self).unwrap_or_default())
            }
        }
    )*};
}

json_requests! {
    /// Turns tailnet lock on.
    LockInit {
        /// The keys that are trusted at the beginning.
        #[serde(with = "nullable")]
        keys: Vec<GivenKey>,
        /// The public values of the disablement secrets.
        #[serde(with = "nullable")]
        disablement_values: Vec<Encoded>,
        /// A disablement secret for the operator of the server.
        support_disablement: Encoded,
    }

    /// Signs the key of a node.
    LockSign {
        /// The node key.
        node_key: NodePublic,
        /// The key that may sign the node keys after it; may be empty.
        rotation_public: Encoded,
    }

    /// Changes the trusted keys.
    LockModify {
        /// Keys to add.
        #[serde(with = "nullable")]
        add_keys: Vec<GivenKey>,
        /// Keys to remove.
        #[serde(with = "nullable")]
        remove_keys: Vec<GivenKey>,
    }

    /// Signs nodes that have none but these tags without a person.
    SetAutosign {
        /// The tags; none: no node is signed by itself.
        tags: BTreeSet<String>,
    }

    /// Turns tailnet lock off on this machine only.
    LockDisableHere {}

    /// Makes a message that revokes keys.
    LockRevoke {
        /// The keys.
        #[serde(with = "nullable")]
        keys: Vec<Encoded>,
        /// The hash of the message after which the revocation takes effect; empty: it is
        /// found.
        fork_from: String,
    }
}

/// Adds a credential to an auth key.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LockWrap {
    /// The auth key.
    #[serde(rename = "TSKey")]
    pub auth_key: String,
    /// The private half of the key that makes the credential.
    #[serde(rename = "TKAKey")]
    pub lock_key: String,
}

impl std::fmt::Debug for LockWrap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LockWrap(…)")
    }
}

impl RequestForm for LockWrap {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        json(request).await
    }

    fn write(&self) -> OutgoingRequest {
        // The fields are texts.
        OutgoingRequest::with_body(serde_json::to_vec(self).unwrap_or_default())
    }
}

macro_rules! byte_requests {
    ($($(#[$doc:meta])* $request:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $request(pub Vec<u8>);

        impl std::fmt::Debug for $request {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($request), "(…)"))
            }
        }

        impl RequestForm for $request {
            async fn read(request: IncomingRequest) -> Reply<Self> {
                Ok(Self(request.bytes().await?.to_vec()))
            }

            fn write(&self) -> OutgoingRequest {
                OutgoingRequest::with_body(self.0.clone())
            }
        }
    )*};
}

byte_requests! {
    /// Turns tailnet lock off for all nodes, with this secret.
    LockDisable;
    /// Asks for the signatures that this trusted key made.
    LockAffected;
    /// Signs this message, which revokes keys, too.
    LockCosign;
    /// Sends this message, which revokes keys, to all nodes.
    LockSubmit;
}
