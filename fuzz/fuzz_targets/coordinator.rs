//! The coordination server's state: registrations and map requests of any
//! client, while an administrator works and time passes. Every client's map
//! must be the one it would get afresh.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use warren_control_core::{
    Config, Coordinator, NewAuthKey, Output, RegisterOutcome, SessionId, Snapshot,
};
use warren_control_types::{
    CapabilityVersion, DerpMap, MapRequest, MapResponse, Netmap, NodeId, RegisterAuth,
    RegisterRequest,
};
use warren_fuzz::json::Message as _;
use warren_fuzz::{Clock, machine, node, steps};
use warren_testkit::SeededEntropy;

struct World {
    coordinator: Coordinator,
    clock: Clock,
    /// The stored state that a restart would load.
    stored: Snapshot,
    clients: BTreeMap<SessionId, (NodeId, Netmap)>,
    woken: BTreeSet<SessionId>,
}

impl World {
    fn settle(&mut self) {
        self.coordinator
            .handle_timeout(self.clock.now, self.clock.wall);
        let mut count = 0;
        while let Some(output) = self.coordinator.poll_output() {
            count += 1;
            assert!(count < 1_000, "one input, no end of outputs");
            match output {
                Output::Store { change, .. } => self.stored.apply(change),
                Output::Wake(id) => drop(self.woken.insert(id)),
                Output::End(id) => {
                    self.woken.remove(&id);
                    self.clients.remove(&id);
                }
                Output::Decided(_) | Output::Notice(_) => {}
            }
        }
        assert_eq!(
            &self.stored,
            &self.coordinator.snapshot(),
            "a restart would forget"
        );
        let deadline = self.coordinator.next_deadline();
        if let Some((at, reason)) = deadline {
            assert!(
                at > self.clock.now,
                "{reason:?} stays due: the shell would spin"
            );
        }
    }

    fn read(&mut self, session: SessionId) {
        let mut count = 0;
        while let Some(message) = self.coordinator.next_message(self.clock.wall, session) {
            count += 1;
            assert!(count < 100, "no end of messages");
            let json = message.to_json().expect("a message has a form");
            let response = MapResponse::read(&json).expect("our own form");
            if let Some((_, map)) = self.clients.get_mut(&session) {
                map.apply(response, self.clock.wall)
                    .expect("the first message is whole");
            }
        }
    }
}

/// Last seen has no meaning while a peer is online, and a patch cannot take it
/// away; profiles of users that own nothing any more are not taken away either.
fn meaning(mut map: Netmap) -> Netmap {
    for peer in map.peers.values_mut() {
        if peer.online == Some(true) {
            peer.last_seen = None;
        }
    }
    let mut owners: BTreeSet<_> = map.peers.values().map(|peer| peer.user).collect();
    owners.extend(map.self_node.as_ref().map(|node| node.user));
    map.user_profiles.retain(|id, _| owners.contains(id));
    map
}

