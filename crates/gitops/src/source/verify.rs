//! Signatures of commits and tags, checked by the programs that people sign with: `gpg` for
//! OpenPGP and `ssh-keygen` for SSH keys. Only the keys of the given Secret count.

use super::SourceError;
use super::git::write_private;
use gix::ObjectId;
use gix::bstr::ByteSlice as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Who may sign, and what must be signed.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    head: bool,
    tag: bool,
    pgp: Vec<Vec<u8>>,
    ssh: Vec<String>,
}

impl Keys {
    /// From a Secret whose values are armoured OpenPGP keys or SSH public keys.
    pub(crate) fn new(
        mode: Option<&str>,
        data: BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, SourceError> {
        let (head, tag) = match mode.unwrap_or("HEAD") {
            "HEAD" | "head" | "" => (true, false),
            "Tag" => (false, true),
            "TagAndHEAD" => (true, true),
            other => return Err(SourceError::Spec(format!("unknown verify mode {other}"))),
        };
        let mut keys = Self {
            head,
            tag,
            pgp: Vec::new(),
            ssh: Vec::new(),
        };
        for bytes in data.into_values() {
            let text = String::from_utf8_lossy(&bytes);
            if text.contains("BEGIN PGP PUBLIC KEY BLOCK") {
                keys.pgp.push(bytes);
            } else {
                let lines = text.lines().map(str::trim);
                keys.ssh.extend(
                    lines
                        .filter(|l| {
                            l.starts_with("ssh-") || l.starts_with("ecdsa-") || l.starts_with("sk-")
                        })
                        .map(str::to_owned),
                );
            }
        }
        if keys.pgp.is_empty() && keys.ssh.is_empty() {
            return Err(SourceError::Signature(
                "the secret holds no public key".to_owned(),
            ));
        }
        Ok(keys)
    }
}

/// Checks a commit and the tag that led to it; what was found, for a condition.
pub(crate) fn check(
    keys: &Keys,
    repo: &gix::Repository,
    named: ObjectId,
    commit: ObjectId,
) -> Result<String, SourceError> {
    let mut found = Vec::new();
    if keys.tag {
        if named == commit {
            return Err(SourceError::Signature(
                "the revision is no annotated tag".to_owned(),
            ));
        }
        let object = repo.find_object(named).map_err(unreadable)?;
        let (payload, signature) = split_tag(&object.data)
            .ok_or_else(|| SourceError::Signature(format!("tag {named} is not signed")))?;
        valid(keys, payload, signature)?;
        found.push(format!("tag {named}"));
    }
    if keys.head {
        let object = repo.find_object(commit).map_err(unreadable)?;
        let (payload, signature) = split_commit(&object.data)
            .ok_or_else(|| SourceError::Signature(format!("commit {commit} is not signed")))?;
        valid(keys, &payload, &signature)?;
        found.push(format!("commit {commit}"));
    }
    Ok(format!("verified signature of {}", found.join(" and ")))
}

fn unreadable(error: impl std::error::Error) -> SourceError {
    SourceError::Signature(error.to_string())
}

/// A commit without its signature, and that.
fn split_commit(data: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let end = data.find(b"\n\n")? + 1;
    let (header, rest) = data.split_at(end);
    let mut payload = Vec::with_capacity(data.len());
    let mut signature = Vec::new();
    let mut inside = false;
    for line in header.lines_with_terminator() {
        if let Some(first) = line.strip_prefix(b"gpgsig ") {
            inside = true;
            signature.extend_from_slice(first);
        } else if let Some(more) = line.strip_prefix(b" ").filter(|_| inside) {
            signature.extend_from_slice(more);
        } else {
            inside = false;
            payload.extend_from_slice(line);
        }
    }
    payload.extend_from_slice(rest);
    (!signature.is_empty()).then_some((payload, signature))
}

/// A tag without its signature, and that.
fn split_tag(data: &[u8]) -> Option<(&[u8], &[u8])> {
    [
        &b"-----BEGIN PGP SIGNATURE-----"[..],
        b"-----BEGIN SSH SIGNATURE-----",
    ]
    .iter()
    .find_map(|mark| data.rfind(mark))
    .map(|at| data.split_at(at))
}

fn valid(keys: &Keys, payload: &[u8], signature: &[u8]) -> Result<(), SourceError> {
    let broken = |e: std::io::Error| SourceError::Signature(format!("write key: {e}"));
    let dir = tempfile::tempdir().map_err(broken)?;
    let at = |name: &str| dir.path().join(name);
    write_exact(&at("payload"), payload).map_err(broken)?;
    write_exact(&at("signature"), signature).map_err(broken)?;
    if signature.starts_with(b"-----BEGIN SSH SIGNATURE-----") {
        let signers: String = keys.ssh.iter().map(|k| format!("signer {k}\n")).collect();
        write_private(&at("signers"), signers.as_bytes()).map_err(broken)?;
        let mut command = Command::new("ssh-keygen");
        command.args(["-Y", "verify", "-I", "signer", "-n", "git", "-f"]);
        command.arg(at("signers")).arg("-s").arg(at("signature"));
        let payload = std::fs::File::open(at("payload")).map_err(broken)?;
        return run("ssh-keygen", command.stdin(payload));
    }
    if keys.pgp.is_empty() {
        return Err(SourceError::Signature(
            "it is signed by OpenPGP and the secret holds no such key".to_owned(),
        ));
    }
    std::fs::create_dir(at("home")).map_err(broken)?;
    restrict(&at("home")).map_err(broken)?;
    let gpg = || {
        let mut command = Command::new("gpg");
        command
            .args([
                "--batch",
                "--no-tty",
                "--quiet",
                "--no-autostart",
                "--trust-model",
                "always",
            ])
            .arg("--homedir")
            .arg(at("home"))
            .stdin(Stdio::null());
        command
    };
    for (n, key) in keys.pgp.iter().enumerate() {
        let file = at(&format!("key{n}"));
        write_exact(&file, key).map_err(broken)?;
        run("gpg", gpg().arg("--import").arg(file))?;
    }
    let mut verify = gpg();
    verify
        .arg("--verify")
        .arg(at("signature"))
        .arg(at("payload"));
    run("gpg", &mut verify)
}

fn write_exact(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::write(path, bytes)
}

fn restrict(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Runs a program that says by its exit code whether a signature is valid.
fn run(name: &str, command: &mut Command) -> Result<(), SourceError> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| {
            SourceError::Signature(format!(
                "run {name}: {e}; install it to have signatures checked"
            ))
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let text = String::from_utf8_lossy(said);
    let line = text.lines().last().unwrap_or("it is not valid").trim();
    Err(SourceError::Signature(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_taken_out_of_its_commit() {
        let commit =
            b"tree 1\nparent 2\ngpgsig -----BEGIN\n a\n \n -----END\nencoding x\n\nmessage\n";
        let (payload, signature) = split_commit(commit).unwrap();
        assert_eq!(
            payload.as_bstr(),
            "tree 1\nparent 2\nencoding x\n\nmessage\n"
        );
        assert_eq!(signature.as_bstr(), "-----BEGIN\na\n\n-----END\n");
        assert!(split_commit(b"tree 1\n\nmessage\n").is_none());
    }

    #[test]
    fn a_secret_without_keys_is_refused() {
        let data = BTreeMap::from([("x".to_owned(), b"hello".to_vec())]);
        assert!(Keys::new(None, data.clone()).is_err());
        assert!(Keys::new(Some("Both"), data).is_err());
    }
}
