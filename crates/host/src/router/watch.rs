//! A watch that reports when another program deleted rules or routes of ours.

use std::io;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::MulticastGroup;
use tokio::task::JoinHandle;

use super::{PROTOCOL, RouterOptions, rules};

/// Reports when one of our rules or routes was deleted. Some network managers remove
/// rules and routes that they do not know when they start or reload;
/// [`super::Router::apply`] then puts ours back.
pub struct RouterWatch {
    options: RouterOptions,
    events: BoxStream<'static, RouteNetlinkMessage>,
    task: JoinHandle<()>,
}

impl RouterWatch {
    /// Starts to watch. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel gives no socket for its events.
    pub fn open(options: RouterOptions) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        let events = messages.filter_map(|(message, _)| async move {
            match message.payload {
                NetlinkPayload::InnerMessage(message) => Some(message),
                _ => None,
            }
        });
        Ok(Self {
            options,
            events: events.boxed(),
            task: tokio::spawn(connection),
        })
    }

    /// Returns when one of our rules or routes was deleted by any process: our own
    /// changes count too, and applying again after them does nothing. Never returns
    /// after the kernel's events have ended. Can be dropped and called again.
    pub async fn deleted(&mut self) {
        while let Some(event) = self.events.next().await {
            let is_ours = match &event {
                RouteNetlinkMessage::DelRule(rule) => rules::is_ours(rule, self.options),
                RouteNetlinkMessage::DelRoute(route) => is_our_route(route, self.options),
                _ => false,
            };
            if is_ours {
                return;
            }
        }
        std::future::pending().await
    }
}

fn is_our_route(message: &RouteMessage, options: RouterOptions) -> bool {
    let table = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    let table = table.unwrap_or(message.header.table.into());
    table == options.table && u8::from(message.header.protocol) == PROTOCOL
}

impl std::fmt::Debug for RouterWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouterWatch").finish_non_exhaustive()
    }
}

impl Drop for RouterWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
