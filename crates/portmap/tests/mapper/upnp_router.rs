//! A home router that speaks UPnP, with the quirks of real ones.

use std::net::{Ipv4Addr, SocketAddr};

const SOAP: &str = "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>";
const SOAP_END: &str = "</s:Body></s:Envelope>";

/// The port of its HTTP server.
const PORT: u16 = 49_000;

/// The router.
#[derive(Debug, Clone, Default)]
pub struct UpnpRouter {
    /// It speaks version 2, and maps another port where the one it was asked for is taken.
    pub igd2: bool,
    /// It knows no leases with an end.
    pub permanent_only: bool,
    /// External ports of other hosts.
    pub taken: Vec<u16>,
    /// It has two lines, of which the first has no address.
    pub first_line_is_down: bool,
    /// It answers no searches that are sent to it alone.
    pub only_multicast: bool,
    /// Its URLs name a host that is not it.
    pub names_another_host: bool,
    pub has_no_address: bool,
    pub answers_nonsense: bool,
    /// It takes connections, and never answers.
    pub is_silent: bool,
    /// Its answers to calls of mappings get lost.
    pub loses_answers_to_mappings: bool,
    /// So many deletions fail.
    pub fails_deletions: u32,
    /// The mappings: external port, internal port, lease.
    pub mapped: Vec<(u16, u16, u32)>,
}

fn element(body: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let value = body
        .split(&open)
        .nth(1)
        .and_then(|rest| rest.split(&close).next());
    value.unwrap_or_default().to_owned()
}

fn response(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn fault(code: u16) -> Vec<u8> {
    response(
        "500 Internal Server Error",
        &format!(
            "{SOAP}<s:Fault><detail><UPnPError><errorCode>{code}</errorCode></UPnPError></detail></s:Fault>{SOAP_END}"
        ),
    )
}

impl UpnpRouter {
    fn host(&self) -> &'static str {
        match self.names_another_host {
            true => "192.0.2.99",
            false => "10.0.0.1",
        }
    }

    /// The answer to a search.
    pub fn search(&self, to: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
        let is_group = to.ip() == Ipv4Addr::new(239, 255, 255, 250);
        let text = std::str::from_utf8(packet).ok()?;
        let is_asked = text.contains("InternetGatewayDevice") && (is_group || !self.only_multicast);
        is_asked.then(|| {
            format!(
                "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                 LOCATION: http://{}:{PORT}/rootDesc.xml\r\n\r\n",
                self.host()
            )
            .into_bytes()
        })
    }

    fn description(&self) -> Vec<u8> {
        let version = if self.igd2 { 2 } else { 1 };
        let service = |path: &str| {
            format!(
                "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:{version}\
                 </serviceType><controlURL>http://{}:{PORT}{path}</controlURL></service>",
                self.host()
            )
        };
        let down = if self.first_line_is_down {
            service("/down")
        } else {
            String::new()
        };
        response("200 OK", &format!("<root>{down}{}</root>", service("/up")))
    }

    /// The answer to an HTTP request.
    pub fn exchange(&mut self, port: u16, request: &[u8], external: Ipv4Addr) -> Option<Vec<u8>> {
        assert_eq!(port, PORT);
        if self.is_silent {
            return None;
        }
        if self.answers_nonsense {
            return Some(response("200 OK", "<root><service><controlURL>/"));
        }
        let text = std::str::from_utf8(request).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        if head.starts_with("GET /rootDesc.xml ") {
            return Some(self.description());
        }
        let is_down = head.starts_with("POST /down ") || self.has_no_address;
        let number = |name: &str| element(body, name).parse::<u32>().unwrap_or_default();
        let mut external_port = number("NewExternalPort") as u16;
        if head.contains("#GetExternalIPAddress\"") {
            let address = if is_down {
                String::new()
            } else {
                external.to_string()
            };
            let answer = format!("<NewExternalIPAddress>{address}</NewExternalIPAddress>");
            return Some(response("200 OK", &format!("{SOAP}{answer}{SOAP_END}")));
        }
        if head.contains("#DeletePortMapping\"") {
            if let Some(left) = self.fails_deletions.checked_sub(1) {
                self.fails_deletions = left;
                return Some(fault(501));
            }
            self.mapped.retain(|(port, ..)| *port != external_port);
            return Some(response("200 OK", &format!("{SOAP}{SOAP_END}")));
        }
        assert_eq!(head.contains("#AddAnyPortMapping\""), self.igd2);
        assert_eq!(element(body, "NewProtocol"), "UDP");
        let lease = number("NewLeaseDuration");
        while self.taken.contains(&external_port) {
            if !self.igd2 {
                return Some(fault(718));
            }
            external_port += 1;
        }
        if self.permanent_only && lease != 0 {
            return Some(fault(725));
        }
        let internal_port = number("NewInternalPort") as u16;
        self.mapped.retain(|(port, ..)| *port != external_port);
        self.mapped.push((external_port, internal_port, lease));
        if self.loses_answers_to_mappings {
            return None;
        }
        let reserved = format!("<NewReservedPort>{external_port}</NewReservedPort>");
        let reserved = if self.igd2 { reserved } else { String::new() };
        Some(response("200 OK", &format!("{SOAP}{reserved}{SOAP_END}")))
    }
}
