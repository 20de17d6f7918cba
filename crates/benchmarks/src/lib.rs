//! Nothing but a place for the benches of whole sites: they drive the binary that ships, as its
//! users do, and link none of it. Start with `benches/site.rs`.
