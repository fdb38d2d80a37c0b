//! The commands of tailnet lock: requests of local programs become requests to the
//! coordination server. Their content is made and checked by
//! [`LockCommands`](warren_node_core::node::LockCommands).

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_control_types::{
    Encoded, TkaInitBeginResponse, TkaSignaturesUsingKeyResponse, TkaSyncSendResponse,
};
use warren_dial::SystemEntropy;
use warren_dial::control::ControlClient;
use warren_keys::LockPublic;
use warren_lock::{
    Aum, AumHash, DisablementSecret, DisablementValue, KeyId, LockSecret, Meta, TrustedKey,
};
use warren_node_core::node::{Revocation, check_head};

use super::NodeHandle;
use crate::localapi::endpoint::Handler;
use crate::localapi::endpoints::{
    GetAutosign, GetLockLog, GetLockStatus, LockAffected, LockCosign, LockDisable, LockDisableHere,
    LockInit, LockModify, LockRevoke, LockSign, LockSubmit, LockWrap, SetAutosign,
};
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::tailnet_lock::{AutosignTags, GivenKey, LockStatus, LockUpdate};

/// The kind of keys, Ed25519.
const KIND: u8 = 1;

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::Failed(error.to_string())
}

/// The error of a request whose content cannot be used.
fn refused(error: impl std::fmt::Display) -> ApiError {
    ApiError::Refused(error.to_string())
}

/// The same error with words before it, as scripts know it.
fn prefixed(words: &'static str) -> impl Fn(ApiError) -> ApiError {
    move |error| ApiError::from_status(error.status(), format!("{words}: {error}"))
}

fn trusted_key(given: GivenKey) -> Reply<TrustedKey> {
    let public: Option<[u8; 32]> = given.public.0.try_into().ok();
    let (Some(public), KIND) = (public, given.kind) else {
        return Err(refused("a trusted key is an Ed25519 key of 32 bytes"));
    };
    let votes = u16::try_from(given.votes).unwrap_or(u16::MAX);
    let meta = Meta::new(given.meta).map_err(refused)?;
    TrustedKey::new(LockPublic::from_bytes(public), votes, meta).map_err(refused)
}

fn key_id(bytes: &[u8]) -> Reply<KeyId> {
    let public: [u8; 32] = bytes
        .try_into()
        .map_err(|_| refused("a trusted key has 32 bytes"))?;
    Ok(LockPublic::from_bytes(public).into())
}

fn revocation(bytes: &[u8]) -> Reply<Revocation> {
    Aum::decode(bytes)
        .map(Revocation)
        .map_err(|error| ApiError::Refused(format!("decoding AUM: {error}")))
}

/// Sends a request, and reads the answer.
async fn ask<A: DeserializeOwned>(
    client: &ControlClient,
    subject: &str,
    request: &impl Serialize,
) -> Reply<A> {
    client.tailnet_lock(subject, request).await.map_err(failed)
}

/// Sends a request whose answer has no content.
async fn order(client: &ControlClient, subject: &str, request: &impl Serialize) -> Reply<()> {
    ask::<Value>(client, subject, request).await.map(drop)
}

impl Handler<GetLockStatus> for NodeHandle {
    async fn handle(&self, _: GetLockStatus) -> Reply<LockStatus> {
        self.now(|task| Ok(task.lock_status())).await
    }
}

impl Handler<GetLockLog> for NodeHandle {
    async fn handle(&self, request: GetLockLog) -> Reply<Vec<LockUpdate>> {
        let log = self
            .now(move |task| task.lock_commands().log(request.limit).map_err(failed))
            .await;
        let log = log.map_err(prefixed("reading log failed"))?;
        let shown = |aum: Aum| LockUpdate {
            hash: *aum.hash().as_bytes(),
            change: aum.kind().to_owned(),
            raw: Encoded(aum.as_bytes().to_vec()),
        };
        Ok(log.into_iter().map(shown).collect())
    }
}

