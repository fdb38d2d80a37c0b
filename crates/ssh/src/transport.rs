//! Connections and channels over russh. Nothing else in this crate knows them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use russh::server::{
    self, Auth, ChannelOpenHandle, Config, Handle, Msg, RunningSession, VerifiedPublicKey,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Disconnect, MethodKind, MethodSet,
    Preferred, Pty, Sig, SshId,
};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::agent::AgentSocket;
use crate::child::Spec;
use crate::forward;
use crate::host_keys::HostKeys;
use crate::limits::{
    BYTES, BYTES_OF_CONNECTION, CHANNELS, FORWARDED_PORTS, KEEPALIVE, SESSIONS, VARIABLES, WINDOW,
};
use crate::login::Login;
use crate::process::{Size, Terminal};
use crate::server::Connection;
use crate::session::{Control, Session};
use crate::terminal_modes::Mode;

/// The name of the server in the protocol. Clients know by it that they are let in without
/// a key.
const IDENT: &str = "SSH-2.0-Tailscale";
/// A user name with this end asks for a password, any password, for clients that give up
/// without one.
const WITH_PASSWORD: &str = "+password";
/// Messages for russh that may wait.
const WAITING: usize = 64;
/// Orders for a session that may wait.
const WAITING_CONTROLS: usize = 16;
/// Attempts to log in on one connection.
const ATTEMPTS: usize = 6;
/// Lost keepalives after which a client is gone.
const LOST_KEEPALIVES: usize = 3;
/// The longest kind of a terminal, in bytes.
const LONGEST_TERM: usize = 64;
/// Programs that serve SFTP. They run as the user, from the user's shell.
const SFTP: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// The settings of russh.
pub(crate) type ServerConfig = Arc<Config>;

/// The settings for all connections.
pub(crate) fn config(host_keys: &HostKeys) -> ServerConfig {
    Arc::new(Config {
        server_id: SshId::Standard(Cow::Borrowed(IDENT)),
        methods: methods(&[
            MethodKind::None,
            MethodKind::PublicKey,
            MethodKind::Password,
        ]),
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys.private_keys(),
        window_size: WINDOW,
        replenish_on_receipt: false,
        event_buffer_size: WAITING,
        preferred: Preferred::DEFAULT,
        max_auth_attempts: ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: LOST_KEEPALIVES,
        ..Config::default()
    })
}

fn methods(kinds: &[MethodKind]) -> MethodSet {
    MethodSet::from(kinds)
}

/// A connection that runs.
pub(crate) struct Running {
    session: Mutex<Option<RunningSession<Handler>>>,
    handle: Handle,
}

impl Running {
    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        let session = {
            let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            session.take()
        };
        if let Some(session) = session
            && let Err(error) = session.await
        {
            tracing::debug!(%error, "an SSH connection has ended");
        }
    }

    /// Sends the reason for the end.
    pub(crate) async fn say_goodbye(&self, text: String) {
        // Sessions report it first.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let reason = Disconnect::ByApplication;
        let _ = self.handle.disconnect(reason, text, String::new()).await;
        std::future::pending().await
    }
}

/// Starts a connection. `None`: the other side does not speak SSH.
pub(crate) async fn start(
    config: &ServerConfig,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Arc<Connection>,
) -> Option<Running> {
    let (known, handle) = watch::channel(None);
    let handler = Handler {
        connection,
        registry: Arc::default(),
        handle,
        sessions: HashMap::new(),
        listeners: HashMap::new(),
        attempt: None,
        attempts: 0,
        tasks: JoinSet::new(),
    };
    let started = server::run_stream(Arc::clone(config), stream, handler).await;
    let session = started
        .inspect_err(|error| tracing::debug!(%error, "an SSH connection did not begin"))
        .ok()?;
    let handle = session.handle();
    known.send_replace(Some(handle.clone()));
    Some(Running {
        session: Mutex::new(Some(session)),
        handle,
    })
}

/// Something that a client sends into a channel.
#[derive(Debug)]
pub(crate) enum FromClient {
    Data(Waiting),
    Eof,
}

/// Data that waits to be read. It takes a part of the budgets until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    data: Bytes,
    of_connection: Arc<AtomicUsize>,
}

