//! Logins against a server that answers as a test wants, with a process that may
//! end at any moment.

mod repeated_logins;

use std::collections::{BTreeMap, VecDeque};

use serde_json::json;
use warren_control_client::{Input as ControlInput, Request, RequestError};
use warren_control_types::{RegisterRequest, RegisterResponse};
use warren_keys::NodePublic;
use warren_testkit::CountingEntropy;

use super::*;

/// The treatment of a new node key by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// The auth key is refused.
    WrongKey,
    /// An administrator approves the machine.
    Approve,
    /// An administrator denies it.
    Deny,
    /// No administrator looks.
    Silence,
    /// The auth key is good.
    GoodKey,
    /// The server cannot be reached by new connections.
    Unreachable,
}

struct Server {
    policy: Policy,
    /// The node key of this machine.
    node_key: Option<NodePublic>,
    /// The session that has the map stream.
    stream: Option<SessionId>,
    expired: bool,
    /// Auth keys are looked at before node keys.
    is_strict: bool,
}

impl Server {
    /// The answer; `None`: it does not come.
    fn register(&mut self, request: &RegisterRequest) -> Option<ControlInput> {
        let mut response = RegisterResponse::default();
        let is_known = self.node_key == Some(request.node_key);
        let is_refused = self.is_strict && self.policy != Policy::Unreachable;
        let given = request.auth.as_ref().map(|auth| auth.auth_key.as_str());
        if is_refused && given.is_some_and(|key| key != "good") {
            response.error = "invalid auth key".to_owned();
        } else if is_known && !self.expired {
        } else if is_known && request.auth.is_none() {
            response.node_key_expired = true;
        } else if self.policy == Policy::Unreachable {
            let error = RequestError::Failed("no route to host".to_owned());
            return Some(ControlInput::Registered(Err(error)));
        } else if let Some(auth) = &request.auth {
            if self.policy == Policy::GoodKey && auth.auth_key == "good" {
                self.accept(request.node_key);
            } else {
                response.error = "invalid auth key".to_owned();
            }
        } else if request.followup.is_empty() {
            response.auth_url = "https://server/login".to_owned();
        } else {
            match self.policy {
                Policy::Approve => self.accept(request.node_key),
                Policy::Deny => response.error = "denied".to_owned(),
                _ => return None,
            }
        }
        Some(ControlInput::Registered(Ok(Box::new(response))))
    }

    fn accept(&mut self, key: NodePublic) {
        self.node_key = Some(key);
        self.expired = false;
        self.stream = None;
    }
}

struct World {
    now: Instant,
    wall: Duration,
    node: Node,
    /// The logins on disk.
    disk: StoredLogin,
    server: Server,
    /// Results on their way to the node.
    inputs: VecDeque<NodeInput>,
    sessions: BTreeMap<SessionId, Option<SessionId>>,
    runs: u64,
    errors: Vec<String>,
    states: Vec<NodeState>,
    /// The settings of the operating system; `None`: as without the node.
    host: Option<HostConfig>,
    /// Whether each setting of the operating system had addresses, in order.
    host_settings: Vec<bool>,
    /// Connections break before the answer to a registration.
    loses_answers: bool,
    /// Logins cannot be written.
    disk_is_full: bool,
}

fn settings(want_running: bool) -> NodeSettings {
    NodeSettings {
        want_running,
        server: "https://server".to_owned(),
        ..NodeSettings::default()
    }
}

fn process(disk: &StoredLogin, want_running: bool, now: Instant, run: u64) -> Node {
    let config = NodeConfig {
        stored: disk.clone(),
        lock: KeptLock::Off,
        clock_floor: Duration::ZERO,
        settings: settings(want_running),
        network: LocalNetwork::default(),
        flow_slots: Some(64),
        aead: warren_tunnel::Aead::default(),
        ranges: warren_node_types::TailnetRanges::DEFAULT,
        ephemeral: false,
    };
    Node::new(config, now, Box::new(CountingEntropy(run << 32)))
}

