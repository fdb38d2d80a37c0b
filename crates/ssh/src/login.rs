//! A login: from the name that a client asks for to a local user and its permissions.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use warren_ssh_policy::{
    Account, Check, CheckEnds, Grant, Refusal, Source, Verdict, Wanted, evaluate,
};
use warren_terminal::{printable, printable_lines};

use crate::accounts::{Accounts, User, kind};
use crate::limits::CHECK_PATIENCE;
use crate::server::Ends;
use crate::tailnet::{Facts, Tailnet};

/// The first and the longest time between two questions to a server that does not answer.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Time between two questions to a server that answers with the next question.
const ROUND: Duration = Duration::from_millis(100);

/// A login that was let in.
#[derive(Debug)]
pub(crate) struct Login {
    /// The name that the client asked for.
    pub wanted: String,
    account: Account,
    /// The local user.
    pub user: User,
    /// All groups of the user.
    pub groups: Vec<u32>,
    pub grant: Grant,
    /// Whether patterns for variables count.
    pub accepts_env: bool,
}

/// Decides about the logins of one connection.
pub(crate) struct Judge<'a> {
    pub tailnet: &'a dyn Tailnet,
    pub accounts: &'a Accounts,
    pub ends: Ends,
}

/// Shows a text to the client.
pub(crate) type Show<'a> = dyn Fn(String) + Send + Sync + 'a;

