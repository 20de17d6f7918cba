//! Requests for certificates, of pods and of others.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::TestApi;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/namespaces/default/podcertificaterequests";

fn first(answer: &testkit::Answer) -> (u16, &str) {
    let text = &answer.json["message"];
    (answer.code, text.as_str().unwrap_or_default())
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Seconds from now, since 1970 and as statuses tell them.
fn in_seconds(n: i64) -> Result<(u64, String)> {
    let at = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + n)?;
    Ok((at.as_second().try_into()?, at.to_string()))
}

/// Upstream: `TestValidatePodCertificateRequestStatusUpdate`.
#[tokio::test]
async fn a_signer_answers_with_a_certificate_for_the_key() -> Result<()> {
    let api = TestApi::start().await?;
    let (key, other) = (KeyPair::generate()?, KeyPair::generate()?);
    let stub = CertificateParams::default().serialize_request(&key)?;
    let mut request = json!({"metadata": {"name": "r"}, "spec": {
        "signerName": "x.y/z", "podName": "p", "podUID": "1", "serviceAccountName": "s",
        "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3",
    }});
    let mut broken = stub.der().to_vec();
    *broken.last_mut().context("a signature")? ^= 1;
    for (stub, told) in [
        (
            &b"no"[..],
            "spec.stubPKCS10Request: Invalid value: \"bm8=\": must be a valid PKCS#10 CSR",
        ),
        (
            &broken,
            "spec.stubPKCS10Request: Invalid value: could not verify the signature of the PKCS#10 CSR",
        ),
    ] {
        request["spec"]["stubPKCS10Request"] = base64(stub).into();
        let made = api.call("POST", REQUESTS, Some(&request)).await?;
        let text = format!("PodCertificateRequest.certificates.k8s.io \"r\" is invalid: {told}");
        assert_eq!(first(&made), (422, &*text));
    }
    request["spec"]["stubPKCS10Request"] = base64(stub.der()).into();
    let made = api.call("POST", REQUESTS, Some(&request)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.json["spec"]["maxExpirationSeconds"], 86400);
    let one = format!("{REQUESTS}/r");
    let mut changed = made.json.clone();
    changed["spec"]["podName"] = json!("q");
    let told = api.call("PUT", &one, Some(&changed)).await?;
    assert!(
        first(&told).1.ends_with("field is immutable"),
        "{}",
        told.text
    );

    let chain = |key: &KeyPair, hours: i64| -> Result<Value> {
        let mut params = CertificateParams::default();
        let (from, not_before) = in_seconds(-60)?;
        let (to, not_after) = in_seconds(hours * 3600)?;
        let at = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        (params.not_before, params.not_after) = (at(from), at(to));
        Ok(json!({
            "certificateChain": params.self_signed(key)?.pem(),
            "notBefore": not_before, "notAfter": not_after, "beginRefreshAt": in_seconds(1800)?.1,
            "conditions": [{"type": "Issued", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": not_before}],
        }))
    };
    let mut early = chain(&key, 2)?;
    early["beginRefreshAt"] = early["notBefore"].clone();
    let mut bare = chain(&key, 2)?;
    bare["conditions"] = json!([]);
    for (status, told) in [
        (
            chain(&other, 2)?,
            "leaf certificate was not issued to the requested public key",
        ),
        (
            chain(&key, 25)?,
            "leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)",
        ),
        (early, "must be at least 10 minutes after status.notBefore"),
        (
            bare,
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
        ),
    ] {
        let mut asked = made.json.clone();
        asked["status"] = status;
        let answer = api
            .call("PUT", &format!("{one}/status"), Some(&asked))
            .await?;
        assert_eq!(answer.code, 422, "{}", answer.text);
        assert!(first(&answer).1.ends_with(told), "{}", answer.text);
    }
    let mut asked = made.json.clone();
    asked["status"] = chain(&key, 2)?;
    let mut issued = api
        .call("PUT", &format!("{one}/status"), Some(&asked))
        .await?;
    assert_eq!(issued.code, 200, "{}", issued.text);
    issued.json["status"]["conditions"][0]["reason"] = json!("S");
    let again = api
        .call("PUT", &format!("{one}/status"), Some(&issued.json))
        .await?;
    assert!(
        first(&again)
            .1
            .ends_with("immutable after PodCertificateRequest is issued, denied, or failed"),
        "{}",
        again.text
    );
    api.close().await
}

/// Upstream: `pkg/apis/certificates/validation/validation_test.go`.
#[tokio::test]
async fn a_request_is_signed_approved_and_answered_once() -> Result<()> {
    const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let api = TestApi::start().await?;
    let mut request = json!({"metadata": {"name": "r"}, "spec": {"request": "aGk=",
        "signerName": "x.y/z", "usages": ["client auth"]}});
    let told = api.call("POST", CSRS, Some(&request)).await?;
    assert_eq!(
        first(&told),
        (
            422,
            "CertificateSigningRequest.certificates.k8s.io \"r\" is invalid: spec.request: Invalid value: \"aGk=\": PEM block type must be CERTIFICATE REQUEST"
        )
    );
    request["spec"]["request"] = super::signing_request()?.into();
    let made = api.call("POST", CSRS, Some(&request)).await?;
    assert_eq!(made.code, 201, "{}", made.text);
    let (one, condition) = (
        format!("{CSRS}/r"),
        |kind: &str| json!({"type": kind, "status": "True", "reason": "R"}),
    );
    let mut asked = made.json.clone();
    asked["status"] = json!({"conditions": [condition("Approved")]});
    let told = api
        .call("PUT", &format!("{one}/status"), Some(&asked))
        .await?;
    assert!(
        first(&told)
            .1
            .ends_with("updates may not add a condition of type \"Approved\""),
        "{}",
        told.text
    );
    let mut approved = api
        .call("PUT", &format!("{one}/approval"), Some(&asked))
        .await?;
    assert_eq!(approved.code, 200, "{}", approved.text);
    let mut asked = approved.json.clone();
    asked["status"]["conditions"] = json!([condition("Denied")]);
    let told = api
        .call("PUT", &format!("{one}/approval"), Some(&asked))
        .await?;
    assert!(
        first(&told)
            .1
            .ends_with("updates may not remove a condition of type \"Approved\""),
        "{}",
        told.text
    );
    let pem = CertificateParams::default()
        .self_signed(&KeyPair::generate()?)?
        .pem();
    approved.json["status"]["certificate"] = base64(pem.as_bytes()).into();
    let mut signed = api
        .call("PUT", &format!("{one}/status"), Some(&approved.json))
        .await?;
    assert_eq!(signed.code, 200, "{}", signed.text);
    signed.json["status"]["certificate"] = base64(pem.trim().as_bytes()).into();
    let told = api
        .call("PUT", &format!("{one}/status"), Some(&signed.json))
        .await?;
    assert!(
        first(&told)
            .1
            .ends_with("updates may not modify existing certificate content"),
        "{}",
        told.text
    );
    api.close().await
}
