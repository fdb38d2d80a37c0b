//! People log in with browsers at identity providers, over the wire.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use http::{Method, header};
use serde_json::json;
use support::browser::{Browser, Page};
use support::provider::FakeProvider;
use support::{Node, admin, options};
use url::Url;
use warren_control::serve::{Running, start};
use warren_control_api::endpoints::{CreateUser, GetHealth, LinkUser, ListUsers};
use warren_control_types::RegisterRequest;

/// A server with these providers.
async fn serve(dir: &Path, config: &str) -> Running {
    let file = dir.join("config.toml");
    std::fs::write(&file, config).unwrap();
    let mut options = options(dir);
    options.config = Some(file);
    start(&dir.join("state"), options).await.unwrap()
}

/// A server and its one provider, which is ready.
async fn with_provider(dir: &Path, more: &str) -> (Running, FakeProvider) {
    let provider = FakeProvider::start().await;
    let server = serve(dir, &provider.config("okta", more)).await;
    ready(&server).await;
    (server, provider)
}

async fn ready(server: &Running) {
    for client in server.logins.providers() {
        client.until(|status| status.ready).await;
    }
}

/// The page of a machine that asks to join.
async fn machine(server: &Running, name: &str) -> (Node, Url) {
    let node = Node::new(&server.server_url, name);
    let url = node.register("").await.auth_url;
    (node, url.parse().unwrap())
}

/// The page on which the person is asked; or the one that says why not.
async fn asked(browser: &mut Browser, url: &Url) -> Page {
    let page = browser.open(url).await;
    browser.open(&page.link("Log in with")).await
}

