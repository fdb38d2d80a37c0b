//! `warren lock`: tailnet lock, with the commands, arguments and texts of the official
//! client.

mod shown;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{HEXLOWER_PERMISSIVE, HEXUPPER};
use warren_control_types::Encoded;
use warren_dial::SystemEntropy;
use warren_keys::{LockPublic, NodePublic};
use warren_local_api::client::{Client, ClientError};
use warren_local_api::endpoints::{
    GetAutosign, GetLockLog, GetLockStatus, GetStatus, LockAffected, LockCosign, LockDisable,
    LockDisableHere, LockInit, LockModify, LockRevoke, LockSign, LockSubmit, LockWrap, SetAutosign,
};
use warren_local_api::tailnet_lock::GivenKey;
use warren_lock::{AumHash, DisablementSecret, KeyId, LockSecret, NodeKeySignature};

use super::args::Given;
use super::{Failure, Io, shown as safe};

/// The kind of keys, Ed25519.
const KIND: u8 = 1;
/// The beginnings of auth keys, of the hosted service and of `warren-control`. A number or
/// stable id follows, and the secret part behind it.
const AUTH_KEYS: [&str; 2] = ["tskey-auth-", "wk-"];
/// The most disablement secrets of a lock.
const MAX_SECRETS: usize = warren_lock::MAX_DISABLEMENT_VALUES;

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let Some((name, given)) = given.0.subcommand() else {
        return status(false, client, io).await;
    };
    let given = Given(given);
    match name {
        "init" => init(&given, client, io).await,
        "status" => status(given.is("json"), client, io).await,
        "add" => add(&given, client).await,
        "remove" => remove(&given, client, io).await,
        "sign" => sign(&given, client, io).await,
        "disable" => disable(&given, client).await,
        "disablement-kdf" => disablement_value(&given, io),
        "log" => log(&given, client, io).await,
        "local-disable" => Ok(client.call(LockDisableHere {}).await?),
        "revoke-keys" => revoke_keys(&given, client, io).await,
        "autosign" => autosign(&given, client, io).await,
        other => Err(Failure::usage(format_args!("command {other:?} not found"))),
    }
}

// ---- arguments ----

fn lock_key(text: &str) -> Option<LockPublic> {
    let digits = text
        .strip_prefix("tlpub:")
        .or_else(|| text.strip_prefix(LockPublic::PREFIX))?;
    format!("{}{digits}", LockPublic::PREFIX).parse().ok()
}

fn hex(text: &str) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()
}

/// A trusted key: `tlpub:`, hexadecimal digits, and its votes behind a question mark.
fn trusted_key(text: &str) -> Result<GivenKey, Failure> {
    let (key, votes) = match text.split_once('?') {
        None => (text, Some(1)),
        Some((key, votes)) => (key, votes.parse().ok()),
    };
    let (Some(public), Some(votes)) = (lock_key(key), votes) else {
        return Err(Failure::failed(format_args!(
            "{text:?} is no tailnet lock key; expected tlpub: and 64 hexadecimal digits, and \
             ?VOTES behind them if it has other votes than 1"
        )));
    };
    Ok(GivenKey {
        kind: KIND,
        votes,
        public: Encoded(public.as_bytes().to_vec()),
        ..GivenKey::default()
    })
}

fn trusted_keys(words: &[&str]) -> Result<Vec<GivenKey>, Failure> {
    words.iter().map(|word| trusted_key(word)).collect()
}

/// The bytes of `disablement:HEX` or `disablement-secret:HEX`; `None` for other words.
fn disablement(word: &str) -> Option<Result<Vec<u8>, Failure>> {
    let digits = ["disablement:", "disablement-secret:"]
        .into_iter()
        .find_map(|prefix| word.strip_prefix(prefix))?;
    Some(hex(digits).ok_or_else(|| {
        Failure::failed("a disablement value or secret consists of hexadecimal digits")
    }))
}

// ---- commands ----

