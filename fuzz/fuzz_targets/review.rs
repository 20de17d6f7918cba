//! Answers of admission webhooks: read or refused, and their patches applied.
#![no_main]

use apimachinery::review::{Answer, denial};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let Ok(review) = serde_json::from_slice(body) else {
        return;
    };
    if let Ok(answer) = Answer::read(&review, "u") {
        let _ = denial("hook.example.com", &answer.status);
        if let Some(patch) = answer.patch {
            let mut object = serde_json::json!({"metadata": {"name": "a"}, "spec": {"list": [1]}});
            let _ = apimachinery::patch::json_patch(&mut object, &patch);
        }
    }
});
