//! Archives that mean harm, made from any bytes: what property tests and the fuzz target `layers`
//! unpack, and what must hold whatever is in them. Nothing of the program uses it.

use super::{UnpackError, UnpackLimits, Unpacker};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use tar::EntryType;

/// What may come of one input at most: little, so that some inputs are more.
const LIMITS: UnpackLimits = UnpackLimits {
    bytes_max: 4 << 10,
    entries_max: 8,
};
/// Directories that an entry's name may have above it, made where they are missing.
const PARENTS_MAX: u64 = 8;
const KINDS: [EntryType; 12] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Char,
    EntryType::Block,
    EntryType::Fifo,
    EntryType::Continuous,
    EntryType::GNULongName,
    EntryType::GNULongLink,
    EntryType::XHeader,
    EntryType::GNUSparse,
];
/// Parts of names and links; the empty one is put first for absolute ones.
const PARTS: [&str; 14] = [
    "a",
    "b",
    "c",
    "..",
    ".",
    "",
    "secret",
    "lower",
    "out",
    "away",
    ".wh.a",
    ".wh.out",
    ".wh...",
    ".wh..wh..opq",
];
/// Where a name or link is said to begin.
const JAIL: u8 = 0;
const ROOT: u8 = 1;

/// Reads choices from bytes; zeros once they are used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// A path of a few parts, perhaps absolute, perhaps to the directory that all happens in.
    fn path(&mut self, jail: &str) -> String {
        let parts = (0..=self.next() % 4).map(|_| PARTS[usize::from(self.next()) % PARTS.len()]);
        let path = parts.collect::<Vec<_>>().join("/");
        match self.next() % 8 {
            JAIL => format!("{jail}/{path}"),
            ROOT => format!("/{path}"),
            _ => path,
        }
    }

    fn entry(&mut self, jail: &str, archive: &mut Vec<u8>) {
        let kind = KINDS[usize::from(self.next()) % KINDS.len()];
        let (name, link) = (self.path(jail), self.path(jail));
        let content = match kind {
            EntryType::XHeader => {
                let key = [
                    "path",
                    "linkpath",
                    "size",
                    "SCHILY.xattr.user.mime",
                    "SCHILY.xattr.trusted.overlay.redirect",
                ];
                let record = format!(" {}={link}\n", key[usize::from(self.next()) % key.len()]);
                // The length counts itself.
                let length = record.len() + 2;
                let digits = if length > 99 { 3 } else { 2 };
                format!("{}{record}", record.len() + digits).into_bytes()
            }
            EntryType::GNULongName | EntryType::GNULongLink => link.clone().into_bytes(),
            _ => vec![b'x'; usize::from(self.next()) * 8],
        };
        let mut header = tar::Header::new_gnu();
        let put = |field: &mut [u8], text: &str| {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text.as_bytes()[..length]);
        };
        put(&mut header.as_old_mut().name, &name);
        put(&mut header.as_old_mut().linkname, &link);
        header.set_entry_type(kind);
        header.set_mode(u32::from(self.next()) << 4);
        header.set_uid(u64::from(self.next()));
        header.set_mtime(u64::from(self.next()) << 40);
        let size = match self.next() % 16 {
            // A lie: more than follows, and more than there is in the world.
            0 => u64::MAX >> 1,
            1 => content.len() as u64 + 4096,
            _ => content.len() as u64,
        };
        header.set_size(size);
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(&content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }

    fn layer(&mut self, jail: &str) -> Vec<u8> {
        let mut archive = Vec::new();
        for _ in 0..self.next() % 8 {
            self.entry(jail, &mut archive);
        }
        archive.resize(archive.len() + 1024, 0);
        archive
    }
}

/// All that is below a directory: names, what they are, contents, rights, owners.
fn tree(dir: &Path, found: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is = path.symlink_metadata()?;
        let what = if is.is_symlink() {
            fs::read_link(&path)?.display().to_string()
        } else if is.is_file() {
            String::from_utf8_lossy(&fs::read(&path)?).into_owned()
        } else {
            String::new()
        };
        let facts = (is.mode(), is.uid(), is.nlink(), is.mtime());
        found.insert(path.display().to_string(), format!("{facts:?} {what}"));
        if is.is_dir() {
            tree(&path, found)?;
        }
    }
    Ok(())
}

