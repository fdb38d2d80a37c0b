//! Properties of chains and signatures, for random trees of messages.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use warren_keys::{LockPublic, NodePublic};
use warren_lock::{
    Aum, AumHash, Authority, Change, Checkpoint, Compaction, DisablementValue, KeyId, LockSecret,
    Meta, NodeKeySignature, Refusal, RotationTracker, StateId, StoredAum, TrustedKey, Updater,
    WrappedAuthKey, revocation,
};
use warren_testkit::SeededEntropy;

fn secret(n: u8) -> LockSecret {
    LockSecret::from_seed(&[n + 1; 32])
}

fn node(n: u8) -> NodePublic {
    NodePublic::from_bytes([n + 1; 32])
}

fn trusted(n: u8, votes: u16) -> TrustedKey {
    TrustedKey::new(secret(n).public(), votes, Meta::default()).unwrap()
}

fn checkpoint(keys: Vec<TrustedKey>) -> Checkpoint {
    let values = vec![DisablementValue::from_bytes([1; 32])];
    Checkpoint::new(keys, values, StateId(1, 2)).unwrap()
}

fn start() -> Authority {
    let keys = vec![trusted(0, 2), trusted(1, 1), trusted(2, 1)];
    Authority::create(checkpoint(keys), &secret(0), 0)
        .unwrap()
        .0
}

fn random_change(random: &mut SeededEntropy) -> Change {
    let key = random.below(5) as u8;
    let votes = 1 + random.below(3);
    match random.below(6) {
        0 => Change::NoOp,
        1 => Change::AddKey(trusted(key, votes as u16)),
        2 => Change::RemoveKey(secret(key).id()),
        3 => Change::UpdateKey {
            id: secret(key).id(),
            votes: Some(votes),
            meta: (votes == 2).then(|| Meta::new([("name", "x")]).unwrap()),
        },
        4 => Change::Checkpoint(checkpoint(vec![trusted(0, 2), trusted(3, votes as u16)])),
        _ => Change::Unknown(100 + key),
    }
}

/// A random tree of valid messages below the genesis message of [`start`], parents first.
fn tree(seed: u64, size: usize) -> (Authority, Vec<Aum>) {
    let mut random = SeededEntropy(seed);
    let mut authority = start();
    let mut all = vec![authority.head()];
    let mut updates = Vec::new();
    for _ in 0..size * 4 {
        // Half of the messages extend the newest one, so that branches get long.
        let parent = match random.below(2) {
            0 => all[all.len() - 1],
            _ => all[random.below(all.len() as u64) as usize],
        };
        let mut aum = Aum::unsigned(Some(parent), random_change(&mut random))
            .signed_by(&secret(random.below(4) as u8));
        if random.below(4) == 0 {
            aum = aum.signed_by(&secret(random.below(4) as u8));
        }
        if updates.len() < size && authority.inform(std::slice::from_ref(&aum), 0).is_ok() {
            all.push(aum.hash());
            updates.push(aum);
        }
    }
    (authority, updates)
}

