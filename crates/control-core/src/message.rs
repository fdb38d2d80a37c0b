//! A map message on its way out, with peers that are rendered once for all.
//!
//! The JSON of a peer depends on its viewer by the routes alone, so it
//! is made once per change and set of routes, and spliced into every message
//! that needs it.

use std::sync::Arc;

use warren_control_types::MapResponse;

/// The kind of a message, by the largest part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// A complete map.
    Full,
    /// Peers that came, went, or are sent whole.
    Peers,
    /// Single fields of peers.
    Patch,
    /// The packet filter or the SSH policy.
    Policy,
    /// The node itself.
    Own,
    /// Relays, name resolution, users, tailnet lock.
    Settings,
    /// A c2n request alone.
    Ping,
}

/// One message of a map stream.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Whether this is a complete map, which replaces that of the client.
    pub complete: bool,
    /// Everything but the peer lists.
    pub head: MapResponse,
    /// `Peers`: the complete list; only in a first message.
    pub peers: Vec<Arc<str>>,
    /// `PeersChanged`.
    pub peers_changed: Vec<Arc<str>>,
}

impl Message {
    /// The kind of this message.
    pub fn kind(&self) -> MessageKind {
        let head = &self.head;
        if self.complete {
            MessageKind::Full
        } else if !self.peers_changed.is_empty() || !head.peers_removed.is_empty() {
            MessageKind::Peers
        } else if !head.peers_changed_patch.is_empty() {
            MessageKind::Patch
        } else if !head.packet_filters.is_empty() || head.ssh_policy.is_some() {
            MessageKind::Policy
        } else if head.node.is_some() {
            MessageKind::Own
        } else if head.ping_request.is_some() && !has_settings(head) {
            MessageKind::Ping
        } else {
            MessageKind::Settings
        }
    }

    /// The JSON that goes into the frame.
    ///
    /// # Errors
    /// Not with the types as they are; the serializer's error otherwise.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec(&self.head)?;
        for (key, list) in [
            ("Peers", &self.peers),
            ("PeersChanged", &self.peers_changed),
        ] {
            if list.is_empty() {
                continue;
            }
            // The object is open again, and gets one more member.
            json.pop();
            if json.last() != Some(&b'{') {
                json.push(b',');
            }
            json.push(b'"');
            json.extend_from_slice(key.as_bytes());
            json.extend_from_slice(b"\":[");
            for (n, peer) in list.iter().enumerate() {
                if n > 0 {
                    json.push(b',');
                }
                json.extend_from_slice(peer.as_bytes());
            }
            json.extend_from_slice(b"]}");
        }
        Ok(json)
    }
}

/// Whether a message has parts that are settings.
fn has_settings(head: &MapResponse) -> bool {
    head.derp_map.is_some()
        || head.dns_config.is_some()
        || head.tka_info.is_some()
        || !head.user_profiles.is_empty()
}

#[cfg(test)]
mod tests {
    use warren_control_types::{DnsConfig, NodeId, PeerChange, PingRequest, SshPolicy};

    use super::*;

    #[test]
    fn the_largest_part_decides_about_the_kind() {
        let mut message = Message::default();
        message.head.ping_request = Some(PingRequest::default());
        assert_eq!(message.kind(), MessageKind::Ping);
        message.head.dns_config = Some(DnsConfig::default());
        assert_eq!(message.kind(), MessageKind::Settings);
        message.head.node = Some(warren_control_types::Node::default());
        assert_eq!(message.kind(), MessageKind::Own);
        message.head.ssh_policy = Some(SshPolicy::default());
        assert_eq!(message.kind(), MessageKind::Policy);
        message.head.peers_changed_patch = vec![PeerChange::default()];
        assert_eq!(message.kind(), MessageKind::Patch);
        message.head.peers_removed = vec![NodeId(1)];
        assert_eq!(message.kind(), MessageKind::Peers);
        message.complete = true;
        assert_eq!(message.kind(), MessageKind::Full);
    }
}
