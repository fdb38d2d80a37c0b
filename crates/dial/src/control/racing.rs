//! Opening the control channel: with and without TLS, whichever works first.
//!
//! The channel is encrypted and authenticated on its own, so it needs no TLS.
//! Without it a connection costs less and passes no inspecting proxy; but many
//! networks block or rewrite port 80. So the plain way is tried first, and the
//! way under TLS half a second later or as soon as the plain one has failed.
//! A client that connected to an `https://` server a short while ago tries TLS first:
//! a plain way that works once and breaks soon after is useless. An `http://`
//! server just answered there, so for it plain stays first. Neither order ever
//! leaves the other way out.

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
use crate::proxies::Scheme;
use crate::tls::{self, TlsError, Trust};
use crate::upgrade::{UpgradeError, UpgradeRequest, upgrade};
use crate::{DialError, Dialer};

/// How much later the way under TLS starts.
const TLS_DELAY: Duration = Duration::from_millis(500);
/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After a dial less than this ago TLS comes first.
const RECENT: Duration = Duration::from_secs(120);

const PATH: &str = "/ts2021";
const PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE_HEADER: &str = "X-Tailscale-Handshake";

/// The reason that one way failed.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The TCP connection failed.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server, or something in front of it, does not know the protocol.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// The other side has another key, or speaks another protocol.
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
        let recent = last_dial.is_some_and(|last| last.elapsed() < RECENT);
        if recent && self.server.is_https() {
            first_then(tls, plain)
                .await
                .map_err(|(tls, plain)| fail(Some(plain), Some(tls)))
        } else {
            first_then(plain, tls)
                .await
                .map_err(|(plain, tls)| fail(Some(plain), Some(tls)))
        }
    }

    async fn attempt(&self, port: u16, with_tls: bool) -> Result<Stream, AttemptError> {
        let attempt = async {
            let host = self.server.host();
            let scheme = match with_tls {
                true => Scheme::Https,
                false => Scheme::Http,
            };
            let transport = self.dialer.open(scheme, host, port).await?;
            let mut stream: Box<dyn Duplex> = if with_tls {
                Box::new(tls::connect(transport, host, &Trust::LogOnly, &[b"http/1.1"]).await?)
            } else {
                Box::new(transport)
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

/// Starts `second` when `first` has failed or takes longer than [`TLS_DELAY`];
/// the first success wins, and only two failures fail.
async fn first_then<T, E>(
    first: impl Future<Output = Result<T, E>>,
    second: impl Future<Output = Result<T, E>>,
) -> Result<T, (E, E)> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    tokio::select! {
        result = &mut first => return match result {
            Ok(value) => Ok(value),
            Err(one) => second.await.map_err(|two| (one, two)),
        },
        () = sleep(TLS_DELAY) => {}
    }
    tokio::select! {
        result = &mut first => match result {
            Ok(value) => Ok(value),
            Err(one) => second.await.map_err(|two| (one, two)),
        },
        result = &mut second => match result {
            Ok(value) => Ok(value),
            Err(two) => first.await.map_err(|one| (one, two)),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server under TLS with an untrusted certificate; it says
    /// "welcome" inside the channel.
    async fn untrusted_server(key: MachineSecret) -> u16 {
        let own = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
        let chain = vec![CertificateDer::from(own.cert)];
        let secret = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()).into();
        let mut config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let initiation = head.split("X-Tailscale-Handshake: ").nth(1).unwrap();
            let initiation = initiation.lines().next().unwrap();
            let initiation = BASE64.decode(initiation.as_bytes()).unwrap();
            let accepted = warren_channel::accept(&initiation, &key, &mut SystemEntropy).unwrap();
            let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                Upgrade: tailscale-control-protocol\r\n\r\n"
                .to_vec();
            answer.extend_from_slice(&accepted.response);
            let mut channel = NoiseStream::new(stream, accepted.channel, &[], &answer);
            channel.write_all(b"welcome to the network").await.unwrap();
            channel.shutdown().await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn tls_takes_over_when_the_plain_way_fails_whatever_its_certificate() {
        let key = MachineSecret::from_bytes(&[0x11; 32]);
        let tls_port = untrusted_server(key.clone()).await;
        let mut server: ServerUrl = "https://127.0.0.1".parse().unwrap();
        // Port 1 on loopback refuses at once.
        server.plain_port = 1;
        server.tls_port = Some(tls_port);
        let race = Race {
            server: &server,
            machine: &MachineSecret::from_bytes(&[0x22; 32]),
            key: key.public(),
            version: CapabilityVersion::CURRENT,
            dialer: &Dialer::new(),
        };
        let mut stream = race.run(None).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "welcome to the network");

        // The server took one connection only. A recent dial tries TLS first,
        // and the plain way all the same.
        let failed = race.run(Some(Instant::now())).await.err().unwrap();
        assert!(failed.plain.is_some() && failed.tls.is_some(), "{failed}");
        let mut plain_only = server.clone();
        plain_only.tls_port = None;
        let race = Race {
            server: &plain_only,
            ..race
        };
        let failed = race.run(Some(Instant::now())).await.err().unwrap();
        assert!(failed.plain.is_some() && failed.tls.is_none(), "{failed}");
        assert!(
            failed
                .to_string()
                .contains("without TLS: cannot connect to 127.0.0.1:1")
        );
    }
}
