//! SOCKS version 5, both sides: RFC 1928, and the user name and password of RFC 1929.
//! The side of the client is in [`client`].
//!
//! A message is read from the front of what has come. `Ok(None)` asks for more bytes;
//! no message is longer than [`MAX_MESSAGE`].

pub mod client;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// The first byte of every message but the password's.
pub const VERSION: u8 = 5;
/// The longest message of a client, in bytes: a request with a name of 255 bytes, or a
/// user name and a password of 255 bytes each.
pub const MAX_MESSAGE: usize = 513;

/// The method without authentication.
pub const NO_AUTHENTICATION: u8 = 0;
/// The answer that no method is acceptable.
pub const NO_METHOD: u8 = 0xff;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The reason why a message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The first byte is not 5.
    #[error("not SOCKS version 5")]
    Version,
    /// The kind of address is unknown.
    #[error("unknown kind of address")]
    AddressKind,
    /// The name is empty or not ASCII.
    #[error("the host name is empty or not ASCII")]
    Name,
    /// The datagram is a fragment, or is cut off.
    #[error("the datagram is a fragment or cut off")]
    Datagram,
}

/// A host, as the client names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, to be resolved by the server.
    Name(String),
}

/// The wish of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A connection to the destination.
    Connect,
    /// A relay for UDP datagrams.
    UdpAssociate,
    /// Another one, which has this number.
    Other(u8),
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The wish.
    pub command: Command,
    /// The destination.
    pub host: Host,
    /// The port there.
    pub port: u16,
}

/// The result of a request, as it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Succeeded,
    /// It failed for a reason without a number of its own.
    Failed,
    /// The rules do not allow it.
    NotAllowed,
    /// The host is not reachable, or its name is not known.
    HostUnreachable,
    /// The destination refuses the connection.
    Refused,
    /// The destination does not answer.
    TimedOut,
    /// The command is not supported.
    UnknownCommand,
}

impl Reply {
    const fn number(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failed => 1,
            Self::NotAllowed => 2,
            Self::HostUnreachable => 4,
            Self::Refused => 5,
            Self::TimedOut => 6,
            Self::UnknownCommand => 7,
        }
    }

    /// The message with this result, and the address at which the server acts for the
    /// client.
    #[must_use]
    pub fn message(self, bound: SocketAddr) -> Vec<u8> {
        let mut out = vec![VERSION, self.number(), 0];
        put_address(&mut out, bound);
        out
    }
}

/// Reads the greeting of a client: `VER, NMETHODS, METHODS`. Returns the methods that
/// the client offers, and the length of the message.
///
/// # Errors
/// [`Malformed`].
pub fn greeting(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    match *bytes {
        [] => Ok(None),
        [VERSION] => Ok(None),
        [VERSION, count, ..] => {
            let len = 2 + usize::from(count);
            Ok(bytes.get(2..len).map(|methods| (methods, len)))
        }
        _ => Err(Malformed::Version),
    }
}

/// Reads a request: `VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT`. Returns it, and the
/// length of the message.
///
/// # Errors
/// [`Malformed`].
pub fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    if bytes.first().is_some_and(|version| *version != VERSION) {
        return Err(Malformed::Version);
    }
    let Some(&[_, command, _reserved]) = bytes.first_chunk() else {
        return Ok(None);
    };
    let Some((host, port, len)) = address(bytes.get(3..).unwrap_or_default())? else {
        return Ok(None);
    };
    let command = match command {
        1 => Command::Connect,
        3 => Command::UdpAssociate,
        other => Command::Other(other),
    };
    let request = Request {
        command,
        host,
        port,
    };
    Ok(Some((request, 3 + len)))
}

/// Reads a datagram of a client to the relay: `RSV, RSV, FRAG, ATYP, DST.ADDR, DST.PORT,
/// DATA`. Returns the destination and the data.
///
/// # Errors
/// [`Malformed`]; such datagrams are dropped, fragments too (RFC 1928, section 7).
pub fn datagram(bytes: &[u8]) -> Result<(Host, u16, &[u8]), Malformed> {
    let Some((&[_, _, 0], rest)) = bytes.split_first_chunk() else {
        return Err(Malformed::Datagram);
    };
    let (host, port, len) = address(rest)?.ok_or(Malformed::Datagram)?;
    Ok((host, port, rest.get(len..).unwrap_or_default()))
}

/// A datagram of the relay to its client.
#[must_use]
pub fn datagram_from(from: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 3];
    put_address(&mut out, from);
    out.extend_from_slice(data);
    out
}

