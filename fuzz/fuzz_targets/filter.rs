//! Rules of any coordination server, then packets of any peer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_control_types::FilterRule;
use warren_filter::{
    CapabilityHolders, DropReason, Filter, FlowTable, LocalAddresses, LocalSet, Verdict,
    capability_sources,
};
use warren_fuzz::json::Message as _;
use warren_fuzz::{steps, tailnet_addresses};
use warren_testkit::SeededEntropy;
use warren_wire::ip::{IpPacket, Protocol};

fuzz_target!(|bytes: &[u8]| {
    let mut steps = steps(bytes);
    let Some(first) = steps.next() else { return };
    let Ok(rules) = Vec::<FilterRule>::read(first.bytes) else {
        return;
    };
    let mut holders = CapabilityHolders::new();
    for name in capability_sources(&rules) {
        holders.add(name, &tailnet_addresses(2));
    }
    let own = tailnet_addresses(1).map(|net| net.addr());
    let everything = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("written well"));
    let local = LocalSet::new(&LocalAddresses {
        addresses: &own,
        advertised: if first.arg & 1 == 0 { &[] } else { &everything },
        ..LocalAddresses::default()
    });
    let (filter, problems) = Filter::compile(&rules, local.clone(), &holders);
    for problem in &problems {
        assert!(problem.rule < rules.len());
        assert!(!problem.to_string().is_empty());
    }
    let shields = Filter::shields_up(local.clone());
    let flows = FlowTable::with_slots(&mut SeededEntropy(1), 64);
    let mut now = 0;
    for step in steps {
        now += u32::from(step.arg);
        let Ok(packet) = IpPacket::parse(step.bytes) else {
            continue;
        };
        if step.kind & 1 == 0 {
            let _ = filter.check_out(&flows, &packet, now);
            continue;
        }
        let verdict = filter.check_in(&flows, &packet, now);
        let blocked = shields.check_in(&flows, &packet, now);
        // Rules only allow; without them less comes in, never more.
        assert!(verdict.is_accept() || !blocked.is_accept());
        if verdict.is_accept() {
            assert!(local.contains(packet.dst));
        }
        if packet.opens_tcp() && !packet.is_later_fragment() && local.contains(packet.dst) {
            let allowed = filter.allows(Protocol::TCP, packet.src, packet.dst, packet.dst_port);
            let unfit = matches!(
                verdict,
                Verdict::Drop(DropReason::Multicast | DropReason::LinkLocal)
            );
            assert!(unfit || verdict.is_accept() == allowed);
        }
        // Memory of flows only adds.
        let no_flows = FlowTable::with_slots(&mut SeededEntropy(1), 64);
        assert!(verdict.is_accept() || !filter.check_in(&no_flows, &packet, now).is_accept());
        if let Verdict::Drop(reason) = verdict
            && let Some(answer) = filter.rejection(&packet, reason)
        {
            assert!(IpPacket::parse(&answer).is_ok_and(|answer| answer.dst == packet.src));
        }
        let _ = filter.caps_for(packet.src, packet.dst);
    }
});
