//! Seeds of the targets of the tailnet lock: `lock_messages`, `lock_chain`,
//! `lock_signatures`.

use std::io;
use std::path::Path;

use warren_fuzz::{lock_secret, locked, node};
use warren_lock::{Aum, Change, Meta, NodeKeySignature, TrustedKey, WrappedAuthKey};

use crate::Seeds;

/// Writes the seeds of all three.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    messages(seeds)?;
    chain(seeds)?;
    signatures(seeds)
}

/// Messages, signatures and an auth key.
fn messages(seeds: &Path) -> io::Result<()> {
    let messages = Seeds::new(seeds, "lock_messages");
    let authority = locked();
    let genesis = authority.log().next().expect("a genesis message");
    messages.put("genesis", genesis.as_bytes())?;
    let meta = Meta::new([("purpose", "pre-auth key"), ("a", "b")]).expect("in range");
    let key = TrustedKey::new(lock_secret(2).public(), 3, meta).expect("in range");
    let add = Aum::unsigned(Some(genesis.hash()), Change::AddKey(key)).signed_by(&lock_secret(0));
    messages.put("add-key", add.as_bytes())?;
    let public = Some(lock_secret(3).public());
    let direct = NodeKeySignature::direct(node(1).public(), public, &lock_secret(0));
    let rotation = direct.rotated(node(2).public(), &lock_secret(3));
    messages.put("rotation", &rotation.encode())?;
    let wrapped = WrappedAuthKey {
        auth_key: "tskey-auth-a".to_owned(),
        credential: NodeKeySignature::credential(lock_secret(4).public(), &lock_secret(0)),
        delegate: lock_secret(4),
    };
    messages.put("auth-key", wrapped.to_text().as_bytes())
}

/// Chains that fork, and keys that are revoked.
fn chain(seeds: &Path) -> io::Result<()> {
    let chain = Seeds::new(seeds, "lock_chain");
    // The last bit of the argument chooses the node, the others key and votes.
    chain.steps(
        "fork",
        &[
            (1, 24, &[0]),
            (0, 0, &[1]),
            (2, 3, &[0]),
            (3, 1, &[0]),
            (7, 0, &[1]),
        ],
    )?;
    chain.steps(
        "revoked",
        &[(1, 2, &[0]), (0, 2, &[0]), (6, 0, &[1]), (5, 1, &[0, 1])],
    )
}

/// Signatures that rotate keys, and a credential.
fn signatures(seeds: &Path) -> io::Result<()> {
    let signatures = Seeds::new(seeds, "lock_signatures");
    signatures.steps(
        "rotations",
        &[(0, 1, &[0, 3]), (2, 2, &[3]), (3, 0, &[9, 1]), (2, 3, &[3])],
    )?;
    signatures.steps("credential", &[(1, 1, &[1, 4]), (2, 2, &[4]), (2, 3, &[5])])
}
