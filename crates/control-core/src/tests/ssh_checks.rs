//! Sessions over SSH that wait for a check.

use std::time::Duration;

use warren_control_types::{NodeId, SshAction};

use super::world::{World, machine};
use crate::{AdminError, PendingId, Role, SshOutcome, SshQuestion, SshRefusal};

/// How often root is checked; ubuntu every time, git never.
const POLICY: &str = r#"{
    "tagOwners": {"tag:db": ["alice@"], "tag:ci": ["alice@"]},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "ssh": [
        {"action": "check", "checkPeriod": "1h", "src": ["alice@", "tag:ci"], "dst": ["tag:db"], "users": ["root"]},
        {"action": "check", "checkPeriod": "always", "src": ["alice@"], "dst": ["tag:db"], "users": ["ubuntu"]},
        {"action": "accept", "src": ["alice@"], "dst": ["tag:db"], "users": ["git"]},
    ],
}"#;

const LAPTOP: NodeId = NodeId(1);
const DB: NodeId = NodeId(2);
const PHONE: NodeId = NodeId(3);
const CI: NodeId = NodeId(4);
const OTHER_DB: NodeId = NodeId(5);

/// alice's laptop and phone, two databases, a tagged runner, and the policy.
fn world() -> World {
    let mut w = World::new();
    w.user("alice");
    let alice = w.reusable("alice");
    for (n, expected) in [(1, LAPTOP), (2, DB), (3, PHONE), (4, CI), (5, OTHER_DB)] {
        assert_eq!(w.join(n, &alice), expected);
    }
    for (node, tag) in [
        ("host2", "tag:db"),
        ("host4", "tag:ci"),
        ("host5", "tag:db"),
    ] {
        w.c.tag_node(node, [tag.to_owned()].into()).unwrap();
    }
    w.c.set_policy(Some(POLICY.to_owned())).unwrap();
    w.settle();
    w
}

fn question(source: NodeId, local_user: &str) -> SshQuestion {
    SshQuestion {
        source,
        destination: DB,
        local_user: local_user.to_owned(),
        check: None,
    }
}

fn again(question: &SshQuestion, id: &PendingId) -> SshQuestion {
    SshQuestion {
        check: Some(id.clone()),
        ..question.clone()
    }
}

impl World {
    /// Machine `n` asks.
    fn ask_as(&mut self, n: u8, question: &SshQuestion) -> Result<SshOutcome, SshRefusal> {
        let outcome = self.c.ssh_action(self.now, self.wall, machine(n), question);
        self.settle();
        outcome
    }

    /// The destination asks.
    fn ask(&mut self, question: &SshQuestion) -> SshOutcome {
        let n = u8::try_from(question.destination.0).unwrap();
        self.ask_as(n, question).unwrap()
    }

    fn action(&mut self, question: &SshQuestion) -> SshAction {
        match self.ask(question) {
            SshOutcome::Answer(action) => *action,
            SshOutcome::Park(id) => panic!("parked as {id}"),
        }
    }

    /// The id of a new check.
    fn held(&mut self, question: &SshQuestion) -> PendingId {
        let action = self.action(question);
        assert!(!action.accept && !action.reject, "{action:?}");
        let (_, id) = action.hold_and_delegate.split_once("&auth_id=").unwrap();
        assert!(
            action
                .message
                .contains(&format!("http://192.0.2.1:8080/ssh-check/{id}")),
            "{action:?}"
        );
        PendingId(id.to_owned())
    }

    fn parked(&mut self, question: &SshQuestion, id: &PendingId) {
        let outcome = self.ask(&again(question, id));
        assert_eq!(outcome, SshOutcome::Park(id.clone()));
    }

    fn approve(&mut self, id: &PendingId) {
        self.c.approve_ssh_check(self.now, id).unwrap();
        self.settle();
    }

    fn was_decided(&mut self, id: &PendingId) -> bool {
        let found = self.decided.contains(id);
        self.decided.clear();
        found
    }
}

