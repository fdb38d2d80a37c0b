//! The daemon, as the local interface sees it: requests become work for the
//! engine's task, which alone owns the state.

use std::net::IpAddr;

use tokio::sync::{mpsc, oneshot};
use warren_control_types::{DerpMap, DnsConfig};

use super::engine_task::EngineTask;
use super::{Inbox, Message};
use crate::localapi::backend::{Backend, BackendError, Reply};
use crate::localapi::filter::{FilterReport, WhyAnswer, WhyQuestion};
use crate::localapi::metrics::Metric;
use crate::localapi::notify::{Notify, NotifyMask};
use crate::localapi::prefs::{MaskedPrefs, Options, Prefs};
use crate::localapi::types::{
    LoginProfile, NetcheckReport, PingResult, PingType, Status, WhoIsResponse, WhoIsTarget,
};

/// Work for the engine's task.
pub type Request = dyn FnOnce(&mut EngineTask) + Send;

/// Sends requests to the engine's task.
#[derive(Clone)]
pub struct EngineBackend {
    engine: Inbox,
}

impl EngineBackend {
    /// For the task that reads `engine`'s other end.
    pub fn new(engine: Inbox) -> Self {
        Self { engine }
    }

    /// Lets the task run `work`; it answers now or later.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut EngineTask, oneshot::Sender<Reply<T>>) + Send + 'static,
    ) -> Reply<T> {
        let stopping = || BackendError::Unavailable("the daemon is stopping".to_owned());
        let (reply, answer) = oneshot::channel();
        let request = Message::Request(Box::new(move |task| work(task, reply)));
        if self.engine.is_closed() {
            return Err(stopping());
        }
        self.engine.tell(request);
        answer.await.map_err(|_| stopping())?
    }

    /// Lets the task answer at once.
    async fn now<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut EngineTask) -> Reply<T> + Send + 'static,
    ) -> Reply<T> {
        // Nobody waits any more: the program that asked is gone.
        self.ask(move |task, reply| drop(reply.send(work(task))))
            .await
    }
}

impl Backend for EngineBackend {
    async fn status(&self, peers: bool) -> Reply<Status> {
        self.now(move |task| Ok(task.status(peers))).await
    }

    async fn prefs(&self) -> Reply<Prefs> {
        self.now(|task| Ok(task.prefs())).await
    }

    async fn edit_prefs(&self, change: MaskedPrefs) -> Reply<Prefs> {
        self.now(move |task| task.edit_prefs(&change)).await
    }

    async fn start(&self, options: Options) -> Reply<()> {
        self.now(move |task| task.start(options)).await
    }

    async fn login_interactive(&self) -> Reply<()> {
        self.now(EngineTask::login_interactive).await
    }

    async fn logout(&self, reason: String) -> Reply<()> {
        self.ask(move |task, reply| task.logout(&reason, reply))
            .await
    }

    async fn reset_auth(&self) -> Reply<()> {
        self.now(EngineTask::reset_auth).await
    }

    async fn subscribe(&self, mask: NotifyMask) -> Reply<mpsc::Receiver<Notify>> {
        self.now(move |task| Ok(task.subscribe(mask))).await
    }

    async fn ping(&self, ip: IpAddr, kind: PingType, size: usize) -> Reply<PingResult> {
        self.ask(move |task, reply| task.ping(ip, kind, size, reply))
            .await
    }

    async fn whois(&self, target: WhoIsTarget) -> Reply<WhoIsResponse> {
        self.now(move |task| task.whois(target)).await
    }

    async fn derp_map(&self) -> Reply<DerpMap> {
        self.now(|task| Ok(task.netmap().derp_map.clone())).await
    }

    async fn dns_config(&self) -> Reply<DnsConfig> {
        self.now(|task| Ok(task.netmap().dns_config.clone())).await
    }

    async fn current_profile(&self) -> Reply<LoginProfile> {
        self.now(|task| Ok(task.current_profile())).await
    }

    async fn netcheck(&self) -> Reply<NetcheckReport> {
        self.now(|task| task.netcheck()).await
    }

    async fn metrics(&self) -> Reply<Vec<Metric>> {
        self.now(|task| Ok(task.metrics())).await
    }

    async fn filter(&self) -> Reply<FilterReport> {
        self.now(|task| Ok(task.filter_report())).await
    }

    async fn why(&self, question: WhyQuestion) -> Reply<WhyAnswer> {
        self.now(move |task| Ok(task.why(question))).await
    }

    async fn restun(&self) -> Reply<()> {
        self.now(|task| {
            task.restun();
            Ok(())
        })
        .await
    }

    async fn rebind(&self) -> Reply<()> {
        self.now(EngineTask::rebind).await
    }
}
