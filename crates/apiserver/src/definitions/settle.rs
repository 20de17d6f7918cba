//! Accepts the names of definitions and establishes them: what upstream's naming and
//! establishing controllers do. [`plan`] decides, the loop writes.

use super::custom::is_true;
use super::{Definition, cleanup};
use crate::registry::Call;
use crate::registry::create::Tracking;
use crate::registry::update::{Part, modify};
use crate::row::Row;
use crate::server_state::Core;
use apimachinery::Status;
use lifecycle::Scope;
use serde_json::{Value, json};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Pause after a failed write (the store is full or closing).
const RETRY: Duration = Duration::from_secs(1);

/// Settles definitions in `scope`.
pub(crate) fn start(core: &Arc<Core>, scope: &Scope) {
    scope.spawn_cancellable(run(Arc::downgrade(core)));
}

async fn run(core: Weak<Core>) {
    let Some(definitions) = core.upgrade().map(|c| c.cache.definitions.clone()) else {
        return;
    };
    loop {
        let changed = definitions.changed.notified();
        loop {
            let Some(name) = definitions.unsettled.lock().pop_first() else {
                break;
            };
            let Some(core) = core.upgrade() else { return };
            if let Err(e) = settle(&core, &name).await
                && e.code != 404
            {
                tracing::warn!(error = %e, definition = name, "settling a definition");
                tokio::time::sleep(RETRY).await;
                definitions.look_at(&name);
            }
        }
        changed.await;
    }
}

async fn settle(core: &Arc<Core>, name: &str) -> Result<(), Status> {
    let Some(definition) = core.cache.definitions.named(name) else {
        return Ok(());
    };
    let row = own_row()?;
    let user = Core::own_user();
    let call = Call {
        subresource: "status",
        ..Call::own(core, &row, "", name, &user)
    };
    if definition.deleting {
        return cleanup::clean(&call, &definition).await;
    }
    let others = core.cache.definitions.of_group(&definition.names.group);
    let now = core.timestamp();
    let value = call.view(&*call.current().await?);
    if plan(&value, &others, &now).is_none() {
        return Ok(());
    }
    modify(&call, Part::Status, Tracking::Update, &|old| {
        let mut new = old.clone();
        if let Some(status) = plan(old, &others, &now) {
            new["status"] = status;
        }
        Ok(new)
    })
    .await
    .map(drop)
}

/// The row of definitions.
pub(super) fn own_row() -> Result<Row, Status> {
    Row::builtin(super::GROUP, "v1", super::PLURAL)
        .ok_or_else(|| Status::internal("no row for definitions"))
}

/// The status that a definition should have, given the others of its group; `None` when it
/// has it.
fn plan(value: &Value, others: &[Arc<Definition>], now: &str) -> Option<Value> {
    let asked = &value["spec"]["names"];
    let mut status = value["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let mut accepted = status["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let others: Vec<&Definition> = others
        .iter()
        .map(|d| &**d)
        .filter(|d| value["metadata"]["name"] != *d.name && d.accepted)
        .collect();
    let conflict = accept(asked, &mut accepted, &others);
    status["acceptedNames"] = accepted;
    match &conflict {
        None => set(
            &mut status,
            ("NamesAccepted", true, "NoConflicts", "no conflicts found"),
            now,
        ),
        Some((reason, name)) => {
            let message = format!("{name:?} is already in use");
            set(&mut status, ("NamesAccepted", false, reason, &message), now);
        }
    }
    if conflict.is_none() {
        let message = "the initial names have been accepted";
        if !is_true(&status, "Established") {
            let established = ("Established", true, "InitialNamesAccepted", message);
            set(&mut status, established, now);
        }
    } else if !is_true(&status, "Established") {
        let message = "not all names are accepted";
        set(
            &mut status,
            ("Established", false, "NotAccepted", message),
            now,
        );
    }
    (status != value["status"]).then_some(status)
}

/// Takes the names that nobody else has; the first that somebody has, with its reason.
fn accept(
    asked: &Value,
    accepted: &mut Value,
    others: &[&Definition],
) -> Option<(&'static str, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let is_resource = |name: &str| {
        others.iter().any(|d| {
            *d.names.plural == *name
                || *d.names.singular == *name
                || d.names.short_names.iter().any(|s| **s == *name)
        })
    };
    let is_kind = |name: &str| {
        let mut others = others.iter();
        others.any(|d| *d.names.kind == *name || *d.names.list_kind == *name)
    };
    let mut conflict = None;
    let mut take = |field: &str, taken: Option<String>, reason: &'static str| match taken {
        Some(name) => {
            conflict.get_or_insert((reason, name));
        }
        None => match asked.get(field) {
            Some(v) => accepted[field] = v.clone(),
            None => {
                accepted.as_object_mut().map(|m| m.remove(field));
            }
        },
    };
    let one = |field: &str, is: &dyn Fn(&str) -> bool| Some(text(&asked[field])).filter(|n| is(n));
    take("plural", one("plural", &is_resource), "PluralConflict");
    take(
        "singular",
        one("singular", &is_resource),
        "SingularConflict",
    );
    let short = asked["shortNames"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .find(|n| is_resource(n));
    take("shortNames", short, "ShortNamesConflict");
    take("kind", one("kind", &is_kind), "KindConflict");
    take("listKind", one("listKind", &is_kind), "ListKindConflict");
    take("categories", None, "");
    conflict
}

/// Sets a condition: type, status, reason, message.
pub(crate) fn set(status: &mut Value, condition: (&str, bool, &str, &str), now: &str) {
    let (kind, is, reason, message) = condition;
    let is = if is { "True" } else { "False" };
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else {
        return;
    };
    let made = json!({
        "type": kind, "status": is, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(c) if c["status"] == is && c["reason"] == reason && c["message"] == message => {}
        Some(c) => {
            let since = c["lastTransitionTime"].clone();
            let same = c["status"] == is;
            *c = made;
            if same && !since.is_null() {
                c["lastTransitionTime"] = since;
            }
        }
        None => list.push(made),
    }
}
