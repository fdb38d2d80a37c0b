//! A map message on its way out, with peers that are rendered once for all.
//!
//! The JSON of a peer depends on its viewer by the routes alone, so it
//! is made once per change and set of routes, and spliced into every message
//! that needs it.

use std::sync::Arc;

use warren_control_types::MapResponse;

/// One message of a map stream.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Everything but the peer lists.
    pub head: MapResponse,
    /// `Peers`: the complete list; only in a first message.
    pub peers: Vec<Arc<str>>,
    /// `PeersChanged`.
    pub peers_changed: Vec<Arc<str>>,
}

impl Message {
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