impl World {
    fn new(policy: Policy) -> Self {
        let now = Instant::now();
        let disk = StoredLogin::default();
        Self {
            now,
            wall: Duration::from_secs(1_800_000_000),
            node: process(&disk, false, now, 1),
            disk,
            server: Server {
                policy,
                node_key: None,
                stream: None,
                expired: false,
                is_strict: false,
            },
            inputs: VecDeque::new(),
            sessions: BTreeMap::new(),
            runs: 1,
            errors: Vec::new(),
            states: Vec::new(),
            host: None,
            host_settings: Vec::new(),
            loses_answers: false,
            disk_is_full: false,
        }
    }

    /// A node that joined with an auth key; the server then has this policy.
    fn joined(policy: Policy) -> Self {
        let mut world = Self::new(Policy::GoodKey);
        world.node.start(world.now, world.wall, None);
        world.start(false, Some("good"));
        world.run();
        world.assert_works();
        world.server.policy = policy;
        world
    }

    fn give(&mut self, input: NodeInput) {
        self.node.handle(self.now, self.wall, input);
    }

    fn start(&mut self, force_login: bool, auth_key: Option<&str>) {
        self.give(NodeInput::Start {
            settings: Box::new(settings(true)),
            force_login,
            auth_key: auth_key.map(str::to_owned),
        });
    }

    /// Carries out one output, or delivers one result. Returns false when
    /// there is nothing to do.
    fn step(&mut self) -> bool {
        let Some(output) = self.node.poll_output() else {
            let Some(input) = self.inputs.pop_front() else {
                return false;
            };
            self.give(input);
            return true;
        };
        match output {
            NodeOutput::OpenSession(id) => drop(self.sessions.insert(id, None)),
            NodeOutput::CloseSession(id) => {
                self.sessions.remove(&id).expect("only open sessions end");
                if self.server.stream == Some(id) {
                    self.server.stream = None;
                }
            }
            NodeOutput::Control(id, request) => {
                assert!(self.sessions.contains_key(&id), "requests need a session");
                self.request(id, request);
            }
            NodeOutput::SaveLogin(id) => {
                let mut saved = Ok(());
                if self.disk_is_full {
                    saved = Err("no space left on device".to_owned());
                } else {
                    self.disk = self.node.stored_login();
                }
                self.inputs.push_back(NodeInput::LoginSaved(id, saved));
            }
            NodeOutput::Host => self.set_up_host(),
            NodeOutput::Notice(Notice::State(state)) => self.states.push(state),
            NodeOutput::Notice(Notice::Error(error)) => self.errors.push(error),
            _ => {}
        }
        true
    }

    /// As the host task: settings that are in force are not set and not reported.
    fn set_up_host(&mut self) {
        let config = self.node.host_config();
        if self.host.as_ref() != config {
            self.host = config.cloned();
            let addresses = config.map_or_else(Vec::new, |config| config.addresses.clone());
            self.host_settings.push(!addresses.is_empty());
            let report = HostReport {
                addresses,
                problems: Vec::new(),
            };
            self.inputs.push_back(NodeInput::HostApplied(report));
        }
    }

    fn request(&mut self, id: SessionId, request: Request) {
        match request {
            Request::Register(request) => {
                // The server must not learn a key that a crash would lose.
                assert!(self.has_on_disk(request.node_key), "the key is on disk");
                let before = self.server.stream;
                let answer = self.server.register(&request);
                if let Some(ended) = before.filter(|_| self.server.stream.is_none()) {
                    let input = ControlInput::StreamEnded("the node key was replaced".to_owned());
                    self.inputs.push_back(NodeInput::Control(ended, input));
                }
                if let Some(mut answer) = answer {
                    if self.loses_answers {
                        let error = RequestError::Failed("connection reset".to_owned());
                        answer = ControlInput::Registered(Err(error));
                    }
                    self.inputs.push_back(NodeInput::Control(id, answer));
                }
            }
            Request::OpenStream(request) => {
                let is_known = self.server.node_key == Some(request.node_key);
                let answer = if is_known && !self.server.expired {
                    self.server.stream = Some(id);
                    Ok(())
                } else {
                    Err(RequestError::NotFound("node not found".to_owned()))
                };
                let is_open = answer.is_ok();
                let answer = ControlInput::StreamOpened(answer);
                self.inputs.push_back(NodeInput::Control(id, answer));
                if is_open {
                    let message = json!({"Node": {
                        "ID": 1, "StableID": "n1", "Name": "here.net.example.",
                        "Key": request.node_key, "Addresses": ["100.64.0.1/32"],
                        "AllowedIPs": ["100.64.0.1/32"], "MachineAuthorized": true,
                    }});
                    let message = serde_json::from_value(message).expect("a map message");
                    let message = ControlInput::Message(Box::new(message));
                    self.inputs.push_back(NodeInput::Control(id, message));
                }
            }
            Request::Update(_) => {
                let done = ControlInput::Updated(Ok(()));
                self.inputs.push_back(NodeInput::Control(id, done));
            }
            Request::AnswerHead(_) | Request::AnswerC2n(..) => {}
        }
    }

