//! Connections through proxies, which answer as they should or not.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use url::Url;
use warren_dial::Dialer;
use warren_dial::control::ControlClient;
use warren_dial::fetch::{Fetch, fetch};
use warren_dial::proxies::{OutgoingProxies, Scheme};
use warren_keys::MachineSecret;

/// A dialer of an environment with these variables.
fn dialer(variables: &[(&str, String)]) -> Dialer {
    Dialer::new().with_proxies(OutgoingProxies::from_variables(|wanted| {
        let found = variables.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value.clone())
    }))
}

/// A listener, and its address in text form.
async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Takes one connection, reads a head, answers, and echoes one line if there is one.
/// Returns the head.
fn serve(listener: TcpListener, answer: &'static [u8]) -> JoinHandle<String> {
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        answer_and_echo(stream, answer).await
    })
}

async fn answer_and_echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> String {
    let head = head(&mut stream).await;
    stream.write_all(answer).await.unwrap();
    stream.flush().await.unwrap();
    let mut line = [0; 5];
    if stream.read_exact(&mut line).await.is_ok() {
        stream.write_all(&line).await.unwrap();
        stream.flush().await.unwrap();
    }
    head
}

async fn echoed(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut line = [0; 5];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"hello");
}

#[tokio::test]
async fn a_tunnel_names_the_target_and_carries_bytes_both_ways() {
    let (listener, address) = listener().await;
    let proxy = serve(listener, b"HTTP/1.1 200 Connection established\r\n\r\n");
    let dialer = dialer(&[("HTTPS_PROXY", format!("http://me:p%40ss@{address}"))]);
    let mut stream = dialer
        .open(Scheme::Https, "control.invalid", 443)
        .await
        .unwrap();
    echoed(&mut stream).await;
    drop(stream);
    assert_eq!(
        proxy.await.unwrap(),
        "CONNECT control.invalid:443 HTTP/1.1\r\nHost: control.invalid:443\r\n\
         Proxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n"
    );
}

#[tokio::test]
async fn ipv6_targets_have_brackets() {
    let (listener, address) = listener().await;
    let proxy = serve(listener, b"HTTP/1.1 200 OK\r\n\r\n");
    let dialer = dialer(&[("ALL_PROXY", address)]);
    let opened = dialer.open(Scheme::Http, "[2001:db8::1]", 80).await;
    drop(opened.unwrap());
    let head = proxy.await.unwrap();
    assert!(
        head.starts_with("CONNECT [2001:db8::1]:80 HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(!head.contains("Authorization"), "{head}");
}

#[tokio::test]
async fn a_document_without_tls_is_asked_for_by_its_whole_url() {
    let (listener, address) = listener().await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nkey";
    let proxy = serve(listener, answer);
    let dialer = dialer(&[("http_proxy", format!("http://me:pw@{address}"))]);
    let url: Url = "http://control.invalid:8080/key?v=1".parse().unwrap();
    let fetched = fetch(&dialer, Fetch::get(&url)).await.unwrap();
    assert_eq!(&fetched.body[..], b"key");
    assert_eq!(fetched.proxy, Some(format!("http://{address}")));
    let head = proxy.await.unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("get http://control.invalid:8080/key?v=1 http/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nhost: control.invalid:8080\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nproxy-authorization: basic "), "{head}");
}

#[tokio::test]
async fn hosts_of_no_proxy_and_this_machine_are_reached_directly() {
    // Port 1 on loopback refuses at once.
    let dialer = dialer(&[
        ("ALL_PROXY", "http://127.0.0.1:1".to_owned()),
        ("NO_PROXY", "direct.invalid".to_owned()),
    ]);
    let (listener, address) = listener().await;
    let (_, port) = address.rsplit_once(':').unwrap();
    let server = serve(listener, b"");
    let opened = dialer.open(Scheme::Https, "127.0.0.1", port.parse().unwrap());
    opened.await.unwrap().write_all(b"\r\n\r\n").await.unwrap();
    assert_eq!(server.await.unwrap(), "\r\n\r\n");
    let direct = dialer.open(Scheme::Https, "direct.invalid", 443).await;
    let error = direct.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot resolve \"direct.invalid\""),
        "{error}"
    );
}

