//! The encrypted channel between a node and its coordination server, both
//! ends, without any IO.
//!
//! The client knows the server's Noise key in advance. It sends one message
//! ([`ClientHandshake::start`]), the server answers with one ([`accept`]), and
//! both hold a [`Channel`]: a [`Sealer`] for outgoing records and an [`Opener`]
//! for incoming ones. The first message proves the client's machine key, which
//! identifies the client in all requests on the channel.
//!
//! The handshake is `Noise_IK_25519_ChaChaPoly_BLAKE2s` whose prologue names
//! the client's capability version. Records are ChaCha20-Poly1305 with a
//! counter per direction, big endian in the nonce (standard Noise would have it
//! little endian). There is no rekeying and no goodbye: a channel ends when its
//! connection does, and at the first frame that does not fit.
//!
//! [`early`] is the one message that the server may send before HTTP/2 begins.
//! [`map_frames`] are the frames of the map stream, the body of an HTTP/2 response
//! inside the channel.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod handshake;
mod record;

pub mod early;
pub mod map_frames;

pub use handshake::{
    Accepted, Channel, ClientHandshake, HandshakeError, accept, response_frame_len,
};
pub use record::{ChannelError, Opened, Opener, Sealer};
pub use warren_wire::control::FrameError;
