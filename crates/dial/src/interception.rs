//! Answers in place of the server that was asked: those of a captive portal, which sends
//! all connections of its network to itself until someone has logged in, and those of
//! proxies that inspect TLS.

use http::{HeaderMap, StatusCode, header};
use url::Url;

use crate::upgrade::shown;

/// The advice for a network with a captive portal.
const PORTAL: &str = "this network may want a login in a browser first (captive portal)";

/// The text for an answer at `url` that no coordination server gives, if it is one: a
/// redirect, a demand for a login (RFC 6585 section 6), a web page.
pub(crate) fn foreign_answer(
    url: &Url,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Option<String> {
    if status.is_redirection() {
        let location = headers.get(header::LOCATION)?.to_str().ok()?;
        let target = url.join(location).ok()?;
        let origin = target.origin().ascii_serialization();
        if target.host() == url.host() {
            return Some(format!("a redirect to {origin}; use that address instead"));
        }
        let host = shown(origin.as_bytes());
        return Some(format!("a redirect to {host}; {PORTAL}"));
    }
    let status_number = status.as_u16();
    if status_number == 511 {
        return Some(format!("HTTP 511; {PORTAL}"));
    }
    (status.is_success() && is_web_page(body)).then(|| format!("a web page; {PORTAL}"))
}

/// The likely cause of a refused upgrade, as the end of an error text.
pub(crate) fn upgrade_hint(status: u16, body: &str) -> String {
    let is_foreign = match status {
        300..=399 | 511 => true,
        200..=299 => is_web_page(body.as_bytes()),
        _ => false,
    };
    match is_foreign {
        true => format!("; something else answers in place of the server: {PORTAL}"),
        false => String::new(),
    }
}

/// The likely cause of a failed TLS handshake, as the end of an error text.
pub(crate) fn tls_hint(error: &std::io::Error) -> String {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    match error {
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => "; is the clock of this machine right?".to_owned(),
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. },
        )) => {
            format!("; another server answers in its place: the address may be wrong, or {PORTAL}")
        }
        Some(rustls::Error::InvalidCertificate(UnknownIssuer)) => format!(
            "; this machine does not know who issued the certificate: if it is your own \
             authority, add that to the certificates of the system; if not, something else \
             answers in its place, and {PORTAL}"
        ),
        Some(rustls::Error::InvalidMessage(_)) => format!(
            "; the answer is not TLS: the address may have to begin with http://, or {PORTAL}"
        ),
        _ => String::new(),
    }
}

/// Whether a body is HTML, by its beginning.
fn is_web_page(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    [&b"<!doctype html"[..], b"<html", b"<head"]
        .iter()
        .any(|mark| {
            start
                .get(..mark.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(mark))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn answers_of_portals_are_distinguished_from_those_of_servers() {
        let url: Url = "http://control.example/key?v=1".parse().unwrap();
        let answer = |status: u16, location: &str, body: &str| {
            let mut headers = HeaderMap::new();
            if !location.is_empty() {
                headers.insert(header::LOCATION, location.parse().unwrap());
            }
            let status = StatusCode::from_u16(status).unwrap();
            foreign_answer(&url, status, &headers, body.as_bytes()).unwrap_or_default()
        };
        for (status, location, body, expected) in [
            (
                302,
                "http://portal.example/login?x=1",
                "",
                "a redirect to http://portal.example; this network",
            ),
            (
                301,
                "https://control.example/key?v=1",
                "",
                "a redirect to https://control.example; use that",
            ),
            (
                302,
                "/login",
                "",
                "a redirect to http://control.example; use that",
            ),
            (302, "", "", ""),
            (511, "", "", "HTTP 511; this network"),
            (
                200,
                "",
                " \n<!DOCTYPE HTML><title>Welcome",
                "a web page; this network",
            ),
            (200, "", "<html>", "a web page; this network"),
            (200, "", "{\"publicKey\":\"\"}", ""),
            (200, "", "", ""),
            (404, "", "<html>", ""),
            (503, "", "", ""),
        ] {
            let text = answer(status, location, body);
            assert!(
                text.starts_with(expected) && expected.is_empty() == text.is_empty(),
                "{status} {location} {body}: {text}"
            );
        }
        assert!(upgrade_hint(302, "").contains("captive portal"));
        assert!(upgrade_hint(200, "<html>").contains("captive portal"));
        assert_eq!(upgrade_hint(200, "ok"), "");
        assert_eq!(upgrade_hint(400, "<html>"), "");
    }
}
