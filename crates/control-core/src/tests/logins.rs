//! Logins at identity providers: browsers, forgeries, users, groups, ends of keys.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::prelude::*;
use warren_control_types::NodeId;
use warren_oidc::Account;

use super::world::{World, key, machine, request};
use crate::logins::STEP_TTL;
use crate::{
    BegunLogin, JoinMethod, LoginError, LoginPage, LoginPurpose, LoginResult, LoginSubject,
    PendingId, RegisterOutcome, SshOutcome, SshQuestion,
};

const ISSUER: &str = "https://id.example";

fn account(subject: &str, email: Option<&str>) -> Account {
    Account {
        provider: "okta".to_owned(),
        issuer: ISSUER.to_owned(),
        subject: subject.to_owned(),
        email: email.map(str::to_owned),
        username: None,
        display_name: Some(format!("Display of {subject}")),
        picture: None,
        groups: BTreeSet::new(),
        token_expiry: 0,
    }
}

fn alice() -> Account {
    account("a-1", Some("alice@example.com"))
}

impl World {
    /// Machine `n` asks to join, and waits under this id.
    fn waits(&mut self, n: u8) -> PendingId {
        let url = self.answer(n, &request(n, "")).auth_url;
        PendingId(url.rsplit('/').next().unwrap().to_owned())
    }

    fn begin(&mut self, purpose: LoginPurpose) -> Result<BegunLogin, LoginError> {
        self.c
            .begin_login(self.now, self.wall, purpose, "okta", None)
    }

    /// A login up to the question; the id, cookie and token of the page.
    fn asked(&mut self, purpose: LoginPurpose, account: Account) -> (PendingId, String, String) {
        let begun = self.begin(purpose).unwrap();
        let returned = self.c.login_returned("okta", &begun.state, &begun.cookie);
        assert!(returned.unwrap().secrets == begun.secrets);
        let cookie = self
            .c
            .login_identified(self.now, &begun.id, account, None)
            .unwrap();
        let LoginPage::Confirm { token, .. } = self.c.login_page(&begun.id, &cookie).unwrap()
        else {
            panic!("the person is asked")
        };
        (begun.id, cookie, token)
    }

    fn decide(
        &mut self,
        (id, cookie, token): &(PendingId, String, String),
        connect: bool,
    ) -> Result<LoginResult, LoginError> {
        let decided = self
            .c
            .decide_login(self.now, self.wall, id, cookie, token, connect);
        self.settle();
        decided
    }

