//! Profiles of the machine that confine containers: AppArmor's, that the kernel has loaded, and
//! seccomp's, that are files in the form that the OCI runtime specification has for them.

use runtime::AppArmor;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Of a seccomp profile so much is read.
const PROFILE_BYTES_MAX: u64 = 1 << 20;
/// What of a seccomp profile is passed on.
const SECCOMP_FIELDS: [&str; 6] = [
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "syscalls",
    "listenerMetadata",
];
/// Names under which engines load their usual profile, the first that is there.
const USUAL_PROFILES: [&str; 4] = [
    "salp-default",
    "cri-containerd.apparmor.d",
    "containers-default",
    "docker-default",
];

/// Why a container can't be confined as it asks; the words are upstream's where it has some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error("Cannot enforce AppArmor: AppArmor is not enabled on the host")]
    NoAppArmor,
    #[error("apparmor profile not found {0}")]
    NoProfile(String),
    #[error("cannot load seccomp profile {:?}", .0.display())]
    ReadSeccomp(PathBuf, #[source] io::Error),
    #[error("decoding seccomp profile failed {:?}: {why}", .path.display())]
    DecodeSeccomp { path: PathBuf, why: String },
}

/// The name of the profile that the kernel is told.
pub(crate) fn apparmor(wanted: &AppArmor) -> Result<Option<String>, ConfineError> {
    if *wanted == AppArmor::Unconfined {
        return Ok(None);
    }
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles");
    let enabled = enabled.is_ok_and(|text| text.trim() == "Y");
    choose(wanted, enabled, &loaded.unwrap_or_default())
}

fn choose(wanted: &AppArmor, enabled: bool, loaded: &str) -> Result<Option<String>, ConfineError> {
    let is_loaded = |name: &str| {
        let names = loaded.lines().filter_map(|line| line.rsplit_once(" ("));
        names.into_iter().any(|(known, _)| known == name)
    };
    let usual = USUAL_PROFILES.into_iter().find(|name| is_loaded(name));
    match wanted {
        AppArmor::Unconfined => Ok(None),
        AppArmor::Usual => Ok(usual.filter(|_| enabled).map(str::to_owned)),
        _ if !enabled => Err(ConfineError::NoAppArmor),
        AppArmor::RuntimeDefault => usual
            .map(|name| Some(name.to_owned()))
            .ok_or_else(|| ConfineError::NoProfile(USUAL_PROFILES[0].to_owned())),
        AppArmor::Localhost(name) if is_loaded(name) => Ok(Some(name.clone())),
        AppArmor::Localhost(name) => Err(ConfineError::NoProfile(name.clone())),
    }
}

/// A seccomp profile of the machine, as `linux.seccomp` has it.
pub(crate) fn seccomp(path: &Path) -> Result<Value, ConfineError> {
    let failed = |source| ConfineError::ReadSeccomp(path.to_owned(), source);
    let file = fs::File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    let read = file.take(PROFILE_BYTES_MAX).read_to_end(&mut text);
    read.map_err(failed)?;
    parse(&text).map_err(|why| ConfineError::DecodeSeccomp {
        path: path.to_owned(),
        why,
    })
}

fn parse(text: &[u8]) -> Result<Value, String> {
    let profile: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !profile["defaultAction"].is_string() {
        return Err("it states no defaultAction".to_owned());
    }
    let mut found = json!({});
    for field in SECCOMP_FIELDS {
        if let Some(value) = profile.get(field).filter(|value| !value.is_null()) {
            found[field] = value.clone();
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_asked_for_is_there_or_refused() {
        let loaded = "docker-default (enforce)\nown (web) (complain)\n";
        let check = |wanted: AppArmor, enabled: bool, expected: &str| {
            let shown = match choose(&wanted, enabled, loaded) {
                Ok(name) => format!("{name:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{wanted:?}");
        };
        let local = |name: &str| AppArmor::Localhost(name.to_owned());
        let none = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        check(AppArmor::Usual, false, "None");
        check(AppArmor::Usual, true, "Some(\"docker-default\")");
        check(AppArmor::RuntimeDefault, false, none);
        check(AppArmor::RuntimeDefault, true, "Some(\"docker-default\")");
        check(AppArmor::Unconfined, false, "None");
        check(local("own (web)"), true, "Some(\"own (web)\")");
        check(local("own"), true, "apparmor profile not found own");
        check(local("own"), false, none);
    }

    #[test]
    fn a_seccomp_profile_is_passed_on() {
        let text = br#"{"defaultAction": "SCMP_ACT_ALLOW", "comment": "x",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#;
        let expected = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse(b"[]").unwrap_err(), "it states no defaultAction");
    }

    proptest! {
        #[test]
        fn whatever_a_profile_says_nothing_else_is_passed_on(text in ".{0,64}", action in ".{0,8}") {
            let _ = parse(text.as_bytes());
            let own = json!({"defaultAction": action, "extra": text});
            prop_assert_eq!(parse(own.to_string().as_bytes()), Ok(json!({"defaultAction": action})));
        }
    }
}
