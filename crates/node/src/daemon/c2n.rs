//! Requests of the coordination server to the node: small HTTP requests that
//! come through the map stream and are answered through the same channel.
//!
//! What can be asked so far: an echo, by which servers see whether a node is
//! alive. Everything else is answered as unknown, which servers expect of
//! older nodes.

/// The complete HTTP/1.1 response to a complete HTTP/1.1 request.
pub fn respond(request: &[u8]) -> Vec<u8> {
    let (status, body): (&str, &[u8]) = match parse(request) {
        None => ("400 Bad Request", b"cannot read the request"),
        Some(("/echo", body)) => ("200 OK", body),
        Some(_) => ("400 Bad Request", b"unknown c2n path"),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Path (without its query) and body of a request.
fn parse(request: &[u8]) -> Option<(&str, &[u8])> {
    let end = request
        .windows(4)
        .position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(request.get(..end)?).ok()?;
    let mut words = head.lines().next()?.split(' ');
    let (_method, target, _version) = (words.next()?, words.next()?, words.next()?);
    let path = target.split('?').next()?;
    Some((path, request.get(end + 4..)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn echo_answers_with_the_body_and_the_rest_is_unknown() {
        let answer = respond(b"POST /echo HTTP/1.1\r\nHost: x\r\n\r\nhello");
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        for request in [
            &b"GET /debug HTTP/1.0\r\n\r\n"[..],
            b"",
            b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"\xff \xff \xff\r\n\r\n",
        ] {
            assert!(
                respond(request).starts_with(b"HTTP/1.1 400 "),
                "{request:?}"
            );
        }
    }
}
