//! Tokens of an OpenID Connect issuer, over HTTPS. Behaviour from the documentation
//! "Authenticating", "OpenID Connect Tokens" and `test/integration/apiserver/oidc` of upstream.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use parking_lot::Mutex;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use testkit::{Pki, TestApi};

/// An issuer of the test's own.
struct Issuer {
    url: String,
    ca: String,
    keys: Arc<Mutex<Vec<(String, EcdsaKeyPair)>>>,
    /// How often its keys were asked for.
    asked: Arc<AtomicUsize>,
    scope: Scope,
}

fn new_key() -> Result<EcdsaKeyPair> {
    let random = ring::rand::SystemRandom::new();
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
    let made = made.map_err(|_| anyhow::anyhow!("no randomness"))?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random);
    key.map_err(|e| anyhow::anyhow!("{e}"))
}

impl Issuer {
    async fn start() -> Result<Self> {
        let pki = Pki::new()?;
        let chain = CertificateDer::pem_slice_iter(pki.serving.cert.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(pki.serving.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
        let keys = Arc::new(Mutex::new(vec![("first".to_owned(), new_key()?)]));
        let (asked, scope) = (Arc::<AtomicUsize>::default(), Scope::new());
        let (connections, own) = (scope.clone(), url.clone());
        let (told, count) = (keys.clone(), asked.clone());
        scope.spawn_cancellable(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, own, told, count) =
                    (acceptor.clone(), own.clone(), told.clone(), count.clone());
                let service = hyper::service::service_fn(
                    move |r: http::Request<hyper::body::Incoming>| {
                        let value = if r.uri().path() == "/keys" {
                            count.fetch_add(1, Ordering::SeqCst);
                            json!({"keys": told.lock().iter().map(|(id, k)| jwk(id, k)).collect::<Vec<_>>()})
                        } else {
                            json!({"issuer": own, "jwks_uri": format!("{own}/keys")})
                        };
                        let body = Full::new(Bytes::from(value.to_string()));
                        async move { anyhow::Ok(http::Response::new(body)) }
                    },
                );
                connections.spawn_cancellable(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let http = hyper::server::conn::http1::Builder::new();
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Ok(Self {
            url,
            ca: pki.ca_cert,
            keys,
            asked,
            scope,
        })
    }

    /// A token by its newest key.
    fn token(&self, claims: &Value) -> Result<String> {
        let keys = self.keys.lock();
        let (id, key) = keys.last().ok_or_else(|| anyhow::anyhow!("no key"))?;
        let header = json!({"alg": "ES256", "kid": id});
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = key
            .sign(&ring::rand::SystemRandom::new(), signed.as_bytes())
            .map_err(|_| anyhow::anyhow!("sign"))?;
        Ok(format!(
            "{signed}.{}",
            URL_SAFE_NO_PAD.encode(signature.as_ref())
        ))
    }
}

fn jwk(id: &str, key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": id,
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])})
}

/// What a TokenReview says of a token.
async fn review(api: &TestApi, token: &str, audiences: &[&str]) -> Result<Value> {
    let body = json!({"spec": {"token": token, "audiences": audiences}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = api.call("POST", path, Some(&body)).await?;
    anyhow::ensure!(answer.code == 201, "{}", answer.text);
    Ok(answer.json["status"].clone())
}

/// Who a token is, over the network: its name, or the code of the refusal.
async fn who(api: &TestApi, token: &str) -> Result<Value> {
    let kubectl = testkit::tool("kubectl")?;
    let ca = api.dir().join("server.ca");
    std::fs::write(&ca, &api.pki.ca_cert)?;
    let out = tokio::process::Command::new(kubectl)
        .args(["auth", "whoami", "-o", "json", "--token", token, "--server"])
        .arg(api.url())
        .arg("--certificate-authority")
        .arg(&ca)
        .env("HOME", api.dir())
        .env("KUBECONFIG", "/dev/null")
        .output()
        .await?;
    if !out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    let review: Value = serde_json::from_slice(&out.stdout)?;
    Ok(review["status"]["userInfo"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_an_issuer_are_believed_as_the_configuration_says() -> Result<()> {
    let issuer = Issuer::start().await?;
    let text = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer.url, "audiences": ["salp", "other"],
                "audienceMatchPolicy": "MatchAny", "certificateAuthority": issuer.ca},
            "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"}],
            "claimMappings": {"username": {"claim": "sub", "prefix": "id:"},
                "groups": {"expression": "claims.roles.map(r, 'id:' + r)"},
                "extra": [{"key": "example.com/shop", "valueExpression": "claims.shop"}]},
            "userValidationRules": [{"expression": "user.username != 'id:mallory'", "message": "not her"}],
        }]})
    .to_string();
    let api = TestApi::start_with(|c| c.authentication = Some(text)).await?;
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iss": issuer.url, "sub": "anna", "aud": ["salp"], "exp": now + 600,
        "hd": "example.com", "roles": ["tills"], "shop": "7"});
    // Nobody has been asked before there is a token.
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 0);
    let user = who(&api, &issuer.token(&claims)?).await?;
    assert_eq!(
        user,
        json!({"username": "id:anna", "groups": ["id:tills", "system:authenticated"],
            "extra": {"example.com/shop": ["7"]}})
    );
    let with = |key: &str, value: Value| {
        let mut c = claims.clone();
        c[key] = value;
        issuer.token(&c)
    };
    for token in [
        with("exp", (now - 1).into())?,
        with("aud", "elsewhere".into())?,
        with("hd", "example.org".into())?,
        with("sub", "mallory".into())?,
        with("sub", "".into())?,
        format!("{}x", issuer.token(&claims)?),
        // Of no issuer that is known.
        with("iss", "https://elsewhere.example.com".into())?,
    ] {
        let refused = who(&api, &token).await?;
        let text = refused.as_str().unwrap_or_default();
        assert!(
            text.contains("Unauthorized") || text.contains("must be logged in"),
            "{refused}"
        );
    }
    // ServiceAccounts' tokens are believed as before.
    super::default_account(&api).await?;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = api.call("POST", path, Some(&json!({"spec": {}}))).await?;
    let token = made.json["status"]["token"].as_str().unwrap_or_default();
    let user = who(&api, token).await?;
    assert_eq!(user["username"], "system:serviceaccount:default:default");
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
    issuer.scope.close().await;
    // Its keys are known: it need not be there.
    let user = who(&api, &issuer.token(&claims)?).await?;
    assert_eq!(user["username"], "id:anna");
    api.close().await
}