/// The error of a tunnel through a proxy that answers so.
async fn refusal(answer: &'static [u8], credentials: &str) -> String {
    let (listener, address) = listener().await;
    let proxy = serve(listener, answer);
    let dialer = dialer(&[("HTTPS_PROXY", format!("http://{credentials}{address}"))]);
    let opened = dialer.open(Scheme::Https, "control.invalid", 443).await;
    let error = opened.err().map(|error| error.to_string());
    drop(proxy.await.unwrap());
    let error = error.unwrap_or_else(|| panic!("a tunnel by {}", answer.escape_ascii()));
    let named = format!("the proxy http://{address} (HTTPS_PROXY)");
    assert!(error.contains(&named), "{error}");
    assert!(!error.contains("secret"), "{error}");
    error
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_its_reason_and_the_cure() {
    let basic = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
    for (answer, credentials, expected) in [
        (&basic[..], "", "wants a user and a password; put them into HTTPS_PROXY"),
        (basic, "me:secret@", "refuses the user and the password in HTTPS_PROXY"),
        (b"HTTP/1.1 407 No\r\n\r\n", "me:secret@", "refuses the user and the password"),
        (
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Negotiate x\r\n\r\n",
            "me:secret@",
            "accepts only these schemes of authentication: NTLM, Negotiate;",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            "",
            "refuses connections to control.invalid:443: HTTP 403 Forbidden; allow them",
        ),
        (
            b"HTTP/1.1 502 Bad\x1b[2JGateway\r\n\r\n",
            "",
            "does not answer as a proxy: its answer is not HTTP",
        ),
        (
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "",
            "cannot reach control.invalid:443: HTTP 503 Service Unavailable",
        ),
        (b"HTTP/1.1 302 Found\r\n\r\n", "", "it answers CONNECT with HTTP 302 Found"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "", "does not answer as a proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "", "bytes follow its answer"),
    ] {
        let error = refusal(answer, credentials).await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_endless_answer_of_a_proxy_is_cut_off() {
    let (listener, address) = listener().await;
    let sent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(head(&mut stream).await);
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        let mut sent = 0_usize;
        while stream.write_all(&[b'a'; 1024]).await.is_ok() && sent < 8 << 20 {
            sent += 1024;
        }
        sent
    });
    let dialer = dialer(&[("HTTPS_PROXY", address)]);
    let opened = dialer.open(Scheme::Https, "control.invalid", 443).await;
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("longer than 16384 bytes"), "{error}");
    assert!(sent.await.unwrap() < 8 << 20);
}

#[tokio::test]
async fn a_proxy_that_is_down_or_closes_is_named() {
    let dead = dialer(&[("ALL_PROXY", "http://me:secret@127.0.0.1:1".to_owned())]);
    for scheme in [Scheme::Http, Scheme::Https] {
        let opened = dead.open(scheme, "control.invalid", 443).await;
        let error = opened.unwrap_err().to_string();
        assert!(
            error.starts_with(
                "cannot reach the proxy http://127.0.0.1:1 (ALL_PROXY): cannot connect"
            ),
            "{error}"
        );
        assert!(error.ends_with("or change ALL_PROXY"), "{error}");
    }
    let url: Url = "http://control.invalid/key".parse().unwrap();
    let fetched = fetch(&dead, Fetch::get(&url)).await.unwrap_err();
    assert!(fetched.to_string().contains("(ALL_PROXY)"), "{fetched}");

    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(head(&mut stream).await);
    });
    let closing = dialer(&[("HTTPS_PROXY", address)]);
    let opened = closing.open(Scheme::Https, "control.invalid", 443).await;
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("closed the connection"), "{error}");
}

#[tokio::test]
async fn a_proxy_that_stays_silent_is_named() {
    let (listener, address) = listener().await;
    let dialer = dialer(&[("HTTPS_PROXY", address)]);
    let dialer = dialer.with_timeout(Duration::from_millis(200));
    let opening = dialer.open(Scheme::Https, "control.invalid", 443);
    let silence = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(head(&mut stream).await);
        // Until the other side gives up.
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    };
    let (opened, ()) = tokio::join!(opening, silence);
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("gave no answer within 0.2 s"), "{error}");
}

/// Answers of a SOCKS5 proxy, each sent after that many bytes were read.
type Script = &'static [(usize, &'static [u8])];

/// A SOCKS5 proxy with that script. Returns what it has read.
fn socks(listener: TcpListener, script: Script) -> JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        for (len, answer) in script {
            let mut bytes = vec![0; *len];
            stream.read_exact(&mut bytes).await.unwrap();
            all.extend(bytes);
            stream.write_all(answer).await.unwrap();
        }
        let mut line = [0; 5];
        if stream.read_exact(&mut line).await.is_ok() {
            stream.write_all(&line).await.unwrap();
        }
        all
    })
}