/// Bytes that wait to be read, of all connections.
static WAITING_BYTES: AtomicUsize = AtomicUsize::new(0);

impl Waiting {
    /// `None`: the budget of the connection, or of all, is used up.
    fn new(data: &[u8], of_connection: &Arc<AtomicUsize>) -> Option<Self> {
        let len = data.len();
        let of_all = WAITING_BYTES.fetch_add(len, Ordering::Relaxed) + len;
        let of_one = of_connection.fetch_add(len, Ordering::Relaxed) + len;
        let waiting = Self {
            data: Bytes::copy_from_slice(data),
            of_connection: Arc::clone(of_connection),
        };
        (of_all <= BYTES && of_one <= BYTES_OF_CONNECTION).then_some(waiting)
    }
}

impl std::ops::Deref for Waiting {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let len = self.data.len();
        WAITING_BYTES.fetch_sub(len, Ordering::Relaxed);
        self.of_connection.fetch_sub(len, Ordering::Relaxed);
    }
}

/// The data of a channel. It ends when the channel is closed. Not more than the window
/// of the channel waits in it.
pub(crate) type Incoming = mpsc::UnboundedReceiver<FromClient>;

/// The channels that are open, with the way to their readers.
#[derive(Default)]
struct Registry {
    /// Bytes of this connection that wait to be read.
    waiting: Arc<AtomicUsize>,
    channels: Mutex<HashMap<ChannelId, Entry>>,
}

struct Entry {
    data: mpsc::UnboundedSender<FromClient>,
    unclaimed: Option<Incoming>,
    /// Cancelled when the channel is closed, or its connection ends.
    closed: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl Registry {
    fn channels(&self) -> std::sync::MutexGuard<'_, HashMap<ChannelId, Entry>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the place of a channel, unless it is there.
    fn open(&self, id: ChannelId) {
        self.channels().entry(id).or_insert_with(|| {
            let (data, incoming) = mpsc::unbounded_channel();
            Entry {
                data,
                unclaimed: Some(incoming),
                closed: CancellationToken::new(),
            }
        });
    }

    /// The data of a new channel. `None`: there are too many channels.
    fn claim(&self, id: ChannelId) -> Option<Incoming> {
        if self.channels().len() >= CHANNELS {
            self.close(id);
            return None;
        }
        self.open(id);
        self.channels().get_mut(&id)?.unclaimed.take()
    }

    /// Is cancelled when the channel is closed. A channel that is not there is.
    fn closed(&self, id: ChannelId) -> CancellationToken {
        let token = self.channels().get(&id).map(|entry| entry.closed.clone());
        token.unwrap_or_else(|| {
            let closed = CancellationToken::new();
            closed.cancel();
            closed
        })
    }

    fn pass(&self, id: ChannelId, message: FromClient) {
        if let Some(entry) = self.channels().get(&id) {
            // A reader that has ended takes no more.
            let _ = entry.data.send(message);
        }
    }

    fn close(&self, id: ChannelId) {
        self.channels().remove(&id);
    }
}

/// The sending end of a channel. Copies are handles on the same one.
#[derive(Clone)]
pub(crate) struct ChannelEnd {
    inner: Arc<EndInner>,
}

struct EndInner {
    id: ChannelId,
    write: ChannelWriteHalf<Msg>,
    handle: Handle,
    registry: Arc<Registry>,
    closed: CancellationToken,
    /// Bytes that were read and not returned to the window of the client yet.
    consumed: AtomicU32,
}

impl Drop for EndInner {
    /// A task that is given up closes its channel all the same: the client waits for that.
    fn drop(&mut self) {
        if self.closed.is_cancelled() {
            return;
        }
        self.registry.close(self.id);
        let (handle, id) = (self.handle.clone(), self.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { handle.close(id).await });
        }
    }
}

/// Tasks that go on when it is dropped: each opens a channel, or has one, that has to be closed
/// in order.
#[derive(Default)]
pub(crate) struct OnTheirOwn(JoinSet<()>);

impl Drop for OnTheirOwn {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

impl OnTheirOwn {
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }

