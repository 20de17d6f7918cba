//! Who gets which certificate.

use super::Asked;
use super::plan::{Taken, Verdict, judge, shape};
use crate::fixture::object;
use client::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::{Value, json};

fn request(signer: &str, user: &str, usages: Value) -> CertificateSigningRequest {
    object(json!({"metadata": {"name": "r"}, "spec": {
        "request": "", "signerName": format!("kubernetes.io/{signer}"), "username": user,
        "groups": ["system:nodes"], "usages": usages,
    }}))
}

fn asked(node: &str) -> Asked {
    Asked {
        common_name: format!("system:node:{node}"),
        organizations: vec!["system:nodes".to_owned()],
        ..Asked::default()
    }
}

#[test]
fn client_certificates_go_to_whoever_may() {
    let usages = json!(["client auth", "digital signature"]);
    let judged = |user: &str, asked: &Asked| {
        let request = request("kube-apiserver-client-kubelet", user, usages.clone());
        let taken = Taken {
            in_touch: ["known".to_owned()].into(),
            ..Taken::default()
        };
        judge(&request, asked, &taken)
    };
    assert_eq!(
        judged("system:bootstrap:abcdef", &asked("a")),
        Verdict::Ask("nodeclient")
    );
    assert_eq!(
        judged("system:node:a", &asked("a")),
        Verdict::Ask("selfnodeclient")
    );
    // A machine that is there renews; a token for new ones does not replace it.
    assert_eq!(
        judged("system:node:known", &asked("known")),
        Verdict::Ask("selfnodeclient")
    );
    let early = judged("system:bootstrap:abcdef", &asked("known"));
    assert!(matches!(early, Verdict::Later(_)), "{early:?}");
    for taken in ["kubernetes.default.svc", "localhost"] {
        let verdict = judged("system:bootstrap:abcdef", &asked(taken));
        assert!(matches!(verdict, Verdict::Leave(_)), "{taken}: {verdict:?}");
    }
    let mut master = asked("a");
    master.organizations.push("system:masters".to_owned());
    assert!(matches!(
        judged("system:node:a", &master),
        Verdict::Leave(_)
    ));
    let mut named = asked("a");
    named.names.push("kubernetes".to_owned());
    assert!(matches!(judged("system:node:a", &named), Verdict::Leave(_)));
    let unsigned = request(
        "kube-apiserver-client-kubelet",
        "system:node:a",
        json!(["client auth"]),
    );
    assert!(shape(&unsigned, &asked("a")).is_err());
    let mut other = asked("a");
    other.common_name = "admin".to_owned();
    assert!(matches!(judged("system:node:a", &other), Verdict::Leave(_)));
}

#[test]
fn nodes_serve_under_what_is_theirs() {
    let usages = json!(["server auth", "digital signature"]);
    let taken = Taken {
        in_touch: ["a".to_owned(), "b".to_owned()].into(),
        names: ["b".to_owned()].into(),
        addresses: ["192.0.2.1".parse().unwrap()].into(),
    };
    let judged = |user: &str, names: &[&str], addresses: &[&str]| {
        let mut asked = asked("a");
        asked.names = names.iter().map(|n| (*n).to_owned()).collect();
        asked.addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let request = request("kubelet-serving", user, usages.clone());
        judge(&request, &asked, &taken) == Verdict::Ask("selfnodeserver")
    };
    assert!(judged("system:node:a", &["a"], &["192.0.2.2"]));
    assert!(
        !judged("system:node:b", &["a"], &["192.0.2.2"]),
        "another's"
    );
    assert!(
        !judged("system:node:a", &["kubernetes"], &[]),
        "a foreign name"
    );
    assert!(
        !judged("system:node:a", &["a"], &["192.0.2.1"]),
        "the server's"
    );
    assert!(
        !judged("system:node:a", &["a"], &["127.0.0.1"]),
        "everybody's"
    );
    for nobody_s in ["169.254.1.1", "224.0.0.1", "fe80::1"] {
        assert!(!judged("system:node:a", &["a"], &[nobody_s]), "{nobody_s}");
    }
    assert!(!judged("system:node:a", &[], &[]), "nothing");
}
