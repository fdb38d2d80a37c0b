//! The relay's TLS: its certificate, and the one behind it that names its key.
//!
//! Each chain ends with a *meta certificate*: self-signed, for the
//! name `derpkey` and the relay's public key in hexadecimal, with the protocol
//! version as serial number. A client reads it off the TLS 1.3 handshake, knows
//! the key to log in to, and saves a round trip. It is not part of the chain of
//! trust; the handshake's signature covers it like everything else the relay
//! sent.
//!
//! Only HTTP/1.1 is offered: the stream that DERP runs on cannot be taken out
//! of an HTTP/2 connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair, SerialNumber};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use warren_keys::NodePublic;
use warren_wire::derp::PROTOCOL_VERSION;

use crate::keyfile::write_private;

/// The prefix of a meta certificate's common name.
pub const META_PREFIX: &str = "derpkey";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Meta certificates are made at each start and never checked for dates.
const META_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A pinned certificate should outlive the machine: changing it means to
/// change the DERP map.
const SELF_SIGNED_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Reading or writing failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Not the PEM expected.
    #[error("{path}: {reason}; expected {expected} in PEM form")]
    Pem {
        /// The file's path.
        path: PathBuf,
        /// The expected content.
        expected: &'static str,
        /// The reason, as shown to the user.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate for \"{name}\": {source}")]
    Make {
        /// The certificate's name.
        name: String,
        /// The error of the certificate generator.
        source: rcgen::Error,
    },
    /// Certificate and key cannot be used together.
    #[error("certificate and key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A certificate chain and its private key.
#[derive(Debug)]
pub struct Certificate {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// Reads a chain and its key from PEM files.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            })
        };
        let pem = |path: &Path, expected| {
            let path = path.to_owned();
            move |reason: String| TlsError::Pem {
                path,
                expected,
                reason,
            }
        };
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(chain)?)
            .collect::<Result<_, _>>()
            .map_err(|error| pem(chain, "certificates")(error.to_string()))?;
        if certificates.is_empty() {
            return Err(pem(chain, "certificates")("there are none".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|error| pem(key, "a private key")(error.to_string()))?;
        Ok(Self {
            chain: certificates,
            key,
        })
    }

    /// A self-signed certificate for a host name or address, kept in `folder`
    /// so that its pin stays the same.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn self_signed(name: &str, folder: &Path) -> Result<Self, TlsError> {
        let file_name: String = name
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let chain = folder.join(format!("{file_name}.crt"));
        let key = folder.join(format!("{file_name}.key"));
        if !chain.exists() || !key.exists() {
            let make = |source| TlsError::Make {
                name: name.to_owned(),
                source,
            };
            let pair = KeyPair::generate().map_err(make)?;
            let certificate = leaf_params(name).and_then(|params| params.self_signed(&pair));
            let certificate = certificate.map_err(make)?;
            for (path, pem) in [(&key, pair.serialize_pem()), (&chain, certificate.pem())] {
                write_private(path, pem.as_bytes()).map_err(|source| TlsError::Io {
                    action: "write",
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Self::from_files(&chain, &key)
    }

    /// A certificate for clients that do not verify it. Its issuer is an authority whose
    /// key is forgotten at once.
    ///
    /// # Errors
    /// [`TlsError::Make`].
    pub fn of_forgotten_issuer(name: &str) -> Result<Self, TlsError> {
        let make = || {
            let mut authority = CertificateParams::default();
            authority.distinguished_name = rcgen::DistinguishedName::new();
            authority
                .distinguished_name
                .push(DnType::CommonName, "an authority without a key");
            let issuer = Issuer::new(authority, KeyPair::generate()?);
            let pair = KeyPair::generate()?;
            let leaf = leaf_params(name)?.signed_by(&pair, &issuer)?;
            Ok(Self {
                chain: vec![leaf.der().clone()],
                key: PrivatePkcs8KeyDer::from(pair.serialize_der()).into(),
            })
        };
        make().map_err(|source| TlsError::Make {
            name: name.to_owned(),
            source,
        })
    }

    /// The pin of the leaf, as a DERP map has it in `CertName`.
    pub fn pin(&self) -> String {
        let leaf = self
            .chain
            .first()
            .map(|leaf| leaf.as_ref())
            .unwrap_or_default();
        format!("sha256-raw:{}", HEXLOWER.encode(&Sha256::digest(leaf)))
    }
}

fn leaf_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = since_epoch();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(DAY);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + SELF_SIGNED_LIFE;
    Ok(params)
}

/// The certificate that carries the relay's key to clients.
///
/// # Errors
/// [`TlsError::Make`] when the system cannot make Ed25519 keys.
pub fn meta_certificate(relay: NodePublic) -> Result<CertificateDer<'static>, TlsError> {
    let name = format!("{META_PREFIX}{}", HEXLOWER.encode(relay.as_bytes()));
    let make = || {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, name.as_str());
        params.serial_number = Some(SerialNumber::from(vec![PROTOCOL_VERSION]));
        // Basic constraints are there and say "not an authority".
        params.is_ca = IsCa::ExplicitNoCa;
        let now = since_epoch();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(META_LIFE);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + META_LIFE;
        params.self_signed(&pair)
    };
    match make() {
        Ok(certificate) => Ok(certificate.der().clone()),
        Err(source) => Err(TlsError::Make { name, source }),
    }
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The TLS configuration of the relay with key `relay`: 1.2 or newer, HTTP/1.1, and the
/// meta certificate behind the chain.
///
/// # Errors
/// [`TlsError`] when certificate and key do not fit together.
pub fn server_config(
    certificate: Certificate,
    relay: NodePublic,
) -> Result<Arc<ServerConfig>, TlsError> {
    let Certificate { mut chain, key } = certificate;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    // Checks that the key belongs to the leaf; the meta certificate comes
    // after, it would only be in the way.
    chain.push(meta_certificate(relay)?);
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use x509_parser::prelude::{FromDer as _, X509Certificate};

    #[test]
    fn meta_certificate_names_key_and_version() {
        let key = NodePublic::from_bytes([0xab; 32]);
        let der = meta_certificate(key).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let name = certificate.subject().iter_common_name().next().unwrap();
        assert_eq!(
            name.as_str().unwrap(),
            format!("derpkey{}", "ab".repeat(32))
        );
        assert_eq!(certificate.raw_serial(), [2]);
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(!constraints.value.ca);
        assert!(certificate.validity().is_valid());
    }

    #[test]
    fn self_signed_certificate_keeps_its_pin() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["192.0.2.7", "2001:db8::7", "relay.example"] {
            let first = Certificate::self_signed(name, folder.path()).unwrap();
            let again = Certificate::self_signed(name, folder.path()).unwrap();
            assert_eq!(first.pin(), again.pin());
            assert_eq!(first.pin().len(), "sha256-raw:".len() + 64);
            server_config(again, NodePublic::from_bytes([1; 32])).unwrap();
        }
    }

    #[test]
    fn certificate_of_a_forgotten_issuer_did_not_issue_itself() {
        let made = Certificate::of_forgotten_issuer("192.0.2.7").unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&made.chain[0]).unwrap();
        assert_ne!(leaf.issuer(), leaf.subject());
        assert!(leaf.validity().is_valid());
        server_config(made, NodePublic::from_bytes([1; 32])).unwrap();
    }

    #[test]
    fn unusable_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let missing = Certificate::from_files(&chain, &key).unwrap_err();
        assert!(missing.to_string().contains("c.pem"), "{missing}");
        std::fs::write(&chain, "nothing").unwrap();
        std::fs::write(&key, "nothing").unwrap();
        let empty = Certificate::from_files(&chain, &key).unwrap_err();
        assert!(empty.to_string().contains("there are none"), "{empty}");
    }
}
