//! A container's log in the format of the Container Runtime Interface, with rotation.
//!
//! A line is `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>`; `P` marks a piece
//! of a line too long to be written at once. Lines are written whole, so that those of
//! instances running side by side follow each other and never mix.

use jiff::Timestamp;
use parking_lot::Mutex;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest text of a line; the Container Runtime Interface's usual piece.
const LINE_MAX_BYTES: usize = 16 << 10;

/// How much log a container keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// A file larger than this is set aside.
    pub file_max_bytes: u64,
    /// Files kept, the current one included; older ones are deleted.
    pub files_max: usize,
}

impl Default for LogLimits {
    /// As the kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
    fn default() -> Self {
        Self {
            file_max_bytes: 10 << 20,
            files_max: 5,
        }
    }
}

/// Which of a container's streams a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A container's log file. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct LogFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    limits: LogLimits,
    open: Mutex<Open>,
}

/// Opened at the first line: thousands of silent pods need no file handles.
#[derive(Debug, Default)]
struct Open {
    file: Option<(File, u64)>,
    /// Said once until a write works again.
    failing: bool,
}

impl LogFile {
    /// Makes the file and its folder if they are missing.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn create(path: &Path, limits: LogLimits) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        append(path)?;
        Ok(Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                limits,
                open: Mutex::default(),
            }),
        })
    }

    /// A writer for one stream, so that half-written lines of several do not mix. What is left
    /// unfinished is written when it is dropped.
    pub fn writer(&self, stream: OutputStream) -> LineWriter {
        LineWriter {
            log: self.clone(),
            stream,
            line: Vec::new(),
            out: Vec::new(),
        }
    }

    fn write(&self, lines: &[u8]) {
        let mut open = self.shared.open.lock();
        match self.shared.write(&mut open, lines) {
            Ok(()) => open.failing = false,
            Err(error) => {
                open.file = None;
                if !open.failing {
                    tracing::warn!(%error, path = %self.shared.path.display(), "container log lost lines");
                }
                open.failing = true;
            }
        }
    }
}

impl Shared {
    fn write(&self, open: &mut Open, lines: &[u8]) -> io::Result<()> {
        if let Some((_, size)) = &open.file
            && *size >= self.limits.file_max_bytes
        {
            open.file = None;
            self.rotate()?;
        }
        let (file, size) = match &mut open.file {
            Some(open) => open,
            closed => {
                let file = append(&self.path)?;
                let size = file.metadata()?.len();
                closed.insert((file, size))
            }
        };
        file.write_all(lines)?;
        *size += lines.len() as u64;
        Ok(())
    }

    /// Sets the file aside under its name and the time, as the kubelet does, and deletes the
    /// oldest of those.
    fn rotate(&self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let aside = format!("{name}.{}", Timestamp::now().strftime("%Y%m%d-%H%M%S.%6f"));
        fs::rename(&self.path, self.path.with_file_name(aside))?;
        let Some(dir) = self.path.parent() else {
            return Ok(());
        };
        let prefix = format!("{name}.");
        let mut old: Vec<PathBuf> = fs::read_dir(dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            })
            .collect();
        old.sort();
        let keep = self.limits.files_max.saturating_sub(1);
        for path in old.iter().take(old.len().saturating_sub(keep)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Makes lines of the bytes of one stream.
#[derive(Debug)]
pub struct LineWriter {
    log: LogFile,
    stream: OutputStream,
    /// The line so far, without its end.
    line: Vec<u8>,
    /// Finished lines, written together.
    out: Vec<u8>,
}

impl LineWriter {
    fn finish(&mut self, tag: char) {
        let stream = match self.stream {
            OutputStream::Stdout => "stdout",
            OutputStream::Stderr => "stderr",
        };
        let now = Timestamp::now();
        // Writing to memory does not fail.
        let _ = write!(self.out, "{now:.9} {stream} {tag} ");
        self.out.append(&mut self.line);
        self.out.push(b'\n');
    }

    fn flush(&mut self) {
        if !self.out.is_empty() {
            self.log.write(&self.out);
            self.out.clear();
        }
    }
}

impl LineWriter {
    /// Takes bytes as they were written.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LINE_MAX_BYTES - self.line.len();
            let window = &bytes[..bytes.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line.extend_from_slice(&bytes[..end]);
                    self.finish('F');
                    bytes = &bytes[end + 1..];
                }
                None => {
                    let taken = window.len().min(room);
                    self.line.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if !bytes.is_empty() {
                        self.finish('P');
                    }
                }
            }
        }
        self.flush();
    }
}

