//! The host task over a system of which any part fails.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::*;

/// A part of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Routes,
    PacketFilter,
    Resolver,
}

const PARTS: [Part; 3] = [Part::Routes, Part::PacketFilter, Part::Resolver];

#[derive(Default)]
struct Parts {
    broken: BTreeSet<Part>,
    /// The parts that were set by the last attempt.
    set: BTreeSet<Part>,
    attempts: usize,
    is_restored: bool,
    /// This is a container that stands for a service.
    stands_for_a_service: bool,
    /// Addresses are rewritten.
    snat: bool,
    /// Another program deletes our settings.
    alterations: Arc<Notify>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Parts>>);

impl Fake {
    fn set(&self, part: Part) -> Result<(), String> {
        let mut parts = self.0.lock().unwrap();
        if part == Part::Routes {
            parts.attempts += 1;
            parts.set.clear();
        }
        if parts.broken.contains(&part) {
            return Err(format!("{part:?} is broken"));
        }
        parts.set.insert(part);
        Ok(())
    }
}

impl System for Fake {
    fn interface(&self) -> &str {
        "warren0"
    }

    async fn set_routes(&mut self, _: &RouterConfig) -> Outcome {
        Outcome {
            failures: self.set(Part::Routes).err().into_iter().collect(),
            warnings: vec!["a warning".to_owned()],
        }
    }

    fn set_packet_filter(&mut self, config: Option<&FirewallConfig>) -> Result<(), String> {
        self.0.lock().unwrap().snat = config.is_some_and(|config| config.snat);
        self.set(Part::PacketFilter)
    }

    fn stands_for_a_service(&self) -> bool {
        self.0.lock().unwrap().stands_for_a_service
    }

    fn foreign_filters(&self) -> Vec<String> {
        Vec::new()
    }

    async fn set_resolver(&mut self, _: Option<&ResolverConfig>) -> Result<(), String> {
        self.set(Part::Resolver)
    }

    async fn altered(&mut self) {
        let alterations = self.0.lock().unwrap().alterations.clone();
        alterations.notified().await;
    }

    async fn restore(&mut self) {
        self.0.lock().unwrap().is_restored = true;
    }
}

fn wanted() -> HostState {
    HostState {
        host: HostConfig {
            addresses: vec!["100.64.0.1".parse().unwrap()],
            ..HostConfig::default()
        },
        forwarding: Some(Forwarding {
            snat: true,
            stateful: false,
            offered: false,
        }),
        dns: Some(ResolverConfig::default()),
        ..HostState::default()
    }
}

/// Every set of broken parts.
fn all_cases() -> impl Iterator<Item = BTreeSet<Part>> {
    (0..1_usize << PARTS.len()).map(|bits| {
        let parts = PARTS.iter().enumerate();
        let chosen = parts.filter(|(at, _)| bits >> at & 1 == 1);
        chosen.map(|(_, part)| *part).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn whatever_is_broken_is_reported_and_the_rest_is_set() {
    for broken in all_cases() {
        let system = Fake::default();
        system.0.lock().unwrap().broken.clone_from(&broken);
        let (done, mut reports) = mpsc::unbounded_channel();
        let host = Host::start(system.clone(), done);
        host.apply(wanted());
        let report = reports.recv().await.unwrap();
        assert_eq!(report.addresses, wanted().host.addresses);
        // One problem for each, and the warning.
        assert_eq!(report.problems.len(), broken.len() + 1, "{report:?}");
        for part in PARTS {
            let name = format!("{part:?} is broken");
            let is_named = report.problems.iter().any(|text| text.contains(&name));
            assert_eq!(is_named, broken.contains(&part), "{report:?}");
            let is_set = system.0.lock().unwrap().set.contains(&part);
            assert_eq!(is_set, !broken.contains(&part), "{part:?}");
        }
        host.stop().await;
        assert!(system.0.lock().unwrap().is_restored);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_part_is_tried_again_and_the_end_of_the_problem_is_reported_once() {
    let system = Fake::default();
    system.0.lock().unwrap().broken = PARTS.into();
    let (done, mut reports) = mpsc::unbounded_channel();
    let host = Host::start(system.clone(), done);
    host.apply(wanted());
    assert_eq!(reports.recv().await.unwrap().problems.len(), 4);
    // Attempts with the same result are not reported.
    tokio::time::sleep(RETRY * 3).await;
    assert!(system.0.lock().unwrap().attempts >= 3);
    assert!(reports.try_recv().is_err());
    system.0.lock().unwrap().broken.clear();
    assert_eq!(reports.recv().await.unwrap().problems, ["a warning"]);
    // Warnings alone are no reason to go on.
    let attempts = system.0.lock().unwrap().attempts;
    tokio::time::sleep(RETRY * 3).await;
    assert_eq!(system.0.lock().unwrap().attempts, attempts);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn altered_settings_are_made_again_at_once_and_then_once_a_second() {
    let system = Fake::default();
    let (done, mut reports) = mpsc::unbounded_channel();
    let host = Host::start(system.clone(), done);
    host.apply(wanted());
    reports.recv().await.unwrap();
    let attempts = || system.0.lock().unwrap().attempts;
    let alterations = system.0.lock().unwrap().alterations.clone();
    assert_eq!(attempts(), 1);
    let began = Instant::now();
    // Another program deletes them every 10 ms.
    for _ in 0..500 {
        alterations.notify_one();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let passed = began.elapsed().as_secs() + 1;
        let repairs = u64::try_from(attempts()).unwrap() - 1;
        assert!(
            (1..=passed + 1).contains(&repairs),
            "{repairs} in {passed} s"
        );
    }
    // The last deletion is repaired too.
    tokio::time::sleep(REPAIR_PAUSE).await;
    let last = attempts();
    tokio::time::sleep(RETRY * 2).await;
    assert_eq!(attempts(), last);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn addresses_are_rewritten_for_offered_routes_and_services_behind_a_container() {
    for (offered, stands_for_a_service, expected) in [
        (false, false, false),
        (true, false, true),
        (false, true, true),
    ] {
        let system = Fake::default();
        system.0.lock().unwrap().stands_for_a_service = stands_for_a_service;
        let (done, mut reports) = mpsc::unbounded_channel();
        let host = Host::start(system.clone(), done);
        let mut state = wanted();
        state.forwarding = state
            .forwarding
            .map(|wanted| Forwarding { offered, ..wanted });
        host.apply(state);
        reports.recv().await.unwrap();
        assert_eq!(
            system.0.lock().unwrap().snat,
            expected,
            "{offered} {stands_for_a_service}"
        );
        host.stop().await;
    }
}
