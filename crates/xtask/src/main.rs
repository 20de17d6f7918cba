//! Development tasks.

mod guests;

fn main() -> anyhow::Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask is two below the root");
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("guests") => guests::run(root, &args.collect::<Vec<_>>()),
        other => anyhow::bail!("no task is called {}", other.unwrap_or("\"\"")),
    }
}