/// Reads kind, address and port, and returns their length too.
fn address(bytes: &[u8]) -> Result<Option<(Host, u16, usize)>, Malformed> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let host_and_len = match kind {
        IPV4 => rest.first_chunk::<4>().map(|octets| {
            let address = Ipv4Addr::from(*octets);
            (Host::Address(address.into()), 4)
        }),
        IPV6 => rest.first_chunk::<16>().map(|octets| {
            let address = Ipv6Addr::from(*octets);
            (Host::Address(IpAddr::V6(address).to_canonical()), 16)
        }),
        NAME => match rest.split_first() {
            None => None,
            Some((&0, _)) => return Err(Malformed::Name),
            Some((&len, rest)) => {
                let len = usize::from(len);
                match rest.get(..len) {
                    None => None,
                    Some(name) => Some((host(name)?, 1 + len)),
                }
            }
        },
        _ => return Err(Malformed::AddressKind),
    };
    let Some((host, len)) = host_and_len else {
        return Ok(None);
    };
    let port = rest.get(len..).and_then(|rest| rest.first_chunk());
    Ok(port.map(|port| (host, u16::from_be_bytes(*port), 1 + len + 2)))
}

/// A name; some clients send an address as its text.
fn host(name: &[u8]) -> Result<Host, Malformed> {
    let name = std::str::from_utf8(name).map_err(|_| Malformed::Name)?;
    if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Malformed::Name);
    }
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => Host::Address(address.to_canonical()),
        Err(_) => Host::Name(name.to_owned()),
    })
}

fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(v4) => {
            out.push(IPV4);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(IPV6);
            out.extend_from_slice(&v6.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// A request for `port` of a host, as a client writes it.
    fn written(command: u8, host: &Host, port: u16) -> Vec<u8> {
        let mut out = vec![VERSION, command, 0];
        match host {
            Host::Address(address) => put_address(&mut out, SocketAddr::new(*address, port)),
            Host::Name(name) => {
                out.extend_from_slice(&[NAME, name.len() as u8]);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(&port.to_be_bytes());
            }
        }
        out
    }

    fn any_host() -> impl Strategy<Value = Host> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| Host::Address(IpAddr::from(octets))),
            any::<[u8; 16]>().prop_map(|octets| Host::Address(IpAddr::from(octets).to_canonical())),
            "[a-z][a-z0-9.-]{0,200}".prop_map(Host::Name),
        ]
    }

    proptest! {
        #[test]
        fn a_request_is_read_as_it_was_written(
            command in any::<u8>(), host in any_host(), port in any::<u16>(), more in any::<[u8; 3]>(),
        ) {
            let message = written(command, &host, port);
            prop_assert!(message.len() <= MAX_MESSAGE);
            for len in 0..message.len() {
                prop_assert_eq!(request(&message[..len]), Ok(None));
            }
            let (read, len) = request(&[&message[..], &more].concat()).unwrap().unwrap();
            prop_assert_eq!(len, message.len());
            prop_assert_eq!((read.host, read.port), (host.clone(), port));
            let mut wrapped = vec![0, 0, 0];
            wrapped.extend_from_slice(&message[3..]);
            wrapped.extend_from_slice(&more);
            prop_assert_eq!(datagram(&wrapped), Ok((host, port, &more[..])));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let longest = bytes.len() >= MAX_MESSAGE;
            for read in [
                greeting(&bytes).map(|read| read.map(|(_, len)| len)),
                request(&bytes).map(|read| read.map(|(_, len)| len)),
            ] {
                match read {
                    Ok(Some(len)) => prop_assert!(len <= MAX_MESSAGE && len <= bytes.len()),
                    Ok(None) => prop_assert!(!longest, "asks for more than the longest message"),
                    Err(_) => {}
                }
            }
            let _ = datagram(&bytes);
        }
    }

    #[test]
    fn a_greeting_names_its_methods() {
        assert_eq!(greeting(&[]), Ok(None));
        assert_eq!(greeting(&[5, 2, 0]), Ok(None));
        assert_eq!(greeting(&[5, 2, 0, 2, 9]), Ok(Some((&[0, 2][..], 4))));
        assert_eq!(greeting(&[4, 1]), Err(Malformed::Version));
    }

    #[test]
    fn names_that_could_hide_something_are_refused() {
        for name in [&b""[..], b"a b", b"a\0b", "\u{e9}".as_bytes()] {
            let mut message = vec![VERSION, 1, 0, NAME, name.len() as u8];
            message.extend_from_slice(name);
            message.extend_from_slice(&[0, 80]);
            assert_eq!(request(&message), Err(Malformed::Name), "{name:?}");
        }
    }

    #[test]
    fn replies_carry_the_address_of_the_server() {
        let bound = "192.0.2.1:1080".parse().unwrap();
        let reply = Reply::Refused.message(bound);
        assert_eq!(reply, [5, 5, 0, 1, 192, 0, 2, 1, 4, 56]);
        let from = "[2001:db8::1]:53".parse().unwrap();
        let sent = datagram_from(from, b"data");
        assert_eq!(
            datagram(&sent),
            Ok((Host::Address(from.ip()), 53, &b"data"[..]))
        );
    }
}
