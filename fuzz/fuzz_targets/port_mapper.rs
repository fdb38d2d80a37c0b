//! The port mapper: all datagrams that a router or another host may send, in any
//! order, while time passes and networks change.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use warren_fuzz::{Clock, steps};
use warren_node_types::{Family, PortMapReport};
use warren_portmap::{Output, PortMapper, Response, Router};
use warren_testkit::SeededEntropy;

fn router(last: u8) -> Router {
    Router {
        router: Ipv4Addr::new(10, 0, 0, last).into(),
        local: Ipv4Addr::new(10, 0, 0, 2).into(),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut clock = Clock::default();
    let mut mapper = PortMapper::new(Family::V4, Box::new(SeededEntropy(1)));
    mapper.want(clock.now, Some(41641));
    mapper.set_router(clock.now, Some(router(1)));
    let mut last_exchange = 0;
    for step in steps(bytes) {
        let now = clock.now;
        let from = SocketAddr::from(([10, 0, 0, 1], 5351 + u16::from(step.arg & 1)));
        match step.kind % 8 {
            0 => clock.pass(step.arg),
            1 => mapper.want(now, (step.arg & 1 == 0).then_some(41641)),
            2 => mapper.set_router(now, (step.arg & 2 == 0).then(|| router(1 + (step.arg & 1)))),
            3 => {
                let response = Response::parse(step.bytes, true).ok();
                mapper.handle_exchange(now, last_exchange, response.as_ref());
            }
            4 => {
                let body = String::from_utf8_lossy(step.bytes).into_owned();
                let response = Response { status: 200, body };
                mapper.handle_exchange(now, last_exchange, Some(&response));
            }
            _ => mapper.handle_datagram(now, from, step.bytes),
        }
        mapper.handle_timeout(clock.now);
        let mut count = 0;
        while let Some(output) = mapper.poll_output() {
            count += 1;
            assert!(count < 24, "one input, no end of outputs");
            match output {
                Output::Send { to, packet } => {
                    assert!(to.port() == 5351 && packet.len() <= 60 || to.port() == 1900);
                }
                Output::Exchange { id, to, .. } => {
                    assert!([1, 2].map(|last| router(last).router).contains(&to.ip()));
                    last_exchange = id;
                }
                Output::Keep(_) => {}
                Output::Report(PortMapReport::Mapped { external, lifetime }) => {
                    assert!(external.port() != 0 && !lifetime.is_zero());
                }
                Output::Report(_) => {}
            }
        }
        assert!(mapper.next_deadline().is_none_or(|at| at > clock.now));
    }
});
