//! The real helm with a chart whose kind is of several versions, which a webhook converts.

use super::webhooks::{converted, serve, versions};
use anyhow::Result;
use serde_json::Value;
use testkit::TestApi;

const TEMPLATE: &str = r#"
apiVersion: stable.example.com/{{ .Values.version }}
kind: CronTab
metadata: {name: {{ .Release.Name }}}
{{- if eq .Values.version "v1" }}
spec: {hostPort: "{{ .Values.host }}:{{ .Values.port }}"}
{{- else }}
spec: {host: {{ .Values.host }}, port: {{ .Values.port | quote }}}
{{- end }}
"#;

struct Helm {
    config: std::path::PathBuf,
    chart: std::path::PathBuf,
}

impl Helm {
    async fn run(&self, verb: &str, more: &[&str]) -> Result<String> {
        let mut helm = tokio::process::Command::new(testkit::tool("helm")?);
        helm.args([verb, "tab"]);
        if matches!(verb, "install" | "upgrade") {
            helm.arg(&self.chart);
        }
        let out = helm
            .args(more)
            .env("KUBECONFIG", &self.config)
            .env("HOME", self.config.with_extension("home"))
            .output()
            .await?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        anyhow::ensure!(out.status.success(), "helm {verb}: {text}");
        Ok(text)
    }
}

/// The object in both versions.
async fn specs(api: &TestApi) -> Result<(Value, Value)> {
    let of = async |version: &str| -> Result<Value> {
        let path = format!("/apis/stable.example.com/{version}/namespaces/default/crontabs/tab");
        Ok(api.call("GET", &path, None).await?.json["spec"].clone())
    };
    Ok((of("v1").await?, of("v2").await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_goes_from_one_version_of_a_kind_to_another_and_back() -> Result<()> {
    let api = TestApi::start().await?;
    let server = serve(|_, request| converted(request)).await?;
    let chart = api.dir().join("chart");
    for dir in ["crds", "templates"] {
        std::fs::create_dir_all(chart.join(dir))?;
    }
    let write = |file: &str, text: &str| std::fs::write(chart.join(file), text);
    write("Chart.yaml", "{apiVersion: v2, name: tabs, version: 0.1.0}")?;
    write("values.yaml", "{version: v1, host: a, port: 1}")?;
    write("templates/tab.yaml", TEMPLATE)?;
    write("crds/tabs.yaml", &versions(&server, "v1").to_string())?;
    let helm = Helm {
        config: api.kubeconfig("root", &["system:masters"])?,
        chart: chart.clone(),
    };
    helm.run("install", &[]).await?;
    let both = |host: &str, port: &str| {
        let v1 = serde_json::json!({"hostPort": format!("{host}:{port}")});
        (v1, serde_json::json!({"host": host, "port": port}))
    };
    assert_eq!(specs(&api).await?, both("a", "1"));
    // The new version of the chart writes the new version of the kind.
    helm.run("upgrade", &["--set=version=v2,port=2"]).await?;
    assert_eq!(specs(&api).await?, both("a", "2"));
    helm.run("upgrade", &["--set=version=v2,port=2,host=b"])
        .await?;
    assert_eq!(specs(&api).await?, both("b", "2"));
    helm.run("rollback", &["1"]).await?;
    assert_eq!(specs(&api).await?, both("a", "1"));
    helm.run("uninstall", &[]).await?;
    assert_eq!(specs(&api).await?, (Value::Null, Value::Null));
    api.close().await
}
