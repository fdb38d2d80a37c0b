//! The output of `warren lock status` and `log`: the texts and the JSON of the official
//! client.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use data_encoding::{BASE64, BASE64URL, HEXLOWER};
use serde::Serialize;
use warren_keys::LockPublic;
use warren_local_api::tailnet_lock::{LockPeer, LockSignature, LockStatus, LockUpdate};
use warren_lock::{Aum, AumHash, Change, DecodeError, Meta, SignatureKind, TrustedKey};

use super::key_text;

const VERSION: &str = "1";

pub(super) fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn is_zero(key: &LockPublic) -> bool {
    *key == LockPublic::default()
}

// ---- status ----

/// The text of `warren lock status`.
pub(super) fn status_text(status: &LockStatus) -> String {
    let mut out = String::new();
    let own_key = (!is_zero(&status.public_key)).then(|| key_text(status.public_key.as_bytes()));
    // Writing into a String cannot fail.
    let _ = write_status(&mut out, status, own_key.as_deref());
    out
}

fn write_status(out: &mut String, status: &LockStatus, own_key: Option<&str>) -> std::fmt::Result {
    out.push_str(match status.enabled {
        true => "Tailnet Lock is ENABLED.\n\n",
        false => "Tailnet Lock is NOT enabled.\n\n",
    });
    if let (true, Some(node_key), Some(own_key)) = (status.enabled, status.node_key, own_key) {
        if status.node_key_signed {
            out.push_str("This node is accessible under Tailnet Lock. Node signature:\n");
            let signature = status.node_key_signature.clone().unwrap_or_default();
            write_signature(out, &signature, 0)?;
        } else {
            out.push_str(
                "This node is LOCKED OUT by Tailnet Lock, and action is required to establish \
                 connectivity.\n",
            );
            writeln!(
                out,
                "Run the following command on a node with a trusted key:\n\
                 \twarren lock sign {node_key} {own_key}"
            )?;
        }
        out.push('\n');
    }
    if let Some(own_key) = own_key {
        writeln!(out, "This node's tailnet-lock key: {own_key}\n")?;
    }
    if status.enabled && !status.trusted_keys.is_empty() {
        out.push_str("Trusted signing keys:\n");
        for key in &status.trusted_keys {
            write!(out, "\t{}\t{}\t", key_text(key.key.as_bytes()), key.votes)?;
            if key.key == status.public_key {
                out.push_str("(self)");
            }
            let meta = |name: &str| key.metadata.get(name).map_or("", String::as_str);
            match (meta("purpose"), meta("authkey_stableid")) {
                ("pre-auth key", "") => out.push_str("(pre-auth key)"),
                ("pre-auth key", id) => write!(out, "(pre-auth key {id})")?,
                _ => {}
            }
            out.push('\n');
        }
    }
    if status.enabled && !status.filtered_peers.is_empty() {
        out.push_str(
            "\nThe following nodes are locked out by tailnet lock and cannot connect to other \
             nodes:\n",
        );
        for peer in &status.filtered_peers {
            let addresses: Vec<String> =
                peer.tailscale_ips.iter().map(ToString::to_string).collect();
            writeln!(
                out,
                "\t{}\t{}\t{}\t{}",
                peer.name,
                addresses.join(","),
                peer.stable_id.0,
                peer.node_key
            )?;
        }
    }
    Ok(())
}

fn write_signature(out: &mut String, signature: &LockSignature, depth: usize) -> std::fmt::Result {
    let indent = "  ".repeat(depth);
    writeln!(
        out,
        "{indent}SigKind: {}",
        SignatureKind::from(signature.sig_kind)
    )?;
    if let Some(key) = signature.pubkey.0.strip_prefix(b"np") {
        let short: String = BASE64.encode(key).chars().take(5).collect();
        writeln!(out, "{indent}Pubkey: [{short}]")?;
    }
    for (name, key) in [
        ("KeyID", &signature.key_id.0),
        ("WrappingPubkey", &signature.wrapping_pubkey.0),
    ] {
        if !key.is_empty() {
            writeln!(out, "{indent}{name}: {}", key_text(key))?;
        }
    }
    if let Some(nested) = &signature.nested {
        writeln!(out, "{indent}Nested:")?;
        write_signature(out, nested, depth + 1)?;
    }
    Ok(())
}

