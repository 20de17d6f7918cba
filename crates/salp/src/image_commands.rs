//! stub
#[derive(Clone, Debug, clap::Args)]
pub struct ImageArgs {}
pub fn image(_: ImageArgs) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("no")
}
