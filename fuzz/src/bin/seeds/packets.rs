//! Seeds of the targets that read IP packets: `ip`, `dataplane`, `filter`.

use std::io;
use std::path::Path;

use serde_json::json;
use warren_dataplane::VnetHdr;
use warren_dataplane_testkit::{Recipe, Transport, addresses};
use warren_wire::ip::IpPacket;
use warren_wire::ip::icmp::{self, Echo};
use warren_wire::ip::tsmp::{self, RejectReason};

use crate::tunnel::handshake;
use crate::{Seeds, bytes};

/// Writes the seeds of all three.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    ip(seeds)?;
    dataplane(seeds)?;
    filter(seeds)
}

/// Packets of each protocol.
fn ip(seeds: &Path) -> io::Result<()> {
    let ip = Seeds::new(seeds, "ip");
    ip.put("tcp4", &tcp(false, 4).build())?;
    ip.put("tcp6-extension", &tcp(true, 4).build())?;
    ip.put("udp4", &datagram(false, 4).build())?;
    ip.put("ping4", &ping(false))?;
    ip.put("ping6", &ping(true))?;
    let syn = tcp(false, 0).build();
    let syn = IpPacket::parse(&syn).expect("a packet");
    ip.put(
        "reject",
        &tsmp::reject_for(&syn, RejectReason::Acl).expect("a first packet"),
    )?;
    let [own, other] = [1, 2].map(|n| addresses(n)[0]);
    ip.put(
        "tsmp-ping",
        &tsmp::Message::Ping([1; 8])
            .packet(own, other)
            .expect("one family"),
    )?;
    let error = icmp_error(&datagram(false, 0).build());
    ip.put("unreachable", &error)
}

/// Frames of the host, and datagrams of the network.
fn dataplane(seeds: &Path) -> io::Result<()> {
    let plain = |packet: &[u8]| [&VnetHdr::PLAIN.to_bytes()[..], packet].concat();
    let dataplane = Seeds::new(seeds, "dataplane");
    let big = tcp(false, 3_000).frame(Some(1_000));
    dataplane.steps(
        "out",
        &[
            (0, 0, &plain(&tcp(false, 10).build())),
            (0, 0, &datagram(true, 10).frame(None)),
            (0, 0, &plain(&ping(false))),
        ],
    )?;
    dataplane.steps("superpacket", &[(0, 0, &big)])?;
    let segments: Vec<Vec<u8>> = (0..3u32)
        .map(|i| {
            let transport = Transport::Tcp {
                sequence: 1 + 20 * i,
                flags: 0x10,
                options: 0,
            };
            Recipe {
                transport,
                ..tcp(false, 20)
            }
            .build()
        })
        .collect();
    dataplane.steps(
        "joined-tcp",
        &[
            (1, 1, &segments[0]),
            (1, 1, &segments[1]),
            (1, 1, &segments[2]),
        ],
    )?;
    let one = datagram(true, 30).build();
    dataplane.steps(
        "joined-udp",
        &[
            (1, 1, &one),
            (1, 1, &one),
            (1, 0, &one),
            (1, 1, &ping(true)),
        ],
    )?;
    let [initiation, _] = handshake();
    dataplane.steps(
        "unauthenticated",
        &[
            (4, 148, &initiation),
            (4, 32, &[4; 64]),
            (1, 1, &[]),
            (5, 200, &ping(false)),
        ],
    )
}

/// Rules, and packets in both directions.
fn filter(seeds: &Path) -> io::Result<()> {
    let error = icmp_error(&datagram(false, 0).build());
    let rules = json!([
        {"SrcIPs": ["100.64.0.1", "fd7a:115c:a1e0::1"], "DstPorts": [{"IP": "100.64.0.2",
            "Ports": {"First": 80, "Last": 90}}], "IPProto": [6, 17]},
        {"SrcIPs": ["100.64.0.0-100.64.0.9", "cap:x"], "DstPorts": [{"IP": "*",
            "Ports": {"First": 53, "Last": 53}}]},
        {"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"c": [1]}}]},
    ]);
    let filter = Seeds::new(seeds, "filter");
    let incoming = swap_ends(&tcp(false, 0).build());
    let answered = swap_ends(&datagram(false, 4).build());
    filter.steps(
        "rules",
        &[
            (0, 0, &bytes(&rules)),
            (1, 1, &incoming),
            (0, 1, &datagram(false, 4).build()),
            (1, 1, &answered),
        ],
    )?;
    filter.steps(
        "exit",
        &[
            (0, 1, &bytes(&rules)),
            (1, 9, &swap_ends(&error)),
            (1, 1, &ping(true)),
        ],
    )
}

fn tcp(v6: bool, payload: usize) -> Recipe {
    Recipe {
        v6,
        extension: v6,
        ports: (1000, 80),
        id: 7,
        dont_fragment: true,
        transport: Transport::Tcp {
            sequence: 1,
            flags: 2,
            options: 4,
        },
        payload: vec![7; payload],
    }
}

fn datagram(v6: bool, payload: usize) -> Recipe {
    Recipe {
        extension: false,
        transport: Transport::Udp,
        ports: (5000, 53),
        ..tcp(v6, payload)
    }
}

fn ping(v6: bool) -> Vec<u8> {
    let [own, other] = [1, 2].map(|n| addresses(n)[usize::from(v6)]);
    icmp::echo_request(
        own,
        other,
        Echo {
            ident: 1,
            sequence: 2,
            data: b"hello",
        },
    )
    .expect("one family")
}

/// The packet as its receiver would answer it, checksums left alone.
fn swap_ends(packet: &[u8]) -> Vec<u8> {
    let mut out = packet.to_vec();
    let (from, len) = if packet[0] >> 4 == 4 {
        (12, 4)
    } else {
        (8, 16)
    };
    out[from..from + len].copy_from_slice(&packet[from + len..from + 2 * len]);
    out[from + len..from + 2 * len].copy_from_slice(&packet[from..from + len]);
    let ports = from + 2 * len;
    out[ports..ports + 2].copy_from_slice(&packet[ports + 2..ports + 4]);
    out[ports + 2..ports + 4].copy_from_slice(&packet[ports..ports + 2]);
    out
}

/// "Port unreachable" about `packet`.
fn icmp_error(packet: &[u8]) -> Vec<u8> {
    let mut out = ping(false)[..20].to_vec();
    out.extend_from_slice(&[3, 3, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&packet[..28]);
    let total = out.len() as u16;
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out
}