    /// Machine `n` joins by a login with this account.
    fn log_in(&mut self, n: u8, account: Account) -> Result<NodeId, LoginError> {
        let id = self.waits(n);
        let asked = self.asked(LoginPurpose::Machine(id), account);
        match self.decide(&asked, true)? {
            LoginResult::Connected(node) => Ok(node),
            other => panic!("{other:?}"),
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        let user = self.c.node(node).unwrap().user.unwrap();
        self.c.find_user(user).unwrap().name.clone()
    }
}

#[test]
fn a_login_connects_the_machine_that_waits_and_no_other() {
    let mut w = World::new();
    let id = w.waits(1);
    let other = w.waits(2);
    let mut followup = request(1, "");
    followup.followup = w.c.auth_url(&id);
    assert!(matches!(w.register(1, &followup), RegisterOutcome::Park(_)));
    let asked = w.asked(LoginPurpose::Machine(id.clone()), alice());
    let page = w.c.login_page(&asked.0, &asked.1).unwrap();
    let LoginPage::Confirm {
        about: LoginSubject::Machine(waiting),
        account,
        ..
    } = page
    else {
        panic!("the person is asked about the machine")
    };
    assert_eq!(
        (waiting.hostname.as_str(), waiting.node_key),
        ("host1", key(1))
    );
    assert_eq!(*account, alice());
    // Nothing is connected before the person decides.
    assert!(w.c.snapshot().nodes.is_empty() && w.c.snapshot().users.is_empty());
    let LoginResult::Connected(node) = w.decide(&asked, true).unwrap() else {
        panic!("the machine joins")
    };
    assert_eq!(w.decided, [id]);
    let record = w.c.node(node).unwrap();
    assert_eq!(record.join_method, JoinMethod::Login);
    assert_eq!(record.machine, machine(1));
    let answer = w.answer(1, &followup);
    assert!(answer.machine_authorized);
    assert_eq!(answer.login.login_name, "alice@example.com");
    assert_eq!(answer.login.provider, "okta");
    assert_eq!(answer.user.display_name, "Display of a-1");
    assert!(w.c.waiting(&other).is_some());
    let page = w.c.login_page(&asked.0, &asked.1).unwrap();
    assert!(matches!(
        page,
        LoginPage::Done {
            result: LoginResult::Connected(_),
            ..
        }
    ));
    assert_eq!(w.stored, w.c.snapshot());
}

#[test]
fn every_step_works_once_and_in_its_own_browser() {
    let mut w = World::new();
    let id = w.waits(1);
    let purpose = LoginPurpose::Machine(id);
    let begun = w.begin(purpose.clone()).unwrap();
    let mut back = |provider: &str, state: &str, cookie: &str| {
        w.c.login_returned(provider, state, cookie).map(drop)
    };
    let unknown = Err(LoginError::Unknown);
    // A state that was guessed, of another login, or for another provider.
    assert_eq!(back("okta", "", &begun.cookie), unknown);
    assert_eq!(
        back("okta", &format!("{}.x", begun.id), &begun.cookie),
        unknown
    );
    let (_, random) = begun.state.split_once('.').unwrap();
    assert_eq!(
        back("okta", &format!("{:024}.{random}", 0), &begun.cookie),
        unknown
    );
    assert_eq!(back("google", &begun.state, &begun.cookie), unknown);
    // The right one in a browser without the cookie, which changes nothing.
    let other = Err(LoginError::OtherBrowser);
    assert_eq!(back("okta", &begun.state, ""), other);
    assert_eq!(back("okta", &begun.state, &begun.state), other);
    assert_eq!(back("okta", &begun.state, &begun.cookie), Ok(()));
    // A replay.
    assert_eq!(back("okta", &begun.state, &begun.cookie), unknown);
    // No page before the account is known, and the old cookie opens none after it.
    assert_eq!(
        w.c.login_page(&begun.id, &begun.cookie).unwrap_err(),
        LoginError::Unknown
    );
    let mut of_other_provider = alice();
    of_other_provider.provider = "google".to_owned();
    let identified =
        w.c.login_identified(w.now, &begun.id, of_other_provider, None);
    assert_eq!(identified.unwrap_err(), LoginError::Unknown);
    let cookie =
        w.c.login_identified(w.now, &begun.id, alice(), None)
            .unwrap();
    assert!(
        w.c.login_identified(w.now, &begun.id, alice(), None)
            .is_err()
    );
    assert_eq!(
        w.c.login_page(&begun.id, &begun.cookie).unwrap_err(),
        LoginError::OtherBrowser
    );
    let Ok(LoginPage::Confirm { token, .. }) = w.c.login_page(&begun.id, &cookie) else {
        panic!("the person is asked")
    };
    let mut decide = |cookie: &str, token: &str| {
        w.c.decide_login(w.now, w.wall, &begun.id, cookie, token, true)
    };
    assert_eq!(decide("", &token), Err(LoginError::OtherBrowser));
    assert_eq!(decide(&cookie, ""), Err(LoginError::Forged));
    assert_eq!(decide(&cookie, &cookie), Err(LoginError::Forged));
    assert!(decide(&cookie, &token).is_ok());
    assert_eq!(decide(&cookie, &token), Err(LoginError::Unknown));
    assert_eq!(w.c.snapshot().nodes.len(), 1);
    // Nothing waits any more, so no further login begins.
    assert_eq!(w.begin(purpose).unwrap_err(), LoginError::NoMachine);
}

#[test]
fn declining_connects_nothing() {
    let mut w = World::new();
    let id = w.waits(1);
    let asked = w.asked(LoginPurpose::Machine(id), alice());
    assert_eq!(w.decide(&asked, false), Ok(LoginResult::Declined));
    assert!(w.c.snapshot().nodes.is_empty() && w.c.snapshot().users.is_empty());
    assert_eq!(w.decide(&asked, true), Err(LoginError::Unknown));
}

#[test]
fn logins_and_machines_wait_for_a_limited_time() {
    let mut w = World::new();
    let id = w.waits(1);
    let begun = w.begin(LoginPurpose::Machine(id.clone())).unwrap();
    w.pass(STEP_TTL - Duration::from_secs(1));
    assert!(
        w.c.login_returned("okta", &begun.state, &begun.cookie)
            .is_ok()
    );
    w.pass(Duration::from_secs(1));
    let late = w.c.login_identified(w.now, &begun.id, alice(), None);
    assert_eq!(late.unwrap_err(), LoginError::Unknown);
    // The machine stops waiting while the person is asked.
    let asked = w.asked(LoginPurpose::Machine(id), alice());
    w.pass(Duration::from_secs(6 * 60));
    assert_eq!(
        w.c.login_page(&asked.0, &asked.1).unwrap_err(),
        LoginError::NoMachine
    );
    assert_eq!(w.decide(&asked, true), Err(LoginError::NoMachine));
    assert!(w.c.snapshot().users.is_empty());
}

#[test]
fn ten_thousand_logins_are_bounded_and_spare_those_of_others() {
    let mut w = World::new();
    let victim = w.waits(1);
    let source = |n: u32| Some(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)));
    let own =
        w.c.begin_login(
            w.now,
            w.wall,
            LoginPurpose::Machine(victim),
            "okta",
            source(1),
        )
        .unwrap();
    // One source, with as many machines as it likes.
    let flood = |w: &mut World, n: u8, source| {
        let id = w.waits(n);
        for _ in 0..100 {
            let purpose = LoginPurpose::Machine(id.clone());
            w.c.begin_login(w.now, w.wall, purpose, "okta", source)
                .unwrap();
        }
    };
    for n in 2..102 {
        flood(&mut w, n, source(2));
    }
    assert!(w.c.logins_len() <= 1 + 64);
    assert!(w.c.login_returned("okta", &own.state, &own.cookie).is_ok());
    // Many sources: bounded in all.
    for n in 130..250 {
        flood(&mut w, n, source(u32::from(n)));
    }
    assert!(w.c.logins_len() <= 1024);
    w.pass(STEP_TTL);
    assert_eq!(w.c.logins_len(), 0);
}

