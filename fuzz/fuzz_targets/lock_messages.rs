//! Bytes of a server, a peer or a disk as messages of tailnet lock, as files of them, as
//! signatures of node keys, and as wrapped auth keys.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_fuzz::lock_secret;
use warren_keys::NodePublic;
use warren_lock::{Aum, Authority, NodeKeySignature, StoredAum, WrappedAuthKey};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(aum) = Aum::decode(bytes) {
        assert_eq!(aum.as_bytes(), bytes, "two encodings of one message");
        let more = aum.signed_by(&lock_secret(1));
        assert_eq!(more.signing_digest(), aum.signing_digest());
        let again = Aum::decode(more.as_bytes());
        // One more signature may exceed the limit of the array.
        assert!(again.is_err() || again.as_ref() == Ok(&more));
        assert!(aum.signatures().len() > 4000 || again.is_ok());
        if let Ok(authority) = Authority::bootstrap(aum, 0) {
            assert!(authority.state().keys().len() > 0);
        }
    }
    if let Ok(Some(stored)) = StoredAum::decode(bytes) {
        let read = StoredAum::decode(&stored.encode()).ok().flatten();
        let read = read.expect("a file is read back");
        assert_eq!((read.aum, read.stored_at), (stored.aum, stored.stored_at));
    }
    if let Ok(signature) = NodeKeySignature::decode(bytes) {
        assert_eq!(signature.encode(), bytes, "two encodings of one signature");
        let key = NodePublic::from_bytes([7; 32]);
        let rotated = signature.rotated(key, &lock_secret(1)).encode();
        // A credential or direct signature may nest anything, as deep as can be read.
        if let Ok(read) = NodeKeySignature::decode(&rotated) {
            assert_eq!(read.node_key(), Some(key));
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(wrapped) = WrappedAuthKey::parse(text)
    {
        assert_eq!(*wrapped.to_text(), text);
    }
});
