//! The Noise IK handshake, from both sides.

use warren_keys::noise::{DecryptError, SymmetricState};
use warren_keys::x25519::{DegenerateKey, Scalar};
use warren_keys::{Entropy, MachinePublic, MachineSecret};
use warren_wire::control::{
    FrameError, FrameHeader, FrameKind, HEADER_LEN, INITIATION_LEN, Initiation, RESPONSE_LEN,
    Response,
};
use zeroize::Zeroizing;

use crate::record::{Opener, Sealer};

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";

/// A handshake failed. The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// A message is not shaped like one.
    #[error("the control handshake is malformed: {0}")]
    Frame(#[from] FrameError),
    /// A message does not authenticate. At a client: the server does not have
    /// the key it is known by. At a server: the client knows another key, or
    /// is not a client at all.
    #[error(
        "the control handshake does not authenticate: \
         the server's key is not the one the client knows (fetch it again)"
    )]
    Authentication,
    /// A public key of the other side is a low-order point.
    #[error("the other side sent a degenerate key in the control handshake")]
    DegenerateKey,
    /// The server refused, with this text. It is not authenticated.
    #[error("the server refused the control channel: {0}")]
    Refused(String),
}

impl From<DecryptError> for HandshakeError {
    fn from(_: DecryptError) -> Self {
        Self::Authentication
    }
}

impl From<DegenerateKey> for HandshakeError {
    fn from(_: DegenerateKey) -> Self {
        Self::DegenerateKey
    }
}

/// Both directions of an established channel.
#[derive(Debug)]
pub struct Channel {
    /// Encrypts outgoing records.
    pub sealer: Sealer,
    /// Decrypts incoming records.
    pub opener: Opener,
    /// Transcript hash, different for every channel; for channel binding.
    pub handshake_hash: [u8; 32],
}

/// A client that has sent its initiation and waits for the answer.
pub struct ClientHandshake {
    state: SymmetricState,
    ephemeral: Scalar,
    machine: Scalar,
}

fn begin(version: u16, server: &MachinePublic) -> SymmetricState {
    let mut state = SymmetricState::new(PROTOCOL);
    state.mix_hash(format!("Tailscale Control Protocol v{version}").as_bytes());
    state.mix_hash(server.as_bytes());
    state
}

fn fresh_scalar(entropy: &mut dyn Entropy) -> Scalar {
    let mut secret = Zeroizing::new([0; 32]);
    entropy.fill(secret.as_mut_slice());
    Scalar::new(&secret)
}

/// Seals into an array of `N` bytes; `N` is 16 more than the plaintext has.
fn seal<const N: usize>(
    state: &mut SymmetricState,
    key: &Zeroizing<[u8; 32]>,
    plaintext: &[u8],
) -> [u8; N] {
    let mut out = Vec::with_capacity(N);
    state.encrypt_and_hash(key, plaintext, &mut out);
    out.try_into()
        .unwrap_or_else(|_| unreachable!("sealing adds exactly a tag"))
}

impl ClientHandshake {
    /// Makes the first message. `version` is the capability version of the
    /// client; `server` is the key from `/key`.
    ///
    /// # Errors
    /// [`HandshakeError::DegenerateKey`] when `server` is not a usable key.
    pub fn start(
        version: u16,
        machine: &MachineSecret,
        server: &MachinePublic,
        entropy: &mut dyn Entropy,
    ) -> Result<(Self, [u8; INITIATION_LEN]), HandshakeError> {
        let mut state = begin(version, server);
        let ephemeral = fresh_scalar(entropy);
        let ephemeral_public = ephemeral.public();
        let machine_scalar = machine.scalar();

        state.mix_hash(&ephemeral_public);
        let key = state.mix_key(ephemeral.agree(server.as_bytes())?.as_slice());
        let sealed_static = seal(&mut state, &key, machine.public().as_bytes());
        let key = state.mix_key(machine_scalar.agree(server.as_bytes())?.as_slice());
        let sealed_payload = seal(&mut state, &key, &[]);

        let initiation = Initiation {
            version,
            ephemeral: ephemeral_public,
            sealed_static,
            sealed_payload,
        };
        Ok((
            Self {
                state,
                ephemeral,
                machine: machine_scalar,
            },
            initiation.emit(),
        ))
    }

