//! Questions about SSH sessions, held open until the administrator decides.
use warren_control_core::{SshOutcome, SshQuestion, SshRefusal};
use warren_control_types::SshAction;
use warren_keys::MachinePublic;

use super::CoordinatorHandle;
use crate::clock::{now, wall_clock};

impl CoordinatorHandle {
    /// The action of a node for a session, as soon as it is known.
    ///
    /// # Errors
    /// It is not the node's session.
    pub async fn ssh_action(
        &self,
        machine: MachinePublic,
        question: &SshQuestion,
    ) -> Result<SshAction, SshRefusal> {
        loop {
            let (parked, saved) = {
                let mut inner = self.lock();
                let outcome = inner
                    .coordinator
                    .ssh_action(now(), wall_clock(), machine, question);
                // Under the same lock, or a decision in between would be missed.
                let parked = match outcome {
                    Ok(SshOutcome::Park(id)) => Ok(self.park(&mut inner, id)),
                    Ok(SshOutcome::Answer(action)) => Err(Ok(*action)),
                    Err(refusal) => Err(Err(refusal)),
                };
                (parked, self.carry_out(&mut inner))
            };
            // The answer speaks of the policy and of nodes.
            saved.wait().await.map_err(|_| SshRefusal::Unsaved)?;
            match parked {
                Err(answer) => return answer,
                // Either way the question is put again.
                Ok((decided, _place)) => {
                    let _ = decided.await;
                }
            }
        }
    }
}