fuzz_target!(|bytes: &[u8]| {
    let clock = Clock::default();
    let config = Config::new("http://192.0.2.1:8080", DerpMap::default());
    let mut coordinator = Coordinator::new(
        clock.now,
        clock.wall,
        config,
        Snapshot::default(),
        Box::new(SeededEntropy(1)),
    );
    coordinator
        .create_user(clock.wall, "alice")
        .expect("a good name");
    let key = |ephemeral| NewAuthKey {
        user: Some("alice".into()),
        reusable: true,
        ephemeral,
        ..NewAuthKey::default()
    };
    let keys = [false, true].map(|ephemeral| {
        let (text, _) = coordinator
            .create_auth_key(clock.wall, key(ephemeral))
            .expect("a good key");
        text.expose()
    });
    let mut world = World {
        coordinator,
        clock,
        stored: Snapshot::default(),
        clients: BTreeMap::new(),
        woken: BTreeSet::new(),
    };
    world.settle();

    for step in steps(bytes) {
        let n = 1 + (step.arg & 3);
        let (now, wall) = (world.clock.now, world.clock.wall);
        match step.kind % 8 {
            0 => {
                let Ok(mut request) = RegisterRequest::read(step.bytes) else {
                    continue;
                };
                if step.arg & 4 != 0 {
                    request.version = CapabilityVersion::CURRENT;
                    request.node_key = node(n).public();
                }
                if step.arg & 8 != 0 {
                    let auth_key = keys[usize::from(step.arg >> 4 & 1)].clone();
                    request.auth = Some(RegisterAuth { auth_key });
                }
                let outcome = world
                    .coordinator
                    .register(now, wall, machine(n).public(), &request);
                if let RegisterOutcome::Answer(answer) = outcome
                    && answer.machine_authorized
                    && answer.error.is_empty()
                {
                    assert!(world.coordinator.node_by_key(&request.node_key).is_some());
                }
            }
            kind @ (1 | 2) => {
                let Ok(mut request) = MapRequest::read(step.bytes) else {
                    continue;
                };
                if step.arg & 4 != 0 {
                    request.version = CapabilityVersion::CURRENT;
                    request.node_key = node(n).public();
                }
                if kind == 1 {
                    if let Ok(session) =
                        world.coordinator.open_stream(machine(n).public(), &request)
                    {
                        let id = world
                            .coordinator
                            .node_by_key(&request.node_key)
                            .expect("known")
                            .id;
                        world.settle();
                        world.clients.insert(session, (id, Netmap::default()));
                    }
                } else {
                    let _ = world.coordinator.update(machine(n).public(), &request);
                }
            }
            3 => world.clock.pass(step.arg),
            4 => {
                let nth = world
                    .clients
                    .keys()
                    .nth(n.into())
                    .or(world.clients.keys().next());
                if let Some(session) = nth.copied() {
                    world.clients.remove(&session);
                    world.coordinator.close_stream(now, wall, session);
                }
            }
            5 => {
                if let Some(waiting) = world.coordinator.pending().first() {
                    let id = waiting.id.clone();
                    let tags = if step.arg & 4 == 0 {
                        &[][..]
                    } else {
                        &["tag:web".to_owned()]
                    };
                    let tags = tags.iter().cloned().collect();
                    let _ = world.coordinator.approve(now, wall, &id, "alice", tags);
                }
            }
            6 => {
                let text = String::from_utf8_lossy(step.bytes);
                let id = n.to_string();
                let c = &mut world.coordinator;
                let _ = match step.arg >> 2 & 7 {
                    0 => c.rename_node(&id, &text).map(drop),
                    1 => c.expire_node(wall, &id).map(drop),
                    2 => c.delete_node(&id).map(drop),
                    3 => c.tag_node(&id, ["tag:web".to_owned()].into()).map(drop),
                    4 => c
                        .approve_routes(&id, &["10.0.0.0/8".parse().expect("written well")])
                        .map(drop),
                    5 => c.set_policy(Some(text.into_owned())),
                    6 => c.rename_user("alice", &text).map(drop),
                    _ => c.create_user(wall, &text).map(drop),
                };
            }
            _ => {
                for session in std::mem::take(&mut world.woken) {
                    world.read(session);
                }
            }
        }
        world.settle();
    }

    for session in std::mem::take(&mut world.woken) {
        world.read(session);
    }
    world.settle();
    let wall = world.clock.wall;
    for (session, (id, map)) in std::mem::take(&mut world.clients) {
        let fresh = world
            .coordinator
            .render(wall, id)
            .expect("a client's node exists");
        let mut whole = Netmap::default();
        let fresh = MapResponse::read(&fresh.write()).expect("our own form");
        whole.apply(fresh, wall).expect("it is whole");
        assert_eq!(
            meaning(map),
            meaning(whole),
            "the deltas of {session:?} differ from its full map"
        );
    }
});
