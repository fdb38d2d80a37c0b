//! Which router serves a subnet, as routers come, go, and fall silent. The names
//! S01 to S14 are those of Headscale's scenarios.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_control_types::NodeId;

use super::world::{Answers, World, machine, request};
use crate::{Reason, RouterState, SessionId};

const SECOND: Duration = Duration::from_secs(1);
/// A cut is noticed within this time.
const NOTICED: Duration = Duration::from_secs(14);

fn route() -> IpNet {
    "10.9.0.0/16".parse().unwrap()
}

const VIA: &str = r#"{"tagOwners": {"tag:r": ["lab@"]}, "grants": [
    {"src": ["lab@"], "dst": ["tag:r"], "ip": ["icmp:*"]},
    {"src": ["lab@"], "dst": ["10.9.0.0/16"], "ip": ["*"], "via": ["tag:r"]}]}"#;

/// A network with routers 1 to `count` of one subnet, connected, and a viewer.
struct Routers {
    w: World,
    streams: BTreeMap<u8, SessionId>,
    viewer: SessionId,
}

impl Routers {
    fn new(count: u8) -> Self {
        let mut w = World::new();
        w.user("lab");
        let auth = w.reusable("lab");
        for n in 1..=count {
            let mut login = request(n, &auth);
            login.hostinfo.as_mut().unwrap().routable_ips = vec![route()];
            assert!(w.answer(n, &login).machine_authorized);
            w.c.approve_routes(id(n), &[route()]).unwrap();
        }
        w.settle();
        w.join(9, &auth);
        let viewer = w.open(9).unwrap();
        let mut this = Self {
            w,
            streams: BTreeMap::new(),
            viewer,
        };
        for n in 1..=count {
            this.up(n);
        }
        this.pass(SECOND);
        this
    }

    fn up(&mut self, n: u8) {
        self.w.answers.remove(&id(n));
        let session = self.w.open(n).unwrap();
        self.streams.insert(n, session);
        self.w.read_all();
    }

    /// The end of its stream reaches the server: a clean end, or `kill -9`.
    fn down(&mut self, n: u8) {
        if let Some(session) = self.streams.remove(&n) {
            self.w.close(session);
        }
    }

    /// Its packets are lost; the stream stays.
    fn cut(&mut self, n: u8) {
        self.w.answers.insert(id(n), Answers::Nothing);
    }

    /// Lets time pass in the steps in which the server acts, as far as clients
    /// that are there read and answer at once.
    fn pass(&mut self, time: Duration) {
        let end = self.w.now + time;
        loop {
            self.w.read_all();
            let (at, _) = self.w.c.next_deadline().unwrap();
            if at > end {
                break;
            }
            let step = at.saturating_duration_since(self.w.now);
            self.w.pass(step);
        }
        let rest = end - self.w.now;
        self.w.pass(rest);
        self.w.read_all();
    }

    /// The router that serves, for the server and in the map of the viewer alike.
    fn serving(&self) -> Option<u8> {
        let view = self.w.c.view();
        let nodes: Vec<NodeId> = view.nodes().map(|node| node.id).collect();
        let mut serving = nodes
            .into_iter()
            .filter(|id| !view.serving_routes(*id).is_empty());
        let (found, more) = (serving.next(), serving.next());
        assert_eq!(more, None, "a prefix is in one peer's AllowedIPs only");
        let peers = self.w.clients[&self.viewer].peers.values();
        let mut seen = peers.filter(|peer| peer.allowed_ips().contains(&route()));
        assert_eq!(seen.next().map(|peer| peer.id), found);
        found.map(|id| u8::try_from(id.0).unwrap())
    }
}

fn id(n: u8) -> NodeId {
    NodeId(n.into())
}

/// S02.
#[test]
fn lost_stream_moves_the_subnet_within_two_seconds_and_back_never() {
    let mut r = Routers::new(3);
    assert_eq!(r.serving(), Some(1));
    for (lost, next) in [(1, 2), (2, 3)] {
        r.down(lost);
        assert_eq!(r.serving(), Some(lost), "it may be back at once");
        r.pass(2 * SECOND);
        assert_eq!(r.serving(), Some(next));
    }
    r.up(1);
    r.up(2);
    r.pass(60 * SECOND);
    assert_eq!(r.serving(), Some(3));
}

