//! Comparison with what the official implementation computed; see `vectors/README.md`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use serde_json::Value;
use warren_keys::NodePublic;
use warren_lock::{
    Aum, AumHash, Authority, Compaction, DisablementSecret, KeyId, LockSecret, Meta,
    NodeKeySignature, RotationTracker, SyncOffer, TrustedKey, Updater, WrappedAuthKey, revocation,
};

fn load(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn rows<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let rows = value[name].as_array().unwrap();
    assert!(!rows.is_empty());
    rows
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap()
}

fn flag(row: &Value, name: &str) -> bool {
    row[name].as_bool().unwrap()
}

fn bytes(row: &Value, name: &str) -> Vec<u8> {
    unhex(&row[name])
}

fn unhex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn hash(row: &Value, name: &str) -> AumHash {
    text(row, name).parse().unwrap()
}

fn aum(row: &Value, name: &str) -> Aum {
    Aum::decode(&bytes(row, name)).unwrap()
}

fn aums(row: &Value, name: &str) -> Vec<Aum> {
    let list = row[name].as_array().unwrap().iter();
    list.map(|aum| Aum::decode(&unhex(aum)).unwrap()).collect()
}

fn secret(seed: &Value) -> LockSecret {
    LockSecret::from_seed(unhex(seed).as_slice().try_into().unwrap())
}

fn key_id(value: &Value) -> KeyId {
    let public: [u8; 32] = unhex(value).try_into().unwrap();
    warren_keys::LockPublic::from_bytes(public).into()
}

fn node(row: &Value) -> NodePublic {
    text(row, "node_key").parse().unwrap()
}

/// A lock with the genesis message of the row, and the messages under `updates`.
fn authority(row: &Value, updates: &str) -> Authority {
    let mut authority = Authority::bootstrap(aum(row, "genesis"), 0).unwrap();
    for update in aums(row, updates) {
        authority.inform(&[update], 0).unwrap();
    }
    authority
}

fn assert_keys(authority: &Authority, row: &Value) {
    let ours: Vec<_> = authority
        .state()
        .keys()
        .map(|key| {
            let meta: serde_json::Map<_, _> = key
                .meta()
                .iter()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect();
            serde_json::json!({
                "public": HEXLOWER.encode(key.id().as_bytes()),
                "votes": key.votes(),
                "meta": meta,
            })
        })
        .collect();
    assert_eq!(Value::from(ours), row["keys"], "{}", row["name"]);
}

#[test]
fn messages_have_the_official_encoding_hash_and_digest() {
    let file = load("messages");
    for row in rows(&file, "rows") {
        let name = text(row, "name");
        let encoded = bytes(row, "cbor");
        let decoded = Aum::decode(&encoded);
        // Encodings that are not canonical are accepted by the official implementation.
        let accepted = flag(row, "decodes") && flag(row, "valid") && flag(row, "canonical");
        assert_eq!(decoded.is_ok(), accepted, "{name}: {decoded:?}");
        let Ok(decoded) = decoded else { continue };
        assert_eq!(decoded.as_bytes(), encoded, "{name}");
        assert_eq!(decoded.hash(), hash(row, "hash"), "{name}");
        if let Some(digest) = row.get("signing_digest") {
            assert_eq!(decoded.signing_digest().as_slice(), unhex(digest), "{name}");
        }
        // Fields that the kind does not use are kept as bytes only.
        if !name.starts_with("no-op with")
            && !name.starts_with("unknown")
            && name != "raw: meta sorted"
        {
            let mut again = Aum::unsigned(decoded.parent(), decoded.change().clone());
            for signature in decoded.signatures() {
                let key = rows(&file, "keys")
                    .iter()
                    .find(|key| unhex(&key["public"]) == signature.key.as_bytes())
                    .unwrap();
                again = again.signed_by(&secret(&key["seed"]));
            }
            // A null key and an empty one are one key, which is written as null.
            assert_eq!(again.as_bytes(), encoded, "{name}");
        }
    }
}

#[test]
fn first_messages_are_judged_like_the_official_ones() {
    let file = load("rules");
    for row in rows(&file, "bootstrap") {
        let result = Authority::bootstrap(aum(row, "cbor"), 0);
        assert_eq!(result.is_ok(), flag(row, "accepted"), "{row} {result:?}");
    }
}

#[test]
fn every_rule_of_the_chain_agrees_with_the_official_one() {
    let file = load("rules");
    for row in rows(&file, "updates") {
        let mut authority = authority(row, "before");
        let before = authority.head();
        let accepted = Aum::decode(&bytes(row, "update"))
            .is_ok_and(|update| authority.inform(&[update], 0).is_ok());
        assert_eq!(accepted, flag(row, "accepted"), "{}", row["name"]);
        if !accepted {
            assert_eq!(authority.head(), before);
        }
        assert_eq!(authority.head(), hash(row, "head"), "{}", row["name"]);
        assert_keys(&authority, row);
    }
}

