//! Spot checks of the built-in table against facts of the Kubernetes API reference.

use super::*;
use expect_test::{Expect, expect};
use std::fmt::Write as _;

fn show_type(schema: &Schema, id: TypeId) -> String {
    match schema.get(id) {
        Type::Scalar(s) => format!("{s:?}"),
        Type::Struct(s) if s.atomic => format!("{} atomic", s.short_name()),
        Type::Struct(s) => s.short_name().to_owned(),
        Type::Map(v) => format!("map of {}", show_type(schema, *v)),
        Type::Any => match schema.union(id) {
            Some(union) => format!("{union:?}"),
            None => "Any".to_owned(),
        },
        Type::List(l) => {
            let kind = match &l.kind {
                ListKind::Atomic => "atomic".to_owned(),
                ListKind::Set => "set".to_owned(),
                ListKind::Map(keys) => format!("by {}", keys.join("+")),
            };
            let key = l
                .patch_merge_key
                .as_ref()
                .map_or(String::new(), |k| format!(", merge key {k}"));
            format!("list of {} ({kind}{key})", show_type(schema, l.item))
        }
    }
}

fn show(schema: &Schema, path: &str) -> String {
    let (kind, fields) = path.split_once(':').unwrap();
    let (kind, api) = kind.split_once('@').unwrap();
    let gv = crate::GroupVersion::parse(api).unwrap();
    let mut id = schema.kind(&gv.kind(kind)).expect(path);
    let mut out = String::new();
    for part in fields.split('.') {
        while let Type::Map(item) | Type::List(List { item, .. }) = schema.get(id) {
            id = *item;
        }
        let f = schema.get_struct(id).expect(path).field(part).expect(path);
        id = f.ty;
        out = format!("{}: {}", f.name, show_type(schema, f.ty));
        for (set, word) in [
            (f.required, "required"),
            (f.omit_zero, "omit zero"),
            (f.atomic, "atomic"),
            (f.patch.merge, "merge"),
            (f.patch.retain_keys, "retain keys"),
        ] {
            if set {
                write!(out, ", {word}").unwrap();
            }
        }
        write!(out, " ={}", f.number).unwrap();
        for outer in f.inline.iter().filter(|n| **n != 0) {
            write!(out, " in {outer}").unwrap();
        }
        if let Some(default) = &f.default {
            write!(out, " default {default}").unwrap();
        }
    }
    out
}

fn check(paths: &[&str], expect: &Expect) {
    let schema = Schema::builtin();
    let text: Vec<String> = paths.iter().map(|p| show(schema, p)).collect();
    expect.assert_eq(&(text.join("\n") + "\n"));
}

