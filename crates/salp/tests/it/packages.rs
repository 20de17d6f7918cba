//! Every packaging of a Wasm image.
