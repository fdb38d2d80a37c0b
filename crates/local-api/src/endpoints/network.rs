//! Requests that look at single parts of the netmap, and at what this machine can do.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use warren_control_types::{NodeId, UserId};

use super::without_content;
use crate::endpoint::{AnswerForm, IncomingRequest, OutgoingRequest, RequestForm};
use crate::error::{ApiError, Reply};
use crate::takeover::{Duplex, TakenOver};

/// A request for the node with this number, ourselves or a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerById {
    /// The number.
    pub id: NodeId,
}

/// A request for the user with this number, of those that own nodes of the netmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserById {
    /// The number.
    pub id: UserId,
}

/// Reads the parameter `id`.
fn id(request: &IncomingRequest) -> Reply<i64> {
    let id = request.query.get("id").and_then(|id| id.parse().ok());
    id.ok_or_else(|| ApiError::Refused("invalid 'id' parameter".to_owned()))
}

impl RequestForm for PeerById {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        Ok(Self {
            id: NodeId(id(&request)?),
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with("id", self.id.0)
    }
}

impl RequestForm for UserById {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        Ok(Self {
            id: UserId(id(&request)?),
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest::default().with("id", self.id.0)
    }
}

/// The rules of the packet filter, as the coordination server sent them.
#[derive(Debug, Clone, Copy)]
pub struct GetFilterRules;

/// The services of the network that this node may use: none in this version.
#[derive(Debug, Clone, Copy)]
pub struct GetServices;

/// The nodes to which files can be sent: none in this version.
#[derive(Debug, Clone, Copy)]
pub struct GetFileTargets;

/// The names for which this node may get certificates, sorted; `null` for none.
#[derive(Debug, Clone, Copy)]
pub struct GetCertDomains;

/// A check of whether this system forwards the packets of the routes that are offered.
#[derive(Debug, Clone, Copy)]
pub struct CheckIpForwarding;

/// A check of the offloads of this system for forwarded UDP. The tunnel splits batches
/// itself, so there is never a warning.
#[derive(Debug, Clone, Copy)]
pub struct CheckUdpForwarding;

/// A suggestion for an exit node: none in this version.
#[derive(Debug, Clone, Copy)]
pub struct SuggestExitNode;

without_content!(
    GetFilterRules,
    GetServices,
    GetFileTargets,
    GetCertDomains,
    CheckIpForwarding,
    CheckUdpForwarding,
    SuggestExitNode
);

/// The answer of a check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Checked {
    /// The problem; empty: none.
    pub warning: String,
}

/// A suggested exit node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SuggestedExitNode {
    /// Its stable id; empty: there is no suggestion.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its geographical location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Value>,
}

/// The protocol of a connection that was upgraded: the bytes of the connection alone.
const DIAL_PROTOCOL: &str = "ts-dial";
const DIAL_HOST: &str = "dial-host";
const DIAL_PORT: &str = "dial-port";
const DIAL_SELF: HeaderName = HeaderName::from_static("dial-self");
const DIAL_ADDRESS: HeaderName = HeaderName::from_static("dial-addr");

/// A request for a connection to a host of the network. The host is in the header
/// `Dial-Host` and the port in `Dial-Port`.
///
/// Where the system has a way to the host, the answer is the address to connect to: the
/// program connects with its own rights. Otherwise the daemon connects, and the
/// connection of the request becomes that connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl RequestForm for Dial {
    async fn read(request: IncomingRequest) -> Reply<Self> {
        let header = |name: &str| {
            let value = request
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok());
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| ApiError::Refused(format!("missing {name} header")))
        };
        let port = header(DIAL_PORT)?;
        Ok(Self {
            host: header(DIAL_HOST)?.to_owned(),
            port: port
                .parse()
                .map_err(|_| ApiError::Refused(format!("invalid {DIAL_PORT} header: {port:?}")))?,
        })
    }

    fn write(&self) -> OutgoingRequest {
        OutgoingRequest {
            headers: vec![
                (HeaderName::from_static(DIAL_HOST), self.host.clone()),
                (HeaderName::from_static(DIAL_PORT), self.port.to_string()),
                (header::CONNECTION, "upgrade".to_owned()),
                (header::UPGRADE, DIAL_PROTOCOL.to_owned()),
            ],
            ..OutgoingRequest::default()
        }
    }
}

/// The answer to [`Dial`].
pub enum Dialed {
    /// The program connects to this address.
    Address(SocketAddr),
    /// The daemon has connected.
    Stream(Box<dyn Duplex>),
}

/// The form of the answer to [`Dial`]: an address in the header `Dial-Addr`, or an
/// upgrade of the connection.
pub struct DialForm;

impl AnswerForm<Dialed> for DialForm {
    fn write(answer: Dialed) -> Reply<http::Response<axum::body::Body>> {
        let mut response = http::Response::new(axum::body::Body::empty());
        match answer {
            Dialed::Address(address) => {
                let address = HeaderValue::from_str(&address.to_string())
                    .map_err(|error| ApiError::Failed(error.to_string()))?;
                let headers = response.headers_mut();
                headers.insert(DIAL_SELF, HeaderValue::from_static("true"));
                headers.insert(DIAL_ADDRESS, address);
            }
            Dialed::Stream(stream) => {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static(DIAL_PROTOCOL));
                response.extensions_mut().insert(TakenOver::by(stream));
            }
        }
        Ok(response)
    }

    async fn read(
        mut response: http::Response<axum::body::Body>,
    ) -> Result<Dialed, crate::client::ClientError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut response).await;
            let upgraded = upgraded.map_err(crate::client::ClientError::broken)?;
            return Ok(Dialed::Stream(Box::new(TokioIo::new(upgraded))));
        }
        let header = response.headers().get(DIAL_ADDRESS);
        let address = header.and_then(|value| value.to_str().ok()?.parse().ok());
        address.map(Dialed::Address).ok_or_else(|| {
            crate::client::ClientError::Answer("there is no address in it".to_owned())
        })
    }
}

/// The address of a host among nodes with these DNS names (in full, with a dot at the
/// end); the first of each is used. Addresses stand for themselves.
pub fn address_of<'a>(
    host: &str,
    nodes: impl IntoIterator<Item = (&'a str, Option<IpAddr>)>,
) -> Option<IpAddr> {
    if let Ok(address) = host.parse() {
        return Some(address);
    }
    let host = host.trim_end_matches('.');
    nodes.into_iter().find_map(|(name, address)| {
        let full = name.trim_end_matches('.');
        let base = full.split('.').next().unwrap_or_default();
        let is_meant = !full.is_empty()
            && (full.eq_ignore_ascii_case(host) || base.eq_ignore_ascii_case(host));
        address.filter(|_| is_meant)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_found_by_address_and_by_both_names() {
        let db: IpAddr = "100.64.0.2".parse().unwrap();
        let nodes = [("", None), ("db.net.example.", Some(db))];
        for (host, expected) in [
            ("db", Some(db)),
            ("DB.net.example", Some(db)),
            ("db.net.example.", Some(db)),
            ("fd7a::1", Some("fd7a::1".parse().unwrap())),
            ("net", None),
            ("", None),
        ] {
            assert_eq!(address_of(host, nodes), expected, "{host}");
        }
    }

    #[tokio::test]
    async fn the_address_to_dial_survives_as_a_header() {
        let address: SocketAddr = "[fd7a::1]:22".parse().unwrap();
        let response = DialForm::write(Dialed::Address(address)).unwrap();
        assert_eq!(response.headers()["dial-self"], "true");
        let read = DialForm::read(response).await.unwrap();
        assert!(matches!(read, Dialed::Address(read) if read == address));
    }
}
