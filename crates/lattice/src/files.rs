//! Files of a site: replaced as a whole, synced, and readable by their owner only.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Puts `bytes` into place at once: after a power cut the file is the old one or the new.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let work = path.with_extension("new");
    match std::fs::remove_file(&work) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&work)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&work, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}