    /// Whether a start from what is on disk finds this key.
    fn has_on_disk(&self, key: NodePublic) -> bool {
        let stored = [
            self.disk.account.as_ref().map(|account| &account.node_key),
            self.disk.candidate.as_ref(),
        ];
        let mut stored = stored.into_iter().flatten().map(NodeSecret::public);
        stored.any(|stored| stored == key)
    }

    fn run(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 10_000, "the node and the server run in circles");
        }
    }

    /// Lets time pass.
    fn pass(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        self.run();
        while let Some((at, _)) = self.node.next_deadline().filter(|(at, _)| *at <= end) {
            self.wall += at.saturating_duration_since(self.now);
            self.now = self.now.max(at);
            self.node.handle_timeout(self.now, self.wall);
            self.run();
        }
        self.now = end;
    }

    /// The process is killed, and started again from what is on disk.
    fn kill(&mut self) {
        self.runs += 1;
        self.inputs.clear();
        self.sessions.clear();
        self.server.stream = None;
        self.host = None;
        self.node = process(&self.disk, true, self.now, self.runs);
        self.node.start(self.now, self.wall, None);
    }

    /// The node talks: it has the map stream, with the key that the server and
    /// its disk know, and an address.
    #[track_caller]
    fn assert_works(&self) {
        let key = self.node.node_key().public();
        assert_eq!(self.node.state(), Some(NodeState::Running));
        assert!(self.node.is_connected() && self.server.stream.is_some());
        assert_eq!(self.server.node_key, Some(key));
        let stored = self
            .disk
            .account
            .as_ref()
            .map(|login| login.node_key.public());
        assert_eq!(stored, Some(key));
        assert_eq!(self.node.engine().node_key(), key);
    }
}

/// The ways in which a new login fails, with the auth key that it uses.
const FAILURES: [(Policy, Option<&str>); 6] = [
    (Policy::WrongKey, Some("mistyped")),
    (Policy::Unreachable, Some("good")),
    (Policy::Unreachable, None),
    (Policy::Deny, None),
    (Policy::Silence, None),
    (Policy::WrongKey, None),
];

#[test]
fn the_login_stays_in_force_while_a_new_one_fails() {
    for (policy, auth_key) in FAILURES {
        let mut world = World::joined(policy);
        let key = world.node.node_key().public();
        world.start(true, auth_key);
        for _ in 0..20 {
            world.pass(10);
            assert_eq!(world.node.node_key().public(), key, "{policy:?}");
            world.assert_works();
        }
        if matches!(policy, Policy::WrongKey | Policy::Deny) && auth_key.is_some() {
            assert_eq!(world.errors, ["invalid auth key"]);
            assert_eq!(world.node.login_problems(), ["invalid auth key"]);
        }
        world.kill();
        world.pass(10);
        assert_eq!(world.node.node_key().public(), key, "{policy:?}");
        world.assert_works();
    }
}

#[test]
fn a_new_login_takes_over_once_the_server_accepts_it() {
    for (policy, auth_key) in [(Policy::GoodKey, Some("good")), (Policy::Approve, None)] {
        let mut world = World::joined(policy);
        let old = world.node.node_key().public();
        world.start(true, auth_key);
        world.run();
        world.assert_works();
        assert_ne!(world.node.node_key().public(), old);
        let account = world.disk.account.as_ref().expect("a login");
        let replaced = account.old_node_key.as_ref().map(NodeSecret::public);
        assert_eq!(replaced, Some(old));
        assert!(world.disk.candidate.is_none());
        assert_eq!(world.sessions.len(), 1, "one session is left");
        world.kill();
        world.run();
        world.assert_works();
    }
}