impl Handler<LockInit> for NodeHandle {
    async fn handle(&self, request: LockInit) -> Reply<LockStatus> {
        let support = request.support_disablement.0.clone();
        let initialize = async {
            let (init, client) = self
                .now(move |task| {
                    let keys = request.keys.into_iter().map(trusted_key);
                    let keys = keys.collect::<Reply<Vec<_>>>()?;
                    let values = request.disablement_values.into_iter().map(|value| {
                        let bytes = value.0.try_into();
                        bytes
                            .map(DisablementValue::from_bytes)
                            .map_err(|_| refused("a disablement value has 32 bytes"))
                    });
                    let values = values.collect::<Reply<Vec<_>>>()?;
                    let commands = task.lock_commands();
                    let init = commands
                        .init(keys, values, &mut SystemEntropy)
                        .map_err(failed)?;
                    Ok((init, task.control_client()?))
                })
                .await?;
            let begun: TkaInitBeginResponse = ask(&client, "init/begin", &init.begin()).await?;
            order(&client, "init/finish", &init.finish(&begun, support)).await
        };
        initialize
            .await
            .map_err(prefixed("initialization failed"))?;
        self.call(GetLockStatus).await
    }
}

impl Handler<LockSign> for NodeHandle {
    async fn handle(&self, request: LockSign) -> Reply<()> {
        let sign = async {
            let (request, client) = self
                .now(move |task| {
                    let rotation = match request.rotation_public.0.as_slice() {
                        // The command line sends zeros when no key was given.
                        [] => None,
                        zeros if zeros.iter().all(|byte| *byte == 0) => None,
                        bytes => Some(LockPublic::from_bytes(
                            bytes
                                .try_into()
                                .map_err(|_| refused("a rotation key has 32 bytes"))?,
                        )),
                    };
                    let commands = task.lock_commands();
                    let request = commands.sign(request.node_key, rotation).map_err(failed)?;
                    Ok((request, task.control_client()?))
                })
                .await?;
            order(&client, "sign", &request).await
        };
        sign.await.map_err(prefixed("signing failed"))
    }
}

impl Handler<LockModify> for NodeHandle {
    async fn handle(&self, request: LockModify) -> Reply<()> {
        let modify = async {
            let prepared = self
                .now(move |task| {
                    let add = request.add_keys.into_iter().map(trusted_key);
                    let add = add.collect::<Reply<Vec<_>>>()?;
                    let remove = request.remove_keys.iter().map(|key| key_id(&key.public.0));
                    let remove = remove.collect::<Reply<Vec<_>>>()?;
                    let commands = task.lock_commands();
                    let update = commands.modify(add, remove).map_err(failed)?;
                    let client = task.control_client()?;
                    Ok(update.map(|(request, head)| (request, head, client)))
                })
                .await?;
            let Some((request, head, client)) = prepared else {
                return Ok(());
            };
            let answer: TkaSyncSendResponse = ask(&client, "sync/send", &request).await?;
            check_head(&answer, head).map_err(failed)
        };
        modify.await.map_err(prefixed("tailnet-lock modify failed"))
    }
}

impl Handler<LockDisable> for NodeHandle {
    async fn handle(&self, request: LockDisable) -> Reply<()> {
        let disable = async {
            let (request, client) = self
                .now(move |task| {
                    let secret = DisablementSecret::from_bytes(&request.0);
                    let request = task.lock_commands().disable(&secret).map_err(failed)?;
                    Ok((request, task.control_client()?))
                })
                .await?;
            order(&client, "disable", &request).await
        };
        disable
            .await
            .map_err(|error| ApiError::Refused(format!("tailnet-lock disable failed: {error}")))
    }
}

