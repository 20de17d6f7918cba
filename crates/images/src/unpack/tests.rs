//! Archives that no honest tool makes.

use super::*;
use proptest::prelude::*;
use tar::EntryType;

/// An entry: type, name as written, link target, content.
type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

/// An archive with names as given: the library would refuse to write some.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, link, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4777);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

struct Place {
    dir: tempfile::TempDir,
    limits: UnpackLimits,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        Self {
            dir,
            limits: UnpackLimits {
                bytes_max: 1 << 20,
                entries_max: 100,
            },
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Unpacks layers; whatever comes of it, nothing beside the root changes.
    fn unpack(&self, layers: &[Vec<u8>]) -> Result<(), UnpackError> {
        let mut unpacker = Unpacker::new(&self.root(), self.limits);
        let file = self.dir.path().join("layer");
        let done = layers.iter().try_for_each(|layer| {
            fs::write(&file, layer).unwrap();
            unpacker.layer(&file)
        });
        let _ = fs::remove_file(file);
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["root", "secret"]);
        assert_eq!(fs::read(self.dir.path().join("secret")).unwrap(), b"secret");
        done
    }
}

#[test]
fn names_that_climb_are_refused() {
    for name in ["../x", "a/../../x", "..", "a/..", "/../x"] {
        let place = Place::new();
        let result = place.unpack(&[archive(&[(EntryType::Regular, name, "", b"x")])]);
        assert!(
            matches!(result, Err(UnpackError::Escape(_))),
            "{name}: {result:?}"
        );
    }
    let place = Place::new();
    let whiteouts = ["d/.wh..", "d/.wh...", "d/.wh."];
    for name in whiteouts {
        let result = place.unpack(&[archive(&[(EntryType::Regular, name, "", b"")])]);
        assert!(
            matches!(result, Err(UnpackError::Escape(_))),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn absolute_names_and_links_mean_the_root_of_the_image() {
    let place = Place::new();
    let entries: [Entry<'_>; 5] = [
        (EntryType::Regular, "/abs", "", b"1"),
        (EntryType::Directory, "usr/lib", "", b""),
        (EntryType::Symlink, "lib", "/usr/lib", b""),
        (EntryType::Regular, "lib/so", "", b"2"),
        (EntryType::Symlink, "up", "../../../../secret", b""),
    ];
    place.unpack(&[archive(&entries)]).unwrap();
    assert_eq!(fs::read(place.root().join("abs")).unwrap(), b"1");
    assert_eq!(fs::read(place.root().join("usr/lib/so")).unwrap(), b"2");
    assert_eq!(
        find(&place.root(), "/lib/so"),
        Some(place.root().join("usr/lib/so"))
    );
    assert_eq!(find(&place.root(), "up"), None);
    // Bits that give others' rights are not taken over.
    let mode = fs::metadata(place.root().join("abs"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7000, 0);
}

#[test]
fn links_to_the_outside_are_not_written_through() {
    for (kind, target) in [
        (EntryType::Symlink, "../secret"),
        (EntryType::Symlink, "/"),
        (EntryType::Link, "../secret"),
        (EntryType::Link, "secret"),
    ] {
        let place = Place::new();
        let entries: [Entry<'_>; 2] = [
            (kind, "link", target, b""),
            (EntryType::Regular, "link", "", b"x"),
        ];
        let _ = place.unpack(&[archive(&entries)]);
        let through: [Entry<'_>; 2] = [
            (kind, "link", target, b""),
            (EntryType::Regular, "link/secret", "", b"x"),
        ];
        let _ = place.unpack(&[archive(&through)]);
    }
    // A ring ends.
    let place = Place::new();
    let ring: [Entry<'_>; 3] = [
        (EntryType::Symlink, "a", "b", b""),
        (EntryType::Symlink, "b", "a", b""),
        (EntryType::Regular, "a/x", "", b"x"),
    ];
    assert!(place.unpack(&[archive(&ring)]).is_err());
}

#[test]
fn bombs_end_at_the_bounds() {
    let place = Place::new();
    let zeros = vec![0; 3 << 20];
    let big = archive(&[(EntryType::Regular, "big", "", &zeros)]);
    let packed = zstd::encode_all(&big[..], 0).unwrap();
    assert!(packed.len() < 10_000);
    for layer in [big, packed] {
        let result = place.unpack(&[layer]);
        assert!(
            matches!(result, Err(UnpackError::TooManyBytes(_))),
            "{result:?}"
        );
    }
    let names: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    let many: Vec<Entry<'_>> = names
        .iter()
        .map(|name| (EntryType::Directory, name.as_str(), "", &b""[..]))
        .collect();
    let result = place.unpack(&[archive(&many)]);
    assert!(
        matches!(result, Err(UnpackError::TooManyEntries(100))),
        "{result:?}"
    );
    // Names and headers are read into memory: they are bounded more tightly.
    let name = vec![b'n'; 300 << 10];
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let result = place.unpack(&[archive(&[(kind, "x", "", &name)])]);
        assert!(
            matches!(result, Err(UnpackError::Entry { .. })),
            "{kind:?}: {result:?}"
        );
    }
    let deep = "d/".repeat(1000);
    let long: [Entry<'_>; 2] = [
        (EntryType::GNULongName, "x", "", deep.as_bytes()),
        (EntryType::Directory, "x", "", b""),
    ];
    assert!(place.unpack(&[archive(&long)]).is_err());
}

#[test]
fn broken_archives_are_errors() {
    let place = Place::new();
    let good = archive(&[(EntryType::Regular, "a", "", &[1; 2000])]);
    for layer in [
        good[..1000].to_vec(),
        b"\x1f\x8b garbage".to_vec(),
        b"\x28\xb5\x2f\xfd garbage".to_vec(),
        vec![7; 2048],
    ] {
        assert!(place.unpack(&[layer]).is_err());
    }
    // Neither devices nor pipes are made, and nothing of them is an error.
    let devices: [Entry<'_>; 3] = [
        (EntryType::Char, "null", "", b""),
        (EntryType::Block, "sda", "", b""),
        (EntryType::Fifo, "pipe", "", b""),
    ];
    let place = Place::new();
    place.unpack(&[archive(&devices)]).unwrap();
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 0);
}

#[test]
fn extended_names_count_and_files_replace_folders() {
    let place = Place::new();
    let pax = b"18 path=long/name\n";
    let lower: [Entry<'_>; 4] = [
        (EntryType::XHeader, "x", "", pax),
        (EntryType::Regular, "short", "", b"1"),
        (EntryType::Directory, "was/folder", "", b""),
        (EntryType::Regular, "was-file", "", b"1"),
    ];
    let upper: [Entry<'_>; 4] = [
        (EntryType::Regular, "was/folder", "", b"2"),
        (EntryType::Directory, "was-file", "", b""),
        (EntryType::Link, "hard", "long/name", b""),
        (EntryType::Regular, ".wh.nothing", "", b""),
    ];
    place.unpack(&[archive(&lower), archive(&upper)]).unwrap();
    assert_eq!(fs::read(place.root().join("hard")).unwrap(), b"1");
    assert_eq!(fs::read(place.root().join("was/folder")).unwrap(), b"2");
    assert!(place.root().join("was-file").is_dir());
    let escape: [Entry<'_>; 2] = [
        (EntryType::XHeader, "x", "", b"13 path=../x\n"),
        (EntryType::Regular, "short", "", b"1"),
    ];
    assert!(matches!(
        place.unpack(&[archive(&escape)]),
        Err(UnpackError::Escape(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_panic_or_escape(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Place::new().unpack(&[bytes]);
    }

    /// Names that artifacts give their files, among links that lead out.
    #[test]
    fn no_name_of_a_file_escapes(
        names in prop::collection::vec("(/|\\.\\./|\\./|out/|a/|b|secret|\\.|.)*", 0..4)
    ) {
        let place = Place::new();
        let links = archive(&[(EntryType::Symlink, "out", "..", &b""[..])]);
        let _ = place.unpack(&[links]);
        let content = place.root().join("content");
        fs::write(&content, "new").unwrap();
        let mut unpacker = Unpacker::whole(&place.root(), place.limits);
        for name in &names {
            let _ = unpacker.link(Path::new(name), &content);
        }
        place.unpack(&[]).unwrap();
    }

    /// Folders, files, links and whiteouts in any order, with few names so that they meet.
    #[test]
    fn no_order_of_entries_escapes(
        entries in prop::collection::vec(
            (
                prop::sample::select(vec![
                    EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link,
                ]),
                "(a|b|a/b|b/a/c|a/.wh.b|.wh.a|a/.wh..wh..opq|a/secret|b/../a|\\.\\./secret)",
                "(a|b|/|/a|\\.\\.|\\.\\./secret|\\.\\./\\.\\./secret|a/\\.\\./\\.\\.)",
            ),
            0..12,
        )
    ) {
        let entries: Vec<Entry<'_>> = entries
            .iter()
            .map(|(kind, name, link)| (*kind, name.as_str(), link.as_str(), &b""[..]))
            .collect();
        let half = entries.len() / 2;
        let _ = Place::new().unpack(&[archive(&entries[..half]), archive(&entries[half..])]);
    }
}

mod over {
    //! Layers of their own, as the kernel shows them mounted over each other.

    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt as _;

    /// Layers unpacked over each other, mounted by a real overlay file system where this may.
    struct Layers {
        dir: tempfile::TempDir,
        /// Lowest first.
        dirs: Vec<PathBuf>,
    }

    impl Layers {
        fn unpack(archives: &[Vec<u8>]) -> Result<Self, UnpackError> {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("secret"), "secret").unwrap();
            let mut dirs: Vec<PathBuf> = Vec::new();
            let limits = UnpackLimits {
                bytes_max: 1 << 20,
                entries_max: 100,
            };
            for (at, archive) in archives.iter().enumerate() {
                let root = dir.path().join(at.to_string());
                fs::create_dir(&root).unwrap();
                let file = dir.path().join("layer");
                fs::write(&file, archive).unwrap();
                let below = dirs.iter().rev().cloned().collect();
                let done = Unpacker::over(&root, limits, below).layer(&file);
                fs::remove_file(file).unwrap();
                assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
                done?;
                dirs.push(root);
            }
            Ok(Self { dir, dirs })
        }

        /// What the layers show together, by the rules of the overlay file system.
        fn tree(&self) -> BTreeMap<String, String> {
            let mut names: Vec<String> = Vec::new();
            for layer in &self.dirs {
                collect(layer, layer, &mut names);
            }
            let over = Unpacker::over(
                self.dir.path(),
                UnpackLimits::default(),
                self.dirs.iter().rev().cloned().collect(),
            );
            let shown = names.into_iter().filter_map(|name| {
                let parts: Vec<_> = name.split('/').map(std::ffi::OsString::from).collect();
                let (path, found) = over.below(&parts)?;
                Some((name, describe(&path, &found)))
            });
            shown.collect()
        }
    }

    fn collect(root: &Path, dir: &Path, names: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            names.push(name.to_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                collect(root, &path, names);
            }
        }
    }

    fn describe(path: &Path, found: &fs::Metadata) -> String {
        if found.is_symlink() {
            format!("-> {}", fs::read_link(path).unwrap().display())
        } else if found.is_dir() {
            "/".to_owned()
        } else {
            String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
        }
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn check(archives: &[Vec<Entry<'_>>], expected: &[&str]) {
        if !is_root() {
            // Whiteouts are devices and marks that only root can make.
            return;
        }
        let archives: Vec<_> = archives.iter().map(|a| archive(a)).collect();
        let layers = Layers::unpack(&archives).unwrap();
        let tree: Vec<_> = layers
            .tree()
            .iter()
            .map(|(name, is)| format!("{name} {is}"))
            .collect();
        assert_eq!(tree, expected);
    }

    #[test]
    fn whiteouts_hide_what_is_below() {
        use EntryType::{Directory, Regular, Symlink};
        let base: Vec<Entry<'_>> = vec![
            (Directory, "d", "", b""),
            (Regular, "d/a", "", b"1"),
            (Regular, "d/b", "", b"1"),
            (Regular, "f", "", b"1"),
            (Symlink, "l", "d", b""),
        ];
        check(
            &[base.clone(), vec![(Regular, "d/.wh.a", "", b"")]],
            &["d /", "d/b 1", "f 1", "l -> d"],
        );
        check(
            &[base.clone(), vec![(Regular, ".wh.d", "", b"")]],
            &["f 1", "l -> d"],
        );
        check(
            &[
                base.clone(),
                vec![
                    (Regular, "d/c", "", b"2"),
                    (Regular, "d/.wh..wh..opq", "", b""),
                ],
            ],
            &["d /", "d/c 2", "f 1", "l -> d"],
        );
        // A directory in the place of one that is hidden shows nothing of it.
        check(
            &[
                base.clone(),
                vec![
                    (Regular, ".wh.d", "", b""),
                    (Directory, "d", "", b""),
                    (Regular, "d/new", "", b"2"),
                ],
            ],
            &["d /", "d/new 2", "f 1", "l -> d"],
        );
        // Through a link of the layer below, and over a file.
        check(
            &[
                base,
                vec![(Regular, "l/a", "", b"2"), (Directory, "f", "", b"")],
            ],
            &["d /", "d/a 2", "d/b 1", "f /", "l -> d"],
        );
    }

    #[test]
    fn directories_that_an_archive_leaves_out_stay_as_they_are() {
        if !is_root() {
            return;
        }
        let lower = archive(&[(EntryType::Directory, "tmp", "", b"")]);
        let upper = archive(&[(EntryType::Regular, "tmp/x", "", b"1")]);
        let layers = Layers::unpack(&[lower, upper]).unwrap();
        let mode = |at: usize| fs::metadata(layers.dirs[at].join("tmp")).unwrap().mode();
        assert_eq!(mode(0) & 0o7777, 0o4777);
        assert_eq!(mode(0), mode(1));
    }

    #[test]
    fn hard_links_reach_into_lower_layers_and_never_out() {
        use EntryType::{Link, Regular, Symlink};
        check(
            &[
                vec![(Regular, "a", "", b"1")],
                vec![(Link, "b", "a", b""), (Link, "c", "b", b"")],
            ],
            &["a 1", "b 1", "c 1"],
        );
        if !is_root() {
            return;
        }
        for (lower, name) in [
            ((Symlink, "a", "../secret", b"" as &[u8]), "a"),
            ((Symlink, "a", "..", b""), "a/secret"),
            ((Symlink, "a", "/", b""), "a/secret"),
        ] {
            let archives = [archive(&[lower]), archive(&[(Link, "b", name, b"")])];
            if let Ok(layers) = Layers::unpack(&archives) {
                let found = layers.tree();
                assert_ne!(found.get("b").map(String::as_str), Some("secret"), "{name}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Layers mounted over each other show what the same layers show that are unpacked into
        /// one directory.
        #[test]
        fn the_same_tree_as_in_one_directory(
            layers in prop::collection::vec(
                prop::collection::vec(
                    (0usize..6, 0usize..8, 0usize..4), 1..5,
                ),
                1..4,
            )
        ) {
            if !is_root() {
                return Ok(());
            }
            const NAMES: [&str; 8] = ["a", "b", "a/x", "b/y", "a/x/z", "a/.wh.x", ".wh.b", "a/.wh..wh..opq"];
            const TARGETS: [&str; 4] = ["a", "/b", "a/x", "../b"];
            // As tools write them: a layer has no entry twice, and hides only what is below it.
            let mut written: Vec<Vec<u8>> = Vec::new();
            for layer in &layers {
                let mut seen = HashSet::new();
                let entries: Vec<Entry<'_>> = layer.iter().filter_map(|(kind, name, target)| {
                    let name = NAMES[*name];
                    let top = name.split('/').next().unwrap().trim_start_matches(".wh.");
                    if !seen.insert(top) {
                        return None;
                    }
                    Some::<Entry<'_>>(match kind {
                        _ if name.contains(".wh.") => (EntryType::Regular, name, "", b"" as &[u8]),
                        0 | 1 => (EntryType::Regular, name, "", &b"content"[..]),
                        2 | 3 => (EntryType::Directory, name, "", b""),
                        4 => (EntryType::Symlink, name, TARGETS[*target], b""),
                        _ => (EntryType::Regular, name, "", &b"other"[..]),
                    })
                }).collect();
                written.push(archive(&entries));
            }
            let place = Place::new();
            let one = place.unpack(&written);
            let over = Layers::unpack(&written);
            if let (Ok(()), Ok(over)) = (one, over) {
                let root = place.root();
                let mut names = Vec::new();
                collect(&root, &root, &mut names);
                let merged: BTreeMap<_, _> = names.into_iter().map(|name| {
                    let path = root.join(&name);
                    let found = path.symlink_metadata().unwrap();
                    let is = describe(&path, &found);
                    (name, is)
                }).collect();
                prop_assert_eq!(over.tree(), merged);
            }
        }
    }
}
