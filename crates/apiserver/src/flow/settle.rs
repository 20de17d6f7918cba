//! Tells of each flow schema whether its priority level is there (`Dangling`).

use super::GROUP;
use crate::definitions::set_condition;
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

/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// Looks at flow schemas as they change, in `scope`.
pub(crate) fn start(core: &Arc<Core>, scope: &Scope) {
    scope.spawn_cancellable(run(Arc::downgrade(core)));
}

async fn run(core: Weak<Core>) {
    let kinds = core.upgrade().and_then(|c| {
        let named = |plural| c.cache.named(GROUP, plural);
        Some((named("flowschemas")?, named("prioritylevelconfigurations")?))
    });
    let Some((schemas, levels)) = kinds else {
        return;
    };
    let (mut a, mut b) = (schemas.subscribe(), levels.subscribe());
    loop {
        a.mark_unchanged();
        b.mark_unchanged();
        let mut failed = false;
        for object in schemas.all() {
            let Some(core) = core.upgrade() else { return };
            let value = object.value();
            let level = value["spec"]["priorityLevelConfiguration"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let there = levels.get("", &level).is_some();
            let now = core.timestamp();
            let made = told(&value, &level, there, &now);
            if made == value["status"] {
                continue;
            }
            if let Err(e) = write(&core, object.name(), &|old| told(old, &level, there, &now)).await
                && e.code != 404
            {
                tracing::warn!(error = %e, schema = object.name(), "settling a flow schema");
                failed = true;
            }
        }
        if failed {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let ended = tokio::select! {
            r = a.changed() => r.is_err(),
            r = b.changed() => r.is_err(),
        };
        if ended {
            return;
        }
    }
}

fn told(object: &Value, level: &str, there: bool, now: &str) -> Value {
    let mut status = object["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let (reason, end) = if there {
        ("Found", "it exists")
    } else {
        ("NotFound", "there is no such object")
    };
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and {end}"
    );
    set_condition(&mut status, ("Dangling", !there, reason, &message), now);
    status
}

async fn write(
    core: &Arc<Core>,
    name: &str,
    status: &(dyn Fn(&Value) -> Value + Send + Sync),
) -> Result<(), Status> {
    let row = Row::builtin(GROUP, "v1", "flowschemas")
        .ok_or_else(|| Status::internal("no row for flow schemas"))?;
    let user = Core::own_user();
    let call = Call {
        subresource: "status",
        manager: "api-priority-and-fairness-config-consumer-v1",
        ..Call::own(core, &row, "", name, &user)
    };
    modify(&call, Part::Status, Tracking::Update, &|old| {
        let mut new = old.clone();
        new["status"] = status(old);
        Ok(new)
    })
    .await
    .map(drop)
}