/// Unpacks what the bytes choose, each layer over those below it and all of them into one
/// directory.
///
/// # Errors
/// When the place to do it in can't be made.
///
/// # Panics
/// When anything was written elsewhere, a device made, or a bound passed.
pub fn check(bytes: &[u8]) -> io::Result<()> {
    let temporary = tempfile::tempdir()?;
    let jail = temporary.path();
    let outside = jail.join("outside");
    let lower = outside.join("lower");
    fs::create_dir_all(lower.join("a"))?;
    fs::write(outside.join("secret"), "secret")?;
    fs::write(lower.join("a/secret"), "lower")?;
    for (name, target) in [("out", "../secret"), ("away", ".."), ("c", "/")] {
        std::os::unix::fs::symlink(target, lower.join(name))?;
    }
    std::os::unix::fs::symlink(&outside, lower.join("b"))?;
    let mut before = BTreeMap::new();
    tree(&outside, &mut before)?;

    let name = outside.display().to_string();
    let mut choices = Choices(bytes);
    let layers = [choices.layer(&name), choices.layer(&name)];
    let (one, first, second) = (jail.join("one"), jail.join("first"), jail.join("second"));
    for dir in [&one, &first, &second] {
        fs::create_dir(dir)?;
    }
    let file = jail.join("archive");
    let mut into_one = Unpacker::new(&one, LIMITS);
    let mut over_lower = Unpacker::over(&first, LIMITS, vec![lower.clone()]);
    let mut over_both = Unpacker::over(&second, LIMITS, vec![first.clone(), lower]);
    for (layer, over) in layers.iter().zip([&mut over_lower, &mut over_both]) {
        fs::write(&file, layer)?;
        let done: [Result<(), UnpackError>; 2] = [into_one.layer(&file), over.layer(&file)];
        for error in done.into_iter().filter_map(Result::err) {
            // Refused is as good.
            tracing::trace!(%error, "hostile layer");
        }
    }
    fs::remove_file(file)?;

    let mut after = BTreeMap::new();
    tree(&outside, &mut after)?;
    assert_eq!(before, after, "written outside");
    let mut names: Vec<_> = fs::read_dir(jail)?.collect::<Result<_, _>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let names: Vec<_> = names.iter().map(fs::DirEntry::file_name).collect();
    assert_eq!(names, ["first", "one", "outside", "second"]);
    for dir in [&one, &first, &second] {
        let mut sum = UnpackLimits {
            bytes_max: 0,
            entries_max: 0,
        };
        inside(dir, &mut sum)?;
        assert!(sum.bytes_max <= LIMITS.bytes_max, "{sum:?}");
        let entries_max = (LIMITS.entries_max + 1) * PARENTS_MAX;
        assert!(sum.entries_max <= entries_max, "{sum:?}");
    }
    Ok(())
}

/// What must hold of what was unpacked; adds up its files and their bytes.
fn inside(dir: &Path, sum: &mut UnpackLimits) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let is = path.symlink_metadata()?;
        let kind = is.file_type();
        // The mark of what a layer hides is the one device there may be.
        let device = kind.is_block_device() || (kind.is_char_device() && is.rdev() != 0);
        assert!(!device, "{} is a device", path.display());
        let mut names = [0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names)?;
        for name in names[..length].split(|byte| *byte == 0) {
            let kernels = name.starts_with(b"trusted.") && name != b"trusted.overlay.opaque";
            assert!(!kernels, "{} has {}", path.display(), name.escape_ascii());
        }
        sum.entries_max += 1;
        if is.is_file() {
            // A file of several names is there once.
            sum.bytes_max += is.len() / is.nlink();
        }
        if is.is_dir() {
            inside(&path, sum)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn hostile_layers_write_nowhere_else(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            check(&bytes).unwrap();
        }
    }

    #[test]
    fn the_check_would_see_it() {
        // Written through a link by who does not look where it leads.
        let dir = tempfile::tempdir().unwrap();
        let (outside, root) = (dir.path().join("outside"), dir.path().join("root"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("b")).unwrap();
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        tree(&outside, &mut before).unwrap();
        fs::write(root.join("b/x"), "x").unwrap();
        tree(&outside, &mut after).unwrap();
        assert_ne!(before, after);
        // And most choices are archives that are read to their end.
        let layer = Choices(&[3; 400]).layer("/jail");
        let mut archive = tar::Archive::new(&layer[..]);
        assert!(archive.entries().unwrap().raw(true).count() >= 3);
    }
}
