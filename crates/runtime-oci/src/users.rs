//! Who a container runs as: the pod's word, else the image's, names looked up in the image's own
//! files, which are only ever read inside its root directory.

use runtime::LinuxContainer;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Of an image's `passwd` and `group` so much is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A user by numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        }
    }
}

/// Why nobody is found to run as; the words are upstream's where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// Looks in an image's root directory.
pub(crate) fn find(linux: &LinuxContainer, root: &Path) -> Result<Identity, UserError> {
    let (passwd, group) = (read(root, "etc/passwd"), read(root, "etc/group"));
    identity(linux, &passwd, &group)
}

fn identity(linux: &LinuxContainer, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let image = linux.image_user.as_deref().unwrap_or_default();
    let (user, image_group) = match image.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image, None),
    };
    let entry = |matches: &dyn Fn(&[&str]) -> bool| {
        let lines = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
        lines.into_iter().find(|f| f.len() >= 6 && matches(f))
    };
    let number = |text: &str| text.parse::<u32>().ok();
    let found = match linux.user {
        Some(uid) => entry(&|f| number(f[2]) == Some(uid)),
        None if user.is_empty() => entry(&|f| f[2] == "0"),
        None => match number(user) {
            Some(uid) => entry(&|f| number(f[2]) == Some(uid)),
            None => entry(&|f| f[0] == user),
        },
    };
    let uid = match (linux.user, &found) {
        (Some(uid), _) => uid,
        (None, _) if user.is_empty() => 0,
        (None, found) => number(user)
            .or_else(|| number(found.as_ref()?[2]))
            .ok_or_else(|| UserError::NoUser(user.to_owned()))?,
    };
    let own_group = found.as_ref().and_then(|f| number(f[3]));
    let gid = match (linux.group, image_group.filter(|_| linux.user.is_none())) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match number(name) {
            Some(gid) => gid,
            None => group_number(group, name).ok_or_else(|| UserError::NoGroup(name.to_owned()))?,
        },
        (None, None) => own_group.unwrap_or(0),
    };
    let mut groups = linux.groups.clone();
    if let Some(name) = found.as_ref().map(|f| f[0]) {
        groups.extend(memberships(group, name));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = found.map(|f| f[5].to_owned()).filter(|h| !h.is_empty());
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

fn group_number(group: &str, name: &str) -> Option<u32> {
    let mut lines = group.lines().map(|l| l.split(':').collect::<Vec<_>>());
    lines.find(|f| f.len() >= 3 && f[0] == name)?[2]
        .parse()
        .ok()
}

fn memberships<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let fields: Vec<_> = line.split(':').collect();
        let members = fields.get(3)?;
        let member = members.split(',').any(|m| m == user);
        fields[2].parse().ok().filter(|_| member)
    })
}

/// Nothing where there is no such file, or a link leads out of the root.
fn read(root: &Path, name: &str) -> String {
    let open = || -> std::io::Result<String> {
        let dir = File::open(root)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&dir, name, flags, Mode::empty(), inside)?;
        let mut text = String::new();
        File::from(file)
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    open().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:4:web,till\nstaff:x:50:\n";

    fn check(change: impl FnOnce(&mut LinuxContainer), expected: &str) {
        let mut linux = LinuxContainer::default();
        change(&mut linux);
        let shown = match identity(&linux, PASSWD, GROUP) {
            Ok(i) => format!("{}:{} {:?} {}", i.uid, i.gid, i.groups, i.home),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn users_are_found_in_the_image() {
        let image =
            |user: &'static str| move |l: &mut LinuxContainer| l.image_user = Some(user.to_owned());
        check(|_| {}, "0:0 [] /root");
        check(image("web"), "33:34 [4] /srv");
        check(image("33"), "33:34 [4] /srv");
        check(image("web:staff"), "33:50 [4] /srv");
        check(image("1000:7"), "1000:7 [] /");
        check(
            image("nobody"),
            "unable to find user nobody: no matching entries in passwd file",
        );
        check(
            image("web:none"),
            "unable to find group none: no matching entries in group file",
        );
        check(
            |l| {
                l.image_user = Some("web:staff".into());
                l.user = Some(1000);
                l.groups = vec![9, 8];
            },
            "1000:0 [8, 9] /",
        );
        check(|l| (l.user, l.group) = (Some(33), Some(1)), "33:1 [4] /srv");
    }
}
