//! The login: how a client proves its node key, and the sealed JSON that both
//! sides exchange.
//!
//! The client seals its [`ClientInfo`] with its node secret to the relay's
//! key. Only the holder of that secret can make a box that opens, so a box
//! that opens is the proof. The relay answers with [`ServerInfo`], sealed the
//! other way.

use serde::{Deserialize, Serialize};
use warren_keys::sealed_box::{NONCE_LEN, SharedKey};
use warren_keys::{DerpMeshKey, Entropy, NodePublic, NodeSecret};
use warren_wire::derp::{Frame, FrameError, FrameKind, PROTOCOL_VERSION};

/// The largest login a relay takes, as payload of the frame.
pub const MAX_CLIENT_INFO: usize = 256 * 1024;
/// The largest answer a client takes, as payload of the frame.
pub const MAX_SERVER_INFO: usize = NONCE_LEN + 1024 * 1024;

/// The client's half of the login.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Proves that the client is a relay of the same mesh.
    #[serde(
        rename = "meshKey",
        default,
        skip_serializing_if = "Option::is_none",
        with = "mesh_key"
    )]
    pub mesh_key: Option<DerpMeshKey>,
    /// Protocol version, currently 2; 0 when absent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: i64,
    /// Whether it answers pings.
    #[serde(rename = "CanAckPings", default)]
    pub can_ack_pings: bool,
    /// Whether it is a prober and no node.
    #[serde(rename = "IsProber", default, skip_serializing_if = "is_false")]
    pub is_prober: bool,
    /// A label for statistics.
    #[serde(rename = "AppName", default, skip_serializing_if = "String::is_empty")]
    pub app_name: String,
}

impl Default for ClientInfo {
    fn default() -> Self {
        Self {
            mesh_key: None,
            version: PROTOCOL_VERSION.into(),
            can_ack_pings: true,
            is_prober: false,
            app_name: String::new(),
        }
    }
}

/// The relay's half of the login: its version and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Protocol version, currently 2.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: i64,
    /// Bytes a second the client may send; 0 for no limit.
    #[serde(
        rename = "TokenBucketBytesPerSecond",
        default,
        skip_serializing_if = "is_zero"
    )]
    pub bytes_per_second: i64,
    /// Bytes the client may send at once; 0 for no limit.
    #[serde(
        rename = "TokenBucketBytesBurst",
        default,
        skip_serializing_if = "is_zero"
    )]
    pub burst: i64,
}

impl Default for ServerInfo {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION.into(),
            bytes_per_second: 0,
            burst: 0,
        }
    }
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// 64 hexadecimal digits, exactly.
mod mesh_key {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use warren_keys::DerpMeshKey;

    pub(super) fn serialize<S: Serializer>(
        key: &Option<DerpMeshKey>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match key {
            Some(key) => serializer.serialize_str(&key.to_text()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<DerpMeshKey>, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            Some(text) if text.len() != 64 => {
                Err(D::Error::custom("mesh key is not 64 hexadecimal digits"))
            }
            Some(text) => text.parse().map(Some).map_err(D::Error::custom),
            None => Ok(None),
        }
    }
}

/// A login that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Another frame came where the login step had to come.
    #[error("a {0:?} frame came instead of the login")]
    UnexpectedFrame(FrameKind),
    /// The frame is malformed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The all-zero key or another one that is not a valid key.
    #[error("the other side's key {0:?} is not usable")]
    BadKey(NodePublic),
    /// The box does not open: the other side does not hold the key it names,
    /// or expects another key of ours.
    #[error("the other side does not prove the key {0:?}, or expects another key of ours")]
    NotProven(NodePublic),
    /// The box opens, but what is inside is not the JSON expected.
    #[error("login of {key:?} is not valid JSON: {source}")]
    Json {
        /// The key that logged in.
        key: NodePublic,
        /// The error of the JSON decoder.
        source: serde_json::Error,
    },
}

/// Seals `value` as JSON.
fn seal(shared: &SharedKey, value: &impl Serialize, entropy: &mut dyn Entropy) -> Vec<u8> {
    // These types always have a JSON form: only text keys and numbers.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let mut nonce = [0; NONCE_LEN];
    entropy.fill(&mut nonce);
    let mut sealed = Vec::new();
    shared.seal(&nonce, &json, &mut sealed);
    sealed
}