#[test]
fn a_forced_login_of_a_running_node_sets_the_addresses_again() {
    let mut world = World::joined(Policy::GoodKey);
    world.states.clear();
    world.host_settings.clear();
    world.start(true, Some("good"));
    world.run();
    // The server gives the new key the same addresses.
    assert_eq!(world.host_settings, [false, true]);
    assert_eq!(world.states, [NodeState::Starting, NodeState::Running]);
}

#[test]
fn a_node_that_is_killed_at_any_step_of_a_new_login_works_again() {
    let ways = FAILURES
        .into_iter()
        .chain([(Policy::GoodKey, Some("good")), (Policy::Approve, None)]);
    for (policy, auth_key) in ways {
        for steps in 0..200 {
            let mut world = World::joined(policy);
            world.start(true, auth_key);
            let mut is_over = false;
            for _ in 0..steps {
                is_over = !world.step();
            }
            world.kill();
            world.pass(60);
            world.assert_works();
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn a_first_login_that_is_killed_at_any_step_is_not_lost_at_the_server() {
    for (policy, auth_key) in [(Policy::GoodKey, Some("good")), (Policy::Approve, None)] {
        for steps in 0..100 {
            let mut world = World::new(policy);
            world.node.start(world.now, world.wall, None);
            world.start(false, auth_key);
            if auth_key.is_none() {
                world.give(NodeInput::LogIn);
            }
            let mut is_over = false;
            for _ in 0..steps {
                is_over = !world.step();
            }
            let was_accepted = world.server.node_key.is_some();
            world.kill();
            // An auth key is good for one use, and not on disk.
            if policy == Policy::GoodKey {
                world.server.policy = Policy::Silence;
            }
            world.pass(60);
            if was_accepted {
                world.assert_works();
            }
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn a_first_login_with_a_wrong_key_leaves_nothing() {
    let mut world = World::new(Policy::WrongKey);
    world.node.start(world.now, world.wall, None);
    world.start(false, Some("mistyped"));
    world.pass(60);
    assert_eq!(world.errors, ["invalid auth key"]);
    assert_eq!(world.node.state(), Some(NodeState::NeedsLogin));
    assert!(world.disk.candidate.is_none() && world.sessions.is_empty());
    world.server.policy = Policy::GoodKey;
    world.start(false, Some("good"));
    world.run();
    world.assert_works();
}

#[test]
fn a_wrong_key_beside_a_good_login_does_not_end_its_session() {
    let mut world = World::joined(Policy::WrongKey);
    // `up --auth-key` without a forced login.
    world.start(false, Some("mistyped"));
    world.pass(60);
    world.assert_works();
}

#[test]
fn an_expired_key_is_rotated_and_survives_a_kill_at_any_step() {
    for steps in 0..200 {
        let mut world = World::joined(Policy::Approve);
        world.server.expired = true;
        world.kill();
        let mut is_over = false;
        for _ in 0..steps {
            is_over = !world.step();
        }
        world.kill();
        world.pass(120);
        world.assert_works();
        if is_over {
            break;
        }
    }
}

#[test]
fn an_expired_login_waits_for_a_person_or_takes_an_auth_key() {
    let mut world = World::joined(Policy::Silence);
    world.server.expired = true;
    world.kill();
    world.pass(60);
    assert_eq!(world.node.state(), Some(NodeState::NeedsLogin));
    assert_eq!(world.node.auth_url(), "https://server/login");
    world.server.policy = Policy::GoodKey;
    world.start(true, Some("good"));
    world.run();
    world.assert_works();
}

#[test]
fn a_login_that_cannot_be_written_to_disk_is_not_begun() {
    let mut world = World::joined(Policy::GoodKey);
    let key = world.node.node_key().public();
    world.start(true, Some("good"));
    while let Some(output) = world.node.poll_output() {
        match output {
            NodeOutput::SaveLogin(id) => {
                let full = Err("no space left on device".to_owned());
                world.give(NodeInput::LoginSaved(id, full));
            }
            NodeOutput::OpenSession(_) => panic!("the key is not on disk"),
            _ => {}
        }
    }
    assert_eq!(world.node.login_problems(), ["no space left on device"]);
    assert_eq!(world.node.node_key().public(), key);
    world.assert_works();
}

#[test]
fn only_a_logout_or_a_reset_ends_a_login() {
    for notify_server in [true, false] {
        let mut world = World::joined(Policy::Silence);
        world.start(true, None);
        world.run();
        let key = world.node.node_key().public();
        world.give(if notify_server {
            NodeInput::LogOut
        } else {
            NodeInput::ResetLogin
        });
        let mut unregistered = Vec::new();
        while let Some(output) = world.node.poll_output() {
            if let NodeOutput::Unregister(request) = output {
                unregistered.push(request.node_key);
            } else if let NodeOutput::SaveLogin(_) = output {
                world.disk = world.node.stored_login();
            }
        }
        // The login, and the new one that a person could still approve.
        assert_eq!(unregistered.contains(&key), notify_server);
        assert_eq!(unregistered.len(), if notify_server { 2 } else { 0 });
        assert!(world.disk.account.is_none() && world.disk.candidate.is_none());
        assert_eq!(world.node.state(), Some(NodeState::NeedsLogin));
        assert_ne!(world.node.node_key().public(), key);
    }
}

#[test]
fn a_node_that_the_server_forgot_goes_on_and_reports_it() {
    let mut world = World::joined(Policy::Silence);
    let ended = world.server.stream.take().expect("a stream");
    world.server.node_key = None;
    let input = ControlInput::StreamEnded("the node was deleted".to_owned());
    world.inputs.push_back(NodeInput::Control(ended, input));
    world.pass(100);
    assert_eq!(world.node.state(), Some(NodeState::Running));
    let problems = world.node.login_problems();
    assert!(
        problems[0].contains("does not know this machine"),
        "{problems:?}"
    );
    // The server finds its database again.
    world.server.node_key = Some(world.node.node_key().public());
    world.pass(100);
    world.assert_works();
    assert!(world.node.login_problems().is_empty());
}

#[test]
fn a_stopped_node_keeps_its_login_and_has_no_session() {
    let mut world = World::joined(Policy::Silence);
    world.give(NodeInput::Settings(Box::new(settings(false))));
    world.run();
    assert_eq!(world.node.state(), Some(NodeState::Stopped));
    assert!(world.sessions.is_empty() && world.node.host_config().is_none());
    world.give(NodeInput::Settings(Box::new(settings(true))));
    // The operating system lost the addresses with the stop.
    assert_eq!(world.node.state(), Some(NodeState::Starting));
    world.run();
    world.assert_works();
}

#[test]
fn the_official_command_line_sends_the_key_before_the_wish_to_log_in() {
    let mut world = World::joined(Policy::GoodKey);
    let old = world.node.node_key().public();
    world.start(false, Some("good"));
    world.pass(1);
    world.give(NodeInput::LogIn);
    world.run();
    world.assert_works();
    assert_ne!(world.node.node_key().public(), old);
}

#[test]
fn a_change_of_the_network_renews_only_broken_sessions() {
    let network = |address: &str| {
        let mut network = LocalNetwork::default();
        network.addresses.interfaces = vec![address.parse().expect("an address")];
        Box::new(network)
    };
    let mut world = World::joined(Policy::Silence);
    world.give(NodeInput::Network(
        NetworkChange::Major,
        network("10.0.0.1"),
    ));
    world.run();
    let before: Vec<_> = world.sessions.keys().copied().collect();
    world.give(NodeInput::Network(
        NetworkChange::Major,
        network("10.0.0.1"),
    ));
    world.run();
    assert!(world.sessions.keys().copied().eq(before.iter().copied()));
    for (change, address) in [
        (NetworkChange::Slept, "10.0.0.1"),
        (NetworkChange::Major, "10.0.0.2"),
    ] {
        let before: Vec<_> = world.sessions.keys().copied().collect();
        world.give(NodeInput::Network(change, network(address)));
        world.run();
        assert!(world.sessions.keys().all(|id| !before.contains(id)));
        world.assert_works();
    }
}
