//! The part of HTTP/1.1 that small routers speak: one request for each connection.

use std::net::SocketAddr;

use super::MAX_DOCUMENT;

/// Most headers of a message that are looked at.
const MAX_HEADERS: usize = 64;

/// Where a router offers something: the port and the path of an `http` URL. The host is that
/// of the router, whatever the URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Not 0.
    pub port: u16,
    /// Begins with `/`; without spaces and control characters.
    pub path: String,
}

impl Location {
    /// Reads an absolute URL.
    pub fn parse(url: &str) -> Option<Self> {
        let url = url.trim();
        let (scheme, rest) = url.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") {
            return None;
        }
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // An IPv6 host is in brackets and has colons of its own.
        let after_host = authority
            .rfind(']')
            .map_or(authority, |at| &authority[at..]);
        let port = match after_host.split_once(':') {
            None => 80,
            Some((_, port)) => port.parse().ok()?,
        };
        Self::new(port, if path.is_empty() { "/" } else { path })
    }

    /// Reads a URL that may be relative to this one.
    pub fn join(&self, url: &str) -> Option<Self> {
        let url = url.trim();
        if url.contains("://") {
            return Self::parse(url);
        }
        if url.starts_with('/') {
            return Self::new(self.port, url);
        }
        let folder = self.path.rfind('/').map_or("/", |at| &self.path[..=at]);
        Self::new(self.port, &format!("{folder}{url}"))
    }

    fn new(port: u16, path: &str) -> Option<Self> {
        let is_clean = path.len() <= 1_024 && path.bytes().all(|byte| byte.is_ascii_graphic());
        (port != 0 && is_clean).then(|| Self {
            port,
            path: path.to_owned(),
        })
    }

    /// The request for the document there. `host` is the router's address.
    pub fn get(&self, host: SocketAddr) -> Vec<u8> {
        format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
            self.path
        )
        .into_bytes()
    }
}

/// A whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body; bytes that are no UTF-8 are replaced.
    pub body: String,
}

/// The bytes so far are not a whole response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// More bytes are needed.
    Incomplete,
    /// No more bytes would make it one.
    Malformed,
}

impl Response {
    /// Reads the bytes that came over a connection so far; `at_end`: no more will come.
    ///
    /// # Errors
    /// [`Unfinished`].
    pub fn parse(bytes: &[u8], at_end: bool) -> Result<Self, Unfinished> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(Unfinished::Malformed);
        }
        let more = match at_end {
            true => Unfinished::Malformed,
            false => Unfinished::Incomplete,
        };
        let end = head_end(bytes).ok_or(more)?;
        let (status, headers) = head(bytes).ok_or(Unfinished::Malformed)?;
        let value = |wanted: &str| {
            let named = headers
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            named.map(|(_, value)| *value)
        };
        let rest = bytes.get(end..).unwrap_or_default();
        let is_chunked = value("transfer-encoding")
            .is_some_and(|encoding| encoding.to_ascii_lowercase().contains("chunked"));
        let length = value("content-length").and_then(|length| length.parse::<usize>().ok());
        let body = match length {
            _ if is_chunked => chunks(rest).ok_or(more)?,
            Some(length) => rest.get(..length).ok_or(more)?.to_vec(),
            None if at_end => rest.to_vec(),
            None => return Err(more),
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Self { status, body })
    }
}

/// The status and the headers of a response, if all of them are there.
pub(super) fn head(bytes: &[u8]) -> Option<(u16, Vec<(&str, &str)>)> {
    let end = head_end(bytes)?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split_ascii_whitespace();
    let is_http = first.next()?.starts_with("HTTP/1.");
    let status = first.next()?.parse().ok().filter(|_| is_http)?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.trim(), value.trim()));
    Some((status, headers.take(MAX_HEADERS).collect()))
}

/// Where the head ends. A few routers end lines without a carriage return.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let find = |end: &[u8]| {
        let at = bytes.windows(end.len()).position(|window| window == end);
        at.map(|at| at + end.len())
    };
    find(b"\r\n\r\n").into_iter().chain(find(b"\n\n")).min()
}

/// The content of a body in chunks, if the last one is there.
fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = rest.get(end + 1..)?;
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?;
        rest = rest.strip_prefix(b"\r\n").or(rest.strip_prefix(b"\n"))?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn at(port: u16, path: &str) -> Option<Location> {
        Location::new(port, path)
    }

    #[test]
    fn urls_are_reduced_to_port_and_path() {
        for (url, expected) in [
            (
                "http://192.168.1.1:5000/rootDesc.xml",
                at(5000, "/rootDesc.xml"),
            ),
            ("HTTP://router.lan", at(80, "/")),
            ("http://[fe80::1]:49000/a/b.xml", at(49000, "/a/b.xml")),
            ("http://[fe80::1]/a", at(80, "/a")),
            ("https://192.168.1.1/", None),
            ("http://192.168.1.1:70000/", None),
            ("http://192.168.1.1:0/", None),
            ("http://192.168.1.1/a b", None),
            ("http://192.168.1.1/a\r\nHost: b", None),
            ("/rootDesc.xml", None),
        ] {
            assert_eq!(Location::parse(url), expected, "{url}");
        }
        let base = at(5000, "/igd/rootDesc.xml").unwrap();
        assert_eq!(base.join("/ctl/IPConn"), at(5000, "/ctl/IPConn"));
        assert_eq!(base.join("ctl"), at(5000, "/igd/ctl"));
        assert_eq!(base.join("http://10.0.0.9:90/ctl"), at(90, "/ctl"));
        assert_eq!(base.join("a b"), None);
    }

    #[test]
    fn a_response_ends_with_its_length_its_last_chunk_or_the_connection() {
        let length = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let chunked = b"HTTP/1.1 500 Error\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
        let open = b"HTTP/1.0 200 OK\nServer: x\n\nhello";
        let of = |bytes: &[u8], at_end| Response::parse(bytes, at_end);
        for (bytes, status) in [(&length[..], 200), (chunked, 500)] {
            let whole = of(bytes, false).unwrap();
            assert_eq!((whole.status, whole.body.as_str()), (status, "hello"));
        }
        assert_eq!(
            of(&length[..length.len() - 1], false),
            Err(Unfinished::Incomplete)
        );
        assert_eq!(
            of(&length[..length.len() - 1], true),
            Err(Unfinished::Malformed)
        );
        assert_eq!(of(&chunked[..70], false), Err(Unfinished::Incomplete));
        assert_eq!(of(open, false), Err(Unfinished::Incomplete));
        assert_eq!(of(open, true).unwrap().body, "hello");
        let long = vec![b'x'; MAX_DOCUMENT + 1];
        assert_eq!(of(&long, false), Err(Unfinished::Malformed));
    }

    proptest! {
        #[test]
        fn a_whole_response_stays_so_when_more_comes(bytes: Vec<u8>, more: Vec<u8>, length in 0usize..9) {
            let mut all = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            all.extend_from_slice(&bytes);
            if let Ok(response) = Response::parse(&all, false) {
                all.extend_from_slice(&more);
                prop_assert_eq!(Response::parse(&all, false), Ok(response));
            }
            let _ = Response::parse(&bytes, true);
        }
    }
}