impl Judge<'_> {
    /// Decides about a login as `wanted`. `show` gets messages for the user on the way,
    /// and `holds` is called when the server decides.
    ///
    /// # Errors
    /// The reason why not, for the user.
    pub(crate) async fn log_in(
        &self,
        wanted: &str,
        show: &Show<'_>,
        holds: &(dyn Fn() + Send + Sync),
    ) -> Result<Login, String> {
        let facts = self.facts().await?;
        // No account is looked up for a source that no rule names.
        let best = self.verdict(&facts, wanted, Account::Ordinary);
        if let Verdict::Refused(refusal) = best {
            return Err(refused(&refusal, wanted));
        }
        let account = self.accounts.find(wanted).await.map_err(no_accounts)?;
        let account = kind(account.as_ref());
        let grant = match self.verdict(&facts, wanted, account) {
            Verdict::Granted(grant) => grant,
            Verdict::Refused(refusal) => return Err(refused(&refusal, wanted)),
            Verdict::Check(check) => {
                holds();
                self.checked(check, &facts, wanted, show).await?
            }
        };
        // The policy may be another one by now.
        let facts = self.facts().await?;
        if !grant.holds_under(&self.verdict(&facts, wanted, account)) {
            return Err(refused(&Refusal::NoRule, wanted));
        }
        if !grant.message.is_empty() {
            show(message(&grant.message));
        }
        let user = self.local_user(&grant.local_user).await?;
        let groups = self.accounts.groups(&user).await.map_err(no_accounts)?;
        Ok(Login {
            wanted: wanted.to_owned(),
            account,
            user,
            groups,
            grant,
            accepts_env: facts.accepts_env,
        })
    }

    /// Whether a login may go on.
    pub(crate) async fn still_holds(&self, login: &Login) -> bool {
        let Ok(facts) = self.facts().await else {
            return false;
        };
        let verdict = self.verdict(&facts, &login.wanted, login.account);
        login.grant.holds_under(&verdict)
    }

    async fn facts(&self) -> Result<Facts, String> {
        let facts = self.tailnet.facts(self.ends.peer.ip()).await;
        facts.ok_or_else(|| "this node does not know you; ask its administrator".to_owned())
    }

    fn verdict(&self, facts: &Facts, wanted: &str, account: Account) -> Verdict {
        let source = Source {
            node: &facts.node,
            address: self.ends.peer.ip(),
            login: &facts.login,
        };
        let wanted = Wanted {
            name: wanted,
            account,
        };
        evaluate(&facts.policy, &source, &wanted, Timestamp::now())
    }

    /// Asks the server until it has decided.
    async fn checked(
        &self,
        mut check: Check,
        facts: &Facts,
        wanted: &str,
        show: &Show<'_>,
    ) -> Result<Grant, String> {
        let deadline = Instant::now() + CHECK_PATIENCE;
        let ends = CheckEnds {
            source_address: self.ends.peer.ip(),
            source: facts.id,
            own_address: self.ends.local.ip(),
            own: facts.own,
            wanted_user: wanted,
        };
        let mut last_message = String::new();
        loop {
            if !check.message.is_empty() && check.message != last_message {
                show(message(&check.message));
                last_message.clone_from(&check.message);
            }
            let asking = self.ask(check.target(&ends));
            let action = tokio::time::timeout_at(deadline, asking).await;
            let action = action.map_err(|_| {
                let minutes = CHECK_PATIENCE.as_secs() / 60;
                format!("the login was not approved within {minutes} minutes; try again")
            })?;
            match check.answer(&action) {
                Verdict::Granted(grant) => return Ok(grant),
                Verdict::Refused(refusal) => return Err(refused(&refusal, wanted)),
                Verdict::Check(next) => check = next,
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// The answer of the server, however often it has to be asked.
    async fn ask(&self, target: String) -> warren_control_types::SshAction {
        let mut wait = FIRST_RETRY;
        loop {
            match self.tailnet.ask(target.clone()).await {
                Ok(action) => return action,
                Err(error) => tracing::info!(error, "the server did not decide about a login"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_RETRY);
        }
    }

    async fn local_user(&self, name: &str) -> Result<User, String> {
        let user = self.accounts.find(name).await.map_err(no_accounts)?;
        let user =
            user.ok_or_else(|| format!("there is no user {:?} on this machine", printable(name)))?;
        let own = rustix::process::geteuid();
        if !own.is_root() && own.as_raw() != user.uid {
            return Err(format!(
                "the daemon of this node does not run as root and cannot become {:?}",
                user.name
            ));
        }
        Ok(user)
    }
}

fn no_accounts(error: std::io::Error) -> String {
    tracing::warn!(%error, "cannot read the accounts of this machine");
    "this node cannot read its accounts; ask its administrator".to_owned()
}

/// A message of the policy or the server, safe for a terminal.
fn message(text: &str) -> String {
    printable_lines(text)
}

/// The reason of a refusal, for the user.
fn refused(refusal: &Refusal, wanted: &str) -> String {
    match refusal {
        Refusal::NoRule => {
            "the policy of the tailnet does not let you log in to this node".to_owned()
        }
        Refusal::OtherUsers => format!(
            "the policy of the tailnet does not let you log in to this node as {:?}",
            printable(wanted)
        ),
        Refusal::Rejected(text) if text.is_empty() => {
            "the policy of the tailnet refuses this login".to_owned()
        }
        Refusal::Rejected(text) => message(text),
        Refusal::Recording => "the policy of the tailnet demands that this session is recorded, \
                               which this version cannot do; log in to another node"
            .to_owned(),
        Refusal::NoAction => {
            "the policy of the tailnet names no action for this login; ask its administrator"
                .to_owned()
        }
    }
}

/// The values of `SSH_CLIENT` and `SSH_CONNECTION`.
pub(crate) fn connection_variables(ends: &Ends) -> [(String, String); 2] {
    let Ends { peer, local } = ends;
    let text = |address: &SocketAddr| format!("{} {}", address.ip(), address.port());
    [
        (
            "SSH_CLIENT".to_owned(),
            format!("{} {}", text(peer), local.port()),
        ),
        (
            "SSH_CONNECTION".to_owned(),
            format!("{} {}", text(peer), text(local)),
        ),
    ]
}

/// The search path of programs for root and for others, as on most systems.
const PATH_OF_ROOT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PATH_OF_OTHERS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";

/// The environment of a session: what the login gives, behind what the client may set.
pub(crate) fn environment(
    login: &Login,
    ends: &Ends,
    wanted: Vec<(String, String)>,
    terminal: Option<&str>,
    agent: Option<PathBuf>,
) -> Vec<(String, String)> {
    let user = &login.user;
    let path = match user.uid {
        0 => PATH_OF_ROOT,
        _ => PATH_OF_OTHERS,
    };
    let mut environment = wanted;
    let mut set = |name: &str, value: &str| {
        environment.push((name.to_owned(), value.to_owned()));
    };
    set("USER", &user.name);
    set("LOGNAME", &user.name);
    set("HOME", &user.home);
    set("SHELL", &user.shell);
    set("PATH", path);
    if let Some(kind) = terminal {
        set("TERM", kind);
    }
    if let Some(agent) = agent.as_deref().and_then(Path::to_str) {
        set("SSH_AUTH_SOCK", agent);
    }
    environment.extend(connection_variables(ends));
    environment
}

/// Whether `login`, which runs as root, may have the variables that a client set: those for
/// the language only. No list of names could cover all that the libraries below it read.
pub(crate) fn is_for_login(wanted: &[(String, String)]) -> bool {
    let is_language = |name: &str| name == "LANG" || name.starts_with("LC_");
    wanted.iter().all(|(name, _)| is_language(name))
}

/// The system's `login`, where it can open sessions: it needs root, and under SELinux a
/// domain of its own that this daemon does not have.
pub(crate) fn system_login() -> Option<&'static str> {
    let enforces = std::fs::read("/sys/fs/selinux/enforce");
    if !rustix::process::geteuid().is_root() || enforces.is_ok_and(|text| text.starts_with(b"1")) {
        return None;
    }
    let programs = ["/usr/bin/login", "/bin/login"];
    programs.into_iter().find(|path| Path::new(path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_do_not_act_on_the_terminal() {
        let wanted = "a\u{1b}[31m\u{9b}b\n";
        for text in [
            refused(&Refusal::OtherUsers, wanted),
            refused(&Refusal::Rejected("no\u{1b}]0;x\u{7}".to_owned()), wanted),
            message("open https://s/1\u{1b}[2J"),
        ] {
            let is_harmless = |c: char| !c.is_control() || c == '\n';
            assert!(text.chars().all(is_harmless), "{text:?}");
        }
    }

    #[test]
    fn login_gets_no_variable_but_the_language() {
        let set = |names: &[&str]| -> Vec<(String, String)> {
            let pairs = names
                .iter()
                .map(|name| ((*name).to_owned(), "x".to_owned()));
            pairs.collect()
        };
        assert!(is_for_login(&set(&[])));
        assert!(is_for_login(&set(&["LANG", "LC_ALL", "LC_TIME"])));
        for name in [
            "OPENSSL_CONF",
            "KRB5_CONFIG",
            "XDG_SEAT",
            "DBUS_SYSTEM_BUS_ADDRESS",
            "A",
        ] {
            assert!(!is_for_login(&set(&["LANG", name])), "{name}");
        }
    }

    #[test]
    fn a_session_gets_its_own_values_whatever_the_client_set() {
        let user = User {
            name: "bob".to_owned(),
            uid: 1001,
            gid: 1001,
            home: "/home/bob".to_owned(),
            shell: "/bin/sh".to_owned(),
        };
        let grant = serde_json::from_str(r#"{"accept":true}"#).map(|action| {
            let rule = warren_control_types::SshRule {
                principals: vec![warren_control_types::SshPrincipal {
                    any: true,
                    ..Default::default()
                }],
                ssh_users: [("*".to_owned(), "=".to_owned())].into(),
                action: Some(action),
                ..Default::default()
            };
            let policy = warren_control_types::SshPolicy { rules: vec![rule] };
            let node = warren_control_types::StableNodeId("n".to_owned());
            let source = Source {
                node: &node,
                address: std::net::IpAddr::from([100, 64, 0, 1]),
                login: "",
            };
            let wanted = Wanted {
                name: "bob",
                account: Account::Ordinary,
            };
            evaluate(&policy, &source, &wanted, Timestamp::UNIX_EPOCH)
        });
        let Ok(Verdict::Granted(grant)) = grant else {
            panic!("refused");
        };
        let login = Login {
            wanted: "bob".to_owned(),
            account: Account::Ordinary,
            user,
            groups: vec![1001],
            grant,
            accepts_env: true,
        };
        let ends = Ends {
            peer: ([100, 64, 0, 1], 5555).into(),
            local: ([100, 64, 0, 2], 22).into(),
        };
        // The first entries are those of the client; later ones replace them.
        let wanted = vec![("TERM".to_owned(), "evil".to_owned())];
        let set = environment(&login, &ends, wanted, Some("xterm"), None);
        let value = |name: &str| {
            let mut of_name = set.iter().filter(|(set, _)| set == name);
            of_name.next_back().map(|(_, value)| value.as_str())
        };
        assert_eq!(value("TERM"), Some("xterm"));
        assert_eq!(
            value("SSH_CONNECTION"),
            Some("100.64.0.1 5555 100.64.0.2 22")
        );
        assert_eq!(value("SSH_CLIENT"), Some("100.64.0.1 5555 22"));
        assert_eq!(value("PATH"), Some(PATH_OF_OTHERS));
    }
}
