//! `cargo xtask schema`: writes the table of all built-in types, `builtin.bin`, and their
//! descriptions, `builtin.docs`, which crate `apimachinery` carries.
//!
//! Three published sources of one Kubernetes version meet in [`model`]:
//! * the client `kubectl` (field names, types, protobuf numbers, what is a pointer, patch
//!   strategies: [`goreflect`]),
//! * JSON schemas (required fields, list and map types, descriptions, kinds: [`jsonschema`]),
//! * protobuf bindings (numbers of the two groups that `kubectl` does not carry, and a second
//!   opinion on all others: [`prost`]).
//!
//! Where two sources speak of one thing and disagree, the task fails. What none of them says
//! is in [`supplement`]. [`table`] writes the result.

mod goreflect;
mod jsonschema;
mod model;
mod prost;
mod supplement;
mod table;

use crate::fetch;
use anyhow::{Context as _, Result, ensure};

/// Version of the JSON schemas; `kubectl` is of the same minor version.
const SCHEMAS: &str = "kubernetes-validate==1.37.0";
/// Protobuf bindings.
const BINDINGS: (&str, &str) = ("k8s-pb", "0.9.0");

pub(crate) fn run() -> Result<()> {
    let package = fetch::python_package(SCHEMAS)?;
    let definitions =
        package.join("kubernetes_validate/kubernetes-json-schema/v1.37.0-local/_definitions.json");
    let definitions = jsonschema::read(&std::fs::read(&definitions)?)?;
    println!("{} JSON schemas", definitions.len());

    let clients = fetch::kubernetes_clients()?;
    let structs = goreflect::structs(&std::fs::read(clients.join("kubectl/kubectl"))?)
        .context("read the types of kubectl")?;
    println!("{} Go structs", structs.len());

    let messages = prost::read(&fetch::crate_source(BINDINGS.0, BINDINGS.1)?.join("src"))?;
    println!("{} protobuf messages", messages.len());

    let model = model::build(&definitions, &structs, &messages)?;
    let written = table::write(&model)?;
    let schema = apimachinery::schema::Schema::from_table(&written.table)
        .context("read back the table just written")?;
    for def in model.structs.values() {
        ensure!(
            schema.by_name(&def.name).is_some(),
            "{} got lost on the way",
            def.name
        );
    }
    let dir = fetch::root().join("crates/apimachinery/src/schema");
    std::fs::write(dir.join("builtin.bin"), &written.table)?;
    std::fs::write(dir.join("builtin.docs"), &written.docs)?;
    println!(
        "{} structs, {} fields, {} kinds: {} bytes, descriptions {} bytes",
        model.structs.len(),
        model
            .structs
            .values()
            .map(|s| s.fields.len())
            .sum::<usize>(),
        model.kinds.len(),
        written.table.len(),
        written.docs.len(),
    );
    Ok(())
}
