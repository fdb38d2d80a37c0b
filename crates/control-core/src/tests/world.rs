//! A coordinator with a clock that tests turn, and clients that keep their maps.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use warren_control_types::{
    CapabilityVersion, DerpMap, Hostinfo, MapRequest, MapResponse, Netmap, NodeId, PingRequest,
    RegisterAuth, RegisterRequest, RegisterResponse,
};
use warren_keys::{MachinePublic, NodePublic};
use warren_testkit::CountingEntropy;

use crate::{
    Change, Config, Coordinator, MapError, NewAuthKey, Output, PendingId, RegisterOutcome,
    SessionId, Snapshot,
};

pub(super) fn machine(n: u8) -> MachinePublic {
    MachinePublic::from_bytes([n; 32])
}

pub(super) fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n ^ 0x80; 32])
}

pub(super) struct World {
    pub(super) c: Coordinator,
    pub(super) now: Instant,
    pub(super) wall: Duration,
    /// The newest state of every row, as a restart would find it.
    pub(super) stored: Snapshot,
    /// The same, one by one.
    pub(super) changes: Vec<Change>,
    pub(super) woken: BTreeSet<SessionId>,
    pub(super) ended: BTreeSet<SessionId>,
    pub(super) decided: Vec<PendingId>,
    pub(super) clients: BTreeMap<SessionId, Netmap>,
    /// How the clients answer the questions of the server to routers.
    pub(super) answers: BTreeMap<NodeId, Answers>,
}

/// How a client answers the questions of the server; without an entry, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    Nothing,
    /// It opens no new connection.
    InsideOnly,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Snapshot::default())
    }

    /// With two users, and a reusable auth key of each.
    pub(super) fn alice_and_bob() -> (Self, String, String) {
        let mut w = Self::new();
        w.user("alice");
        w.user("bob");
        let (alice, bob) = (w.reusable("alice"), w.reusable("bob"));
        (w, alice, bob)
    }

    pub(super) fn with(data: Snapshot) -> Self {
        let now = Instant::now();
        let wall = Duration::from_secs(1_780_000_000);
        let config = Config::new("http://192.0.2.1:8080/", DerpMap::default());
        let c = Coordinator::new(
            now,
            wall,
            config,
            data.clone(),
            Box::new(CountingEntropy(0)),
        );
        Self {
            c,
            now,
            wall,
            stored: data,
            changes: Vec::new(),
            woken: BTreeSet::new(),
            ended: BTreeSet::new(),
            decided: Vec::new(),
            clients: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    pub(super) fn settle(&mut self) {
        while let Some(output) = self.c.poll_output() {
            match output {
                Output::Store { change, .. } => {
                    self.changes.push(change.clone());
                    self.stored.apply(change);
                }
                Output::Wake(id) => {
                    self.woken.insert(id);
                }
                Output::End(id) => {
                    self.woken.remove(&id);
                    self.clients.remove(&id);
                    self.ended.insert(id);
                }
                Output::Decided(id) => self.decided.push(id),
                Output::Notice(_) => {}
            }
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wall += time;
        self.c.handle_timeout(self.now, self.wall);
        self.settle();
    }

    pub(super) fn user(&mut self, name: &str) {
        self.c.create_user(self.wall, name).unwrap();
        self.settle();
    }

    pub(super) fn auth_key(&mut self, new: NewAuthKey) -> String {
        let text = self.c.create_auth_key(self.wall, new).unwrap().0.expose();
        self.settle();
        text
    }

    pub(super) fn reusable(&mut self, user: &str) -> String {
        self.auth_key(NewAuthKey {
            user: Some(user.into()),
            reusable: true,
            ..NewAuthKey::default()
        })
    }

    pub(super) fn register(&mut self, n: u8, request: &RegisterRequest) -> RegisterOutcome {
        let outcome = self.c.register(self.now, self.wall, machine(n), request);
        self.settle();
        outcome
    }

    pub(super) fn answer(&mut self, n: u8, request: &RegisterRequest) -> RegisterResponse {
        match self.register(n, request) {
            RegisterOutcome::Answer(response) => *response,
            RegisterOutcome::Park(id) => panic!("parked as {id}"),
            RegisterOutcome::Busy => panic!("refused as busy"),
        }
    }

    /// Joins machine `n` with node key `n`.
    pub(super) fn join(&mut self, n: u8, auth: &str) -> NodeId {
        let response = self.answer(n, &request(n, auth));
        assert_eq!(response.error, "");
        assert!(response.machine_authorized);
        self.c.node_by_key(&key(n)).unwrap().id
    }

    pub(super) fn open(&mut self, n: u8) -> Result<SessionId, MapError> {
        let session = self.c.open_stream(machine(n), &map_request(n));
        self.settle();
        if let Ok(id) = session {
            self.clients.insert(id, Netmap::default());
        }
        session
    }

    pub(super) fn close(&mut self, session: SessionId) {
        self.clients.remove(&session);
        self.c.close_stream(self.now, self.wall, session);
        self.settle();
    }

    /// Lets one client read everything there is for it; the messages it got.
    pub(super) fn read(&mut self, session: SessionId) -> Vec<MapResponse> {
        self.woken.remove(&session);
        let mut got = Vec::new();
        while let Some(message) = self.c.next_message(self.wall, session) {
            let json = message.to_json().unwrap();
            let response: MapResponse = serde_json::from_slice(&json).unwrap();
            let client = self.clients.get_mut(&session).unwrap();
            client.apply(response.clone(), self.wall).unwrap();
            if let Some(ping) = &response.ping_request {
                let node = client.self_node.as_ref().unwrap().id;
                self.answer_ping(node, ping);
            }
            got.push(response);
        }
        got
    }

    /// Answers a question of the server as the official client does.
    fn answer_ping(&mut self, id: NodeId, ping: &PingRequest) {
        let token = ping.url.rsplit('/').next().unwrap();
        let machine = self.c.node(id).map(|node| node.machine);
        match self.answers.get(&id) {
            Some(Answers::Nothing) => {}
            Some(Answers::InsideOnly) if ping.types.is_empty() => {}
            Some(Answers::InsideOnly) | None => {
                let machine = machine.filter(|_| ping.types == "c2n");
                self.c.router_answered(token, machine);
            }
        }
        self.settle();
    }

    /// Lets every client that was woken read.
    pub(super) fn read_all(&mut self) {
        for session in self.woken.clone() {
            self.read(session);
        }
    }

    /// The map that a fresh stream would give.
    pub(super) fn fresh(&self, id: NodeId) -> Netmap {
        let json = serde_json::to_vec(&self.c.render(self.wall, id).unwrap()).unwrap();
        let mut map = Netmap::default();
        map.apply(serde_json::from_slice(&json).unwrap(), self.wall)
            .unwrap();
        map
    }
}

pub(super) fn request(n: u8, auth: &str) -> RegisterRequest {
    RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key: key(n),
        auth: (!auth.is_empty()).then(|| RegisterAuth {
            auth_key: auth.to_owned(),
        }),
        hostinfo: Some(Hostinfo {
            hostname: format!("host{n}"),
            os: "linux".to_owned(),
            ..Hostinfo::default()
        }),
        ..RegisterRequest::default()
    }
}

pub(super) fn map_request(n: u8) -> MapRequest {
    MapRequest {
        version: CapabilityVersion::CURRENT,
        node_key: key(n),
        stream: true,
        ..MapRequest::default()
    }
}

/// Last seen has no meaning while a peer is online, and a patch cannot take it
/// away; profiles of users that own nothing any more are not taken away either.
pub(super) fn meaning(mut map: Netmap) -> Netmap {
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
