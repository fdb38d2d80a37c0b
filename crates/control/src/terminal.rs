//! Text output: aligned tables, relative times, no colour.

use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::{
    AuthKeyView, C2nView, CheckView, Command, CreatedKeyView, HealthView, NodeView, PolicyView,
    UserView, WaitingView,
};

/// The default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "./warren-control";
/// The beginning of commands in messages.
const PROGRAM: &str = "warren-control ";
/// Subcommands that ask a server.
const AREAS: [&str; 7] = [
    "users ",
    "nodes ",
    "preauthkeys ",
    "policy ",
    "ssh-checks ",
    "health",
    "debug ",
];

/// Text from a machine, made safe for a terminal: without control characters, which
/// could move the cursor or rewrite lines.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// How commands are written in messages: for a state folder that is not the
/// default one, with its `--state-dir`, or they would speak to another server.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    option: Option<String>,
}

impl Hints {
    /// For the server of this state folder.
    pub fn new(state_dir: &Path) -> Self {
        let option = (state_dir != Path::new(DEFAULT_STATE_DIR))
            .then(|| format!("--state-dir {}", shell_word(&state_dir.to_string_lossy())));
        Self { option }
    }

    /// The text, with the option in every command it names.
    pub fn complete(&self, text: &str) -> String {
        let Some(option) = &self.option else {
            return text.to_owned();
        };
        let mut out = String::with_capacity(text.len() + option.len());
        let mut rest = text;
        while let Some(at) = rest.find(PROGRAM) {
            let (before, command) = rest.split_at(at + PROGRAM.len());
            out.push_str(before);
            let has_one = command.starts_with("--state-dir")
                || command.starts_with("serve")
                || !AREAS.iter().any(|area| command.starts_with(area));
            if !has_one {
                out.push_str(option);
                out.push(' ');
            }
            rest = command;
        }
        out + rest
    }
}

/// A word that a shell takes as it is.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Rows under a heading, columns two spaces apart.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    let printable_row = |row: &Vec<String>| row.iter().map(|cell| printable(cell)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(printable_row).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&heading).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// How long ago, or in how long, in the one unit that matters.
pub fn relative(then: Timestamp, now: Timestamp) -> String {
    let seconds = then.duration_since(now).as_secs();
    let (past, seconds) = (seconds <= 0, seconds.unsigned_abs());
    let amount = match seconds {
        0..=1 => return "now".to_owned(),
        2..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    };
    if past {
        format!("{amount} ago")
    } else {
        format!("in {amount}")
    }
}

