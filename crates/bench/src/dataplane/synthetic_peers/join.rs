//! Joining: makes keys and registers them with the server.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use warren_control_types::{
    CapabilityVersion, EndpointType, Hostinfo, MapRequest, RegisterAuth, RegisterRequest,
};
use warren_dial::control::{ControlClient, ServerUrl};
use warren_dial::{Dialer, SystemEntropy};
use warren_keys::{DiscoSecret, MachineSecret, NodeSecret};

use warren_lab::LabError;

/// How many register at once.
const TOGETHER: usize = 8;

/// The secret keys of a peer.
pub struct Secrets {
    /// To peers.
    pub node: NodeSecret,
    /// To path finding.
    pub disco: DiscoSecret,
}

/// Registers one peer per address, named `peer0` and so on, and reports its
/// endpoint to the server.
///
/// They hold no map stream: a thousand copies of a netmap of a thousand would
/// be all that this machine does. To the server they are offline, which nodes
/// show and otherwise do not mind.
pub fn all(
    server: &str,
    auth_key: &str,
    addresses: Vec<SocketAddr>,
) -> Result<Vec<Secrets>, LabError> {
    let server: ServerUrl = server
        .parse()
        .map_err(|error| LabError::new(format!("{server}: {error}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let places = Arc::new(Semaphore::new(TOGETHER));
        let mut joining = JoinSet::new();
        let mut all = Vec::new();
        for (number, address) in addresses.into_iter().enumerate() {
            let secrets = Secrets {
                node: NodeSecret::generate(&mut SystemEntropy),
                disco: DiscoSecret::generate(&mut SystemEntropy),
            };
            let (server, places) = (server.clone(), Arc::clone(&places));
            let (node_key, disco_key) = (secrets.node.public(), secrets.disco.public());
            let hostinfo = Hostinfo {
                hostname: format!("peer{number}"),
                os: "linux".to_owned(),
                ..Hostinfo::default()
            };
            let register = RegisterRequest {
                version: CapabilityVersion::CURRENT,
                node_key,
                auth: Some(RegisterAuth {
                    auth_key: auth_key.to_owned(),
                }),
                hostinfo: Some(hostinfo.clone()),
                ..RegisterRequest::default()
            };
            let update = MapRequest {
                version: CapabilityVersion::CURRENT,
                node_key,
                disco_key: Some(disco_key),
                hostinfo: Some(hostinfo),
                endpoints: vec![address],
                endpoint_types: vec![EndpointType::Local],
                omit_peers: true,
                ..MapRequest::default()
            };
            all.push(secrets);
            joining.spawn(async move {
                let _place = places.acquire().await;
                let machine = MachineSecret::generate(&mut SystemEntropy);
                let client = ControlClient::new(server, machine, Dialer::new());
                let failed = |error: String| LabError::new(format!("peer{number}: {error}"));
                let answer = client.register(&register).await;
                let answer = answer.map_err(|error| failed(error.to_string()))?;
                if !answer.error.is_empty() {
                    return Err(failed(answer.error));
                }
                let updated = client.update(&update).await;
                updated.map_err(|error| failed(error.to_string()))
            });
        }
        while let Some(joined) = joining.join_next().await {
            joined.map_err(|error| LabError::new(error.to_string()))??;
        }
        Ok(all)
    })
}
