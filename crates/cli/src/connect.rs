//! `warren set`, `down` and `logout`.

use super::args::Given;
use super::{Failure, Io, pref_flags};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{EditPrefs, GetPrefs, GetStatus, LogOut};
use warren_node_types::MaskedPrefs;
use warren_terminal::printable;

/// Changes the mentioned settings, and nothing else.
pub(super) async fn set(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let mentioned = pref_flags::FLAGS
        .iter()
        .chain(pref_flags::SET_ONLY)
        .any(|flag| given.mentioned(flag));
    if !mentioned {
        return Err(Failure::usage("nothing to set: give at least one flag"));
    }
    let current = client.call(GetPrefs).await?.prefs;
    let status = client.call(GetStatus { peers: true }).await?;
    let change = pref_flags::change(given, &current, &status)?;
    for warning in pref_flags::without_effect(given) {
        io.note(warning);
    }
    let operator = change.operator_user.clone();
    client.call(EditPrefs { change }).await?;
    if let Some(user) = operator.filter(|user| !user.is_empty()) {
        io.note(format_args!(
            "{} may use warren without root now",
            printable(&user)
        ));
    }
    Ok(())
}

/// Disconnects, keeping the login.
pub(super) async fn down(_given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let status = client.call(GetStatus { peers: false }).await?;
    if status.backend_state == "Stopped" {
        io.note("Tailscale was already stopped.");
        return Ok(());
    }
    let change = MaskedPrefs {
        want_running: Some(false),
        ..MaskedPrefs::default()
    };
    client.call(EditPrefs { change }).await?;
    Ok(())
}

/// Disconnects and expires the key.
pub(super) async fn logout(given: &Given<'_>, client: &Client) -> Result<(), Failure> {
    let reason = given.text("reason").unwrap_or_default().to_owned();
    client.call(LogOut { reason }).await?;
    Ok(())
}