impl Handler<LockDisableHere> for NodeHandle {
    async fn handle(&self, _: LockDisableHere) -> Reply<()> {
        let disabled = self
            .now(|task| {
                if !task.is_locked() {
                    return Err(failed("tailnet-lock is not active"));
                }
                task.disable_lock_here()
            })
            .await;
        disabled.map_err(|error| {
            ApiError::Refused(format!("tailnet-lock local disable failed: {error}"))
        })
    }
}

impl Handler<LockAffected> for NodeHandle {
    async fn handle(&self, request: LockAffected) -> Reply<Vec<Encoded>> {
        let key = key_id(&request.0)?;
        let asked = key.clone();
        let (request, client) = self
            .now(move |task| {
                let request = task.lock_commands().affected(&asked).map_err(failed)?;
                Ok((request, task.control_client()?))
            })
            .await?;
        let answer: TkaSignaturesUsingKeyResponse = ask(&client, "affected-sigs", &request).await?;
        self.now(move |task| {
            let commands = task.lock_commands();
            commands.affected_found(&key, answer).map_err(failed)
        })
        .await
    }
}

impl Handler<LockRevoke> for NodeHandle {
    async fn handle(&self, request: LockRevoke) -> Reply<Bytes> {
        let keys = request.keys.iter().map(|key| key_id(&key.0));
        let keys = keys.collect::<Reply<Vec<_>>>()?;
        // The hash of zeros stands for none.
        let zero = AumHash::from_bytes([0; 32]);
        let fork_from = match request.fork_from.as_str() {
            "" => None,
            text => {
                let hash: AumHash = text
                    .parse()
                    .map_err(|error| ApiError::Refused(format!("decoding fork-from: {error}")))?;
                Some(hash).filter(|hash| *hash != zero)
            }
        };
        let made = self.now(move |task| {
            let commands = task.lock_commands();
            commands.revoke(&keys, fork_from).map_err(failed)
        });
        Ok(made.await?.0.as_bytes().to_vec().into())
    }
}

impl Handler<LockCosign> for NodeHandle {
    async fn handle(&self, request: LockCosign) -> Reply<Bytes> {
        let given = revocation(&request.0)?;
        let signed = self.now(move |task| task.lock_commands().cosign(&given).map_err(failed));
        Ok(signed.await?.0.as_bytes().to_vec().into())
    }
}

impl Handler<LockSubmit> for NodeHandle {
    async fn handle(&self, request: LockSubmit) -> Reply<()> {
        let given = revocation(&request.0)?;
        let (request, client) = self
            .now(move |task| {
                let request = task.lock_commands().submit(&given).map_err(failed)?;
                Ok((request, task.control_client()?))
            })
            .await?;
        ask::<TkaSyncSendResponse>(&client, "sync/send", &request)
            .await
            .map(drop)
    }
}

impl Handler<GetAutosign> for NodeHandle {
    async fn handle(&self, _: GetAutosign) -> Reply<AutosignTags> {
        self.now(|task| Ok(task.autosign())).await
    }
}

impl Handler<SetAutosign> for NodeHandle {
    async fn handle(&self, request: SetAutosign) -> Reply<()> {
        if let Some(wrong) = request.tags.iter().find(|tag| !tag.starts_with("tag:")) {
            return Err(ApiError::Refused(format!(
                "{wrong:?} is no tag; tags begin with \"tag:\""
            )));
        }
        self.now(|task| task.set_autosign(request.tags)).await
    }
}

impl Handler<LockWrap> for NodeHandle {
    async fn handle(&self, request: LockWrap) -> Reply<String> {
        let trusted: LockSecret = request
            .lock_key
            .parse()
            .map_err(|_| ApiError::Refused("invalid JSON body".to_owned()))?;
        let wrapped = self.now(move |task| {
            let commands = task.lock_commands();
            let wrapped = commands.wrap(&request.auth_key, &trusted, &mut SystemEntropy);
            wrapped.map_err(failed)
        });
        Ok(wrapped.await?.to_text().to_string())
    }
}
