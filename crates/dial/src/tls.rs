//! Certificates: every rule by which this system trusts a TLS server.
//!
//! Most connections ask for a chain to a known root and the right name, as usual. Three do not, and this file is the only place where
//! they are weakened:
//!
//! - A relay may be known by the digest of its certificate
//!   ([`Trust::Pinned`]). That is stronger than a chain, but needs its own
//!   check.
//! - The control channel authenticates itself by Noise, so on its way a broken
//!   certificate is only logged ([`Trust::LogOnly`]): nothing is lost, and
//!   machines behind inspecting proxies stay reachable.
//! - A relay entry may say that it is for tests ([`Trust::Nothing`]).
//!
//! The key of the coordination server is fetched under [`Trust::Roots`]; that
//! is where the chain of trust of everything else begins.

use std::io;
use std::sync::{Arc, OnceLock};

use data_encoding::HEXLOWER_PERMISSIVE;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use warren_control_types::DerpNode;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use crate::interception::tls_hint;

/// Common name with which a relay marks the extra certificate that names its
/// key.
pub const RELAY_KEY_PREFIX: &str = "derpkey";
/// The prefix of a `CertName` that holds a digest.
const PIN_PREFIX: &str = "sha256-raw:";

/// The servers that are trusted on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A chain to a known root, and the name that was dialled.
    Roots,
    /// A chain to a known root, and this name instead.
    RootsAs(ServerName<'static>),
    /// Exactly the certificate with this SHA-256 digest of its DER form.
    Pinned([u8; 32]),
    /// Any server; problems go to the log. Only for protocols with their own
    /// authentication.
    LogOnly,
    /// Any server. Only for tests.
    Nothing,
}

impl Trust {
    /// The trust that the entry of a relay asks for.
    ///
    /// # Errors
    /// [`TlsError::CertName`].
    pub fn for_relay(node: &DerpNode) -> Result<Self, TlsError> {
        let bad = || TlsError::CertName(node.cert_name.clone());
        if node.insecure_for_tests {
            return Ok(Self::Nothing);
        }
        if let Some(digits) = node.cert_name.strip_prefix(PIN_PREFIX) {
            let digest = HEXLOWER_PERMISSIVE
                .decode(digits.as_bytes())
                .map_err(|_| bad())?;
            return Ok(Self::Pinned(digest.try_into().map_err(|_| bad())?));
        }
        if node.cert_name.is_empty() {
            return Ok(Self::Roots);
        }
        Ok(Self::RootsAs(
            ServerName::try_from(node.cert_name.clone()).map_err(|_| bad())?,
        ))
    }
}

/// TLS cannot be set up, or its handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not a name that a certificate can contain.
    #[error("\"{0}\" is neither a host name nor an address")]
    ServerName(String),
    /// The certificate name of a relay makes no sense.
    #[error(
        "the relay's CertName \"{0}\" is neither a host name nor \
         \"sha256-raw:\" and 64 hexadecimal digits"
    )]
    CertName(String),
    /// The library refuses the configuration.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
    /// The handshake failed; says whether it was the certificate.
    #[error("the TLS handshake with {host} failed: {source}{}", tls_hint(source))]
    Handshake {
        /// The host at the other end.
        host: String,
        /// The system's or TLS error.
        source: io::Error,
    },
}

/// A certificate is not the one that was pinned.
#[derive(Debug, thiserror::Error)]
enum PinError {
    #[error("the certificate's SHA-256 digest is not the pinned one")]
    Digest,
    #[error("a pinned server must send one certificate only (besides a relay's key)")]
    Chain,
    #[error("the pinned certificate cannot be read")]
    Unreadable,
    #[error("the pinned certificate is not valid at this time (check the clock)")]
    Validity,
}

impl From<PinError> for rustls::Error {
    fn from(error: PinError) -> Self {
        // `CertificateError::Other` would print as its debug form.
        Self::General(error.to_string())
    }
}

/// The cryptography under every TLS connection, both ends.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    PROVIDER.get_or_init(provider).clone()
}

/// The roots that servers are checked against, loaded once.
fn roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "a root certificate of the system cannot be loaded");
        }
        Arc::new(roots_from(native.certs))
    };
    ROOTS.get_or_init(load).clone()
}

