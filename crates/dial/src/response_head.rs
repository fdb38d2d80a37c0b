//! The head of an HTTP/1.1 response, read off a connection that may change its protocol
//! behind it.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest response head.
const MAX_HEAD_LEN: usize = 16 * 1024;
/// Most header fields in it.
const MAX_HEADERS: usize = 64;

/// A response head, and what came behind it.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    /// The reason phrase as sent.
    pub(crate) reason: String,
    /// Header fields; names as sent.
    pub(crate) headers: Vec<(String, String)>,
    /// Bytes behind the head that were read with it.
    pub(crate) leftover: Vec<u8>,
}

/// No response head came.
#[derive(Debug)]
pub(crate) enum HeadError {
    /// The connection broke or ended.
    Io(io::Error),
    /// The other side does not speak HTTP, or sends too much.
    NotHttp(String),
}

impl ResponseHead {
    /// Reads a head.
    pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Self, HeadError> {
        let mut bytes = Vec::with_capacity(1024);
        loop {
            if stream.read_buf(&mut bytes).await.map_err(HeadError::Io)? == 0 {
                return Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut fields);
            let parsed = response
                .parse(&bytes)
                .map_err(|error| HeadError::NotHttp(error.to_string()))?;
            let httparse::Status::Complete(head_len) = parsed else {
                if bytes.len() >= MAX_HEAD_LEN {
                    let problem = format!("its head is longer than {MAX_HEAD_LEN} bytes");
                    return Err(HeadError::NotHttp(problem));
                }
                continue;
            };
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let fields = response.headers.iter();
            let headers = fields
                .map(|field| (field.name.to_owned(), text(field.value)))
                .collect();
            return Ok(Self {
                status: response.code.unwrap_or_default(),
                reason: response.reason.unwrap_or_default().to_owned(),
                headers,
                leftover: bytes.split_off(head_len),
            });
        }
    }

    /// The header fields of this name, in any letter case.
    pub(crate) fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let known = self.headers.iter();
        known
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}
