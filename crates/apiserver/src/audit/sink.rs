//! Where records go: a file that is rotated, or standard output. A thread of its own writes,
//! so that no request waits for a disk.

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Records on their way to the disk, and their bytes: past either, further ones are dropped
/// and counted in `apiserver_audit_error_total`.
const PENDING_MAX: usize = 10_000;
const PENDING_BYTES_MAX: usize = 64 << 20;
/// Bytes of a file where no size is stated: upstream's default.
const FILE_BYTES: u64 = 100 << 20;

/// Where to write and how much to keep.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// A file, or `-` for standard output.
    pub path: PathBuf,
    /// Megabytes after which a file is put aside; 0 is 100.
    pub size_max_mb: u64,
    /// Files put aside that are kept; 0 keeps all.
    pub backups_max: usize,
    /// Days that files put aside are kept; 0 keeps all.
    pub age_max_days: u64,
}

pub(super) struct Sink {
    to: Mutex<Option<SyncSender<Vec<u8>>>>,
    pending_bytes: Arc<AtomicUsize>,
    lost: Counter,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sink {
    /// Opens the log and starts to write.
    pub(super) fn open(log: Log, lost: Counter) -> std::io::Result<Self> {
        let output: Box<dyn Output> = if log.path == Path::new("-") {
            Box::new(std::io::stdout())
        } else {
            Box::new(Rotated::open(log)?)
        };
        let (to, from) = sync_channel(PENDING_MAX);
        let pending_bytes = Arc::<AtomicUsize>::default();
        let (pending, failed) = (pending_bytes.clone(), lost.clone());
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write(output, &from, &pending, &failed))?;
        Ok(Self {
            to: Mutex::new(Some(to)),
            pending_bytes,
            lost,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Hands a line over; it never waits.
    pub(super) fn put(&self, line: Vec<u8>) {
        let size = line.len();
        let full = self.pending_bytes.load(Ordering::Relaxed) + size > PENDING_BYTES_MAX;
        let to = self.to.lock();
        let sent = !full && to.as_ref().is_some_and(|to| to.try_send(line).is_ok());
        if sent {
            self.pending_bytes.fetch_add(size, Ordering::Relaxed);
        } else {
            self.lost.inc();
        }
    }

    /// Writes what is pending and ends.
    pub(super) async fn close(&self) {
        self.to.lock().take();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

trait Output: Send {
    fn put(&mut self, line: &[u8]) -> std::io::Result<()>;
    fn flush(&mut self) -> std::io::Result<()>;
}

impl Output for std::io::Stdout {
    fn put(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.write_all(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Write::flush(self)
    }
}

fn write(
    mut output: Box<dyn Output>,
    from: &Receiver<Vec<u8>>,
    pending: &AtomicUsize,
    failed: &Counter,
) {
    let mut trouble = false;
    while let Ok(first) = from.recv() {
        let mut next = Some(first);
        while let Some(line) = next {
            pending.fetch_sub(
                line.len().min(pending.load(Ordering::Relaxed)),
                Ordering::Relaxed,
            );
            match output.put(&line) {
                Ok(()) => trouble = false,
                Err(error) => {
                    failed.inc();
                    // While a disk is full every line fails.
                    if !trouble {
                        tracing::error!(%error, "the audit log can't be written");
                    }
                    trouble = true;
                }
            }
            next = from.try_recv().ok();
        }
        if let Err(error) = output.flush() {
            tracing::debug!(%error, "flushing the audit log");
        }
    }
}

/// A file that is put aside when it is large.
struct Rotated {
    log: Log,
    file: BufWriter<File>,
    size: u64,
}

impl Rotated {
    fn open(log: Log) -> std::io::Result<Self> {
        let (file, size) = append(&log.path)?;
        Ok(Self { log, file, size })
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.file.flush()?;
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H-%M-%S%.3f")
            .to_string();
        std::fs::rename(&self.log.path, self.named(&now))?;
        let (file, size) = append(&self.log.path)?;
        (self.file, self.size) = (file, size);
        self.prune();
        Ok(())
    }

    /// `audit.log` is put aside as `audit-TIME.log`.
    fn named(&self, time: &str) -> PathBuf {
        let (stem, dot, extension) = self.parts();
        self.log
            .path
            .with_file_name(format!("{stem}-{time}{dot}{extension}"))
    }

    fn parts(&self) -> (String, &'static str, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map_or_else(String::new, |p| p.to_string_lossy().into_owned())
        };
        let extension = text(self.log.path.extension());
        let dot = if extension.is_empty() { "" } else { "." };
        (text(self.log.path.file_stem()), dot, extension)
    }

    /// Removes what is too old or too much; what can't be removed is tried again.
    fn prune(&self) {
        let (stem, dot, extension) = self.parts();
        let (start, end) = (format!("{stem}-"), format!("{dot}{extension}"));
        let dir = match self.log.path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let Ok(list) = std::fs::read_dir(dir) else {
            return;
        };
        let mut aside: Vec<PathBuf> = list
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| {
                let name = p.file_name().map(|n| n.to_string_lossy().into_owned());
                name.is_some_and(|n| n.starts_with(&start) && n.ends_with(&end))
            })
            .collect();
        // Names sort by time; the newest first.
        aside.sort();
        aside.reverse();
        let age = Duration::from_secs(self.log.age_max_days * 86_400);
        for (i, path) in aside.iter().enumerate() {
            let many = self.log.backups_max > 0 && i >= self.log.backups_max;
            let written = std::fs::metadata(path).and_then(|m| m.modified());
            let old = self.log.age_max_days > 0
                && written.is_ok_and(|at| {
                    SystemTime::now()
                        .duration_since(at)
                        .is_ok_and(|past| past > age)
                });
            if many || old {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn append(path: &Path) -> std::io::Result<(BufWriter<File>, u64)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((BufWriter::new(file), size))
}

impl Output for Rotated {
    fn put(&mut self, line: &[u8]) -> std::io::Result<()> {
        let most = match self.log.size_max_mb {
            0 => FILE_BYTES,
            mb => mb << 20,
        };
        if self.size > 0 && self.size + line.len() as u64 > most {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_put_aside_and_the_oldest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let log = Log {
            path: path.clone(),
            size_max_mb: 1,
            backups_max: 2,
            age_max_days: 1,
        };
        let sink = Sink::open(log, Counter::default()).unwrap();
        for i in 0..10 {
            let mut line = vec![b'a' + i; 600 << 10];
            line.push(b'\n');
            sink.put(line);
        }
        sink.close().await;
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        // Files put aside within a millisecond share a name; there are two at most.
        assert!((2..=3).contains(&names.len()), "{names:?}");
        assert!(names.contains(&"audit.log".to_owned()), "{names:?}");
        assert!(std::fs::read(&path).unwrap().starts_with(b"jjj"));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_comes_after_the_end_is_counted_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log {
            path: dir.path().join("a"),
            ..Log::default()
        };
        let lost = Counter::default();
        let sink = Sink::open(log, lost.clone()).unwrap();
        sink.put(b"one\n".to_vec());
        sink.close().await;
        sink.put(b"two\n".to_vec());
        assert_eq!(lost.get(), 1);
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"one\n");
    }
}
