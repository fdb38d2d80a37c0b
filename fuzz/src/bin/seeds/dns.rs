//! Seeds of the targets of DNS: `dns_query`, `dns_forwarder`.

use std::io;
use std::path::Path;

use crate::Seeds;

/// Writes the seeds of both.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    queries(seeds)?;
    forwarder(seeds)
}

/// Queries for names of the tailnet and others.
fn queries(seeds: &Path) -> io::Result<()> {
    let query = Seeds::new(seeds, "dns_query");
    query.put("a", &question("host2.example.ts.net", 1, false))?;
    query.put("aaaa-edns", &question("host2.example.ts.net", 28, true))?;
    query.put("ptr", &question("2.0.64.100.in-addr.arpa", 12, false))?;
    query.put("missing", &question("missing.example.ts.net", 1, true))?;
    query.put("split", &question("www.corp.example.com", 1, true))?;
    query.put("others", &question("example.com", 65, false))
}

/// Resolvers that answer, fail, and do not answer.
fn forwarder(seeds: &Path) -> io::Result<()> {
    let forwarder = Seeds::new(seeds, "dns_forwarder");
    let asked = question("example.com", 1, true);
    forwarder.steps(
        "answered",
        &[(0, 4, &asked), (4, 0x9f, &[]), (1, 0, &[1; 600])],
    )?;
    forwarder.steps(
        "failing",
        &[(0, 7, &asked), (1, 0x08, &[]), (3, 0, &[]), (1, 2, &[])],
    )?;
    forwarder.steps(
        "silent",
        &[
            (0, 4, &asked),
            (4, 0xaf, &[]),
            (2, 2, &asked),
            (4, 0xbf, &[]),
        ],
    )
}

/// A query for records of the type `kind`.
fn question(name: &str, kind: u8, edns: bool) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.extend_from_slice(&[0, 0, kind, 0, 1]);
    if edns {
        out.extend_from_slice(&[0, 0, 41, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    }
    out
}
