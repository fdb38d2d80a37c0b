//! Logins that begin while another one is under way, or after one whose end the node
//! does not know.

use proptest::prelude::*;

use super::*;

/// The first login reaches any of its steps; then the node is killed or not, and a
/// second login fails.
#[test]
fn a_second_login_does_not_lose_what_the_first_one_reached() {
    let firsts = [(Policy::GoodKey, Some("good")), (Policy::Approve, None)];
    let seconds = [Some("mistyped"), None];
    for (policy, first) in firsts {
        for second in seconds {
            for (is_killed, is_strict) in [(false, false), (true, false), (false, true)] {
                for steps in 0..200 {
                    let mut world = World::joined(policy);
                    world.server.is_strict = is_strict;
                    world.start(true, first);
                    let mut is_over = false;
                    for _ in 0..steps {
                        is_over = !world.step();
                    }
                    if is_killed {
                        world.kill();
                    }
                    world.server.policy = Policy::WrongKey;
                    world.start(true, second);
                    world.pass(120);
                    world.assert_works();
                    world.kill();
                    world.pass(120);
                    world.assert_works();
                    if is_over {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_key_that_was_refused_at_once_is_not_kept() {
    let mut world = World::joined(Policy::WrongKey);
    for _ in 0..3 {
        world.start(true, Some("mistyped"));
        world.pass(10);
        assert!(world.disk.candidate.is_none());
    }
    world.assert_works();
}

/// The auth key of the second start must not make the server take the old node key back
/// after it has accepted the new one.
#[test]
fn a_start_with_a_key_beside_a_new_login_does_not_undo_it() {
    for steps in 0..40 {
        for more in 0..40 {
            let mut world = World::joined(Policy::GoodKey);
            world.start(true, Some("good"));
            for _ in 0..steps {
                world.step();
            }
            world.start(false, Some("good"));
            for _ in 0..more {
                world.step();
            }
            world.server.policy = Policy::Silence;
            world.pass(120);
            world.assert_works();
        }
    }
}

#[test]
fn an_expired_key_of_a_lost_login_is_renewed_and_not_forgotten() {
    let mut world = World::joined(Policy::GoodKey);
    world.loses_answers = true;
    world.start(true, Some("good"));
    world.run();
    let reached = world.server.node_key.expect("the login was accepted");
    world.server.expired = true;
    world.loses_answers = false;
    world.server.policy = Policy::Silence;
    world.kill();
    world.pass(60);
    assert_eq!(world.node.state(), Some(NodeState::NeedsLogin));
    assert!(world.has_on_disk(reached));
    // An administrator takes the expiry back.
    world.server.expired = false;
    world.kill();
    world.pass(60);
    world.assert_works();
    assert_eq!(world.server.node_key, Some(reached));
}

#[test]
fn a_logout_ends_a_login_whose_acceptance_was_lost() {
    let mut world = World::joined(Policy::GoodKey);
    world.loses_answers = true;
    world.start(true, Some("good"));
    world.run();
    let reached = world.server.node_key.expect("the login was accepted");
    world.give(NodeInput::LogOut);
    let mut outputs = std::iter::from_fn(|| world.node.poll_output());
    assert!(outputs.any(|output| matches!(
        output,
        NodeOutput::Unregister(request) if request.node_key == reached
    )));
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Start(bool, Option<&'static str>),
    LogIn,
    Steps(u8),
    Pass(u8),
    Kill,
    Server(Policy, bool),
    LoseAnswers(bool),
    FillDisk(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let policy = prop::sample::select(vec![
        Policy::WrongKey,
        Policy::Approve,
        Policy::Deny,
        Policy::Silence,
        Policy::GoodKey,
        Policy::Unreachable,
    ]);
    let key = prop::sample::select(vec![None, Some("good"), Some("mistyped")]);
    prop_oneof![
        4 => (any::<bool>(), key).prop_map(|(force, key)| Act::Start(force, key)),
        1 => Just(Act::LogIn),
        6 => (0_u8..30).prop_map(Act::Steps),
        2 => (0_u8..90).prop_map(Act::Pass),
        1 => Just(Act::Kill),
        3 => (policy, any::<bool>()).prop_map(|(policy, strict)| Act::Server(policy, strict)),
        1 => any::<bool>().prop_map(Act::LoseAnswers),
        1 => any::<bool>().prop_map(Act::FillDisk),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// After any requests and failures, the node key that the server has is on disk, and the
    /// node works again when the failures end.
    #[test]
    fn the_key_that_the_server_has_is_always_on_disk(
        acts in prop::collection::vec(act(), 1..30)
    ) {
        let mut world = World::joined(Policy::GoodKey);
        for act in acts {
            match act {
                Act::Start(force, key) => world.start(force, key),
                Act::LogIn => world.give(NodeInput::LogIn),
                Act::Steps(steps) => {
                    for _ in 0..steps {
                        world.step();
                        let known = world.server.node_key.expect("the node has joined");
                        prop_assert!(world.has_on_disk(known));
                    }
                }
                Act::Pass(seconds) => world.pass(u64::from(seconds)),
                Act::Kill => world.kill(),
                Act::Server(policy, is_strict) => {
                    world.server.policy = policy;
                    world.server.is_strict = is_strict;
                }
                Act::LoseAnswers(is_lossy) => world.loses_answers = is_lossy,
                Act::FillDisk(is_full) => world.disk_is_full = is_full,
            }
            let known = world.server.node_key.expect("the node has joined");
            prop_assert!(world.has_on_disk(known));
        }
        world.server.policy = Policy::Silence;
        world.loses_answers = false;
        world.disk_is_full = false;
        world.pass(900);
        world.kill();
        world.pass(120);
        world.assert_works();
    }
}