#[tokio::test]
async fn a_socks_proxy_gets_the_password_and_the_name() {
    let (listener, address) = listener().await;
    let proxy = socks(
        listener,
        &[
            (4, &[5, 2]),
            (7, &[1, 0]),
            (16, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ],
    );
    let dialer = dialer(&[("ALL_PROXY", format!("socks5h://me:pw@{address}"))]);
    let mut stream = dialer.open(Scheme::Http, "a.invalid", 80).await.unwrap();
    echoed(&mut stream).await;
    drop(stream);
    let expected = [
        &[5, 2, 0, 2, 1, 2][..],
        b"me\x02pw",
        &[5, 1, 0, 3, 9],
        b"a.invalid",
        &[0, 80],
    ];
    assert_eq!(proxy.await.unwrap(), expected.concat());
}

#[tokio::test]
async fn refusals_of_socks_proxies_are_named() {
    const GREETED: (usize, &[u8]) = (3, &[5, 0]);
    let scripts: [(Script, &str, &str); 6] = [
        (&[(3, &[5, 0xff])], "", "wants a user and a password"),
        (
            &[(4, &[5, 2]), (10, &[1, 1])],
            "me:secret@",
            "refuses the user and the password",
        ),
        (
            &[GREETED, (22, &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0])],
            "",
            "refuses connections to control.invalid:443: not allowed",
        ),
        (
            &[GREETED, (22, &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0])],
            "",
            "cannot reach control.invalid:443: the connection is refused",
        ),
        (&[(3, b"HTTP/1.1 400 Bad\r\n")], "", "not SOCKS version 5"),
        (&[(3, &[5, 2])], "", "was not offered"),
    ];
    for (script, credentials, expected) in scripts {
        let (listener, address) = listener().await;
        let proxy = socks(listener, script);
        let dialer = dialer(&[("ALL_PROXY", format!("socks5://{credentials}{address}"))]);
        let opened = dialer.open(Scheme::Https, "control.invalid", 443).await;
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let named = format!("the proxy socks5://{address} (ALL_PROXY)");
        assert!(
            error.contains(&named) && !error.contains("secret"),
            "{error}"
        );
        drop(proxy.await.unwrap());
    }
}

/// Runs itself again with a certificate authority of its own, which is read from the
/// environment once.
#[tokio::test]
async fn an_https_proxy_is_reached_under_tls() {
    let Some(folder) = std::env::var_os("WARREN_TEST_AUTHORITY") else {
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("https-proxy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("cert.pem"), own.cert.pem()).unwrap();
        std::fs::write(folder.join("cert.der"), own.cert.der()).unwrap();
        std::fs::write(folder.join("key.der"), own.signing_key.serialize_der()).unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_https_proxy_is_reached_under_tls"])
            .env("WARREN_TEST_AUTHORITY", &folder)
            .env("SSL_CERT_FILE", folder.join("cert.pem"))
            .status();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(status.unwrap().success());
        return;
    };
    let read = |name| std::fs::read(std::path::Path::new(&folder).join(name)).unwrap();
    let key = PrivatePkcs8KeyDer::from(read("key.der"));
    let config = rustls::ServerConfig::builder_with_provider(warren_dial::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(read("cert.der"))], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listener().await;
    let port = address.rsplit_once(':').unwrap().1.to_owned();
    let proxy = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        answer_and_echo(stream, b"HTTP/1.0 200 OK\r\n\r\n").await
    });
    let dialer = dialer(&[("HTTPS_PROXY", format!("https://localhost:{port}"))]);
    let opened = dialer.open(Scheme::Https, "control.invalid", 443).await;
    let mut stream = opened.unwrap();
    echoed(&mut stream).await;
    drop(stream);
    assert!(
        proxy
            .await
            .unwrap()
            .starts_with("CONNECT control.invalid:443 ")
    );
}

#[tokio::test]
async fn a_captive_portal_is_distinguished_from_a_server_that_is_down() {
    let client = |address: &str| {
        let url = format!("http://{address}").parse().unwrap();
        ControlClient::new(url, MachineSecret::from_bytes(&[1; 32]), Dialer::new())
    };
    for answer in [
        &b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/login\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n<html>Welcome!</html>",
        b"HTTP/1.1 511 Network Authentication Required\r\nContent-Length: 0\r\n\r\n",
    ] {
        let (listener, address) = listener().await;
        drop(serve(listener, answer));
        let error = client(&address).connect().await.unwrap_err().to_string();
        assert!(error.contains("not answered by a coordination server"), "{error}");
        assert!(error.contains("captive portal"), "{error}");
    }
    let error = client("127.0.0.1:1")
        .connect()
        .await
        .unwrap_err()
        .to_string();
    assert!(!error.contains("captive portal"), "{error}");
}
