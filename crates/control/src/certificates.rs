//! The certificate of a port, which may be replaced while connections go on.
//!
//! A TLS handshake takes the certificate of its moment; connections that are open keep
//! theirs. Programs that renew certificates write two files, one after the other, so for a
//! moment they may not belong together: the present certificate stays until they do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio_rustls::TlsAcceptor;
use warren_keys::NodePublic;
use warren_relay::tls::{Certificate, TlsError, server_config};

use crate::watched_file::Watched;

/// The acceptor of TLS connections of a port.
#[derive(Clone)]
pub struct Acceptor(Arc<RwLock<TlsAcceptor>>);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// With this certificate; `relay` is the key of the relay behind the port.
    ///
    /// # Errors
    /// The key does not belong to the certificate.
    pub fn new(certificate: Certificate, relay: NodePublic) -> Result<Self, TlsError> {
        let acceptor = TlsAcceptor::from(server_config(certificate, relay)?);
        Ok(Self(Arc::new(RwLock::new(acceptor))))
    }

    /// The acceptor of this moment.
    pub fn get(&self) -> TlsAcceptor {
        let present = self.0.read().unwrap_or_else(PoisonError::into_inner);
        present.clone()
    }

    fn replace(&self, certificate: Certificate, relay: NodePublic) -> Result<(), TlsError> {
        let acceptor = TlsAcceptor::from(server_config(certificate, relay)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }
}

/// The files of a certificate and its key.
#[derive(Debug)]
pub(crate) struct CertificateFiles {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) relay: NodePublic,
    pub(crate) acceptor: Acceptor,
    /// The pin of the certificate in use, and the last problem.
    state: Mutex<(String, Option<String>)>,
}

impl CertificateFiles {
    /// Files whose certificate, with this pin, the acceptor has.
    pub(crate) fn new(
        (chain, key): (PathBuf, PathBuf),
        pin: String,
        relay: NodePublic,
        acceptor: Acceptor,
    ) -> Arc<Self> {
        Arc::new(Self {
            chain,
            key,
            relay,
            acceptor,
            state: Mutex::new((pin, None)),
        })
    }

    /// The reason why the content of the files is not in use, if that is so.
    pub(crate) fn problem(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1.clone()
    }

    /// Uses a certificate that was read, if it is another one.
    fn take(&self, read: Result<Certificate, TlsError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (pin, problem) = &mut *state;
        let taken = read.and_then(|certificate| {
            let new = certificate.pin();
            if new == *pin {
                return Ok(());
            }
            self.acceptor.replace(certificate, self.relay)?;
            *pin = new;
            tracing::info!("the certificate of {} is in use", self.chain.display());
            Ok(())
        });
        *problem = match taken {
            Ok(()) => None,
            Err(error) => {
                let why = error.to_string();
                if problem.as_ref() != Some(&why) {
                    tracing::error!("the certificate stays as it was: {why}");
                }
                Some(why)
            }
        };
    }
}

/// One of the two files, watched for the sake of both.
pub(crate) struct CertificateFile {
    pub(crate) files: Arc<CertificateFiles>,
    pub(crate) is_key: bool,
}

impl Watched for CertificateFile {
    fn path(&self) -> &Path {
        match self.is_key {
            true => &self.files.key,
            false => &self.files.chain,
        }
    }

    async fn reload(&self) {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = Certificate::from_files(&files.chain, &files.key);
            files.take(read);
        });
        if let Err(error) = read.await {
            tracing::error!("cannot read the certificate: {error}");
        }
    }
}
