//! `NO_PROXY`: the hosts that are reached without a proxy.
//!
//! The rules are those of the official client (Go's `httpproxy`): entries are separated
//! by commas; `*` is every host; an address or a network in CIDR notation is compared
//! with hosts that are addresses; `example.com` is that name and all names below it;
//! `.example.com` and `*.example.com` are the names below it only; an address or a name
//! may end with `:port`. This machine (`localhost`, loopback addresses) is never reached
//! through a proxy. White space separates entries too, as with curl.

use std::net::IpAddr;

use ipnet::IpNet;

/// The list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exceptions {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    All,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// The name, without dots at its ends.
    Name {
        name: String,
        only_below: bool,
        port: Option<u16>,
    },
}

impl Exceptions {
    /// Reads a list. Entries that make no sense match nothing.
    pub fn parse(list: &str) -> Self {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace());
        let rules = entries.filter_map(|entry| rule(&entry.to_ascii_lowercase()));
        Self {
            rules: rules.collect(),
        }
    }

    /// Whether `host` (IPv6 without brackets) is reached without a proxy.
    pub fn include(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok().map(|ip: IpAddr| ip.to_canonical());
        if host == "localhost" || address.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        let of_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        self.rules.iter().any(|rule| match rule {
            Rule::All => true,
            Rule::Network(network) => address.is_some_and(|ip| network.contains(&ip)),
            Rule::Address(ip, wanted) => address == Some(*ip) && of_port(wanted),
            Rule::Name {
                name,
                only_below,
                port: wanted,
            } => {
                let below = host
                    .strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('.'));
                address.is_none() && of_port(wanted) && (below || (!only_below && host == *name))
            }
        })
    }
}

/// The rule of an entry in lower case.
fn rule(entry: &str) -> Option<Rule> {
    if entry == "*" {
        return Some(Rule::All);
    }
    if let Ok(network) = entry.parse() {
        return Some(Rule::Network(network));
    }
    let (host, port) = split_port(entry)?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some(Rule::Address(ip.to_canonical(), port));
    }
    let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let name = below.unwrap_or(host).trim_matches('.');
    (!name.is_empty()).then(|| Rule::Name {
        name: name.to_owned(),
        only_below: below.is_some(),
        port,
    })
}

/// The host of an entry without brackets, and its port. `None` if what follows a single
/// colon is no port.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    if let Some(bracketed) = entry.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match entry.split_once(':') {
        // More colons: an IPv6 address.
        Some((_, rest)) if rest.contains(':') => Some((entry, None)),
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((entry, None)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_match_hosts_as_with_the_official_client() {
        for (list, host, port, expected) in [
            ("", "a.example", 443, false),
            ("*", "a.example", 443, true),
            ("b.example, *", "a.example", 443, true),
            // Names: themselves and all below.
            ("example.com", "example.com", 443, true),
            ("example.com", "a.example.com", 443, true),
            ("example.com", "a.b.example.com", 443, true),
            ("example.com", "notexample.com", 443, false),
            ("example.com", "example.com.evil.net", 443, false),
            ("EXAMPLE.com", "Example.COM", 443, true),
            ("example.com.", "example.com", 443, true),
            ("example.com", "example.com.", 443, true),
            // A dot or a star in front: below only.
            (".example.com", "a.example.com", 443, true),
            (".example.com", "example.com", 443, false),
            ("*.example.com", "a.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            // Ports.
            ("example.com:8080", "example.com", 8080, true),
            ("example.com:8080", "a.example.com", 8080, true),
            ("example.com:8080", "example.com", 443, false),
            ("10.0.0.1:80", "10.0.0.1", 80, true),
            ("10.0.0.1:80", "10.0.0.1", 443, false),
            ("[2001:db8::1]:80", "2001:db8::1", 80, true),
            ("[2001:db8::1]:80", "2001:db8::1", 443, false),
            // Addresses and networks.
            ("10.0.0.1", "10.0.0.1", 443, true),
            ("10.0.0.1", "10.0.0.10", 443, false),
            ("2001:db8::1", "2001:db8:0::1", 443, true),
            ("[2001:db8::1]", "2001:db8::1", 443, true),
            ("10.0.0.0/8", "10.9.8.7", 443, true),
            ("10.0.0.0/8", "11.9.8.7", 443, false),
            ("10.0.0.0/8", "::ffff:10.9.8.7", 443, true),
            ("2001:db8::/32", "2001:db8:5::1", 443, true),
            // A network says nothing about names, a name nothing about addresses.
            ("0.0.0.0/0", "a.example", 443, false),
            ("0.1", "10.0.0.1", 443, false),
            // Separators.
            (" a.example ,b.example", "a.example", 443, true),
            ("a.example b.example", "b.example", 443, true),
            (",,a.example,", "a.example", 443, true),
            // Entries that make no sense match nothing.
            ("10.0.0.0/33", "10.0.0.1", 443, false),
            ("a.example:http", "a.example", 80, false),
            ("a.example:99999", "a.example", 443, false),
            (".", "a.example", 443, false),
            ("*.", "a.example", 443, false),
            // This machine.
            ("", "localhost", 443, true),
            ("", "LOCALHOST.", 443, true),
            ("", "127.8.9.1", 443, true),
            ("", "::1", 443, true),
            ("", "localhost.example", 443, false),
        ] {
            let found = Exceptions::parse(list).include(host, port);
            assert_eq!(found, expected, "{list:?} {host} {port}");
        }
    }

    proptest! {
        #[test]
        fn any_list_is_read(list in ".{0,80}", host in "[a-z0-9.:]{0,20}", port: u16) {
            Exceptions::parse(&list).include(&host, port);
        }

        #[test]
        fn a_host_matches_its_own_entry(host in "[a-z][a-z0-9]{0,9}(\\.[a-z][a-z0-9]{0,9}){0,3}", port: u16) {
            prop_assert!(Exceptions::parse(&host).include(&host, port));
            let with_port = format!("{host}:{port}");
            prop_assert!(Exceptions::parse(&with_port).include(&host, port));
            let below = format!("x.{host}");
            prop_assert!(Exceptions::parse(&host).include(&below, port));
            let beside = format!("x{host}");
            prop_assert!(!Exceptions::parse(&host).include(&beside, port) || beside == "localhost");
        }
    }
}