#[test]
fn issuer_and_subject_are_the_person_whatever_the_names() {
    let mut w = World::new();
    let first = w.log_in(1, alice()).unwrap();
    // The same person with another address keeps the user.
    let renamed = account("a-1", Some("alice.l@example.com"));
    let second = w.log_in(2, renamed).unwrap();
    assert_eq!(
        w.c.node(first).unwrap().user,
        w.c.node(second).unwrap().user
    );
    assert_eq!(w.name_of(first), "alice.l@example.com");
    // Without an address that can be trusted, the name stays.
    w.log_in(10, account("a-1", None)).unwrap();
    assert_eq!(w.name_of(first), "alice.l@example.com");
    // Another person with the address does not become that user.
    let taken = w.log_in(3, account("b-2", Some("ALICE.L@example.com")));
    let Err(LoginError::NameTaken {
        name,
        issuer,
        subject,
    }) = taken
    else {
        panic!("{taken:?}")
    };
    assert_eq!(
        (name.as_str(), issuer.as_str(), subject.as_str()),
        ("ALICE.L@example.com", ISSUER, "b-2")
    );
    // Neither does the same subject at another issuer, nor another spelling of it.
    let mut elsewhere = account("a-1", None);
    elsewhere.issuer = format!("{ISSUER}/");
    let third = w.log_in(4, elsewhere).unwrap();
    assert_ne!(w.c.node(third).unwrap().user, w.c.node(first).unwrap().user);
    // A name that the administrator chose is not replaced.
    w.c.rename_user("alice.l@example.com", "queen").unwrap();
    w.log_in(11, alice()).unwrap();
    assert_eq!(w.name_of(first), "queen");
    assert_eq!(w.stored, w.c.snapshot());
}

