//! NAT-PMP and PCP messages, as routers, and other hosts of the local network, send them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_wire::{nat_pmp, pcp};

fuzz_target!(|datagram: &[u8]| {
    if let Some(request) = nat_pmp::Request::parse(datagram) {
        assert_eq!(request.emit().len(), datagram.len());
        assert_eq!(nat_pmp::Request::parse(&request.emit()), Some(request));
        assert!(pcp::Request::parse(datagram).is_none());
    }
    if let Some(response) = nat_pmp::Response::parse(datagram) {
        assert_eq!(nat_pmp::Response::parse(&response.emit()), Some(response));
        assert!(pcp::Response::parse(datagram).is_none());
    }
    if let Some(request) = pcp::Request::parse(datagram) {
        assert!(datagram.len() <= pcp::MAX_LEN);
        assert_eq!(pcp::Request::parse(&request.emit()), Some(request));
    }
    if let Some(response) = pcp::Response::parse(datagram) {
        assert_eq!(pcp::Response::parse(&response.emit()), Some(response));
    }
});
