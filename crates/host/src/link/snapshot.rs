//! Reading the whole network state from the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::{Interface, LinkState};
use crate::netlink::Netlink;

/// The kernel's main table.
const TABLE_MAIN: u32 = 254;

/// The network as the calling thread's namespace sees it, without the
/// interfaces named in `ignored`. Must be called inside a tokio runtime.
pub async fn snapshot(ignored: &[&str]) -> io::Result<LinkState> {
    let ignored: Vec<String> = ignored.iter().map(|name| (*name).to_owned()).collect();
    take(&ignored).await
}

pub(super) async fn take(ignored: &[String]) -> io::Result<LinkState> {
    let netlink = Netlink::open()?;
    let mut interfaces = BTreeMap::new();
    for link in netlink.links().await? {
        let name = link
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
        let flags = link.header.flags;
        if let Some(name) = name.filter(|name| !ignored.contains(name)) {
            interfaces.insert(
                link.header.index,
                Interface {
                    name,
                    index: link.header.index,
                    up: flags.contains(LinkFlags::Up | LinkFlags::Running),
                    loopback: flags.contains(LinkFlags::Loopback),
                    addrs: Vec::new(),
                },
            );
        }
    }
    for message in netlink.addresses().await? {
        let unready = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        let Some(interface) = interfaces.get_mut(&message.header.index) else {
            continue;
        };
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        let net = local
            .or(address)
            .and_then(|ip: IpAddr| IpNet::new(ip, message.header.prefix_len).ok());
        if let Some(net) = net.filter(|_| !message.header.flags.intersects(unready)) {
            interface.addrs.push(net);
        }
    }
    for interface in interfaces.values_mut() {
        interface.addrs.sort();
    }
    let mut defaults = [None, None];
    let mut gateway_v4 = None;
    for (slot, family) in [AddressFamily::Inet, AddressFamily::Inet6]
        .into_iter()
        .enumerate()
    {
        let routes = netlink.routes(family, TABLE_MAIN).await?;
        let best = routes
            .iter()
            .filter_map(default_route)
            .filter_map(|route| Some((route.metric, interfaces.get(&route.interface)?, route)))
            .min_by_key(|(metric, interface, _)| (*metric, interface.index));
        if let Some((_, interface, route)) = best {
            defaults[slot] = Some(interface.name.clone());
            gateway_v4 = gateway_v4.or(route.gateway_v4);
        }
    }
    let [default_route_v4, default_route_v6] = defaults;
    Ok(LinkState {
        interfaces: interfaces.into_values().collect(),
        default_route_v4,
        default_route_v6,
        gateway_v4,
    })
}

/// A default route.
struct DefaultRoute {
    metric: u32,
    interface: u32,
    gateway_v4: Option<Ipv4Addr>,
}

/// Reads a default route; `None` for other routes.
fn default_route(route: &RouteMessage) -> Option<DefaultRoute> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut metric = 0;
    let mut index = None;
    let mut gateway_v4 = None;
    let v4_of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(value) => index = Some(*value),
            RouteAttribute::MultiPath(hops) => {
                let first = hops.first();
                index = index.or(first.map(|hop| hop.interface_index));
                let hop = first.and_then(|hop| hop.attributes.iter().find_map(v4_of));
                gateway_v4 = gateway_v4.or(hop);
            }
            other => gateway_v4 = v4_of(other).or(gateway_v4),
        }
    }
    Some(DefaultRoute {
        metric,
        interface: index?,
        gateway_v4,
    })
}
