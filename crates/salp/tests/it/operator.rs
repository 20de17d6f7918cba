//! An operator on kube-rs, as most of those in Rust are: its `Controller` with streaming lists, a
//! finalizer, server-side apply of what it owns and of the status. It runs in the test's process,
//! against the real binary.

use crate::harness::Site;
use futures::StreamExt as _;
use kube::api::{Api, ApiResource, ObjectMeta, Patch, PatchParams};
use kube::core::Object;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{Error as FinalizerError, Event, finalizer};
use kube::runtime::watcher;
use kube::{Client, Resource as _, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;

#[derive(Clone, Debug, Deserialize, Serialize)]
struct KioskSpec {
    papers: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct KioskStatus {
    papers: usize,
}

type Kiosk = Object<KioskSpec, KioskStatus>;

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: kiosks.fair.example}
spec:
  group: fair.example
  scope: Namespaced
  names: {plural: kiosks, singular: kiosk, kind: Kiosk}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [papers]
            properties:
              papers: {type: array, items: {type: string}}
          status:
            type: object
            properties:
              papers: {type: integer}
";

/// The name by which it applies.
const MANAGER: &str = "kiosk-operator";

fn kiosks() -> ApiResource {
    ApiResource {
        group: "fair.example".to_owned(),
        version: "v1".to_owned(),
        api_version: "fair.example/v1".to_owned(),
        kind: "Kiosk".to_owned(),
        plural: "kiosks".to_owned(),
    }
}

struct Context {
    client: Client,
    kiosks: Api<Kiosk>,
    maps: Api<ConfigMap>,
}

async fn reconcile(
    kiosk: Arc<Kiosk>,
    context: Arc<Context>,
) -> Result<Action, FinalizerError<kube::Error>> {
    finalizer(
        &context.kiosks,
        "fair.example/kiosk",
        kiosk,
        |event| async {
            match event {
                Event::Apply(kiosk) => open(&kiosk, &context).await,
                Event::Cleanup(kiosk) => close(&kiosk, &context).await,
            }
        },
    )
    .await
}

/// Has the papers in a map, and counts them in the status.
async fn open(kiosk: &Kiosk, context: &Context) -> Result<Action, kube::Error> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(format!("{}-papers", kiosk.name_any())),
            owner_references: Some(kiosk.controller_owner_ref(&kiosks()).into_iter().collect()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "papers".to_owned(),
            kiosk.spec.papers.join(","),
        )])),
        ..ConfigMap::default()
    };
    let apply = PatchParams::apply(MANAGER).force();
    let name = map.name_any();
    let mut applied = serde_json::to_value(&map).map_err(kube::Error::SerdeError)?;
    applied["apiVersion"] = "v1".into();
    applied["kind"] = "ConfigMap".into();
    context
        .maps
        .patch(&name, &apply, &Patch::Apply(applied))
        .await?;
    let status = json!({
        "apiVersion": "fair.example/v1", "kind": "Kiosk",
        "status": {"papers": kiosk.spec.papers.len()},
    });
    context
        .kiosks
        .patch_status(&kiosk.name_any(), &apply, &Patch::Apply(status))
        .await?;
    Ok(Action::await_change())
}

/// Leaves a note.
async fn close(kiosk: &Kiosk, context: &Context) -> Result<Action, kube::Error> {
    let note = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "data": {"papers": kiosk.spec.papers.len().to_string()},
    });
    let maps: Api<ConfigMap> = Api::default_namespaced(context.client.clone());
    let name = format!("{}-closed", kiosk.name_any());
    maps.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(note))
        .await?;
    Ok(Action::await_change())
}

async fn client(site: &Site) -> Client {
    let config = kube::config::Kubeconfig::read_from(site.kubeconfig()).expect("kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
        .await
        .expect("configuration");
    Client::try_from(config).expect("client")
}

/// Runs the operator until the runtime ends.
async fn operate(client: Client) {
    let context = Arc::new(Context {
        kiosks: Api::default_namespaced_with(client.clone(), &kiosks()),
        maps: Api::default_namespaced(client.clone()),
        client,
    });
    let streamed = || watcher::Config::default().streaming_lists();
    Controller::new_with(context.kiosks.clone(), streamed(), kiosks())
        .owns(context.maps.clone(), streamed())
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_millis(200)),
            context,
        )
        .for_each(async |done| {
            // It is tried again; the test looks at what comes of it, and shows this if nothing does.
            #[allow(
                clippy::print_stderr,
                reason = "the test runner shows it with a failure"
            )]
            if let Err(error) = done {
                eprintln!("operator: {error:?}");
            }
        })
        .await;
}

#[test]
fn an_operator_of_kube_rs_converges() {
    let mut site = Site::start();
    site.apply(DEFINITION);
    site.ok(&[
        "wait",
        "--for=condition=Established",
        "crd/kiosks.fair.example",
        "--timeout=30s",
    ]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let client = runtime.block_on(client(&site));
    #[allow(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    runtime.spawn(operate(client));

    let kiosk = |papers: &str| {
        format!(
            "apiVersion: fair.example/v1\nkind: Kiosk\nmetadata: {{name: west}}\nspec: {{papers: [{papers}]}}\n"
        )
    };
    site.apply(&kiosk("Post, Bote"));
    let (west, map) = (
        ["get", "kiosk", "west"],
        ["get", "configmap", "west-papers"],
    );
    let seen = site.wait_for(&west, "/status/papers", |v| *v == 2);
    assert_eq!(
        seen["metadata"]["finalizers"],
        json!(["fair.example/kiosk"])
    );
    let made = site.json(&map);
    assert_eq!(made["data"]["papers"], "Post,Bote");
    assert_eq!(
        made["metadata"]["ownerReferences"][0]["uid"],
        seen["metadata"]["uid"]
    );

    // What it owns comes back, and what others make of it does not stay.
    site.ok(&["delete", "configmap", "west-papers"]);
    site.wait_for(&map, "/data/papers", |v| v == "Post,Bote");
    let other = r#"{"data":{"papers":"none","more":"1"}}"#;
    site.ok(&[
        "patch",
        "configmap",
        "west-papers",
        "--type=merge",
        "-p",
        other,
    ]);
    let mended = site.wait_for(&map, "/data/papers", |v| v == "Post,Bote");
    assert_eq!(mended["data"]["more"], "1", "it never owned that");

    // It applied the same again and again, and that is no change.
    let settled = site.json(&west)["metadata"]["resourceVersion"].clone();
    assert_eq!(settled, seen["metadata"]["resourceVersion"]);

    site.signal("-KILL");
    site.up(&[]);
    site.apply(&kiosk("Post, Bote, Blick"));
    site.wait_for(&west, "/status/papers", |v| *v == 3);
    site.wait_for(&map, "/data/papers", |v| v == "Post,Bote,Blick");

    site.ok(&["delete", "kiosk", "west", "--timeout=60s"]);
    let note = site.json(&["get", "configmap", "west-closed"]);
    assert_eq!(note["data"]["papers"], "3");
    site.ok(&[
        "wait",
        "--for=delete",
        "configmap/west-papers",
        "--timeout=60s",
    ]);
    runtime.shutdown_background();
}
