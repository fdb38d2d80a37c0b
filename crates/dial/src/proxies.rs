//! Proxies on the way out, as the environment names them.
//!
//! Where a network lets nothing out but a proxy, its machines have the variables
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in lower case
//! (curl and the official client read them too). [`OutgoingProxies`] is what they say:
//!
//! - `HTTPS_PROXY` is for connections under TLS, `HTTP_PROXY` for those without,
//!   `ALL_PROXY` for those whose own variable is not set;
//! - `NO_PROXY` lists hosts that are reached without a proxy ([`exceptions`]);
//! - a proxy is `http://`, `https://` (TLS to the proxy) or `socks5://`
//!   (`socks5h://` is the same: names are resolved by the proxy), with a user and a
//!   password where it wants them ([`settings`]).
//!
//! Through an HTTP proxy, every connection is a tunnel by CONNECT (RFC 9110 section
//! 9.3.6), except for a document that is fetched without TLS: it is asked for by its
//! whole URL (RFC 9112 section 3.2.2), since many proxies allow CONNECT to port 443
//! only. [`tunnel`] makes the tunnels.
//!
//! Errors name the proxy without its password, its variable, and what to do.

mod exceptions;
mod settings;
mod tunnel;

use std::fmt;

use data_encoding::BASE64;

use crate::DialError;
use crate::tls::TlsError;

pub use exceptions::Exceptions;
pub use settings::UnusableSetting;

/// Whether a connection is under TLS, which decides about its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// Under TLS.
    Https,
}

/// The proxies of this process. The default is none.
#[derive(Debug, Clone, Default)]
pub struct OutgoingProxies {
    http: Option<Result<Proxy, UnusableSetting>>,
    https: Option<Result<Proxy, UnusableSetting>>,
    exceptions: Exceptions,
}

/// The protocol that is spoken to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTTP.
    Http,
    /// HTTP under TLS.
    Https,
    /// SOCKS version 5.
    Socks5,
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
struct Credentials {
    user: String,
    password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    kind: Kind,
    /// Without brackets.
    host: String,
    port: u16,
    credentials: Option<Credentials>,
    /// The variable that names it.
    variable: &'static str,
}

impl OutgoingProxies {
    /// The proxies that the environment of this process names.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The variables that name a proxy, for logs.
    pub fn variables(&self) -> Vec<&'static str> {
        let both = [&self.https, &self.http].into_iter().flatten();
        let mut names: Vec<_> = both
            .map(|setting| match setting {
                Ok(proxy) => proxy.variable,
                Err(unusable) => unusable.variable(),
            })
            .collect();
        names.dedup();
        names
    }

    /// The proxy for a connection to `host` (IPv6 without brackets).
    pub(crate) fn choose(
        &self,
        scheme: Scheme,
        host: &str,
        port: u16,
    ) -> Result<Option<&Proxy>, UnusableSetting> {
        let setting = match scheme {
            Scheme::Http => &self.http,
            Scheme::Https => &self.https,
        };
        match setting {
            Some(setting) if !self.exceptions.include(host, port) => match setting {
                Ok(proxy) => Ok(Some(proxy)),
                Err(unusable) => Err(unusable.clone()),
            },
            _ => Ok(None),
        }
    }
}

impl Proxy {
    /// Whether it takes requests with a whole URL.
    pub(crate) fn speaks_http(&self) -> bool {
        self.kind != Kind::Socks5
    }

    /// The value of `Proxy-Authorization`, by the basic scheme (RFC 7617).
    pub(crate) fn authorization(&self) -> Option<String> {
        let Credentials { user, password } = self.credentials.as_ref()?;
        let text = format!("{user}:{password}");
        Some(format!("Basic {}", BASE64.encode(text.as_bytes())))
    }

    pub(crate) fn error(&self, target: &str, problem: ProxyProblem) -> ProxyError {
        ProxyError {
            proxy: self.to_string(),
            variable: self.variable,
            target: target.to_owned(),
            problem,
        }
    }
}

/// The proxy as a URL, without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", authority(&self.host, self.port))
    }
}

/// Host and port in text form. `host` has no brackets.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A connection through a proxy did not come about.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct ProxyError {
    /// Its URL, without user and password.
    pub proxy: String,
    /// The variable of the environment that names it.
    pub variable: &'static str,
    /// Host and port that were to be reached.
    pub target: String,
    /// The fault.
    #[source]
    pub problem: ProxyProblem,
}

/// The fault of a proxy, or of its setting.
#[derive(Debug, thiserror::Error)]
pub enum ProxyProblem {
    /// It cannot be reached.
    #[error(transparent)]
    Dial(Box<DialError>),
    /// TLS to it failed.
    #[error(transparent)]
    Tls(TlsError),
    /// The connection to it broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    /// It does not speak the protocol of a proxy.
    #[error("{0}")]
    OtherProtocol(String),
    /// It wants a user and a password.
    #[error("a user and a password are wanted")]
    CredentialsMissing,
    /// It refuses the user or the password.
    #[error("the user or the password is wrong")]
    CredentialsRefused,
    /// It offers only these schemes of authentication, none of which is known here.
    #[error("only these schemes are offered: {0}")]
    UnknownSchemes(String),
    /// It does not permit connections to the target.
    #[error("refused: {0}")]
    Refused(String),
    /// It cannot reach the target itself.
    #[error("unreachable: {0}")]
    TargetUnreachable(String),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(std::time::Duration),
}

impl ProxyError {
    fn text(&self) -> String {
        let Self {
            proxy,
            variable,
            target,
            problem,
        } = self;
        let named = format!("the proxy {proxy} ({variable})");
        let check = format!("check that it runs there, or change {variable}");
        match problem {
            ProxyProblem::Dial(error) => {
                format!("cannot reach {named}: {error}; {check}")
            }
            ProxyProblem::Tls(error) => format!("cannot reach {named}: {error}; {check}"),
            ProxyProblem::Broken(error) => {
                format!(
                    "{named} closed the connection before it reached {target}: {error}; {check}"
                )
            }
            ProxyProblem::OtherProtocol(what) => {
                format!("{named} does not answer as a proxy: {what}; {check}")
            }
            ProxyProblem::CredentialsMissing => format!(
                "{named} wants a user and a password; put them into {variable}, before the host: \
                 USER:PASSWORD@HOST:PORT"
            ),
            ProxyProblem::CredentialsRefused => {
                format!("{named} refuses the user and the password in {variable}; correct them")
            }
            ProxyProblem::UnknownSchemes(schemes) => format!(
                "{named} accepts only these schemes of authentication: {schemes}; \
                 basic authentication is the one that is known here: allow it at the proxy"
            ),
            ProxyProblem::Refused(reason) => format!(
                "{named} refuses connections to {target}: {reason}; allow them at the proxy, or \
                 name the host in NO_PROXY if it can be reached without"
            ),
            ProxyProblem::TargetUnreachable(reason) => {
                format!("{named} cannot reach {target}: {reason}")
            }
            ProxyProblem::TimedOut(after) => {
                format!(
                    "{named} gave no answer within {} s; {check}",
                    after.as_secs_f32()
                )
            }
        }
    }
}
