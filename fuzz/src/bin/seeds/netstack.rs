//! Seeds of the targets of the network inside the tunnel: `netstack`, `socks5`.

use std::io;
use std::path::Path;

use crate::Seeds;

/// A connection with data both ways, one that is refused, a lost segment, a damaged one,
/// flows, and the messages of a SOCKS client.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    let target = Seeds::new(seeds, "netstack");
    let exchange = (7, 0xf2, &[][..]);
    let open: [(u8, u8, &[u8]); 3] = [(1, 0, &[]), exchange, exchange];
    let with = |more: &[(u8, u8, &'static [u8])]| -> Vec<(u8, u8, &[u8])> {
        open.iter().chain(more).copied().collect()
    };
    let talk = with(&[
        (3, 0, b"question"),
        exchange,
        (3, 4 | 1, &[]),
        (3, 1, b"answer"),
        exchange,
        (3, 8, &[]),
        exchange,
        (3, 8 | 1, &[]),
        (3, 10, &[]),
        exchange,
        (5, 0xe1, &[]),
    ]);
    target.steps("talk", &talk)?;
    target.steps("refused", &[(1, 0, &[]), (7, 0xf0, &[]), (5, 0xff, &[])])?;
    let bulk = with(&[
        (3, 14, &[]),
        (7, 0xf2, &[0, 7, 0, 0, 7]),
        (5, 0xa1, &[]),
        exchange,
        (3, 4 | 1, &[]),
        (7, 0xf6, &[40, 1, 33, 4]),
        (6, 1, &[33, 0x10]),
        (3, 12, &[]),
        exchange,
    ]);
    target.steps("bulk", &bulk)?;
    target.steps(
        "flows",
        &[
            (2, 0, &[]),
            (4, 0, b"datagram"),
            exchange,
            (4, 1, b"answer"),
            exchange,
            (5, 0xef, &[]),
        ],
    )?;
    let target = Seeds::new(seeds, "socks5");
    target.put("greeting", &[5, 2, 0, 2])?;
    target.put("name", b"\x05\x01\x00\x03\x04node\x01\xbb")?;
    target.put("v4", &[5, 1, 0, 1, 100, 64, 0, 2, 0, 80])?;
    let v6 = [&[5, 3, 0, 4][..], &[0xfd; 16], &[0, 53]].concat();
    target.put("v6", &v6)?;
    target.put(
        "datagram",
        b"\x00\x00\x00\x01\x64\x40\x00\x02\x00\x35question",
    )
}
