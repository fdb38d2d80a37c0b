//! Helpers of the fuzz targets: fixed keys and clocks, so that every run of an
//! input is the same, and a simple way to read a sequence of steps out of bytes.

pub mod json;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use json::Message as _;
use warren_control_types::MapResponse;

use warren_keys::{DiscoSecret, MachineSecret, NodeSecret};
use warren_lock::{Authority, Checkpoint, DisablementValue, LockSecret, Meta, StateId, TrustedKey};

/// The node key pair number `n`.
pub fn node(n: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[n; 32])
}

/// The disco key pair number `n`.
pub fn disco(n: u8) -> DiscoSecret {
    DiscoSecret::from_bytes(&[n ^ 0x40; 32])
}

/// The machine key pair number `n`.
pub fn machine(n: u8) -> MachineSecret {
    MachineSecret::from_bytes(&[n ^ 0x20; 32])
}

/// The lock key pair number `n`.
pub fn lock_secret(n: u8) -> LockSecret {
    LockSecret::from_seed(&[n ^ 0x60; 32])
}

/// A tailnet lock that trusts the lock keys 0, with two votes, and 1.
pub fn locked() -> Authority {
    let key = |n, votes| {
        TrustedKey::new(lock_secret(n).public(), votes, Meta::default()).expect("in range")
    };
    let values = vec![DisablementValue::from_bytes([1; 32])];
    let checkpoint = Checkpoint::new(vec![key(0, 2), key(1, 1)], values, StateId(1, 2));
    Authority::create(checkpoint.expect("in range"), &lock_secret(0), 0)
        .expect("the signer is trusted")
        .0
}

/// The wall clock of all targets at their start.
pub const WALL: Duration = Duration::from_secs(1_780_000_000);

/// Two clocks that only an input moves.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The monotonic one.
    pub now: Instant,
    /// Time since the UNIX epoch.
    pub wall: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            // A base for the times that follow; its value does not matter.
            now: Instant::now(),
            wall: WALL,
        }
    }
}

impl Clock {
    /// Lets up to 17 minutes pass, in steps that grow with `amount`: the
    /// smallest are milliseconds, where pings live, the largest are minutes,
    /// where sessions end.
    pub fn pass(&mut self, amount: u8) {
        let step = Duration::from_millis(1 << (amount >> 4).min(16))
            .saturating_mul(u32::from(amount & 15) * 2);
        self.now += step;
        self.wall += step;
    }
}

/// One step of a target that takes a sequence of steps.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The kind of step, as the target defines it.
    pub kind: u8,
    /// A small number for it.
    pub arg: u8,
    /// Bytes for it.
    pub bytes: &'a [u8],
}

/// The most steps of one input; it bounds the time of one input.
const MAX_STEPS: usize = 64;

/// Reads a sequence of steps: `kind:u8 arg:u8 len:u16 (little endian) bytes`, and again.
/// Any bytes are a valid sequence; a length beyond the end means the rest.
pub fn steps(mut rest: &[u8]) -> impl Iterator<Item = Step<'_>> {
    std::iter::from_fn(move || {
        let (&[kind, arg, low, high], tail) = rest.split_first_chunk()?;
        let len = usize::from(u16::from_le_bytes([low, high])).min(tail.len());
        let (bytes, tail) = tail.split_at(len);
        rest = tail;
        Some(Step { kind, arg, bytes })
    })
    .take(MAX_STEPS)
}

/// Writes one step of a sequence.
pub fn put_step(out: &mut Vec<u8>, kind: u8, arg: u8, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[kind, arg]);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&bytes[..usize::from(len)]);
}

/// Damages `bytes` as `how` says: pairs of a position and a bit pattern. A
/// attacker on the path can do this to any message.
pub fn damage(bytes: &mut [u8], how: &[u8]) -> bool {
    let mut changed = false;
    for pair in how.chunks_exact(2) {
        if !bytes.is_empty() {
            let at = usize::from(pair[0]) % bytes.len();
            bytes[at] ^= pair[1];
            changed |= pair[1] != 0;
        }
    }
    changed
}

/// A few addresses that say much: public, private, of the tailnet, of both
/// families, and some at which no peer can be.
pub fn address(n: u8) -> SocketAddr {
    const IPS: [&str; 8] = [
        "192.0.2.1",
        "192.168.1.7",
        "2001:db8::1",
        "100.64.0.2",
        "127.0.0.1",
        "fe80::1",
        "0.0.0.0",
        "::ffff:203.0.113.5",
    ];
    let ip = IPS[usize::from(n % 8)].parse().expect("written well");
    SocketAddr::new(ip, [41641, 3478, 0, 65535][usize::from(n / 8 % 4)])
}

/// The first netmap of node 1 from the coordination server: its peers are nodes 2 and
/// 3, the relays are in regions 1 and 2.
pub fn first_map() -> MapResponse {
    MapResponse::read(first_map_json().to_string().as_bytes()).expect("written well")
}

/// The same as it travels.
pub fn first_map_json() -> serde_json::Value {
    let peer = |n: u8| {
        serde_json::json!({
            "ID": n, "StableID": format!("n{n}"), "Name": format!("host{n}.example.ts.net."),
            "User": 1, "Key": node(n).public(), "Machine": machine(n).public(),
            "DiscoKey": disco(n).public(), "Addresses": tailnet_addresses(n),
            "AllowedIPs": tailnet_addresses(n),
            "Endpoints": ["192.0.2.1:41641", "192.168.1.7:41641"], "HomeDERP": n % 2 + 1,
            "Cap": 119, "Online": true, "MachineAuthorized": true,
            "Hostinfo": {"OS": "linux", "Hostname": format!("host{n}")},
        })
    };
    let region = |n: u8| {
        serde_json::json!({
            "RegionID": n, "RegionCode": format!("r{n}"), "RegionName": "Region",
            "Nodes": [{"Name": format!("{n}a"), "RegionID": n, "HostName": "relay.example.com",
                "IPv4": format!("203.0.113.{n}"), "IPv6": format!("2001:db8::{n}")}],
        })
    };
    serde_json::json!({
        "Node": peer(1), "Peers": [peer(2), peer(3)],
        "DERPMap": {"Regions": {"1": region(1), "2": region(2)}},
        "DNSConfig": {"Domains": ["example.ts.net"], "Proxied": true,
            "Resolvers": [{"Addr": "192.0.2.53"}],
            "Routes": {"corp.example.com": [{"Addr": "192.0.2.54"}, {"Addr": "192.0.2.55"}]}},
        "PacketFilter": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}],
        "UserProfiles": [{"ID": 1, "LoginName": "a@example.com", "DisplayName": "A"}],
        "Domain": "example.com", "CollectServices": false,
    })
}

/// The prefixes of node `n`, one of each family.
pub fn tailnet_addresses(n: u8) -> [IpNet; 2] {
    [
        IpNet::from(IpAddr::from([100, 64, 0, n])),
        IpNet::from(IpAddr::from([
            0xfd7a,
            0x115c,
            0xa1e0,
            0,
            0,
            0,
            0,
            u16::from(n),
        ])),
    ]
}