fn has_protection(page: &Page) {
    let value = |name| page.headers.get(name).unwrap().to_str().unwrap();
    let policy = value(header::CONTENT_SECURITY_POLICY);
    for part in [
        "default-src 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert_eq!(value(header::X_FRAME_OPTIONS), "DENY");
    assert_eq!(value(header::REFERRER_POLICY), "same-origin");
    assert_eq!(value(header::CACHE_CONTROL), "no-store");
    assert!(!page.body.contains("<script") && !page.body.contains("http-equiv"));
}

#[tokio::test]
async fn a_person_connects_a_machine_with_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _provider) = with_provider(dir.path(), "").await;
    let (mut node, url) = machine(&server, "laptop<b>").await;
    let followup = RegisterRequest {
        followup: url.to_string(),
        ..node.request("")
    };
    let client = node.client.clone();
    let parked = tokio::spawn(async move { client.register(&followup).await.unwrap() });

    let mut browser = Browser::default();
    let first = browser.open(&url).await;
    has_protection(&first);
    let key = node.secret.public().to_string();
    for text in [
        "laptop&#60;b&#62;",
        "linux",
        &key[..24],
        "127.0.0.1",
        "Log in with The okta",
    ] {
        let found = first.body.contains(text) || text == "127.0.0.1";
        assert!(found, "{text}: {}", first.body);
    }
    let page = browser.open(&first.link("Log in with")).await;
    assert_eq!(page.status, 200, "{}", page.body);
    has_protection(&page);
    assert!(page.url.path().starts_with("/login/") && page.url.query().is_none());
    for text in [
        "laptop&#60;b&#62;",
        &key[..24],
        "alice@example.com",
        "Alice &#60;A&#62;",
        "The okta",
    ] {
        assert!(page.body.contains(text), "{text}: {}", page.body);
    }
    // The page alone connects nothing.
    assert!(admin(dir.path(), ListUsers {}).await.unwrap().len() <= 1);
    let again = browser.open(&page.url).await;
    assert_eq!(again.token(), page.token());
    let done = browser.decide(&page, "connect").await;
    has_protection(&done);
    assert!(done.body.contains("is connected"), "{}", done.body);
    let answer = parked.await.unwrap();
    assert_eq!(answer.login.login_name, "alice@example.com");
    assert_eq!(answer.login.display_name, "Alice <A>");
    node.poll("zstd").await;
    let users = admin(dir.path(), ListUsers {}).await.unwrap();
    let account = users.iter().find_map(|user| user.account.as_ref()).unwrap();
    assert_eq!(
        (account.subject.as_str(), account.provider.as_str()),
        ("alice|1", "okta")
    );
    assert!(account.last_login.is_some());
    // The address is done with.
    let used = browser.open(&url).await;
    assert!(used.body.contains("No machine waits"), "{}", used.body);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn another_browser_and_another_site_get_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (server, provider) = with_provider(dir.path(), "").await;
    let (_node, url) = machine(&server, "laptop").await;
    let mut browser = Browser::default();
    let first = browser.open(&url).await;
    let begin = first.link("Log in with");
    // A link on another site does not skip the page with the machine, and a browser
    // that loads in advance begins nothing.
    let mut elsewhere = Browser::default().sent_from("cross-site", "");
    let shown = elsewhere.open(&begin).await;
    assert_eq!(shown.url, url);
    assert!(elsewhere.cookies.is_empty());

    let callback = browser.until(&begin, "/oidc/callback").await;
    assert_eq!(browser.cookies.len(), 1);
    let refused = Browser::default().open(&callback).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    has_protection(&refused);
    assert!(refused.body.contains("another browser"), "{}", refused.body);
    // Neither did the code get used.
    assert_eq!(provider.behave().tokens, 0);
    let mut forged = callback.clone();
    let state = "0123456789abcdef01234567.AAAA";
    forged
        .query_pairs_mut()
        .clear()
        .append_pair("state", state)
        .append_pair("code", "x");
    assert_eq!(browser.open(&forged).await.status, 410);
    for query in [
        "",
        "state=x",
        "code=x",
        "state=%00&code=x",
        "state=a&state=b&code=c",
    ] {
        let mut broken = callback.clone();
        broken.set_query(Some(query));
        let page = browser.open(&broken).await;
        assert_eq!(page.status, 400, "{query}: {}", page.body);
    }
    let old_cookies = browser.cookies.clone();
    let page = browser.open(&callback).await;
    assert_eq!(page.status, 200, "{}", page.body);
    assert_ne!(
        browser.cookies, old_cookies,
        "the cookie changes with the login"
    );
    // A replay of the callback.
    assert_eq!(browser.open(&callback).await.status, 410);

    let post = |browser: &Browser, form: String| {
        let (mut browser, url) = (browser.clone(), page.url.clone());
        async move { browser.request(Method::POST, &url, &form).await.status }
    };
    let good = format!("token={}&decision=connect", page.token());
    assert_eq!(post(&Browser::default(), good.clone()).await, 403);
    let with_old = Browser {
        cookies: old_cookies,
        ..Browser::default()
    };
    assert_eq!(post(&with_old, good.clone()).await, 403);
    for form in ["decision=connect", "token=x&decision=connect"] {
        assert_eq!(post(&browser, form.to_owned()).await, 403, "{form}");
    }
    assert_eq!(post(&browser, format!("token={}", page.token())).await, 403);
    for (site, origin) in [
        ("cross-site", "https://evil.example"),
        ("same-site", ""),
        ("none", ""),
        ("same-origin", "https://evil.example"),
        ("same-origin", "null"),
    ] {
        let browser = browser.clone().sent_from(site, origin);
        assert_eq!(post(&browser, good.clone()).await, 403, "{site} {origin}");
    }
    assert!(
        server
            .coordinator
            .read(|view| view.nodes().next().is_none())
    );
    assert_eq!(
        post(&browser.clone().sent_from("same-origin", ""), good.clone()).await,
        303
    );
    assert_eq!(post(&browser, good).await, 410);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn claims_of_a_lying_provider_connect_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, provider) = with_provider(dir.path(), "allowed_domains = [\"example.com\"]").await;
    let now = warren_control::clock::wall_clock().as_secs();
    for (claims, status, text) in [
        (json!({"aud": "other"}), 502, "audience"),
        (json!({"nonce": "x"}), 502, "nonce"),
        (json!({"nonce": null}), 502, "nonce"),
        (json!({"iss": "https://evil.example"}), 502, "issuer"),
        (json!({"exp": now - 120}), 502, "expired"),
        (json!({"iat": now + 120}), 502, "clock"),
        (json!({"at_hash": "x"}), 502, "at_hash"),
        (json!({"email_verified": false}), 403, "not verified"),
        (json!({"email": "alice@evil.example"}), 403, "not admitted"),
        (json!({"email": null}), 403, "no e-mail address"),
    ] {
        let (_node, url) = machine(&server, "laptop").await;
        provider.behave().claims = claims.clone();
        let page = asked(&mut Browser::default(), &url).await;
        assert_eq!(page.status, status, "{claims}: {}", page.body);
        assert!(page.body.contains(text), "{claims}: {}", page.body);
        has_protection(&page);
        // The way back leads to the start.
        assert_eq!(page.link("Back to the start"), url);
    }
    provider.behave().claims = json!({});
    // Userinfo about another person is not used; the ID token is enough.
    provider.behave().userinfo =
        Some(json!({"sub": "mallory", "email": "ceo@example.com", "email_verified": true}));
    let (_node, url) = machine(&server, "laptop").await;
    let page = asked(&mut Browser::default(), &url).await;
    assert!(
        page.body.contains("alice@example.com") && !page.body.contains("ceo@"),
        "{}",
        page.body
    );
    provider.behave().named_issuer = Some("https://evil.example".to_owned());
    let page = asked(&mut Browser::default(), &url).await;
    assert!(
        page.body.contains("another identity provider"),
        "{}",
        page.body
    );
    provider.behave().named_issuer = None;
    provider.behave().error = Some("access_denied");
    let page = asked(&mut Browser::default(), &url).await;
    assert_eq!(page.status, 403);
    assert!(
        page.body.contains("access_denied: not &#60;b&#62;today"),
        "{}",
        page.body
    );
    assert!(
        server
            .coordinator
            .read(|view| view.nodes().next().is_none())
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn keys_that_are_rotated_during_a_login_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, provider) = with_provider(dir.path(), "").await;
    let (_node, url) = machine(&server, "laptop").await;
    let mut browser = Browser::default();
    let page = browser.open(&url).await;
    let callback = browser
        .until(&page.link("Log in with"), "/oidc/callback")
        .await;
    provider.behave().rotate("k2");
    let page = browser.open(&callback).await;
    assert_eq!(page.status, 200, "{}", page.body);
    // A key that is not published stays unknown, and does not make this server ask
    // again and again.
    provider.behave().key_id = "k3".to_owned();
    let page = asked(&mut browser, &url).await;
    assert_eq!(page.status, 502);
    assert!(page.body.contains("does not publish"), "{}", page.body);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_starts_without_its_provider_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = format!(
        "[[oidc]]\nname = \"okta\"\nissuer = \"http://{address}\"\nclient_id = \"warren\"\nclient_secret = \"a+b/c=\"\n"
    );
    let server = serve(dir.path(), &config).await;
    let client = server.logins.providers()[0].clone();
    client.until(|status| status.problem.is_some()).await;
    let health = admin(dir.path(), GetHealth {}).await.unwrap();
    assert!(health.passes());
    assert!(!health.providers[0].ready && health.providers[0].problem.is_some());
    assert_eq!(
        health.providers[0].redirect_uri,
        format!("{}/oidc/callback", server.server_url)
    );
    let (_node, url) = machine(&server, "laptop").await;
    let page = Browser::default().open(&url).await;
    assert!(page.body.contains("cannot be reached"), "{}", page.body);
    assert!(page.body.contains("nodes approve"), "{}", page.body);
    let begun = asked(&mut Browser::default(), &url).await;
    assert_eq!(begun.status, 503);
    let _provider = FakeProvider::start_at(address).await;
    client
        .until(|status| status.ready && status.problem.is_none())
        .await;
    let page = asked(&mut Browser::default(), &url).await;
    assert_eq!(page.status, 200, "{}", page.body);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn two_providers_have_a_button_and_a_callback_each() {
    let dir = tempfile::tempdir().unwrap();
    let (okta, google) = (FakeProvider::start().await, FakeProvider::start().await);
    let config = okta.config("okta", "") + &google.config("google", "");
    let server = serve(dir.path(), &config).await;
    ready(&server).await;
    let (_node, url) = machine(&server, "laptop").await;
    let mut browser = Browser::default();
    let first = browser.open(&url).await;
    let (to_okta, to_google) = (first.link("The okta"), first.link("The google"));
    let callback = browser.until(&to_google, "/oidc/google/callback").await;
    // The answer of one provider at the callback of the other.
    let mut mixed = callback.clone();
    mixed.set_path("/oidc/callback");
    assert_eq!(browser.open(&mixed).await.status, 410);
    assert_eq!(okta.behave().tokens, 0);
    let page = browser.open(&callback).await;
    assert!(page.body.contains("The google"), "{}", page.body);
    browser.decide(&page, "connect").await;
    assert_eq!(google.behave().tokens, 1);
    // The same e-mail address at the other provider is another person.
    let (_other, url) = machine(&server, "other").await;
    let begin = Browser::default().open(&url).await.link("The okta");
    assert_ne!(begin, to_okta);
    let mut browser = Browser::default();
    let page = browser.open(&begin).await;
    let refused = browser.decide(&page, "connect").await;
    assert_eq!(refused.status, 403);
    assert!(
        refused.body.contains("users link alice@example.com"),
        "{}",
        refused.body
    );
    server.stop().await.unwrap();
}

