//! A server in this process, and nodes that speak to it over the wire.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test file uses its part of this")]

pub mod browser;
pub mod provider;

use std::path::Path;
use std::time::Duration;

use warren_control::cli::args::{OptionalListen, Serve};
use warren_control::failure::Failure;
use warren_control::serve::{Running, defaults, start};
use warren_control_api::endpoints::CreateAuthKey;
use warren_control_api::{Client, Endpoint};
use warren_control_types::{
    CapabilityVersion, DerpMap, Hostinfo, MapRequest, MapResponse, Netmap, RegisterAuth,
    RegisterRequest, RegisterResponse,
};
use warren_dial::Dialer;
use warren_dial::SystemEntropy;
use warren_dial::control::{ControlClient, ControlError, MapStream};
use warren_keys::{DiscoPublic, DiscoSecret, MachineSecret, NodeSecret};

/// Longer than anything here takes; only a failure waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Options of a server on a free port of this machine, without a relay.
pub fn options(dir: &Path) -> Serve {
    let map = dir.join("derp.json");
    std::fs::write(&map, serde_json::to_vec(&DerpMap::default()).unwrap()).unwrap();
    Serve {
        listen: Some(([127, 0, 0, 1], 0).into()),
        derp_map: Some(map),
        stun_listen: Some(OptionalListen::Off),
        ..defaults()
    }
}

/// A server with its state in `dir/state`.
pub async fn serve(dir: &Path) -> Running {
    start(&dir.join("state"), options(dir)).await.unwrap()
}

/// The text of a failure.
pub fn reason(failure: Failure) -> String {
    match failure {
        Failure::Failed(why) | Failure::Usage(why) => why,
    }
}

/// Calls the administration API of the server of `dir`.
pub async fn admin<E: Endpoint>(dir: &Path, request: E) -> Result<E::Answer, String> {
    let client = Client::new(dir.join("state"));
    let answer = client.call(&request).await;
    answer.map_err(|error| error.to_string())
}

/// A reusable key of the user `default`.
pub async fn reusable(dir: &Path) -> String {
    key(dir, true).await
}

/// A key of the user `default`.
pub async fn key(dir: &Path, reusable: bool) -> String {
    let request = CreateAuthKey {
        user: Some("default".into()),
        reusable,
        lifetime_seconds: Some(3600),
        ..CreateAuthKey::default()
    };
    admin(dir, request).await.unwrap().key
}

/// A node, as the coordination server sees it.
pub struct Node {
    pub client: ControlClient,
    pub machine: MachineSecret,
    pub secret: NodeSecret,
    pub disco: DiscoPublic,
    pub hostname: String,
    pub map: Netmap,
    stream: Option<MapStream>,
}

impl Node {
    pub fn new(server: &str, hostname: &str) -> Self {
        let machine = MachineSecret::generate(&mut SystemEntropy);
        Self {
            client: ControlClient::new(server.parse().unwrap(), machine.clone(), Dialer::new()),
            machine,
            secret: NodeSecret::generate(&mut SystemEntropy),
            disco: DiscoSecret::generate(&mut SystemEntropy).public(),
            hostname: hostname.to_owned(),
            map: Netmap::default(),
            stream: None,
        }
    }

    /// The same node after its server moved to another port.
    pub fn at(&mut self, server: &str) {
        self.client =
            ControlClient::new(server.parse().unwrap(), self.machine.clone(), Dialer::new());
        self.stream = None;
    }

    pub fn hostinfo(&self) -> Hostinfo {
        Hostinfo {
            hostname: self.hostname.clone(),
            os: "linux".to_owned(),
            ..Hostinfo::default()
        }
    }

    pub fn request(&self, auth: &str) -> RegisterRequest {
        RegisterRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.secret.public(),
            auth: (!auth.is_empty()).then(|| RegisterAuth {
                auth_key: auth.to_owned(),
            }),
            hostinfo: Some(self.hostinfo()),
            ..RegisterRequest::default()
        }
    }

    pub async fn register(&self, auth: &str) -> RegisterResponse {
        self.client.register(&self.request(auth)).await.unwrap()
    }

    pub fn map_request(&self) -> MapRequest {
        MapRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.secret.public(),
            disco_key: Some(self.disco),
            hostinfo: Some(self.hostinfo()),
            ..MapRequest::default()
        }
    }

    pub async fn update(&self, endpoint: &str) -> Result<(), ControlError> {
        let request = MapRequest {
            omit_peers: true,
            endpoints: vec![endpoint.parse().unwrap()],
            ..self.map_request()
        };
        self.client.update(&request).await
    }

    /// Opens the stream and takes its first message.
    pub async fn poll(&mut self, compress: &str) {
        let request = MapRequest {
            stream: true,
            keep_alive: true,
            compress: compress.to_owned(),
            ..self.map_request()
        };
        self.stream = Some(self.client.map_stream(&request, PATIENCE).await.unwrap());
        self.map.begin_stream();
        self.next().await.expect("a first message");
    }

    /// The next message; `None` when the server ended the stream.
    pub async fn next(&mut self) -> Option<MapResponse> {
        let stream = self.stream.as_mut().expect("polling");
        let message = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .ok()??;
        let wall = warren_control::clock::wall_clock();
        self.map.apply(message.clone(), wall).unwrap();
        Some(message)
    }

    /// Reads messages until the map is as wanted.
    pub async fn until(&mut self, mut wanted: impl FnMut(&Netmap) -> bool) {
        while !wanted(&self.map) {
            assert!(self.next().await.is_some(), "the stream ended");
        }
    }

    pub fn peer_names(&self) -> Vec<&str> {
        self.map
            .peers
            .values()
            .map(warren_control_types::Node::base_name)
            .collect()
    }
}