/// The JSON of `warren lock status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StatusJson {
    schema_version: &'static str,
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_key: Option<String>,
    #[serde(flatten)]
    on: Option<OnJson>,
}

/// The part that is there while the lock is on.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct OnJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    node_key_signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_key_signature: Option<SignatureJson>,
    trusted_keys: Vec<KeyJson>,
    visible_peers: Vec<PeerJson>,
    filtered_peers: Vec<PeerJson>,
    #[serde(rename = "State", skip_serializing_if = "is_nothing")]
    state_id: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_nothing(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SignatureJson {
    sig_kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    public_key: String,
    #[serde(rename = "KeyID", skip_serializing_if = "String::is_empty")]
    key_id: String,
    signature: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested: Option<Box<SignatureJson>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    wrapping_public_key: String,
}

impl From<&LockSignature> for SignatureJson {
    fn from(signature: &LockSignature) -> Self {
        let key = |bytes: &[u8]| match bytes {
            [] => String::new(),
            bytes => format!("tlpub:{}", hex(bytes)),
        };
        Self {
            sig_kind: SignatureKind::from(signature.sig_kind).to_string(),
            public_key: key(&signature.pubkey.0),
            key_id: key(&signature.key_id.0),
            signature: BASE64URL.encode(&signature.signature.0),
            nested: signature
                .nested
                .as_deref()
                .map(|nested| Box::new(nested.into())),
            wrapping_public_key: key(&signature.wrapping_pubkey.0),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyJson {
    kind: String,
    votes: u64,
    public: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
}

impl From<&TrustedKey> for KeyJson {
    fn from(key: &TrustedKey) -> Self {
        Self {
            kind: "25519".to_owned(),
            votes: key.votes().into(),
            public: key.id().to_string(),
            meta: pairs(key.meta()),
        }
    }
}

fn pairs(meta: &Meta) -> BTreeMap<String, String> {
    meta.iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PeerJson {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "DNSName")]
    dns_name: String,
    #[serde(rename = "TailscaleIPs")]
    tailscale_ips: Option<Vec<String>>,
    node_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_key_signature: Option<SignatureJson>,
}

fn peer_json(peer: &LockPeer, signature: Option<SignatureJson>) -> PeerJson {
    let addresses: Vec<String> = peer.tailscale_ips.iter().map(ToString::to_string).collect();
    PeerJson {
        id: peer.stable_id.0.clone(),
        dns_name: peer.name.clone(),
        tailscale_ips: Some(addresses).filter(|addresses| !addresses.is_empty()),
        node_key: peer.node_key.to_string(),
        node_key_signature: signature,
    }
}

pub(super) fn status_json(status: &LockStatus) -> StatusJson {
    let signed = |peer: &LockPeer| peer_json(peer, Some((&peer.node_key_signature).into()));
    let trusted = status.trusted_keys.iter().map(|key| KeyJson {
        kind: key.kind.clone(),
        votes: key.votes,
        public: key_text(key.key.as_bytes()),
        meta: key.metadata.clone(),
    });
    StatusJson {
        schema_version: VERSION,
        enabled: status.enabled,
        public_key: (!is_zero(&status.public_key)).then(|| key_text(status.public_key.as_bytes())),
        node_key: status.node_key.map(|key| key.to_string()),
        on: status.enabled.then(|| OnJson {
            head: status
                .head
                .map(|hash| AumHash::from_bytes(hash).to_string()),
            node_key_signed: status.node_key_signed,
            node_key_signature: status.node_key_signature.as_ref().map(SignatureJson::from),
            trusted_keys: trusted.collect(),
            visible_peers: status.visible_peers.iter().map(signed).collect(),
            filtered_peers: status
                .filtered_peers
                .iter()
                .map(|peer| peer_json(peer, None))
                .collect(),
            state_id: status.state_id,
        }),
    }
}

// ---- log ----

/// An update in words, with a line for each part.
pub(super) fn update_text(update: &LockUpdate) -> Result<String, DecodeError> {
    let aum = Aum::decode(&update.raw.0)?;
    let mut out = format!("update {} ({})\n", aum.hash(), aum.kind());
    // Writing into a String cannot fail.
    let _ = write_change(&mut out, aum.change());
    Ok(out)
}

fn write_change(out: &mut String, change: &Change) -> std::fmt::Result {
    match change {
        Change::AddKey(key) => write_key(out, key, ""),
        Change::RemoveKey(id) => writeln!(out, "KeyID: {id}"),
        Change::UpdateKey { id, votes, meta } => {
            writeln!(out, "KeyID: {id}")?;
            if let Some(votes) = votes {
                writeln!(out, "Votes: {votes}")?;
            }
            meta.as_ref()
                .map_or(Ok(()), |meta| write_meta(out, meta, ""))
        }
        Change::Checkpoint(checkpoint) => {
            out.push_str("Disablement values:\n");
            for value in checkpoint.disablement_values() {
                writeln!(out, " - {}", hex(value.as_bytes()))?;
            }
            out.push_str("Keys:\n");
            checkpoint
                .keys()
                .try_for_each(|key| write_key(out, key, "  "))
        }
        Change::NoOp | Change::Unknown(_) => Ok(()),
    }
}

fn write_key(out: &mut String, key: &TrustedKey, prefix: &str) -> std::fmt::Result {
    writeln!(out, "{prefix}Type: 25519\n{prefix}KeyID: {}", key.id())?;
    match key.meta().is_empty() {
        true => Ok(()),
        false => write_meta(out, key.meta(), prefix),
    }
}

/// As the official client writes maps.
fn write_meta(out: &mut String, meta: &Meta, prefix: &str) -> std::fmt::Result {
    let pairs: Vec<String> = meta
        .iter()
        .map(|(name, value)| {
            format!(
                "{}:{}",
                warren_terminal::printable(name),
                warren_terminal::printable(value)
            )
        })
        .collect();
    writeln!(out, "{prefix}Metadata: map[{}]", pairs.join(" "))
}

/// The JSON of `warren lock log`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LogJson {
    schema_version: &'static str,
    messages: Vec<MessageJson>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct MessageJson {
    hash: String,
    #[serde(rename = "AUM")]
    aum: AumJson,
    raw: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AumJson {
    message_kind: &'static str,
    #[serde(rename = "PrevAUMHash", skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<KeyJson>,
    #[serde(rename = "KeyID", skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<StateJson>,
    #[serde(skip_serializing_if = "is_nothing")]
    votes: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    signatures: Vec<AumSignatureJson>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct StateJson {
    disablement_values: Vec<String>,
    keys: Vec<KeyJson>,
    #[serde(rename = "StateID1")]
    id1: u64,
    #[serde(rename = "StateID2")]
    id2: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AumSignatureJson {
    #[serde(rename = "KeyID")]
    key_id: String,
    signature: String,
}

fn message_json(update: &LockUpdate) -> Result<MessageJson, DecodeError> {
    let aum = Aum::decode(&update.raw.0)?;
    let signatures = aum.signatures().iter().map(|signature| AumSignatureJson {
        key_id: key_text(signature.key.as_bytes()),
        signature: BASE64URL.encode(&signature.signature),
    });
    let mut json = AumJson {
        message_kind: aum.kind(),
        parent: aum.parent().map(|hash| hash.to_string()),
        key: None,
        key_id: None,
        state: None,
        votes: 0,
        meta: BTreeMap::new(),
        signatures: signatures.collect(),
    };
    match aum.change() {
        Change::AddKey(key) => json.key = Some(key.into()),
        Change::RemoveKey(id) => json.key_id = Some(id.to_string()),
        Change::UpdateKey { id, votes, meta } => {
            json.key_id = Some(id.to_string());
            json.votes = votes.unwrap_or_default();
            json.meta = meta.as_ref().map(pairs).unwrap_or_default();
        }
        Change::Checkpoint(checkpoint) => {
            let values = checkpoint.disablement_values().iter();
            json.state = Some(StateJson {
                disablement_values: values.map(|value| hex(value.as_bytes())).collect(),
                keys: checkpoint.keys().map(KeyJson::from).collect(),
                id1: checkpoint.id().0,
                id2: checkpoint.id().1,
            });
        }
        Change::NoOp | Change::Unknown(_) => {}
    }
    Ok(MessageJson {
        hash: aum.hash().to_string(),
        aum: json,
        raw: BASE64URL.encode(&update.raw.0),
    })
}

pub(super) fn log_json(updates: &[LockUpdate]) -> Result<LogJson, DecodeError> {
    Ok(LogJson {
        schema_version: VERSION,
        messages: updates.iter().map(message_json).collect::<Result<_, _>>()?,
    })
}
