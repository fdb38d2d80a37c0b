//! The cookie of a login: one for each login, so that two in one browser do not
//! disturb each other.

use http::{HeaderMap, HeaderValue, header};
use warren_control_core::PendingId;

/// How long a browser keeps the cookie, in seconds: as long as a login may take.
const MAX_AGE: u32 = 1200;
/// The digits of the id of a login.
const ID_LENGTH: usize = 24;

/// The name. With the prefix, browsers take the cookie over TLS only and from this
/// host alone, so that a neighbouring host cannot plant one (RFC 6265bis section 4.1.3).
fn name(id: &PendingId, secure: bool) -> String {
    let prefix = if secure { "__Host-" } else { "" };
    format!("{prefix}warren-login-{id}")
}

/// Whether the text has the form of an id, so that it can be part of a name.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The value of the header `Set-Cookie`. `None`: the value cannot be in a cookie.
pub(super) fn set(id: &PendingId, value: &str, secure: bool) -> Option<HeaderValue> {
    let only_tls = if secure { "; Secure" } else { "" };
    let name = name(id, secure);
    // Lax: the browser comes back from another site, by a link of it.
    let cookie =
        format!("{name}={value}; Path=/; Max-Age={MAX_AGE}; HttpOnly; SameSite=Lax{only_tls}");
    HeaderValue::from_str(&cookie).ok()
}

/// The cookie of a login; empty if there is none, or more than one: then one of them
/// was planted.
pub(super) fn get<'a>(headers: &'a HeaderMap, id: &PendingId, secure: bool) -> &'a str {
    let name = name(id, secure);
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(other, _)| *other == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => value,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id() -> PendingId {
        PendingId("0123456789abcdef01234567".to_owned())
    }

    #[test]
    fn cookies_are_bound_to_this_host_and_read_again() {
        assert!(is_id(&id().0));
        for wrong in ["", "0123456789ABCDEF01234567", "0123456789abcdef0123456;"] {
            assert!(!is_id(wrong), "{wrong}");
        }
        let header = set(&id(), "abc", true).unwrap();
        let text = header.to_str().unwrap();
        assert!(text.starts_with("__Host-warren-login-0123"), "{text}");
        for part in ["; Secure", "; HttpOnly", "; SameSite=Lax", "; Path=/"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("Domain"), "{text}");
        let plain = set(&id(), "abc", false).unwrap();
        let pair = plain
            .to_str()
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        let mut headers = HeaderMap::new();
        let line = format!("other=1; {pair}; x=y");
        headers.append(header::COOKIE, HeaderValue::from_str(&line).unwrap());
        assert_eq!(get(&headers, &id(), false), "abc");
        assert_eq!(get(&headers, &id(), true), "");
        headers.append(header::COOKIE, HeaderValue::from_str(&pair).unwrap());
        assert_eq!(get(&headers, &id(), false), "");
    }
}
