//! `warren-control config` and `warren-control reload`.

use serde_json::json;
use warren_control_api::endpoints::{Reload, ReloadInfo};

use super::args::{Configuration, Serve};
use super::session::Session;
use crate::config::{Mistake, Mistakes, Settings, Source, to_json, to_toml};
use crate::failure::Failure;
use crate::inputs::Inputs;
use crate::self_map::check_outside_zone;

/// Runs a `config` command.
pub(super) async fn run(session: &Session, command: Configuration) -> Result<(), Failure> {
    match command {
        Configuration::Check { flags } => {
            let checked = tokio::task::spawn_blocking(move || check(*flags)).await;
            let settings = checked??;
            let count = settings.entries.len();
            let text = format!(
                "the configuration is valid; warren-control config show lists its {count} keys\n"
            );
            session.show(&json!({ "valid": true, "keys": count }), &text);
        }
        Configuration::Show { flags } => {
            let settings = Source::of_process(*flags).read()?;
            session.show(&to_json(&settings.entries), &to_toml(&settings.entries));
        }
    }
    Ok(())
}

/// Reads the settings and all files that they name.
fn check(flags: Serve) -> Result<Settings, Mistakes> {
    let settings = Source::of_process(flags).read()?;
    let inputs = Inputs::read(&settings)?;
    let mut mistakes = Vec::new();
    let mut wrong = |section: &str, name: &str, what: String| {
        let place = settings.origin(section, name);
        mistakes.push(Mistake { place, what });
    };
    if let Some(why) = inputs.policy_error() {
        wrong("[policy]", "file", why.to_owned());
    }
    if let Some(why) = inputs.records_error() {
        wrong("[dns]", "records_file", why.to_owned());
    }
    if let Some(url) = &settings.server_url {
        let map = inputs.derp_map.unwrap_or_default();
        if let Err(why) = check_outside_zone(&settings.base_domain, url, &map) {
            wrong("[dns]", "base_domain", why);
        }
    }
    if mistakes.is_empty() {
        Ok(settings)
    } else {
        Err(Mistakes(mistakes))
    }
}

/// Runs `reload`.
pub(super) async fn reload(session: &Session) -> Result<(), Failure> {
    session.ask(&Reload {}, |info, _| reload_text(info)).await?;
    Ok(())
}

/// The result of reading the settings again.
pub(crate) fn reload_text(info: &ReloadInfo) -> String {
    let mut text = String::new();
    if !info.changed.is_empty() {
        text += &format!("now in use: {}\n", info.changed.join(", "));
    }
    if !info.needs_restart.is_empty() {
        text += &format!(
            "different, and used after a restart of the server: {}\n",
            info.needs_restart.join(", ")
        );
    }
    if text.is_empty() {
        text += "the settings are the same\n";
    }
    text
}