#[test]
fn forks_are_resolved_like_the_official_ones() {
    let file = load("forks");
    for row in rows(&file, "rows") {
        let one_by_one = authority(row, "updates");
        assert_eq!(one_by_one.head(), hash(row, "head"), "{}", row["name"]);
        assert_keys(&one_by_one, row);
        let mut at_once = Authority::bootstrap(aum(row, "genesis"), 0).unwrap();
        at_once.inform(&aums(row, "updates"), 0).unwrap();
        assert_eq!(at_once.head(), hash(row, "head"), "{}", row["name"]);
        let stored: Vec<_> = at_once.stored().cloned().collect();
        let (opened, discarded) = Authority::open(stored, at_once.oldest()).unwrap();
        assert_eq!(opened.head(), hash(row, "head"), "{}", row["name"]);
        assert_eq!(discarded, []);
    }
}

fn offer(row: &Value) -> SyncOffer {
    SyncOffer {
        head: hash(row, "head"),
        ancestors: row["ancestors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hash| hash.as_str().unwrap().parse().unwrap())
            .collect(),
    }
}

#[test]
fn offers_and_missing_messages_are_the_official_ones() {
    let file = load("sync");
    for row in rows(&file, "rows") {
        let (left, right) = (&row["left"], &row["right"]);
        for (one, other, field) in [
            (left, right, "missing_on_right"),
            (right, left, "missing_on_left"),
        ] {
            let authority = authority(one, "updates");
            assert_eq!(authority.offer(), offer(&one["offer"]), "{}", row["name"]);
            let missing = authority.missing(&offer(&other["offer"]));
            assert_eq!(
                missing.is_err(),
                !text(one, "error").is_empty(),
                "{}",
                row["name"]
            );
            assert_eq!(
                missing.unwrap_or_default(),
                aums(one, field),
                "{}",
                row["name"]
            );
        }
    }
}

#[test]
fn node_key_signatures_are_verified_like_the_official_ones() {
    let file = load("signatures");
    let authority = Authority::bootstrap(aum(&file, "genesis"), 0).unwrap();
    for row in rows(&file, "rows") {
        let name = text(row, "name");
        let encoded = bytes(row, "cbor");
        let decoded = NodeKeySignature::decode(&encoded);
        assert_eq!(decoded.is_ok(), flag(row, "decodes"), "{name}: {decoded:?}");
        let result = authority.authorize(node(row), &encoded);
        assert_eq!(
            result.is_ok(),
            flag(row, "authorized"),
            "{name}: {result:?}"
        );
        if let Ok(decoded) = decoded {
            assert_eq!(decoded.encode(), encoded, "{name}");
            assert_eq!(decoded.digest().as_slice(), bytes(row, "digest"), "{name}");
            let wrapping = decoded
                .wrapping_key()
                .map(|key| HEXLOWER.encode(key.as_bytes()));
            assert_eq!(
                wrapping.as_deref().unwrap_or_default(),
                text(row, "wrapping"),
                "{name}"
            );
            let signer = decoded
                .authorizing_key()
                .map(|key| HEXLOWER.encode(key.as_bytes()));
            assert_eq!(
                signer.as_deref().unwrap_or_default(),
                text(row, "key_id"),
                "{name}"
            );
        }
        if let Ok(authorization) = result {
            let previous: Vec<_> = authorization
                .previous
                .iter()
                .map(NodePublic::to_string)
                .collect();
            assert_eq!(Value::from(previous), row["previous"], "{name}");
            let initial = text(row, "initial");
            if !initial.is_empty() {
                assert_eq!(authorization.initial.to_string(), initial, "{name}");
            }
        }
    }
}

#[test]
fn rotations_are_signed_like_the_official_ones() {
    let file = load("signatures");
    let authority = Authority::bootstrap(aum(&file, "genesis"), 0).unwrap();
    let wrapping = rows(&file, "keys")
        .iter()
        .find(|key| key["name"] == "w")
        .unwrap();
    let wrapping = secret(&wrapping["seed"]);
    for row in rows(&file, "resigned") {
        let before = NodeKeySignature::decode(&bytes(row, "before")).unwrap();
        let after = before.rotated(node(row), &wrapping).encode();
        assert_eq!(after, bytes(row, "after"));
        assert_eq!(
            authority.authorize(node(row), &after).is_ok(),
            flag(row, "authorized")
        );
    }
}

#[test]
fn wrapped_auth_keys_are_read_and_used_like_the_official_ones() {
    let file = load("signatures");
    for row in rows(&file, "wrapped") {
        let wrapped = WrappedAuthKey::parse(text(row, "text"));
        assert_eq!(wrapped.is_some(), flag(row, "wrapped"), "{row}");
        let Some(wrapped) = wrapped else { continue };
        assert_eq!(wrapped.auth_key, text(row, "auth_key"));
        assert_eq!(wrapped.credential.encode(), bytes(row, "signature"));
        assert_eq!(
            wrapped.delegate.to_keypair().as_slice(),
            bytes(row, "private")
        );
        assert_eq!(*wrapped.to_text(), text(row, "text"));
        let signed = wrapped
            .credential
            .by_credential(node(row), &wrapped.delegate);
        assert_eq!(signed.is_ok(), text(row, "error").is_empty());
        if let Ok(signed) = signed {
            assert_eq!(signed.encode(), bytes(row, "signed"));
        }
    }
}

#[test]
fn obsolete_node_keys_are_the_official_ones() {
    let file = load("signatures");
    let authority = Authority::bootstrap(aum(&file, "genesis"), 0).unwrap();
    for row in rows(&file, "rotations") {
        let mut tracker = RotationTracker::default();
        let mut expected = BTreeSet::new();
        for peer in rows(row, "peers") {
            let authorization = authority.authorize(node(peer), &bytes(peer, "signature"));
            tracker.add(node(peer), &authorization.unwrap());
            if flag(peer, "obsolete") {
                expected.insert(node(peer));
            }
        }
        let peers: BTreeSet<_> = rows(row, "peers").iter().map(node).collect();
        let obsolete: BTreeSet<_> = tracker.obsolete().intersection(&peers).copied().collect();
        assert_eq!(obsolete, expected, "{}", row["name"]);
    }
}

#[test]
fn disablement_values_are_the_official_ones() {
    let file = load("primitives");
    for row in rows(&file, "disablement") {
        let value = DisablementSecret::from_bytes(&bytes(row, "secret")).value();
        assert_eq!(value.as_bytes().as_slice(), bytes(row, "value"));
    }
}

#[test]
fn builder_makes_the_official_messages() {
    let file = load("builder");
    let signer = secret(&file["key"]["seed"]);
    let mut authority = Authority::bootstrap(aum(&file, "genesis"), 0).unwrap();
    for step in rows(&file, "steps") {
        let mut updater = Updater::new(&authority, &signer);
        for op in rows(step, "ops") {
            let id = key_id(&op["public"]);
            let votes = op["votes"].as_u64().map(|votes| votes as u16);
            let meta = op["meta"].as_object().map(|meta| {
                let pairs = meta
                    .iter()
                    .map(|(name, value)| (name, value.as_str().unwrap()));
                Meta::new(pairs).unwrap()
            });
            let result = match text(op, "op") {
                "add" => {
                    let key = TrustedKey::new(id, votes.unwrap(), meta.unwrap_or_default());
                    updater.add_key(key.unwrap())
                }
                "remove" => updater.remove_key(id),
                _ => updater.update_key(id, votes, meta),
            };
            assert_eq!(result.is_ok(), text(op, "error").is_empty(), "{op}");
        }
        let updates = updater.finish().unwrap();
        assert_eq!(updates, aums(step, "updates"));
        authority.inform(&updates, 0).unwrap();
    }
}

#[test]
fn revocations_are_the_official_ones_and_have_the_same_effect() {
    let file = load("recovery");
    for row in rows(&file, "rows") {
        let mut authority = authority(row, "updates");
        let revoke: Vec<KeyId> = rows(row, "revoke").iter().map(key_id).collect();
        let from = text(row, "fork_from").parse().ok();
        let proposal = revocation(&authority, &revoke, &key_id(&row["our_key"]), from);
        assert_eq!(
            proposal.is_ok(),
            text(row, "error").is_empty(),
            "{}",
            row["name"]
        );
        let Ok(mut proposal) = proposal else { continue };
        assert_eq!(proposal.as_bytes(), bytes(row, "proposal"));
        for seed in rows(row, "cosigners") {
            proposal = proposal.signed_by(&secret(seed));
        }
        assert_eq!(proposal.as_bytes(), bytes(row, "signed"));
        let result = authority.inform(&[proposal], 0);
        assert_eq!(result.is_ok(), flag(row, "accepted"), "{}", row["name"]);
        assert_eq!(authority.head(), hash(row, "head"), "{}", row["name"]);
        assert_keys(&authority, row);
    }
}

#[test]
fn compaction_keeps_what_the_official_one_keeps() {
    const DAY: u64 = 24 * 60 * 60;
    const NOW: u64 = 1000 * DAY;
    let file = load("compaction");
    for row in rows(&file, "rows") {
        let name = text(row, "name");
        let at = |index: usize| NOW - row["age_days"][index].as_u64().unwrap() * DAY - 1;
        let mut authority = Authority::bootstrap(aum(row, "genesis"), at(0)).unwrap();
        for (index, update) in aums(row, "updates").into_iter().enumerate() {
            authority.inform(&[update], at(index + 1)).unwrap();
        }
        let before: BTreeSet<_> = authority.stored().map(|stored| stored.aum.hash()).collect();
        let removed = authority.compact(NOW, Compaction::default());
        let kept: BTreeSet<_> = authority.stored().map(|stored| stored.aum.hash()).collect();
        let official: BTreeSet<AumHash> = rows(row, "kept")
            .iter()
            .map(|hash| hash.as_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(kept, official, "{name}");
        assert_eq!(kept.len() + removed.len(), before.len(), "{name}");
        assert_eq!(authority.oldest(), hash(row, "oldest"), "{name}");
        assert_eq!(authority.head(), hash(row, "head"), "{name}");
    }
}