// k8s.io/kubernetes/pkg/registry/authentication/tokenreview and
// `WrapAudienceAgnosticToken` of k8s.io/apiserver.
#[tokio::test]
async fn reviews_know_tokens_of_issuers_and_bootstrap_tokens() -> Result<()> {
    let issuer = Issuer::start().await?;
    let text = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": {"url": issuer.url, "audiences": ["salp"], "certificateAuthority": issuer.ca},
            "claimMappings": {"username": {"claim": "sub", "prefix": "id:"},
                "groups": {"claim": "roles", "prefix": ""}, "uid": {"claim": "uid"}}}]})
    .to_string();
    let mut own = String::new();
    let api = TestApi::start_with(|c| {
        c.authentication = Some(text);
        own.clone_from(&c.issuer);
    })
    .await?;
    let exp = jiff::Timestamp::now().as_second() + 600;
    let claims = json!({"iss": issuer.url, "sub": "anna", "aud": "salp", "exp": exp,
        "roles": ["tills"], "uid": "7"});
    let token = issuer.token(&claims)?;
    let good = json!({"authenticated": true, "audiences": [own], "user": {
        "username": "id:anna", "uid": "7", "groups": ["tills", "system:authenticated"]}});
    assert_eq!(review(&api, &token, &[]).await?, good);
    assert_eq!(review(&api, &token, &["elsewhere", &own]).await?, good);
    // Its audience is the issuer's matter: here such a token is for this server.
    let elsewhere = review(&api, &token, &["elsewhere", "salp"]).await?;
    assert_eq!(
        elsewhere,
        json!({"user": {}, "error": "invalid bearer token"})
    );
    let mut old = claims.clone();
    old["exp"] = 1.into();
    let refused = review(&api, &issuer.token(&old)?, &[]).await?;
    assert_eq!(
        refused,
        json!({"user": {}, "error": "[invalid bearer token, the token is expired]"})
    );
    let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token", "stringData": {"token-id": "abcdef",
            "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}});
    let path = "/api/v1/namespaces/kube-system/secrets";
    let made = api.call("POST", path, Some(&secret)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let known = review(&api, "abcdef.0123456789abcdef", &[]).await?;
    assert_eq!(
        (&known["user"]["username"], &known["audiences"]),
        (&json!("system:bootstrap:abcdef"), &json!([own]))
    );
    let wrong = review(&api, "abcdef.fedcba9876543210", &[]).await?;
    assert!(wrong["authenticated"].is_null(), "{wrong}");
    issuer.scope.close().await;
    api.close().await
}

#[tokio::test]
async fn keys_that_are_changed_are_asked_for_once() -> Result<()> {
    let issuer = Issuer::start().await?;
    let text = json!({
        "apiVersion": "apiserver.config.k8s.io/v1beta1", "kind": "AuthenticationConfiguration",
        "jwt": [{"issuer": {"url": issuer.url, "audiences": ["salp"], "certificateAuthority": issuer.ca},
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}}}]})
    .to_string();
    let api = TestApi::start_with(|c| c.authentication = Some(text)).await?;
    let claims = json!({"iss": issuer.url, "sub": "anna", "aud": "salp",
        "exp": jiff::Timestamp::now().as_second() + 600});
    let stranger = json!({"iss": issuer.url, "sub": "x", "aud": "salp", "exp": 9_999_999_999u64});
    // Before its first key is known: a token by none of its keys makes it be asked, once.
    issuer.keys.lock().push(("second".to_owned(), new_key()?));
    let good = issuer.token(&claims)?;
    issuer.keys.lock().push(("third".to_owned(), new_key()?));
    let foreign = issuer.token(&stranger)?;
    issuer.keys.lock().pop();
    let refused = who(&api, &foreign).await?;
    assert!(refused.is_string(), "{refused}");
    let refused = who(&api, &foreign).await?;
    assert!(refused.is_string(), "{refused}");
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
    assert_eq!(who(&api, &good).await?["username"], "anna");
    issuer.scope.close().await;
    api.close().await
}

#[tokio::test]
async fn a_configuration_that_is_none_keeps_the_server_from_starting() -> Result<()> {
    let text = "kind: AuthenticationConfiguration\napiVersion: apiserver.config.k8s.io/v1\njwt: [{issuer: {url: 'http://x', audiences: [a]}}]";
    let refused = TestApi::start_with(|c| c.authentication = Some(text.to_owned())).await;
    let error = refused.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        error.contains("jwt[0].issuer.url: Invalid value: \"http://x\""),
        "{error}"
    );
    Ok(())
}
