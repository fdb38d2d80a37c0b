//! A policy file that is in charge: taken when it changes.
//!
//! A text that is in force already is nothing new. After an error the last valid policy
//! stays in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use warren_control_core::{AdminError, GivenPolicy, View};

use crate::clock::wall_clock;
use crate::coordinator::CoordinatorHandle;
use crate::failure::Failure;
use crate::store::StoreError;
use crate::watched_file::{Watched, aside, read};

/// Takes what the file in charge says; whether that is new. It is read and
/// tried before the coordinator is locked.
pub(crate) async fn take(
    coordinator: &CoordinatorHandle,
    path: &Path,
    text: String,
) -> Result<Result<bool, AdminError>, StoreError> {
    let (same, tailnet) = coordinator
        .change(|c, _, _| (c.policy_file_says_the_same(&text), c.tailnet()))
        .0;
    if same {
        return Ok(Ok(false));
    }
    let given = GivenPolicy {
        file: path.display().to_string(),
        text: Some(text),
    };
    let tried = tokio::task::spawn_blocking(move || tailnet.try_policy(&given)).await;
    let tried = tried.unwrap_or_else(|error| Err(AdminError::Policy(error.to_string())));
    coordinator
        .change_saved(|c, _, wall| match tried {
            Ok(tried) => c.take_policy_file(wall, tried),
            Err(error) => {
                c.policy_file_failed(wall, &error.to_string());
                Err(error)
            }
        })
        .await
}

/// The policy file that is in charge of a coordinator.
pub(crate) struct PolicyFile {
    pub(crate) path: PathBuf,
    pub(crate) coordinator: Arc<CoordinatorHandle>,
}

impl Watched for PolicyFile {
    fn path(&self) -> &Path {
        &self.path
    }

    async fn reload(&self) {
        reload(&self.path, &self.coordinator).await;
    }
}

/// Reads the file and takes what it says, if that is new.
async fn reload(path: &Path, coordinator: &Arc<CoordinatorHandle>) {
    let failed = |why: &str| {
        let known = coordinator.read(|c| {
            let problem = c.policy_file().and_then(|file| file.problem.as_ref());
            problem.is_some_and(|(_, text)| text == why)
        });
        if !known {
            tracing::error!("the policy stays as it was: {why}");
            let ((), _rows) = coordinator.change(|c, _, _| c.policy_file_failed(wall_clock(), why));
        }
    };
    let text = match aside(path, read).await {
        Ok(Ok(text)) => text,
        Ok(Err(why)) => return failed(&why),
        Err(error) => return failed(&format!("cannot read {}: {error}", path.display())),
    };
    let known = coordinator.read(|c| {
        let file = c.policy_file();
        file.is_some_and(|file| file.problem.is_none())
            && c.policy_in_force().text.as_ref() == Some(&text)
    });
    if known {
        return;
    }
    let before = coordinator.read(|c| c.policy_file().and_then(|file| file.problem.clone()));
    match take(coordinator, path, text).await {
        Ok(Ok(true)) => {
            let version = coordinator.read(warren_control_core::View::policy_version);
            tracing::info!(
                "policy version {} from {} is in force",
                version.unwrap_or_default(),
                path.display()
            );
        }
        Ok(Ok(false)) => {}
        Ok(Err(error)) => {
            let error = error.to_string();
            if before.is_none_or(|(_, text)| text != error) {
                tracing::error!("the policy stays as it was:\n{error}");
            }
        }
        Err(error) => tracing::error!("{error}"),
    }
}

/// Reads the policy file and checks it.
pub(crate) fn read_checked(file: &Path) -> Result<String, String> {
    let text = read(file)?;
    let given = GivenPolicy {
        file: file.display().to_string(),
        text: Some(text.clone()),
    };
    match given.parse() {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

/// Puts the policy file in charge. If it is not valid, the policy from before the
/// start stays in force, if there is one.
pub(crate) async fn take_at_start(
    coordinator: &CoordinatorHandle,
    file: &Path,
    read: Result<String, String>,
) -> Result<(), Failure> {
    let path = file.display().to_string();
    coordinator
        .change(|c, _, _| c.put_file_in_charge(&path))
        .1
        .wait()
        .await?;
    let why = match read {
        Ok(text) => {
            let taken = take(coordinator, file, text).await?;
            match taken {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            }
        }
        Err(why) => {
            let ((), saved) = coordinator.change(|c, _, wall| c.policy_file_failed(wall, &why));
            saved.wait().await?;
            why
        }
    };
    if coordinator.read(View::is_without_policy) {
        return Err(Failure::Failed(why));
    }
    tracing::error!("the policy of the last run stays in force: {why}");
    Ok(())
}
