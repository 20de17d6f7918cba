//! As little HTTP as the tests need: one request a connection, no crate between them and the wire.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn expect_code(self, code: u16) -> Result<String, String> {
        if self.code == code {
            Ok(self.body)
        } else {
            Err(format!("{} {}", self.code, self.body))
        }
    }

    pub(crate) fn header(&self, name: &str) -> String {
        let lines = self.head.lines().filter_map(|l| l.split_once(':'));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .next()
            .map(|(_, value)| value.trim().to_owned())
            .expect(name)
    }
}

/// One GET on a connection of its own.
pub(crate) fn get(address: &str, path: &str) -> std::io::Result<Answer> {
    get_with(address, path, "")
}

/// The body of an answer with code 200, or why there is none.
pub(crate) fn get_ok(address: &str, path: &str) -> Result<String, String> {
    get(address, path)
        .map_err(|e| e.to_string())
        .and_then(|answer| answer.expect_code(200))
}

/// [`get`] with further header lines.
pub(crate) fn get_with(address: &str, path: &str, lines: &str) -> std::io::Result<Answer> {
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{lines}Connection: close\r\n\r\n");
    exchange(address, head.as_bytes())
}

/// Sends a whole request and reads the answer until the connection ends.
pub(crate) fn exchange(address: &str, request: &[u8]) -> std::io::Result<Answer> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(request)?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    let raw = String::from_utf8_lossy(&raw);
    let missing = || std::io::Error::other("no HTTP answer");
    let (head, body) = raw.split_once("\r\n\r\n").ok_or_else(missing)?;
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|c| c.parse().ok())
        .ok_or_else(missing)?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok(Answer {
        code,
        head: head.to_owned(),
        body,
    })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || after.len() < size {
            break;
        }
        body.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

/// Somebody who asks an address all the time, so that who answers there stays awake until
/// this is dropped.
pub(crate) struct Busy(#[expect(dead_code, reason = "dropped, it ends who asks")] Sender<()>);

impl Busy {
    pub(crate) fn asking(address: &str) -> Self {
        let address = address.to_owned();
        let (busy, ended) = channel();
        let pause = Duration::from_millis(100);
        std::thread::spawn(move || {
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                // Whether it is answered is for others to find out.
                let _answer = get(&address, "/");
            }
        });
        Self(busy)
    }
}
