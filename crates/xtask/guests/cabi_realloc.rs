//! Not part of xtask: compiled for programs that the preview-1 adapter turns into components.
//!
//! The adapter takes its memory from the program's allocator if there is this export, and else
//! by growing the memory. Debian's C library (2022) takes all memory that is there at its first
//! allocation for its own, also what the adapter grew before.
//!
//! Without `core`, which has no ready-made build for this target: these are the traits that a
//! function can't do without.
#![feature(no_core, lang_items)]
#![no_core]
#![allow(internal_features)]

#[lang = "pointee_sized"]
pub trait PointeeSized {}
#[lang = "meta_sized"]
pub trait MetaSized: PointeeSized {}
#[lang = "sized"]
pub trait Sized: MetaSized {}
#[lang = "copy"]
pub trait Copy {}
impl Copy for usize {}

unsafe extern "C" {
    fn realloc(old: *mut u8, len: usize) -> *mut u8;
}

// What `realloc` gives is aligned for any type, so the wanted alignment is not looked at.
#[unsafe(no_mangle)]
unsafe extern "C" fn cabi_realloc(old: *mut u8, _: usize, _: usize, len: usize) -> *mut u8 {
    unsafe { realloc(old, len) }
}