#[test]
fn new_stream_within_a_second_moves_nothing() {
    let mut r = Routers::new(2);
    for _ in 0..5 {
        r.down(1);
        r.pass(SECOND / 2);
        r.up(1);
        r.pass(SECOND);
        assert_eq!(r.serving(), Some(1));
    }
}

/// S11.
#[test]
fn router_that_opens_no_new_connection_hands_over_and_does_not_take_back() {
    let mut r = Routers::new(2);
    r.w.answers.insert(id(1), Answers::InsideOnly);
    r.pass(NOTICED);
    assert_eq!(r.serving(), Some(2));
    assert_eq!(r.w.c.view().router_state(id(1)), RouterState::Impaired);
    r.w.answers.clear();
    r.pass(60 * SECOND);
    assert_eq!(r.w.c.view().router_state(id(1)), RouterState::Answering);
    assert_eq!(r.serving(), Some(2));
}

/// An unauthenticated sender that fills the front door must not take the subnets away.
#[test]
fn subnet_stays_while_no_router_can_open_a_new_connection() {
    let mut r = Routers::new(2);
    for n in [1, 2] {
        r.w.answers.insert(id(n), Answers::InsideOnly);
    }
    r.pass(60 * SECOND);
    assert_eq!(r.serving(), Some(1));
}

/// Each new stream of a router that opens no new connection is such a change.
#[test]
fn new_streams_move_nothing_while_all_routers_are_impaired() {
    let mut r = Routers::new(2);
    for n in [1, 2] {
        r.w.answers.insert(id(n), Answers::InsideOnly);
    }
    r.pass(NOTICED);
    for _ in 0..4 {
        for n in [2, 1] {
            r.down(n);
            let session = r.w.open(n).unwrap();
            r.streams.insert(n, session);
            r.w.read_all();
            assert_eq!(r.serving(), Some(1));
            r.pass(NOTICED);
            assert_eq!(r.serving(), Some(1));
        }
    }
}

#[test]
fn subnet_moves_from_an_impaired_router_once_another_has_answered() {
    let mut r = Routers::new(2);
    r.cut(2);
    r.w.answers.insert(id(1), Answers::InsideOnly);
    r.pass(NOTICED);
    r.up(2);
    assert_eq!(r.serving(), Some(1), "not asked yet");
    r.pass(NOTICED);
    assert_eq!(r.serving(), Some(2));
}

/// S12.
#[test]
fn no_router_serves_while_all_are_down() {
    let mut r = Routers::new(2);
    r.down(1);
    r.pass(2 * SECOND);
    assert_eq!(r.serving(), Some(2));
    r.down(2);
    r.pass(10 * SECOND);
    assert_eq!(r.serving(), None);
    r.pass(60 * SECOND);
    assert_eq!(r.serving(), None);
    r.up(2);
    assert_eq!(r.serving(), Some(2));
    r.up(1);
    r.pass(60 * SECOND);
    assert_eq!(r.serving(), Some(2));
}

/// S13, S14.
#[test]
fn routers_that_are_cut_off_serve_no_longer_and_never_again_by_their_end() {
    let mut r = Routers::new(2);
    r.cut(1);
    r.pass(NOTICED);
    assert_eq!(r.serving(), Some(2));
    r.up(1);
    r.pass(20 * SECOND);
    assert_eq!(r.serving(), Some(2), "no switch back");
    // Both at once.
    r.cut(1);
    r.cut(2);
    r.pass(NOTICED);
    assert_eq!(r.serving(), None);
    // Their streams end later, one after the other.
    for n in [1, 2] {
        r.down(n);
        for _ in 0..40 {
            r.pass(SECOND / 4);
            assert_eq!(r.serving(), None);
        }
    }
    r.up(2);
    assert_eq!(r.serving(), Some(2));
}

#[test]
fn only_routers_that_share_a_subnet_are_asked() {
    let mut r = Routers::new(1);
    r.cut(1);
    r.pass(60 * SECOND);
    assert_eq!(r.serving(), Some(1));
    assert!(!matches!(
        r.w.c.next_deadline(),
        Some((_, Reason::ProbeRouters))
    ));
}

#[test]
fn answers_count_from_the_machine_that_was_asked_only() {
    let mut r = Routers::new(2);
    r.cut(1);
    r.cut(2);
    r.pass(9 * SECOND);
    let stream = r.streams[&1];
    let messages = r.w.read(stream);
    assert!(messages.is_empty(), "read_all has read them");
    assert!(!r.w.c.router_answered("guess", None));
    assert!(!r.w.c.router_answered("guess", Some(machine(1))));
}

