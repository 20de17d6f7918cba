//! `/healthz`, `/livez`, `/readyz`, `/version`.

use crate::http::request::Query;
use crate::http::respond::{self, Body};
use crate::server_state::Core;
use http::Response;
use serde_json::json;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

/// Answers a health path; `None` for other paths.
pub(crate) async fn answer(core: &Core, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let endpoint = parts.next()?;
    if !matches!(endpoint, "healthz" | "livez" | "readyz") {
        return None;
    }
    let single = parts.next();
    let mut checks: Vec<(&str, bool)> = vec![("ping", true), ("log", true)];
    checks.push(("etcd", core.store.revision().await.is_ok()));
    checks.push((
        "poststarthook/rbac/bootstrap-roles",
        core.ready.load(Ordering::Acquire),
    ));
    if endpoint == "readyz" {
        checks.push(("informer-sync", core.cache.applied() > 0));
        checks.push(("shutdown", !core.stop.is_cancelled()));
    }
    if let Some(name) = single {
        return Some(match checks.iter().find(|(n, _)| *n == name) {
            Some((_, true)) => respond::text(200, "ok"),
            Some((_, false)) => respond::text(500, "internal server error: not ok"),
            None => respond::text(404, "404 page not found\n"),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    checks.retain(|(n, _)| !excluded.contains(n));
    let ok = checks.iter().all(|(_, good)| *good);
    let mut text = String::new();
    for (name, good) in &checks {
        let _ = if *good {
            writeln!(text, "[+]{name} ok")
        } else {
            writeln!(text, "[-]{name} failed: reason withheld")
        };
    }
    Some(match (ok, query.flag("verbose")) {
        (true, false) => respond::text(200, "ok"),
        (true, true) => respond::text(200, format!("{text}{endpoint} check passed\n")),
        (false, _) => respond::text(500, format!("{text}{endpoint} check failed\n")),
    })
}

/// The `/version` object.
pub(crate) fn version() -> serde_json::Value {
    let base = api::constants::KUBERNETES_VERSION;
    let mut numbers = base.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    json!({
        "major": major, "minor": minor,
        "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": minor,
        "gitVersion": format!("{base}+salp"),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    })
}

/// The architecture in Go's words, which clients compare with.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