#[test]
fn a_session_is_held_approved_and_then_let_in_for_the_period() {
    let mut w = world();
    let root = question(LAPTOP, "root");
    let first = w.action(&root);
    assert!(
        first.hold_and_delegate.starts_with(
            "http://192.0.2.1:8080/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER&auth_id="
        ),
        "{first:?}"
    );
    let id = w.held(&root);
    assert_eq!(id.0.len(), 24);
    w.parked(&root, &id);
    // Two sessions, two checks: the address of one does not serve for the other.
    let waiting = w.c.ssh_checks();
    assert_eq!(waiting.len(), 2);
    assert_eq!((waiting[1].source, waiting[1].destination), (LAPTOP, DB));
    assert_eq!(
        (&waiting[1].id, waiting[1].local_user.as_str()),
        (&id, "root")
    );

    w.approve(&id);
    assert!(w.was_decided(&id));
    let let_in = w.action(&again(&root, &id));
    assert!(let_in.accept && let_in.allow_agent_forwarding, "{let_in:?}");
    assert!(w.c.ssh_checks().is_empty(), "the other one goes on as well");

    // From any of alice's nodes, but not from a tagged one nor to another machine.
    w.pass(Duration::from_secs(3599));
    assert!(w.action(&root).accept);
    assert!(w.action(&question(PHONE, "root")).accept);
    w.held(&question(CI, "root"));
    let elsewhere = SshQuestion {
        destination: OTHER_DB,
        ..root.clone()
    };
    w.held(&elsewhere);
    // Being let in is not a check: the hour ends when it ends.
    w.pass(Duration::from_secs(1));
    w.held(&root);
}

#[test]
fn always_means_each_session() {
    let mut w = world();
    let ubuntu = question(LAPTOP, "ubuntu");
    let (one, two) = (w.held(&ubuntu), w.held(&ubuntu));
    assert_ne!(one, two);
    w.parked(&ubuntu, &one);
    w.parked(&ubuntu, &two);
    w.approve(&one);
    assert_eq!(w.decided, std::slice::from_ref(&one));
    assert!(w.action(&again(&ubuntu, &one)).accept);
    w.parked(&ubuntu, &two);
    w.held(&ubuntu);
    // An answer that got lost can be had again, for a minute.
    assert!(w.action(&again(&ubuntu, &one)).accept);
    w.pass(Duration::from_secs(60));
    let after = w.action(&again(&ubuntu, &one));
    assert!(!after.accept && !after.hold_and_delegate.is_empty());
}

#[test]
fn refused_or_late_check_ends_the_session() {
    let mut w = world();
    let root = question(LAPTOP, "root");
    let id = w.held(&root);
    w.parked(&root, &id);
    w.c.deny_ssh_check(w.now, &id).unwrap();
    w.settle();
    assert!(w.was_decided(&id));
    assert!(w.action(&again(&root, &id)).reject);
    assert!(matches!(
        w.c.approve_ssh_check(w.now, &id),
        Err(AdminError::NoSshCheck(_))
    ));

    let id = w.held(&root);
    w.parked(&root, &id);
    let (at, _) = w.c.next_deadline().unwrap();
    assert!(at <= w.now + Duration::from_secs(900));
    w.pass(Duration::from_secs(899));
    assert!(!w.was_decided(&id));
    w.pass(Duration::from_secs(1));
    assert!(w.was_decided(&id));
    let late = w.action(&again(&root, &id));
    assert!(late.reject && late.message.contains("too long"), "{late:?}");
    assert!(w.c.ssh_checks().is_empty());

    // After a restart the session goes on with another address.
    let mut restarted = World::with(w.stored.clone());
    let fresh = restarted.action(&again(&root, &id));
    assert!(!fresh.hold_and_delegate.is_empty());
}

#[test]
fn only_the_destination_asks_and_only_for_its_session() {
    let mut w = world();
    let root = question(LAPTOP, "root");
    for other in [1, 3, 5, 9] {
        assert_eq!(w.ask_as(other, &root), Err(SshRefusal::NotTheDestination));
    }
    let nowhere = SshQuestion {
        destination: NodeId(77),
        ..root.clone()
    };
    assert_eq!(w.ask_as(2, &nowhere), Err(SshRefusal::NotTheDestination));
    let id = w.held(&root);
    for other in [question(LAPTOP, "ubuntu"), question(PHONE, "root")] {
        let asked = w.ask_as(2, &again(&other, &id));
        assert_eq!(asked, Err(SshRefusal::OtherSession));
    }
    let elsewhere = SshQuestion {
        destination: OTHER_DB,
        ..again(&root, &id)
    };
    assert_eq!(w.ask_as(5, &elsewhere), Err(SshRefusal::OtherSession));
    w.c.expire_node(w.wall, "host2").unwrap();
    w.settle();
    assert_eq!(w.ask_as(2, &root), Err(SshRefusal::NotTheDestination));
}