/// The roots of the system, so that one which the administrator removed does not
/// count. A system without any (a container) gets those of the Mozilla programme
/// as of the build.
fn roots_from(system: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(system);
    if store.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    store
}

/// A client configuration with these rules and these application protocols
/// (ALPN), first preferred.
///
/// # Errors
/// [`TlsError::Setup`].
pub fn client_config(trust: &Trust, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(setup)?;
    let verifier = Arc::new(Verifier::new(trust)?);
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Runs TLS over `stream`. `host` is the name to ask for (SNI) and, unless
/// `trust` says otherwise, to expect; an address asks for no name.
///
/// # Errors
/// [`TlsError`].
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    trust: &Trust,
    alpn: &[&[u8]],
) -> Result<TlsStream<S>, TlsError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let name = ServerName::try_from(bare.trim_end_matches('.').to_owned())
        .map_err(|_| TlsError::ServerName(host.to_owned()))?;
    let connector = TlsConnector::from(client_config(trust, alpn)?);
    let handshake = connector.connect(name, stream).await;
    handshake.map_err(|source| TlsError::Handshake {
        host: host.to_owned(),
        source,
    })
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    Chain {
        chain: Arc<WebPkiServerVerifier>,
        name: Option<ServerName<'static>>,
    },
    Pinned([u8; 32]),
    LogOnly(Arc<WebPkiServerVerifier>),
    Nothing,
}

impl Verifier {
    fn new(trust: &Trust) -> Result<Self, TlsError> {
        let provider = provider();
        let chain = || {
            WebPkiServerVerifier::builder_with_provider(roots(), provider.clone())
                .build()
                .map_err(|error| TlsError::Setup(error.to_string()))
        };
        let rule = match trust {
            Trust::Roots => Rule::Chain {
                chain: chain()?,
                name: None,
            },
            Trust::RootsAs(name) => Rule::Chain {
                chain: chain()?,
                name: Some(name.clone()),
            },
            Trust::Pinned(digest) => Rule::Pinned(*digest),
            Trust::LogOnly => Rule::LogOnly(chain()?),
            Trust::Nothing => Rule::Nothing,
        };
        Ok(Self { provider, rule })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.rule {
            Rule::Chain { chain, name } => {
                let name = name.as_ref().unwrap_or(server_name);
                chain.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
            Rule::Pinned(digest) => {
                verify_pinned(digest, end_entity, intermediates, server_name, now)
            }
            Rule::LogOnly(chain) => {
                let verified = chain.verify_server_cert(
                    end_entity,
                    intermediates,
                    server_name,
                    ocsp_response,
                    now,
                );
                if let Err(error) = verified {
                    tracing::warn!(
                        server = ?server_name, %error,
                        "the certificate is not trusted; going on, because what runs \
                         inside is authenticated on its own"
                    );
                }
                Ok(ServerCertVerified::assertion())
            }
            Rule::Nothing => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether this is the extra certificate of a relay that names its key.
fn is_relay_key(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
        let mut names = certificate.subject().iter_common_name();
        names.any(|name| {
            name.as_str()
                .is_ok_and(|name| name.starts_with(RELAY_KEY_PREFIX))
        })
    })
}

fn verify_pinned(
    digest: &[u8; 32],
    end_entity: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    if !others.iter().all(is_relay_key) {
        return Err(PinError::Chain.into());
    }
    if Sha256::digest(end_entity)[..] != digest[..] {
        return Err(PinError::Digest.into());
    }
    let (_, certificate) =
        X509Certificate::from_der(end_entity).map_err(|_| PinError::Unreadable)?;
    let now = i64::try_from(now.as_secs()).map_err(|_| PinError::Validity)?;
    let now = ASN1Time::from_timestamp(now).map_err(|_| PinError::Validity)?;
    if !certificate.validity().is_valid_at(now) {
        return Err(PinError::Validity.into());
    }
    // An address is not sent as SNI, so there is no name to hold it to.
    if let ServerName::DnsName(_) = server_name {
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
    }
    Ok(ServerCertVerified::assertion())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn self_signed(name: &str) -> CertificateDer<'static> {
        rcgen::generate_simple_self_signed([name.to_owned()])
            .unwrap()
            .cert
            .into()
    }

    fn relay_key() -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        let name = format!("{RELAY_KEY_PREFIX}{}", "0".repeat(64));
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap()
            .into()
    }

