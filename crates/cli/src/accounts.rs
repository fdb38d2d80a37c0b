//! `warren switch`: the logins of this machine, and the change between them.

use serde::Serialize;

use super::args::Given;
use super::{Failure, Io, shown};
use warren_local_api::client::Client;
use warren_local_api::endpoints::{DeleteProfile, GetCurrentProfile, GetProfiles, SwitchProfile};
use warren_local_api::types::LoginProfile;

/// One login in `--list --json`.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    nickname: &'a str,
    tailnet: &'a str,
    account: &'a str,
    selected: bool,
}

pub(super) async fn run(given: &Given<'_>, client: &Client, io: &mut Io) -> Result<(), Failure> {
    let profiles = shown(&client.call(GetProfiles).await?)?;
    let current = shown(&client.call(GetCurrentProfile).await?)?;
    if given.is("list") {
        return match given.is("json") {
            true => {
                let listed: Vec<Listed<'_>> = profiles
                    .iter()
                    .map(|profile| listed(profile, &current))
                    .collect();
                io.say_json(&listed)
            }
            false => io.say(table(&profiles, &current).trim_end()),
        };
    }
    let Some(wanted) = given.text("ACCOUNT") else {
        return Err(Failure::usage("give an account, or --list"));
    };
    // The official client removes a login with `switch remove NAME`.
    let (is_removal, wanted) = match (wanted, given.text("NAME")) {
        ("remove", Some(name)) => (true, name),
        ("remove", None) => {
            return Err(Failure::usage(
                "remove which login? See: warren switch --list",
            ));
        }
        (_, Some(_)) => return Err(Failure::usage("give one account")),
        (wanted, None) => (false, wanted),
    };
    let found = find(&profiles, wanted)
        .ok_or_else(|| Failure::failed(format_args!("No profile named {wanted:?}")))?;
    if is_removal {
        let id = found.id.clone();
        client.call(DeleteProfile { id }).await?;
        return Ok(());
    }
    if found.id == current.id {
        io.note(format_args!("Already on account {wanted:?}"));
        return Ok(());
    }
    let id = found.id.clone();
    client.call(SwitchProfile { id }).await?;
    io.note(format_args!(
        "Switched to account {wanted:?}; to connect: warren up"
    ));
    Ok(())
}

/// The login with this id, network, account or name; the first that fits.
fn find<'a>(profiles: &'a [LoginProfile], wanted: &str) -> Option<&'a LoginProfile> {
    let keys: [fn(&LoginProfile) -> &str; 4] = [
        |profile| profile.id.as_str(),
        |profile| profile.network_profile.domain_name.as_str(),
        |profile| profile.user_profile.login_name.as_str(),
        |profile| profile.name.as_str(),
    ];
    keys.iter()
        .find_map(|key| profiles.iter().find(|profile| key(profile) == wanted))
}

fn listed<'a>(profile: &'a LoginProfile, current: &LoginProfile) -> Listed<'a> {
    Listed {
        id: &profile.id,
        nickname: &profile.name,
        tailnet: &profile.network_profile.domain_name,
        account: &profile.user_profile.login_name,
        selected: profile.id == current.id,
    }
}

fn table(profiles: &[LoginProfile], current: &LoginProfile) -> String {
    let mut rows = vec![["ID", "Tailnet", "Account"].map(str::to_owned)];
    rows.extend(profiles.iter().map(|profile| {
        let mark = if profile.id == current.id { "*" } else { "" };
        [
            profile.id.clone(),
            profile.network_profile.domain_name.clone(),
            format!("{}{mark}", profile.name),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (first, second) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    rows.iter()
        .map(|[id, tailnet, account]| format!("{id:first$}  {tailnet:second$}  {account}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_control_types::UserProfile;
    use warren_local_api::types::NetworkProfile;

    fn profile(id: &str, name: &str) -> LoginProfile {
        LoginProfile {
            id: id.to_owned(),
            name: name.to_owned(),
            network_profile: NetworkProfile {
                domain_name: "net.example".to_owned(),
                ..NetworkProfile::default()
            },
            user_profile: UserProfile {
                login_name: format!("{name}@example.com"),
                ..UserProfile::default()
            },
            ..LoginProfile::default()
        }
    }

    #[test]
    fn logins_are_listed_and_found_as_by_the_official_client() {
        let profiles = [profile("fb84", "ann"), profile("d15d", "bob")];
        assert_eq!(
            table(&profiles, &profiles[1]),
            "ID    Tailnet      Account\nfb84  net.example  ann\nd15d  net.example  bob*\n"
        );
        assert_eq!(
            table(&[], &LoginProfile::default()),
            "ID  Tailnet  Account\n"
        );
        for wanted in ["d15d", "bob@example.com", "bob"] {
            assert_eq!(find(&profiles, wanted), Some(&profiles[1]), "{wanted}");
        }
        assert_eq!(find(&profiles, "net.example"), Some(&profiles[0]));
        assert_eq!(find(&profiles, "eve"), None);
    }
}
