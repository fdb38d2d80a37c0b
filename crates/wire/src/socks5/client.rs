//! SOCKS version 5, the side of the client: it writes greetings and requests, and reads
//! the answers.

use std::net::SocketAddr;

use super::{Host, MAX_MESSAGE, Malformed, NAME, NO_AUTHENTICATION, VERSION, address, put_address};

/// The method with a user name and a password (RFC 1929).
pub const USER_AND_PASSWORD: u8 = 2;
/// The version of the messages of RFC 1929.
const PASSWORD_VERSION: u8 = 1;
const CONNECT: u8 = 1;

/// The greeting `VER, NMETHODS, METHODS`: with a password, both methods are offered.
#[must_use]
pub fn greeting(has_password: bool) -> &'static [u8] {
    if has_password {
        &[VERSION, 2, NO_AUTHENTICATION, USER_AND_PASSWORD]
    } else {
        &[VERSION, 1, NO_AUTHENTICATION]
    }
}

/// Reads the server's choice `VER, METHOD`. Returns the method, and the length of the
/// message. [`NO_METHOD`](super::NO_METHOD) means that the server accepts none.
///
/// # Errors
/// [`Malformed::Version`].
pub fn method(bytes: &[u8]) -> Result<Option<(u8, usize)>, Malformed> {
    match *bytes {
        [] | [VERSION] => Ok(None),
        [VERSION, method, ..] => Ok(Some((method, 2))),
        _ => Err(Malformed::Version),
    }
}

/// The message `VER, ULEN, UNAME, PLEN, PASSWD` of RFC 1929. `None` if one of the two is
/// empty or longer than 255 bytes, which the message cannot hold.
#[must_use]
pub fn password(user: &[u8], password: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![PASSWORD_VERSION];
    for text in [user, password] {
        if text.is_empty() {
            return None;
        }
        out.push(u8::try_from(text.len()).ok()?);
        out.extend_from_slice(text);
    }
    Some(out)
}

/// Reads the answer `VER, STATUS` to a password: whether it is accepted, and the length of
/// the message.
///
/// # Errors
/// [`Malformed::Version`].
pub fn password_accepted(bytes: &[u8]) -> Result<Option<(bool, usize)>, Malformed> {
    match *bytes {
        [] | [PASSWORD_VERSION] => Ok(None),
        [PASSWORD_VERSION, status, ..] => Ok(Some((status == 0, 2))),
        _ => Err(Malformed::Version),
    }
}

/// The request `VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT` for a TCP connection. `None` if
/// the name is empty or longer than 255 bytes, which the message cannot hold.
#[must_use]
pub fn connect(host: &Host, port: u16) -> Option<Vec<u8>> {
    let mut out = vec![VERSION, CONNECT, 0];
    match host {
        Host::Address(ip) => put_address(&mut out, SocketAddr::new(*ip, port)),
        Host::Name(name) => {
            let len = u8::try_from(name.len()).ok().filter(|len| *len > 0)?;
            out.extend_from_slice(&[NAME, len]);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&port.to_be_bytes());
        }
    }
    debug_assert!(out.len() <= MAX_MESSAGE);
    Some(out)
}

/// Reads the answer `VER, REP, RSV, ATYP, BND.ADDR, BND.PORT` to a request: the number of
/// the reply (0: the connection is open), and the length of the message.
///
/// # Errors
/// [`Malformed`].
pub fn reply(bytes: &[u8]) -> Result<Option<(u8, usize)>, Malformed> {
    if bytes.first().is_some_and(|version| *version != VERSION) {
        return Err(Malformed::Version);
    }
    let Some(&[_, reply, _reserved]) = bytes.first_chunk() else {
        return Ok(None);
    };
    let address = address(bytes.get(3..).unwrap_or_default())?;
    Ok(address.map(|(_, _, len)| (reply, 3 + len)))
}

/// The meaning of a reply (RFC 1928 section 6), for error messages.
#[must_use]
pub fn meaning(reply: u8) -> &'static str {
    match reply {
        0 => "succeeded",
        2 => "not allowed by its rules",
        3 => "the network is unreachable",
        4 => "the host is unreachable",
        5 => "the connection is refused",
        6 => "the connection timed out",
        7 => "the command is not supported",
        8 => "the kind of address is not supported",
        _ => "general failure",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Command, Reply, greeting as read_greeting, request};
    use super::*;

    #[test]
    fn messages_of_the_client_are_read_by_the_server() {
        assert_eq!(
            read_greeting(greeting(true)),
            Ok(Some((&[NO_AUTHENTICATION, USER_AND_PASSWORD][..], 4)))
        );
        assert_eq!(
            read_greeting(greeting(false)),
            Ok(Some((&[NO_AUTHENTICATION][..], 3)))
        );
        let hosts = [
            Host::Name("a.example".to_owned()),
            Host::Address([192, 0, 2, 1].into()),
            Host::Address("2001:db8::1".parse().unwrap()),
        ];
        for host in hosts {
            let message = connect(&host, 443).unwrap();
            let (read, len) = request(&message).unwrap().unwrap();
            assert_eq!(len, message.len());
            assert_eq!(read.command, Command::Connect);
            assert_eq!((read.host, read.port), (host, 443));
        }
        assert_eq!(connect(&Host::Name("x".repeat(256)), 1), None);
        assert_eq!(password(b"me", b"pw").unwrap(), b"\x01\x02me\x02pw");
        assert_eq!(password(b"me", b""), None);
        assert_eq!(password(&[b'x'; 256], b"pw"), None);
    }

    #[test]
    fn answers_of_the_server_are_read_by_the_client() {
        for (answer, number) in [(Reply::Succeeded, 0), (Reply::Refused, 5)] {
            for bound in ["192.0.2.1:80", "[2001:db8::1]:80"] {
                let message = answer.message(bound.parse().unwrap());
                for len in 0..message.len() {
                    assert_eq!(reply(&message[..len]), Ok(None));
                }
                assert_eq!(reply(&message), Ok(Some((number, message.len()))));
            }
        }
        assert_eq!(method(&[5]), Ok(None));
        assert_eq!(method(&[5, 2]), Ok(Some((2, 2))));
        assert_eq!(method(b"HTTP/1.1 400"), Err(Malformed::Version));
        assert_eq!(password_accepted(&[1, 0]), Ok(Some((true, 2))));
        assert_eq!(password_accepted(&[1, 7]), Ok(Some((false, 2))));
        assert_eq!(reply(b"HTTP/1.1 400"), Err(Malformed::Version));
    }
}
