//! Paths and operations of a group-version's resources.

use super::ResourcePaths;
use super::components::Components;
use crate::gvk::{GroupVersion, GroupVersionKind};
use serde_json::{Map, Value, json};

const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
/// Those of custom resources.
const CUSTOM_PATCH_TYPES: [&str; 3] = [PATCH_TYPES[0], PATCH_TYPES[1], PATCH_TYPES[2]];

/// Query parameters: name, type, description.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = (
    "pretty",
    "string",
    "If 'true', then the output is pretty printed.",
);
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "With 'All', every stage is processed and nothing is stored.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name of the actor or entity that makes these changes; required for apply.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What happens to unknown and duplicate fields: Ignore, Warn or Strict.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Whether an apply takes over fields that other managers own.",
);

const WRITE: &[Parameter] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const READ: &[Parameter] = &[PRETTY];
const CONNECT: &[Parameter] = &[];
const DELETE: &[Parameter] = &[
    PRETTY,
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "How long the object has to end; 0 means at once.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete an object that can't be read.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy.",
    ),
    (
        "propagationPolicy",
        "string",
        "What happens to dependents: Orphan, Background or Foreground.",
    ),
];
const LIST: &[Parameter] = &[
    PRETTY,
    (
        "allowWatchBookmarks",
        "boolean",
        "Whether a watch may send events of type BOOKMARK.",
    ),
    (
        "continue",
        "string",
        "Where a paged list goes on, from the page before.",
    ),
    (
        "fieldSelector",
        "string",
        "Selects objects by their fields.",
    ),
    (
        "labelSelector",
        "string",
        "Selects objects by their labels.",
    ),
    ("limit", "integer", "How many objects a page has at most."),
    (
        "resourceVersion",
        "string",
        "The version that is to be listed, or from which to watch.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: Exact or NotOlderThan.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Whether a watch starts with all objects that there are.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "How long a list or watch may take.",
    ),
    (
        "watch",
        "boolean",
        "Watch for changes instead of listing once.",
    ),
];

/// One operation before it is written.
struct Operation<'a> {
    method: &'static str,
    /// `x-kubernetes-action`.
    action: &'static str,
    parameters: &'static [Parameter],
    gvk: &'a GroupVersionKind,
    body: Option<Value>,
    patch: bool,
    answer: Value,
}

/// Adds the paths of one resource.
pub(super) fn add(
    out: &mut Map<String, Value>,
    components: &mut Components<'_>,
    gv: &GroupVersion,
    resource: &ResourcePaths<'_>,
) {
    let root = if gv.group.is_empty() {
        format!("/api/{}", gv.version)
    } else {
        format!("/apis/{gv}")
    };
    let plural = resource.plural;
    let collection = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    let item = format!("{collection}/{{name}}");
    let gvk = gv.kind(resource.kind);
    let list = gv.kind(format!("{}List", resource.kind));
    let custom = components.is_custom(&gvk);
    let path = Paths {
        gv,
        resource,
        custom,
    };
    let has = |verb: &str| resource.verbs.contains(&verb);
    let object = components.kind(&gvk);
    let options = gv.kind("DeleteOptions");
    let status = GroupVersionKind::new("", "v1", "Status");
    if has("list") {
        let list = components.kind(&list);
        let get = op("get", "list", LIST, &gvk, list);
        if resource.namespaced {
            path.insert(out, &format!("{root}/{plural}"), "", &get);
        }
        path.insert(out, &collection, "", &get);
    }
    if has("create") {
        let post = op("post", "post", WRITE, &gvk, object.clone()).body(object.clone());
        path.insert(out, &collection, "", &post);
    }
    if has("deletecollection") {
        let body = components.kind(&options);
        let answer = components.kind(&status);
        let delete = op("delete", "deletecollection", DELETE, &gvk, answer).body(body);
        path.insert(out, &collection, "", &delete);
    }
    if has("get") {
        path.insert(
            out,
            &item,
            "",
            &op("get", "get", READ, &gvk, object.clone()),
        );
    }
    if has("update") {
        let put = op("put", "put", WRITE, &gvk, object.clone()).body(object.clone());
        path.insert(out, &item, "", &put);
    }
    if has("patch") {
        let patch = op("patch", "patch", PATCH, &gvk, object.clone()).patch(components.patch());
        path.insert(out, &item, "", &patch);
    }
    if has("delete") {
        let body = components.kind(&options);
        let answer = components.kind(&status);
        let delete = op("delete", "delete", DELETE, &gvk, answer).body(body);
        path.insert(out, &item, "", &delete);
    }
    for (name, (group, version, kind)) in resource.subresources {
        let gvk = GroupVersionKind::new(*group, *version, *kind);
        subresource(
            out,
            components,
            &path,
            &format!("{item}/{name}"),
            name,
            &gvk,
        );
    }
}