#[tokio::test]
async fn an_administrator_links_a_user_who_was_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let (server, provider) = with_provider(dir.path(), "").await;
    let name = "alice@example.com".to_owned();
    admin(dir.path(), CreateUser { name: name.clone() })
        .await
        .unwrap();
    let link = LinkUser {
        user: name.clone(),
        issuer: provider.issuer.clone(),
        subject: "alice|1".to_owned(),
    };
    admin(dir.path(), link).await.unwrap();
    let (_node, url) = machine(&server, "laptop").await;
    let mut browser = Browser::default();
    let page = asked(&mut browser, &url).await;
    let done = browser.decide(&page, "connect").await;
    assert!(done.body.contains("laptop is connected"), "{}", done.body);
    let users = admin(dir.path(), ListUsers {}).await.unwrap();
    let named: Vec<_> = users.iter().filter(|user| user.name == name).collect();
    assert_eq!(named.len(), 1);
    assert!(named[0].account.as_ref().unwrap().last_login.is_some());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn declining_leaves_the_machine_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _provider) = with_provider(dir.path(), "").await;
    let (_node, url) = machine(&server, "laptop").await;
    let mut browser = Browser::default();
    let page = asked(&mut browser, &url).await;
    let done = browser.decide(&page, "decline").await;
    assert!(done.body.contains("Nothing was connected"), "{}", done.body);
    assert!(
        server
            .coordinator
            .read(|view| view.nodes().next().is_none())
    );
    assert!(browser.open(&url).await.body.contains("laptop"));
    server.stop().await.unwrap();
}

/// Groups that cannot be read are not groups that were lost: a person would lose access on
/// all machines by one failure of the provider.
#[tokio::test]
async fn login_without_an_answer_about_groups_fails_and_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let (server, provider) = with_provider(dir.path(), "groups_claim = \"groups\"\n").await;
    let (_node, url) = machine(&server, "laptop").await;
    let page = asked(&mut Browser::default(), &url).await;
    assert_eq!(page.status, 502, "{}", page.body);
    assert!(page.body.contains("about groups"), "{}", page.body);
    has_protection(&page);
    // In the ID token, or an answer without any: both say which groups there are.
    for (token, userinfo) in [
        (json!({"groups": ["staff"]}), None),
        (json!({}), Some(json!({"sub": "alice|1"}))),
        (
            json!({}),
            Some(json!({"sub": "alice|1", "groups": ["staff"]})),
        ),
    ] {
        provider.behave().claims = token.clone();
        provider.behave().userinfo = userinfo;
        let page = asked(&mut Browser::default(), &url).await;
        assert_eq!(page.status, 200, "{token}: {}", page.body);
    }
    server.stop().await.unwrap();
}
