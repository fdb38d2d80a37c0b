//! The rules of a policy, as a table, and as properties over any policy.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use jiff::Timestamp;
use proptest::prelude::*;
use warren_control_types::{NodeId, SshAction, SshPolicy, SshPrincipal, SshRule, StableNodeId};
use warren_ssh_policy::{Account, CheckEnds, Refusal, Source, Verdict, Wanted, evaluate};

const NOW: i64 = 1_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn policy(text: &str) -> SshPolicy {
    serde_json::from_str(text).unwrap()
}

fn node() -> StableNodeId {
    StableNodeId("n1".to_owned())
}

/// The verdict about alice's node at 100.64.0.1.
fn verdict(policy: &SshPolicy, name: &str, account: Account) -> Verdict {
    let source = Source {
        node: &node(),
        address: "100.64.0.1".parse().unwrap(),
        login: "alice@example.com",
    };
    evaluate(policy, &source, &Wanted { name, account }, now())
}

/// The verdict in few words, for tables.
fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Granted(grant) => format!("as {}", grant.local_user),
        Verdict::Check(_) => "check".to_owned(),
        Verdict::Refused(Refusal::NoRule) => "no rule".to_owned(),
        Verdict::Refused(Refusal::OtherUsers) => "other users".to_owned(),
        Verdict::Refused(Refusal::Rejected(message)) => format!("rejected: {message}"),
        Verdict::Refused(Refusal::Recording) => "recording".to_owned(),
        Verdict::Refused(Refusal::NoAction) => "no action".to_owned(),
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    const ME: &str = r#""principals":[{"nodeIP":"100.64.0.1"}]"#;
    const ACCEPT: &str = r#""action":{"accept":true}"#;
    let one = |principal: &str| {
        format!(r#"{{"rules":[{{"principals":[{principal}],"sshUsers":{{"*":"="}},{ACCEPT}}}]}}"#)
    };
    let users = |users: &str| format!(r#"{{"rules":[{{{ME},"sshUsers":{users},{ACCEPT}}}]}}"#);
    let action = |action: &str| {
        format!(r#"{{"rules":[{{{ME},"sshUsers":{{"*":"="}},"action":{action}}}]}}"#)
    };
    let expires = |at: i64| {
        let at = Timestamp::from_second(at).unwrap();
        format!(r#"{{"rules":[{{"ruleExpires":"{at}",{ME},"sshUsers":{{"*":"="}},{ACCEPT}}}]}}"#)
    };
    let ordinary = Account::Ordinary;
    let rows: Vec<(String, &str, Account, &str)> = vec![
        // Nothing named, nothing given.
        (r#"{"rules":null}"#.into(), "bob", ordinary, "no rule"),
        (r#"{"rules":[{}]}"#.into(), "bob", ordinary, "no rule"),
        (one("{}"), "bob", ordinary, "no rule"),
        (one(r#"{"node":""}"#), "bob", ordinary, "no rule"),
        (one(r#"{"pubKeys":["x"]}"#), "bob", ordinary, "no rule"),
        (users("{}"), "bob", ordinary, "other users"),
        (users("null"), "bob", ordinary, "other users"),
        (action("null"), "bob", ordinary, "no rule"),
        (action("{}"), "bob", ordinary, "no action"),
        // Principals.
        (one(r#"{"any":true}"#), "bob", ordinary, "as bob"),
        (one(r#"{"node":"n1"}"#), "bob", ordinary, "as bob"),
        (one(r#"{"node":"n2"}"#), "bob", ordinary, "no rule"),
        (
            one(r#"{"nodeIP":"100.64.0.2"}"#),
            "bob",
            ordinary,
            "no rule",
        ),
        (
            one(r#"{"nodeIP":"100.64.0.1/32"}"#),
            "bob",
            ordinary,
            "no rule",
        ),
        (
            one(r#"{"userLogin":"alice@example.com"}"#),
            "bob",
            ordinary,
            "as bob",
        ),
        (
            one(r#"{"userLogin":"bob@example.com"}"#),
            "bob",
            ordinary,
            "no rule",
        ),
        (
            one(r#"{"node":"n2"},{"any":true}"#),
            "bob",
            ordinary,
            "as bob",
        ),
        (
            one(r#"{"node":"n2","userLogin":"alice@example.com"}"#),
            "bob",
            ordinary,
            "as bob",
        ),
        // Users.
        (
            users(r#"{"*":"="}"#),
            "nobody-here",
            Account::Missing,
            "other users",
        ),
        (users(r#"{"*":"="}"#), "root", Account::Root, "other users"),
        (
            users(r#"{"root":"="}"#),
            "root",
            Account::Root,
            "other users",
        ),
        (users(r#"{"*":"="}"#), "toor", Account::Root, "other users"),
        (
            users(r#"{"root":"root"}"#),
            "root",
            Account::Root,
            "as root",
        ),
        (
            users(r#"{"*":"=","root":""}"#),
            "root",
            Account::Root,
            "other users",
        ),
        (
            users(r#"{"bob":"ubuntu"}"#),
            "bob",
            Account::Missing,
            "as ubuntu",
        ),
        (
            users(r#"{"*":"ubuntu","bob":""}"#),
            "bob",
            ordinary,
            "other users",
        ),
        (users(r#"{"bob":"bob"}"#), "eve", ordinary, "other users"),
        (users(r#"{"*":"*"}"#), "bob", ordinary, "as *"),
        // Actions.
        (
            action(r#"{"reject":true,"accept":true,"message":"no"}"#),
            "bob",
            ordinary,
            "rejected: no",
        ),
        (
            action(r#"{"accept":true,"holdAndDelegate":"https://x/y"}"#),
            "bob",
            ordinary,
            "check",
        ),
        (
            action(r#"{"accept":true,"recorders":["100.64.0.3:80"]}"#),
            "bob",
            ordinary,
            "recording",
        ),
        (
            action(r#"{"message":"hello"}"#),
            "bob",
            ordinary,
            "no action",
        ),
        // A rule that rejects needs no user.
        (
            format!(r#"{{"rules":[{{{ME},"action":{{"reject":true}}}}]}}"#),
            "bob",
            ordinary,
            "rejected: ",
        ),
        // Expiry: the time itself is too late.
        (expires(NOW + 1), "bob", ordinary, "as bob"),
        (expires(NOW), "bob", ordinary, "no rule"),
        (expires(NOW - 1), "bob", ordinary, "no rule"),
        // Order.
        (
            format!(
                r#"{{"rules":[{{{ME},"sshUsers":{{"eve":"eve"}},{ACCEPT}}},
                   {{{ME},"action":{{"reject":true,"message":"second"}}}},
                   {{{ME},"sshUsers":{{"*":"="}},{ACCEPT}}}]}}"#
            ),
            "bob",
            ordinary,
            "rejected: second",
        ),
    ];
    for (text, name, account, expected) in rows {
        assert_eq!(
            shown(&verdict(&policy(&text), name, account)),
            expected,
            "{text} {name}"
        );
    }
}

#[test]
fn a_grant_holds_only_what_its_action_names() {
    let plain = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"*":"="},"action":{"accept":true}}]}"#,
    );
    let Verdict::Granted(grant) = verdict(&plain, "bob", Account::Ordinary) else {
        panic!("refused");
    };
    assert!(!grant.agent_forwarding && !grant.local_forwarding && !grant.remote_forwarding);
    assert_eq!((grant.session_duration, grant.was_checked), (None, false));
    assert!(!grant.environment.accepts("FOO", "1", true));
    let full = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"*":"="},"acceptEnv":["F*"],
            "action":{"accept":true,"allowAgentForwarding":true,"sessionDuration":2000000000,
            "allowLocalPortForwarding":true,"allowRemotePortForwarding":true}}]}"#,
    );
    let Verdict::Granted(grant) = verdict(&full, "bob", Account::Ordinary) else {
        panic!("refused");
    };
    assert!(grant.agent_forwarding && grant.local_forwarding && grant.remote_forwarding);
    assert_eq!(grant.session_duration.unwrap().as_secs(), 2);
    assert!(grant.environment.accepts("FOO", "1", true));
}

#[test]
fn a_check_goes_on_with_the_answers_of_the_server() {
    let policy = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"*":"="},
            "action":{"message":"wait","holdAndDelegate":"https://s/a?u=$LOCAL_USER"}}]}"#,
    );
    let Verdict::Check(check) = verdict(&policy, "bob", Account::Ordinary) else {
        panic!("no check");
    };
    assert_eq!(check.message, "wait");
    let ends = CheckEnds {
        source_address: "100.64.0.1".parse().unwrap(),
        source: NodeId(1),
        own_address: "100.64.0.2".parse().unwrap(),
        own: NodeId(2),
        wanted_user: "bob",
    };
    assert_eq!(check.target(&ends), "/a?u=bob");
    let action = |text: &str| serde_json::from_str::<SshAction>(text).unwrap();
    let again = check.answer(&action(
        r#"{"message":"open X","holdAndDelegate":"/b?id=7"}"#,
    ));
    let Verdict::Check(again) = again else {
        panic!("no second check");
    };
    assert_eq!(
        (again.message.as_str(), again.target(&ends).as_str()),
        ("open X", "/b?id=7")
    );
    let granted = again.answer(&action(r#"{"accept":true}"#));
    let Verdict::Granted(grant) = &granted else {
        panic!("refused");
    };
    assert_eq!(
        (grant.local_user.as_str(), grant.was_checked),
        ("bob", true)
    );
    for (answer, expected) in [
        (r#"{}"#, "no action"),
        (r#"{"reject":true}"#, "rejected: "),
        (
            r#"{"accept":true,"recorders":["100.64.0.3:80"]}"#,
            "recording",
        ),
    ] {
        assert_eq!(shown(&again.answer(&action(answer))), expected);
    }
}

#[test]
fn a_login_goes_on_only_under_a_policy_that_would_let_it_in_again() {
    let accept = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"bob":"bob"},"action":{"accept":true}}]}"#,
    );
    let check = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"bob":"bob"},
            "action":{"holdAndDelegate":"/x"}}]}"#,
    );
    let other = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"bob":"eve"},"action":{"accept":true}}]}"#,
    );
    let now = |policy: &SshPolicy| verdict(policy, "bob", Account::Ordinary);
    let forwards = policy(
        r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"bob":"bob"},
            "action":{"accept":true,"allowLocalPortForwarding":true}}]}"#,
    );
    let Verdict::Granted(forwarding) = now(&forwards) else {
        panic!("refused");
    };
    assert!(forwarding.holds_under(&now(&forwards)));
    assert!(
        !forwarding.holds_under(&now(&accept)),
        "the permission is gone"
    );
    let Verdict::Granted(plain) = now(&accept) else {
        panic!("refused");
    };
    let Verdict::Check(held) = now(&check) else {
        panic!("no check");
    };
    let accepted = serde_json::from_str(r#"{"accept":true}"#).unwrap();
    let Verdict::Granted(checked) = held.answer(&accepted) else {
        panic!("refused");
    };
    for (policy, holds_plain, holds_checked) in [
        (&accept, true, true),
        (&check, false, true),
        (&other, false, false),
        (&SshPolicy::default(), false, false),
    ] {
        assert_eq!(plain.holds_under(&now(policy)), holds_plain, "{policy:?}");
        assert_eq!(
            checked.holds_under(&now(policy)),
            holds_checked,
            "{policy:?}"
        );
    }
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["root", "bob", "eve", "*", "=", ""]).prop_map(str::to_owned)
}

fn any_principal() -> impl Strategy<Value = SshPrincipal> {
    let node = prop::option::of(prop::sample::select(vec!["n1", "n2"]));
    let address = prop::sample::select(vec!["", "100.64.0.1", "100.64.0.2", "x"]);
    let login = prop::sample::select(vec!["", "alice@example.com", "bob@example.com"]);
    (node, address, login, prop::bool::weighted(0.1)).prop_map(|(node, address, login, any)| {
        SshPrincipal {
            node: node.map(|node| StableNodeId(node.to_owned())),
            node_ip: address.to_owned(),
            user_login: login.to_owned(),
            any,
        }
    })
}

fn any_rule() -> impl Strategy<Value = SshRule> {
    let action = (any::<[bool; 6]>(), prop::bool::weighted(0.2)).prop_map(|(flags, records)| {
        let [accept, reject, hold, agent, local, remote] = flags;
        SshAction {
            accept,
            reject: reject && !accept,
            hold_and_delegate: if hold { "/x".to_owned() } else { String::new() },
            allow_agent_forwarding: agent,
            allow_local_port_forwarding: local,
            allow_remote_port_forwarding: remote,
            recorders: records
                .then(|| "100.64.0.3:80".parse().unwrap())
                .into_iter()
                .collect(),
            ..SshAction::default()
        }
    });
    (
        prop::option::of(NOW - 2..NOW + 3),
        prop::collection::vec(any_principal(), 0..3),
        prop::collection::btree_map(any_name(), any_name(), 0..3),
        prop::option::of(action),
    )
        .prop_map(|(expires, principals, ssh_users, action)| SshRule {
            rule_expires: expires.map(|at| Timestamp::from_second(at).unwrap()),
            principals,
            ssh_users,
            action,
            accept_env: Vec::new(),
        })
}

fn is_named(principal: &SshPrincipal) -> bool {
    principal.any
        || principal.node == Some(node())
        || principal.node_ip.parse() == Ok("100.64.0.1".parse::<IpAddr>().unwrap())
        || principal.user_login == "alice@example.com"
}

proptest! {
    /// A login that is granted, or that the server is asked about, is named by a rule:
    /// one with this source, this user, this action and each of the permissions.
    #[test]
    fn a_login_that_no_rule_names_gets_nothing(
        rules in prop::collection::vec(any_rule(), 0..5),
        name in any_name(),
        is_root in any::<bool>(),
        exists in any::<bool>(),
    ) {
        let account = match (exists, is_root) {
            (false, _) => Account::Missing,
            (true, true) => Account::Root,
            (true, false) => Account::Ordinary,
        };
        let verdict = verdict(&SshPolicy { rules: rules.clone() }, &name, account);
        let maps = |rule: &SshRule, local: &str| {
            let entry = rule.ssh_users.get(&name).or_else(|| rule.ssh_users.get("*"));
            match entry.map(String::as_str) {
                None | Some("") => false,
                Some("=") => local == name && exists && !is_root,
                Some(other) => local == other,
            }
        };
        let named = |rule: &&SshRule| {
            rule.rule_expires.is_none_or(|at| at > now()) && rule.principals.iter().any(is_named)
        };
        match verdict {
            Verdict::Granted(grant) => {
                let by_rule = rules.iter().filter(named).any(|rule| {
                    let Some(action) = &rule.action else { return false };
                    action.accept
                        && !action.reject
                        && action.recorders.is_empty()
                        && action.hold_and_delegate.is_empty()
                        && action.allow_agent_forwarding == grant.agent_forwarding
                        && action.allow_local_port_forwarding == grant.local_forwarding
                        && action.allow_remote_port_forwarding == grant.remote_forwarding
                        && maps(rule, &grant.local_user)
                });
                prop_assert!(by_rule);
                // No earlier rule that names the source rejects.
            }
            Verdict::Check(_) => {
                let by_rule = rules.iter().filter(named).any(|rule| {
                    let Some(action) = &rule.action else { return false };
                    !action.hold_and_delegate.is_empty() && !action.reject
                });
                prop_assert!(by_rule);
            }
            Verdict::Refused(_) => {}
        }
    }

    /// Rules behind the one that decided do not matter.
    #[test]
    fn later_rules_do_not_change_a_decision(
        rules in prop::collection::vec(any_rule(), 0..4),
        later in any_rule(),
    ) {
        let before = verdict(&SshPolicy { rules: rules.clone() }, "bob", Account::Ordinary);
        let undecided = matches!(
            before,
            Verdict::Refused(Refusal::NoRule | Refusal::OtherUsers)
        );
        let all = rules.into_iter().chain([later]).collect();
        let after = verdict(&SshPolicy { rules: all }, "bob", Account::Ordinary);
        prop_assert!(undecided || before == after);
    }
}
