//! Reading a log as `kubectl logs` asks: the tail, since a time, with timestamps, up to a
//! number of bytes, and on as it grows.
//!
//! Following costs nothing while nothing is written: the kernel tells of writes
//! (inotify), the agent of the container's end.

use super::cri::Line;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use rustix::fs::inotify;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc};

/// Bytes read and sent in one piece.
const CHUNK: usize = 64 * 1024;
/// Pieces that wait for a slow client; reading waits when they are that many.
pub(crate) const PIECES_PENDING_MAX: usize = 4;

/// Which part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Only this many lines of the end.
    pub(crate) tail_lines: Option<u64>,
    /// Only lines from then on.
    pub(crate) since: Option<Timestamp>,
    /// Each line begins with its time.
    pub(crate) timestamps: bool,
    /// No more bytes than this.
    pub(crate) limit_bytes: Option<u64>,
    /// Goes on while the container runs.
    pub(crate) follow: bool,
    /// `stdout` or `stderr`; none for both.
    pub(crate) stream: Option<String>,
}

/// How a follower learns that the container ended.
pub(crate) trait Writer: Send + Sync {
    /// Whether more may be written.
    fn is_alive(&self) -> bool;
    /// Notified after every change of the pod.
    fn changed(&self) -> &Notify;
}

/// Sends the log's part in pieces; ends when all is sent, the limit is reached or the
/// receiver is gone.
pub(crate) async fn stream(
    path: &Path,
    options: &Options,
    writer: &dyn Writer,
    out: mpsc::Sender<io::Result<Bytes>>,
) {
    if let Err(error) = try_stream(path, options, writer, &out).await {
        // A receiver that is gone needs no error.
        let _ = out.send(Err(error)).await;
    }
}

async fn try_stream(
    path: &Path,
    options: &Options,
    writer: &dyn Writer,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // Runtimes make it before the container runs: there is nothing to read.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let watch = match options.follow {
        true => Some(Watch::new(path)?),
        false => None,
    };
    if let Some(lines) = options.tail_lines {
        let at = tail_offset(&mut file, lines)?;
        file.seek(SeekFrom::Start(at))?;
    }
    let mut filter = Filter::new(options);
    loop {
        // Asked before reading, so that what is written before the end is read.
        let alive = writer.is_alive();
        loop {
            let (piece, more) = filter.read(&mut file)?;
            if !piece.is_empty() && out.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
            if filter.is_full() {
                return Ok(());
            }
            if !more {
                break;
            }
        }
        let Some(watch) = watch.as_ref().filter(|_| alive) else {
            return Ok(());
        };
        if rotated(path, &file)?
            && let Ok(next) = File::open(path)
        {
            file = next;
            filter.begin_file();
            watch.renew(path)?;
            continue;
        }
        let changed = writer.changed().notified();
        if writer.is_alive() {
            tokio::select! {
                written = watch.written() => written?,
                () = changed => {}
                () = out.closed() => return Ok(()),
            }
        }
    }
}

/// Whether the path is another file now, or the file was cut.
fn rotated(path: &Path, file: &File) -> io::Result<bool> {
    let mine = file.metadata()?;
    let position = { file }.stream_position()?;
    Ok(match std::fs::metadata(path) {
        Ok(now) => now.ino() != mine.ino() || mine.size() < position,
        Err(_) => false,
    })
}

/// Where the last `lines` lines begin.
fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    let mut at = end;
    let mut block = vec![0; CHUNK];
    while at > 0 {
        let size = at.min(CHUNK as u64);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        let part = &mut block[..usize::try_from(size).unwrap_or(CHUNK)];
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let offset = at + index as u64;
            // The last line's own end does not count.
            if *byte == b'\n' && offset + 1 != end {
                seen += 1;
                if seen == lines {
                    return Ok(offset + 1);
                }
            }
        }
    }
    Ok(0)
}

/// Turns raw log into what was asked for.
struct Filter<'a> {
    options: &'a Options,
    /// Begun and not ended line of the file.
    rest: BytesMut,
    buffer: Vec<u8>,
    left: u64,
    /// A partial line was sent; what follows continues it.
    within: bool,
}

impl<'a> Filter<'a> {
    fn new(options: &'a Options) -> Self {
        Self {
            options,
            rest: BytesMut::new(),
            buffer: vec![0; CHUNK],
            left: options.limit_bytes.unwrap_or(u64::MAX),
            within: false,
        }
    }

    fn begin_file(&mut self) {
        self.rest.clear();
    }

    fn is_full(&self) -> bool {
        self.left == 0
    }