#[test]
fn the_policy_of_the_moment_decides() {
    let mut w = world();
    // No rule, a rule without a check, no such node, and a name that is too long.
    for nothing in [
        question(PHONE, "postgres"),
        question(PHONE, "git"),
        question(NodeId(77), "root"),
        question(DB, "root"),
        question(PHONE, &"x".repeat(100_000)),
    ] {
        let action = w.action(&nothing);
        assert!(action.reject && !action.message.is_empty(), "{action:?}");
    }
    let root = question(LAPTOP, "root");
    let id = w.held(&root);
    w.approve(&id);
    assert!(w.action(&root).accept);
    let ubuntu = question(LAPTOP, "ubuntu");
    let id = w.held(&ubuntu);
    w.parked(&ubuntu, &id);
    w.decided.clear();

    // Without the rules no session waits, and passed checks do not help.
    let roles = POLICY.replace(r#""src": ["alice@""#, r#""src": ["autogroup:owner""#);
    w.c.set_policy(Some(roles)).unwrap();
    w.settle();
    assert!(w.was_decided(&id));
    assert!(w.action(&again(&ubuntu, &id)).reject);
    assert!(w.action(&root).reject);
    // With them again it does; a role is as good as a name.
    w.c.set_role("alice", Role::Owner).unwrap();
    w.settle();
    assert!(w.action(&root).accept);
    let id = w.held(&ubuntu);
    w.parked(&ubuntu, &id);
    w.decided.clear();

    // The source belongs to no person any more.
    w.c.tag_node("host1", ["tag:ci".to_owned()].into()).unwrap();
    w.settle();
    assert!(w.was_decided(&id));
    assert!(w.action(&again(&ubuntu, &id)).reject);
    let id = w.held(&root);
    w.parked(&root, &id);
    w.decided.clear();
    w.c.delete_node("host2").unwrap();
    w.settle();
    assert!(w.was_decided(&id));
    let gone = w.ask_as(2, &again(&root, &id));
    assert_eq!(gone, Err(SshRefusal::NotTheDestination));
    w.c.set_policy(None).unwrap();
    w.settle();
    assert!(w.c.ssh_checks().is_empty());
}

#[test]
fn places_are_limited_and_those_who_wait_keep_theirs() {
    let mut w = world();
    let root = question(LAPTOP, "root");
    // No connection waits for these: the oldest goes first.
    let ids: Vec<PendingId> = (0..5).map(|_| w.held(&root)).collect();
    let waiting = |w: &World| -> Vec<PendingId> {
        w.c.ssh_checks().into_iter().map(|view| view.id).collect()
    };
    assert_eq!(waiting(&w), ids[1..]);
    for id in &ids[1..] {
        w.parked(&root, id);
    }
    let refused = w.action(&root);
    assert!(refused.reject && refused.message.contains("Too many"));
    // Others are not in the way of it, nor it in theirs.
    w.held(&question(PHONE, "root"));
    w.held(&SshQuestion {
        destination: OTHER_DB,
        ..root.clone()
    });
    // A node that goes away leaves a place.
    w.c.stopped_waiting(&ids[2]);
    w.held(&root);
    assert!(!waiting(&w).contains(&ids[2]));

    // One machine cannot take all places by making up where sessions come from.
    let alice = w.reusable("alice");
    for n in 10..30 {
        let source = w.join(n, &alice);
        let question = question(source, "root");
        for _ in 0..4 {
            let asked = w.action(&question);
            if let Some((_, id)) = asked.hold_and_delegate.split_once("&auth_id=") {
                w.parked(&question, &PendingId(id.to_owned()));
            } else {
                assert!(asked.reject);
            }
        }
    }
    let leading = |w: &World, to| {
        let checks = w.c.ssh_checks();
        checks.iter().filter(|view| view.destination == to).count()
    };
    assert_eq!((leading(&w, DB), leading(&w, OTHER_DB)), (32, 1));
}