    /// Waits for the end of one; pending while there is none.
    pub(crate) async fn ended(&mut self) {
        if self.0.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The channel or its connection is closed.
#[derive(Debug)]
pub(crate) struct Closed;

impl ChannelEnd {
    fn new(channel: Channel<Msg>, handle: Handle, registry: Arc<Registry>) -> Self {
        // Data comes through the registry, which does not stop the connection.
        let (_, write) = channel.split();
        let closed = registry.closed(write.id());
        Self {
            inner: Arc::new(EndInner {
                id: write.id(),
                closed,
                write,
                handle,
                registry,
                consumed: AtomicU32::new(0),
            }),
        }
    }

    /// Sends data, as standard error if it `is_error`; waits for the window of the client.
    pub(crate) async fn send(&self, data: Bytes, is_error: bool) -> Result<(), Closed> {
        const STANDARD_ERROR: u32 = 1;
        let write = &self.inner.write;
        let sending = async {
            match is_error {
                true => write.extended_data_bytes(STANDARD_ERROR, data).await,
                false => write.data_bytes(data).await,
            }
        };
        tokio::select! {
            sent = sending => sent.map_err(|_| Closed),
            () = self.inner.closed.cancelled() => Err(Closed),
        }
    }

    /// Waits until the channel is closed, by the client or with the connection.
    pub(crate) async fn closed(&self) {
        self.inner.closed.cancelled().await;
    }

    /// Returns bytes to the window of the client, in larger pieces.
    pub(crate) fn consumed(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(WINDOW);
        let consumed = self.inner.consumed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if consumed >= WINDOW / 4 {
            self.inner.consumed.fetch_sub(consumed, Ordering::Relaxed);
            self.inner.handle.replenish(self.inner.id, consumed);
        }
    }

    /// No more data comes from here.
    pub(crate) async fn eof(&self) {
        let _ = self.inner.handle.eof(self.inner.id).await;
    }

    pub(crate) async fn exit_status(&self, status: u32) {
        let handle = &self.inner.handle;
        let _ = handle.exit_status_request(self.inner.id, status).await;
    }

    pub(crate) async fn exit_signal(&self, signal: Signal, has_core: bool) {
        let (name, none) = (sig(signal), String::new());
        let handle = &self.inner.handle;
        let _ = handle
            .exit_signal_request(self.inner.id, name, has_core, none.clone(), none)
            .await;
    }

    pub(crate) async fn close(&self) {
        let _ = self.inner.handle.close(self.inner.id).await;
        self.inner.registry.close(self.inner.id);
    }

    /// Opens a channel to the agent of the client.
    pub(crate) async fn open_agent(&self) -> Option<(Self, Incoming)> {
        let EndInner {
            handle, registry, ..
        } = &*self.inner;
        let channel = handle.channel_open_agent().await.ok()?;
        claim(channel, handle.clone(), Arc::clone(registry)).await
    }
}

/// Both ends of a channel that this side has opened.
async fn claim(
    channel: Channel<Msg>,
    handle: Handle,
    registry: Arc<Registry>,
) -> Option<(ChannelEnd, Incoming)> {
    let incoming = registry.claim(channel.id());
    let end = ChannelEnd::new(channel, handle, registry);
    if incoming.is_none() {
        end.close().await;
    }
    Some((end, incoming?))
}

/// The state of a session channel.
enum SessionState {
    /// The client still says what it wants.
    Asked(Box<Wishes>),
    /// It runs; orders go there.
    Running(mpsc::Sender<Control>),
}

/// The requests of a client for a session before it begins.
struct Wishes {
    end: ChannelEnd,
    incoming: Incoming,
    environment: Vec<(String, String)>,
    terminal: Option<Terminal>,
    agent: bool,
}

/// A connection, as russh calls it. Everything ends when it is dropped.
struct Handler {
    connection: Arc<Connection>,
    registry: Arc<Registry>,
    /// Known a moment after the connection has begun.
    handle: watch::Receiver<Option<Handle>>,
    sessions: HashMap<ChannelId, SessionState>,
    listeners: HashMap<(String, u32), AbortHandle>,
    /// The login that is being decided, and how many there were.
    attempt: Option<AbortHandle>,
    attempts: usize,
    tasks: JoinSet<()>,
}

impl Drop for Handler {
    fn drop(&mut self) {
        // Sessions that run end with their channels, and clean up; so they are not aborted.
        self.registry.channels().clear();
        for listener in self.listeners.values() {
            listener.abort();
        }
        if let Some(attempt) = &self.attempt {
            attempt.abort();
        }
        self.tasks.detach_all();
    }
}

impl Handler {
    fn login(&self) -> Option<Arc<Login>> {
        self.connection.logged_in()
    }

    /// Tasks that have ended need no place.
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(task)
    }

    /// Begins to decide about a login. One that comes before the last was decided counts too.
    ///
    /// # Errors
    /// After too many attempts; the connection ends.
    fn begin_login(&mut self, wanted: String) -> Result<Auth, russh::Error> {
        self.attempts += 1;
        if self.attempts > ATTEMPTS {
            return Err(russh::Error::Disconnect);
        }
        let connection = Arc::clone(&self.connection);
        let mut handle = self.handle.clone();
        let attempt = self.spawn(async move {
            let Ok(handle) = handle
                .wait_for(Option::is_some)
                .await
                .map(|known| known.clone())
            else {
                return;
            };
            let Some(handle) = handle else { return };
            let show = |text: String| handle.auth_banner(format!("{}\r\n", text.trim_end()));
            let holds = || {
                connection.is_held.send_replace(true);
            };
            match connection.judge().log_in(&wanted, &show, &holds).await {
                Ok(login) => {
                    let login = Some(Arc::new(login));
                    connection.login.send_if_modified(|place| {
                        let is_first = place.is_none();
                        if is_first {
                            *place = login;
                        }
                        is_first
                    });
                    handle.auth_decision(true);
                }
                Err(text) => {
                    show(format!("warren: {text}"));
                    handle.auth_decision(false);
                }
            }
        });
        if let Some(earlier) = self.attempt.replace(attempt) {
            earlier.abort();
        }
        Ok(Auth::Later)
    }

    /// Starts the process of a session. `false`: it cannot begin.
    fn begin_session(&mut self, id: ChannelId, command: Option<Vec<u8>>) -> bool {
        let Some(login) = self.login() else {
            return false;
        };
        // A session that runs keeps its place, whatever else its channel asks for.
        if self.wishes(id).is_none() {
            return false;
        }
        let Some(SessionState::Asked(wishes)) = self.sessions.remove(&id) else {
            return false;
        };
        let Wishes {
            end,
            incoming,
            environment,
            terminal,
            agent,
        } = *wishes;
        let agent = agent.then(|| AgentSocket::make(&login.user));
        let agent = agent.and_then(|made| {
            made.inspect_err(|error| tracing::warn!(%error, "no agent for an SSH session"))
                .ok()
        });
        let (orders, control) = mpsc::channel(WAITING_CONTROLS);
        let spec = self.spec(
            &login,
            command,
            environment,
            terminal.as_ref(),
            agent.as_ref(),
        );
        let session = Session {
            program: self.connection.program().clone(),
            spec,
            terminal,
            agent,
            end,
            incoming,
            control,
            ended: self.connection.ended.subscribe(),
        };
        self.sessions.insert(id, SessionState::Running(orders));
        self.spawn(session.run());
        true
    }

    fn spec(
        &self,
        login: &Login,
        command: Option<Vec<u8>>,
        wanted: Vec<(String, String)>,
        terminal: Option<&Terminal>,
        agent: Option<&AgentSocket>,
    ) -> Spec {
        let interactive = terminal.is_some() && command.is_none();
        let may_use_login = interactive && crate::login::is_for_login(&wanted);
        let environment = crate::login::environment(
            login,
            &self.connection.ends,
            wanted,
            terminal.map(|terminal| terminal.kind.as_str()),
            agent.map(AgentSocket::path),
        );
        let user = &login.user;
        let program = crate::login::system_login().filter(|_| may_use_login);
        let address = self.connection.ends.peer.ip().to_string();
        Spec {
            user: user.name.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: login.groups.clone(),
            home: user.home.clone(),
            shell: user.shell.clone(),
            command,
            has_tty: terminal.is_some(),
            login: program.map(|program| (program.to_owned(), address)),
            environment,
        }
    }

    fn wishes(&mut self, id: ChannelId) -> Option<&mut Wishes> {
        match self.sessions.get_mut(&id) {
            Some(SessionState::Asked(wishes)) => Some(wishes),
            _ => None,
        }
    }

    fn order(&self, id: ChannelId, order: Control) {
        if let Some(SessionState::Running(orders)) = self.sessions.get(&id) {
            // A client that sends them faster than they are carried out loses some.
            let _ = orders.try_send(order);
        }
    }

    /// The end of a channel that the client opens. `None`: there are too many.
    fn accept(
        &self,
        channel: Channel<Msg>,
        session: &server::Session,
    ) -> Option<(ChannelEnd, Incoming)> {
        let incoming = self.registry.claim(channel.id())?;
        let registry = Arc::clone(&self.registry);
        Some((
            ChannelEnd::new(channel, session.handle(), registry),
            incoming,
        ))
    }
}

fn answer(session: &mut server::Session, id: ChannelId, is_done: bool) -> Result<(), russh::Error> {
    match is_done {
        true => session.channel_success(id),
        false => session.channel_failure(id),
    }
}

fn size(columns: u32, rows: u32, width: u32, height: u32) -> Size {
    let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    Size {
        columns: short(columns),
        rows: short(rows),
        width: short(width),
        height: short(height),
    }
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        if user.ends_with(WITH_PASSWORD) {
            return Ok(Auth::Reject {
                proceed_with_methods: Some(methods(&[MethodKind::Password])),
                partial_success: false,
            });
        }
        self.begin_login(user.to_owned())
    }