#[test]
fn subjects_that_look_alike_are_two_users() {
    let mut w = World::new();
    let subjects = [
        "auth0|5f7c",
        "auth0|5F7C",
        "a/b",
        "a//b",
        "a/../b",
        "a b",
        " a b",
        "a+20b",
        "..",
        "é",
        "7",
    ];
    let mut seen = BTreeSet::new();
    for (n, subject) in (1..).zip(subjects) {
        let node = w.log_in(n, account(subject, None)).unwrap();
        assert!(seen.insert(w.c.node(node).unwrap().user), "{subject}");
    }
    let long = "x|".repeat(127);
    let node = w.log_in(100, account(&long, None)).unwrap();
    assert!(w.name_of(node).len() <= 254);
}

#[test]
fn names_of_a_provider_cannot_be_addresses_of_other_people() {
    let mut w = World::new();
    let mut mallory = account("m-1", None);
    mallory.username = Some("alice@example.com".to_owned());
    let node = w.log_in(1, mallory).unwrap();
    assert_eq!(w.name_of(node), "alice+40example.com@okta");
    // Two with one short name: the second is known by the subject.
    for (n, subject) in [(2, "s-2"), (3, "s-3")] {
        let mut person = account(subject, None);
        person.username = Some("sam".to_owned());
        w.log_in(n, person).unwrap();
    }
    assert!(w.c.find_user("sam@okta").is_ok());
    assert!(w.c.find_user("s-3@okta").is_ok());
}

#[test]
fn an_administrator_links_an_account_to_a_user() {
    let mut w = World::new();
    w.user("alice@example.com");
    assert!(matches!(
        w.log_in(1, alice()),
        Err(LoginError::NameTaken { .. })
    ));
    w.c.link_user("alice@example.com", ISSUER, "a-1").unwrap();
    w.settle();
    let node = w.log_in(3, alice()).unwrap();
    assert_eq!(w.name_of(node), "alice@example.com");
    assert_eq!(w.c.snapshot().users.len(), 1);
    w.user("bob");
    let error = w.c.link_user("bob", ISSUER, "a-1").unwrap_err().to_string();
    assert!(error.contains("alice@example.com"), "{error}");
    // The restart knows the person too.
    let mut again = World::with(w.stored.clone());
    let other = again.log_in(2, alice()).unwrap();
    assert_eq!(again.name_of(other), "alice@example.com");
}

#[test]
fn end_of_the_token_ends_the_key_and_the_server_sets_the_limit() {
    let mut w = World::new();
    let mut joins = |n: u8, hours: i64| {
        let id = w.waits(n);
        let begun = w.begin(LoginPurpose::Machine(id)).unwrap();
        w.c.login_returned("okta", &begun.state, &begun.cookie)
            .unwrap();
        let now = crate::clock::timestamp(w.wall);
        let end = now + jiff::SignedDuration::from_hours(hours);
        let cookie =
            w.c.login_identified(w.now, &begun.id, alice(), Some(end))
                .unwrap();
        let Ok(LoginPage::Confirm { token, .. }) = w.c.login_page(&begun.id, &cookie) else {
            panic!("the person is asked")
        };
        w.decide(&(begun.id, cookie, token), true).unwrap();
        let node = w.c.node_by_key(&key(n)).unwrap();
        node.key_expiry.unwrap().duration_since(now).as_hours()
    };
    assert_eq!(joins(1, 8), 8);
    assert_eq!(joins(2, 24 * 365), 24 * 180);
}

