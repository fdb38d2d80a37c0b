//! A browser without scripts: cookies, redirects, links and forms.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use url::Url;
use warren_dial::Dialer;
use warren_dial::fetch::{Fetch, Fetched, fetch};

/// A page, and where it was.
#[derive(Debug, Clone)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Page {
    /// The address of the link whose text contains this.
    pub fn link(&self, text: &str) -> Url {
        let found = self.body.split("<a ").skip(1).find_map(|link| {
            let (tag, rest) = link.split_once('>')?;
            rest.split("</a>").next()?.contains(text).then_some(tag)
        });
        let tag = found.unwrap_or_else(|| panic!("no link \"{text}\" in {}", self.body));
        let href = tag.split("href=\"").nth(1).unwrap();
        self.url.join(href.split('"').next().unwrap()).unwrap()
    }

    /// The hidden token of the form.
    pub fn token(&self) -> String {
        let rest = self.body.split("name=\"token\" value=\"").nth(1).unwrap();
        rest.split('"').next().unwrap().to_owned()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Browser {
    pub cookies: BTreeMap<String, String>,
    /// Headers of every request.
    pub headers: HeaderMap,
}

impl Browser {
    /// The headers that browsers send with a request from another site.
    pub fn sent_from(mut self, site: &'static str, origin: &'static str) -> Self {
        let name = HeaderName::from_static("sec-fetch-site");
        self.headers.insert(name, HeaderValue::from_static(site));
        if !origin.is_empty() {
            self.headers
                .insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        self
    }

    /// One request, without following.
    pub async fn request(&mut self, method: Method, url: &Url, form: &str) -> Page {
        let mut headers = self.headers.clone();
        let pairs: Vec<String> = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        if !pairs.is_empty() {
            let line = HeaderValue::from_str(&pairs.join("; ")).unwrap();
            headers.insert(header::COOKIE, line);
        }
        if !form.is_empty() {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            );
        }
        let request = Fetch {
            method,
            headers,
            body: form.as_bytes().to_vec(),
            ..Fetch::get(url)
        };
        let answer: Fetched = fetch(&Dialer::new(), request).await.unwrap();
        for cookie in answer.headers.get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        Page {
            url: url.clone(),
            status: answer.status.as_u16(),
            headers: answer.headers,
            body: String::from_utf8_lossy(&answer.body).into_owned(),
        }
    }

    /// The page at the end of the redirects.
    pub async fn open(&mut self, url: &Url) -> Page {
        let first = self.request(Method::GET, url, "").await;
        self.follow(first).await
    }

    pub async fn follow(&mut self, mut page: Page) -> Page {
        for _ in 0..10 {
            let Some(next) = page.headers.get(header::LOCATION) else {
                return page;
            };
            let next = page.url.join(next.to_str().unwrap()).unwrap();
            page = self.request(Method::GET, &next, "").await;
        }
        panic!("too many redirects")
    }

    /// Follows up to the redirect to this path, and returns its address.
    pub async fn until(&mut self, url: &Url, path: &str) -> Url {
        let mut url = url.clone();
        for _ in 0..10 {
            if url.path() == path {
                return url;
            }
            let page = self.request(Method::GET, &url, "").await;
            let next = page
                .headers
                .get(header::LOCATION)
                .unwrap_or_else(|| panic!("{page:?}"));
            url = page.url.join(next.to_str().unwrap()).unwrap();
        }
        panic!("too many redirects")
    }

    /// Sends the form of a page with this decision.
    pub async fn decide(&mut self, page: &Page, decision: &str) -> Page {
        let form = format!("token={}&decision={decision}", page.token());
        let sent = self.request(Method::POST, &page.url, &form).await;
        self.follow(sent).await
    }
}
