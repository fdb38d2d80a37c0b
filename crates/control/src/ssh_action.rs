//! `/machine/ssh/action/SOURCE/to/DESTINATION`: a node asks what to do with an
//! SSH session that the policy wants checked. The address is the one that its
//! rules carry, with the numbers of both nodes filled in.

use axum::response::Response;
use http::StatusCode;
use warren_control_core::{PendingId, SshQuestion, SshRefusal};
use warren_control_types::NodeId;
use warren_keys::MachinePublic;

use crate::coordinator::CoordinatorHandle;
use crate::http::{json, text};

/// The prefix of these addresses.
pub const PREFIX: &str = "/machine/ssh/action/";

/// Reads an address; `None` if it is not one of these.
pub fn parse(path: &str, query: &str) -> Option<SshQuestion> {
    let (source, destination) = path.strip_prefix(PREFIX)?.split_once("/to/")?;
    let node = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok().map(NodeId)).flatten()
    };
    let value = |wanted: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned())
    };
    Some(SshQuestion {
        source: node(source)?,
        destination: node(destination)?,
        local_user: value("local_user").filter(|user| !user.is_empty())?,
        check: value("auth_id").map(PendingId),
    })
}

/// Answers such a request, when there is an answer.
pub async fn answer(
    coordinator: &CoordinatorHandle,
    machine: MachinePublic,
    path: &str,
    query: &str,
) -> Response {
    let Some(question) = parse(path, query) else {
        return text(
            StatusCode::BAD_REQUEST,
            "expected /machine/ssh/action/SOURCE/to/DESTINATION?local_user=NAME with the numbers of two nodes",
        );
    };
    match coordinator.ssh_action(machine, &question).await {
        Ok(action) => json(StatusCode::OK, &action),
        Err(refusal @ SshRefusal::Unsaved) => {
            text(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string())
        }
        Err(refusal) => text(StatusCode::UNAUTHORIZED, refusal.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn emit(question: &SshQuestion) -> (String, String) {
        let path = format!("{PREFIX}{}/to/{}", question.source, question.destination);
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("local_user", &question.local_user);
        if let Some(PendingId(id)) = &question.check {
            query.append_pair("auth_id", id);
        }
        (path, query.finish())
    }

    #[test]
    fn other_addresses_are_not_read() {
        for (path, query) in [
            ("/machine/ssh/action/", "local_user=a"),
            ("/machine/ssh/action/1/to/", "local_user=a"),
            ("/machine/ssh/action/1/2", "local_user=a"),
            ("/machine/ssh/action/1/to/2/", "local_user=a"),
            ("/machine/ssh/action/+1/to/2", "local_user=a"),
            ("/machine/ssh/action/-1/to/2", "local_user=a"),
            (
                "/machine/ssh/action/1/to/99999999999999999999",
                "local_user=a",
            ),
            ("/machine/ssh/action/1/to/2", ""),
            ("/machine/ssh/action/1/to/2", "local_user="),
            ("/machine/ssh/action/1/to/2", "auth_id=00"),
        ] {
            assert_eq!(parse(path, query), None, "{path}?{query}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_not(path in ".*", query in ".*") {
            let _ = parse(&path, &query);
            let _ = parse(&format!("{PREFIX}{path}"), &query);
        }

        #[test]
        fn addresses_are_read_as_they_are_written(
            source in 0..i64::MAX,
            destination in 0..i64::MAX,
            local_user in ".+",
            check in proptest::option::of("[0-9a-f]{24}"),
        ) {
            let question = SshQuestion {
                source: NodeId(source),
                destination: NodeId(destination),
                local_user,
                check: check.map(PendingId),
            };
            let (path, query) = emit(&question);
            prop_assert_eq!(parse(&path, &query), Some(question));
        }
    }
}
