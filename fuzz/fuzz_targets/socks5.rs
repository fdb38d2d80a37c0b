//! SOCKS5 messages of programs, datagrams to the relay, and answers of a proxy.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use warren_wire::socks5::{Host, MAX_MESSAGE, client, datagram, datagram_from, greeting, request};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((methods, len))) = greeting(bytes) {
        assert_eq!(len, 2 + methods.len());
    }
    match request(bytes) {
        Ok(Some((request, len))) => {
            assert!(len <= bytes.len() && len <= MAX_MESSAGE);
            assert!(!matches!(&request.host, Host::Name(name) if name.is_empty()));
        }
        Ok(None) => assert!(bytes.len() < MAX_MESSAGE),
        Err(error) => drop(error.to_string()),
    }
    if let Ok((Host::Address(address), port, data)) = datagram(bytes) {
        let again = datagram_from(SocketAddr::new(address, port), data);
        assert_eq!(datagram(&again), Ok((Host::Address(address), port, data)));
    }
    for read in [
        client::method(bytes).map(|read| read.map(|(_, len)| len)),
        client::password_accepted(bytes).map(|read| read.map(|(_, len)| len)),
        client::reply(bytes).map(|read| read.map(|(_, len)| len)),
    ] {
        match read {
            Ok(Some(len)) => assert!(len <= bytes.len() && len <= MAX_MESSAGE),
            Ok(None) => assert!(bytes.len() < MAX_MESSAGE),
            Err(error) => drop(error.to_string()),
        }
    }
});
