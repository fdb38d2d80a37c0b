//! Admission by asking a coordination server over HTTP.
//!
//! The question is `POST` of `{"NodePublic":"nodekey:…","Source":"1.2.3.4"}`,
//! the answer `{"Allow":true}`. Anything but status 200 and `true` refuses. If
//! the server cannot be reached at all, the answer is [`VerifyUrl::fail_open`].

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use warren_dial::tls::{self, Trust};
use warren_dial::{DialError, Dialer};
use warren_keys::NodePublic;

use crate::relay::{Admission, Applicant};

/// The longest time that request and answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The bytes of an answer that are read.
const MAX_ANSWER: usize = 4096;

/// Asks a URL whether a node may use the relay.
#[derive(Debug, Clone)]
pub struct VerifyUrl {
    dialer: Dialer,
    url: http::Uri,
    host: String,
    port: u16,
    secure: bool,
    fail_open: bool,
}

/// The URL cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("\"{url}\" cannot be asked: {reason}")]
pub struct VerifyUrlError {
    url: String,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question {
    node_public: NodePublic,
    source: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    allow: bool,
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within 5 s")]
    TimedOut,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("unusable request: {0}")]
    Request(#[from] http::Error),
}

impl VerifyUrl {
    /// Asks `url`, which is `http://` or `https://`.
    ///
    /// # Errors
    /// [`VerifyUrlError`] when it is neither.
    pub fn new(dialer: Dialer, url: &str, fail_open: bool) -> Result<Self, VerifyUrlError> {
        let error = |reason: &str| VerifyUrlError {
            url: url.to_owned(),
            reason: reason.to_owned(),
        };
        let parsed: http::Uri = url
            .parse()
            .map_err(|source: http::uri::InvalidUri| error(&source.to_string()))?;
        let secure = match parsed.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(error("it must start with http:// or https://")),
        };
        let host = parsed
            .host()
            .ok_or_else(|| error("it names no host"))?
            .to_owned();
        let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
        let is_here = host == "localhost"
            || address.is_ok_and(|address| address.to_canonical().is_loopback());
        if !secure && !is_here {
            // It decides about the use of this relay alone, and containers ask each other
            // so; refusing would break them.
            tracing::warn!(
                "the address for admissions has no TLS: machines on the way to it can admit \
                 any node to this relay"
            );
        }
        let port = parsed.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self {
            dialer,
            url: parsed,
            host,
            port,
            secure,
            fail_open,
        })
    }

    async fn ask(&self, applicant: Applicant) -> Result<bool, AskError> {
        let stream = self.dialer.connect(&self.host, self.port).await?;
        if self.secure {
            let stream = tls::connect(stream, &self.host, &Trust::Roots, &[b"http/1.1"]).await?;
            self.exchange(stream, applicant).await
        } else {
            self.exchange(stream, applicant).await
        }
    }

    async fn exchange<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: S,
        applicant: Applicant,
    ) -> Result<bool, AskError> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let question = Question {
            node_public: applicant.key,
            source: applicant.source,
        };
        // A key and an address always have a JSON form.
        let body = serde_json::to_vec(&question).unwrap_or_default();
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let authority = self
            .url
            .authority()
            .map_or(self.host.as_str(), |a| a.as_str());
        let request = http::Request::post(path)
            .header(http::header::HOST, authority)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes::Bytes::from(body)))?;
        let connection = std::pin::pin!(connection);
        let answering = std::pin::pin!(async {
            let response = sender.send_request(request).await?;
            if response.status() != http::StatusCode::OK {
                return Ok(false);
            }
            let Ok(body) = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
            else {
                return Ok(false);
            };
            let answer = serde_json::from_slice::<Answer>(&body.to_bytes());
            Ok(answer.is_ok_and(|answer| answer.allow))
        });
        match futures_util::future::select(answering, connection).await {
            futures_util::future::Either::Left((answer, _)) => answer,
            // The connection may end first; the answer is complete then, or an
            // error.
            futures_util::future::Either::Right((_, answering)) => answering.await,
        }
    }
}

impl Admission for VerifyUrl {
    fn admit(&self, applicant: Applicant) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(TIMEOUT, self.ask(applicant)).await;
            match asked.unwrap_or(Err(AskError::TimedOut)) {
                Ok(allow) => allow,
                Err(error) => {
                    let verdict = if self.fail_open {
                        "admitted"
                    } else {
                        "refused"
                    };
                    tracing::warn!(host = self.host, %error, "cannot ask about clients: {verdict}");
                    self.fail_open
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A server that gives one answer; returns its URL and what it was asked.
    async fn server(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/verify", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (url, asked)
    }

    fn applicant() -> Applicant {
        Applicant {
            key: NodePublic::from_bytes([3; 32]),
            source: [192, 0, 2, 1].into(),
        }
    }

    #[tokio::test]
    async fn answer_decides_about_admission() {
        for (answer, allowed) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"Allow\":true}",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"Allow\":false}",
                false,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false),
            (
                "HTTP/1.1 403 No\r\nContent-Length: 14\r\n\r\n{\"Allow\":true}",
                false,
            ),
        ] {
            let (url, asked) = server(answer).await;
            let verify = VerifyUrl::new(Dialer::new(), &url, true).unwrap();
            assert_eq!(verify.admit(applicant()).await, allowed, "{answer}");
            let asked = asked.await.unwrap();
            assert!(asked.starts_with("POST /verify HTTP/1.1\r\n"), "{asked}");
            let key = "03".repeat(32);
            let json = format!(r#"{{"NodePublic":"nodekey:{key}","Source":"192.0.2.1"}}"#);
            assert!(asked.ends_with(&json), "{asked}");
        }
    }

    #[tokio::test]
    async fn without_an_answer_the_flag_decides() {
        for fail_open in [true, false] {
            // Port 1 on loopback refuses at once.
            let verify = VerifyUrl::new(Dialer::new(), "http://127.0.0.1:1/", fail_open).unwrap();
            assert_eq!(verify.admit(applicant()).await, fail_open);
        }
        for bad in ["", "ftp://x/", "verify", "http://"] {
            assert!(VerifyUrl::new(Dialer::new(), bad, true).is_err(), "{bad}");
        }
    }
}
