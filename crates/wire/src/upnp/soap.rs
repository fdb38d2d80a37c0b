//! Calls of the services that map ports, and their answers.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use super::description::{Service, ServiceKind};
use super::http::Response;
use super::xml::text_of;

/// The text by which people recognize the mapping in the pages of their router.
const DESCRIPTION: &str = "warren";

/// A mapping of a UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingCall {
    /// The port at the router, not 0.
    pub external_port: u16,
    /// The address of this node.
    pub internal: Ipv4Addr,
    /// Its port.
    pub internal_port: u16,
    /// Seconds; 0 is for ever.
    pub lease: u32,
}

/// A call of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `GetExternalIPAddress`, see [`external_address`].
    ExternalAddress,
    /// `AddPortMapping`, and `AddAnyPortMapping` where the service has it: then another
    /// external port may be reserved, see [`reserved_port`].
    Map(MappingCall),
    /// `DeletePortMapping` of an external UDP port.
    Unmap(u16),
}

impl Call {
    const fn action(&self, kind: ServiceKind) -> &'static str {
        match (self, kind) {
            (Self::ExternalAddress, _) => "GetExternalIPAddress",
            (Self::Map(_), ServiceKind::Ip2) => "AddAnyPortMapping",
            (Self::Map(_), ServiceKind::Ip1 | ServiceKind::Ppp1) => "AddPortMapping",
            (Self::Unmap(_), _) => "DeletePortMapping",
        }
    }

    fn arguments(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::ExternalAddress => Vec::new(),
            Self::Map(mapping) => vec![
                ("NewRemoteHost", String::new()),
                ("NewExternalPort", mapping.external_port.to_string()),
                ("NewProtocol", "UDP".to_owned()),
                ("NewInternalPort", mapping.internal_port.to_string()),
                ("NewInternalClient", mapping.internal.to_string()),
                ("NewEnabled", "1".to_owned()),
                ("NewPortMappingDescription", DESCRIPTION.to_owned()),
                ("NewLeaseDuration", mapping.lease.to_string()),
            ],
            Self::Unmap(port) => vec![
                ("NewRemoteHost", String::new()),
                ("NewExternalPort", port.to_string()),
                ("NewProtocol", "UDP".to_owned()),
            ],
        }
    }

    /// The HTTP request of the call. `host` is the address of the service.
    pub fn request(&self, service: &Service, host: SocketAddr) -> Vec<u8> {
        let (urn, action) = (service.kind.urn(), self.action(service.kind));
        let mut body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope \
             xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{urn}\">"
        );
        // Writing into a String cannot fail. No value has a character that would need an
        // entity.
        for (name, value) in self.arguments() {
            let _ = write!(body, "<{name}>{value}</{name}>");
        }
        let _ = write!(body, "</u:{action}></s:Body></s:Envelope>\r\n");
        format!(
            "POST {} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
             SOAPAction: \"{urn}#{action}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            service.control.path,
            body.len(),
        )
        .into_bytes()
    }
}

/// The refusal of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The error code of UPnP, or the HTTP status where there is none.
    pub code: u16,
}

impl Fault {
    /// 725: the router has permanent leases only. Some say 402, invalid arguments, instead.
    pub fn wants_permanent_lease(self) -> bool {
        matches!(self.code, 402 | 725)
    }

    /// 718: another host has the port; or 729: it conflicts with another protocol.
    pub fn is_conflict(self) -> bool {
        matches!(self.code, 718 | 729)
    }

    fn of(response: &Response) -> Option<Self> {
        let code = text_of(&response.body, "errorCode").and_then(|code| code.parse().ok());
        match (code, response.status) {
            (Some(code), _) => Some(Self { code }),
            (None, 200) => None,
            (None, code) => Some(Self { code }),
        }
    }
}

/// The address in the answer to [`Call::ExternalAddress`]; `None` where the router has none.
///
/// # Errors
/// The [`Fault`] in it.
pub fn external_address(response: &Response) -> Result<Option<Ipv4Addr>, Fault> {
    match Fault::of(response) {
        Some(fault) => Err(fault),
        None => {
            let text = text_of(&response.body, "NewExternalIPAddress");
            let address = text.and_then(|text| text.parse().ok());
            Ok(address.filter(|address: &Ipv4Addr| !address.is_unspecified()))
        }
    }
}

