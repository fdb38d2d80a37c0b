//! DERP frames, as relays and their clients exchange them.
//!
//! A DERP connection is one byte stream, each way a sequence of frames:
//!
//! ```text
//! 0      kind     u8
//! 1..5   length   u32, big-endian, of the payload alone
//! 5..    payload
//! ```
//!
//! [`Header`] reads the five bytes, [`split`] finds one whole frame at the
//! start of a buffer, and [`Frame`] is a parsed payload. Kinds that are not
//! known yet are [`Frame::Unknown`]; both ends must skip them.
//!
//! A malformed payload is a [`FrameError`]; whether that ends the connection
//! (at a server) or loses just the frame (at a client) is the reader's
//! decision, as is the largest frame it takes.

mod frame;
mod header;

#[cfg(test)]
mod tests;

pub use frame::{Frame, FrameError, PeerFlags, PeerGoneReason};
pub use header::{FrameKind, Header, split};

/// The first bytes of a [`Frame::ServerKey`]: "DERP" and U+1F511.
pub const MAGIC: [u8; 8] = *b"DERP\xf0\x9f\x94\x91";
/// The protocol version spoken here. Version 2 put the source key in front of
/// received packets.
pub const PROTOCOL_VERSION: u8 = 2;
/// Bytes of kind and length in front of each payload.
pub const HEADER_LEN: usize = 5;
/// Bytes of a node key on the wire.
pub const KEY_LEN: usize = 32;
/// The largest packet a relay carries, without the keys in front of it.
pub const MAX_PACKET: usize = 65_536;
/// A relay closes a connection that pings with more bytes than this.
pub const MAX_PING: usize = 1_000;

/// First bytes of a disco packet, which relays treat with priority.
const DISCO_MAGIC: [u8; 6] = *b"TS\xf0\x9f\x92\xac";
/// Magic, sender key and nonce of a disco packet.
const DISCO_HEADER_LEN: usize = 62;

/// Whether a relay classifies `packet` as disco: by magic and length alone.
pub fn looks_like_disco(packet: &[u8]) -> bool {
    packet.len() >= DISCO_HEADER_LEN && packet.starts_with(&DISCO_MAGIC)
}
