//! The pages for users: plain, without scripts, nothing from elsewhere.

use std::fmt::Write as _;

use warren_control_api::endpoints::SshCheckInfo;
use warren_control_core::PendingView;

/// Text in HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}}\
         pre{{background:#f2f2f2;color:#111;padding:.75rem;overflow-x:auto}}\
         </style></head><body><h1>{title}</h1>{body}</body></html>\n"
    )
}

/// The page for a machine that waits for approval.
pub fn approval(waiting: Option<&PendingView>, id: &str) -> String {
    let mut body = String::new();
    match waiting {
        Some(view) => {
            let _ = write!(
                body,
                "<p>The machine <strong>{}</strong> ({}) asks to join. On the server, its \
                 administrator lets it in with</p><pre>warren-control nodes approve {} --user NAME</pre>\
                 <p>The machine waits and goes on by itself.</p>",
                escape(&view.hostname),
                escape(&view.os),
                escape(&view.id.0),
            );
        }
        None => {
            let _ = write!(
                body,
                "<p>No machine waits under <code>{}</code>. Either it has been let in already, or \
                 the request is older than 15 minutes: then start the login on the machine \
                 again.</p>",
                escape(id),
            );
        }
    }
    page("Join this network", &body)
}

/// The page for an SSH session that waits for a check.
pub fn ssh_check(waiting: Option<&SshCheckInfo>, id: &str) -> String {
    let mut body = String::new();
    match waiting {
        Some(view) => {
            let _ = write!(
                body,
                "<p>A user at <strong>{}</strong> ({}) wants to log in to <strong>{}</strong> as \
                 <strong>{}</strong>. If that is you, ask the server's administrator to confirm it \
                 with</p><pre>warren-control ssh-checks approve {}</pre>\
                 <p>The session waits and goes on by itself. If it is not you, ask to have it refused: \
                 <code>ssh-checks deny</code> with the same id.</p>",
                escape(&view.source),
                escape(&view.owner),
                escape(&view.destination),
                escape(&view.local_user),
                escape(&view.id),
            );
        }
        None => {
            let _ = write!(
                body,
                "<p>No session waits under <code>{}</code>. Either it has been decided already, or \
                 it is older than 15 minutes: then log in again.</p>",
                escape(id),
            );
        }
    }
    page("Confirm a login", &body)
}

/// The page at the server's address.
pub fn front(server_url: &str) -> String {
    let url = escape(server_url);
    page(
        "Warren control server",
        &format!(
            "<p>This is the coordination server of a private network. To join a machine:</p>\
             <pre>warren up --login-server {url}</pre><pre>tailscale up --login-server {url}</pre>"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_control_core::PendingId;

    #[test]
    fn a_host_name_cannot_bring_its_own_html() {
        let view = PendingView {
            id: PendingId("abc".into()),
            hostname: "<script>alert('x')</script>".into(),
            os: "linux".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let page = approval(Some(&view), "abc");
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("nodes approve abc --user NAME"), "{page}");
        assert!(!approval(None, "<b>").contains("<b>"));
        let check = SshCheckInfo {
            id: "abc".into(),
            owner: "ann".into(),
            source: "laptop".into(),
            destination: "db".into(),
            local_user: "<script>".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let page = ssh_check(Some(&check), "abc");
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("ssh-checks approve abc"), "{page}");
        assert!(!ssh_check(None, "<b>").contains("<b>"));
    }
}
