//! A digest of everything that was delivered, to compare two runs.

use std::net::{IpAddr, SocketAddr};

use warren_wire::derp::{FrameKind, KEY_LEN, looks_like_disco, split};
use warren_wire::stun::looks_like_stun;

use crate::time::SimTime;

/// FNV-1a over 64 bits: not for adversaries, only to notice a difference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace {
    digest: u64,
    count: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            digest: 0xcbf2_9ce4_8422_2325,
            count: 0,
        }
    }
}

impl Trace {
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn begin(&mut self, at: SimTime) {
        self.count += 1;
        self.add(&at.as_nanos().to_le_bytes());
    }

    /// A datagram was delivered.
    pub(crate) fn datagram(&mut self, at: SimTime, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.begin(at);
        for address in [from, to] {
            match address.ip() {
                IpAddr::V4(v4) => self.add(&v4.octets()),
                IpAddr::V6(v6) => self.add(&v6.octets()),
            }
            self.add(&address.port().to_le_bytes());
        }
        self.add(bytes);
    }

    /// Bytes of a stream were delivered.
    pub(crate) fn chunk(
        &mut self,
        at: SimTime,
        client: usize,
        server: usize,
        down: bool,
        bytes: &[u8],
    ) {
        self.begin(at);
        self.add(&[u8::from(down)]);
        self.add(&client.to_le_bytes());
        self.add(&server.to_le_bytes());
        self.add(bytes);
    }
}

/// The kind of a datagram, for people.
pub(crate) fn name_of(datagram: &[u8]) -> String {
    let len = datagram.len();
    match datagram.first() {
        _ if looks_like_stun(datagram) => "STUN".to_owned(),
        _ if looks_like_disco(datagram) => "disco".to_owned(),
        Some(1) => "handshake initiation".to_owned(),
        Some(2) => "handshake response".to_owned(),
        Some(3) => "handshake cookie".to_owned(),
        Some(4) if len == 32 => "keepalive".to_owned(),
        Some(4) => format!("data of {len} bytes"),
        _ => format!("{len} bytes of something"),
    }
}

/// The frames of the relay protocol in these bytes, for people.
pub(crate) fn frames_of(mut bytes: &[u8]) -> String {
    let mut names = Vec::new();
    while let Some((kind, payload, rest)) = split(bytes) {
        names.push(match kind {
            FrameKind::SendPacket | FrameKind::RecvPacket => {
                name_of(payload.get(KEY_LEN..).unwrap_or_default())
            }
            _ => format!("{kind:?}"),
        });
        bytes = rest;
    }
    names.join(", ")
}
