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
