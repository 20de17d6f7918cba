//! Encryption at rest, read from the raw store. Behaviour from the documentation "Encrypting
//! Confidential Data at Rest" of upstream.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use serde_json::{Value, json};
use testkit::TestApi;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY: &str = "/registry/core/secrets/default/s";

/// Secrets under these keys, the first for writing; what is plain is read.
fn config(keys: &[(&str, u8)]) -> String {
    let keys: Vec<Value> = keys
        .iter()
        .map(|(name, byte)| {
            let secret = base64::engine::general_purpose::STANDARD.encode([*byte; 32]);
            json!({"name": name, "secret": secret})
        })
        .collect();
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"],
            "providers": [{"aesgcm": {"keys": keys}}, {"identity": {}}]}]})
    .to_string()
}

/// The same under these providers, a key each.
fn config_of(providers: &[(&str, &[u8])]) -> String {
    let providers: Vec<Value> = providers
        .iter()
        .map(|(provider, secret)| {
            let secret = base64::engine::general_purpose::STANDARD.encode(secret);
            json!({*provider: {"keys": [{"name": "one", "secret": secret}]}})
        })
        .collect();
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": providers}]})
    .to_string()
}

async fn raw(api: &TestApi, key: &str) -> Result<String> {
    let record = api.store()?.get(key, None).await?.context("a record")?;
    Ok(String::from_utf8_lossy(&record.value).into_owned())
}

/// In process only: it reads the store beside the server.
#[tokio::test]
async fn secrets_are_encrypted_in_the_store_and_keys_can_be_changed() -> Result<()> {
    let api = TestApi::start().await?;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    let made = api.call("POST", SECRETS, Some(&secret)).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    assert!(raw(&api, KEY).await?.contains("aGlkZGVu"));
    let restart = async |api: TestApi, keys: &[(&str, u8)]| {
        let text = config(keys);
        api.restart_with(move |c| c.encryption = Some(text)).await
    };
    let api = restart(api, &[("one", 1)]).await?;
    let read = async |api: &TestApi| -> Result<Value> {
        let path = format!("{SECRETS}/s");
        Ok(api.call("GET", &path, None).await?.json)
    };
    // What was there stays readable, and is encrypted when it is next written, changed or not.
    let same = read(&api).await?;
    assert_eq!(same["data"]["k"], "aGlkZGVu");
    let path = format!("{SECRETS}/s");
    let put = api.call("PUT", &path, Some(&same)).await?;
    assert_eq!(put.code, 200, "{}", put.text);
    let stored = raw(&api, KEY).await?;
    assert!(
        stored.starts_with("k8s:enc:aesgcm:v1:one:") && !stored.contains("Secret"),
        "{stored}"
    );
    // Encrypted already: nothing is written.
    let again = api.call("PUT", &path, Some(&put.json)).await?;
    assert_eq!(
        again.json["metadata"]["resourceVersion"],
        put.json["metadata"]["resourceVersion"]
    );
    // Watches, lists and whatever is not named are as ever.
    let mut watch = api.watch(&format!("{SECRETS}?watch=1"), &[]).await?;
    watch.next().await?;
    let other = json!({"metadata": {"name": "t"}, "stringData": {"k": "x"}});
    api.call("POST", SECRETS, Some(&other)).await?;
    let event = watch.next().await?.context("an event")?;
    assert_eq!(event["object"]["data"]["k"], "eA==", "{event}");
    let map = super::config_map("plain", "l");
    api.call("POST", super::CONFIG_MAPS, Some(&map)).await?;
    assert!(
        raw(&api, "/registry/core/configmaps/default/plain")
            .await?
            .contains("ConfigMap")
    );
    // A second key in front: old values are read, new ones are under it.
    let api = restart(api, &[("two", 2), ("one", 1)]).await?;
    assert_eq!(read(&api).await?["data"]["k"], "aGlkZGVu");
    let now = read(&api).await?;
    api.call("PUT", &path, Some(&now)).await?;
    assert!(raw(&api, KEY).await?.starts_with("k8s:enc:aesgcm:v1:two:"));
    let gone = api.call("DELETE", &path, None).await?;
    assert_eq!(gone.code, 200, "{}", gone.text);
    // Without the key of what is left the server says so, and does not start.
    let error = restart(api, &[("three", 3)]).await.err();
    let text = format!("{:?}", error.context("it started")?);
    assert!(
        text.contains("/registry/core/secrets/default/t")
            && text.contains("none of the keys that are configured encrypted it"),
        "{text}"
    );
    Ok(())
}

/// In process only: it reads the store beside the server.
#[tokio::test]
async fn values_go_from_one_provider_to_another() -> Result<()> {
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    let all: [(&str, &[u8]); 3] = [
        ("aesgcm", &[1; 16]),
        ("secretbox", &[2; 32]),
        ("aescbc", &[3; 24]),
    ];
    let text = config_of(&all[..1]);
    let mut api = TestApi::start_with(|c| c.encryption = Some(text)).await?;
    let made = api.call("POST", SECRETS, Some(&secret)).await?;
    anyhow::ensure!(made.code == 201, "{}", made.text);
    let path = format!("{SECRETS}/s");
    for pair in all.windows(2) {
        let (before, now) = (pair[0], pair[1]);
        let text = config_of(&[now, before]);
        api = api.restart_with(|c| c.encryption = Some(text)).await?;
        let read = api.call("GET", &path, None).await?.json;
        assert_eq!(read["data"]["k"], "aGlkZGVu");
        let put = api.call("PUT", &path, Some(&read)).await?;
        assert_eq!(put.code, 200, "{}", put.text);
        let stored = raw(&api, KEY).await?;
        let prefix = format!("k8s:enc:{}:v1:one:", now.0);
        assert!(
            stored.starts_with(&prefix) && !stored.contains("Secret"),
            "{stored}"
        );
    }
    let text = config_of(&all[2..]);
    api = api.restart_with(|c| c.encryption = Some(text)).await?;
    let read = api.call("GET", &path, None).await?.json;
    assert_eq!(read["data"]["k"], "aGlkZGVu");
    api.close().await
}
