//! The addresses of this server: its port, its URL, and the map with its own relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use url::{Host, Url};
use warren_control_core::is_in_zone;
use warren_control_types::{DerpMap, DerpNode, DerpRegion, HostAddress, RegionId};

use crate::failure::Failure;

/// Region of the embedded relay; 900 to 999 are for networks of one's own.
pub(crate) const OWN_REGION: RegionId = RegionId(900);
/// The port for nodes, unless `--listen` names another.
const DEFAULT_PORT: u16 = 8080;

/// Reads the URL at which nodes reach the server.
///
/// # Errors
/// It is not one, with what to write.
pub(crate) fn parse_url(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| {
        format!("{text}: {why}; write it as http://192.0.2.1:8080 or https://net.example")
    };
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it must begin with http:// or https://"));
    }
    if url.host().is_none() || !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong(
            "it must be a host, perhaps with a port, and nothing more",
        ));
    }
    Ok(url)
}

/// The likely reason why an address could not be bound.
pub(crate) fn taken(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => " (another program uses it)",
        std::io::ErrorKind::AddrNotAvailable => " (no such address on this machine)",
        std::io::ErrorKind::PermissionDenied => " (ports below 1024 need more rights)",
        _ => "",
    }
}

/// Binds the port for nodes.
pub(crate) fn bind(wanted: Option<SocketAddr>) -> Result<tokio::net::TcpListener, Failure> {
    let wildcard_v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT);
    let wildcard_v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT);
    let address = wanted.unwrap_or(wildcard_v6);
    let mut bound = warren_relay::listen::bind(address);
    // A machine without IPv6 cannot listen on all addresses of both families.
    if wanted.is_none()
        && let Err(error) = &bound
        && error.kind() != std::io::ErrorKind::AddrInUse
    {
        bound = warren_relay::listen::bind(wildcard_v4);
    }
    bound.map_err(|error| {
        Failure::Failed(format!(
            "cannot listen on {address}/tcp: {error}{}; choose another with --listen IP:PORT",
            taken(&error)
        ))
    })
}

/// The address of this machine that other machines most likely reach. Asking
/// the routing table sends nothing.
fn own_address() -> IpAddr {
    let ask = |bind: SocketAddr, towards: SocketAddr| -> Option<IpAddr> {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(towards).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    // Documentation addresses (RFC 5737, RFC 3849): routed like any other.
    let v4 = ask(
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9),
    );
    let v6 = || {
        ask(
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 9),
        )
    };
    v4.or_else(v6).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The URL of a server that was started without `--server-url`.
pub(crate) fn guess_url(local: SocketAddr, tls: bool) -> Result<Url, Failure> {
    let ip = if local.ip().is_unspecified() {
        own_address()
    } else {
        local.ip()
    };
    let scheme = if tls { "https" } else { "http" };
    Ok(Url::parse(&format!(
        "{scheme}://{}",
        SocketAddr::new(ip, local.port())
    ))?)
}

/// Checks that the server and the relays are not named in the zone of the nodes: nodes
/// are the authority for that zone and hold such a name for one that does not exist.
pub(crate) fn check_outside_zone(zone: &str, url: &Url, map: &DerpMap) -> Result<(), String> {
    let server = match url.host() {
        Some(Host::Domain(name)) => Some(("the server", name)),
        Some(Host::Ipv4(_) | Host::Ipv6(_)) | None => None,
    };
    let nodes = map.regions.values().flat_map(|region| &region.nodes);
    let relays = nodes.map(|node| ("a relay", node.host_name.as_str()));
    for (what, name) in server.into_iter().chain(relays) {
        if is_in_zone(name, zone) {
            return Err(format!(
                "{what} is named {name}, which lies in the zone {zone} of the nodes' names, so \
                 nodes could not resolve it; choose another zone with --base-domain, for \
                 example net.{zone}"
            ));
        }
    }
    Ok(())
}

/// The map with the embedded relay alone.
pub(crate) fn own_map(
    url: &Url,
    port: u16,
    stun_port: Option<u16>,
    pin: Option<String>,
) -> DerpMap {
    let mut node = DerpNode {
        name: "900a".to_owned(),
        region_id: OWN_REGION,
        derp_port_raw: i32::from(url.port_or_known_default().unwrap_or(port)),
        stun_port_raw: stun_port.map_or(-1, i32::from),
        cert_name: pin.unwrap_or_default(),
        ..DerpNode::default()
    };
    match url.host() {
        Some(Host::Ipv4(ip)) => {
            node.host_name = ip.to_string();
            node.ipv4 = HostAddress::At(ip);
            node.ipv6 = HostAddress::Never;
        }
        Some(Host::Ipv6(ip)) => {
            node.host_name = ip.to_string();
            node.ipv6 = HostAddress::At(ip);
            node.ipv4 = HostAddress::Never;
        }
        Some(Host::Domain(name)) => node.host_name = name.to_owned(),
        None => {}
    }
    let region = DerpRegion {
        region_id: OWN_REGION,
        region_code: "own".to_owned(),
        region_name: "Embedded relay".to_owned(),
        nodes: vec![node],
        ..DerpRegion::default()
    };
    DerpMap {
        regions: [(OWN_REGION, region)].into(),
        omit_default_regions: true,
        ..DerpMap::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn zone_that_contains_the_server_or_a_relay_is_refused() {
        let with_relay = |name: &str| {
            let url = Url::parse(&format!("https://{name}")).unwrap();
            own_map(&url, 443, None, None)
        };
        let elsewhere = with_relay("relay.example.org");
        for (zone, url, map, refused) in [
            ("ok.test", "http://ctl.ok.test:8080", &elsewhere, true),
            ("ok.test", "http://OK.test", &elsewhere, true),
            ("ok.test", "http://ctl.ok.test.", &elsewhere, true),
            ("net.ok.test", "http://ctl.ok.test", &elsewhere, false),
            ("k.test", "http://ctl.ok.test", &elsewhere, false),
            ("ok.test", "http://192.0.2.1", &elsewhere, false),
            ("example.org", "http://192.0.2.1", &elsewhere, true),
            (
                "relay.example.org",
                "http://[2001:db8::1]",
                &elsewhere,
                true,
            ),
            (
                "net.example.org",
                "http://ctl.example.org",
                &elsewhere,
                false,
            ),
        ] {
            let url = Url::parse(url).unwrap();
            let checked = check_outside_zone(zone, &url, map);
            assert_eq!(checked.is_err(), refused, "{zone} {url}");
        }
    }
}
