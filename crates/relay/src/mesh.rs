//! The mesh: relays of one region that carry packets for each other's clients.
//!
//! Each relay is a client of every other one, watches the clients that connect
//! and leave there, and forwards over that connection the packets that its own
//! clients send to clients there.
//! A packet is forwarded once at most. When a link breaks,
//! everything learnt over it is void.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use tracing::Instrument as _;
use warren_control_types::DerpNode;
use warren_derp::LinkId;
use warren_derp::client::Event;
use warren_dial::Dialer;
use warren_dial::derp::{ConnectOptions, connect_node};
use warren_wire::derp::PeerGoneReason;

use crate::relay::{OnDrop, Relay};

/// Pause before a link is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Another relay of the region, as `HOST`, `HOST:PORT`, or with `https://` in
/// front; without a port it is port 443. `http://` is for relays on this machine
/// only: without TLS, any machine on the way could answer as the relay and receive
/// the mesh key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPeer {
    /// The relay's addresses and port.
    pub node: DerpNode,
    /// Whether the relay speaks HTTP without TLS.
    pub plain_http: bool,
}

/// A text does not name another relay of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseMeshPeerError {
    /// The text has another form.
    #[error(
        "\"{0}\" is not a valid relay of the mesh; write HOST, HOST:PORT or https://HOST[:PORT]"
    )]
    Form(String),
    /// The mesh key would be sent to a relay that cannot prove its identity.
    #[error(
        "\"{0}\" has no TLS, so any machine on the way could take the mesh key; use https:// \
         (http:// is accepted for relays on this machine only)"
    )]
    NoTls(String),
}

impl FromStr for MeshPeer {
    type Err = ParseMeshPeerError;

    fn from_str(text: &str) -> Result<Self, ParseMeshPeerError> {
        let error = || ParseMeshPeerError::Form(text.to_owned());
        let (plain_http, rest) = match text.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(("https", rest)) => (false, rest),
            Some(_) => return Err(error()),
            None => (false, text),
        };
        let rest = rest
            .strip_suffix("/derp")
            .unwrap_or(rest)
            .trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            // The last colon of a bare IPv6 address separates no port.
            Some((host, _)) if host.contains(':') && !host.ends_with(']') => (rest, None),
            Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| error())?)),
            None => (rest, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || port == Some(0) || host.contains(['/', ' ', '?', '#', '@']) {
            return Err(error());
        }
        let is_local = host == "localhost"
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.to_canonical().is_loopback());
        if plain_http && !is_local {
            return Err(ParseMeshPeerError::NoTls(text.to_owned()));
        }
        let port = port.unwrap_or(if plain_http { 80 } else { 443 });
        let node = DerpNode {
            name: host.to_owned(),
            host_name: host.to_owned(),
            derp_port_raw: port.into(),
            ..DerpNode::default()
        };
        Ok(Self { node, plain_http })
    }
}

impl Relay {
    /// Keeps a link to another relay of the mesh; returns only when that relay
    /// turns out to be this one, or when the relay is closed.
    pub async fn mesh_with(&self, dialer: Dialer, peer: MeshPeer) {
        // The name is one of the configuration, not one of a user.
        let span = tracing::warn_span!("mesh", peer = peer.node.host_name);
        self.keep_link(dialer, peer).instrument(span).await;
    }

    async fn keep_link(&self, dialer: Dialer, peer: MeshPeer) {
        loop {
            let link = tokio::select! {
                link = self.one_link(&dialer, &peer) => link,
                () = self.shared.closing.cancelled() => return,
            };
            match link {
                Ok(Link::Ourselves) => {
                    tracing::info!("mesh peer is this relay itself: left out");
                    return;
                }
                Ok(Link::Ended(reason)) => tracing::warn!(reason, "mesh link down"),
                Err(error) => tracing::warn!(%error, "no mesh link"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn one_link(
        &self,
        dialer: &Dialer,
        peer: &MeshPeer,
    ) -> Result<Link, warren_dial::derp::NodeError> {
        let shared = &self.shared;
        let options = ConnectOptions {
            mesh_key: shared.identity.mesh_key().cloned(),
            watch: true,
            plain_http: peer.plain_http,
            ..ConnectOptions::default()
        };
        let secret = shared.identity.secret();
        let (sender, mut receiver) = connect_node(dialer, &peer.node, secret, &options).await?;
        if receiver.relay_key() == Some(self.public_key()) {
            return Ok(Link::Ourselves);
        }
        let link = LinkId(shared.next_id());
        let _void = OnDrop(|| shared.depart(|registry| registry.remove_link(link)));
        loop {
            let batch = match receiver.recv().await {
                Ok(batch) => batch,
                Err(error) => return Ok(Link::Ended(error.to_string())),
            };
            for event in batch {
                match event {
                    Event::Connected(_) => tracing::info!("mesh link up"),
                    Event::PeerPresent { key, .. } => shared.change(|registry| {
                        registry.add_forwarder(link, key, sender.clone());
                        Vec::new()
                    }),
                    // "Not here" answers a packet we forwarded: what we knew
                    // was out of date.
                    Event::PeerGone {
                        key,
                        reason: PeerGoneReason::Disconnected | PeerGoneReason::NotHere,
                    } => shared.depart(|registry| registry.remove_forwarder(link, key)),
                    Event::PeerGone {
                        reason: PeerGoneReason::Other(_),
                        ..
                    }
                    | Event::Packet { .. }
                    | Event::Health(_)
                    | Event::Restarting { .. }
                    | Event::Pong(_) => {}
                }
            }
        }
    }
}

enum Link {
    Ourselves,
    Ended(String),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn peers_are_named_in_several_ways() {
        for (text, host, port, plain) in [
            ("relay2.example", "relay2.example", 443, false),
            ("relay2.example:8443", "relay2.example", 8443, false),
            ("https://relay2.example/derp", "relay2.example", 443, false),
            ("http://127.0.0.1", "127.0.0.1", 80, true),
            ("http://[::1]:3340/", "::1", 3340, true),
            ("2001:db8::1", "2001:db8::1", 443, false),
            ("[2001:db8::1]:444", "2001:db8::1", 444, false),
        ] {
            let peer: MeshPeer = text.parse().unwrap();
            let got = (
                peer.node.host_name.as_str(),
                peer.node.derp_port(),
                peer.plain_http,
            );
            assert_eq!(got, (host, port, plain), "{text}");
        }
        for bad in ["", ":443", "ftp://x", "x:99999", "x:0", "a b", "http://"] {
            assert!(bad.parse::<MeshPeer>().is_err(), "{bad}");
        }
        for no_tls in ["http://192.0.2.1", "http://relay2.example:80/derp"] {
            let error = no_tls.parse::<MeshPeer>().unwrap_err();
            assert_eq!(error, ParseMeshPeerError::NoTls(no_tls.to_owned()));
        }
    }
}