async fn init(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let status = client.call(GetLockStatus).await?;
    if status.enabled {
        return Err(Failure::failed("tailnet lock is already enabled"));
    }
    let words = given.all("KEY");
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for word in &words {
        match disablement(word) {
            Some(value) => values.push(value?),
            None => keys.push(trusted_key(word)?),
        }
    }
    let own = status.public_key.as_bytes();
    if keys.iter().all(|key| key.public.0 != own) {
        return Err(Failure::failed(
            "the tailnet lock key of the current node must be one of the trusted keys during \
             initialization; `warren lock` shows it",
        ));
    }
    let text = given.text("gen-disablements").unwrap_or_default();
    let count: usize = match text.parse() {
        Ok(count) if count <= MAX_SECRETS => count,
        _ => {
            return Err(Failure::usage(format_args!(
                "--gen-disablements is a number up to {MAX_SECRETS}"
            )));
        }
    };
    let for_support = given.is("gen-disablement-for-support");
    io.say("You are initializing tailnet lock with the following trusted signing keys:")?;
    for key in &keys {
        io.say(format_args!(
            " - tlpub:{} (25519 key)",
            shown::hex(&key.public.0)
        ))?;
    }
    io.say("")?;
    if !given.is("confirm") {
        io.say(format_args!(
            "{count} disablement secrets will be generated."
        ))?;
        if for_support {
            io.say("A disablement secret will be generated and transmitted to the coordination server.")?;
        }
        io.say("\nIf this is correct, please re-run this command with the --confirm flag:")?;
        let support = if for_support {
            "--gen-disablement-for-support "
        } else {
            ""
        };
        return io.say(format_args!(
            "\twarren lock init --confirm --gen-disablements {count} {support}{}",
            words.join(" ")
        ));
    }
    let mut message = format!(
        "{count} disablement secrets have been generated and are printed below. Take note of them \
         now, they WILL NOT be shown again.\n"
    );
    for _ in 0..count {
        let secret = DisablementSecret::generate(&mut SystemEntropy);
        values.push(secret.value().as_bytes().to_vec());
        message.push_str(&format!(
            "\tdisablement-secret:{}\n",
            HEXUPPER.encode(secret.expose())
        ));
    }
    let mut support = Vec::new();
    if for_support {
        let secret = DisablementSecret::generate(&mut SystemEntropy);
        values.push(secret.value().as_bytes().to_vec());
        support = secret.expose().to_vec();
        message.push_str(
            "A disablement secret has been generated and transmitted to the coordination server.\n",
        );
    }
    let request = LockInit {
        keys,
        disablement_values: values.into_iter().map(Encoded).collect(),
        support_disablement: Encoded(support),
    };
    client.call(request).await?;
    io.say(message.trim_end())?;
    io.say("Initialization complete.")
}

async fn status(json: bool, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let status = client.call(GetLockStatus).await?;
    if json {
        return io.say_json(&shown::status_json(&status));
    }
    io.say(shown::status_text(&safe(&status)?).trim_end_matches('\n'))
}

/// Refuses commands that only make sense while the lock is on.
async fn require_lock(
    client: &Client,
) -> Result<warren_local_api::tailnet_lock::LockStatus, Failure> {
    let status = client.call(GetLockStatus).await?;
    match status.enabled {
        true => Ok(status),
        false => Err(Failure::failed("tailnet lock is not enabled")),
    }
}

async fn add(given: &Given<'_>, client: &Client) -> Result<(), Failure> {
    let add_keys = trusted_keys(&given.all("KEY"))?;
    require_lock(client).await?;
    let request = LockModify {
        add_keys,
        ..LockModify::default()
    };
    Ok(client.call(request).await?)
}

async fn remove(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let remove_keys = trusted_keys(&given.all("KEY"))?;
    let status = require_lock(client).await?;
    if status.trusted_keys.len() == 1 {
        return Err(Failure::failed(
            "cannot remove the last trusted signing key; use 'warren lock disable' to disable \
             tailnet lock instead, or add another signing key before removing one",
        ));
    }
    if given.switch("re-sign").unwrap_or(true) {
        let own = status.public_key.as_bytes();
        if remove_keys.iter().any(|key| key.public.0 == own) {
            return Err(Failure::failed(
                "cannot remove local trusted signing key while resigning; run command on a \
                 different node or with --re-sign=false",
            ));
        }
        for key in &remove_keys {
            sign_again(&key.public.0, client).await?;
        }
    } else if !confirmed(io)? {
        io.note("aborting removal of signing key(s)");
        return Ok(());
    }
    let request = LockModify {
        remove_keys,
        ..LockModify::default()
    };
    Ok(client.call(request).await?)
}

