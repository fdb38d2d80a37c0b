//! Opening the control channel: with and without TLS, whichever works first.
//!
//! The channel is encrypted and authenticated on its own, so it needs no TLS.
//! Without it a connection costs less and passes no inspecting proxy; but many
//! networks block or rewrite port 80. So the plain way is tried first, and the
//! way under TLS half a second later or as soon as the plain one has failed.
//! Whoever connected a short while ago goes through TLS at once: a plain way
//! that works once and breaks soon after is no way.

use std::fmt;
use std::pin::pin;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use tokio::time::{sleep, timeout};
use warren_channel::{ClientHandshake, HandshakeError};
use warren_control_types::CapabilityVersion;
use warren_keys::{MachinePublic, MachineSecret};

use super::ServerUrl;
use crate::entropy::SystemEntropy;
use crate::fetch::Duplex;
use crate::noise_stream::{ConnectError, NoiseStream};
use crate::tls::{self, TlsError, Trust};
use crate::upgrade::{UpgradeError, UpgradeRequest, upgrade};
use crate::{DialError, Dialer};

/// How much later the way under TLS starts.
const TLS_DELAY: Duration = Duration::from_millis(500);
/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After a dial less than this ago the plain way is not tried.
const RECENT: Duration = Duration::from_secs(120);

const PATH: &str = "/ts2021";
const PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE_HEADER: &str = "X-Tailscale-Handshake";

/// Why one way failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server, or something in front of it, does not know the protocol.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// The other side is not who it should be, or speaks otherwise.
    #[error(transparent)]
    Noise(#[from] ConnectError),
    /// No answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

impl From<HandshakeError> for AttemptError {
    fn from(error: HandshakeError) -> Self {
        Self::Noise(error.into())
    }
}

/// No way to the server worked.
#[derive(Debug)]
pub struct ConnectFailure {
    /// The server.
    pub server: String,
    /// Why the plain way failed, if it was tried.
    pub plain: Option<AttemptError>,
    /// Why the way under TLS failed, if it was tried.
    pub tls: Option<AttemptError>,
}

impl std::error::Error for ConnectFailure {}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open the control channel to {}", self.server)?;
        if let Some(error) = &self.plain {
            write!(f, "; without TLS: {error}")?;
        }
        if let Some(error) = &self.tls {
            write!(f, "; with TLS: {error}")?;
        }
        Ok(())
    }
}

pub(super) type Stream = NoiseStream<Box<dyn Duplex>>;

/// Everything a race needs.
pub(super) struct Race<'a> {
    pub(super) server: &'a ServerUrl,
    pub(super) machine: &'a MachineSecret,
    pub(super) key: MachinePublic,
    pub(super) version: CapabilityVersion,
    pub(super) dialer: &'a Dialer,
}

impl Race<'_> {
    /// Opens the channel. `last_dial` is when that was tried before.
    pub(super) async fn run(&self, last_dial: Option<Instant>) -> Result<Stream, ConnectFailure> {
        let fail = |plain, tls| ConnectFailure {
            server: self.server.to_string(),
            plain,
            tls,
        };
        let plain = self.attempt(self.server.plain_port, false);
        let Some(tls_port) = self.server.tls_port else {
            return plain.await.map_err(|error| fail(Some(error), None));
        };
        let tls = self.attempt(tls_port, true);
        if last_dial.is_some_and(|last| last.elapsed() < RECENT) {
            return tls.await.map_err(|error| fail(None, Some(error)));
        }
        let (mut plain, mut tls) = (pin!(plain), pin!(tls));
        tokio::select! {
            result = &mut plain => match result {
                Ok(stream) => return Ok(stream),
                Err(plain) => return tls.await.map_err(|tls| fail(Some(plain), Some(tls))),
            },
            () = sleep(TLS_DELAY) => {}
        }
        tokio::select! {
            result = &mut plain => match result {
                Ok(stream) => Ok(stream),
                Err(plain) => tls.await.map_err(|tls| fail(Some(plain), Some(tls))),
            },
            result = &mut tls => match result {
                Ok(stream) => Ok(stream),
                Err(tls) => plain.await.map_err(|plain| fail(Some(plain), Some(tls))),
            },
        }
    }

    async fn attempt(&self, port: u16, with_tls: bool) -> Result<Stream, AttemptError> {
        let attempt = async {
            let host = self.server.host();
            let tcp = self.dialer.connect(host, port).await?;
            let mut stream: Box<dyn Duplex> = if with_tls {
                Box::new(tls::connect(tcp, host, &Trust::LogOnly, &[b"http/1.1"]).await?)
            } else {
                Box::new(tcp)
            };
            let version = u16::try_from(self.version.0).unwrap_or(u16::MAX);
            let (handshake, initiation) =
                ClientHandshake::start(version, self.machine, &self.key, &mut SystemEntropy)?;
            let request = UpgradeRequest {
                method: "POST",
                path: PATH,
                host: self.server.authority(),
                protocol: PROTOCOL,
                headers: &[(HANDSHAKE_HEADER, &BASE64.encode(&initiation))],
            };
            let upgraded = upgrade(&mut stream, &request).await?;
            Ok(NoiseStream::connect(stream, upgraded.leftover, handshake).await?)
        };
        timeout(TIMEOUT, attempt)
            .await
            .unwrap_or(Err(AttemptError::TimedOut))
    }
}