#[test]
fn a_group_that_is_lost_is_lost_at_the_next_login() {
    let mut w = World::new();
    w.user("lab");
    let lab = w.reusable("lab");
    let db = w.join(9, &lab);
    w.c.set_policy(Some(
        r#"{
        "groups": {"group:dev": ["oidc:okta/dev"]},
        "acls": [{"action": "accept", "src": ["group:dev"], "dst": ["lab@:5432"]}],
    }"#
        .to_owned(),
    ))
    .unwrap();
    let mut in_group = alice();
    in_group.groups.insert("dev".to_owned());
    let laptop = w.log_in(1, in_group.clone()).unwrap();
    let stranger = w
        .log_in(2, account("b-2", Some("bob@example.com")))
        .unwrap();
    let session = w.open(1).unwrap();
    w.read(session);
    let sees = |w: &World, id| w.fresh(id).peers.contains_key(&db);
    assert!(sees(&w, laptop));
    assert!(!sees(&w, stranger));
    // A login on another machine of hers: the open stream of the first one follows.
    w.log_in(3, alice()).unwrap();
    assert!(!sees(&w, laptop));
    w.read_all();
    assert!(!w.clients[&session].peers.contains_key(&db));
    w.log_in(5, in_group).unwrap();
    w.read_all();
    assert!(w.clients[&session].peers.contains_key(&db));
    // A group of the same name at another provider is another one.
    let mut elsewhere = account("z", None);
    elsewhere.issuer = "https://other.example".to_owned();
    elsewhere.groups.insert("okta/dev".to_owned());
    let node = w.log_in(4, elsewhere).unwrap();
    assert!(!sees(&w, node));
}

