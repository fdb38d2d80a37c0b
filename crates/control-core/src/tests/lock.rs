//! Tailnet lock: turned on, changed and turned off by nodes; passed on, never forged.

use warren_control_types::{
    Encoded, NodeId, TkaBootstrapRequest, TkaDisableRequest, TkaInfo, TkaInitBeginRequest,
    TkaInitFinishRequest, TkaSignaturesUsingKeyRequest, TkaSubmitSignatureRequest,
    TkaSyncOfferRequest, TkaSyncSendRequest,
};
use warren_lock::{
    Aum, Authority, Change, Checkpoint, DisablementSecret, LockSecret, Meta, NodeKeySignature,
    StateId, SyncOffer, TrustedKey, Updater,
};
use warren_policy::Role;

use super::world::{World, key, machine, map_request, request};
use crate::{LockError, Turned};

fn secret(n: u8) -> LockSecret {
    LockSecret::from_seed(&[n; 32])
}

fn disablement() -> DisablementSecret {
    DisablementSecret::from_bytes(b"the secret")
}

fn trusted(n: u8) -> TrustedKey {
    TrustedKey::new(secret(n).public(), 1, Meta::default()).unwrap()
}

fn genesis() -> (Authority, Aum) {
    let values = vec![disablement().value()];
    let checkpoint = Checkpoint::new(vec![trusted(1)], values, StateId(1, 2)).unwrap();
    Authority::create(checkpoint, &secret(1), 0).unwrap()
}

/// Two nodes of an administrator, 1 and 2, each with its lock key.
fn world() -> (World, NodeId, NodeId) {
    let mut w = World::new();
    w.user("ann");
    w.c.set_role("ann", Role::Admin).unwrap();
    let auth = w.reusable("ann");
    for n in [1, 2] {
        let mut request = request(n, &auth);
        request.nl_key = Some(secret(n).public());
        assert_eq!(w.answer(n, &request).error, "");
    }
    let id = |n| w.c.node_by_key(&key(n)).unwrap().id;
    let (one, two) = (id(1), id(2));
    (w, one, two)
}

fn begin(w: &mut World, n: u8, genesis: &Aum) -> Result<Vec<NodeId>, LockError> {
    let request = TkaInitBeginRequest {
        node_key: key(n),
        genesis_aum: genesis.as_bytes().to_vec(),
        ..Default::default()
    };
    let begun = w.c.lock_init_begin(machine(n), &request, w.wall)?;
    Ok(begun
        .need_signatures
        .iter()
        .map(|info| {
            let node = w.c.node(info.node_id).unwrap();
            assert_eq!(info.node_public, node.key);
            let lock_key = node.lock_key.map(|key| key.as_bytes().to_vec());
            assert_eq!(info.rotation_pubkey, lock_key.unwrap_or_default());
            info.node_id
        })
        .collect())
}

fn direct(w: &World, node: NodeId) -> Vec<u8> {
    let node = w.c.node(node).unwrap();
    NodeKeySignature::direct(node.key, node.lock_key, &secret(1)).encode()
}

fn finish(w: &mut World, n: u8, nodes: &[NodeId]) -> Result<(), LockError> {
    let request = TkaInitFinishRequest {
        node_key: key(n),
        signatures: nodes
            .iter()
            .map(|node| (*node, Encoded(direct(w, *node))))
            .collect(),
        ..Default::default()
    };
    w.c.lock_init_finish(machine(n), &request, w.wall)?;
    w.settle();
    Ok(())
}

/// The two nodes with the lock on, which node 1 turned on.
fn locked() -> (World, NodeId, NodeId, Authority) {
    let (mut w, one, two) = world();
    let (authority, genesis) = genesis();
    let nodes = begin(&mut w, 1, &genesis).unwrap();
    finish(&mut w, 1, &nodes).unwrap();
    (w, one, two, authority)
}

fn info(authority: &Authority) -> Option<TkaInfo> {
    Some(TkaInfo {
        head: authority.head().to_string(),
        disabled: false,
    })
}

