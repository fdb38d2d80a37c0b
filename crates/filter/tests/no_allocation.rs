//! Checking a packet allocates nothing, whatever the verdict.

#![allow(clippy::unwrap_used)]

use warren_control_types::FilterRule;
use warren_filter::{CapabilityHolders, Filter, FlowTable, LocalAddresses, LocalSet, Verdict};
use warren_testkit::{CountingAllocator, FixedEntropy};
use warren_wire::ip::{IpPacket, icmp, udp};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn matching_allocates_nothing() {
    let rules: Vec<FilterRule> = serde_json::from_value(serde_json::json!([
        {"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 80}}]},
        {"SrcIPs": ["100.64.0.0/10"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 1, "Last": 9}}]},
    ]))
    .unwrap();
    let own = ["100.64.0.1".parse().unwrap(), "fd7a::1".parse().unwrap()];
    let local = LocalSet::new(&LocalAddresses {
        addresses: &own,
        ..LocalAddresses::default()
    });
    let (filter, _) = Filter::compile(&rules, local, &CapabilityHolders::new());
    let flows = FlowTable::new(&mut FixedEntropy(0));
    let udp = |src: &str, dst: &str| {
        udp::packet(src.parse().unwrap(), dst.parse().unwrap(), b"payload").unwrap()
    };
    let ping = icmp::echo_request(
        "100.64.0.2".parse().unwrap(),
        "100.64.0.1".parse().unwrap(),
        icmp::Echo {
            ident: 1,
            sequence: 1,
            data: b"x",
        },
    )
    .unwrap();
    let packets = [
        udp("100.64.0.2:1000", "100.64.0.1:53"),
        udp("100.64.0.2:1000", "100.64.0.1:9999"),
        udp("[fd7a::2]:1000", "[fd7a::1]:9999"),
        udp("100.64.0.2:1000", "224.0.0.1:53"),
        ping,
    ];

    // The first use of the counter is not part of the measurement.
    let before = CountingAllocator::allocations();
    let mut accepted = 0;
    for now in 0..100 {
        for bytes in &packets {
            let Ok(packet) = IpPacket::parse(bytes) else {
                continue;
            };
            for verdict in [
                filter.check_out(&flows, &packet, now),
                filter.check_in(&flows, &packet, now),
            ] {
                accepted += usize::from(verdict == Verdict::Accept);
            }
        }
    }
    assert_eq!(CountingAllocator::allocations() - before, 0);
    // Out: all but multicast. In: DNS by rule and the ping.
    assert_eq!(accepted, 600);
}
