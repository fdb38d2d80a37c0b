//! The ChaCha20-Poly1305 vectors of Project Wycheproof, against the library and
//! against our own kernel. See `tests/wycheproof/README.md` for their origin.
//!
//! WireGuard's nonces begin with four zero bytes and it authenticates no
//! associated data, so none of the vectors is a WireGuard packet as it is. The
//! library takes each vector whole. The kernel takes it in parts: the key stream
//! with the first word of the vector's nonce, and the tag over the vector's own
//! blocks, where the edge cases of Poly1305 are.

use aws_lc_rs::aead::{Aad, Nonce};
use data_encoding::HEXLOWER;
use serde_json::Value;
use warren_keys::noise::MessageKey;
use warren_wire::wireguard::TAG_LEN;

use super::Cipher;
use crate::Aead;

/// One test vector.
pub(super) struct Vector {
    pub(super) id: u64,
    pub(super) key: MessageKey,
    pub(super) nonce: Vec<u8>,
    pub(super) aad: Vec<u8>,
    pub(super) message: Vec<u8>,
    pub(super) ciphertext: Vec<u8>,
    pub(super) tag: [u8; TAG_LEN],
    pub(super) valid: bool,
}

/// All vectors of the file.
pub(super) fn vectors() -> Vec<Vector> {
    let text = include_str!("../../tests/wycheproof/chacha20_poly1305_test.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let groups = file["testGroups"].as_array().unwrap();
    let tests = groups
        .iter()
        .flat_map(|group| group["tests"].as_array().unwrap());
    let vectors: Vec<_> = tests.map(vector).collect();
    assert_eq!(
        vectors.len() as u64,
        file["numberOfTests"].as_u64().unwrap()
    );
    vectors
}

fn vector(test: &Value) -> Vector {
    let bytes = |field: &str| {
        HEXLOWER
            .decode(test[field].as_str().unwrap().as_bytes())
            .unwrap()
    };
    Vector {
        id: test["tcId"].as_u64().unwrap(),
        key: MessageKey::new(bytes("key").try_into().unwrap()),
        nonce: bytes("iv"),
        aad: bytes("aad"),
        message: bytes("msg"),
        ciphertext: bytes("ct"),
        // Vectors whose nonce has an invalid length come without a tag.
        tag: bytes("tag").try_into().unwrap_or_default(),
        valid: test["result"] == "valid",
    }
}

#[test]
fn library_passes_all_vectors() {
    let mut sealed_and_opened = 0;
    for vector in vectors() {
        let Vector { id, valid, .. } = vector;
        let cipher = Cipher::new(&vector.key, Aead::Portable);
        let nonce = || Nonce::try_assume_unique_for_key(&vector.nonce);
        if nonce().is_err() {
            assert!(!valid, "vector {id}: the length of its nonce is valid");
            continue;
        }
        let sealed = [&vector.ciphertext[..], &vector.tag].concat();
        let mut opened = sealed.clone();
        let content =
            cipher
                .library
                .open_in_place(nonce().unwrap(), Aad::from(&vector.aad), &mut opened);
        match content {
            Ok(content) => assert!(valid && content == vector.message, "vector {id}"),
            Err(_) => assert!(!valid, "vector {id} does not open"),
        }
        if valid {
            let mut again = vector.message.clone();
            let key = &cipher.library;
            key.seal_in_place_append_tag(nonce().unwrap(), Aad::from(&vector.aad), &mut again)
                .unwrap();
            assert_eq!(again, sealed, "vector {id}");
            sealed_and_opened += 1;
        }
    }
    assert!(
        sealed_and_opened > 200,
        "only {sealed_and_opened} vectors are valid"
    );
}
