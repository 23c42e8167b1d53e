//! As much HTTP/1.1 as a relay needs: where a head ends, and where its body does.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A head longer than this is refused; no S3 client or server sends one.
const MAX_HEAD: usize = 64 * 1024;

/// A message as it came over the wire.
#[derive(Debug)]
pub(super) struct Message {
    /// The head, its closing empty line included, byte for byte.
    pub(super) head: Vec<u8>,
    /// The body as it was on the wire, chunk framing included.
    pub(super) body: Vec<u8>,
}

/// The bytes of one direction of a connection, with what was read past the last message.
#[derive(Debug)]
pub(super) struct Reader<R> {
    source: R,
    ahead: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            ahead: Vec::new(),
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.source.read_buf(&mut self.ahead).await
    }

    /// The next head; `None` when the peer closed between messages.
    pub(super) async fn head(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                return Ok(Some(self.ahead.drain(..end + 4).collect()));
            }
            if self.ahead.len() > MAX_HEAD {
                return Err(bad("head too long"));
            }
            if self.fill().await? == 0 {
                return if self.ahead.is_empty() {
                    Ok(None)
                } else {
                    Err(cut())
                };
            }
        }
    }

    /// Exactly `length` bytes.
    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < length {
            if self.fill().await? == 0 {
                return Err(cut());
            }
        }
        Ok(self.ahead.drain(..length).collect())
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                return Ok(self.ahead.drain(..end + 2).collect());
            }
            if self.ahead.len() > MAX_HEAD && find(&self.ahead, b"\r\n").is_none() {
                return Err(bad("line too long"));
            }
            if self.fill().await? == 0 {
                return Err(cut());
            }
        }
    }

    /// The body that the head announces, raw. `to_end` allows one that ends with the connection.
    pub(super) async fn body(&mut self, head: &[u8], to_end: bool) -> io::Result<Vec<u8>> {
        if header(head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            return self.chunks().await;
        }
        match header(head, "content-length") {
            Some(length) => {
                let length = length
                    .parse()
                    .map_err(|_| bad("Content-Length is not a number"))?;
                self.exactly(length).await
            }
            None if to_end => {
                while self.fill().await? > 0 {}
                Ok(std::mem::take(&mut self.ahead))
            }
            None => Ok(Vec::new()),
        }
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut raw = Vec::new();
        loop {
            let line = self.line().await?;
            let text = String::from_utf8_lossy(&line);
            let size = text.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
            raw.extend_from_slice(&line);
            if size == 0 {
                // Trailers, then an empty line.
                loop {
                    let line = self.line().await?;
                    raw.extend_from_slice(&line);
                    if line == b"\r\n" {
                        return Ok(raw);
                    }
                }
            }
            raw.extend(self.exactly(size).await?);
            raw.extend(self.exactly(2).await?);
        }
    }
}

/// The value of a header of a head, in lower case.
pub(super) fn header(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    text.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().to_ascii_lowercase())
    })
}

/// The words of the first line of a head.
pub(super) fn first_line(head: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(head);
    text.lines()
        .next()
        .unwrap_or_default()
        .split(' ')
        .map(str::to_owned)
        .collect()
}

/// The same head without the header of that name.
pub(super) fn without(head: &[u8], name: &str) -> Vec<u8> {
    let mut kept = Vec::with_capacity(head.len());
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let found = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if !found.eq_ignore_ascii_case(name.as_bytes()) {
            kept.extend_from_slice(line);
        }
    }
    kept
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer closed inside a message",
    )
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