fn subresource(
    out: &mut Map<String, Value>,
    components: &mut Components<'_>,
    path: &Paths<'_>,
    at: &str,
    name: &str,
    gvk: &GroupVersionKind,
) {
    let text = || json!({"type": "string"});
    match name {
        "log" => path.insert(out, at, name, &op("get", "get", READ, gvk, text())),
        "exec" | "attach" | "portforward" | "proxy" => {
            for method in ["get", "post"] {
                path.insert(out, at, name, &op(method, "connect", CONNECT, gvk, text()));
            }
        }
        "binding" | "eviction" | "token" => {
            let object = components.kind(gvk);
            let post = op("post", "post", WRITE, gvk, object.clone()).body(object);
            path.insert(out, at, name, &post);
        }
        "finalize" => {
            let object = components.kind(gvk);
            let put = op("put", "put", WRITE, gvk, object.clone()).body(object);
            path.insert(out, at, name, &put);
        }
        _ => {
            let object = components.kind(gvk);
            let get = op("get", "get", READ, gvk, object.clone());
            let put = op("put", "put", WRITE, gvk, object.clone()).body(object.clone());
            let patch = op("patch", "patch", PATCH, gvk, object).patch(components.patch());
            for operation in [get, put, patch] {
                path.insert(out, at, name, &operation);
            }
        }
    }
}

fn op<'a>(
    method: &'static str,
    action: &'static str,
    parameters: &'static [Parameter],
    gvk: &'a GroupVersionKind,
    answer: Value,
) -> Operation<'a> {
    Operation {
        method,
        action,
        parameters,
        gvk,
        body: None,
        patch: false,
        answer,
    }
}

impl Operation<'_> {
    fn body(mut self, schema: Value) -> Self {
        self.body = Some(schema);
        self
    }

    fn patch(mut self, schema: Value) -> Self {
        self.patch = true;
        self.body(schema)
    }
}

struct Paths<'a> {
    gv: &'a GroupVersion,
    resource: &'a ResourcePaths<'a>,
    /// Nobody knows how to merge its lists: kubectl reads here which patches it may send.
    custom: bool,
}

impl Paths<'_> {
    fn insert(
        &self,
        out: &mut Map<String, Value>,
        path: &str,
        sub: &str,
        operation: &Operation<'_>,
    ) {
        let item = out
            .entry(path)
            .or_insert_with(|| json!({"parameters": path_parameters(path)}));
        let parameters: Vec<Value> = operation
            .parameters
            .iter()
            .map(|(name, ty, description)| {
                json!({
                    "name": name, "in": "query", "description": description,
                    "schema": {"type": ty, "uniqueItems": true},
                })
            })
            .collect();
        let mut value = json!({
            "operationId": self.id(path, sub, operation),
            "tags": [tag(self.gv)],
            "responses": {"200": {
                "description": "OK",
                "content": {"application/json": {"schema": operation.answer}},
            }},
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {
                "group": operation.gvk.group,
                "kind": operation.gvk.kind,
                "version": operation.gvk.version,
            },
        });
        if !parameters.is_empty() {
            value["parameters"] = parameters.into();
        }
        if let Some(body) = &operation.body {
            let types: &[&str] = match (operation.patch, self.custom) {
                (true, false) => &PATCH_TYPES,
                (true, true) => &CUSTOM_PATCH_TYPES,
                (false, _) => &["*/*"],
            };
            let content: Map<String, Value> = types
                .iter()
                .map(|t| ((*t).to_owned(), json!({"schema": body})))
                .collect();
            value["requestBody"] = json!({"content": content});
            if operation.action != "delete" && operation.action != "deletecollection" {
                value["requestBody"]["required"] = true.into();
            }
        }
        item[operation.method] = value;
    }

    /// Unique within the document, in upstream's style: `patchAppsV1NamespacedDeploymentStatus`.
    fn id(&self, path: &str, sub: &str, operation: &Operation<'_>) -> String {
        let verb = match operation.action {
            "get" => "read",
            "post" => "create",
            "put" => "replace",
            "connect" if operation.method == "get" => "connectGet",
            "connect" => "connectPost",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let namespaced = path.contains("/namespaces/{namespace}/");
        let scope = if namespaced { "Namespaced" } else { "" };
        let all = if self.resource.namespaced && !namespaced {
            "ForAllNamespaces"
        } else {
            ""
        };
        format!(
            "{verb}{}{}{scope}{}{}{all}",
            capital(&group_name(self.gv)),
            capital(&self.gv.version),
            self.resource.kind,
            capital(sub)
        )
    }
}

fn group_name(gv: &GroupVersion) -> String {
    if gv.group.is_empty() {
        return "core".to_owned();
    }
    let short = gv.group.strip_suffix(".k8s.io").unwrap_or(&gv.group);
    let mut words = short.split(['.', '-']);
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| all + &capital(word))
}

fn tag(gv: &GroupVersion) -> String {
    format!("{}_{}", group_name(gv), gv.version)
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| {
        c.to_ascii_uppercase().to_string() + chars.as_str()
    })
}

fn path_parameters(path: &str) -> Vec<Value> {
    ["namespace", "name"]
        .into_iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| {
            json!({
                "name": name, "in": "path", "required": true,
                "schema": {"type": "string", "uniqueItems": true},
            })
        })
        .collect()
}