fn send(w: &mut World, n: u8, aums: &[Aum]) -> Result<String, LockError> {
    let request = TkaSyncSendRequest {
        node_key: key(n),
        missing_aums: aums
            .iter()
            .map(|aum| Encoded(aum.as_bytes().to_vec()))
            .collect(),
        ..Default::default()
    };
    let sent = w.c.lock_sync_send(machine(n), &request, w.wall)?;
    w.settle();
    Ok(sent.head)
}

#[test]
fn lock_is_turned_on_with_all_nodes_signed_and_all_sessions_informed() {
    let (mut w, one, two) = world();
    let session = w.open(2).unwrap();
    assert_eq!(w.read(session)[0].tka_info, None);
    let (authority, genesis) = genesis();
    let nodes = begin(&mut w, 1, &genesis).unwrap();
    assert_eq!(nodes, [one, two]);
    assert!(w.c.view().lock().is_err(), "nothing is on before the end");
    finish(&mut w, 1, &nodes).unwrap();
    for id in [one, two] {
        let node = w.c.node(id).unwrap();
        assert!(authority.authorize(node.key, &node.key_signature).is_ok());
    }
    let messages = w.read(session);
    assert_eq!(messages[0].tka_info, info(&authority));
    assert_eq!(w.clients[&session].tka_info, info(&authority));
    assert_eq!(w.fresh(two).tka_info, info(&authority));
    let peer = &w.clients[&session].peers[&one];
    assert_eq!(peer.key_signature, direct(&w, one));
    // Every node is offered the feature.
    let own = w.clients[&session].self_node.clone().unwrap();
    let capability = "https://tailscale.com/cap/tailnet-lock";
    assert!(own.cap_map.get(capability).is_some());
}

#[test]
fn only_administrators_turn_the_lock_on_and_only_once() {
    let (mut w, _, two) = world();
    let (_, genesis) = genesis();
    w.c.set_role("ann", Role::Member).unwrap();
    assert_eq!(begin(&mut w, 1, &genesis), Err(LockError::NotAllowed));
    w.c.set_role("ann", Role::Owner).unwrap();
    let nodes = begin(&mut w, 1, &genesis).unwrap();
    assert_eq!(finish(&mut w, 2, &nodes), Err(LockError::NotPrepared));
    // The node that turns it on must not lock itself out.
    let error = finish(&mut w, 1, &[two]).unwrap_err();
    assert!(error.to_string().contains("not signed itself"), "{error}");
    finish(&mut w, 1, &nodes).unwrap();
    assert_eq!(begin(&mut w, 1, &genesis), Err(LockError::AlreadyOn));
    assert_eq!(finish(&mut w, 1, &nodes), Err(LockError::AlreadyOn));
    // Another machine cannot ask in the name of a node.
    let foreign = TkaBootstrapRequest {
        node_key: key(1),
        ..Default::default()
    };
    let view = w.c.view();
    assert_eq!(
        view.lock_bootstrap(machine(2), &foreign),
        Err(LockError::NoNode)
    );
    assert!(view.lock_bootstrap(machine(1), &foreign).is_ok());
}