/// The external port in the answer to [`Call::Map`]; `None`: the one that was asked for.
///
/// # Errors
/// The [`Fault`] in it.
pub fn reserved_port(response: &Response) -> Result<Option<u16>, Fault> {
    match Fault::of(response) {
        Some(fault) => Err(fault),
        None => {
            let text = text_of(&response.body, "NewReservedPort");
            Ok(text
                .and_then(|text| text.parse().ok())
                .filter(|port| *port != 0))
        }
    }
}

/// Whether a response to [`Call::Unmap`] says that there is no such mapping (any more): a
/// success, or error 714 (NoSuchEntryInArray).
pub fn is_deleted(response: &Response) -> bool {
    Fault::of(response).is_none_or(|fault| fault.code == 714)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::upnp::Location;

    #[test]
    fn a_mapping_is_deleted_after_success_and_where_there_is_none() {
        let fault = |code: u16| {
            answer(
                500,
                &format!("<UPnPError><errorCode>{code}</errorCode></UPnPError>"),
            )
        };
        assert!(is_deleted(&answer(200, "<u:DeletePortMappingResponse/>")));
        assert!(is_deleted(&fault(714)));
        assert!(!is_deleted(&fault(501)));
        assert!(!is_deleted(&answer(503, "busy")));
    }

    fn answer(status: u16, body: &str) -> Response {
        Response {
            status,
            body: body.to_owned(),
        }
    }

    #[test]
    fn a_call_names_its_service_and_its_length() {
        for (kind, action) in [
            (ServiceKind::Ip2, "AddAnyPortMapping"),
            (ServiceKind::Ip1, "AddPortMapping"),
        ] {
            let service = Service {
                kind,
                control: Location::parse("http://10.0.0.1:5000/ctl/IPConn").unwrap(),
            };
            let call = Call::Map(MappingCall {
                external_port: 4_000,
                internal: Ipv4Addr::new(10, 0, 0, 2),
                internal_port: 41_641,
                lease: 7_200,
            });
            let request = call.request(&service, "10.0.0.1:5000".parse().unwrap());
            let request = String::from_utf8(request).unwrap();
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("POST /ctl/IPConn HTTP/1.1\r\nHost: 10.0.0.1:5000\r\n"));
            assert!(head.contains(&format!("SOAPAction: \"{}#{action}\"", kind.urn())));
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
            assert_eq!(text_of(body, "NewInternalClient").unwrap(), "10.0.0.2");
            assert_eq!(text_of(body, "NewLeaseDuration").unwrap(), "7200");
        }
    }

    #[test]
    fn answers_are_read_and_faults_too() {
        let address = |body: &str| external_address(&answer(200, body));
        let ip = "<a><NewExternalIPAddress>198.51.100.7</NewExternalIPAddress></a>";
        assert_eq!(address(ip), Ok(Some(Ipv4Addr::new(198, 51, 100, 7))));
        assert_eq!(address("<NewExternalIPAddress/>"), Ok(None));
        assert_eq!(
            address("<NewExternalIPAddress>0.0.0.0</NewExternalIPAddress>"),
            Ok(None)
        );
        assert_eq!(address("nonsense"), Ok(None));
        let port = |body: &str| reserved_port(&answer(200, body));
        assert_eq!(
            port("<x><NewReservedPort>9</NewReservedPort></x>"),
            Ok(Some(9))
        );
        assert_eq!(port("<NewReservedPort>0</NewReservedPort>"), Ok(None));
        let fault =
            "<s:Fault><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></s:Fault>";
        let fault = reserved_port(&answer(500, fault)).unwrap_err();
        assert!(fault.wants_permanent_lease() && !fault.is_conflict());
        assert_eq!(reserved_port(&answer(404, "")), Err(Fault { code: 404 }));
    }
}
