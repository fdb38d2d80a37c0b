//! The parts of a row in the table of endpoints.

use std::future::Future;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::caller::{Caller, Permission};
use crate::error::Reply;

/// One row of the table. The implementing type is the request.
///
/// Requests of `GET` rows travel in the query of the address, so their members are
/// scalars; all others are JSON bodies.
pub trait Endpoint: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The method.
    const METHOD: Method;
    /// The path, from its first slash on.
    const PATH: &'static str;
    /// The permission.
    const PERMISSION: Permission;
    /// The answer.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
}

/// A service that carries out the requests of one endpoint.
pub trait Handler<E: Endpoint>: Send + Sync + 'static {
    /// Carries out a request of `caller`. A change is on disk when the answer comes.
    fn handle(&self, caller: &Caller, request: E) -> impl Future<Output = Reply<E::Answer>> + Send;
}