    async fn auth_password(&mut self, user: &str, _: &str) -> Result<Auth, Self::Error> {
        let user = user.strip_suffix(WITH_PASSWORD).unwrap_or(user);
        self.begin_login(user.to_owned())
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        self.begin_login(user.to_owned())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        if self.sessions.len() >= SESSIONS {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let Some((end, incoming)) = self.accept(channel, session) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let wishes = Wishes {
            end,
            incoming,
            environment: Vec::new(),
            terminal: None,
            agent: false,
        };
        self.sessions
            .insert(id, SessionState::Asked(Box::new(wishes)));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let is_allowed = self
            .login()
            .is_some_and(|login| login.grant.local_forwarding);
        let port = u16::try_from(port).ok().filter(|_| is_allowed);
        let Some(port) = port else {
            reply
                .reject(ChannelOpenFailure::AdministrativelyProhibited)
                .await;
            return Ok(());
        };
        let Some((end, incoming)) = self.accept(channel, session) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let host = host.to_owned();
        self.spawn(async move {
            match forward::connect(&host, port).await {
                Ok(stream) => {
                    reply.accept().await;
                    forward::pump(end, incoming, stream).await;
                }
                Err(_) => {
                    end.inner.registry.close(end.inner.id);
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
            }
        });
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        // Before its first data.
        self.registry.open(id);
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        match Waiting::new(data, &self.registry.waiting) {
            Some(data) => self.registry.pass(id, FromClient::Data(data)),
            // Many channels whose readers stand still: this one is closed.
            None => self.registry.close(id),
        }
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        id: ChannelId,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        self.registry.pass(id, FromClient::Eof);
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        self.registry.close(id);
        self.sessions.remove(&id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        let kind = match term {
            term if term.len() <= LONGEST_TERM && term.bytes().all(is_name) => term,
            _ => "dumb",
        };
        let terminal = Terminal {
            kind: kind.to_owned(),
            size: size(columns, rows, width, height),
            modes: modes
                .iter()
                .map(|(mode, value)| Mode {
                    number: *mode as u8,
                    value: *value,
                })
                .collect(),
        };
        let wishes = self.wishes(id);
        let is_done = wishes
            .map(|wishes| wishes.terminal = Some(terminal))
            .is_some();
        answer(session, id, is_done)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let is_accepted = self.login().is_some_and(|login| {
            let environment = &login.grant.environment;
            environment.accepts(name, value, login.accepts_env)
        });
        let wishes = self.wishes(id);
        let wishes = wishes.filter(|wishes| is_accepted && wishes.environment.len() < VARIABLES);
        let is_done = wishes.map(|wishes| {
            wishes.environment.push((name.to_owned(), value.to_owned()));
        });
        answer(session, id, is_done.is_some())
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let is_done = self.begin_session(id, None);
        answer(session, id, is_done)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let is_usable = !command.contains(&0);
        let is_done = is_usable && self.begin_session(id, Some(command.to_vec()));
        answer(session, id, is_done)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let program = SFTP.iter().find(|path| std::path::Path::new(path).exists());
        let is_done = match (name, program) {
            ("sftp", Some(program)) => self.begin_session(id, Some(program.as_bytes().to_vec())),
            ("sftp", None) => {
                tracing::warn!("no sftp-server on this machine; install openssh-sftp-server");
                false
            }
            _ => false,
        };
        answer(session, id, is_done)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let size = size(columns, rows, width, height);
        if let Some(terminal) = self.wishes(id).and_then(|wishes| wishes.terminal.as_mut()) {
            terminal.size = size;
        }
        self.order(id, Control::Resize(size));
        Ok(())
    }

    async fn agent_request(
        &mut self,
        id: ChannelId,
        session: &mut server::Session,
    ) -> Result<bool, Self::Error> {
        let is_allowed = self
            .login()
            .is_some_and(|login| login.grant.agent_forwarding);
        let wishes = self.wishes(id).filter(|_| is_allowed);
        let is_done = wishes.map(|wishes| wishes.agent = true).is_some();
        answer(session, id, is_done)?;
        Ok(is_done)
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        if let Some(signal) = signal_of(&signal) {
            self.order(id, Control::Signal(signal));
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut server::Session,
    ) -> Result<bool, Self::Error> {
        let login = self.login().filter(|login| login.grant.remote_forwarding);
        let (Some(login), Ok(wanted)) = (login, u16::try_from(*port)) else {
            return Ok(false);
        };
        if self.listeners.len() >= FORWARDED_PORTS {
            return Ok(false);
        }
        let listener = forward::listen(address, wanted, login.user.uid == 0).await;
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let Ok((bound, listener)) = bound else {
            return Ok(false);
        };
        *port = u32::from(bound.port());
        let (address, number) = (address.to_owned(), *port);
        let (handle, registry) = (session.handle(), Arc::clone(&self.registry));
        let place = (address.clone(), number);
        let serving = serve_port(listener, address, number, handle, registry);
        let listening = self.spawn(serving);
        self.listeners.insert(place, listening);
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut server::Session,
    ) -> Result<bool, Self::Error> {
        let listening = self.listeners.remove(&(address.to_owned(), port));
        Ok(listening.map(|listening| listening.abort()).is_some())
    }
}

/// Passes connections to a port of this machine on to the client.
async fn serve_port(
    listener: tokio::net::TcpListener,
    address: String,
    port: u32,
    handle: Handle,
    registry: Arc<Registry>,
) {
    let mut connections = OnTheirOwn::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.ended() => continue,
        };
        let Ok((stream, from)) = accepted else {
            // No descriptors are left at the moment.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if connections.len() >= CHANNELS {
            continue;
        }
        let (address, handle, registry) = (address.clone(), handle.clone(), Arc::clone(&registry));
        connections.spawn(async move {
            let (from, from_port) = originator(from);
            let opening = handle.channel_open_forwarded_tcpip(address, port, from, from_port);
            let Ok(channel) = opening.await else { return };
            if let Some((end, incoming)) = claim(channel, handle, registry).await {
                forward::pump(end, incoming, stream).await;
            }
        });
    }
}

fn originator(from: SocketAddr) -> (String, u32) {
    (from.ip().to_string(), u32::from(from.port()))
}

fn signal_of(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    })
}

fn sig(signal: Signal) -> Sig {
    match signal {
        Signal::ABORT => Sig::ABRT,
        Signal::ALARM => Sig::ALRM,
        Signal::FPE => Sig::FPE,
        Signal::HUP => Sig::HUP,
        Signal::ILL => Sig::ILL,
        Signal::INT => Sig::INT,
        Signal::KILL => Sig::KILL,
        Signal::PIPE => Sig::PIPE,
        Signal::QUIT => Sig::QUIT,
        Signal::SEGV => Sig::SEGV,
        Signal::TERM => Sig::TERM,
        Signal::USR1 => Sig::USR1,
        other => Sig::Custom(format!("{}@warren", other.as_raw())),
    }
}
