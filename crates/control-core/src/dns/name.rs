//! Names and name servers, checked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
/// The longest label.
const MAX_LABEL: usize = 63;
/// The longest address of a name server.
const MAX_URL: usize = 512;

/// A domain name in lower case, without a dot at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

/// The text is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An empty name or label, one that is too long, or a character that is not allowed.
    #[error(
        "\"{0}\" is not a domain name; write it as db.example.com, with letters, digits, \"-\" and \"_\""
    )]
    Name(String),
    /// A wildcard.
    #[error(
        "\"{0}\": clients know no wildcards; for names below a node, give it the attribute dns-subdomain-resolve in the policy"
    )]
    Wildcard(String),
}

impl DnsName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has one label only.
    #[must_use]
    pub fn is_single_label(&self) -> bool {
        !self.0.contains('.')
    }
}

impl FromStr for DnsName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.split('.').any(|label| label.contains('*')) {
            return Err(NameError::Wildcard(text.to_owned()));
        }
        let is_label = |label: &str| {
            let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(good)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() <= MAX_NAME && name.split('.').all(is_label) {
            Ok(Self(name))
        } else {
            Err(NameError::Name(text.to_owned()))
        }
    }
}

impl TryFrom<String> for DnsName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name server: an address, an address with a port, or the `https://` URL of a server
/// for DNS over HTTPS (RFC 8484).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nameserver(String);

/// The text names no name server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a name server; write an address (10.0.0.53), an address with a port (10.0.0.53:5353, [fd00::53]:5353), or a URL that begins with https://"
)]
pub struct NameserverError(String);

/// Hosts of DNS over HTTPS that official clients know, and their subdomains. They ignore
/// other URLs.
const KNOWN: [&str; 6] = [
    "cloudflare-dns.com",
    "dns.google",
    "quad9.net",
    "dns.mullvad.net",
    "controld.com",
    "dns.nextdns.io",
];

impl Nameserver {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part of a URL that names the host. `None`: an address.
    fn host(&self) -> Option<&str> {
        let rest = self.0.strip_prefix("https://")?;
        let authority = rest.split(['/', '?']).next()?;
        authority.split(':').next()
    }

    /// Whether official clients use it.
    #[must_use]
    pub fn is_known_to_clients(&self) -> bool {
        self.host().is_none_or(|host| {
            KNOWN.iter().any(|known| {
                let rest = host.strip_suffix(known);
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        })
    }

    /// Whether it is a server of NextDNS.
    pub(super) fn is_nextdns(&self) -> bool {
        self.host() == Some("dns.nextdns.io")
    }
}

impl FromStr for Nameserver {
    type Err = NameserverError;

    fn from_str(text: &str) -> Result<Self, NameserverError> {
        let wrong = || NameserverError(text.to_owned());
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ip.to_string()));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(wrong()),
                _ => Ok(Self(address.to_string())),
            };
        }
        let rest = text.strip_prefix("https://").ok_or_else(wrong)?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = authority.split_once(':').unwrap_or((authority, "443"));
        let good = text.len() <= MAX_URL
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'#' && b != b'"')
            && host
                .parse::<DnsName>()
                .is_ok_and(|name| name.as_str() == host)
            && port.parse::<u16>().is_ok_and(|port| port > 0);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(wrong())
        }
    }
}

impl TryFrom<String> for Nameserver {
    type Error = NameserverError;

    fn try_from(text: String) -> Result<Self, NameserverError> {
        text.parse()
    }
}

impl From<Nameserver> for String {
    fn from(server: Nameserver) -> Self {
        server.0
    }
}

impl fmt::Display for Nameserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_lower_case_without_a_dot_at_the_end() {
        for (text, name) in [
            ("db.Example.com.", "db.example.com"),
            ("_sip._tcp.x", "_sip._tcp.x"),
            ("db", "db"),
        ] {
            assert_eq!(text.parse::<DnsName>().unwrap().as_str(), name);
        }
        let long = format!("{}.x", "a".repeat(64));
        let longer = vec!["a"; 128].join(".");
        for text in [
            "", ".", "a..b", "-a.b", "a-.b", "a b", "ä.x", &long, &longer,
        ] {
            assert!(text.parse::<DnsName>().is_err(), "{text}");
        }
        let error = "*.db.x".parse::<DnsName>().unwrap_err().to_string();
        assert!(error.contains("dns-subdomain-resolve"), "{error}");
    }

    #[test]
    fn name_servers_are_addresses_or_urls() {
        for text in [
            "1.1.1.1",
            "fd7a::53",
            "10.0.0.53:5353",
            "[fd00::53]:5353",
            "https://dns.nextdns.io/abc123",
            "https://dns.example:8443/q?x=1",
        ] {
            assert_eq!(text.parse::<Nameserver>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "dns.google",
            "1.1.1.1:0",
            "tls://1.1.1.1",
            "http://x/q",
            "https://",
            "https:///q",
            "https://a b/q",
            "https://x/#f",
            "https://User@x/q",
            "https://x:0/",
        ] {
            assert!(text.parse::<Nameserver>().is_err(), "{text}");
        }
        let known = |text: &str| text.parse::<Nameserver>().unwrap().is_known_to_clients();
        assert!(known("9.9.9.9") && known("https://dns.google/dns-query"));
        assert!(known("https://security.cloudflare-dns.com/dns-query"));
        assert!(!known("https://dns.google.example/q") && !known("https://xdns.google/q"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_gives_its_own_text_again(text in ".{0,80}") {
            if let Ok(name) = text.parse::<DnsName>() {
                prop_assert_eq!(name.as_str().parse::<DnsName>(), Ok(name.clone()));
            }
            if let Ok(server) = text.parse::<Nameserver>() {
                prop_assert_eq!(server.as_str().parse::<Nameserver>(), Ok(server.clone()));
            }
        }
    }
}