fn open<T: for<'de> Deserialize<'de>>(
    shared: &SharedKey,
    from: NodePublic,
    sealed: &[u8],
) -> Result<T, LoginError> {
    let json = shared
        .open(sealed)
        .map_err(|_| LoginError::NotProven(from))?;
    serde_json::from_slice(&json).map_err(|source| LoginError::Json { key: from, source })
}

/// The client's half: appends the login frame to `out` and returns the key
/// that opens the answer.
///
/// # Errors
/// [`LoginError::BadKey`] when `relay` is not a usable key.
pub fn log_in(
    secret: &NodeSecret,
    relay: NodePublic,
    info: &ClientInfo,
    entropy: &mut dyn Entropy,
    out: &mut Vec<u8>,
) -> Result<SharedKey, LoginError> {
    let shared = secret
        .shared_with(relay.as_bytes())
        .map_err(|_| LoginError::BadKey(relay))?;
    let sealed = seal(&shared, info, entropy);
    Frame::ClientInfo {
        key: secret.public(),
        sealed: &sealed,
    }
    .emit(out);
    Ok(shared)
}

/// The client's half: opens the relay's answer.
///
/// # Errors
/// [`LoginError`] when it is not from that relay or not understood.
pub fn open_server_info(
    shared: &SharedKey,
    relay: NodePublic,
    sealed: &[u8],
) -> Result<ServerInfo, LoginError> {
    open(shared, relay, sealed)
}

/// A relay's identity: its key pair, and the secret it shares with its mesh.
#[derive(Debug, Clone)]
pub struct Identity {
    secret: NodeSecret,
    public: NodePublic,
    mesh_key: Option<DerpMeshKey>,
}

/// A client that has proven its key, not yet admitted.
#[derive(Debug)]
pub struct ProvenLogin {
    /// The client's node key.
    pub key: NodePublic,
    /// The information that the client sent.
    pub info: ClientInfo,
    /// Whether it is a relay of our mesh: not asked for admission, not
    /// limited, and allowed to watch and forward.
    pub is_mesh_peer: bool,
    shared: SharedKey,
}

impl Identity {
    /// A relay with this key pair, alone or in a mesh.
    pub fn new(secret: NodeSecret, mesh_key: Option<DerpMeshKey>) -> Self {
        let public = secret.public();
        Self {
            secret,
            public,
            mesh_key,
        }
    }

    /// The relay's public key.
    pub fn public(&self) -> NodePublic {
        self.public
    }

    /// The relay's private key, also used to log in to other relays.
    pub fn secret(&self) -> &NodeSecret {
        &self.secret
    }

    /// The secret that the relays of the mesh share.
    pub fn mesh_key(&self) -> Option<&DerpMeshKey> {
        self.mesh_key.as_ref()
    }

    /// The first frame on every connection.
    pub fn server_key_frame(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Frame::ServerKey { key: self.public }.emit(&mut out);
        out
    }

    /// Takes the first frame of a client.
    ///
    /// # Errors
    /// [`LoginError`]: close the connection.
    pub fn open_login(&self, kind: FrameKind, payload: &[u8]) -> Result<ProvenLogin, LoginError> {
        if kind != FrameKind::ClientInfo {
            return Err(LoginError::UnexpectedFrame(kind));
        }
        let Frame::ClientInfo { key, sealed } = Frame::parse(kind, payload)? else {
            return Err(LoginError::UnexpectedFrame(kind));
        };
        if key.is_zero() {
            return Err(LoginError::BadKey(key));
        }
        let shared = self
            .secret
            .shared_with(key.as_bytes())
            .map_err(|_| LoginError::BadKey(key))?;
        let info: ClientInfo = open(&shared, key, sealed)?;
        let is_mesh_peer = match (&self.mesh_key, &info.mesh_key) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, _) | (_, None) => false,
        };
        Ok(ProvenLogin {
            key,
            info,
            is_mesh_peer,
            shared,
        })
    }
}