    fn verify(
        trust: &Trust,
        chain: &[CertificateDer<'_>],
        name: &'static str,
    ) -> Result<(), rustls::Error> {
        let (leaf, others) = chain.split_first().unwrap();
        let name = ServerName::try_from(name).unwrap();
        let verifier = Verifier::new(trust).unwrap();
        verifier
            .verify_server_cert(leaf, others, &name, &[], UnixTime::now())
            .map(drop)
    }

    #[test]
    fn roots_of_the_build_count_only_where_the_system_has_none() {
        let all = webpki_roots::TLS_SERVER_ROOTS.len();
        assert_eq!(roots_from(Vec::new()).len(), all);
        let broken = CertificateDer::from(vec![0x30, 0]);
        assert_eq!(roots_from(vec![broken]).len(), all);
        let own = rcgen::generate_simple_self_signed(["root.example".to_owned()]).unwrap();
        assert_eq!(roots_from(vec![own.cert.into()]).len(), 1);
    }

    #[test]
    fn cert_names_are_names_or_digests() {
        let trust = |cert_name: &str, insecure_for_tests| {
            let cert_name = cert_name.to_owned();
            Trust::for_relay(&DerpNode {
                cert_name,
                insecure_for_tests,
                ..Default::default()
            })
        };
        assert_eq!(trust("", false).unwrap(), Trust::Roots);
        assert_eq!(trust("sha256-raw:xyz", true).unwrap(), Trust::Nothing);
        let digest = format!("sha256-raw:{}", "0a".repeat(32));
        assert_eq!(trust(&digest, false).unwrap(), Trust::Pinned([10; 32]));
        assert!(matches!(
            trust("a.example", false).unwrap(),
            Trust::RootsAs(_)
        ));
        for bad in ["sha256-raw:", "sha256-raw:0a", "a b", "sha256-raw:zz"] {
            assert!(
                matches!(trust(bad, false), Err(TlsError::CertName(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn pin_wants_the_digest_the_name_and_nothing_else() {
        let leaf = self_signed("relay.example");
        let pin = Trust::Pinned(Sha256::digest(&leaf).into());
        let chain = [leaf.clone()];
        verify(&pin, &chain, "relay.example").unwrap();
        verify(&pin, &chain, "192.0.2.1").unwrap();
        verify(&pin, &[leaf.clone(), relay_key()], "relay.example").unwrap();
        assert!(verify(&pin, &chain, "other.example").is_err());
        assert!(verify(&Trust::Pinned([0; 32]), &chain, "relay.example").is_err());
        assert!(
            verify(
                &pin,
                &[leaf.clone(), self_signed("x.example")],
                "relay.example"
            )
            .is_err()
        );
        let forged = [self_signed("relay.example")];
        let refused = verify(&pin, &forged, "relay.example").unwrap_err();
        assert!(refused.to_string().contains("digest"), "{refused}");
    }

    #[test]
    fn pinned_certificate_must_be_in_date() {
        let mut params = rcgen::CertificateParams::new(["relay.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let leaf = params
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let leaf: CertificateDer<'static> = leaf.into();
        let pin = Trust::Pinned(Sha256::digest(&leaf).into());
        let refused = verify(&pin, &[leaf], "relay.example").unwrap_err();
        assert!(refused.to_string().contains("time"), "{refused}");
    }

    #[test]
    fn only_the_weakened_rules_take_a_stranger() {
        let chain = [self_signed("relay.example")];
        let renamed = Trust::RootsAs(ServerName::try_from("relay.example").unwrap());
        for strict in [Trust::Roots, renamed] {
            assert!(
                verify(&strict, &chain, "relay.example").is_err(),
                "{strict:?}"
            );
        }
        for weak in [Trust::LogOnly, Trust::Nothing] {
            verify(&weak, &chain, "other.example").unwrap();
        }
    }
}
