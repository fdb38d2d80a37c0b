//! UPnP Internet Gateway Device (IGD 1 and 2): how a client finds a home router and asks it
//! to forward a UDP port.
//!
//! ```text
//! 1. SSDP      M-SEARCH by UDP to port 1900; the response names a location
//! 2. HTTP      GET of the location: an XML document with the services of the router
//! 3. SOAP      POST to a service: the external address, a mapping, the end of a mapping
//! ```
//!
//! Sources: UPnP Device Architecture 1.1 (sections 1.3.2, 2.3, 3.1), WANIPConnection:1 and :2,
//! WANPPPConnection:1.
//!
//! Routers write all of this by hand, and many do it wrong. The readers here take what they
//! find: they check no schema, ignore what they do not know, and read at most
//! [`MAX_DOCUMENT`] bytes.
//!
//! Nothing is authenticated. Callers talk only to the router of their own network: the host
//! in a [`Location`] or a [`Service`] is dropped, only port and path are kept.

mod description;
mod http;
mod soap;
mod xml;

pub use description::{Service, ServiceKind, services};
pub use http::{Location, Response, Unfinished};
pub use soap::{Call, Fault, MappingCall, external_address, is_deleted, reserved_port};

/// The UDP port of SSDP.
pub const SSDP_PORT: u16 = 1900;
/// The multicast group of SSDP over IPv4.
pub const SSDP_GROUP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(239, 255, 255, 250);
/// Longest document that is read, in bytes, with its HTTP head.
pub const MAX_DOCUMENT: usize = 64 * 1024;

/// The targets of an [`m_search`]: gateways, and, as some routers answer nothing else, any
/// root device.
pub const SEARCH_TARGETS: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "upnp:rootdevice",
];

/// A search for devices of one kind, which answer the sender within 2 s.
pub fn m_search(target: &str) -> Vec<u8> {
    let text = format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {SSDP_GROUP}:{SSDP_PORT}\r\nST: {target}\r\n\
         MAN: \"ssdp:discover\"\r\nMX: 2\r\n\r\n"
    );
    text.into_bytes()
}

/// The location in the response to a search, if it is one of a gateway.
pub fn search_response(datagram: &[u8]) -> Option<Location> {
    let (status, head) = http::head(datagram)?;
    // Media servers and printers answer as well.
    let is_gateway = head.iter().any(|(name, value)| {
        (name.eq_ignore_ascii_case("st") || name.eq_ignore_ascii_case("usn"))
            && (value.contains("InternetGatewayDevice") || value.contains(SEARCH_TARGETS[1]))
    });
    if status != 200 || !is_gateway {
        return None;
    }
    let location = head
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("location"))?;
    Location::parse(location.1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_search_is_answered_with_a_location() {
        let search = String::from_utf8(m_search(SEARCH_TARGETS[0])).unwrap();
        assert!(search.starts_with("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"));
        assert!(search.ends_with("\r\n\r\n"));
        let answer = b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
            ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
            Location: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n";
        let location = search_response(answer).unwrap();
        assert_eq!(
            (location.port, location.path.as_str()),
            (5000, "/rootDesc.xml")
        );
    }

    #[test]
    fn other_devices_and_other_messages_are_no_gateways() {
        let printer = b"HTTP/1.1 200 OK\r\nST: urn:dial-multiscreen-org:service:dial:1\r\n\
            LOCATION: http://192.168.1.7:80/d.xml\r\n\r\n";
        let notify = b"NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1:80/d.xml\r\n\r\n";
        let nowhere = b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\r\n";
        let zero = b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://1.2.3.4:0/\r\n\r\n";
        for datagram in [&printer[..], notify, nowhere, zero, b"", b"\xff\xfe"] {
            assert_eq!(search_response(datagram), None);
        }
    }
}
