//! Proxies in front that name the user in headers, over the network. Behaviour from the
//! documentation "Authenticating Proxy" and
//! `k8s.io/apiserver/pkg/authentication/request/headerrequest` of upstream.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testkit::{Identity, Pki, TestApi};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// Asks who somebody is that shows a certificate and says this; the answer and its code.
async fn who(api: &TestApi, shown: Option<&Identity>, headers: &[&str]) -> Result<(u64, Value)> {
    let file = |name: &str| api.dir().join(name).display().to_string();
    std::fs::write(file("server.ca"), &api.pki.ca_cert)?;
    let review = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"});
    let mut curl = tokio::process::Command::new("curl");
    // Over HTTP/2 curl 7.88 fails when it is refused before it has sent its body.
    curl.args(["-sS", "--http1.1", "-w", "\n%{http_code}"])
        .args(["--cacert", &file("server.ca")])
        .args(["-H", "content-type: application/json", "-d"])
        .arg(review.to_string());
    if let Some(shown) = shown {
        std::fs::write(file("shown.crt"), &shown.cert)?;
        std::fs::write(file("shown.key"), &shown.key)?;
        curl.args(["--cert", &file("shown.crt"), "--key", &file("shown.key")]);
    }
    for header in headers {
        curl.args(["-H", header]);
    }
    let out = curl.arg(format!("{}{REVIEWS}", api.url())).output().await?;
    let failed = String::from_utf8_lossy(&out.stderr);
    anyhow::ensure!(out.status.success(), "curl: {failed}");
    let text = String::from_utf8(out.stdout)?;
    let (body, code) = text.rsplit_once('\n').context("an answer")?;
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    Ok((code.parse()?, body["status"]["userInfo"].clone()))
}

async fn published(api: &TestApi) -> Result<Value> {
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    Ok(api.call("GET", path, None).await?.json["data"].clone())
}

fn front_proxy(proxy: &Pki) -> Result<apiserver::FrontProxy> {
    let shown = proxy.identity("front-proxy-client", &[])?;
    Ok(apiserver::FrontProxy {
        cert: shown.cert,
        key: shown.key,
        ca: proxy.ca_cert.clone(),
    })
}

const ANNA: [&str; 4] = [
    "X-Remote-User: anna",
    "X-Remote-Uid: 7",
    "X-Remote-Group: tills",
    "X-Remote-Extra-Example.com%2Fshop: north",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_the_front_proxy_s_certificate_says_who_asks() -> Result<()> {
    let proxy = Pki::new()?;
    let own = front_proxy(&proxy)?;
    let api = TestApi::start_with(|c| c.front_proxy = Some(own)).await?;
    let shown = proxy.identity("front-proxy-client", &[])?;
    let (code, user) = who(&api, Some(&shown), &ANNA).await?;
    assert_eq!(
        (code, user),
        (
            201,
            json!({"username": "anna", "uid": "7", "groups": ["tills", "system:authenticated"],
                "extra": {"example.com/shop": ["north"]}})
        )
    );
    // Nobody else is believed: what is said is not even heard.
    let client = api.pki.identity("bob", &["shop"])?;
    let (code, user) = who(&api, Some(&client), &ANNA).await?;
    assert_eq!((code, &user["username"]), (201, &json!("bob")));
    assert_eq!(who(&api, None, &ANNA).await?.0, 403, "anonymous");
    let other = proxy.identity("somebody", &[])?;
    assert_eq!(who(&api, Some(&other), &ANNA).await?.0, 401);
    // One that the clients' authority has signed is a client by this name, and no proxy.
    let named_so = api.pki.identity("front-proxy-client", &[])?;
    let (code, user) = who(&api, Some(&named_so), &ANNA).await?;
    assert_eq!(
        (code, &user["username"]),
        (201, &json!("front-proxy-client"))
    );
    // A proxy that names nobody is nobody, except by a token.
    assert_eq!(who(&api, Some(&shown), &ANNA[2..]).await?.0, 401);
    super::default_account(&api).await?;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = api.call("POST", path, Some(&json!({"spec": {}}))).await?;
    let token = made.json["status"]["token"].as_str().context("a token")?;
    let bearer = format!("authorization: Bearer {token}");
    let (code, user) = who(&api, Some(&shown), &[&bearer]).await?;
    assert_eq!(
        (code, &user["username"]),
        (201, &json!("system:serviceaccount:default:default"))
    );
    // He acts for others if his own roles let him.
    let acting = [&ANNA[..], &["Impersonate-User: eve"]].concat();
    assert_eq!(who(&api, Some(&shown), &acting).await?.0, 403);
    let masters = [
        "X-Remote-User: root",
        "X-Remote-Group: system:masters",
        "Impersonate-User: eve",
    ];
    let (code, user) = who(&api, Some(&shown), &masters).await?;
    assert_eq!((code, &user["username"]), (201, &json!("eve")));
    api.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_proxies_and_headers_are_believed_and_published_as_stated() -> Result<()> {
    let (proxy, gate) = (Pki::new()?, Pki::new()?);
    let own = front_proxy(&proxy)?;
    let stated = apiserver::RequestHeader {
        ca: Some(gate.ca_cert.clone()),
        allowed_names: vec!["gate".to_owned()],
        username_headers: vec!["X-Person".to_owned(), "X-Remote-User".to_owned()],
        ..apiserver::RequestHeader::default()
    };
    let api = TestApi::start_with(|c| {
        c.front_proxy = Some(own);
        c.request_header = stated;
    })
    .await?;
    let said = ["X-Person: anna", "X-Remote-User: bob"];
    let shown = gate.identity("gate", &[])?;
    let (code, user) = who(&api, Some(&shown), &said).await?;
    assert_eq!((code, &user["username"]), (201, &json!("anna")));
    let shown = proxy.identity("front-proxy-client", &[])?;
    let (code, user) = who(&api, Some(&shown), &said[1..]).await?;
    assert_eq!((code, &user["username"]), (201, &json!("bob")));
    let other = gate.identity("fence", &[])?;
    assert_eq!(who(&api, Some(&other), &said).await?.0, 401);
    let told = published(&api).await?;
    let lists = [
        ("allowed-names", json!(["front-proxy-client", "gate"])),
        ("username-headers", json!(["X-Person", "X-Remote-User"])),
        ("uid-headers", json!(["X-Remote-Uid"])),
        ("group-headers", json!(["X-Remote-Group"])),
        ("extra-headers-prefix", json!(["X-Remote-Extra-"])),
    ];
    for (key, want) in lists {
        assert_eq!(told[format!("requestheader-{key}")], want.to_string());
    }
    let bundle = told["requestheader-client-ca-file"].as_str();
    let bundle = bundle.context("a bundle")?;
    assert!(bundle.contains(proxy.ca_cert.trim()) && bundle.contains(gate.ca_cert.trim()));
    // What is stated no more is published no more.
    let own = front_proxy(&proxy)?;
    let api = api.restart_with(|c| c.front_proxy = Some(own)).await?;
    let told = published(&api).await?;
    assert_eq!(
        told["requestheader-allowed-names"],
        "[\"front-proxy-client\"]"
    );
    let shown = gate.identity("gate", &[])?;
    assert!(
        !matches!(who(&api, Some(&shown), &said).await, Ok((201, _))),
        "it is believed no more"
    );
    api.close().await
}
