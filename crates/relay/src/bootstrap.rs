//! Bootstrap DNS: the addresses of a few names, served over HTTPS.
//!
//! A client whose DNS is broken (often by its own tunnel settings) still knows
//! relays by address, and asks them for the address of its control server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The interval between lookups of the names.
const REFRESH: Duration = Duration::from_secs(600);
/// The longest time one lookup may take.
const LOOKUP: Duration = Duration::from_secs(60);

/// The published names. Clones share the answers.
#[derive(Debug, Clone, Default)]
pub struct BootstrapDns {
    names: Arc<[String]>,
    json: Arc<Mutex<Answers>>,
}

#[derive(Debug, Default)]
struct Answers {
    addresses: BTreeMap<String, Vec<IpAddr>>,
    json: Option<String>,
}

impl BootstrapDns {
    /// Publishes these names, once [`run`](Self::run) has looked them up.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self {
            names: names.into_iter().collect(),
            json: Arc::default(),
        }
    }

    /// Whether there is nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Keeps the answers fresh; never returns.
    pub async fn run(&self) {
        loop {
            for name in self.names.iter() {
                let lookup = tokio::net::lookup_host((name.as_str(), 443));
                match tokio::time::timeout(LOOKUP, lookup).await {
                    Ok(Ok(found)) => self.set(name, found.map(|address| address.ip()).collect()),
                    Ok(Err(error)) => tracing::warn!(name, %error, "bootstrap DNS lookup failed"),
                    Err(_) => tracing::warn!(name, "bootstrap DNS lookup took too long"),
                }
            }
            tokio::time::sleep(REFRESH).await;
        }
    }

    fn set(&self, name: &str, addresses: Vec<IpAddr>) {
        let mut answers = self.json.lock().unwrap_or_else(PoisonError::into_inner);
        answers.addresses.insert(name.to_owned(), addresses);
        answers.json = None;
    }

    /// The published map as JSON, or only the entry for `name` if that is
    /// published.
    pub(crate) fn answer(&self, name: Option<&str>) -> String {
        let mut answers = self.json.lock().unwrap_or_else(PoisonError::into_inner);
        // Names and addresses always have a JSON form.
        let render = |map: &BTreeMap<&str, &Vec<IpAddr>>| {
            serde_json::to_string_pretty(map).unwrap_or_default()
        };
        if let Some((name, found)) = name.and_then(|name| answers.addresses.get_key_value(name)) {
            return render(&BTreeMap::from([(name.as_str(), found)]));
        }
        if answers.json.is_none() {
            let all = answers
                .addresses
                .iter()
                .map(|(name, found)| (name.as_str(), found));
            answers.json = Some(render(&all.collect()));
        }
        answers.json.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_or_all_names_are_served() {
        let dns = BootstrapDns::new(["a.example".to_owned()]);
        assert_eq!(dns.answer(None), "{}");
        dns.set("a.example", vec![IpAddr::from([192, 0, 2, 1])]);
        dns.set("b.example", vec![IpAddr::from([192, 0, 2, 2])]);
        let compact = |text: String| text.replace([' ', '\n'], "");
        assert_eq!(
            compact(dns.answer(Some("b.example"))),
            r#"{"b.example":["192.0.2.2"]}"#
        );
        let all = r#"{"a.example":["192.0.2.1"],"b.example":["192.0.2.2"]}"#;
        assert_eq!(compact(dns.answer(None)), all);
        assert_eq!(compact(dns.answer(Some("other"))), all);
    }
}
