//! Asking a daemon how it reaches a peer, cheaply.
//!
//! Both daemons speak the same local interface, so the same few bytes of HTTP
//! ask both, and looking a hundred times a second does not start a hundred
//! programs whose start-up would be what is measured.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use warren_lab::{Host, LabError};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The local interface of the node on a host.
pub struct LocalApi {
    socket: PathBuf,
}

impl LocalApi {
    /// The interface of the node that the lab runs on `host`.
    pub fn of(host: &Host) -> Self {
        Self {
            socket: host.folder().join("node/s.sock"),
        }
    }

    /// The JSON that `status --json` prints, without running that program.
    ///
    /// # Errors
    /// When the daemon does not answer, or with something else.
    pub fn status(&self) -> Result<Value, LabError> {
        get(&self.socket, "/localapi/v0/status")
    }

    /// The node's IPv4 address inside the tailnet.
    ///
    /// # Errors
    /// While it has none.
    pub fn address(&self) -> Result<IpAddr, LabError> {
        let status = self.status()?;
        let mut addresses = status["TailscaleIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
        addresses
            .find(IpAddr::is_ipv4)
            .ok_or_else(|| LabError::new("the node has no address yet"))
    }

    /// How many peers are reached directly.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn direct_peers(&self) -> Result<usize, LabError> {
        let status = self.status()?;
        let peers = status["Peer"].as_object().into_iter().flatten();
        let direct = peers.filter(|(_, peer)| {
            let address = peer["CurAddr"].as_str();
            address.is_some_and(|address| !address.is_empty())
        });
        Ok(direct.count())
    }

    /// Whether the only peer is reached directly.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn is_direct(&self) -> Result<bool, LabError> {
        Ok(self.direct_peers()? > 0)
    }
}

/// HTTP/1.0 asks the server to end the answer by closing: no chunks to undo.
fn get(socket: &Path, path: &str) -> Result<Value, LabError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: local-tailscaled.sock\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| LabError::new(format!("no HTTP answer to {path}: {text}")))?;
    if head.split_whitespace().nth(1) != Some("200") {
        return Err(LabError::new(format!("{path}: {head}\n{body}")));
    }
    serde_json::from_str(body).map_err(|error| LabError::new(format!("{path}: {error}\n{body}")))
}
