//! Which program a command names, among the files that a container's guest sees.
//!
//! As a shell would look: a path is taken as it is or from the working directory, a bare name
//! also at the root and in `$PATH`; `.wasm` may be left out. Files are opened below the
//! directories that the guest was given and nowhere else, whatever links say.

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::path::Path;
use wasm::Preopen;

/// Largest program that is read; larger ones are no programs.
const PROGRAM_MAX_BYTES: u64 = 256 << 20;

/// Programs that an error names; further ones are counted as "…".
const NAMED_MAX: usize = 12;

/// Files and directories that are looked at to name programs.
const LOOKED_AT_MAX: usize = 2000;

/// How deep below each directory.
const DEPTH_MAX: usize = 4;

/// What a command names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The container's own program.
    Own,
    /// A file.
    File {
        content: Bytes,
        /// It is the image's, which pods can't change.
        of_image: bool,
    },
}

/// Why it names nothing that runs; the code is a shell's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotFound {
    pub(super) code: i32,
    pub(super) message: String,
}

/// What a container's guest sees.
pub(super) struct Seen<'a> {
    pub(super) container: &'a str,
    /// Of the container's own program.
    pub(super) args: &'a [String],
    /// Its variable `PATH`.
    pub(super) path: &'a str,
    pub(super) cwd: Option<&'a str>,
    pub(super) preopens: &'a [Preopen],
    /// Whether its own program runs to an end and so can be run once more.
    pub(super) own_runs: bool,
}

impl Seen<'_> {
    /// Finds a command's program.
    pub(super) fn find(&self, command: &str) -> Result<Found, NotFound> {
        let named = |code, why: &str| NotFound {
            code,
            message: format!("{command:?}: {why}"),
        };
        for path in candidates(command, self.cwd.unwrap_or("/"), self.path) {
            match self.read(&path) {
                Ok(Some((content, of_image))) => return Ok(Found::File { content, of_image }),
                Ok(None) => {}
                Err(why) => return Err(named(126, &why.to_string())),
            }
        }
        if self.is_own(command) {
            if self.own_runs {
                return Ok(Found::Own);
            }
            let why = "the container's own program serves requests, it runs to no end";
            return Err(named(126, &format!("{why}; {}", self.others())));
        }
        let why = format!(
            "not found in container {:?}; {}",
            self.container,
            self.others()
        );
        Err(named(127, &why))
    }

    /// Whether it is what the container's own program is called by.
    fn is_own(&self, command: &str) -> bool {
        let Some(own) = self.args.first() else {
            return command == self.container;
        };
        let bare = |name: &str| {
            let file = name.rsplit('/').next().unwrap_or(name);
            file.strip_suffix(".wasm").unwrap_or(file).to_owned()
        };
        command == own || (!command.contains('/') && bare(command) == bare(own))
    }

    /// A program's file; none if there is no such file.
    fn read(&self, path: &str) -> io::Result<Option<(Bytes, bool)>> {
        let Some((preopen, rest)) = self.below(path) else {
            return Ok(None);
        };
        let file = match open_below(&preopen.host, rest) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(None);
        }
        let mut content = Vec::new();
        (&file)
            .take(PROGRAM_MAX_BYTES + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > PROGRAM_MAX_BYTES {
            return Err(io::Error::other(format!("{path} is too large")));
        }
        if !(content.starts_with(b"\0asm") || path.ends_with(".wat")) {
            return Err(io::Error::other(format!("{path} is no WebAssembly")));
        }
        Ok(Some((content.into(), preopen.guest == "/")))
    }

    /// The directory that a path is in for the guest, and the rest of the path.
    fn below<'p>(&self, path: &'p str) -> Option<(&Preopen, &'p str)> {
        let fitting = self.preopens.iter().filter_map(|preopen| {
            let guest = preopen.guest.trim_end_matches('/');
            let rest = path.strip_prefix(guest)?.strip_prefix('/')?;
            Some((guest.len(), preopen, rest))
        });
        let nearest = fitting.max_by_key(|(length, _, _)| *length);
        nearest.map(|(_, preopen, rest)| (preopen, rest))
    }

    /// What could be run instead, in words.
    fn others(&self) -> String {
        let mut names = BTreeSet::new();
        let mut looks = LOOKED_AT_MAX;
        for preopen in self.preopens {
            list(preopen, "", DEPTH_MAX, &mut looks, &mut names);
        }
        if self.own_runs
            && let Some(own) = self.args.first()
        {
            names.insert(own.clone());
        }
        if names.is_empty() {
            return "it has no other program: a WebAssembly command in its image or in a volume \
                    would be one"
                .to_owned();
        }
        let more = if names.len() > NAMED_MAX { ", …" } else { "" };
        let names: Vec<_> = names.into_iter().take(NAMED_MAX).collect();
        format!("it has {}{more}", names.join(", "))
    }
}