#[test]
fn only_the_owner_of_the_source_confirms_a_session() {
    let mut w = World::new();
    w.user("lab");
    let lab = w.reusable("lab");
    let laptop = w.log_in(1, alice()).unwrap();
    let db = w.join(9, &lab);
    w.c.set_policy(Some(r#"{
        "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        "tagOwners": {"tag:db": []},
        "ssh": [{"action": "check", "src": ["alice@example.com"], "dst": ["tag:db"], "users": ["root"]}],
    }"#.to_owned()))
    .unwrap();
    w.c.tag_node(db, ["tag:db".to_owned()].into()).unwrap();
    w.settle();
    let question = SshQuestion {
        source: laptop,
        destination: db,
        local_user: "root".to_owned(),
        check: None,
    };
    let ask = |w: &mut World, check: Option<PendingId>| {
        let question = SshQuestion {
            check,
            ..question.clone()
        };
        w.c.ssh_action(w.now, w.wall, machine(9), &question)
            .unwrap()
    };
    assert!(matches!(ask(&mut w, None), SshOutcome::Answer(_)));
    let id = w.c.ssh_checks()[0].id.clone();
    let purpose = LoginPurpose::SshCheck(id.clone());
    let bob = w.asked(purpose.clone(), account("b-2", Some("bob@example.com")));
    assert_eq!(w.decide(&bob, true), Err(LoginError::NotTheOwner));
    assert!(matches!(ask(&mut w, Some(id.clone())), SshOutcome::Park(_)));
    // An id of one kind is none of the other.
    let wrong = w.begin(LoginPurpose::Machine(id.clone()));
    assert_eq!(wrong.unwrap_err(), LoginError::NoMachine);
    let own = w.asked(purpose.clone(), alice());
    assert_eq!(w.decide(&own, true), Ok(LoginResult::SessionLetIn));
    let SshOutcome::Answer(action) = ask(&mut w, Some(id)) else {
        panic!("decided")
    };
    assert!(action.accept);
    assert_eq!(w.begin(purpose).unwrap_err(), LoginError::NoSession);
}

#[derive(Debug, Clone)]
enum Input {
    Begin,
    Return {
        state: usize,
        cookie: usize,
    },
    Identify {
        login: usize,
    },
    Decide {
        login: usize,
        cookie: usize,
        token: usize,
    },
    Pass(u64),
}

fn input() -> impl Strategy<Value = Input> {
    let any = 0_usize..4;
    prop_oneof![
        Just(Input::Begin),
        (any.clone(), any.clone()).prop_map(|(state, cookie)| Input::Return { state, cookie }),
        any.clone().prop_map(|login| Input::Identify { login }),
        (any.clone(), any.clone(), any).prop_map(|(login, cookie, token)| Input::Decide {
            login,
            cookie,
            token
        }),
        (1_u64..700).prop_map(Input::Pass),
    ]
}

/// The secrets of one login that a browser and the provider have.
#[derive(Debug, Default)]
struct Known {
    id: Option<PendingId>,
    state: String,
    first_cookie: String,
    returned: bool,
    second_cookie: String,
    token: String,
}

proptest! {
    /// In any order of steps, with secrets of other logins mixed in, a machine joins
    /// only by the three right secrets of one login in their order.
    #[test]
    fn a_machine_joins_only_by_the_right_secrets(inputs in prop::collection::vec(input(), 1..40)) {
        let mut w = World::new();
        let id = w.waits(1);
        let mut all: Vec<Known> = (0..4).map(|_| Known::default()).collect();
        let mut next = 0;
        for input in inputs {
            let nodes = w.c.snapshot().nodes.len();
            match input {
                Input::Begin => {
                    if let Ok(begun) = w.begin(LoginPurpose::Machine(id.clone())) {
                        all[next % 4] = Known {
                            id: Some(begun.id),
                            state: begun.state,
                            first_cookie: begun.cookie,
                            ..Known::default()
                        };
                        next += 1;
                    }
                }
                Input::Return { state, cookie } => {
                    let (state, cookie) = (all[state].state.clone(), all[cookie].first_cookie.clone());
                    let returned = w.c.login_returned("okta", &state, &cookie);
                    if let Ok(returned) = returned {
                        let own = all.iter_mut().find(|known| known.id.as_ref() == Some(&returned.id)).unwrap();
                        prop_assert!(!own.returned);
                        prop_assert_eq!((&own.state, &own.first_cookie), (&state, &cookie));
                        own.returned = true;
                    }
                }
                Input::Identify { login } => {
                    let known = &mut all[login];
                    if let Some(id) = known.id.clone()
                        && let Ok(cookie) = w.c.login_identified(w.now, &id, alice(), None)
                    {
                        prop_assert!(known.returned && known.second_cookie.is_empty());
                        known.second_cookie = cookie;
                        if let Ok(LoginPage::Confirm { token, .. }) = w.c.login_page(&id, &known.second_cookie) {
                            known.token = token;
                        }
                    }
                }
                Input::Decide { login, cookie, token } => {
                    let Some(id) = all[login].id.clone() else { continue };
                    let asked = (id, all[cookie].second_cookie.clone(), all[token].token.clone());
                    if w.decide(&asked, true).is_ok() {
                        prop_assert!(login == cookie && login == token, "{login} {cookie} {token}");
                        prop_assert!(!asked.1.is_empty() && !asked.2.is_empty());
                        prop_assert_eq!(nodes, 0);
                    } else {
                        prop_assert_eq!(w.c.snapshot().nodes.len(), nodes);
                    }
                }
                Input::Pass(seconds) => w.pass(Duration::from_secs(seconds)),
            }
            prop_assert!(w.c.logins_len() <= 16);
            prop_assert_eq!(&w.stored, &w.c.snapshot());
        }
    }
}
