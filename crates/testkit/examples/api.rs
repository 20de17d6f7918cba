//! An API server alone, to try clients on: `cargo run -p testkit --example api`.
//! Prints the path of an administrator's kubeconfig and runs until Ctrl-C.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let api = testkit::TestApi::start().await?;
    let path = api.kubeconfig("kubernetes-admin", &["system:masters"])?;
    #[allow(clippy::print_stdout, reason = "this program's output")]
    {
        println!("export KUBECONFIG={}", path.display());
    }
    tokio::signal::ctrl_c().await?;
    api.close().await
}
