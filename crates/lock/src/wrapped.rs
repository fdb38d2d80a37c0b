//! Auth keys that carry a credential of tailnet lock.

use std::fmt;

use data_encoding::BASE64_NOPAD;
use zeroize::Zeroizing;

use crate::secret::LockSecret;
use crate::signature::NodeKeySignature;

/// Between the auth key and what follows it.
const MARK: &str = "--TL";

/// An auth key with a credential, with which a new node signs its own key:
/// `<auth key>--TL<credential>-<private key>`, both in base64 without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedAuthKey {
    /// The key for the server, without the rest.
    pub auth_key: String,
    /// The signature of a trusted key over the public half of `delegate`.
    pub credential: NodeKeySignature,
    /// The key that signs node keys.
    pub delegate: LockSecret,
}

impl WrappedAuthKey {
    /// Takes an auth key apart. `None` if it carries no readable credential; it is then
    /// used as a whole.
    pub fn parse(text: &str) -> Option<Self> {
        let (auth_key, rest) = text.split_once(MARK)?;
        let (credential, delegate) = rest.split_once('-')?;
        let credential = BASE64_NOPAD.decode(credential.as_bytes()).ok()?;
        let delegate = Zeroizing::new(BASE64_NOPAD.decode(delegate.as_bytes()).ok()?);
        Some(Self {
            auth_key: auth_key.to_owned(),
            credential: NodeKeySignature::decode(&credential).ok()?,
            delegate: LockSecret::from_keypair(delegate.as_slice().try_into().ok()?).ok()?,
        })
    }

    /// The text form. It contains secrets.
    pub fn to_text(&self) -> Zeroizing<String> {
        let delegate = Zeroizing::new(BASE64_NOPAD.encode(&*self.delegate.to_keypair()));
        Zeroizing::new(format!(
            "{}{MARK}{}-{}",
            self.auth_key,
            BASE64_NOPAD.encode(&self.credential.encode()),
            *delegate
        ))
    }
}

impl fmt::Debug for WrappedAuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrappedAuthKey(…)")
    }
}
