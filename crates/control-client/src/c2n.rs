//! Requests of the server to the node, matched with their answers.

use std::collections::BTreeMap;

use warren_control_types::PingRequest;

/// Requests that may wait for an answer of the node. A server that sends more
/// without waiting loses the oldest ones.
const MAX_WAITING: usize = 16;

/// The requests of one session.
#[derive(Debug, Default)]
pub(crate) struct C2nRequests {
    /// The answer URL of the last request. Servers repeat requests; the URL is
    /// different for each of them.
    last_url: String,
    last_id: u64,
    waiting: BTreeMap<u64, PingRequest>,
}

/// The reaction to a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Reaction {
    /// The request is repeated, has no answer URL, or is of an unknown type.
    Ignore,
    /// Answer at once: only a sign of life is wanted.
    AnswerHead(PingRequest),
    /// Let the node handle this HTTP request; the answer carries the number.
    Handle(u64, Vec<u8>),
}

impl C2nRequests {
    pub(crate) fn receive(&mut self, mut request: PingRequest) -> Reaction {
        if request.url.is_empty() || request.url == self.last_url {
            return Reaction::Ignore;
        }
        self.last_url.clone_from(&request.url);
        match request.types.as_str() {
            "" => Reaction::AnswerHead(request),
            "c2n" => {
                if self.waiting.len() >= MAX_WAITING {
                    self.waiting.pop_first();
                }
                self.last_id += 1;
                let payload = std::mem::take(&mut request.payload);
                self.waiting.insert(self.last_id, request);
                Reaction::Handle(self.last_id, payload)
            }
            _ => Reaction::Ignore,
        }
    }

    /// The request with this number, which is now answered.
    pub(crate) fn take(&mut self, id: u64) -> Option<PingRequest> {
        self.waiting.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, types: &str) -> PingRequest {
        PingRequest {
            url: url.to_owned(),
            types: types.to_owned(),
            payload: b"GET /echo HTTP/1.1\r\n\r\n".to_vec(),
            ..PingRequest::default()
        }
    }

    #[test]
    fn each_request_is_passed_on_once() {
        let mut requests = C2nRequests::default();
        let first = requests.receive(request("http://c/1", "c2n"));
        assert!(matches!(first, Reaction::Handle(1, _)));
        assert_eq!(
            requests.receive(request("http://c/1", "c2n")),
            Reaction::Ignore
        );
        assert_eq!(requests.receive(request("", "c2n")), Reaction::Ignore);
        assert_eq!(
            requests.receive(request("http://c/2", "disco")),
            Reaction::Ignore
        );
        let head = requests.receive(request("http://c/3", ""));
        assert!(matches!(head, Reaction::AnswerHead(_)));
        assert_eq!(requests.take(1).unwrap().url, "http://c/1");
        assert_eq!(requests.take(1), None);
    }

    #[test]
    fn unanswered_requests_do_not_pile_up() {
        let mut requests = C2nRequests::default();
        for number in 0..100 {
            requests.receive(request(&format!("http://c/{number}"), "c2n"));
        }
        assert_eq!(requests.waiting.len(), MAX_WAITING);
        assert!(requests.take(100).is_some());
        assert!(requests.take(1).is_none());
    }
}
