//! The IO of a session with the coordination server: carries out the requests of
//! the node's [`ControlSession`](warren_control_client::ControlSession) and
//! reports their results. It decides nothing.

use http::StatusCode;
use tokio::task::JoinSet;
use tracing::{Instrument as _, Span};
use warren_control_client::{Input, Request, RequestError, STREAM_WATCHDOG};
use warren_control_types::{MapRequest, PingRequest, RegisterRequest};
use warren_dial::Dialer;
use warren_dial::control::{ControlClient, ControlError, ServerUrl};
use warren_keys::MachineSecret;
use warren_node_core::node::{LockAnswer, LockRequest, LockRequestId, NodeInput, SessionId};

use super::Inbox;

/// The connection of one session, and the requests that are under way in it.
/// Dropping it ends them.
pub struct SessionIo {
    id: SessionId,
    /// The client, or the reason why there cannot be one.
    client: Result<ControlClient, String>,
    inbox: Inbox,
    tasks: JoinSet<()>,
}

/// A client of the server with this address.
fn client(
    server: &str,
    machine_key: MachineSecret,
    dialer: Dialer,
) -> Result<ControlClient, String> {
    let url: ServerUrl = server.parse().map_err(|error| {
        format!("{server:?} is not a valid address of a coordination server: {error}")
    })?;
    Ok(ControlClient::new(url, machine_key, dialer))
}

impl SessionIo {
    /// A session that has not connected yet.
    pub fn new(
        id: SessionId,
        server: &str,
        machine_key: MachineSecret,
        dialer: Dialer,
        inbox: Inbox,
    ) -> Self {
        Self {
            id,
            client: client(server, machine_key, dialer),
            inbox,
            tasks: JoinSet::new(),
        }
    }

    /// The client of the server.
    pub fn client(&self) -> Result<ControlClient, String> {
        self.client.clone()
    }

    /// Begins a request about tailnet lock. Its result goes to the engine task.
    pub fn lock_request(&mut self, id: LockRequestId, request: LockRequest) {
        let (client, inbox) = (self.client.clone(), self.inbox.clone());
        let work = async move {
            let answer = match client {
                Ok(client) => ask_about_lock(&client, &request).await,
                Err(reason) => Err(reason),
            };
            inbox.send(NodeInput::LockAnswer(id, answer.map(Box::new)));
        };
        self.tasks.spawn(work.instrument(session_span(self.id)));
    }

    /// Begins a request. Its result goes to the engine task.
    pub fn request(&mut self, request: Request) {
        // Tasks that have ended are of no interest.
        while self.tasks.try_join_next().is_some() {}
        let reporter = Reporter {
            id: self.id,
            inbox: self.inbox.clone(),
        };
        let client = match &self.client {
            Ok(client) => client.clone(),
            Err(reason) => {
                let error = RequestError::BadAddress(reason.clone());
                return reporter.report(Input::Registered(Err(error)));
            }
        };
        let work = carry_out(client, request, reporter);
        self.tasks.spawn(work.instrument(session_span(self.id)));
    }
}

/// The span of a session. It has no parent: the session outlives the request or
/// message that led to it.
pub fn session_span(id: SessionId) -> Span {
    tracing::info_span!(parent: None, "control", session = id.0)
}

/// Gives up a login at the server.
///
/// # Errors
/// The reason why the server does not know of it; the login is still good there.
pub async fn unregister(
    server: &str,
    machine_key: MachineSecret,
    dialer: Dialer,
    request: RegisterRequest,
) -> Result<(), String> {
    let client = client(server, machine_key, dialer)?;
    let answer = client.register(&request).await;
    answer.map(drop).map_err(|error| error.to_string())
}

async fn ask_about_lock(
    client: &ControlClient,
    request: &LockRequest,
) -> Result<LockAnswer, String> {
    let answer = match request {
        LockRequest::Bootstrap(request) => client
            .tailnet_lock("bootstrap", request)
            .await
            .map(LockAnswer::Bootstrap),
        LockRequest::Offer(request) => client
            .tailnet_lock("sync/offer", request)
            .await
            .map(LockAnswer::Offer),
        LockRequest::Send(request) => client
            .tailnet_lock("sync/send", request)
            .await
            .map(LockAnswer::Send),
        LockRequest::Sign(request) => client
            .tailnet_lock::<serde_json::Value>("sign", request)
            .await
            .map(|_| LockAnswer::Signed),
    };
    answer.map_err(|error| error.to_string())
}

/// Where results go.
struct Reporter {
    id: SessionId,
    inbox: Inbox,
}

impl Reporter {
    fn report(&self, input: Input) {
        self.inbox.send(NodeInput::Control(self.id, input));
    }
}

async fn carry_out(client: ControlClient, request: Request, reporter: Reporter) {
    match request {
        Request::Register(request) => {
            let answer = client.register(&request).await;
            let answer = answer.map(Box::new).map_err(request_error);
            reporter.report(Input::Registered(answer));
        }
        Request::OpenStream(request) => follow(&client, &request, &reporter).await,
        Request::Update(request) => {
            let answer = client.update(&request).await;
            if let Err(error) = &answer {
                tracing::info!(%error, "the coordination server did not take an update");
            }
            reporter.report(Input::Updated(answer.map_err(request_error)));
        }
        Request::AnswerHead(ping) => log(client.answer_head_ping(&ping).await, &ping),
        Request::AnswerC2n(ping, response) => {
            log(client.post_c2n_response(&ping, response).await, &ping);
        }
    }
}

/// Reports the messages of the map stream until it ends.
async fn follow(client: &ControlClient, request: &MapRequest, reporter: &Reporter) {
    let mut stream = match client.map_stream(request, STREAM_WATCHDOG).await {
        Ok(stream) => stream,
        Err(error) => {
            return reporter.report(Input::StreamOpened(Err(request_error(error))));
        }
    };
    reporter.report(Input::StreamOpened(Ok(())));
    let reason = loop {
        match stream.next().await {
            Ok(Some(message)) => reporter.report(Input::Message(Box::new(message))),
            Ok(None) => break "the coordination server ended the map stream".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    reporter.report(Input::StreamEnded(reason));
}

fn log(answer: Result<(), ControlError>, ping: &PingRequest) {
    if let Err(error) = answer {
        let kind = ping.types.as_str();
        tracing::debug!(%error, kind, "a request of the server was not answered");
    }
}

fn request_error(error: ControlError) -> RequestError {
    match error {
        ControlError::RateLimited { retry_after } => RequestError::RateLimited { retry_after },
        ControlError::Status { status, body, .. } if status == StatusCode::NOT_FOUND => {
            RequestError::NotFound(body)
        }
        other => RequestError::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use warren_keys::Entropy as _;

    use super::*;
    use crate::daemon::Message;
    use warren_dial::SystemEntropy;

    #[tokio::test]
    async fn a_session_with_a_bad_address_reports_it() {
        let (inbox, mut outbox) = Inbox::new();
        let machine_key = MachineSecret::from_bytes(&SystemEntropy.bytes());
        let dialer = Dialer::new().with_timeout(Duration::from_secs(1));
        let mut session =
            SessionIo::new(SessionId(3), "nowhere at all", machine_key, dialer, inbox);
        session.request(Request::Register(Box::default()));
        let message = outbox.next().await;
        let Some(Message::Node(NodeInput::Control(SessionId(3), input))) = message else {
            panic!("another message");
        };
        assert!(matches!(
            input,
            Input::Registered(Err(RequestError::BadAddress(reason)))
                if reason.contains("is not a valid address")
        ));
    }
}