impl Drop for LineWriter {
    /// The last line may lack its end.
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.finish('F');
        }
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines as stream, tag and text.
    fn read(path: &Path) -> Vec<(String, String, Vec<u8>)> {
        let mut lines = Vec::new();
        for line in fs::read(path).unwrap().split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let mut parts = line.splitn(4, |byte| *byte == b' ');
            let mut text = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
            let (time, stream, tag) = (text(), text(), text());
            assert_eq!(time.len(), "2016-10-06T00:17:09.669794202Z".len(), "{time}");
            time.parse::<Timestamp>().unwrap();
            lines.push((stream, tag, parts.next().unwrap().to_vec()));
        }
        lines
    }

    fn log(limits: LogLimits) -> (tempfile::TempDir, PathBuf, LogFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/app/0.log");
        let log = LogFile::create(&path, limits).unwrap();
        (dir, path, log)
    }

    #[test]
    fn instances_side_by_side_do_not_mix_lines() {
        let (_dir, path, log) = log(LogLimits::default());
        assert_eq!(read(&path), []);
        let mut a = log.writer(OutputStream::Stdout);
        let mut b = log.writer(OutputStream::Stderr);
        a.write(b"one ");
        b.write(b"three\n");
        a.write(b"two\n\nfo");
        drop((a, b));
        let line = |stream: &str, text: &str| (stream.into(), "F".into(), text.into());
        assert_eq!(
            read(&path),
            [
                line("stderr", "three"),
                line("stdout", "one two"),
                line("stdout", ""),
                line("stdout", "fo")
            ]
        );
    }

    #[test]
    fn files_are_set_aside_and_the_oldest_deleted() {
        let (_dir, path, log) = log(LogLimits {
            file_max_bytes: 100,
            files_max: 3,
        });
        let mut writer = log.writer(OutputStream::Stdout);
        for n in 0..20 {
            writer.write(format!("line {n} of some length to fill the file\n").as_bytes());
        }
        let mut files: Vec<PathBuf> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert_eq!(files.len(), 3);
        // The current file sorts first; the kept lines are the last ones, in order.
        files.rotate_left(1);
        let kept: Vec<String> = files
            .iter()
            .flat_map(|path| read(path))
            .map(|(_, _, text)| String::from_utf8(text).unwrap())
            .collect();
        let first = 20 - kept.len();
        let expected: Vec<String> = (first..20)
            .map(|n| format!("line {n} of some length to fill the file"))
            .collect();
        assert_eq!(kept, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_pieces_the_text_comes_back(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(prop::num::u8::ANY, 0..40),
                    Just(vec![b'x'; LINE_MAX_BYTES - 1]),
                    Just(vec![b'y'; 2 * LINE_MAX_BYTES]),
                    Just(vec![b'\n']),
                ],
                0..12,
            )
        ) {
            let (_dir, path, log) = log(LogLimits::default());
            let mut writer = log.writer(OutputStream::Stdout);
            let mut whole = Vec::new();
            for piece in &pieces {
                writer.write(piece);
                whole.extend_from_slice(piece);
            }
            drop(writer);
            let mut back = Vec::new();
            for (_, tag, text) in read(&path) {
                prop_assert!(text.len() <= LINE_MAX_BYTES);
                prop_assert!(tag == "F" || text.len() == LINE_MAX_BYTES);
                back.extend_from_slice(&text);
                if tag == "F" {
                    back.push(b'\n');
                }
            }
            if whole.last().is_some_and(|byte| *byte != b'\n') {
                whole.push(b'\n');
            }
            prop_assert_eq!(back, whole);
        }
    }
}