    /// Reads the server's answer: one whole frame, header included. [`response_frame_len`]
    /// returns its size.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn finish(mut self, frame: &[u8]) -> Result<Channel, HandshakeError> {
        if let Some(FrameHeader {
            kind: FrameKind::Error,
            ..
        }) = FrameHeader::parse(frame)?
        {
            let text = frame.get(HEADER_LEN..).unwrap_or_default();
            // The text is not authenticated and will be shown.
            let text: String = String::from_utf8_lossy(text)
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect();
            return Err(HandshakeError::Refused(text));
        }
        let response = Response::parse(frame)?;
        self.state.mix_hash(&response.ephemeral);
        self.state
            .mix_key(self.ephemeral.agree(&response.ephemeral)?.as_slice());
        let key = self
            .state
            .mix_key(self.machine.agree(&response.ephemeral)?.as_slice());
        self.state
            .decrypt_and_hash(&key, &response.sealed_payload)?;
        let (to_server, to_client) = self.state.split();
        Ok(Channel {
            sealer: Sealer::new(&to_server),
            opener: Opener::new(&to_client),
            handshake_hash: *self.state.hash(),
        })
    }
}

impl std::fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientHandshake(..)")
    }
}

/// The length of the frame that answers an initiation, from its first three bytes.
///
/// # Errors
/// The frame is neither a response nor a refusal.
pub fn response_frame_len(header: &[u8; HEADER_LEN]) -> Result<usize, HandshakeError> {
    match FrameHeader::parse(header)? {
        Some(header) if header.kind != FrameKind::Record => Ok(header.frame_len()),
        Some(header) => Err(FrameError::Kind(header.kind as u8).into()),
        None => unreachable!("three bytes are a whole header"),
    }
}

/// The server's state after a client's first message.
#[derive(Debug)]
pub struct Accepted {
    /// The channel, ready for use.
    pub channel: Channel,
    /// The message to send in front of all records.
    pub response: [u8; RESPONSE_LEN],
    /// The proven machine key of the client.
    pub machine: MachinePublic,
    /// The capability version of the client. Any version gets through the handshake;
    /// whether it is served is the caller's decision.
    pub version: u16,
}

/// Answers a client's first message.
///
/// # Errors
/// [`HandshakeError`].
pub fn accept(
    initiation: &[u8],
    server: &MachineSecret,
    entropy: &mut dyn Entropy,
) -> Result<Accepted, HandshakeError> {
    let initiation = Initiation::parse(initiation)?;
    let server_scalar = server.scalar();
    let mut state = begin(initiation.version, &server.public());

    state.mix_hash(&initiation.ephemeral);
    let key = state.mix_key(server_scalar.agree(&initiation.ephemeral)?.as_slice());
    let machine = state.decrypt_and_hash(&key, &initiation.sealed_static)?;
    let machine: [u8; 32] = machine
        .try_into()
        .unwrap_or_else(|_| unreachable!("48 sealed bytes are 32 and a tag"));
    let key = state.mix_key(server_scalar.agree(&machine)?.as_slice());
    state.decrypt_and_hash(&key, &initiation.sealed_payload)?;

    let ephemeral = fresh_scalar(entropy);
    let ephemeral_public = ephemeral.public();
    state.mix_hash(&ephemeral_public);
    state.mix_key(ephemeral.agree(&initiation.ephemeral)?.as_slice());
    let key = state.mix_key(ephemeral.agree(&machine)?.as_slice());
    let sealed_payload = seal(&mut state, &key, &[]);

    let (to_server, to_client) = state.split();
    Ok(Accepted {
        channel: Channel {
            sealer: Sealer::new(&to_client),
            opener: Opener::new(&to_server),
            handshake_hash: *state.hash(),
        },
        response: Response {
            ephemeral: ephemeral_public,
            sealed_payload,
        }
        .emit(),
        machine: MachinePublic::from_bytes(machine),
        version: initiation.version,
    })
}
