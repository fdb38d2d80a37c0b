//! A connection to a proxy, and through it to a server.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use warren_wire::socks5::client as socks5;
use warren_wire::socks5::{Host, MAX_MESSAGE, Malformed, NO_AUTHENTICATION, NO_METHOD};

use super::{Kind, Proxy, ProxyError, ProxyProblem, authority};
use crate::Dialer;
use crate::response_head::{HeadError, ResponseHead};
use crate::tls::{self, Trust};
use crate::transport::Transport;
use crate::upgrade::shown;

/// How long it may take to reach the proxy, and the server through it, unless the dialer
/// has a shorter limit: less than callers wait, so that the error names the proxy.
const TIMEOUT: Duration = Duration::from_secs(8);

impl Proxy {
    /// Connects to the proxy itself.
    pub(crate) async fn connect(&self, dialer: &Dialer) -> Result<Transport, ProxyProblem> {
        let quick = dialer.clone().with_timeout(limit(dialer));
        let tcp = quick.connect(&self.host, self.port).await;
        let tcp = tcp.map_err(|error| ProxyProblem::Dial(Box::new(error)))?;
        if self.kind != Kind::Https {
            return Ok(Transport::Tcp(tcp));
        }
        let tls = tls::connect(tcp, &self.host, &Trust::Roots, &[b"http/1.1"]).await;
        Ok(Transport::ProxyTls(Box::new(
            tls.map_err(ProxyProblem::Tls)?,
        )))
    }

    /// Connects to a server through the proxy. `host` has no brackets.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub(crate) async fn tunnel(
        &self,
        dialer: &Dialer,
        host: &str,
        port: u16,
    ) -> Result<Transport, ProxyError> {
        let tunnel = async {
            let mut stream = self.connect(dialer).await?;
            match self.kind {
                Kind::Http | Kind::Https => self.ask_by_http(&mut stream, host, port).await?,
                Kind::Socks5 => self.ask_by_socks(&mut stream, host, port).await?,
            }
            Ok(stream)
        };
        let limit = limit(dialer);
        let timed = timeout(limit, tunnel).await;
        let timed = timed.unwrap_or(Err(ProxyProblem::TimedOut(limit)));
        timed.map_err(|problem| self.error(&authority(host, port), problem))
    }

    async fn ask_by_http(
        &self,
        stream: &mut Transport,
        host: &str,
        port: u16,
    ) -> Result<(), ProxyProblem> {
        let target = authority(host, port);
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(value) = self.authorization() {
            request.push_str(&format!("Proxy-Authorization: {value}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let head = ResponseHead::read(stream)
            .await
            .map_err(|error| match error {
                HeadError::Io(error) => ProxyProblem::Broken(error),
                HeadError::NotHttp(what) => {
                    ProxyProblem::OtherProtocol(format!("its answer is not HTTP ({what})"))
                }
            })?;
        match head.status {
            // A server does not send before its client has.
            200..=299 if head.leftover.is_empty() => Ok(()),
            200..=299 => Err(ProxyProblem::OtherProtocol(
                "bytes follow its answer to CONNECT".to_owned(),
            )),
            407 => {
                let schemes = head.fields("proxy-authenticate");
                Err(self.credentials_problem(schemes))
            }
            status => {
                let reason = shown(format!("HTTP {status} {}", head.reason).as_bytes());
                Err(match status {
                    400..=499 => ProxyProblem::Refused(reason),
                    500..=599 => ProxyProblem::TargetUnreachable(reason),
                    _ => ProxyProblem::OtherProtocol(format!("it answers CONNECT with {reason}")),
                })
            }
        }
    }

    /// The problem of a proxy that answers with 407, and with these values of
    /// `Proxy-Authenticate`.
    pub(crate) fn credentials_problem<'a>(
        &self,
        values: impl Iterator<Item = &'a str>,
    ) -> ProxyProblem {
        let schemes: Vec<_> = values
            .filter_map(|value| value.split([' ', ',']).next())
            .collect();
        let is_basic = |scheme: &&str| scheme.eq_ignore_ascii_case("basic");
        if !schemes.is_empty() && !schemes.iter().any(is_basic) {
            return ProxyProblem::UnknownSchemes(shown(schemes.join(", ").as_bytes()));
        }
        match self.credentials {
            Some(_) => ProxyProblem::CredentialsRefused,
            None => ProxyProblem::CredentialsMissing,
        }
    }

    async fn ask_by_socks(
        &self,
        stream: &mut Transport,
        host: &str,
        port: u16,
    ) -> Result<(), ProxyProblem> {
        let has_password = self.credentials.is_some();
        stream.write_all(socks5::greeting(has_password)).await?;
        match answer(stream, socks5::method).await? {
            NO_AUTHENTICATION => {}
            socks5::USER_AND_PASSWORD if has_password => self.log_in(stream).await?,
            NO_METHOD if has_password => {
                return Err(ProxyProblem::UnknownSchemes(
                    "other than a password".to_owned(),
                ));
            }
            NO_METHOD => return Err(ProxyProblem::CredentialsMissing),
            other => {
                let what = format!("it chose the method {other}, which was not offered");
                return Err(ProxyProblem::OtherProtocol(what));
            }
        }
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => Host::Address(ip),
            Err(_) => Host::Name(host.to_owned()),
        };
        let request = socks5::connect(&host, port).ok_or_else(|| {
            ProxyProblem::Refused("the name is longer than SOCKS5 can carry".to_owned())
        })?;
        stream.write_all(&request).await?;
        match answer(stream, socks5::reply).await? {
            0 => Ok(()),
            reply @ 2 => Err(ProxyProblem::Refused(socks5::meaning(reply).to_owned())),
            reply => {
                let meaning = socks5::meaning(reply).to_owned();
                Err(ProxyProblem::TargetUnreachable(meaning))
            }
        }
    }

    async fn log_in(&self, stream: &mut Transport) -> Result<(), ProxyProblem> {
        let credentials = self.credentials.as_ref();
        let message = credentials
            .and_then(|own| socks5::password(own.user.as_bytes(), own.password.as_bytes()));
        // The settings hold none that a message cannot.
        let message = message.ok_or(ProxyProblem::CredentialsRefused)?;
        stream.write_all(&message).await?;
        match answer(stream, socks5::password_accepted).await? {
            true => Ok(()),
            false => Err(ProxyProblem::CredentialsRefused),
        }
    }
}

/// The longest time for a connection through a proxy.
fn limit(dialer: &Dialer) -> Duration {
    dialer.timeout().min(TIMEOUT)
}

/// Reads one message of a SOCKS5 proxy, behind which nothing may follow yet.
async fn answer<T>(
    stream: &mut Transport,
    read: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Malformed>,
) -> Result<T, ProxyProblem> {
    let mut bytes = Vec::with_capacity(MAX_MESSAGE);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(ProxyProblem::Broken(
                std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        let message = read(&bytes)
            .map_err(|error| ProxyProblem::OtherProtocol(format!("its answer is {error}")))?;
        match message {
            Some((value, len)) if len == bytes.len() => return Ok(value),
            Some(_) => {
                let what = "more follows its answer than belongs to it".to_owned();
                return Err(ProxyProblem::OtherProtocol(what));
            }
            None => {}
        }
    }
}