/// Some order in which no message comes before its parent.
fn shuffled(updates: &[Aum], seed: u64) -> Vec<Aum> {
    let mut random = SeededEntropy(seed);
    let mut open = updates.to_vec();
    let mut out: Vec<Aum> = Vec::new();
    while !open.is_empty() {
        let index = random.below(open.len() as u64) as usize;
        let parent = open[index].parent();
        if open.iter().all(|aum| Some(aum.hash()) != parent) {
            out.push(open.swap_remove(index));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(aum) = Aum::decode(&bytes) {
            prop_assert_eq!(aum.as_bytes(), bytes.as_slice());
        }
        if let Ok(signature) = NodeKeySignature::decode(&bytes) {
            prop_assert_eq!(signature.encode(), bytes);
        }
    }

    #[test]
    fn order_of_arrival_does_not_matter(seed: u64, order: u64, size in 1usize..24) {
        let (authority, updates) = tree(seed, size);
        let mut at_once = start();
        at_once.inform(&shuffled(&updates, order), 0).unwrap();
        prop_assert_eq!(at_once.head(), authority.head());
        prop_assert_eq!(at_once.state(), authority.state());

        let mut in_pieces = start();
        let mut random = SeededEntropy(order ^ 1);
        let mut rest = shuffled(&updates, order ^ 2);
        while !rest.is_empty() {
            let piece = 1 + random.below(rest.len() as u64) as usize;
            let piece: Vec<_> = rest.drain(..piece).collect();
            in_pieces.inform(&piece, 0).unwrap();
            // Messages that come again change nothing.
            prop_assert_eq!(in_pieces.inform(&piece, 0).unwrap(), []);
        }
        prop_assert_eq!(in_pieces.head(), authority.head());
        prop_assert_eq!(in_pieces.state(), authority.state());
        prop_assert_eq!(
            in_pieces.log().collect::<Vec<_>>(),
            authority.log().collect::<Vec<_>>()
        );
    }

    #[test]
    fn stored_messages_give_the_same_chain_in_any_order(seed: u64, size in 1usize..20) {
        let (authority, _) = tree(seed, size);
        let mut stored: Vec<StoredAum> = authority.stored().cloned().collect();
        stored.reverse();
        let (opened, discarded) = Authority::open(stored, authority.oldest()).unwrap();
        prop_assert_eq!(discarded, []);
        prop_assert_eq!(opened.head(), authority.head());
        prop_assert_eq!(opened.state(), authority.state());
    }

    #[test]
    fn a_lost_or_damaged_file_costs_its_branch_and_nothing_else(seed: u64, size in 2usize..16, which: prop::sample::Index) {
        let (authority, _) = tree(seed, size);
        let stored: Vec<StoredAum> = authority.stored().cloned().collect();
        let lost = stored[which.index(stored.len())].aum.hash();
        let kept = stored.into_iter().filter(|stored| stored.aum.hash() != lost);
        match Authority::open(kept, authority.oldest()) {
            Err(refusal) => {
                prop_assert_eq!(lost, authority.oldest());
                prop_assert_eq!(refusal, Refusal::UnknownParent);
            }
            Ok((mut opened, discarded)) => {
                for gone in &discarded {
                    prop_assert_eq!(&gone.refusal, &Refusal::UnknownParent);
                }
                prop_assert_eq!(opened.stored().len() + discarded.len() + 1, authority.stored().len());
                // Synchronisation brings back what the chain lacks.
                let missing = authority.missing(&opened.offer()).unwrap();
                opened.inform(&missing, 0).unwrap();
                prop_assert_eq!(opened.head(), authority.head());
            }
        }
    }

    #[test]
    fn two_nodes_agree_after_one_exchange(seed: u64, left: u64, right: u64, size in 1usize..20) {
        let (_, updates) = tree(seed, size);
        let pick = |choice: u64| {
            let mut random = SeededEntropy(choice);
            let mut one = start();
            for aum in &updates {
                // A message without its parent here is refused.
                if random.below(3) > 0 {
                    let _ = one.inform(std::slice::from_ref(aum), 0);
                }
            }
            one
        };
        let (mut left, mut right) = (pick(left), pick(right));
        let to_right = left.missing(&right.offer()).unwrap();
        let to_left = right.missing(&left.offer()).unwrap();
        right.inform(&to_right, 0).unwrap();
        left.inform(&to_left, 0).unwrap();
        prop_assert_eq!(left.head(), right.head());
        prop_assert_eq!(left.state(), right.state());
        prop_assert_eq!(left.missing(&right.offer()).unwrap(), []);
    }

    #[test]
    fn a_changed_bit_is_refused(seed: u64, size in 1usize..6, position: prop::sample::Index, bit in 0u8..8) {
        let (_, updates) = tree(seed, size);
        prop_assume!(!updates.is_empty());
        let mut authority = start();
        let (last, before) = updates.split_last().unwrap();
        authority.inform(before, 0).unwrap();
        let head = authority.head();
        let mut bytes = last.as_bytes().to_vec();
        let position = position.index(bytes.len());
        bytes[position] ^= 1 << bit;
        if let Ok(changed) = Aum::decode(&bytes) {
            prop_assert!(authority.inform(&[changed], 0).is_err());
        }
        prop_assert_eq!(authority.head(), head);
    }

    #[test]
    fn one_bad_message_refuses_the_whole_batch(seed: u64, size in 2usize..10, position: prop::sample::Index) {
        let (_, mut updates) = tree(seed, size);
        prop_assume!(!updates.is_empty());
        let position = position.index(updates.len());
        let bad = Aum::unsigned(updates[position].parent(), Change::NoOp).signed_by(&secret(100));
        updates.insert(position, bad);
        let mut authority = start();
        let head = authority.head();
        let error = authority.inform(&updates, 0).unwrap_err();
        prop_assert_eq!(error.index, position);
        prop_assert_eq!(error.refusal, Refusal::SignerNotTrusted(secret(100).id()));
        prop_assert_eq!((authority.head(), authority.stored().len()), (head, 1));
    }

    #[test]
    fn compaction_changes_neither_the_state_nor_later_results(seed: u64, ages: u64, min_chain in 1usize..8, min_age in 0u64..60) {
        let mut random = SeededEntropy(seed);
        let mut plain = start();
        let mut now = 0;
        for _ in 0..20 {
            let parent = match random.below(3) {
                0 => plain.stored().nth(random.below(plain.stored().len() as u64) as usize).unwrap().aum.hash(),
                _ => plain.head(),
            };
            let aum = Aum::unsigned(Some(parent), random_change(&mut random)).signed_by(&secret(0));
            now += 1 + ages % 7;
            let _ = plain.inform(&[aum], now);
        }
        let mut compact = plain.clone();
        let before = compact.stored().len();
        let removed = compact.compact(now, Compaction { min_chain, min_age });
        prop_assert_eq!(compact.stored().len() + removed.len(), before);
        prop_assert_eq!(compact.head(), plain.head());
        prop_assert_eq!(compact.state(), plain.state());
        for hash in &removed {
            prop_assert!(compact.aum(*hash).is_none());
        }
        let young = plain.stored().filter(|stored| now - stored.stored_at < min_age);
        for stored in young {
            prop_assert!(compact.aum(stored.aum.hash()).is_some());
        }
        // Any later message that both know the parent of has the same effect.
        for stored in compact.clone().stored() {
            let aum = Aum::unsigned(Some(stored.aum.hash()), Change::NoOp).signed_by(&secret(0)).signed_by(&secret(3));
            let results = [&mut compact, &mut plain].map(|one| one.inform(std::slice::from_ref(&aum), now).is_ok());
            prop_assert_eq!(results[0], results[1]);
            prop_assert_eq!(compact.head(), plain.head());
        }
        let opened = Authority::open(compact.stored().cloned(), compact.oldest()).unwrap();
        prop_assert_eq!(opened.0.head(), compact.head());
        prop_assert_eq!(opened.1, []);
    }

    #[test]
    fn a_key_cannot_undo_its_removal_or_the_loss_of_votes(seed: u64, is_removed: bool, before in 0usize..6, after in 0usize..6, attempts in prop::collection::vec((any::<prop::sample::Index>(), 0u8..5), 1..12)) {
        let mut random = SeededEntropy(seed);
        let keys = vec![trusted(1, 2), trusted(2, 3), trusted(3, 1)];
        let (mut authority, _) = Authority::create(checkpoint(keys), &secret(1), 0).unwrap();
        let by = |parent, change, signers: &[u8]| {
            let unsigned = Aum::unsigned(Some(parent), change);
            signers.iter().fold(unsigned, |aum, n| aum.signed_by(&secret(*n)))
        };
        let weaker = trusted(2, 3).id().clone();
        let mut loss = authority.head();
        for step in 0..before + 1 + after {
            let change = match step {
                at if at == before && is_removed => Change::RemoveKey(weaker.clone()),
                at if at == before => Change::UpdateKey { id: weaker.clone(), votes: Some(1), meta: None },
                _ => Change::UpdateKey { id: trusted(1, 1).id().clone(), votes: Some(1 + random.below(3)), meta: None },
            };
            let aum = by(authority.head(), change, &[1]);
            if step == before {
                loss = aum.hash();
            }
            authority.inform(&[aum], 0).unwrap();
        }
        for (at, kind) in attempts {
            let known: Vec<Aum> = authority.stored().map(|stored| stored.aum.clone()).collect();
            let base = at.get(&known);
            let added = Change::AddKey(trusted(9, 4));
            let batch = match kind {
                0 => vec![by(base.hash(), Change::NoOp, &[2])],
                1 => vec![by(base.hash(), added, &[2])],
                // The signature of another key, which it made for this content, beside its own.
                2 => vec![base.signed_by(&secret(2))],
                3 => vec![by(base.hash(), Change::RemoveKey(trusted(1, 1).id().clone()), &[2])],
                _ => {
                    let first = by(base.hash(), added, &[2]);
                    let second = by(first.hash(), Change::NoOp, &[9]);
                    vec![first, second]
                }
            };
            let before = authority.clone();
            let accepted = authority.inform(&batch, 0).is_ok();
            if accepted && before.outdated_signer(&batch).is_some() {
                authority = before;
            }
            prop_assert!(authority.log().any(|aum| aum.hash() == loss));
        }
        // Other keys may fork below it, to revoke or to catch up.
        let oldest = authority.oldest();
        let late = by(oldest, Change::NoOp, &[3]);
        prop_assert_eq!(authority.outdated_signer(&[late]), None);
    }

    #[test]
    fn revocation_erases_what_a_stolen_key_did(seed: u64, steps in 1usize..12, order: u64) {
        let mut random = SeededEntropy(seed);
        let mut authority = start();
        let mut updates = Vec::new();
        // Key 2 is stolen. It removes and adds keys, and gives itself votes.
        for _ in 0..steps {
            let change = match random.below(3) {
                0 => Change::AddKey(trusted(10 + random.below(3) as u8, 4000)),
                1 => Change::RemoveKey(secret(1).id()),
                _ => Change::UpdateKey { id: secret(2).id(), votes: Some(4096), meta: None },
            };
            let aum = Aum::unsigned(Some(authority.head()), change).signed_by(&secret(2));
            if authority.inform(std::slice::from_ref(&aum), 0).is_ok() {
                updates.push(aum);
            }
        }
        let stolen: Vec<KeyId> = authority
            .state()
            .keys()
            .map(|key| key.id().clone())
            .filter(|id| *id != secret(0).id() && *id != secret(1).id())
            .collect();
        let proposal = revocation(&authority, &stolen, &secret(0).id(), None).unwrap();
        let genesis = authority.log().last().unwrap().hash();
        prop_assert_eq!(proposal.parent(), Some(genesis));
        // Two votes of key 0 outweigh the one that the stolen key had there.
        let signed = proposal.signed_by(&secret(0));
        updates.push(signed.clone());
        let mut other = start();
        other.inform(&shuffled(&updates, order), 0).unwrap();
        authority.inform(std::slice::from_ref(&signed), 0).unwrap();
        for one in [&authority, &other] {
            prop_assert_eq!(one.head(), signed.hash());
            prop_assert!(stolen.iter().all(|id| one.state().key(id).is_none()));
        }
    }

    #[test]
    fn rotations_stay_valid_and_shallow(count in 1u8..40, credential: bool, damage: prop::sample::Index, bit in 0u8..8) {
        let authority = start();
        let (own, first) = match credential {
            false => (secret(50), NodeKeySignature::direct(node(0), Some(secret(50).public()), &secret(0))),
            true => {
                let credential = NodeKeySignature::credential(secret(51).public(), &secret(0));
                let key = WrappedAuthKey { auth_key: "k".into(), credential, delegate: secret(51) };
                let key = WrappedAuthKey::parse(&key.to_text()).unwrap();
                (secret(51), key.credential.by_credential(node(0), &key.delegate).unwrap())
            }
        };
        let mut signature = first.clone();
        for n in 1..=count {
            signature = signature.rotated(node(n), &own);
            let encoded = signature.encode();
            let authorization = authority.authorize(node(n), &encoded).unwrap();
            prop_assert_eq!(authorization.previous[0], node(n - 1));
            prop_assert!(encoded.len() < 4096);
            prop_assert!(authority.authorize(node(n - 1), &encoded).is_err());
        }
        prop_assert_eq!(&signature.clone().rotated(node(count), &own), &signature);
        // No other key may rotate it.
        let stolen = signature.clone().rotated(node(100), &secret(60)).encode();
        prop_assert!(authority.authorize(node(100), &stolen).is_err());
        let mut bytes = signature.encode();
        let position = damage.index(bytes.len());
        bytes[position] ^= 1 << bit;
        prop_assert!(authority.authorize(node(count), &bytes).is_err());
        // The first and the last key of the node are both shown: only the last is kept.
        let mut tracker = RotationTracker::default();
        let last = authority.authorize(node(count), &signature.encode()).unwrap();
        if count < 15 {
            tracker.add(node(0), &authority.authorize(node(0), &first.encode()).unwrap());
        }
        tracker.add(node(count), &last);
        let obsolete = tracker.obsolete();
        prop_assert!(obsolete.contains(&node(count - 1)) && !obsolete.contains(&node(count)));
    }

    #[test]
    fn a_removed_key_admits_no_node(seed: u64, size in 0usize..8) {
        let (mut authority, _) = tree(seed, size);
        let signer = secret(0);
        let signature = NodeKeySignature::direct(node(1), None, &secret(90)).encode();
        prop_assert!(authority.authorize(node(1), &signature).is_err());
        if authority.state().key(&signer.id()).is_none() {
            return Ok(());
        }
        let mut updater = Updater::new(&authority, &signer);
        updater.add_key(trusted(90, 1)).unwrap();
        let updates = updater.finish().unwrap();
        authority.inform(&updates, 0).unwrap();
        prop_assert!(authority.authorize(node(1), &signature).is_ok());
        let mut updater = Updater::new(&authority, &signer);
        updater.remove_key(secret(90).id()).unwrap();
        let updates = updater.finish().unwrap();
        authority.inform(&updates, 0).unwrap();
        prop_assert!(authority.authorize(node(1), &signature).is_err());
    }
}

#[test]
fn text_forms_are_read_back() {
    let hash = start().head();
    assert_eq!(hash.to_string().len(), 52);
    assert_eq!(hash.to_string().parse(), Ok(hash));
    for text in [
        "",
        "AAAA",
        &hash.to_string().to_lowercase(),
        &format!("{hash}A"),
    ] {
        assert!(text.parse::<AumHash>().is_err(), "{text}");
    }
    let id = KeyId::from(LockPublic::from_bytes([0xab; 32]));
    assert_eq!(id.to_string(), format!("tlpub:{}", "ab".repeat(32)));
}

#[test]
fn flood_of_valid_messages_is_bounded() {
    let mut authority = start();
    let mut refused = None;
    for batch in 0..9 {
        let mut parent = authority.head();
        let updates: Vec<Aum> = (0..500)
            .map(|_| {
                let aum = Aum::unsigned(Some(parent), Change::NoOp).signed_by(&secret(0));
                parent = aum.hash();
                aum
            })
            .collect();
        if let Err(error) = authority.inform(&updates, 0) {
            refused = Some((batch, error));
            break;
        }
    }
    let (batch, error) = refused.unwrap();
    assert_eq!((batch, error.refusal), (8, Refusal::Full));
    assert!(authority.stored().len() <= warren_lock::MAX_STORED_AUMS);
}
