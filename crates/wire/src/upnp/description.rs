//! The description of a router: which of its services map ports.

use super::http::Location;
use super::xml::{Step, steps};

/// Most services that are looked at.
const MAX_SERVICES: usize = 8;

/// A service that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The kind.
    pub kind: ServiceKind,
    /// Where it is called.
    pub control: Location,
}

/// The kinds of services that map ports, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceKind {
    /// Of an IGD 2.
    Ip2,
    /// Of an IGD 1.
    Ip1,
    /// Of an IGD 1 that dials (PPPoE).
    Ppp1,
}

impl ServiceKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Ip2, Self::Ip1, Self::Ppp1];

    /// The name in documents and calls.
    pub const fn urn(self) -> &'static str {
        match self {
            Self::Ip2 => "urn:schemas-upnp-org:service:WANIPConnection:2",
            Self::Ip1 => "urn:schemas-upnp-org:service:WANIPConnection:1",
            Self::Ppp1 => "urn:schemas-upnp-org:service:WANPPPConnection:1",
        }
    }
}

/// The services in a document that was found at `location`, the best first. A router with
/// several lines has several, of which some may be down.
pub fn services(document: &str, location: &Location) -> Vec<Service> {
    let mut base = location.clone();
    let mut found = Vec::new();
    let mut element = "";
    let (mut kind, mut control) = (None, None);
    for step in steps(document) {
        match step {
            Step::Open(name) => {
                element = name;
                if name == "service" {
                    (kind, control) = (None, None);
                }
            }
            Step::Text(text) => match element {
                "URLBase" => base = Location::parse(&text).unwrap_or(base),
                "serviceType" => {
                    kind = ServiceKind::ALL.into_iter().find(|kind| kind.urn() == text);
                }
                "controlURL" => control = Some(text),
                _ => {}
            },
            Step::Close(name) => {
                element = "";
                let url = control.as_ref().filter(|_| name == "service");
                let control = url.and_then(|url| base.join(url));
                if let (Some(kind), Some(control)) = (kind, control) {
                    found.push(Service { kind, control });
                }
            }
        }
        if found.len() == MAX_SERVICES {
            break;
        }
    }
    found.sort_by_key(|service| service.kind);
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn service(kind: &str, url: &str) -> String {
        format!(
            "<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>"
        )
    }

    #[test]
    fn services_that_map_ports_are_found_the_best_first() {
        let document = format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
             <serviceList>{}{}</serviceList><deviceList><device><serviceList>{}{}\
             </serviceList></device></deviceList></device></root>",
            service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3f"),
            service(ServiceKind::Ppp1.urn(), "/ppp"),
            service(ServiceKind::Ip1.urn(), "ctl/IPConn"),
            service(ServiceKind::Ip2.urn(), "http://10.9.9.9:99/ctl"),
        );
        let location = Location::parse("http://192.168.1.1:5000/rootDesc.xml").unwrap();
        let found = services(&document, &location);
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.kind, it.control.port, it.control.path.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (ServiceKind::Ip2, 99, "/ctl"),
                (ServiceKind::Ip1, 5000, "/ctl/IPConn"),
                (ServiceKind::Ppp1, 5000, "/ppp"),
            ]
        );
        let based = document.replace(
            "<device><serviceList>",
            "<URLBase>http://10.0.0.1:81</URLBase><device><serviceList>",
        );
        assert_eq!(services(&based, &location)[1].control.port, 81);
    }

    #[test]
    fn half_a_service_is_none_and_there_are_not_many() {
        let location = Location::parse("http://192.168.1.1:5000/").unwrap();
        let urn = ServiceKind::Ip1.urn();
        for document in [
            format!("<service><serviceType>{urn}</serviceType></service>"),
            format!("<service><serviceType>{urn}</serviceType><controlURL>/a"),
            "<service><controlURL>/a</controlURL></service>".to_owned(),
            service(urn, "/a b"),
            String::new(),
        ] {
            assert_eq!(services(&document, &location), []);
        }
        let many = service(urn, "/a").repeat(100);
        assert_eq!(services(&many, &location).len(), MAX_SERVICES);
    }
}
