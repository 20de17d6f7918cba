//! Certificate signing requests say who asked: the server writes it, whatever the client sent.

use super::Operation;
use crate::registry::Call;
use serde_json::{Value, json};

pub(super) fn mutate(call: &Call<'_>, operation: Operation, new: &mut Value, old: Option<&Value>) {
    if call.row.known() != "certificatesigningrequests" {
        return;
    }
    if !new["spec"].is_object() {
        new["spec"] = json!({});
    }
    match (operation, old) {
        (Operation::Create, _) => {
            let user = call.user;
            let said = [
                ("username", json!(user.name)),
                ("uid", json!(user.uid)),
                ("groups", json!(user.groups)),
                ("extra", json!(user.extra)),
            ];
            for (name, value) in said {
                let empty = value == "" || value == json!({});
                match new["spec"].as_object_mut() {
                    Some(spec) if empty => drop(spec.remove(name)),
                    Some(spec) => drop(spec.insert(name.to_owned(), value)),
                    None => {}
                }
            }
        }
        // What is asked, and by whom, stays.
        (_, Some(old)) => new["spec"] = old["spec"].clone(),
        _ => {}
    }
}
