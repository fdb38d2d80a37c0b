//! Talking to the kernel about links, addresses, routes and rules.
//!
//! A thin layer over the rtnetlink client: one connection with its task, dumps
//! as plain lists, errors as `io::Error`. A connection belongs to the network
//! namespace of the thread that opened it.

use std::io;

use futures_util::{Stream, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion};
use tokio::task::JoinHandle;

/// Both address families, in the order in which things are set up.
pub(crate) const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// A connection to the kernel; its task ends with it.
#[derive(Debug)]
pub(crate) struct Netlink {
    pub(crate) handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection. Must be called inside a tokio runtime.
    pub(crate) fn open() -> io::Result<Netlink> {
        // Strict checking lets the kernel filter route dumps by table, which
        // matters on a router with a full table. Old kernels lack it; then
        // everything comes and is filtered here.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())?;
        Ok(Netlink {
            handle,
            task: tokio::spawn(connection),
        })
    }

    pub(crate) async fn links(&self) -> io::Result<Vec<LinkMessage>> {
        collect(self.handle.link().get().execute()).await
    }

    pub(crate) async fn addresses(&self) -> io::Result<Vec<AddressMessage>> {
        collect(self.handle.address().get().execute()).await
    }

    /// The routes of one table; a table that does not exist is empty.
    pub(crate) async fn routes(
        &self,
        family: AddressFamily,
        table: u32,
    ) -> io::Result<Vec<RouteMessage>> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        match u8::try_from(table) {
            Ok(table) => request.header.table = table,
            Err(_) => request.attributes.push(RouteAttribute::Table(table)),
        }
        let mut routes = match collect(self.handle.route().get(request).execute()).await {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            Err(error) if is_missing_family(&error) => Vec::new(),
            other => other?,
        };
        routes.retain(|route: &RouteMessage| table_of(route) == table);
        Ok(routes)
    }

    pub(crate) async fn rules(&self, family: AddressFamily) -> io::Result<Vec<RuleMessage>> {
        let version = match family {
            AddressFamily::Inet6 => IpVersion::V6,
            _ => IpVersion::V4,
        };
        match collect(self.handle.rule().get(version).execute()).await {
            Err(error) if is_missing_family(&error) => Ok(Vec::new()),
            other => other,
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The table of a route, wherever the kernel wrote it.
pub(crate) fn table_of(route: &RouteMessage) -> u32 {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(route.header.table.into())
}

/// The kernel's error, by its error number.
pub(crate) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            io::Error::from_raw_os_error(message.raw_code().abs())
        }
        other => io::Error::other(other),
    }
}

/// Whether the kernel lacks the address family asked for.
pub(crate) fn is_missing_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
    )
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
    stream.map_err(io_error).try_collect().await
}
