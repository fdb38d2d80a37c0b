//! Seeds of the targets of the tunnel: `wireguard`, `session`, `batch`, `handshakes`.

use std::io;
use std::path::Path;

use warren_fuzz::{address, node};
use warren_testkit::SeededEntropy;
use warren_tunnel::{Event, Handshakes, PeerIndex, Source};

use crate::Seeds;

/// Writes the seeds of all four.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    wireguard(seeds)?;
    session(seeds)?;
    batch(seeds)?;
    handshakes(seeds)
}

/// One message of each type.
fn wireguard(seeds: &Path) -> io::Result<()> {
    let [initiation, response] = handshake();
    let wireguard = Seeds::new(seeds, "wireguard");
    wireguard.put("initiation", &initiation)?;
    wireguard.put("response", &response)?;
    wireguard.put("cookie", &[&[3, 0, 0, 0][..], &[1; 60]].concat())?;
    wireguard.put("data", &[&[4, 0, 0, 0][..], &[1; 44]].concat())
}

/// Packets in and out of order, and forged ones.
fn session(seeds: &Path) -> io::Result<()> {
    let session = Seeds::new(seeds, "session");
    session.steps(
        "order",
        &[
            (1, 0, b"a"),
            (1, 1, b""),
            (1, 5, b""),
            (1, 0xfe, b""),
            (2, 0xff, b""),
            (1, 0, b""),
            (3, 40, b""),
            (0, 0, &[4; 40]),
        ],
    )
}

/// Batches of different sizes.
fn batch(seeds: &Path) -> io::Result<()> {
    let batch = Seeds::new(seeds, "batch");
    batch.steps(
        "full",
        &[
            (47, 255, &[0, 5, 9, 1, 0x45]),
            (30, 0, b""),
            (7, 17, &[0x10, 5, 0, 0, 1, 2, 3]),
        ],
    )?;
    batch.steps("small", &[(63, 255, &[16, 0, 40, 0x80]), (69, 9, &[0; 4])])
}

/// Handshakes that succeed, are lost, renewed, and under load.
fn handshakes(seeds: &Path) -> io::Result<()> {
    let [initiation, response] = handshake();
    let handshakes = Seeds::new(seeds, "handshakes");
    let meets: &[(u8, u8, &[u8])] = &[(4, 0, &[]), (0, 1, &[]), (0, 0, &[]), (6, 1, &[])];
    handshakes.steps("meets", meets)?;
    handshakes.steps(
        "load",
        &[
            (5, 5, &[]),
            (4, 0, &[]),
            (0, 1, &[]),
            (0, 0, &[]),
            (3, 0xcf, &[]),
            (0, 1, &[]),
            (0, 0, &[]),
        ],
    )?;
    handshakes.steps(
        "renewed",
        &[
            &[meets[0], meets[1], meets[2], meets[3]][..],
            &[
                (3, 0xff, &[]),
                (4, 1, &[]),
                (0, 0, &[]),
                (0, 1, &[]),
                (1, 1, &[]),
                (0, 4, &[20, 1]),
                (7, 0, &[]),
            ],
        ]
        .concat(),
    )?;
    handshakes.steps(
        "unauthenticated",
        &[(2, 1, &initiation), (2, 0, &response), (2, 1, &[3; 64])],
    )
}

/// An initiation of node 1 to node 2, and the response.
pub(crate) fn handshake() -> [Vec<u8>; 2] {
    let now = std::time::Instant::now();
    let mut near = Handshakes::new(node(1), Box::new(SeededEntropy(1)));
    let mut far = Handshakes::new(node(2), Box::new(SeededEntropy(2)));
    near.add_peer(now, PeerIndex(1), node(2).public());
    far.add_peer(now, PeerIndex(1), node(1).public());
    let sent = |hs: &mut Handshakes| loop {
        match hs.poll_event() {
            Some(Event::Send { datagram, .. }) => return datagram,
            Some(_) => {}
            None => panic!("a handshake sends a message"),
        }
    };
    near.want_session(now, warren_fuzz::WALL, PeerIndex(1));
    let initiation = sent(&mut near);
    far.handle_datagram(now, warren_fuzz::WALL, Source::Udp(address(0)), &initiation);
    [initiation, sent(&mut far)]
}
