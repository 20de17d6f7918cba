//! Volumes that are images and artifacts: in Wasm pods and, with root, in container pods.

use crate::containers::{phase, pod, waits, with_busybox};
use crate::guests::{body, misbehave};
use crate::harness::{Registry, Site, get};
use serde_json::{Value, json};

/// The files of a model.
fn model(registry: &Registry, weights: &str) -> String {
    let files = [("weights.bin", weights), ("conf/model.json", "{}")];
    registry.put_files("model:1", &files)
}

fn events(site: &Site, pod: &str) -> Vec<Value> {
    let selector = format!("--field-selector=involvedObject.name={pod}");
    let list = site.json(&["get", "events", &selector]);
    list["items"].as_array().expect("items").clone()
}

#[test]
fn a_wasm_pod_reads_the_files_of_an_artifact() {
    let (registry, mut site) = (Registry::start(), Site::start());
    let reference = model(&registry, "first");
    let address = misbehave(
        &site,
        &registry,
        "till",
        "    volumeMounts:
    - {name: model, mountPath: /model}
    - {name: model, mountPath: /etc/model.json, subPath: conf/model.json}
",
        &format!(
            "  volumes:
  - {{name: model, image: {{reference: \"{reference}\", pullPolicy: Always}}}}
"
        ),
    );
    assert_eq!(body(&address, "/read?path=/model/weights.bin"), "first");
    assert_eq!(body(&address, "/read?path=/etc/model.json"), "{}");
    let answer = get(&address, "/write?path=/model/new&text=no").expect("answer");
    assert_eq!(answer.code, 500, "it is read only");
    let told = events(&site, "till");
    let pulled = told.iter().find(|event| {
        let words = event["message"].as_str().unwrap_or_default();
        words.starts_with(&format!("Successfully pulled image {reference:?} in"))
    });
    let about = &pulled.expect("an event")["involvedObject"];
    assert_eq!(about["fieldPath"], Value::Null, "of the pod: {about}");

    // What the pod has it keeps, whatever becomes of the tag, the agent and the registry.
    model(&registry, "second");
    site.signal("-KILL");
    site.up(&[]);
    registry.stop();
    site.expects("the data plane ended; starting it again");
    site.kill("dataplane");
    let again = |status: &Value| status["restartCount"] == 1 && status["ready"] == true;
    let of = ["get", "pod", "till"];
    site.wait_for(&of, "/status/containerStatuses/0", again);
    assert_eq!(body(&address, "/read?path=/model/weights.bin"), "first");
}

#[test]
fn a_container_pod_is_shown_images_and_artifacts() {
    let Some((registry, image, site)) = with_busybox(&[]) else {
        return;
    };
    let files = model(&registry, "weights");
    let volumes = json!({"volumes": [
        {"name": "tools", "image": {"reference": image}},
        {"name": "model", "image": {"reference": files}},
    ]});
    let tell = "cat /model/weights.bin; echo; ls /model; ls /tools/gone 2>&1; cat /upper; \
        id -u; touch /tools/x 2>&1; /tools/bin/busybox 2>&1; true";
    site.apply(&pod(
        "shown",
        json!({
            "image": image, "command": ["sh", "-c", tell],
            "env": [{"name": "DIR", "value": "tmp"}],
            "securityContext": {"runAsUser": 1000},
            "volumeMounts": [
                {"name": "tools", "mountPath": "/tools"},
                {"name": "model", "mountPath": "/model"},
                {"name": "tools", "mountPath": "/upper", "subPathExpr": "$(DIR)/from-upper"},
            ],
        }),
        volumes.clone(),
    ));
    phase(&site, "shown", "Succeeded");
    assert_eq!(
        site.ok(&["logs", "shown"]),
        "weights\nconf\nweights.bin\nls: /tools/gone: No such file or directory\nupper\n1000\n\
         touch: /tools/x: Read-only file system\nsh: /tools/bin/busybox: Permission denied\n"
    );

    let mounts = |mount: Value| json!({"image": image, "volumeMounts": [mount]});
    let nowhere = json!({"name": "model", "mountPath": "/m", "subPath": "no/such"});
    site.apply(&pod("nowhere", mounts(nowhere), volumes));
    let words = format!("sub path \"no/such\" does not exist in image volume {files:?}");
    waits(&site, "nowhere", "CreateContainerError", &words);

    let absent = files.replace("model:1", "absent:1");
    site.apply(&pod(
        "absent",
        mounts(json!({"name": "v", "mountPath": "/v"})),
        json!({"volumes": [{"name": "v", "image": {"reference": absent}}]}),
    ));
    let words = format!("Back-off pulling image {absent:?}: ErrImagePull: ");
    waits(&site, "absent", "ImagePullBackOff", &words);
    site.apply(&pod(
        "never",
        mounts(json!({"name": "v", "mountPath": "/v"})),
        json!({"volumes": [
            {"name": "v", "image": {"reference": absent, "pullPolicy": "Never"}}]}),
    ));
    waits(&site, "never", "ErrImageNeverPull", "is not present with");
}
