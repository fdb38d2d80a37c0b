//! Bytes of an identity provider and of browsers: the document, the keys, tokens, claims,
//! callbacks. No token is accepted, for the key is not one that the input can sign with.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_oidc::id_token::{Expected, check};
use warren_oidc::{
    Account, Callback, Claims, Discovery, KeyEnd, KeySet, Provider, Rules, TokenAnswer,
};

/// A key whose private half is not known to the input (RFC 8037 appendix A.2).
const KEYS: &[u8] = br#"{"keys": [{"kty": "OKP", "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fuzz_target!(|bytes: &[u8]| {
    let provider = Provider {
        name: "x".to_owned(),
        title: "X".to_owned(),
        issuer: "https://x.example".to_owned(),
        client_id: "warren".to_owned(),
        client_secret: None,
        scopes: vec!["openid".to_owned()],
        extra_parameters: BTreeMap::new(),
        groups_claim: Some("groups".to_owned()),
        rules: Rules::default(),
        key_end: KeyEnd::Token,
    };
    let _ = Discovery::parse(bytes, &provider);
    let _ = TokenAnswer::parse(200, bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let expected = Expected {
            issuer: &provider.issuer,
            client_id: &provider.client_id,
            nonce: "n",
            access_token: Some("t"),
            wall: Duration::from_secs(1_780_000_000),
        };
        let known = KeySet::parse(KEYS).expect("written well");
        assert!(check(text, &known, &expected).is_err(), "forged");
        if let Ok(given) = KeySet::parse(bytes) {
            let _ = check(text, &given, &expected);
        }
        if let Some(callback) = Callback::parse(text) {
            let shown = callback.result.map_err(|error| error.to_string());
            assert!(shown.err().is_none_or(|text| !text.contains(char::is_control)));
        }
    }
    if let Some(claims) = Claims::of_userinfo(bytes, "s")
        && let Ok(account) = Account::admitted(&provider, &claims, Some(&claims))
    {
        assert!(account.groups.len() <= 1000);
        if let Some(email) = &account.email {
            let parts: Vec<&str> = email.split('@').collect();
            assert_eq!(parts.len(), 2, "{email}");
        }
    }
});
