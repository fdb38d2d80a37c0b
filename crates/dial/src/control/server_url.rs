//! The address of a coordination server, and the ports that follow from it.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};
use warren_control_types::CapabilityVersion;

/// Not the address of a coordination server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not the address of a coordination server: {problem} \
     (it looks like https://control.example.com)"
)]
pub struct ServerUrlError {
    text: String,
    problem: &'static str,
}

/// The address of a coordination server.
///
/// The address also determines the ports on which its control channel is tried.
/// Usually that is a plain one and one under TLS, because the channel brings
/// its own encryption and one of the two may be blocked. A server named by
/// `http://` and a private address is a test or sits behind a proxy: there is
/// no TLS to try.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    url: Url,
    host: String,
    /// TCP port for the channel without TLS.
    pub plain_port: u16,
    /// TCP port for the channel under TLS, if that is to be tried.
    pub tls_port: Option<u16>,
}

impl ServerUrl {
    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Host and, unless it is the usual one, port: the authority of HTTP.
    pub fn authority(&self) -> &str {
        &self.url[url::Position::BeforeHost..url::Position::AfterPort]
    }

    /// Whether the address asks for TLS.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// The URL of the server's key.
    pub(crate) fn key_url(&self, version: CapabilityVersion) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}/key", self.url.path().trim_end_matches('/')));
        url.set_query(Some(&format!("v={version}")));
        url
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let bad = |problem| ServerUrlError {
            text: text.to_owned(),
            problem,
        };
        let url: Url = text.trim().parse().map_err(|_| bad("it is not a URL"))?;
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(bad("it must start with https:// or http://")),
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it must end with the host, the port or a path"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("it must not contain a user or a password"));
        }
        let (host, private) = match url.host() {
            None => return Err(bad("it has no host")),
            Some(Host::Domain(name)) => (name.to_owned(), name == "localhost"),
            Some(Host::Ipv4(ip)) => (ip.to_string(), ip.is_private() || ip.is_loopback()),
            Some(Host::Ipv6(ip)) => (ip.to_string(), ip.is_unique_local() || ip.is_loopback()),
        };
        // `Url` forgets a port that is the usual one of its scheme, which
        // makes no difference here.
        let (plain_port, tls_port) = match (https, url.port()) {
            (true, port) => (80, Some(port.unwrap_or(443))),
            (false, port) if private => (port.unwrap_or(80), None),
            (false, port) => (port.unwrap_or(80), Some(443)),
        };
        Ok(Self {
            url,
            host,
            plain_port,
            tls_port,
        })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ports_follow_from_the_address() {
        for (text, plain, tls) in [
            ("https://control.example", 80, Some(443)),
            ("https://control.example/", 80, Some(443)),
            ("https://control.example:8443", 80, Some(8443)),
            ("https://10.0.0.1", 80, Some(443)),
            ("http://control.example", 80, Some(443)),
            ("http://control.example:8080", 8080, Some(443)),
            ("http://203.0.113.5:8080", 8080, Some(443)),
            ("http://localhost", 80, None),
            ("http://127.0.0.1:8080", 8080, None),
            ("http://192.168.3.4", 80, None),
            ("http://[::1]:8080", 8080, None),
            ("http://[fd00::1]:81", 81, None),
        ] {
            let url: ServerUrl = text.parse().unwrap();
            assert_eq!((url.plain_port, url.tls_port), (plain, tls), "{text}");
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn host_and_ports_follow_from_the_url() {
        let url: ServerUrl = "https://[2001:db8::1]:8443/base/".parse().unwrap();
        let key = url.key_url(CapabilityVersion(119));
        assert_eq!(key.as_str(), "https://[2001:db8::1]:8443/base/key?v=119");
        assert_eq!(url.authority(), "[2001:db8::1]:8443");
        assert_eq!(url.host(), "2001:db8::1");
        assert_eq!(
            "https://a.example"
                .parse::<ServerUrl>()
                .unwrap()
                .authority(),
            "a.example"
        );
    }

    #[test]
    fn other_addresses_are_refused() {
        for bad in [
            "",
            "control.example",
            "ftp://a",
            "https://",
            "https://a?x=1",
            "https://u:p@a",
        ] {
            assert!(bad.parse::<ServerUrl>().is_err(), "{bad}");
        }
    }
}
