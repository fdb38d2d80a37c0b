//! The server: takes connections, bounds them, and ends those that may not go on.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use warren_control_types::StableNodeId;

use crate::accounts::Accounts;
use crate::host_keys::HostKeys;
use crate::limits::{
    CHECK_PATIENCE, CONNECTIONS, CONNECTIONS_OF_PEER, HELD, HELD_OF_PEER, LOGGING_IN,
    LOGGING_IN_OF_PEER, LOGIN_PATIENCE,
};
use crate::login::{Judge, Login};
use crate::tailnet::Tailnet;
use crate::transport::{self, ServerConfig};

/// The time in which the reason for an end reaches the client.
const FAREWELL: Duration = Duration::from_millis(500);

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The address of the peer inside the tunnel.
    pub peer: SocketAddr,
    /// The address of this node that the peer connected to.
    pub local: SocketAddr,
}

/// The settings of a server.
pub struct Options {
    /// The network.
    pub tailnet: Arc<dyn Tailnet>,
    /// The host keys.
    pub host_keys: HostKeys,
    /// The accounts of this machine.
    pub accounts: Accounts,
    /// The program that is started for a session, with
    /// [`ARGUMENTS`](crate::child::ARGUMENTS).
    pub program: PathBuf,
}

/// The server. Copies are handles on the same one.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    tailnet: Arc<dyn Tailnet>,
    accounts: Accounts,
    program: PathBuf,
    config: ServerConfig,
    places: Mutex<Places>,
}

/// The connections there are.
#[derive(Debug, Default)]
struct Places {
    logging_in: Count,
    held: Count,
    connected: Count,
}

#[derive(Debug, Default)]
struct Count {
    all: usize,
    of_peer: HashMap<StableNodeId, usize>,
}

impl Count {
    /// Takes a place. `false`: there is none.
    fn take(&mut self, peer: &StableNodeId, most: usize, most_of_peer: usize) -> bool {
        let of_peer = self.of_peer.get(peer).copied().unwrap_or_default();
        if self.all >= most || of_peer >= most_of_peer {
            return false;
        }
        self.all += 1;
        self.of_peer.insert(peer.clone(), of_peer + 1);
        true
    }

    fn give_back(&mut self, peer: &StableNodeId) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.of_peer.get_mut(peer) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(peer);
            }
        }
    }
}

/// The kind of place that a connection has beside the one of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    LoggingIn,
    /// The coordination server decides.
    Held,
    LoggedIn,
}

/// A place of a connection, until it is dropped. A peer is a node, whatever its address.
pub(crate) struct Place {
    inner: Arc<Inner>,
    peer: StableNodeId,
    stage: Stage,
}

impl Place {
    /// Changes the stage. `false`: there is no place in it, and the connection has none in
    /// the one before any more either.
    fn enter(&mut self, stage: Stage) -> bool {
        let mut places = self.inner.places();
        match self.stage {
            Stage::LoggingIn => places.logging_in.give_back(&self.peer),
            Stage::Held => places.held.give_back(&self.peer),
            Stage::LoggedIn => {}
        }
        self.stage = Stage::LoggedIn;
        let has_place = match stage {
            Stage::LoggingIn => {
                let most = (LOGGING_IN, LOGGING_IN_OF_PEER);
                places.logging_in.take(&self.peer, most.0, most.1)
            }
            Stage::Held => places.held.take(&self.peer, HELD, HELD_OF_PEER),
            Stage::LoggedIn => true,
        };
        if has_place {
            self.stage = stage;
        }
        has_place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.enter(Stage::LoggedIn);
        self.inner.places().connected.give_back(&self.peer);
    }
}

impl Inner {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a connection that its tasks share.
pub(crate) struct Connection {
    inner: Arc<Inner>,
    pub ends: Ends,
    /// Set once, by the login.
    pub login: watch::Sender<Option<Arc<Login>>>,
    /// Set once, with the reason why the server ends the connection.
    pub ended: watch::Sender<Option<String>>,
    /// The coordination server decides about the login.
    pub is_held: watch::Sender<bool>,
}

impl Connection {
    pub(crate) fn judge(&self) -> Judge<'_> {
        Judge {
            tailnet: &*self.inner.tailnet,
            accounts: &self.inner.accounts,
            ends: self.ends,
        }
    }

    pub(crate) fn program(&self) -> &PathBuf {
        &self.inner.program
    }

    /// The login, once there is one.
    pub(crate) fn logged_in(&self) -> Option<Arc<Login>> {
        self.login.borrow().clone()
    }
}

impl Server {
    /// A server with these settings.
    pub fn new(options: Options) -> Self {
        let config = transport::config(&options.host_keys);
        Self {
            inner: Arc::new(Inner {
                tailnet: options.tailnet,
                accounts: options.accounts,
                program: options.program,
                config,
                places: Mutex::default(),
            }),
        }
    }

