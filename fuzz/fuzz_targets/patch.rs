//! Patches: the first line is the object, the rest the patch; nothing panics.
#![no_main]

use apimachinery::GroupVersionKind;
use apimachinery::decode::{FieldValidation, MediaType, decode, parse};
use apimachinery::patch::{json_patch, merge_patch, strategic_merge_patch};
use apimachinery::schema::Schema;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let at = body.iter().position(|b| *b == b'\n').unwrap_or(body.len());
    let (object, patch) = body.split_at(at);
    let schema = Schema::builtin();
    let Some(ty) = schema.kind(&GroupVersionKind::new("", "v1", "Pod")) else {
        return;
    };
    let (Ok(pod), Ok(patch)) = (
        decode(schema, ty, MediaType::Json, object, FieldValidation::Ignore),
        parse(MediaType::Json, patch),
    ) else {
        return;
    };
    let _ = json_patch(&mut pod.value.clone(), &patch);
    merge_patch(&mut pod.value.clone(), &patch);
    let _ = strategic_merge_patch(schema, ty, &mut pod.value.clone(), &patch);
});