impl ProvenLogin {
    /// The frame that reports to the client that it is admitted.
    pub fn accept(&self, info: &ServerInfo, entropy: &mut dyn Entropy) -> Vec<u8> {
        let sealed = seal(&self.shared, info, entropy);
        let mut out = Vec::new();
        Frame::ServerInfo { sealed: &sealed }.emit(&mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use warren_testkit::CountingEntropy;
    use warren_wire::derp::split;

    fn relay(mesh: Option<[u8; 32]>) -> Identity {
        Identity::new(
            NodeSecret::from_bytes(&[7; 32]),
            mesh.map(DerpMeshKey::from_bytes),
        )
    }

    fn login(
        relay: &Identity,
        to: NodePublic,
        info: &ClientInfo,
    ) -> Result<ProvenLogin, LoginError> {
        let mut out = Vec::new();
        let client = NodeSecret::from_bytes(&[9; 32]);
        log_in(&client, to, info, &mut CountingEntropy(0), &mut out).unwrap();
        let (kind, payload, _) = split(&out).unwrap();
        relay.open_login(kind, payload)
    }

    #[test]
    fn json_has_the_wires_names() {
        let info = ClientInfo::default();
        assert_eq!(
            serde_json::to_string(&info).unwrap(),
            r#"{"version":2,"CanAckPings":true}"#
        );
        let info = ClientInfo {
            mesh_key: Some(DerpMeshKey::from_bytes([0xab; 32])),
            version: 0,
            can_ack_pings: false,
            is_prober: true,
            app_name: "x".into(),
        };
        let text = serde_json::to_string(&info).unwrap();
        let mesh = "ab".repeat(32);
        assert_eq!(
            text,
            format!(r#"{{"meshKey":"{mesh}","CanAckPings":false,"IsProber":true,"AppName":"x"}}"#)
        );
        assert_eq!(serde_json::from_str::<ClientInfo>(&text).unwrap(), info);
        assert_eq!(
            serde_json::to_string(&ServerInfo::default()).unwrap(),
            r#"{"version":2}"#
        );
        for bad in [r#"{"meshKey":"ab"}"#, r#"{"meshKey":""}"#, "7"] {
            assert!(serde_json::from_str::<ClientInfo>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<ClientInfo>(r#"{"Future":1,"meshKey":null}"#).is_ok());
    }

    #[test]
    fn login_proves_the_key_and_gets_an_answer() {
        let relay = relay(None);
        let client = NodeSecret::from_bytes(&[9; 32]);
        let mut out = Vec::new();
        let shared = log_in(
            &client,
            relay.public(),
            &ClientInfo::default(),
            &mut CountingEntropy(0),
            &mut out,
        )
        .unwrap();
        let (kind, payload, rest) = split(&out).unwrap();
        assert!(rest.is_empty());
        let proven = relay.open_login(kind, payload).unwrap();
        assert_eq!(proven.key, client.public());
        assert!(!proven.is_mesh_peer);
        let answer = proven.accept(&ServerInfo::default(), &mut CountingEntropy(9));
        let (_, sealed, _) = split(&answer).unwrap();
        let info = open_server_info(&shared, relay.public(), sealed).unwrap();
        assert_eq!(info, ServerInfo::default());
    }

    #[test]
    fn wrong_keys_and_wrong_frames_are_refused() {
        let relay = relay(None);
        let other = NodeSecret::from_bytes(&[8; 32]).public();
        let info = ClientInfo::default();
        assert!(matches!(
            login(&relay, other, &info),
            Err(LoginError::NotProven(_))
        ));
        let early = relay.open_login(FrameKind::SendPacket, &[0; 64]);
        assert!(matches!(
            early,
            Err(LoginError::UnexpectedFrame(FrameKind::SendPacket))
        ));
        let zero = relay.open_login(FrameKind::ClientInfo, &[0; 100]);
        assert!(matches!(zero, Err(LoginError::BadKey(_))));
        for len in 0..32 {
            assert!(
                relay
                    .open_login(FrameKind::ClientInfo, &vec![1; len])
                    .is_err()
            );
        }
    }

    #[test]
    fn mesh_key_marks_a_client_as_a_relay() {
        let with = |key: [u8; 32]| ClientInfo {
            mesh_key: Some(DerpMeshKey::from_bytes(key)),
            ..ClientInfo::default()
        };
        let is_mesh = |relay: &Identity, info: &ClientInfo| {
            login(relay, relay.public(), info).unwrap().is_mesh_peer
        };
        assert!(is_mesh(&relay(Some([5; 32])), &with([5; 32])));
        assert!(!is_mesh(&relay(Some([5; 32])), &with([6; 32])));
        assert!(!is_mesh(&relay(None), &with([5; 32])));
        assert!(!is_mesh(&relay(Some([0; 32])), &with([0; 32])));
        assert!(!is_mesh(&relay(Some([5; 32])), &ClientInfo::default()));
    }

    proptest! {
        #[test]
        fn login_never_panics_on_a_frame(kind: u8, payload: Vec<u8>) {
            let _ = relay(None).open_login(FrameKind::from_code(kind), &payload);
        }
    }
}
