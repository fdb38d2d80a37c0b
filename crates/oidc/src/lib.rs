//! OpenID Connect for a relying party, without IO.
//!
//! A login at a provider (OpenID Connect Core 1.0, authorization code flow) has these
//! steps; each has a module, and the program does the requests between them:
//!
//! 1. [`discovery`]: the provider's document names its addresses and what it supports;
//! 2. [`request`]: the browser is sent to the provider with `state`, `nonce` and a PKCE
//!    challenge, and comes back with a code; the code is exchanged for tokens;
//! 3. [`keys`] and [`id_token`]: the ID token is checked, signature first;
//! 4. [`account`]: its claims and those of the userinfo endpoint become an [`Account`],
//!    if the rules of the configuration allow it.
//!
//! A person is the pair of issuer and subject, compared byte by byte. An e-mail address
//! counts only if the provider says that it is verified, unless the configuration says
//! otherwise.
//!
//! The crate never opens a connection, never reads a clock, and draws randomness only
//! from the [`warren_keys::Entropy`] it is given. Signatures are verified by
//! `jsonwebtoken` with aws-lc-rs, the one provider of cryptography in Warren; no part of a
//! token is believed before that.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod account;
pub mod discovery;
pub mod id_token;
pub mod keys;
pub mod provider;
pub mod request;

#[cfg(test)]
mod tests;

pub use account::{Account, AccountError};
pub use discovery::{Discovery, DiscoveryError};
pub use id_token::{Claims, TokenError};
pub use keys::{KeySet, KeySetError};
pub use provider::{KeyEnd, Provider, ProviderError, Rules, Secret};
pub use request::{Callback, CallbackError, Exchange, LoginSecrets, TokenAnswer, TokenAnswerError};
