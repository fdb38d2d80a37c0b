//! The parts of a row in the table of endpoints.

use std::future::Future;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::caller::Caller;
use crate::error::Reply;

/// The permission that an endpoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// To look at users, nodes, keys and policies.
    Read,
    /// To change them.
    Write,
}

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

/// Makes a table of endpoints: an [`Endpoint`] for each request type, a trait that
/// asks for a handler of each row, and a function that makes routes of a service
/// with that trait.
macro_rules! endpoints {
    (
        $(#[$trait_doc:meta])* trait $api:ident;
        $(#[$routes_doc:meta])* fn $routes:ident;
        $( $request:ident: $method:ident $path:literal, $permission:ident => $answer:ty; )*
    ) => {
        $(
            impl $crate::endpoint::Endpoint for $request {
                const METHOD: http::Method = http::Method::$method;
                const PATH: &'static str = $path;
                const PERMISSION: $crate::endpoint::Permission =
                    $crate::endpoint::Permission::$permission;
                type Answer = $answer;
            }
        )*

        $(#[$trait_doc])*
        pub trait $api: $($crate::endpoint::Handler<$request> +)* Send + Sync + 'static {}
        impl<T: $($crate::endpoint::Handler<$request> +)* Send + Sync + 'static> $api for T {}

        $(#[$routes_doc])*
        pub fn $routes<T: $api>(service: std::sync::Arc<T>) -> $crate::router::Routes<T> {
            $crate::router::Routes::new(service)$(.on::<$request>())*
        }

        /// The request type, method, path and permission of every row.
        #[cfg(test)]
        pub(crate) const ROWS: &[(&str, http::Method, &str, $crate::endpoint::Permission)] = &[
            $((stringify!($request), http::Method::$method, $path,
                $crate::endpoint::Permission::$permission),)*
        ];
    };
}
pub(crate) use endpoints;
