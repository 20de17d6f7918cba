//! Expressions: the first line is the source, the rest an object. Whatever compiles runs, within
//! its limit.
#![no_main]

use apimachinery::cel::{Activation, CALL_COST_MAX, Env, Program, Type, Value};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let at = body.iter().position(|b| *b == b'\n').unwrap_or(body.len());
    let (source, object) = body.split_at(at);
    let Ok(source) = std::str::from_utf8(source) else {
        return;
    };
    let object: serde_json::Value = serde_json::from_slice(object).unwrap_or_default();
    let env = Env::new().with("self", Type::Dyn);
    let Ok(program) = Program::compile(&env, source) else {
        return;
    };
    let activation = Activation::new().with("self", Value::of(&object, &Type::Dyn));
    let (value, spent) = program.run(&activation, CALL_COST_MAX);
    assert!(spent <= CALL_COST_MAX || value.is_err());
});
