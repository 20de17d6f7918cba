//! HTTP words: what a request asks for, which encodings it speaks, how an answer is made.
//! Knows no kinds and no store.

pub(crate) mod negotiate;
pub(crate) mod request;
pub(crate) mod respond;
