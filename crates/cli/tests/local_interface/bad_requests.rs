//! Requests that no program should send, and programs that do not read their answers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use warren_local_api::endpoints::ROWS;

use crate::served::{HOST, Served, get, served};

/// The longest time for an answer: a measurement of the network may take 10 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bodies that no endpoint can use, or that mean nothing.
const BODIES: &[&str] = &[
    "",
    "{",
    "null",
    "[]",
    "7",
    "\"text\"",
    "{\"unknown\":{\"deep\":[1,2,3]}}",
    "{\"AuthKey\":7,\"UpdatePrefs\":[]}",
    "{\"UpdatePrefs\":{\"AdvertiseRoutes\":\"x\"}}",
    "{\"AdvertiseRoutes\":\"x\",\"AdvertiseRoutesSet\":true}",
    "{\"HostnameSet\":\"yes\",\"Hostname\":[]}",
    "{\"RelayServerPort\":70000,\"RelayServerPortSet\":true}",
    "{\"NodeKey\":\"nodekey:zz\",\"RotationPublic\":5}",
    "{\"Keys\":\"x\",\"AddKeys\":{},\"ForkFrom\":1}",
    "{\"TSKey\":1,\"TKAKey\":\"x\"}",
    "\u{0}\u{1}\u{2}",
];

/// Queries with parameters that are missing, unknown, or of another kind.
const QUERIES: &[&str] = &[
    "",
    "?",
    "?unknown=1&unknown=2",
    "?ip=x&type=y&size=-1",
    "?ip=100.64.0.1&type=disco&size=99999999999999999999",
    "?addr=%ff%fe&proto=%00",
    "?mask=-1",
    "?mask=x",
    "?mask=65536",
    "?id=99999999999999999999",
    "?id=",
    "?peers=maybe",
    "?action=nonsense",
    "?dst=x&port=70000&proto=q&from=9",
    "?limit=x",
    "?%",
];

/// The texts for a state in which an endpoint fails whatever the request says. As with the
/// official client, their status is 500.
const STATES: &[&str] = &[
    "this machine is not logged in",
    "tailnet-lock is not active",
    "not connected to the tailnet",
];

/// The status of the answer, and the start of the answer. A stream is not read to its end.
fn answer(served: &Served, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(&served.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    let len = stream
        .read(&mut bytes)
        .unwrap_or_else(|error| panic!("{request}: {error}"));
    answer.extend_from_slice(&bytes[..len]);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    (
        status.unwrap_or_else(|| panic!("{request}: {answer}")),
        answer,
    )
}

fn request(method: &str, target: &str, body: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\n{HOST}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn every_endpoint_answers_bad_requests_with_words_and_never_hangs() {
    let served = served();
    let mut failures = Vec::new();
    for (name, methods, path, _) in ROWS {
        let path = path.replace("{id}", "%ff");
        for method in *methods {
            let bad = BODIES.iter().map(|body| (path.clone(), *body));
            let queries = QUERIES.iter().map(|query| (format!("{path}{query}"), ""));
            for (target, body) in bad.chain(queries) {
                let (status, text) = answer(&served, &request(method.as_str(), &target, body));
                let has_words = text
                    .split_once("\r\n\r\n")
                    .is_some_and(|(_, body)| body.trim().len() > 3);
                let is_refused = status >= 400;
                let is_head = method.as_str() == "HEAD";
                let names_state = STATES.iter().any(|state| text.contains(state));
                if (status == 500 && !names_state) || (is_refused && !has_words && !is_head) {
                    failures.push(format!("{name}: {method} {target} {body:?}: {text}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n---\n"));
    // The node is as before.
    assert!(get(&served, "/localapi/v0/status", HOST).starts_with("HTTP/1.1 200"));
}

#[test]
fn programs_that_leave_in_the_middle_disturb_no_other() {
    let served = served();
    let whole = request(
        "PATCH",
        "/localapi/v0/prefs",
        "{\"Hostname\":\"x\",\"HostnameSet\":true}",
    );
    for len in (0..whole.len()).step_by(7) {
        let mut stream = UnixStream::connect(&served.socket).unwrap();
        stream.write_all(&whole.as_bytes()[..len]).unwrap();
    }
    assert_eq!(served.prefs().hostname, "");
    let (status, _) = answer(&served, &whole);
    assert_eq!(status, 200);
    assert_eq!(served.prefs().hostname, "x");
}

#[test]
fn two_hundred_listeners_that_do_not_read_stop_no_other_program() {
    let served = served();
    let listen = request("GET", "/localapi/v0/watch-ipn-bus?mask=14", "");
    let listeners: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = UnixStream::connect(&served.socket).unwrap();
            stream.write_all(listen.as_bytes()).unwrap();
            stream
        })
        .collect();
    for n in 0..300 {
        let body = format!("{{\"Hostname\":\"host-{n}\",\"HostnameSet\":true}}");
        let (status, text) = answer(&served, &request("PATCH", "/localapi/v0/prefs", &body));
        assert_eq!(status, 200, "{text}");
    }
    assert_eq!(served.prefs().hostname, "host-299");
    // One that reads gets what comes next.
    let mut late = UnixStream::connect(&served.socket).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    late.write_all(listen.as_bytes()).unwrap();
    let mut first = [0; 12];
    late.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    drop(listeners);
}
