//! UPnP as routers, and other hosts of the local network, write it: answers to searches, HTTP
//! responses, descriptions and the answers to calls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_wire::upnp::{
    Call, Location, MAX_DOCUMENT, Response, external_address, reserved_port, search_response,
    services,
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(location) = search_response(bytes) {
        let url = format!("http://router:{}{}", location.port, location.path);
        assert_eq!(Location::parse(&url), Some(location));
    }
    let whole = Response::parse(bytes, true);
    if let Ok(response) = Response::parse(bytes, false) {
        assert_eq!(
            whole,
            Ok(response),
            "the end of the connection adds nothing"
        );
    }
    let body = String::from_utf8_lossy(bytes).into_owned();
    let response = whole.unwrap_or(Response { status: 200, body });
    assert!(response.body.len() <= 3 * MAX_DOCUMENT.max(bytes.len()));
    let _ = (external_address(&response), reserved_port(&response));
    let Some(base) = Location::parse("http://10.0.0.1:5000/igd/root.xml") else {
        unreachable!("it is a URL");
    };
    let found = services(&response.body, &base);
    assert!(found.len() <= 8 && found.is_sorted_by_key(|service| service.kind));
    for service in found {
        let host = ([10, 0, 0, 1], service.control.port).into();
        let request = Call::Unmap(7).request(&service, host);
        // One request line: nothing of the document gets into the head.
        let lines = request.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines, 9);
    }
});
