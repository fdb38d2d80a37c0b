//! Looking up host names.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;

/// A look-up under way.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// A way to look up the addresses of host names.
///
/// A node uses another one than its system: while it answers the names of its
/// machine, the system would ask the node itself for the address of the server
/// that the node cannot reach yet.
pub trait ResolveNames: fmt::Debug + Send + Sync {
    /// The addresses of `host`, the preferred ones first; an error when there
    /// are none.
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a>;
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl ResolveNames for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> Resolving<'a> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            addresses.dedup();
            if addresses.is_empty() {
                return Err(no_address());
            }
            Ok(addresses)
        })
    }
}

/// The error of a look-up that found nothing.
pub fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}
