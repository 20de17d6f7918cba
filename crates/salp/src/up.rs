//! stub
pub fn up(args: crate::cli::UpArgs) -> anyhow::Result<std::process::ExitCode> {
    let _ = crate::config::site(&args)?;
    anyhow::bail!("no")
}
pub fn add_local_route(_: std::net::Ipv4Addr, _: u8) -> anyhow::Result<()> {
    Ok(())
}
