//! The port for the second dial of official clients.
//!
//! An official client opens its control connection with plain HTTP where the URL of the
//! server says so. If it has dialled within the last two minutes, as after a restart of
//! the server, it suspects the network, and dials port 443 with TLS and nothing else; each
//! try begins the two minutes again. So behind a plain `http://` URL a client that was
//! disconnected twice would stay away until its daemon is restarted. It does not do this
//! where the host of the URL is `localhost` or an address of a private or loopback range.
//! (Source: tailscale: control/ts2021/client.go, control/controlhttp/client.go,
//! health/health.go.)
//!
//! The client accepts any certificate there, because the channel inside authenticates the
//! server. It reports one that issued itself as an intercepted connection, so ours is
//! issued by an authority whose key is forgotten at once. The port serves what the other
//! one serves.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;
use url::{Host, Url};
use warren_keys::NodePublic;
use warren_relay::tls::Certificate;

use crate::certificates::Acceptor;
use crate::cli::args::OptionalListen;
use crate::failure::Failure;
use crate::self_map::taken;

/// The port that official clients dial.
const PORT: u16 = 443;

/// The answer to the second dial.
pub(crate) enum SecondDial {
    /// Clients do not dial another port.
    NotNeeded,
    /// It is served here.
    Served(TcpListener, Acceptor),
    /// It is not served, for this reason.
    Missing(String),
}

impl SecondDial {
    /// Binds the port, if clients of a server at this URL need it. `local` is the address
    /// at which the server listens.
    pub(crate) fn bind(
        wanted: Option<OptionalListen>,
        url: &Url,
        local: SocketAddr,
        relay: NodePublic,
    ) -> Result<Self, Failure> {
        let address = match wanted {
            Some(OptionalListen::At(address)) => address,
            _ if !is_needed(url) || local.port() == PORT => return Ok(Self::NotNeeded),
            Some(OptionalListen::Off) => {
                return Ok(Self::Missing("--second-dial is off".to_owned()));
            }
            None if local.ip().is_loopback() => {
                return Ok(Self::Missing(
                    "this server listens on a loopback address only".to_owned(),
                ));
            }
            None => SocketAddr::new(local.ip(), PORT),
        };
        let listener = match warren_relay::listen::bind(address) {
            Ok(listener) => listener,
            Err(error) => {
                let why = format!("cannot listen on {address}/tcp: {error}{}", taken(&error));
                return match wanted {
                    Some(_) => Err(Failure::Failed(format!(
                        "{why}; choose another with --second-dial IP:PORT"
                    ))),
                    // The network works without it, as far as the banner says.
                    None => Ok(Self::Missing(why)),
                };
            }
        };
        Self::on(listener, url, relay)
    }

    /// Serves a listener that is there already.
    pub(crate) fn on(listener: TcpListener, url: &Url, relay: NodePublic) -> Result<Self, Failure> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let certificate = Certificate::of_forgotten_issuer(host)?;
        Ok(Self::Served(listener, Acceptor::new(certificate, relay)?))
    }

    /// The words about it behind the URL in the banner.
    pub(crate) fn remark(&self) -> &'static str {
        match self {
            Self::Served(..) => {
                "plain HTTP, and TLS on port 443 for official clients that dial again"
            }
            Self::NotNeeded | Self::Missing(_) => "plain HTTP: fine in a lab or behind a TLS proxy",
        }
    }

    /// The warning of the banner; empty if there is none.
    pub(crate) fn warning(&self) -> String {
        let Self::Missing(why) = self else {
            return String::new();
        };
        format!(
            "WARNING: official clients (tailscale) will stay offline when this server was away, \
             until their\ndaemon is restarted: they dial port 443 with TLS when they dial again \
             within 2 minutes, and\n{why}.\nChange one of these:\n  \
             - let this program listen on port 443: run it as root or with CAP_NET_BIND_SERVICE, \
             or send\n    443/tcp to --second-dial IP:PORT; no certificate is needed\n  \
             - give it a certificate: --tls-cert, --tls-key, and an https:// URL\n  \
             - use a --server-url with an address of a private range (10.0.0.0/8, 172.16.0.0/12,\n    \
             192.168.0.0/16, fc00::/7)\nWarren nodes come back in any case.\n\n"
        )
    }
}

/// Whether official clients of a server at this URL dial port 443.
fn is_needed(url: &Url) -> bool {
    let is_exempt = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_private() || ip.is_loopback(),
        Some(Host::Ipv6(ip)) => {
            ip.is_unique_local()
                || ip.is_loopback()
                || ip
                    .to_ipv4_mapped()
                    .is_some_and(|ip| IpAddr::from(ip).is_loopback() || ip.is_private())
        }
        Some(Host::Domain(name)) => name == "localhost",
        None => true,
    };
    url.scheme() == "http" && !is_exempt
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn official_clients_dial_again_with_tls_unless_the_host_is_private() {
        for (url, needed) in [
            ("http://203.0.113.10:8080", true),
            ("http://100.64.0.9:8080", true),
            ("http://net.example", true),
            ("http://[2001:db8::1]:8080", true),
            ("http://10.77.0.10:8080", false),
            ("http://172.31.0.1:8080", false),
            ("http://172.32.0.1:8080", true),
            ("http://192.168.1.1", false),
            ("http://127.0.0.1:8080", false),
            ("http://localhost:8080", false),
            ("http://[fd00::1]:8080", false),
            ("http://[::1]:8080", false),
            ("https://net.example:8443", false),
        ] {
            assert_eq!(is_needed(&url.parse().unwrap()), needed, "{url}");
        }
    }
}