/// The answer to a command as text.
///
/// # Errors
/// The answer does not have the shape that the command promises.
pub fn render(
    command: &Command,
    answer: &Value,
    now: Timestamp,
) -> Result<String, serde_json::Error> {
    fn read<T: DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
        T::deserialize(value)
    }
    Ok(match command {
        Command::UsersList => {
            let users: Vec<UserView> = read(answer)?;
            if users.is_empty() {
                return Ok(
                    "no users yet; create one: warren-control users create NAME\n".to_owned(),
                );
            }
            let rows: Vec<_> = users
                .iter()
                .map(|u| {
                    vec![
                        u.id.to_string(),
                        u.name.clone(),
                        u.role.to_string(),
                        relative(u.created_at, now),
                    ]
                })
                .collect();
            table(&["ID", "NAME", "ROLE", "CREATED"], &rows)
        }
        Command::UsersCreate { .. } => {
            let user: UserView = read(answer)?;
            format!(
                "user {} (id {})\nnext: warren-control preauthkeys create --user {}\n",
                user.name, user.id, user.name
            )
        }
        Command::UsersRename { .. } => {
            format!("the user is now {}\n", read::<UserView>(answer)?.name)
        }
        Command::UsersSetRole { .. } => {
            let user: UserView = read(answer)?;
            format!("user {} is now: {}\n", user.name, user.role)
        }
        Command::UsersDelete { .. } => {
            format!(
                "user {} deleted, with its pre-auth keys\n",
                read::<UserView>(answer)?.name
            )
        }
        Command::NodesList { .. } => nodes(&read::<Vec<NodeView>>(answer)?, now),
        Command::NodesShow { .. } => node(&read(answer)?, now),
        Command::NodesRename { .. } => {
            format!("the node is now {}\n", read::<NodeView>(answer)?.given_name)
        }
        Command::NodesExpire { .. } => {
            let name = read::<NodeView>(answer)?.given_name;
            format!("{name} has to log in again\n")
        }
        Command::NodesDelete { .. } => {
            format!("{} deleted\n", read::<NodeView>(answer)?.given_name)
        }
        Command::NodesApprove { .. } => {
            let node: NodeView = read(answer)?;
            format!(
                "{} joined, as {}\n",
                node.given_name,
                node.ip_addresses.join(" and ")
            )
        }
        Command::NodesWaiting => {
            let waiting: Vec<WaitingView> = read(answer)?;
            if waiting.is_empty() {
                return Ok("no machine waits for approval\n".to_owned());
            }
            let rows: Vec<_> = waiting
                .iter()
                .map(|w| {
                    vec![
                        w.id.clone(),
                        w.name.clone(),
                        w.os.clone(),
                        relative(w.since, now),
                    ]
                })
                .collect();
            let mut out = table(&["ID", "NAME", "OS", "SINCE"], &rows);
            out.push_str("approve one: warren-control nodes approve ID --user NAME\n");
            out
        }
        Command::NodesRoutes { .. } | Command::NodesApproveRoutes { .. } => {
            let nodes: Vec<NodeView> = match answer {
                Value::Array(_) => read(answer)?,
                _ => vec![read(answer)?],
            };
            let rows: Vec<_> = nodes
                .iter()
                .flat_map(|n| {
                    n.available_routes.iter().map(|route| {
                        let approved = n.approved_routes.contains(route);
                        let state = if approved { "approved" } else { "not approved" };
                        vec![n.given_name.clone(), route.clone(), state.to_owned()]
                    })
                })
                .collect();
            if rows.is_empty() {
                return Ok("no node offers routes\n".to_owned());
            }
            table(&["NODE", "ROUTE", "STATE"], &rows)
        }
        Command::NodesTag { .. } => {
            let node: NodeView = read(answer)?;
            if node.tags.is_empty() {
                let user = node.user.unwrap_or_default();
                format!("{} belongs to user {user}\n", node.given_name)
            } else {
                format!("{} belongs to {}\n", node.given_name, node.tags.join(", "))
            }
        }
        Command::PreauthkeysCreate { .. } => {
            let created: CreatedKeyView = read(answer)?;
            format!("{}\n", created.key)
        }
        Command::PreauthkeysList => auth_keys(&read::<Vec<AuthKeyView>>(answer)?, now),
        Command::PreauthkeysExpire { id } => format!("key {id} no longer works\n"),
        Command::PolicyGet { .. } => answer["policy"].as_str().unwrap_or_default().to_owned(),
        Command::PolicySet { .. } => {
            let diff = answer["text"].as_str().unwrap_or_default();
            format!("{diff}{}", policy_set(answer))
        }
        Command::PolicyTest { .. } => match answer["tests"].as_u64() {
            Some(0) | None => "the policy has no tests\n".to_owned(),
            Some(1) => "1 test holds\n".to_owned(),
            Some(n) => format!("{n} tests hold\n"),
        },
        Command::PolicyDiff { .. } | Command::PolicyWhy { .. } => {
            answer["text"].as_str().unwrap_or_default().to_owned()
        }
        Command::PolicyHistory => policy_history(&read::<Vec<PolicyView>>(answer)?, now),
        Command::SshChecksList => ssh_checks(&read::<Vec<CheckView>>(answer)?, now),
        Command::SshChecksApprove { .. } => {
            let check: CheckView = read(answer)?;
            let user = printable(&check.local_user);
            format!("{} is approved, as {user}\n", ends(&check))
        }
        Command::SshChecksDeny { .. } => format!("{} is refused\n", ends(&read(answer)?)),
        Command::DebugC2n { .. } => {
            let answer: C2nView = read(answer)?;
            let body: String = answer
                .body
                .split_inclusive('\n')
                .map(|line| match line.strip_suffix('\n') {
                    Some(line) => printable(line) + "\n",
                    None => printable(line) + "\n",
                })
                .collect();
            format!("{}\n{body}", answer.status)
        }
        Command::Health => {
            let health: HealthView = read(answer)?;
            let database = if health.database {
                "ok"
            } else {
                "CANNOT SAVE; see the server's log"
            };
            let policy = match (&health.policy_file, &health.policy_problem) {
                (Some(file), Some(problem)) => {
                    format!(
                        "the last good one; {file} IS NOT VALID {}",
                        problem.trim_end()
                    )
                }
                (Some(file), None) => format!("from {file}"),
                (None, _) if health.allow_all => "allow-all".to_owned(),
                (None, _) => "set".to_owned(),
            };
            format!(
                "status    {}\nurl       {}\nzone      {}\ndatabase  {database}\npolicy    {policy}\n\
                 users     {}\nnodes     {} ({} online, {} waiting for approval)\n",
                health.status,
                health.server_url,
                health.base_domain,
                health.users,
                health.nodes,
                health.online,
                health.waiting,
            )
        }
    })
}