#[test]
fn changes_reach_other_nodes_and_forged_ones_do_not() {
    let (mut w, _, _, mut authority) = locked();
    let session = w.open(2).unwrap();
    w.read(session);
    let signer = secret(1);
    let mut updater = Updater::new(&authority, &signer);
    updater.add_key(trusted(2)).unwrap();
    let updates = updater.finish().unwrap();
    let forged =
        Aum::unsigned(Some(authority.head()), Change::AddKey(trusted(9))).signed_by(&secret(9));
    let before = w.stored.clone();
    for bad in [&[forged.clone()][..], &[updates[0].clone(), forged]] {
        let error = send(&mut w, 1, bad).unwrap_err();
        assert!(matches!(error, LockError::Refused(_)), "{error}");
        assert_eq!(w.stored, before);
    }
    authority.inform(&updates, 0).unwrap();
    assert_eq!(
        send(&mut w, 1, &updates).unwrap(),
        authority.head().to_string()
    );
    assert_eq!(w.read(session)[0].tka_info, info(&authority));
    assert_eq!(
        send(&mut w, 1, &updates).unwrap(),
        authority.head().to_string()
    );
    assert!(w.read(session).is_empty(), "nothing new was sent");

    // Node 2 starts from the genesis message.
    let view = w.c.view();
    let request = TkaBootstrapRequest {
        node_key: key(2),
        ..Default::default()
    };
    let response = view.lock_bootstrap(machine(2), &request).unwrap();
    let mut other = Authority::bootstrap(Aum::decode(&response.genesis_aum).unwrap(), 0).unwrap();
    let ours = other.offer();
    let request = TkaSyncOfferRequest {
        node_key: key(2),
        head: ours.head.to_string(),
        ancestors: ours.ancestors.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let offer = view.lock_sync_offer(machine(2), &request).unwrap();
    let missing: Vec<Aum> = offer
        .missing_aums
        .iter()
        .map(|aum| Aum::decode(&aum.0).unwrap())
        .collect();
    let theirs = SyncOffer {
        head: offer.head.parse().unwrap(),
        ancestors: offer
            .ancestors
            .iter()
            .map(|hash| hash.parse().unwrap())
            .collect(),
    };
    assert_eq!(other.missing(&theirs).unwrap(), []);
    other.inform(&missing, 0).unwrap();
    assert_eq!(other.head(), authority.head());
}

/// Without this, a node without a trusted key tries variants until one has a smaller hash.
#[test]
fn variants_of_a_message_in_its_signatures_are_refused() {
    let (mut w, _, _, authority) = locked();
    let message = Aum::unsigned(Some(authority.head()), Change::AddKey(trusted(2)));
    let (once, twice) = (
        message.clone().signed_by(&secret(1)),
        message.signed_by(&secret(1)).signed_by(&secret(1)),
    );
    send(&mut w, 1, std::slice::from_ref(&once)).unwrap();
    let before = w.stored.clone();
    let error = send(&mut w, 2, std::slice::from_ref(&twice)).unwrap_err();
    assert!(matches!(error, LockError::Refused(_)), "{error}");
    let error = send(&mut w, 2, &[once.clone(), twice]).unwrap_err();
    assert!(matches!(error, LockError::Refused(_)), "{error}");
    assert_eq!(w.stored, before);
    send(&mut w, 2, &[once]).unwrap();
}

#[test]
fn a_removed_key_cannot_fork_the_chain_below_its_removal() {
    let (mut w, _, _, mut authority) = locked();
    let genesis = authority.head();
    let add = Aum::unsigned(Some(genesis), Change::AddKey(trusted(2))).signed_by(&secret(1));
    let shared = Aum::unsigned(Some(add.hash()), Change::NoOp).signed_by(&secret(1));
    let remove = Change::RemoveKey(trusted(2).id().clone());
    let remove = Aum::unsigned(Some(shared.hash()), remove).signed_by(&secret(1));
    let chain = [add.clone(), shared.clone(), remove];
    authority.inform(&chain, 0).unwrap();
    send(&mut w, 1, &chain).unwrap();

    let takes_over = Change::RemoveKey(trusted(1).id().clone());
    let attacks = [
        Aum::unsigned(Some(add.hash()), takes_over).signed_by(&secret(2)),
        Aum::unsigned(Some(shared.hash()), Change::NoOp).signed_by(&secret(2)),
        // Two votes beat the one of the message that it imitates.
        shared.signed_by(&secret(2)),
    ];
    for attack in attacks {
        let error = send(&mut w, 2, &[attack]).unwrap_err();
        assert!(error.to_string().contains("was removed"), "{error}");
        assert_eq!(w.c.view().lock().unwrap().head(), authority.head());
    }
}

#[test]
fn rotation_does_not_replace_the_signature_of_another_node() {
    let (mut w, one, two, _) = locked();
    let nested = NodeKeySignature::decode(&direct(&w, one)).unwrap();
    let before = w.c.node(two).unwrap().key_signature.clone();
    let rotation = nested.rotated(key(2), &secret(1));
    let request = TkaSubmitSignatureRequest {
        node_key: key(1),
        signature: rotation.encode(),
        ..Default::default()
    };
    let error = w.c.lock_sign(machine(1), &request).unwrap_err();
    assert!(matches!(error, LockError::Refused(_)), "{error}");
    assert_eq!(w.c.node(two).unwrap().key_signature, before);
}

/// Nodes take the keys that a rotation replaces for void, whoever has them.
#[test]
fn rotation_that_names_the_key_of_another_machine_is_refused() {
    let (mut w, one, two, authority) = locked();
    let own = NodeKeySignature::decode(&direct(&w, one)).unwrap();
    let naming_two = own
        .rotated(key(2), &secret(1))
        .rotated(key(101), &secret(1));
    // Nodes verify it: only the server knows whose key it names.
    assert!(authority.authorize(key(101), &naming_two.encode()).is_ok());
    let auth = w.reusable("ann");
    let mut renewed = request(1, &auth);
    renewed.node_key = key(101);
    renewed.old_node_key = Some(key(1));
    renewed.nl_key = Some(secret(1).public());
    renewed.node_key_signature = naming_two.encode();
    let answer = w.answer(1, &renewed);
    assert!(answer.error.contains("another machine"), "{answer:?}");
    assert_eq!(w.c.node(one).unwrap().key, key(1));
    // Nor by the request that hands in a signature, for a key that it has already.
    let before = w.c.node(one).unwrap().key_signature.clone();
    let own = NodeKeySignature::decode(&direct(&w, one)).unwrap();
    let request = TkaSubmitSignatureRequest {
        node_key: key(1),
        signature: own
            .rotated(key(2), &secret(1))
            .rotated(key(1), &secret(1))
            .encode(),
        ..Default::default()
    };
    let error = w.c.lock_sign(machine(1), &request).unwrap_err();
    assert!(error.to_string().contains("another machine"), "{error}");
    assert_eq!(w.c.node(one).unwrap().key_signature, before);
    assert_eq!(w.c.node(two).unwrap().key, key(2));
}

#[test]
fn new_node_is_signed_by_a_trusted_node_only() {
    let (mut w, _, two, authority) = locked();
    let auth = w.reusable("ann");
    let three = w.join(3, &auth);
    assert!(w.c.node(three).unwrap().key_signature.is_empty());
    let session = w.open(2).unwrap();
    w.read(session);
    let submit = |w: &mut World, signature: Vec<u8>| {
        let request = TkaSubmitSignatureRequest {
            node_key: key(2),
            signature,
            ..Default::default()
        };
        let result = w.c.lock_sign(machine(2), &request);
        w.settle();
        result
    };
    let by_stranger = NodeKeySignature::direct(key(3), None, &secret(9)).encode();
    let of_nobody = NodeKeySignature::direct(key(77), None, &secret(1)).encode();
    for bad in [by_stranger, of_nobody, Vec::new(), vec![0xa0]] {
        let error = submit(&mut w, bad).unwrap_err();
        assert!(matches!(error, LockError::Refused(_)), "{error}");
    }
    let signature = NodeKeySignature::direct(key(3), None, &secret(1)).encode();
    submit(&mut w, signature.clone()).unwrap();
    w.read(session);
    assert_eq!(w.clients[&session].peers[&three].key_signature, signature);
    assert!(authority.authorize(key(3), &signature).is_ok());
    let request = TkaSignaturesUsingKeyRequest {
        node_key: key(2),
        key_id: secret(1).public().as_bytes().to_vec(),
        ..Default::default()
    };
    let found =
        w.c.view()
            .lock_signatures_using(machine(2), &request)
            .unwrap();
    assert_eq!(found.signatures.len(), 3);
    assert!(found.signatures.contains(&Encoded(direct(&w, two))));
}

#[test]
fn node_with_a_new_key_is_asked_to_rotate_its_signature() {
    let (mut w, one, _, authority) = locked();
    let old = w.c.node(one).unwrap().key_signature.clone();
    let auth = w.reusable("ann");
    let mut renewed = request(1, &auth);
    renewed.node_key = key(101);
    renewed.old_node_key = Some(key(1));
    // A client without tailnet lock is not asked.
    let mut plain = renewed.clone();
    plain.node_key = key(102);
    plain.old_node_key = Some(key(2));
    renewed.nl_key = Some(secret(1).public());
    let response = w.answer(1, &renewed);
    assert_eq!(response.node_key_signature, old);
    assert!(w.c.node_by_key(&key(101)).is_none());
    let rotated = NodeKeySignature::decode(&old)
        .unwrap()
        .rotated(key(101), &secret(1))
        .encode();
    renewed.node_key_signature = rotated.clone();
    let response = w.answer(1, &renewed);
    assert!(response.machine_authorized && response.node_key_signature.is_empty());
    let node = w.c.node(one).unwrap();
    assert_eq!((node.key, &node.key_signature), (key(101), &rotated));
    assert!(authority.authorize(key(101), &rotated).is_ok());
    assert!(w.answer(2, &plain).node_key_signature.is_empty());
}

#[test]
fn secret_turns_the_lock_off_and_nodes_that_were_away_get_it() {
    let (mut w, _, two, _) = locked();
    let session = w.open(2).unwrap();
    w.read(session);
    let disable = |w: &mut World, secret: &DisablementSecret| {
        let request = TkaDisableRequest {
            node_key: key(2),
            disablement_secret: secret.expose().to_vec(),
            ..Default::default()
        };
        let result = w.c.lock_disable(machine(2), &request, secret.value());
        w.settle();
        result
    };
    let wrong = DisablementSecret::from_bytes(b"another");
    assert_eq!(disable(&mut w, &wrong), Err(LockError::WrongSecret));
    assert!(w.c.view().lock().is_ok());
    disable(&mut w, &disablement()).unwrap();
    let off = Some(TkaInfo {
        head: String::new(),
        disabled: true,
    });
    assert_eq!(w.read(session)[0].tka_info, off);
    assert_eq!(w.fresh(two).tka_info, off);
    assert!(w.stored.lock_messages.is_empty());
    let request = TkaBootstrapRequest {
        node_key: key(1),
        ..Default::default()
    };
    let response = w.c.view().lock_bootstrap(machine(1), &request).unwrap();
    assert!(response.genesis_aum.is_empty());
    assert_eq!(response.disablement_secret, disablement().expose());
    // It may be turned on again.
    let (_, genesis) = genesis();
    let nodes = begin(&mut w, 1, &genesis).unwrap();
    finish(&mut w, 1, &nodes).unwrap();
    assert!(w.c.view().lock().is_ok());
}

#[test]
fn restart_keeps_the_chain_and_a_lost_genesis_never_turns_it_off() {
    let (mut w, _, two, mut authority) = locked();
    let signer = secret(1);
    let mut updater = Updater::new(&authority, &signer);
    updater.add_key(trusted(2)).unwrap();
    let updates = updater.finish().unwrap();
    authority.inform(&updates, 0).unwrap();
    send(&mut w, 1, &updates).unwrap();
    let mut stored = w.stored.clone();
    let again = World::with(stored.clone());
    assert_eq!(again.c.snapshot(), stored);
    assert_eq!(again.fresh(two).tka_info, info(&authority));

    let Some(Turned::On { genesis }) = stored.lock.as_ref().map(|lock| lock.turned.clone()) else {
        panic!("the lock is on");
    };
    stored.lock_messages.remove(&genesis);
    let mut damaged = World::with(stored);
    let on = Some(TkaInfo::default());
    assert_eq!(damaged.fresh(two).tka_info, on);
    assert_eq!(send(&mut damaged, 1, &updates), Err(LockError::Damaged));
    assert!(damaged.c.open_stream(machine(2), &map_request(2)).is_ok());
}