    /// The next piece, and whether the file may hold more now.
    fn read(&mut self, file: &mut File) -> io::Result<(Bytes, bool)> {
        let count = file.read(&mut self.buffer)?;
        self.rest.extend_from_slice(&self.buffer[..count]);
        let mut piece = BytesMut::new();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line = self.rest.split_to(end + 1);
            self.take(&line[..end], &mut piece);
        }
        if piece.len() as u64 > self.left {
            piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        self.left -= piece.len() as u64;
        Ok((piece.freeze(), count > 0))
    }

    fn take(&mut self, raw: &[u8], piece: &mut BytesMut) {
        let Some(line) = Line::parse(raw) else {
            return;
        };
        if let Some(wanted) = &self.options.stream
            && line.stream != wanted.as_bytes()
        {
            return;
        }
        if let Some(since) = self.options.since
            && line.at().is_none_or(|at| at < since)
        {
            return;
        }
        if self.options.timestamps && !self.within {
            piece.extend_from_slice(line.time);
            piece.extend_from_slice(b" ");
        }
        piece.extend_from_slice(line.text);
        if !line.partial {
            piece.extend_from_slice(b"\n");
        }
        self.within = line.partial;
    }
}

/// The kernel's word on writes to a file.
struct Watch {
    /// An inotify descriptor is read like a pipe, so tokio's pipe drives it.
    fd: pipe::Receiver,
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let watch = Self {
            fd: pipe::Receiver::from_owned_fd_unchecked(fd)?,
        };
        watch.renew(path)?;
        Ok(watch)
    }

    /// Watches the file that the path is now, and its directory for the next one.
    fn renew(&self, path: &Path) -> io::Result<()> {
        match inotify::add_watch(self.fd.as_fd(), path, inotify::WatchFlags::MODIFY) {
            Err(rustix::io::Errno::NOENT) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(parent) = path.parent() {
            let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
            inotify::add_watch(self.fd.as_fd(), parent, flags)?;
        }
        Ok(())
    }

    /// Returns after a write. Cancel-safe.
    async fn written(&self) -> io::Result<()> {
        let mut events = [0u8; 4096];
        loop {
            self.fd.readable().await?;
            match self.fd.try_read(&mut events) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Run {
        ended: AtomicBool,
        changed: Notify,
    }

    impl Writer for Arc<Run> {
        fn is_alive(&self) -> bool {
            !self.ended.load(Ordering::SeqCst)
        }
        fn changed(&self) -> &Notify {
            &self.changed
        }
    }

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n\
        2026-01-01T00:00:02Z stderr F two\n\
        2026-01-01T00:00:03Z stdout P thr\n\
        2026-01-01T00:00:03Z stdout F ee\n";

    async fn read(options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (out, mut pieces) = mpsc::channel(PIECES_PENDING_MAX);
        let ended = Arc::new(Run::default());
        stream(&path, &options, &ended, out).await;
        let mut text = Vec::new();
        while let Some(piece) = pieces.recv().await {
            text.extend_from_slice(&piece.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn every_part_that_can_be_asked_for() {
        let default = Options::default;
        assert_eq!(read(default()).await, "one\ntwo\nthree\n");
        let tail = |n| Options {
            tail_lines: Some(n),
            ..default()
        };
        assert_eq!(read(tail(0)).await, "");
        assert_eq!(read(tail(1)).await, "ee\n");
        assert_eq!(read(tail(3)).await, "two\nthree\n");
        assert_eq!(read(tail(9)).await, "one\ntwo\nthree\n");
        let since = Options {
            since: "2026-01-01T00:00:02Z".parse().ok(),
            timestamps: true,
            ..default()
        };
        assert_eq!(
            read(since).await,
            "2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z three\n"
        );
        let limit = Options {
            limit_bytes: Some(5),
            ..default()
        };
        assert_eq!(read(limit).await, "one\nt");
        let err = Options {
            stream: Some("stderr".into()),
            ..default()
        };
        assert_eq!(read(err).await, "two\n");
    }

    #[tokio::test]
    async fn follows_writes_and_rotation_until_the_container_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let run = Arc::new(Run::default());
        let (out, mut pieces) = mpsc::channel(PIECES_PENDING_MAX);
        let scope = lifecycle::Scope::new();
        let (follower, at) = (run.clone(), path.clone());
        scope.spawn(async move {
            let options = Options {
                tail_lines: Some(0),
                follow: true,
                ..Options::default()
            };
            stream(&at, &options, &follower, out).await;
        });
        let append = |text: &str| {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap();
            file.write_all(format!("2026-01-01T00:00:04Z stdout F {text}\n").as_bytes())
                .unwrap();
        };
        // The follower starts from the end that it finds, so wait for it to watch.
        while Arc::strong_count(&run) < 2 {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        append("four");
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "four\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        append("five");
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "five\n");
        append("six");
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "six\n");
        run.ended.store(true, Ordering::SeqCst);
        run.changed.notify_waiters();
        assert!(pieces.recv().await.is_none());
        scope.close().await;
    }
}