/// Absolute paths to look at, in order.
fn candidates(command: &str, cwd: &str, path: &str) -> Vec<String> {
    let mut dirs = vec![cwd];
    if !command.contains('/') {
        dirs.push("/");
        dirs.extend(path.split(':').filter(|dir| dir.starts_with('/')));
    }
    let mut found: Vec<String> = Vec::new();
    for dir in dirs {
        let whole = if command.starts_with('/') {
            command.to_owned()
        } else {
            format!("{dir}/{command}")
        };
        let Some(whole) = normal(&whole) else {
            continue;
        };
        let with_suffix = format!("{whole}.wasm");
        for path in [whole, with_suffix] {
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

/// A path without `.`, `..` and double slashes; none above the root, and none for the root.
fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("/{}", parts.join("/")))
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [
        io::ErrorKind::NotFound,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::InvalidFilename,
        // A link that leads out.
        io::ErrorKind::CrossesDevices,
    ];
    // Links that lead in a circle, or where none may be followed.
    let circle = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP);
    circle || absent.contains(&error.kind())
}

/// Opens a file below a directory; absolute links start at the directory.
fn open_below(dir: &Path, rest: &str) -> io::Result<File> {
    // A pipe without a writer must not hold anybody up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let root = File::open(dir)?;
    let below = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root.as_fd(), rest, flags, Mode::empty(), below) {
        Ok(file) => Ok(file.into()),
        // Older kernels, and those that emulate one.
        Err(rustix::io::Errno::NOSYS) => {
            let root = dir.canonicalize()?;
            let path = root.join(rest).canonicalize()?;
            if !path.starts_with(&root) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let flags = flags | OFlags::NOFOLLOW;
            Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Notes the programs below a directory; `below` is empty or begins with a slash.
fn list(
    preopen: &Preopen,
    below: &str,
    depth: usize,
    looks: &mut usize,
    names: &mut BTreeSet<String>,
) {
    let dir = preopen.host.join(below.trim_start_matches('/'));
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if *looks == 0 {
            return;
        }
        *looks -= 1;
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else {
            continue;
        };
        // How Kubernetes keeps versions of a ConfigMap.
        if name.starts_with("..") {
            continue;
        }
        let path = format!("{below}/{name}");
        if kind.is_dir() && depth > 1 {
            list(preopen, &path, depth - 1, looks, names);
        }
        let is_program = name.ends_with(".wasm") && !kind.is_dir();
        // A link may lead out.
        let opens = || open_below(&preopen.host, path.trim_start_matches('/')).is_ok();
        if is_program && (!kind.is_symlink() || opens()) {
            names.insert(format!("{}{path}", preopen.guest.trim_end_matches('/')));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[test]
    fn a_command_is_looked_for_where_a_shell_would() {
        let check = |command: &str, cwd: &str, path: &str, expect: Expect| {
            expect.assert_eq(&candidates(command, cwd, path).join(" "));
        };
        check("/bin/ls", "/", "", expect!["/bin/ls /bin/ls.wasm"]);
        check("./ls", "/app", "/bin", expect!["/app/ls /app/ls.wasm"]);
        check(
            "ls.wasm",
            "/app",
            "/bin:relative",
            expect![
                "/app/ls.wasm /app/ls.wasm.wasm /ls.wasm /ls.wasm.wasm /bin/ls.wasm /bin/ls.wasm.wasm"
            ],
        );
        check("../../etc/ls", "/app", "", expect![""]);
        check("a/../b", "/", "", expect!["/b /b.wasm"]);
        check("/", "/", "", expect![""]);
    }

    struct Files {
        dir: tempfile::TempDir,
        preopens: Vec<Preopen>,
    }

    impl Files {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in ["image/bin", "image/app", "volume", "outside"] {
                std::fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            for path in [
                "image/bin/tool.wasm",
                "image/app/main.wasm",
                "volume/own.wasm",
                "outside/x.wasm",
            ] {
                std::fs::write(dir.path().join(path), b"\0asm").unwrap();
            }
            std::fs::write(dir.path().join("image/bin/script"), "#!/bin/sh\n").unwrap();
            std::os::unix::fs::symlink("/bin/tool.wasm", dir.path().join("image/app/link"))
                .unwrap();
            let outside = dir.path().join("outside/x.wasm");
            std::os::unix::fs::symlink(outside, dir.path().join("volume/escape.wasm")).unwrap();
            std::os::unix::fs::symlink("../outside/x.wasm", dir.path().join("volume/up.wasm"))
                .unwrap();
            let preopen = |host: &str, guest: &str| Preopen {
                host: dir.path().join(host),
                guest: guest.to_owned(),
                read_only: true,
            };
            let preopens = vec![preopen("image", "/"), preopen("volume", "/data")];
            Self { dir, preopens }
        }

        fn find(&self, command: &str, own_runs: bool) -> String {
            let args = ["/app/main.wasm".to_owned()];
            let seen = Seen {
                container: "main",
                args: &args,
                path: "/usr/bin:/bin",
                cwd: Some("/app"),
                preopens: &self.preopens,
                own_runs,
            };
            match seen.find(command) {
                Ok(Found::Own) => "own".to_owned(),
                Ok(Found::File { of_image, .. }) if of_image => "of the image".to_owned(),
                Ok(Found::File { .. }) => "of a volume".to_owned(),
                Err(NotFound { code, message }) => format!("{code} {message}"),
            }
        }
    }

    #[test]
    fn programs_are_found_in_what_the_guest_sees_and_nowhere_else() {
        let files = Files::new();
        for (command, found) in [
            ("tool", "of the image"),
            ("tool.wasm", "of the image"),
            ("/bin/tool", "of the image"),
            ("../bin/tool", "of the image"),
            ("./main", "of the image"),
            ("link", "of the image"),
            ("/data/own", "of a volume"),
            ("/data/own.wasm", "of a volume"),
        ] {
            assert_eq!(files.find(command, true), found, "{command}");
        }
        for command in [
            "/data/escape",
            "/data/up",
            "/data/../../outside/x",
            "/bin",
            "own",
        ] {
            let said = files.find(command, true);
            assert!(said.starts_with("127 "), "{command}: {said}");
        }
        expect![[r#"127 "sh": not found in container "main"; it has /app/main.wasm, /bin/tool.wasm, /data/own.wasm"#]]
            .assert_eq(&files.find("sh", true));
        expect![[r#"126 "script": /bin/script is no WebAssembly"#]]
            .assert_eq(&files.find("script", true));
        drop(files.dir);
    }

    #[test]
    fn a_container_of_one_program_can_run_it_once_more() {
        let args = ["job".to_owned()];
        let seen = |own_runs| Seen {
            container: "main",
            args: &args,
            path: "",
            cwd: None,
            preopens: &[],
            own_runs,
        };
        assert_eq!(seen(true).find("job"), Ok(Found::Own));
        assert_eq!(seen(true).find("job.wasm"), Ok(Found::Own));
        expect![[r#""job": the container's own program serves requests, it runs to no end; it has no other program: a WebAssembly command in its image or in a volume would be one"#]]
            .assert_eq(&seen(false).find("job").unwrap_err().message);
        expect![[r#""ls": not found in container "main"; it has job"#]]
            .assert_eq(&seen(true).find("ls").unwrap_err().message);
    }
}
