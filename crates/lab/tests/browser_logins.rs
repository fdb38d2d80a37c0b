//! People log in with Chromium at `oidc-provider`, for the official client and for ours.
//!
//! Needs Chromium, Node.js, and `npm install` in `crates/lab/browser`. The pictures of
//! the pages are in `target/tmp/logins`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use warren_lab::scenario::{installed, lab, more, skip};
use warren_lab::{Control, Kind, Lab, LabError, Node, PATIENCE, Place, Program, until, which};

/// Where the provider listens, on the host of the server.
const PORT: u16 = 9400;

const POLICY: &str = r#"{
    "groups": {"group:eng": ["oidc:lab/engineering"]},
    "acls": [{"action": "accept", "src": ["group:eng"], "dst": ["group:eng:*"]}],
}"#;

/// The programs around a browser.
struct Browser {
    chromium: PathBuf,
    node: PathBuf,
    scripts: PathBuf,
    pictures: PathBuf,
}

impl Browser {
    fn installed() -> Option<Self> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
        if !scripts.join("node_modules").is_dir() {
            return skip(
                "the packages of crates/lab/browser are not installed (npm install there)",
            );
        }
        let Some(node) = which("node") else {
            return skip("node is not in PATH");
        };
        let Some(chromium) = which("chromium") else {
            return skip("chromium is not in PATH");
        };
        let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("logins");
        std::fs::create_dir_all(&pictures).unwrap();
        Some(Self {
            chromium,
            node,
            scripts,
            pictures,
        })
    }

    fn script(&self, name: &str) -> String {
        self.scripts.join(name).display().to_string()
    }

    /// Logs `person` in, on the host of the server, and returns the text of the last page.
    fn log_in(&self, control: &Control, address: &str, person: &str, prefix: &str) -> String {
        let script = self.script("login.mjs");
        let (chromium, pictures) = (
            self.chromium.display().to_string(),
            self.pictures.display().to_string(),
        );
        let arguments = [&script, &chromium, address, person, &pictures, prefix];
        let node = self.node.display().to_string();
        control
            .host()
            .run(&node, &arguments.map(|text| text as &str))
            .unwrap()
    }
}

/// A server with a provider, which runs on the same host.
fn server(lab: &mut Lab, browser: &Browser) -> (Control, Program) {
    let host = lab.host("control", Place::Open).unwrap();
    let config = host.folder().join("config.toml");
    let text = format!(
        "[[oidc]]\nname = \"lab\"\ntitle = \"the lab\"\nissuer = \"http://127.0.0.1:{PORT}\"\nclient_id = \"warren\"\nclient_secret = \"a+b/c=\"\nscopes = [\"openid\", \"profile\", \"email\", \"groups\"]\ngroups_claim = \"groups\"\nallowed_domains = [\"example.com\"]\n"
    );
    std::fs::write(&config, text).unwrap();
    let policy = host.folder().join("policy.hujson");
    std::fs::write(&policy, POLICY).unwrap();
    let config = format!("--config={}", config.display());
    let policy = format!("--policy={}", policy.display());
    // The server starts first, without its provider.
    let control = Control::start_with(&host, None, &[&config, &policy]).unwrap();
    let callback = format!("{}/oidc/callback", control.url());
    let arguments = [browser.script("provider.mjs"), PORT.to_string(), callback];
    let provider = Program::start(&host, "provider", &browser.node, &arguments, &[]).unwrap();
    until("the provider to be read", PATIENCE, || {
        let health = control.json(&["health"])?;
        match &health["providers"][0] {
            provider if provider["ready"] == true => Ok(()),
            provider => Err(LabError::new(provider.to_string())),
        }
    })
    .unwrap();
    (control, provider)
}

/// `up` on the node, with a login in the browser.
fn join(browser: &Browser, control: &Control, node: &Node, person: &str, prefix: &str) {
    let server = format!("--login-server={}", control.url());
    let hostname = format!("--hostname={}", node.host().name());
    let mut arguments = vec!["up", &server, &hostname, "--timeout=120s"];
    arguments.extend(more(node.kind()));
    std::thread::scope(|scope| {
        let up = scope.spawn(|| node.cli(&arguments));
        let address = until("an address to log in at", PATIENCE, || {
            match node.status_json()?["AuthURL"].as_str() {
                Some(address) if !address.is_empty() => Ok(address.to_owned()),
                _ => Err(LabError::new("no address yet")),
            }
        })
        .unwrap();
        let done = browser.log_in(control, &address, person, prefix);
        assert!(done.contains("is connected"), "{done}");
        up.join().unwrap().unwrap();
    });
    assert_eq!(node.status_json().unwrap()["BackendState"], "Running");
}

#[test]
fn a_browser_logs_the_official_client_and_ours_in() {
    let Some(browser) = Browser::installed() else {
        return;
    };
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() || installed(Kind::Tailscale).is_none() {
        return;
    }
    let (control, _provider) = server(&mut lab, &browser);
    let official = Node::start(&lab.host("laptop", Place::Open).unwrap(), Kind::Tailscale).unwrap();
    join(&browser, &control, &official, "alice", "tailscale");
    let ours = Node::start(&lab.host("phone", Place::Open).unwrap(), Kind::Warren).unwrap();
    join(&browser, &control, &ours, "bob", "warren");
    let users = control.json(&["users", "list"]).unwrap();
    let named = |name: &str| -> Value {
        let mut all = users.as_array().unwrap().iter();
        all.find(|user| user["name"] == name).unwrap().clone()
    };
    for name in ["alice", "bob"] {
        let user = named(&format!("{name}@example.com"));
        assert_eq!(user["account"]["subject"], name);
        assert_eq!(user["account"]["groups"][0], "engineering");
    }
    let who = official.status_json().unwrap()["User"].to_string();
    assert!(who.contains("alice of the lab"), "{who}");
    // The groups of the provider let the two reach each other.
    until("the nodes to see each other", PATIENCE, || {
        let seen = (official.peers()?, ours.peers()?);
        match (seen.0.len(), seen.1.len()) {
            (1, 1) => Ok(()),
            _ => Err(LabError::new(format!("{seen:?}"))),
        }
    })
    .unwrap();
    ours.cli(&["ping", "--c=1", "laptop"]).unwrap();
    for client in ["tailscale", "warren"] {
        for step in ["1-machine", "2-confirm", "3-done"] {
            for look in ["light-desk", "dark-phone"] {
                let picture = browser.pictures.join(format!("{client}-{step}-{look}.png"));
                assert!(
                    picture.metadata().unwrap().len() > 1000,
                    "{}",
                    picture.display()
                );
            }
        }
    }
}
