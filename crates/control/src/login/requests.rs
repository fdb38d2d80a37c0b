//! The requests of browsers. See [`super`] for the paths.

use axum::Extension;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use url::form_urlencoded;
use warren_control_core::{LoginError, LoginPurpose, PendingId};
use warren_oidc::Callback;

use super::cookies;
use super::pages::{self, Advice};
use super::{Logins, Pages};
use crate::admin::waiting_ssh_checks;
use crate::http::{Connection, WholeBody, no_content, text};

/// The longest decision, in bytes.
const MAX_DECISION: usize = 1024;

/// `GET /register/ID`.
pub(super) async fn machine(State(state): State<Pages>, Path(id): Path<String>) -> Response {
    let waiting = state
        .coordinator
        .inspect(|coordinator| coordinator.waiting(&PendingId(id.clone())));
    pages::approval(waiting.as_ref(), &id, &state.logins)
}

/// `GET /ssh-check/ID`.
pub(super) async fn session(State(state): State<Pages>, Path(id): Path<String>) -> Response {
    let waiting = state.coordinator.inspect(waiting_ssh_checks);
    let check = waiting.iter().find(|check| check.id == id);
    pages::ssh_check(check, &id, &state.logins)
}

/// `GET /register/ID/login/PROVIDER`.
pub(super) async fn begin_machine(
    State(state): State<Pages>,
    Extension(connection): Extension<Connection>,
    Path((id, provider)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let purpose = LoginPurpose::Machine(PendingId(id));
    begin(&state, &connection, purpose, &provider, &headers)
}

/// `GET /ssh-check/ID/login/PROVIDER`.
pub(super) async fn begin_session(
    State(state): State<Pages>,
    Extension(connection): Extension<Connection>,
    Path((id, provider)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let purpose = LoginPurpose::SshCheck(PendingId(id));
    begin(&state, &connection, purpose, &provider, &headers)
}

fn begin(
    state: &Pages,
    connection: &Connection,
    purpose: LoginPurpose,
    provider: &str,
    headers: &HeaderMap,
) -> Response {
    // A browser that loads pages in advance did not follow the link.
    if headers.contains_key("sec-purpose") || headers.contains_key("purpose") {
        return no_content();
    }
    let back = start_of(&state.logins, &purpose);
    if headers
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site")
    {
        // A link on another site: the person first sees what this is about.
        return redirect(&back);
    }
    let Some(client) = state.logins.named(provider) else {
        return pages::failure(
            StatusCode::NOT_FOUND,
            "this server knows no identity provider of that name",
            Advice::StartAgain,
            Some(back),
        );
    };
    let begun = state.coordinator.change(|coordinator, now, wall| {
        coordinator.begin_login(now, wall, purpose, provider, connection.source)
    });
    let begun = match begun.0 {
        Ok(begun) => begun,
        Err(error) => return login_error(&error, Some(back)),
    };
    let Some(url) = client.authorization_url(&begun.state, &begun.secrets) else {
        forget(state, &begun.id);
        return pages::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!(
                "{} cannot be reached from this server at the moment",
                client.provider().title
            ),
            Advice::ProviderDown,
            Some(back),
        );
    };
    with_cookie(
        redirect(url.as_str()),
        &begun.id,
        &begun.cookie,
        &state.logins,
    )
}

/// `GET /oidc/callback`: the first provider.
pub(super) async fn callback_of_first(
    State(state): State<Pages>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let providers = state.logins.providers();
    let name = providers
        .first()
        .map(|client| client.provider().name.clone());
    take_back(&state, name.as_deref().unwrap_or_default(), query, &headers).await
}

/// `GET /oidc/PROVIDER/callback`: the others.
pub(super) async fn callback(
    State(state): State<Pages>,
    Path(provider): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    take_back(&state, &provider, query, &headers).await
}

async fn take_back(
    state: &Pages,
    provider: &str,
    query: Option<String>,
    headers: &HeaderMap,
) -> Response {
    let logins = &state.logins;
    let Some(client) = logins.named(provider) else {
        return text(StatusCode::NOT_FOUND, "not found");
    };
    let callback = query.as_deref().and_then(Callback::parse);
    let id = callback.as_ref().and_then(|callback| {
        let (id, _) = callback.state.split_once('.')?;
        cookies::is_id(id).then(|| PendingId(id.to_owned()))
    });
    let (Some(callback), Some(id)) = (callback, id) else {
        return pages::failure(
            StatusCode::BAD_REQUEST,
            "the identity provider sent the browser back with an address that is not complete",
            Advice::StartAgain,
            None,
        );
    };
    let cookie = cookies::get(headers, &id, logins.is_secure());
    let (returned, _) = state
        .coordinator
        .change(|coordinator, _, _| coordinator.login_returned(provider, &callback.state, cookie));
    let returned = match returned {
        Ok(returned) => returned,
        Err(error) => return login_error(&error, None),
    };
    let back = start_of(logins, &returned.purpose);
    let fail = |status, why: &str, advice| {
        forget(state, &returned.id);
        pages::failure(status, why, advice, Some(back.clone()))
    };
    if !client.sent(&callback) {
        return fail(
            StatusCode::BAD_REQUEST,
            "the answer comes from another identity provider than the one that was asked",
            Advice::StartAgain,
        );
    }
    let code = match callback.result {
        Ok(code) => code,
        Err(error) => {
            let title = &client.provider().title;
            return fail(
                StatusCode::FORBIDDEN,
                &format!("{title} did not log you in ({error})"),
                Advice::AskProvider,
            );
        }
    };
    let account = match client.account(&code, &returned.secrets).await {
        Ok(account) => account,
        Err(error) => {
            tracing::info!(provider, "a login was refused");
            tracing::debug!(provider, "a login was refused: {error}");
            let (status, advice) = pages::advice(&error);
            return fail(status, &error.to_string(), advice);
        }
    };
    let end = client.key_end(&account);
    let (identified, _) = state.coordinator.change(|coordinator, now, _| {
        coordinator.login_identified(now, &returned.id, account, end)
    });
    match identified {
        Ok(cookie) => {
            let page = format!("{}/login/{}", logins.server_url, returned.id);
            with_cookie(redirect(&page), &returned.id, &cookie, logins)
        }
        Err(error) => login_error(&error, Some(back)),
    }
}

/// `GET /login/ID`.
pub(super) async fn show(
    State(state): State<Pages>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let id = PendingId(id);
    let cookie = cookies::get(&headers, &id, state.logins.is_secure());
    let page = state.coordinator.inspect(|coordinator| {
        let page = coordinator.login_page(&id, cookie)?;
        Ok::<_, LoginError>(pages::NextStep::of(&page, coordinator, &state.logins))
    });
    match page {
        Ok(step) => step.page(&id),
        Err(error) => login_error(&error, None),
    }
}

/// `POST /login/ID`: the fields `token` and `decision`.
pub(super) async fn decide(
    State(state): State<Pages>,
    Path(id): Path<String>,
    headers: HeaderMap,
    WholeBody(body): WholeBody<MAX_DECISION>,
) -> Response {
    let id = PendingId(id);
    if !cookies::is_id(&id.0) {
        return login_error(&LoginError::Unknown, None);
    }
    if !is_from_our_page(&headers, &state.logins) {
        return login_error(&LoginError::Forged, None);
    }
    let (mut token, mut decision) = (String::new(), String::new());
    for (name, value) in form_urlencoded::parse(&body) {
        match &*name {
            "token" => token = value.into_owned(),
            "decision" => decision = value.into_owned(),
            _ => {}
        }
    }
    let connect = match decision.as_str() {
        "connect" => true,
        "decline" => false,
        _ => return login_error(&LoginError::Forged, None),
    };
    let cookie = cookies::get(&headers, &id, state.logins.is_secure());
    let decided = state.coordinator.change_saved(|coordinator, now, wall| {
        coordinator.decide_login(now, wall, &id, cookie, &token, connect)
    });
    match decided.await {
        Ok(Ok(_)) => redirect(&format!("{}/login/{id}", state.logins.server_url)),
        Ok(Err(error)) => login_error(&error, None),
        Err(error) => {
            tracing::error!("a login could not be saved: {error}");
            pages::failure(
                StatusCode::SERVICE_UNAVAILABLE,
                "the server cannot save its state at the moment",
                Advice::AskAdministrator,
                None,
            )
        }
    }
}

/// Whether a browser sends the request from a page of this server. Programs that are no
/// browsers send neither header; they have no cookies of a person.
fn is_from_our_page(headers: &HeaderMap, logins: &Logins) -> bool {
    let site = headers.get("sec-fetch-site");
    let origin = headers.get(header::ORIGIN);
    site.is_none_or(|site| site == "same-origin")
        && origin.is_none_or(|origin| origin == logins.server_url.as_str())
}

/// Ends a login that cannot go on.
fn forget(state: &Pages, id: &PendingId) {
    let ((), _no_rows) = state
        .coordinator
        .change(|coordinator, _, _| coordinator.login_failed(id));
}

/// The page on which the login begins.
fn start_of(logins: &Logins, purpose: &LoginPurpose) -> String {
    let (path, id) = match purpose {
        LoginPurpose::Machine(id) => ("register", id),
        LoginPurpose::SshCheck(id) => ("ssh-check", id),
    };
    format!("{}/{path}/{id}", logins.server_url)
}

fn login_error(error: &LoginError, back: Option<String>) -> Response {
    let (status, advice) = match error {
        LoginError::NoMachine | LoginError::NoSession => (StatusCode::GONE, Advice::OnTheMachine),
        LoginError::TooMany => (StatusCode::SERVICE_UNAVAILABLE, Advice::Later),
        LoginError::Unknown => (StatusCode::GONE, Advice::OnTheMachine),
        LoginError::OtherBrowser => (StatusCode::FORBIDDEN, Advice::Cookies),
        LoginError::Forged => (StatusCode::FORBIDDEN, Advice::OnTheMachine),
        LoginError::NameTaken { .. } | LoginError::Refused(_) => {
            (StatusCode::FORBIDDEN, Advice::AskAdministrator)
        }
        LoginError::NotTheOwner => (StatusCode::FORBIDDEN, Advice::OtherAccount),
    };
    pages::failure(status, &error.to_string(), advice, back)
}

/// Sends the browser on, with a GET.
fn redirect(to: &str) -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    let Ok(location) = HeaderValue::from_str(to) else {
        return text(StatusCode::BAD_REQUEST, "not an address");
    };
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(header::LOCATION, location);
    crate::pages::protect(&mut response);
    response
}

fn with_cookie(mut response: Response, id: &PendingId, value: &str, logins: &Logins) -> Response {
    if let Some(cookie) = cookies::set(id, value, logins.is_secure()) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}