    /// Serves a connection until it ends. `accept` gives its stream, and is not called when
    /// there is no place for it.
    ///
    /// # Errors
    /// When the peer is not known, there is no place, or `accept` fails.
    pub async fn serve<S>(
        &self,
        ends: Ends,
        accept: impl FnOnce() -> io::Result<S>,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let facts = self.inner.tailnet.facts(ends.peer.ip()).await;
        let facts = facts.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
        let place = self.place(facts.node)?;
        let connection = Arc::new(Connection {
            inner: Arc::clone(&self.inner),
            ends,
            login: watch::channel(None).0,
            ended: watch::channel(None).0,
            is_held: watch::channel(false).0,
        });
        let cut = CancellationToken::new();
        let stream = Cuttable {
            stream: accept()?,
            cut: Box::pin(cut.clone().cancelled_owned()),
        };
        // However this ends: the tasks of the connection end with its stream.
        let _cut = cut.drop_guard();
        let starting = transport::start(&self.inner.config, stream, Arc::clone(&connection));
        let started = tokio::time::timeout(LOGIN_PATIENCE, starting).await;
        let Ok(Some(running)) = started else {
            return Ok(());
        };
        supervise(&connection, running, place).await;
        Ok(())
    }

    fn place(&self, peer: StableNodeId) -> io::Result<Place> {
        let full = || io::Error::from(io::ErrorKind::QuotaExceeded);
        let most = (CONNECTIONS, CONNECTIONS_OF_PEER);
        if !self.inner.places().connected.take(&peer, most.0, most.1) {
            return Err(full());
        }
        let mut place = Place {
            inner: Arc::clone(&self.inner),
            peer,
            stage: Stage::LoggedIn,
        };
        match place.enter(Stage::LoggingIn) {
            true => Ok(place),
            false => Err(full()),
        }
    }
}

/// Waits for the end of a connection, or ends it.
async fn supervise(connection: &Connection, running: transport::Running, mut place: Place) {
    let reason = {
        let ends = running.ended();
        tokio::pin!(ends);
        let login = tokio::select! {
            () = &mut ends => return,
            login = logs_in(connection, &mut place) => login,
        };
        let Some(login) = login else {
            // No login in time. There is nothing to say.
            return;
        };
        place.enter(Stage::LoggedIn);
        tokio::select! {
            () = &mut ends => return,
            reason = may_not_go_on(connection, &login) => reason,
        }
    };
    tracing::info!(reason, "an SSH connection is ended");
    connection.ended.send_replace(Some(reason.clone()));
    let saying = running.say_goodbye(format!("warren: {reason}"));
    let _ = tokio::time::timeout(FAREWELL, saying).await;
}

/// Waits for the login. `None`: it took too long, or too many logins are held.
async fn logs_in(connection: &Connection, place: &mut Place) -> Option<Arc<Login>> {
    let mut login = connection.login.subscribe();
    let mut wait = async |patience| {
        let logged_in = tokio::time::timeout(patience, login.wait_for(Option::is_some)).await;
        logged_in.ok()?.ok()?.clone()
    };
    let mut held = connection.is_held.subscribe();
    tokio::select! {
        login = wait(LOGIN_PATIENCE) => return login,
        _ = held.wait_for(|is_held| *is_held) => {}
    }
    if !place.enter(Stage::Held) {
        tracing::info!("too many SSH logins wait for the coordination server");
        return None;
    }
    wait(CHECK_PATIENCE).await
}

/// Waits until the connection may not go on, and returns the reason.
async fn may_not_go_on(connection: &Connection, login: &Login) -> String {
    let mut changes = connection.inner.tailnet.changes();
    let session_ends = login
        .grant
        .session_duration
        .and_then(|duration| Instant::now().checked_add(duration));
    let mut rule_expires = login.grant.rule_expires;
    loop {
        // The question below covers all earlier changes.
        changes.mark_unchanged();
        if !connection.judge().still_holds(login).await {
            return "access revoked: the policy does not allow this login any more".to_owned();
        }
        // Another rule may have let it go on when its own had expired.
        let rule_ends = rule_expires.filter(|at| *at > Timestamp::now()).map(|at| {
            let left = Duration::try_from(at.duration_since(Timestamp::now()));
            Instant::now() + left.unwrap_or_default()
        });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return "the daemon is stopping".to_owned();
            },
            () = at(session_ends) => {
                let duration = login.grant.session_duration.unwrap_or_default();
                return format!("the session time of {duration:?} is over");
            }
            () = at(rule_ends) => rule_expires = None,
        }
    }
}

/// Waits for a time, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A stream that can be ended from outside at any moment, whatever its reader does.
struct Cuttable<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Cuttable<S> {
    fn is_cut(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cuttable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_cut(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cuttable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_cut(context)?;
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_cut(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
