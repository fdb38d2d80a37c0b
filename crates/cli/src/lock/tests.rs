#![allow(clippy::unwrap_used)]
use warren_local_api::tailnet_lock::{LockKey, LockStatus, LockUpdate};
use warren_lock::{Authority, Checkpoint, Meta, StateId, TrustedKey, Updater};

use super::*;

#[test]
fn keys_are_read_with_both_prefixes_and_votes() {
    let digits = "ab".repeat(32);
    for (text, votes) in [
        (format!("tlpub:{digits}"), 1),
        (format!("nlpub:{digits}"), 1),
        (format!("tlpub:{digits}?7"), 7),
    ] {
        let key = trusted_key(&text).unwrap();
        assert_eq!((key.votes, key.public.0), (votes, vec![0xab; 32]), "{text}");
    }
    for text in [
        "",
        "tlpub:",
        "tlpub:ab",
        "nodekey:ab",
        &digits,
        &format!("tlpub:{digits}?x"),
    ] {
        assert!(trusted_key(text).is_err(), "{text}");
    }
    assert!(disablement("tlpub:ab").is_none());
    assert_eq!(disablement("disablement:0A").unwrap().unwrap(), [10]);
    assert_eq!(
        disablement("disablement-secret:ff").unwrap().unwrap(),
        [255]
    );
    assert!(disablement("disablement:x").unwrap().is_err());
}

#[test]
fn status_says_what_to_do_when_the_node_is_locked_out() {
    let own = LockPublic::from_bytes([1; 32]);
    let mut status = LockStatus {
        public_key: own,
        node_key: Some(NodePublic::from_bytes([2; 32])),
        ..LockStatus::default()
    };
    let own_text = format!("tlpub:{}", "01".repeat(32));
    assert_eq!(
        shown::status_text(&status),
        format!("Tailnet Lock is NOT enabled.\n\nThis node's tailnet-lock key: {own_text}\n\n")
    );
    status.enabled = true;
    status.trusted_keys = vec![LockKey {
        kind: "25519".to_owned(),
        key: own,
        votes: 3,
        ..LockKey::default()
    }];
    let text = shown::status_text(&status);
    assert!(text.contains("LOCKED OUT"), "{text}");
    let advice = format!(
        "\twarren lock sign nodekey:{} {own_text}\n",
        "02".repeat(32)
    );
    assert!(text.contains(&advice), "{text}");
    assert!(
        text.contains(&format!("\t{own_text}\t3\t(self)\n")),
        "{text}"
    );
    let json = serde_json::to_value(shown::status_json(&status)).unwrap();
    assert_eq!(json["SchemaVersion"], "1");
    assert_eq!(json["NodeKeySigned"], false);
    assert_eq!(json["TrustedKeys"][0]["Public"], own_text.as_str());
}

#[test]
fn log_shows_each_kind_of_change() {
    let signer = LockSecret::from_seed(&[1; 32]);
    let key = |number: u8| {
        let meta = Meta::new([("name", "x\u{1b}[2J")]).unwrap();
        let public = LockSecret::from_seed(&[number; 32]).public();
        TrustedKey::new(public, 2, meta).unwrap()
    };
    let values = vec![DisablementSecret::from_bytes(&[5; 32]).value()];
    let checkpoint = Checkpoint::new(vec![key(1)], values, StateId(7, 8)).unwrap();
    let (mut authority, _) = Authority::create(checkpoint, &signer, 0).unwrap();
    let mut updater = Updater::new(&authority, &signer);
    updater.add_key(key(2)).unwrap();
    updater
        .update_key(key(2).id().clone(), Some(9), None)
        .unwrap();
    updater.remove_key(key(2).id().clone()).unwrap();
    let updates = updater.finish().unwrap();
    authority.inform(&updates, 0).unwrap();
    let updates: Vec<LockUpdate> = authority
        .log()
        .map(|aum| LockUpdate {
            hash: *aum.hash().as_bytes(),
            change: aum.kind().to_owned(),
            raw: Encoded(aum.as_bytes().to_vec()),
        })
        .collect();
    let text: String = updates
        .iter()
        .map(|update| shown::update_text(update).unwrap())
        .collect();
    for part in [
        "(remove-key)",
        "(update-key)\n",
        "Votes: 9\n",
        "(add-key)\nType: 25519\n",
        "(checkpoint)\nDisablement values:\n - ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    let json = serde_json::to_value(shown::log_json(&updates).unwrap()).unwrap();
    assert_eq!(json["Messages"][1]["AUM"]["Votes"], 9);
    assert_eq!(json["Messages"][3]["AUM"]["State"]["StateID2"], 8);
    let parent = json["Messages"][0]["AUM"]["PrevAUMHash"].as_str();
    assert_eq!(parent, json["Messages"][1]["Hash"].as_str());
    let damaged = LockUpdate::default();
    assert!(shown::log_json(&[damaged]).is_err());
}
