//! All that the local interface needs from the engine.
//!
//! The daemon implements [`Backend`] by sending messages to the engine and
//! waiting for the reply; tests implement it in memory. The methods are plain
//! `async fn`s whose futures must be `Send`.

use std::future::Future;
use std::net::IpAddr;

use tokio::sync::mpsc;
use warren_control_types::{DerpMap, DnsConfig};

use crate::filter::{FilterReport, WhyAnswer, WhyQuestion};
use crate::metrics::Metric;
use crate::notify::{Notify, NotifyMask};
use crate::prefs::{MaskedPrefs, Options, Prefs};
use crate::types::{
    LoginProfile, NetcheckReport, PingResult, PingType, Status, WhoIsResponse, WhoIsTarget,
};

/// Why the engine did not do what was asked; the text is shown to the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// What was asked for makes no sense or is not allowed; changing the
    /// request helps. Answered with 400.
    #[error("{0}")]
    Refused(String),
    /// There is no such thing. Answered with 404.
    #[error("{0}")]
    NotFound(String),
    /// Not in this state; trying later may help. Answered with 503.
    #[error("{0}")]
    Unavailable(String),
    /// The daemon failed (disk, operating system, ended). Answered with 500.
    #[error("{0}")]
    Failed(String),
}

/// What an answer of the engine looks like.
pub type Reply<T> = Result<T, BackendError>;

/// The engine, seen from the local interface.
pub trait Backend: Send + Sync + 'static {
    /// The status; without peers (and users other than our own) if not wanted.
    fn status(&self, peers: bool) -> impl Future<Output = Reply<Status>> + Send;

    /// The current preferences, with `config` filled once logged in.
    fn prefs(&self) -> impl Future<Output = Reply<Prefs>> + Send;

    /// Whether these preferences could be used; stores nothing.
    fn check_prefs(&self, prefs: Prefs) -> impl Future<Output = Reply<()>> + Send {
        async move { prefs.check().map_err(BackendError::Refused) }
    }

    /// Changes preferences, stores them, and answers with all of them. The
    /// server has run [`Prefs::check`] on the outcome before.
    fn edit_prefs(&self, change: MaskedPrefs) -> impl Future<Output = Reply<Prefs>> + Send;

    /// Starts with these preferences: with an auth key, registers with it;
    /// without one, connects if a node key is there.
    fn start(&self, options: Options) -> impl Future<Output = Reply<()>> + Send;

    /// Begins a login in which a person opens an address; the address follows
    /// as a notification. Also replaces a key that is still valid.
    fn login_interactive(&self) -> impl Future<Output = Reply<()>> + Send;

    /// Expires the node key at the server and forgets it here.
    fn logout(&self, reason: String) -> impl Future<Output = Reply<()>> + Send;

    /// Forgets the keys here, without telling the server.
    fn reset_auth(&self) -> impl Future<Output = Reply<()>> + Send;

    /// Listens. The first message is [`Notify::initial`] for the mask, taken
    /// together with the subscription so that nothing is missed or doubled; later ones
    /// have gone through [`Notify::for_mask`]. A listener that does not
    /// keep up is dropped, which closes its connection.
    fn subscribe(
        &self,
        mask: NotifyMask,
    ) -> impl Future<Output = Reply<mpsc::Receiver<Notify>>> + Send;

    /// Pings once and waits for the reply, or until the future is dropped.
    /// `size` is the size of the packet, 0 for the smallest.
    fn ping(
        &self,
        ip: IpAddr,
        kind: PingType,
        size: usize,
    ) -> impl Future<Output = Reply<PingResult>> + Send;

    /// Whose address is it? [`BackendError::NotFound`] for nobody's.
    fn whois(&self, target: WhoIsTarget) -> impl Future<Output = Reply<WhoIsResponse>> + Send;

    /// The relay map.
    fn derp_map(&self) -> impl Future<Output = Reply<DerpMap>> + Send;

    /// The DNS configuration of the netmap.
    fn dns_config(&self) -> impl Future<Output = Reply<DnsConfig>> + Send;

    /// The login in use.
    fn current_profile(&self) -> impl Future<Output = Reply<LoginProfile>> + Send;

    /// The network around us, as last measured (measured now if never).
    fn netcheck(&self) -> impl Future<Output = Reply<NetcheckReport>> + Send;

    /// The counters.
    fn metrics(&self) -> impl Future<Output = Reply<Vec<Metric>>> + Send;

    /// The packet filter in force, with its counters.
    fn filter(&self) -> impl Future<Output = Reply<FilterReport>> + Send {
        async {
            Err(BackendError::NotFound(
                "there is no packet filter".to_owned(),
            ))
        }
    }

    /// Whether a connection may work, as far as can be told here.
    fn why(&self, question: WhyQuestion) -> impl Future<Output = Reply<WhyAnswer>> + Send {
        let _ = question;
        async {
            Err(BackendError::NotFound(
                "there is no packet filter".to_owned(),
            ))
        }
    }

    /// Measures the network around us again.
    fn restun(&self) -> impl Future<Output = Reply<()>> + Send;

    /// Opens the UDP sockets again.
    fn rebind(&self) -> impl Future<Output = Reply<()>> + Send;
}