#[test]
fn routers_of_before_a_start_serve_until_they_had_time_to_come_back() {
    let r = Routers::new(2);
    let mut w = World::with(r.w.stored.clone());
    let serving = |w: &World| {
        let view = w.c.view();
        [1, 2].map(|n| view.serving_routes(id(n)).len())
    };
    assert_eq!(serving(&w), [1, 0]);
    let _ = w.open(2).unwrap();
    assert_eq!(serving(&w), [0, 1], "one that is there is better");
    w.answers.insert(id(2), Answers::Nothing);
    let mut alone = World::with(r.w.stored.clone());
    alone.pass(59 * SECOND);
    assert_eq!(serving(&alone), [1, 0]);
    alone.pass(SECOND);
    assert_eq!(serving(&alone), [0, 0]);
}

/// A policy that names the routers by a tag chooses without regard to the present one.
#[test]
fn via_router_that_opens_no_new_connection_hands_over() {
    let mut r = Routers::new(2);
    for n in [1, 2] {
        let tags = ["tag:r".to_owned()].into();
        r.w.c.tag_node(format!("host{n}"), tags).unwrap();
        // The approved routes follow the owner.
        r.w.c.approve_routes(id(n), &[route()]).unwrap();
    }
    r.w.c.set_policy(Some(VIA.to_owned())).unwrap();
    r.w.settle();
    let given = |r: &mut Routers| {
        r.w.settle();
        r.w.read_all();
        let peers = r.w.clients[&r.viewer].peers.values();
        let given = peers.filter(|peer| peer.allowed_ips().contains(&route()));
        given.map(|peer| peer.id.0).collect::<Vec<_>>()
    };
    r.pass(NOTICED);
    assert_eq!(given(&mut r), [1]);
    r.w.answers.insert(id(1), Answers::InsideOnly);
    r.pass(NOTICED);
    assert_eq!(given(&mut r), [2]);
    // A new stream is no answer.
    r.down(1);
    r.pass(SECOND / 2);
    let session = r.w.open(1).unwrap();
    r.streams.insert(1, session);
    assert_eq!(given(&mut r), [2]);
    // Where both are impaired, one serves all the same.
    r.w.answers.insert(id(2), Answers::InsideOnly);
    r.pass(NOTICED);
    assert_eq!(given(&mut r).len(), 1);
    r.w.answers.clear();
    r.pass(NOTICED);
    assert_eq!(given(&mut r), [1]);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Up(u8),
    Down(u8),
    Cut(u8),
    Impair(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_u8..4).prop_map(Step::Up),
        (1_u8..4).prop_map(Step::Down),
        (1_u8..4).prop_map(Step::Cut),
        (1_u8..4).prop_map(Step::Impair),
        (1_u64..60).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// When things have been as they are for a while, a router serves that is there,
    /// if any is; and whenever the subnet moves, it goes to a router whose stream is
    /// open and that has answered its last question.
    #[test]
    fn subnet_moves_to_routers_that_are_there_only(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut r = Routers::new(3);
        let mut before = r.serving();
        for step in steps {
            match step {
                Step::Up(n) => r.up(n),
                Step::Down(n) => r.down(n),
                Step::Cut(n) => r.cut(n),
                Step::Impair(n) => drop(r.w.answers.insert(id(n), Answers::InsideOnly)),
                Step::Pass(quarters) => {
                    for _ in 0..quarters {
                        r.pass(SECOND / 4);
                        let now = r.serving();
                        if let Some(to) = now.filter(|_| now != before) {
                            let state = r.w.c.view().router_state(id(to));
                            prop_assert!(r.streams.contains_key(&to), "{} is {:?}", to, state);
                            prop_assert!(state >= RouterState::Impaired);
                        }
                        before = now;
                    }
                }
            }
            before = r.serving();
        }
        r.pass(NOTICED + 10 * SECOND);
        let there = |n: &u8| {
            r.streams.contains_key(n) && r.w.answers.get(&id(*n)) != Some(&Answers::Nothing)
        };
        match r.serving() {
            Some(serving) => prop_assert!(there(&serving)),
            None => prop_assert!(!(1..4).any(|n| there(&n))),
        }
    }
}