/// Signs all nodes again that a trusted key signed, with the key of this node.
async fn sign_again(key: &[u8], client: &Client) -> Result<(), Failure> {
    for signature in client.call(LockAffected(key.to_vec())).await? {
        let signature = NodeKeySignature::decode(&signature.0).map_err(Failure::failed)?;
        // The daemon has verified the signature, so it names a node key.
        let node_key = signature.node_key().unwrap_or_default();
        let rotation = signature.wrapping_key();
        let request = LockSign {
            node_key,
            rotation_public: Encoded(
                rotation
                    .map(|key| key.as_bytes().to_vec())
                    .unwrap_or_default(),
            ),
        };
        client.call(request).await?;
    }
    Ok(())
}

/// Asks a person at a terminal; scripts have decided.
fn confirmed(io: &mut Io) -> Result<bool, Failure> {
    if !std::io::stdout().is_terminal() {
        return Ok(true);
    }
    io.note(
        "Nodes that only these keys signed are locked out of the network until another key \
         signs them.",
    );
    write!(
        io.err,
        "Are you sure you want to remove the signing key(s)? [y/N] "
    )
    .and_then(|()| io.err.flush())
    .map_err(Failure::output)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(Failure::failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The words of a command, where `file:PATH` stands for the content of a file.
fn from_files(words: Vec<&str>) -> Result<Vec<String>, Failure> {
    let read = |word: &str| match word.strip_prefix("file:") {
        None => Ok(word.to_owned()),
        Some(path) => std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .map_err(|error| Failure::failed(format_args!("cannot read {path}: {error}"))),
    };
    words.into_iter().map(read).collect()
}

async fn sign(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let words = from_files(given.all("KEY"))?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (key, rotation) = match words.as_slice() {
        [key] if AUTH_KEYS.iter().any(|prefix| key.starts_with(prefix)) => {
            return wrap(key, client, io).await;
        }
        [key] => (key, None),
        [key, rotation] => {
            let rotation = lock_key(rotation).ok_or_else(|| {
                Failure::failed(
                    "decoding rotation-key: expected tlpub: and 64 hexadecimal digits, as \
                     `warren lock` shows it on that node",
                )
            })?;
            (key, Some(rotation))
        }
        _ => {
            return Err(Failure::usage(
                "give a node key and its rotation key, or an auth key",
            ));
        }
    };
    let node_key: NodePublic = key
        .parse()
        .map_err(|error| Failure::failed(format_args!("decoding node-key: {error}")))?;
    let rotation = rotation
        .map(|key| key.as_bytes().to_vec())
        .unwrap_or_default();
    let request = LockSign {
        node_key,
        rotation_public: Encoded(rotation),
    };
    Ok(client.call(request).await?)
}

/// Shows or changes the tags whose nodes are signed without a person.
async fn autosign(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let tags: BTreeSet<String> = given.all("tag").into_iter().map(str::to_owned).collect();
    match (tags.is_empty(), given.is("off")) {
        (false, true) => return Err(Failure::usage("give either --tag or --off")),
        (true, false) => {
            let tags = safe(&client.call(GetAutosign).await?)?.tags;
            let tags: Vec<String> = tags.into_iter().collect();
            return match tags.is_empty() {
                true => io.say("This node signs no other nodes by itself."),
                false => io.say(format_args!(
                    "This node signs nodes by itself that have none but these tags: {}",
                    tags.join(", ")
                )),
            };
        }
        (false, false) => io.note(
            "The coordination server decides about tags: if it is stolen, it can add nodes with \
             these tags.",
        ),
        (true, true) => {}
    }
    Ok(client.call(SetAutosign { tags }).await?)
}

/// Gives an auth key a credential, made by a trusted key of its own, which is added.
async fn wrap(auth_key: &str, client: &Client, io: &mut Io) -> Result<(), Failure> {
    if auth_key.contains("--TL") {
        return Err(Failure::failed("Error: provided key was already wrapped"));
    }
    let status = client.call(GetStatus { peers: false }).await?;
    let trusted = LockSecret::generate(&mut SystemEntropy);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let meta = |name: &str, value: String| (name.to_owned(), value);
    let mut metadata = vec![
        meta("purpose", "pre-auth key".to_owned()),
        meta("wrapper_stableid", status.self_status.id),
        meta("wrapper_createtime", now.as_secs().to_string()),
    ];
    // The part in front of the secret one.
    let rest = AUTH_KEYS
        .iter()
        .find_map(|prefix| auth_key.strip_prefix(prefix));
    let id = rest.and_then(|rest| rest.split_once('-'));
    if let Some((id, _)) = id.filter(|(id, _)| !id.is_empty()) {
        metadata.push(meta("authkey_stableid", id.to_owned()));
    }
    let request = LockWrap {
        auth_key: auth_key.to_owned(),
        lock_key: trusted.to_text().to_string(),
    };
    let wrapped = client.call(request).await?;
    let request = LockModify {
        add_keys: vec![GivenKey {
            kind: KIND,
            votes: 1,
            public: Encoded(trusted.public().as_bytes().to_vec()),
            meta: metadata.into_iter().collect(),
        }],
        ..LockModify::default()
    };
    client.call(request).await?;
    io.say(wrapped)
}

async fn disable(given: &Given<'_>, client: &Client) -> Result<(), Failure> {
    let word = given.text("SECRET").unwrap_or_default();
    let secret = disablement(word)
        .ok_or_else(|| Failure::failed("expected disablement-secret: and hexadecimal digits"))??;
    Ok(client.call(LockDisable(secret)).await?)
}

fn disablement_value(given: &Given<'_>, io: &mut Io) -> Result<(), Failure> {
    let secret = hex(given.text("HEX").unwrap_or_default())
        .ok_or_else(|| Failure::failed("the secret consists of hexadecimal digits"))?;
    let value = DisablementSecret::from_bytes(&secret).value();
    io.say(format_args!("disablement:{}", shown::hex(value.as_bytes())))
}

async fn log(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    require_lock(client).await?;
    let limit = given.text("limit").unwrap_or_default();
    let limit = limit
        .parse()
        .map_err(|_| Failure::usage("--limit is a number"))?;
    let updates = client.call(GetLockLog { limit }).await?;
    if given.is("json") {
        return io.say_json(&shown::log_json(&updates).map_err(Failure::failed)?);
    }
    for update in &updates {
        io.say(shown::update_text(update).map_err(Failure::failed)?)?;
    }
    Ok(())
}

async fn revoke_keys(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let words = given.all("KEY");
    if given.is("cosign") || given.is("finish") {
        let message = match words.as_slice() {
            [word] => hex(word),
            _ => None,
        };
        let message = message.ok_or_else(|| {
            Failure::usage("give the hexadecimal digits that the command before printed")
        })?;
        return revoke_keys_together(given, message, client, io).await;
    }
    let keys = trusted_keys(&words)?;
    let fork_from = given.text("fork-from").unwrap_or_default();
    let fork_from = match <[u8; 32]>::try_from(hex(fork_from).unwrap_or_default()) {
        Ok(hash) => AumHash::from_bytes(hash).to_string(),
        Err(_) => fork_from.to_owned(),
    };
    let request = LockRevoke {
        keys: keys.into_iter().map(|key| key.public).collect(),
        fork_from,
    };
    let message = client
        .call(request)
        .await
        .map_err(|error| with_words("generation of recovery AUM failed", error))?;
    io.say(format_args!(
        "Run the following command on another machine with a trusted tailnet lock key:\n\
         \twarren lock revoke-keys --cosign {}",
        HEXUPPER.encode(&message)
    ))
}

async fn revoke_keys_together(
    given: &Given<'_>,
    message: Vec<u8>,
    client: &Client,
    io: &mut Io,
) -> Result<(), Failure> {
    if given.is("cosign") {
        let signed = client
            .call(LockCosign(message.clone()))
            .await
            .map_err(|error| with_words("co-signing recovery AUM failed", error))?;
        let signed = HEXUPPER.encode(&signed);
        io.say(format_args!(
            "Co-signing completed successfully.\n\n\
             To accumulate an additional signature, run the following command on another machine \
             with a trusted tailnet lock key:\n\twarren lock revoke-keys --cosign {signed}\n\n\
             Alternatively if you are done with co-signing, complete recovery by running the \
             following command:\n\twarren lock revoke-keys --finish {signed}"
        ))?;
    }
    if given.is("finish") {
        client
            .call(LockSubmit(message))
            .await
            .map_err(|error| with_words("submitting recovery AUM failed", error))?;
        io.say("Recovery completed.")?;
    }
    Ok(())
}

fn with_words(words: &str, error: ClientError) -> Failure {
    match Failure::from(error) {
        Failure::Failed(text) => Failure::Failed(format!("{words}: {text}")),
        usage => usage,
    }
}

/// The identity of a key in the form of command lines.
fn key_text(bytes: &[u8]) -> String {
    <[u8; 32]>::try_from(bytes).map_or_else(
        |_| format!("tlpub:{}", shown::hex(bytes)),
        |bytes| KeyId::from(LockPublic::from_bytes(bytes)).to_string(),
    )
}