#[test]
fn pods() {
    check(
        &[
            "Pod@v1:apiVersion",
            "Pod@v1:metadata",
            "Pod@v1:spec",
            "Pod@v1:spec.containers",
            "Pod@v1:spec.containers.name",
            "Pod@v1:spec.containers.ports",
            "Pod@v1:spec.containers.ports.containerPort",
            "Pod@v1:spec.containers.ports.protocol",
            "Pod@v1:spec.containers.env",
            "Pod@v1:spec.containers.env.valueFrom.configMapKeyRef.name",
            "Pod@v1:spec.containers.envFrom",
            "Pod@v1:spec.containers.volumeMounts",
            "Pod@v1:spec.containers.command",
            "Pod@v1:spec.containers.resources.limits",
            "Pod@v1:spec.containers.livenessProbe.httpGet.port",
            "Pod@v1:spec.containers.securityContext.readOnlyRootFilesystem",
            "Pod@v1:spec.volumes",
            "Pod@v1:spec.volumes.emptyDir",
            "Pod@v1:spec.tolerations",
            "Pod@v1:spec.nodeSelector",
            "Pod@v1:spec.terminationGracePeriodSeconds",
            "Pod@v1:spec.hostNetwork",
            "Pod@v1:spec.imagePullSecrets",
            "Pod@v1:spec.topologySpreadConstraints",
            "Pod@v1:spec.ephemeralContainers.image",
            "Pod@v1:status.conditions",
            "Pod@v1:status.podIPs",
            "Pod@v1:status.containerStatuses",
        ],
        &expect![[r#"
            apiVersion: String, omit zero =0
            metadata: ObjectMeta =1
            spec: PodSpec =2
            containers: list of Container (by name, merge key name), required, merge =2
            name: String, required =1
            ports: list of ContainerPort (by containerPort+protocol, merge key containerPort), omit zero, merge =6
            containerPort: Int32, required =3
            protocol: String, omit zero =4 default "TCP"
            env: list of EnvVar (by name, merge key name), omit zero, merge =7
            name: String, omit zero =1 in 1
            envFrom: list of EnvFromSource (atomic), omit zero =19
            volumeMounts: list of VolumeMount (by mountPath, merge key mountPath), omit zero, merge =9
            command: list of String (atomic), omit zero =3
            limits: map of Quantity, omit zero =1
            port: IntOrString, required =2
            readOnlyRootFilesystem: Bool =6
            volumes: list of Volume (by name, merge key name), omit zero, merge, retain keys =1
            emptyDir: EmptyDirVolumeSource =2 in 2
            tolerations: list of Toleration (atomic), omit zero =22
            nodeSelector: map of String, omit zero, atomic =7
            terminationGracePeriodSeconds: Int64 =4
            hostNetwork: Bool, omit zero =11
            imagePullSecrets: list of LocalObjectReference atomic (by name, merge key name), omit zero, merge =15
            topologySpreadConstraints: list of TopologySpreadConstraint (by topologyKey+whenUnsatisfiable, merge key topologyKey), omit zero, merge =33
            image: String, omit zero =2 in 1
            conditions: list of PodCondition (by type, merge key type), omit zero, merge =2
            podIPs: list of PodIP (by ip, merge key ip), omit zero, merge =12
            containerStatuses: list of ContainerStatus (atomic), omit zero =8
        "#]],
    );
}

#[test]
fn other_kinds() {
    check(
        &[
            "Service@v1:spec.ports",
            "Service@v1:spec.ports.protocol",
            "Service@v1:spec.ports.targetPort",
            "Service@v1:spec.selector",
            "Service@v1:spec.publishNotReadyAddresses",
            "Secret@v1:data",
            "Secret@v1:stringData",
            "ConfigMap@v1:binaryData",
            "ConfigMap@v1:immutable",
            "ServiceAccount@v1:secrets",
            "Node@v1:status.addresses",
            "Namespace@v1:spec.finalizers",
            "Event@v1:firstTimestamp",
            "Event@events.k8s.io/v1:eventTime",
            "Deployment@apps/v1:spec.replicas",
            "Deployment@apps/v1:spec.strategy",
            "Deployment@apps/v1:spec.strategy.rollingUpdate.maxSurge",
            "Deployment@apps/v1:spec.minReadySeconds",
            "Deployment@apps/v1:spec.selector",
            "Deployment@apps/v1:status.conditions",
            "Job@batch/v1:spec.backoffLimit",
            "Role@rbac.authorization.k8s.io/v1:rules",
            "ClusterRoleBinding@rbac.authorization.k8s.io/v1:roleRef",
            "Lease@coordination.k8s.io/v1:spec.renewTime",
            "EndpointSlice@discovery.k8s.io/v1:endpoints.conditions.ready",
            "SubjectAccessReview@authorization.k8s.io/v1:spec.extra",
            "TokenRequest@authentication.k8s.io/v1:spec.audiences",
            "Scale@autoscaling/v1:spec.replicas",
            "Eviction@policy/v1:deleteOptions",
            "Binding@v1:target",
            "DeleteOptions@apps/v1:gracePeriodSeconds",
            "Pod@v1:metadata.managedFields",
            "Pod@v1:metadata.managedFields.fieldsV1",
            "Pod@v1:metadata.ownerReferences",
            "Pod@v1:metadata.finalizers",
            "Pod@v1:metadata.creationTimestamp",
            "CustomResourceDefinition@apiextensions.k8s.io/v1:spec.versions.schema.openAPIV3Schema.items",
            "CustomResourceDefinition@apiextensions.k8s.io/v1:spec.versions.schema.openAPIV3Schema.maximum",
            "CustomResourceDefinition@apiextensions.k8s.io/v1:spec.versions.schema.openAPIV3Schema.properties",
            "APIService@apiregistration.k8s.io/v1:spec.service.port",
            "ValidatingAdmissionPolicyBinding@admissionregistration.k8s.io/v1:spec.matchResources.resourceRules.apiGroups",
            "PodLogOptions@v1:tailLines",
        ],
        &expect![[r#"
            ports: list of ServicePort (by port+protocol, merge key port), omit zero, merge =1
            protocol: String, omit zero =2 default "TCP"
            targetPort: IntOrString, omit zero =4
            selector: map of String, omit zero, atomic =2
            publishNotReadyAddresses: Bool, omit zero =13
            data: map of Bytes, omit zero =2
            stringData: map of String, omit zero =4
            binaryData: map of Bytes, omit zero =3
            immutable: Bool =4
            secrets: list of ObjectReference atomic (by name, merge key name), omit zero, merge =2
            addresses: list of NodeAddress (by type, merge key type), omit zero, merge =5
            finalizers: list of String (atomic), omit zero =1
            firstTimestamp: Time =6
            eventTime: MicroTime, required =2
            replicas: Int32 =1
            strategy: DeploymentStrategy, retain keys =4
            maxSurge: IntOrString =2
            minReadySeconds: Int32, omit zero =5
            selector: LabelSelector atomic, required =2
            conditions: list of DeploymentCondition (by type, merge key type), omit zero, merge =6
            backoffLimit: Int32 =7
            rules: list of PolicyRule (atomic) =2
            roleRef: RoleRef atomic, required =3
            renewTime: MicroTime =4
            ready: Bool =1
            extra: map of list of String (atomic), omit zero =5
            audiences: list of String (atomic) =1
            replicas: Int32, omit zero =1 default 0
            deleteOptions: DeleteOptions =2
            target: ObjectReference atomic, required =2
            gracePeriodSeconds: Int64 =1
            managedFields: list of ManagedFieldsEntry (atomic), omit zero =17
            fieldsV1: Any =7
            ownerReferences: list of OwnerReference atomic (by uid, merge key uid), omit zero, merge =13
            finalizers: list of String (set), omit zero, merge =14
            creationTimestamp: Time, omit zero =8
            items: SchemaOrArray =24
            maximum: Double =9
            properties: map of JSONSchemaProps, omit zero =29
            port: Int32 =3
            apiGroups: list of String (atomic), omit zero =1 in 2 in 2
            tailLines: Int64 =7
        "#]],
    );
}

/// The kinds that a cluster stores in its stable groups.
#[test]
fn stored_kinds_are_there() {
    let schema = Schema::builtin();
    let stored = [
        (
            "v1",
            "Pod Service ConfigMap Secret ServiceAccount Namespace Node Event Endpoints \
             PersistentVolume PersistentVolumeClaim PodTemplate ReplicationController \
             ResourceQuota LimitRange Binding ComponentStatus",
        ),
        (
            "apps/v1",
            "Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision",
        ),
        ("batch/v1", "Job CronJob"),
        ("autoscaling/v1", "HorizontalPodAutoscaler Scale"),
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("policy/v1", "PodDisruptionBudget Eviction"),
        (
            "networking.k8s.io/v1",
            "Ingress IngressClass NetworkPolicy IPAddress ServiceCIDR",
        ),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("events.k8s.io/v1", "Event"),
        ("coordination.k8s.io/v1", "Lease"),
        ("node.k8s.io/v1", "RuntimeClass"),
        ("scheduling.k8s.io/v1", "PriorityClass"),
        (
            "storage.k8s.io/v1",
            "StorageClass VolumeAttachment CSIDriver CSINode CSIStorageCapacity VolumeAttributesClass",
        ),
        (
            "rbac.authorization.k8s.io/v1",
            "Role RoleBinding ClusterRole ClusterRoleBinding",
        ),
        (
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration ValidatingWebhookConfiguration \
             ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding \
             MutatingAdmissionPolicy MutatingAdmissionPolicyBinding",
        ),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("apiregistration.k8s.io/v1", "APIService"),
        ("certificates.k8s.io/v1", "CertificateSigningRequest"),
        (
            "flowcontrol.apiserver.k8s.io/v1",
            "FlowSchema PriorityLevelConfiguration",
        ),
        (
            "resource.k8s.io/v1",
            "ResourceClaim ResourceClaimTemplate ResourceSlice DeviceClass",
        ),
        (
            "authentication.k8s.io/v1",
            "TokenReview TokenRequest SelfSubjectReview",
        ),
        (
            "authorization.k8s.io/v1",
            "SubjectAccessReview LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview",
        ),
        ("storagemigration.k8s.io/v1", "StorageVersionMigration"),
        ("admission.k8s.io/v1", "AdmissionReview"),
        (
            "meta.k8s.io/v1",
            "PartialObjectMetadata PartialObjectMetadataList Table",
        ),
    ];
    for (api, kinds) in stored {
        let gv = crate::GroupVersion::parse(api).unwrap();
        for kind in kinds.split_whitespace() {
            let id = schema
                .kind(&gv.kind(kind))
                .unwrap_or_else(|| panic!("{api} {kind}"));
            assert!(matches!(schema.get(id), Type::Struct(_)), "{api} {kind}");
        }
    }
    for (gvk, id) in schema.kinds() {
        assert!(schema.get_struct(id).is_some(), "{gvk:?}");
    }
}

#[test]
fn fields_are_sorted_and_keys_are_fields() {
    let schema = Schema::builtin();
    for ty in &schema.types {
        let Type::Struct(s) = ty else { continue };
        assert!(s.fields.is_sorted_by(|a, b| a.name < b.name), "{}", s.name);
        for field in &s.fields {
            let Type::List(list) = schema.get(field.ty) else {
                continue;
            };
            let ListKind::Map(keys) = &list.kind else {
                continue;
            };
            let item = schema.get_struct(list.item).unwrap();
            for key in keys {
                assert!(
                    item.field(key).is_some(),
                    "{}.{} by {key}",
                    s.name,
                    field.name
                );
            }
        }
    }
}

#[test]
fn a_damaged_table_is_refused() {
    let good = include_bytes!("builtin.bin");
    assert_eq!(
        Schema::from_table(&good[..good.len() / 2]).unwrap_err(),
        TableError::Inflate
    );
    assert_eq!(Schema::from_table(b"").unwrap_err(), TableError::Inflate);
}

#[test]
fn descriptions_belong_to_their_fields() {
    let docs = Schema::descriptions();
    let schema = Schema::builtin();
    let name = "io.k8s.api.core.v1.PodSpec";
    let spec = schema.get_struct(schema.by_name(name).unwrap()).unwrap();
    let at = spec.fields.iter().position(|f| &*f.name == "nodeName");
    assert!(
        docs.of(name)
            .starts_with("PodSpec is a description of a pod")
    );
    assert!(docs.of_field(name, at.unwrap()).contains("node"));
    assert_eq!(docs.of("no.such.Type"), "");
}
