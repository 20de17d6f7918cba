//! runtime-wasm