/// The result of `policy set`.
pub fn policy_set(answer: &Value) -> String {
    let version = answer["version"].as_i64().unwrap_or_default();
    match (
        answer["dry_run"].as_bool() == Some(true),
        answer["allow_all"].as_bool() == Some(true),
    ) {
        (true, _) => "dry run: nothing was changed\n".to_owned(),
        (false, true) => {
            format!("no policy from now on: every node may reach every node (version {version})\n")
        }
        (false, false) => {
            let back = match answer["before"].as_i64() {
                Some(before) => {
                    format!("; back with: warren-control policy set --version {before}")
                }
                None => String::new(),
            };
            format!("policy set: version {version}{back}\n")
        }
    }
}

fn policy_history(versions: &[PolicyView], now: Timestamp) -> String {
    if versions.is_empty() {
        return "no policy was set yet; set one: warren-control policy set FILE\n".to_owned();
    }
    let rows: Vec<_> = versions
        .iter()
        .rev()
        .map(|version| {
            vec![
                version.version.to_string(),
                version
                    .at
                    .map_or_else(|| "-".to_owned(), |at| relative(at, now)),
                version.by.clone(),
                match version.bytes {
                    Some(bytes) => format!("{} ({bytes} bytes)", version.file),
                    None => "no policy: allow all".to_owned(),
                },
                if version.in_force { "in force" } else { "" }.to_owned(),
            ]
        })
        .collect();
    let mut out = table(&["VERSION", "SET", "BY", "POLICY", ""], &rows);
    out.push_str("see one: warren-control policy get --version N; back to one: warren-control policy set --version N\n");
    out
}

/// A session, by its ends.
fn ends(check: &CheckView) -> String {
    format!("the session from {} to {}", check.source, check.destination)
}

fn ssh_checks(checks: &[CheckView], now: Timestamp) -> String {
    if checks.is_empty() {
        return "no session waits for a check\n".to_owned();
    }
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            vec![
                check.id.clone(),
                check.owner.clone(),
                check.source.clone(),
                check.destination.clone(),
                check.local_user.clone(),
                relative(check.since, now),
            ]
        })
        .collect();
    let mut out = table(&["ID", "OWNER", "FROM", "TO", "AS", "SINCE"], &rows);
    out.push_str("approve one: warren-control ssh-checks approve ID\n");
    out
}

fn owner(node: &NodeView) -> String {
    if node.tags.is_empty() {
        node.user.clone().unwrap_or_default()
    } else {
        node.tags.join(",")
    }
}

fn state(node: &NodeView, now: Timestamp) -> String {
    match (node.expired, node.online, node.last_seen) {
        (true, _, _) => "expired".to_owned(),
        (false, true, _) => "online".to_owned(),
        (false, false, Some(seen)) => format!("offline, seen {}", relative(seen, now)),
        (false, false, None) => "offline".to_owned(),
    }
}

fn nodes(nodes: &[NodeView], now: Timestamp) -> String {
    if nodes.is_empty() {
        return "no nodes yet; add one with a key from: warren-control preauthkeys create --user NAME\n"
            .to_owned();
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                node.id.to_string(),
                node.given_name.clone(),
                owner(node),
                node.ip_addresses.first().cloned().unwrap_or_default(),
                node.os.clone(),
                state(node, now),
                node.expiry
                    .map_or_else(|| "never".to_owned(), |at| relative(at, now)),
            ]
        })
        .collect();
    table(
        &[
            "ID",
            "NAME",
            "OWNER",
            "ADDRESS",
            "OS",
            "STATE",
            "KEY EXPIRES",
        ],
        &rows,
    )
}

