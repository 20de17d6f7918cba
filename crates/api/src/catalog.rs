//! The rows of the resource table, group by group in discovery's order.
//!
//! A row states facts only; what a kind *does* is in `defaults`, `strategy`,
//! `validate` and `columns`, which rows point to. Start with [`rows`].

mod cluster;
mod core;
mod workloads;

use crate::{Column, Resource, Scale, Subresource, columns, names};
use apimachinery::status::FieldError;
use serde_json::Value;
use std::sync::LazyLock;

/// All rows.
pub(crate) fn rows() -> &'static [Resource] {
    static ROWS: LazyLock<Vec<Resource>> = LazyLock::new(|| {
        [
            core::CORE,
            cluster::API_REGISTRATION,
            workloads::APPS,
            core::EVENTS,
            cluster::AUTHENTICATION,
            cluster::AUTHORIZATION,
            workloads::AUTOSCALING,
            workloads::BATCH,
            cluster::CERTIFICATES,
            workloads::NETWORKING,
            workloads::POLICY,
            cluster::RBAC,
            cluster::STORAGE,
            cluster::ADMISSION_REGISTRATION,
            cluster::API_EXTENSIONS,
            cluster::SCHEDULING,
            cluster::COORDINATION,
            cluster::NODE,
            workloads::DISCOVERY,
            cluster::RESOURCE,
            cluster::FLOW_CONTROL,
            cluster::METRICS,
        ]
        .concat()
    });
    &ROWS
}

pub(crate) const STANDARD_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const GET_LIST: &[&str] = &["get", "list"];
const UPDATE: &[&str] = &["update"];
const CREATE_GET: &[&str] = &["create", "get"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const ALL: &[&str] = &["all"];
const API_EXTENSIONS: &[&str] = &["api-extensions"];

/// A row with a type's name made from its package, version and kind.
macro_rules! row {
    ($package:literal, $group:literal, $version:literal, $kind:literal, $singular:literal, $plural:literal) => {
        $crate::catalog::base(
            $group,
            $version,
            $kind,
            $singular,
            $plural,
            concat!("io.k8s.api.", $package, ".", $version, ".", $kind),
        )
    };
}
pub(crate) use row;

/// A namespaced, stored kind with the standard verbs and nothing special.
const fn base(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    singular: &'static str,
    plural: &'static str,
    type_name: &'static str,
) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: STANDARD_VERBS,
        stored: true,
        status: false,
        status_on_create: false,
        scale: None,
        subresources: &[],
        generation: false,
        type_name,
        stored_as: None,
        default: unchanged,
        prepare_create: unchanged,
        prepare_update: unchanged_update,
        validate: no_errors,
        validate_update: no_update_errors,
        validate_create: no_errors,
        validate_status: no_update_errors,
        warnings: crate::warnings::none,
        deprecation: None,
        selectable: &[],
        name_column: true,
        columns: columns::AGE,
        row: columns::age_only,
        validate_name: names::subdomain,
    }
}

impl Resource {
    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    const fn in_all(mut self) -> Self {
        self.categories = ALL;
        self
    }

    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    const fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    const fn keeps_status_on_create(mut self) -> Self {
        self.status_on_create = true;
        self
    }

    const fn with_generation(mut self) -> Self {
        self.generation = true;
        self
    }

    const fn with_scale(mut self) -> Self {
        self.scale = Some(Scale {
            spec_replicas: "spec.replicas",
            status_replicas: "status.replicas",
        });
        self
    }

    /// Answers a question and is not stored.
    const fn review(mut self) -> Self {
        self.verbs = CREATE;
        self.stored = false;
        self
    }

    const fn subresources(mut self, list: &'static [Subresource]) -> Self {
        self.subresources = list;
        self
    }

    const fn selectable(mut self, fields: &'static [&'static str]) -> Self {
        self.selectable = fields;
        self
    }

    const fn named(mut self, check: fn(&str) -> Result<(), String>) -> Self {
        self.validate_name = check;
        self
    }

    const fn defaults(mut self, f: fn(&mut Value)) -> Self {
        self.default = f;
        self
    }

    const fn prepares(mut self, create: fn(&mut Value), update: fn(&mut Value, &Value)) -> Self {
        self.prepare_create = create;
        self.prepare_update = update;
        self
    }

    const fn validates(
        mut self,
        whole: fn(&Value) -> Vec<FieldError>,
        update: fn(&Value, &Value) -> Vec<FieldError>,
    ) -> Self {
        self.validate = whole;
        self.validate_update = update;
        self
    }

    const fn validates_create(mut self, new: fn(&Value) -> Vec<FieldError>) -> Self {
        self.validate_create = new;
        self
    }

    const fn validates_status(mut self, f: fn(&Value, &Value) -> Vec<FieldError>) -> Self {
        self.validate_status = f;
        self
    }

    const fn warns(mut self, warnings: crate::warnings::Warn) -> Self {
        self.warnings = warnings;
        self
    }

    const fn deprecated(mut self, told: &'static str) -> Self {
        self.deprecation = Some(told);
        self
    }

    const fn without_name_column(mut self) -> Self {
        self.name_column = false;
        self
    }

    const fn prints(
        mut self,
        columns: &'static [Column],
        row: fn(&Value, i64) -> Vec<Value>,
    ) -> Self {
        self.columns = columns;
        self.row = row;
        self
    }
}

const fn sub(
    name: &'static str,
    gvk: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, gvk, verbs }
}

fn unchanged(_: &mut Value) {}
fn unchanged_update(_: &mut Value, _: &Value) {}
fn no_errors(_: &Value) -> Vec<FieldError> {
    Vec::new()
}
fn no_update_errors(_: &Value, _: &Value) -> Vec<FieldError> {
    Vec::new()
}