fn node(node: &NodeView, now: Timestamp) -> String {
    let list = |items: &[String]| {
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join(", ")
        }
    };
    format!(
        "{} (id {})\n  name        {}\n  host name   {}\n  owner       {}\n  addresses   {}\n  state       {}\n  \
         joined      {}{}\n  key expires {}\n  system      {} {}\n  endpoints   {}\n  home relay  {}\n  routes      {}\n  \
         node key    {}\n  machine key {}\n",
        node.given_name,
        node.id,
        node.fqdn,
        printable(&node.name),
        owner(node),
        node.ip_addresses.join(", "),
        state(node, now),
        relative(node.created_at, now),
        if node.ephemeral { ", ephemeral" } else { "" },
        node.expiry
            .map_or_else(|| "never".to_owned(), |at| relative(at, now)),
        printable(&node.os),
        printable(&node.version),
        list(&node.endpoints),
        node.home_relay
            .map_or_else(|| "-".to_owned(), |region| region.to_string()),
        list(&node.approved_routes),
        node.node_key,
        node.machine_key,
    )
}

fn auth_keys(keys: &[AuthKeyView], now: Timestamp) -> String {
    if keys.is_empty() {
        return "no keys; create one: warren-control preauthkeys create --user NAME\n".to_owned();
    }
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut kind = vec![if key.reusable { "reusable" } else { "once" }];
            if key.ephemeral {
                kind.push("ephemeral");
            }
            let owner = key
                .user
                .clone()
                .into_iter()
                .chain(key.acl_tags.iter().cloned());
            vec![
                key.id.to_string(),
                owner.collect::<Vec<_>>().join(","),
                kind.join(", "),
                key.uses.to_string(),
                if key.usable { "works" } else { "no longer" }.to_owned(),
                key.expiration
                    .map_or_else(|| "never".to_owned(), |at| relative(at, now)),
            ]
        })
        .collect();
    table(&["ID", "OWNER", "KIND", "USES", "STATE", "EXPIRES"], &rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hints_name_the_state_folder_of_the_server() {
        let text = "no node; `warren-control nodes list` shows them\nstart it with `warren-control serve`\nwarren-control 0.1.0\n";
        assert_eq!(
            Hints::new(Path::new(DEFAULT_STATE_DIR)).complete(text),
            text
        );
        let hints = Hints::new(Path::new("/srv/net"));
        let complete = hints.complete(text);
        assert_eq!(
            complete,
            "no node; `warren-control --state-dir /srv/net nodes list` shows them\nstart it with `warren-control serve`\nwarren-control 0.1.0\n"
        );
        assert_eq!(hints.complete(&complete), complete, "once");
        let odd = Hints::new(Path::new("my net's"));
        assert_eq!(
            odd.complete("warren-control health"),
            r"warren-control --state-dir 'my net'\''s' health"
        );
    }

    #[test]
    fn columns_of_tables_are_aligned() {
        let rows = vec![
            vec!["1".into(), "long name".into()],
            vec!["22".into(), "x".into()],
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows),
            "ID  NAME\n1   long name\n22  x\n"
        );
    }

    #[test]
    fn a_host_name_cannot_command_the_terminal() {
        let rows = vec![vec!["\u{1b}[2Jroot\r\n".into(), "x".into()]];
        let shown = table(&["NAME", "OS"], &rows);
        assert_eq!(
            shown.lines().nth(1).unwrap(),
            "\u{fffd}[2Jroot\u{fffd}\u{fffd}  x"
        );
        assert_eq!(shown.lines().count(), 2);
    }

    #[test]
    fn times_are_relative_in_one_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |offset: i64| relative(Timestamp::from_second(1_000_000 + offset).unwrap(), now);
        assert_eq!(at(0), "now");
        assert_eq!(at(-5), "5 s ago");
        assert_eq!(at(-720), "12 min ago");
        assert_eq!(at(3 * 3600), "in 3 h");
        assert_eq!(at(180 * 86_400), "in 180 d");
    }
}
