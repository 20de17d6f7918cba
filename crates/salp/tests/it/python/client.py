"""Walks the API as programs do that use the Python client of Kubernetes.

It is given KUBECONFIG, a namespace that is its own (NAMESPACE), and the name of a pod that is
ready, serves "hello" at port 8080 and has the programs cat, show and fail (POD).
"""

import base64
import json
import os
import threading
import unittest

import urllib3
import yaml
from kubernetes import client, config, dynamic, informer, stream, utils, watch
from kubernetes.client import ApiException
from kubernetes.dynamic import exceptions
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

NAMESPACE = os.environ["NAMESPACE"]
POD = os.environ["POD"]
# No wait is longer.
PATIENCE = 60

config.load_kube_config()
core = client.CoreV1Api()
apps = client.AppsV1Api()
batch = client.BatchV1Api()
custom = client.CustomObjectsApi()


def config_map(name, data=None, labels=None, **meta):
    metadata = client.V1ObjectMeta(name=name, labels=labels, **meta)
    return client.V1ConfigMap(metadata=metadata, data=data or {"a": "1"})


def template(labels):
    container = client.V1Container(name="main", image="none/none:1", image_pull_policy="Never")
    spec = client.V1PodSpec(containers=[container], termination_grace_period_seconds=0)
    return client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=spec)


def until(accept, func, *args, **kwargs):
    """The first object that a watch shows and that is accepted."""
    watching = watch.Watch()
    for event in watching.stream(func, *args, timeout_seconds=PATIENCE, **kwargs):
        if accept(event):
            watching.stop()
            return event["object"]
    raise AssertionError("the watch ended before that was seen")


class Walk(unittest.TestCase):
    maxDiff = None

    def refused(self, code, reason, func, *args, **kwargs):
        """The Status that a call is refused with."""
        with self.assertRaises(ApiException) as caught:
            func(*args, **kwargs)
        self.assertEqual(caught.exception.status, code, caught.exception.body)
        status = json.loads(caught.exception.body)
        self.assertEqual(status["kind"], "Status")
        self.assertEqual(status["code"], code)
        self.assertEqual(status["reason"], reason, status)
        return status


class Core(Walk):
    def test_version_and_discovery(self):
        self.assertEqual(client.VersionApi().get_code().major, "1")
        groups = {g.name: g for g in client.ApisApi().get_api_versions().groups}
        self.assertEqual(groups["apps"].preferred_version.group_version, "apps/v1")
        kinds = {r.name: r for r in core.get_api_resources().resources}
        self.assertEqual(kinds["configmaps"].short_names, ["cm"])
        self.assertEqual(kinds["pods/exec"].kind, "PodExecOptions")

    def test_life_of_a_config_map(self):
        made = core.create_namespaced_config_map(NAMESPACE, config_map("life", labels={"a": "b"}))
        self.assertTrue(made.metadata.uid)
        self.assertIsNotNone(made.metadata.creation_timestamp.tzinfo)
        status = self.refused(
            409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, config_map("life")
        )
        self.assertEqual(status["details"], {"name": "life", "kind": "configmaps"})

        patch = core.patch_namespaced_config_map
        # A dictionary is sent as a strategic patch, a list as a JSON patch.
        self.assertEqual(patch("life", NAMESPACE, {"data": {"b": "2"}}).data, {"a": "1", "b": "2"})
        ops = [{"op": "test", "path": "/data/a", "value": "1"}, {"op": "remove", "path": "/data/a"}]
        self.assertEqual(patch("life", NAMESPACE, ops).data, {"b": "2"})
        self.refused(422, "Invalid", patch, "life", NAMESPACE, ops)
        merged = patch(
            "life", NAMESPACE, {"data": None}, _content_type="application/merge-patch+json"
        )
        self.assertIsNone(merged.data)

        seen = core.read_namespaced_config_map("life", NAMESPACE)
        seen.data = {"c": "3"}
        seen.binary_data = {"raw": base64.b64encode(b"\x00\xff").decode()}
        replaced = core.replace_namespaced_config_map("life", NAMESPACE, seen)
        self.assertEqual(replaced.data, {"c": "3"})
        self.assertEqual(replaced.binary_data, {"raw": "AP8="})
        status = self.refused(
            409, "Conflict", core.replace_namespaced_config_map, "life", NAMESPACE, seen
        )
        self.assertIn("the object has been modified", status["message"])

        tried = core.replace_namespaced_config_map(
            "life", NAMESPACE, config_map("life", {"d": "4"}), dry_run="All"
        )
        self.assertEqual(tried.data, {"d": "4"})
        now = core.read_namespaced_config_map("life", NAMESPACE)
        self.assertEqual(now.metadata.resource_version, replaced.metadata.resource_version)

        wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="other"))
        self.refused(
            409, "Conflict", core.delete_namespaced_config_map, "life", NAMESPACE, body=wrong
        )
        gone = core.delete_namespaced_config_map("life", NAMESPACE)
        self.assertEqual(gone["status"], "Success")
        status = self.refused(
            404, "NotFound", core.read_namespaced_config_map, "life", NAMESPACE
        )
        self.assertEqual(status["message"], 'configmaps "life" not found')

    def test_errors_name_the_field(self):
        status = self.refused(
            422, "Invalid", core.create_namespaced_config_map, NAMESPACE, config_map("Not_A_Name")
        )
        self.assertEqual(status["details"]["causes"][0]["field"], "metadata.name")
        service = {
            "metadata": {"name": "wrong"},
            "spec": {"ports": [{"port": 70000}, {"port": 1}], "type": "Nothing"},
        }
        status = self.refused(
            422, "Invalid", core.create_namespaced_service, NAMESPACE, service
        )
        fields = {cause["field"] for cause in status["details"]["causes"]}
        for field in ["spec.ports[0].port", "spec.ports[0].name", "spec.type"]:
            self.assertIn(field, fields)
        self.refused(404, "NotFound", core.create_namespaced_config_map, "nowhere", config_map("x"))
        self.refused(400, "BadRequest", core.list_namespaced_pod, NAMESPACE, label_selector="a in b")
        nobody = client.ApiClient(client.Configuration.get_default_copy())
        nobody.configuration.cert_file = nobody.configuration.key_file = None
        nobody = client.CoreV1Api(client.ApiClient(nobody.configuration))
        status = self.refused(403, "Forbidden", nobody.list_namespaced_secret, NAMESPACE)
        self.assertIn('User "system:anonymous" cannot list resource "secrets"', status["message"])

    def test_lists_by_pages_and_selectors(self):
        for number in range(7):
            labels = {"list": "pages", "odd": str(number % 2)}
            core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number}", labels=labels))
        names, token, pages = [], None, 0
        while True:
            page = core.list_namespaced_config_map(
                NAMESPACE, label_selector="list=pages", limit=3, _continue=token
            )
            names += [item.metadata.name for item in page.items]
            pages += 1
            token = page.metadata._continue
            if not token:
                break
        self.assertEqual(pages, 3)
        self.assertEqual(names, [f"page-{n}" for n in range(7)])
        first = core.list_namespaced_config_map(NAMESPACE, limit=3)
        self.assertGreaterEqual(first.metadata.remaining_item_count, 4)
        self.refused(
            400, "BadRequest", core.list_namespaced_config_map, NAMESPACE, limit=3, _continue="no"
        )

        def select(**by):
            return [c.metadata.name for c in core.list_namespaced_config_map(NAMESPACE, **by).items]

        self.assertEqual(select(label_selector="list,odd notin (0)"), ["page-1", "page-3", "page-5"])
        self.assertEqual(select(field_selector="metadata.name=page-2"), ["page-2"])
        self.assertEqual(select(label_selector="list=pages,odd=0,!list"), [])
        everywhere = core.list_config_map_for_all_namespaces(label_selector="list=pages")
        self.assertEqual(len(everywhere.items), 7)
        core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="odd=1")
        self.assertEqual(
            select(label_selector="list=pages"), ["page-0", "page-2", "page-4", "page-6"]
        )

    def test_pods_of_a_node_and_events(self):
        node = core.list_node().items[0]
        ready = {c.type: c.status for c in node.status.conditions}
        self.assertEqual(ready["Ready"], "True")
        self.assertGreater(utils.parse_quantity(node.status.allocatable["memory"]), 0)
        pods = core.list_pod_for_all_namespaces(
            field_selector=f"spec.nodeName={node.metadata.name},status.phase=Running"
        )
        self.assertIn(POD, [p.metadata.name for p in pods.items])
        events = core.list_namespaced_event(
            NAMESPACE, field_selector=f"involvedObject.name={POD},reason=Scheduled"
        )
        self.assertEqual([e.involved_object.kind for e in events.items], ["Pod"])
        now = events.items[0].metadata.creation_timestamp
        made = core.create_namespaced_event(
            NAMESPACE,
            client.CoreV1Event(
                metadata=client.V1ObjectMeta(generate_name="walk-"),
                involved_object=client.V1ObjectReference(
                    kind="Pod", name=POD, namespace=NAMESPACE, api_version="v1"
                ),
                reason="Walked",
                message="past",
                type="Normal",
                first_timestamp=now,
                last_timestamp=now,
                event_time=now,
                action="Walk",
                reporting_component="walk.example/walker",
                reporting_instance="walker-1",
                source=client.V1EventSource(component="walker"),
            ),
        )
        # The same object by the other group.
        other = client.EventsV1Api().read_namespaced_event(made.metadata.name, NAMESPACE)
        self.assertEqual((other.note, other.regarding.name), ("past", POD))

    def test_metrics(self):
        def usage():
            found = utils.metrics.get_nodes_metrics(client.ApiClient())
            return [item["usage"] for item in found["items"]]

        # The first figures come some seconds after the start.
        for _ in range(PATIENCE):
            if usage():
                break
            threading.Event().wait(1)
        self.assertGreater(utils.parse_quantity(usage()[0]["memory"]), 0)


class Workloads(Walk):
    def test_deployment(self):
        spec = client.V1DeploymentSpec(
            replicas=2,
            selector=client.V1LabelSelector(match_labels={"app": "walk"}),
            template=template({"app": "walk"}),
        )
        deployment = client.V1Deployment(metadata=client.V1ObjectMeta(name="walk"), spec=spec)
        made = apps.create_namespaced_deployment(NAMESPACE, deployment)
        self.assertEqual(made.spec.strategy.rolling_update.max_surge, "25%")

        def replicas(wanted):
            return lambda event: event["object"].status.replicas == wanted

        by_name = {"field_selector": "metadata.name=walk"}
        until(replicas(2), apps.list_namespaced_deployment, NAMESPACE, **by_name)
        scale = apps.read_namespaced_deployment_scale("walk", NAMESPACE)
        self.assertEqual(scale.status.selector, "app=walk")
        scale.spec.replicas = 3
        apps.replace_namespaced_deployment_scale("walk", NAMESPACE, scale)
        seen = until(replicas(3), apps.list_namespaced_deployment, NAMESPACE, **by_name)
        self.assertEqual(seen.metadata.generation, 2)
        self.assertEqual(seen.status.observed_generation, 2)
        apps.patch_namespaced_deployment_scale("walk", NAMESPACE, {"spec": {"replicas": 1}})

        # A strategic patch finds the container by its name; a merge patch replaces the list.
        env = [{"name": "A", "value": "1"}]
        body = {"spec": {"template": {"spec": {"containers": [{"name": "main", "env": env}]}}}}
        patched = apps.patch_namespaced_deployment("walk", NAMESPACE, body)
        main = patched.spec.template.spec.containers[0]
        self.assertEqual((main.image, main.env[0].value), ("none/none:1", "1"))
        self.refused(
            422,
            "Invalid",
            apps.patch_namespaced_deployment,
            "walk",
            NAMESPACE,
            body,
            _content_type="application/merge-patch+json",
        )
        self.refused(
            422,
            "Invalid",
            apps.patch_namespaced_deployment,
            "walk",
            NAMESPACE,
            {"spec": {"selector": {"matchLabels": {"app": "other"}}}},
        )
        patched = apps.patch_namespaced_deployment_status(
            "walk", NAMESPACE, {"status": {"collisionCount": 7}, "spec": {"replicas": 9}}
        )
        self.assertEqual(patched.spec.replicas, 1)

        foreground = client.V1DeleteOptions(propagation_policy="Foreground")
        apps.delete_namespaced_deployment("walk", NAMESPACE, body=foreground)
        left = core.list_namespaced_pod(NAMESPACE, label_selector="app=walk")
        if apps.list_namespaced_deployment(NAMESPACE, **by_name).items:
            until(
                lambda event: event["type"] == "DELETED",
                apps.list_namespaced_deployment,
                NAMESPACE,
                **by_name,
            )
        left = core.list_namespaced_pod(NAMESPACE, label_selector="app=walk")
        self.assertEqual(left.items, [])

    def test_job_and_cron_job(self):
        job = client.V1Job(
            metadata=client.V1ObjectMeta(name="once"),
            spec=client.V1JobSpec(template=template({"of": "once"}), backoff_limit=0),
        )
        self.refused(422, "Invalid", batch.create_namespaced_job, NAMESPACE, job)
        job.spec.template.spec.restart_policy = "Never"
        batch.create_namespaced_job(NAMESPACE, job)
        pod = until(
            lambda event: True, core.list_namespaced_pod, NAMESPACE, label_selector="of=once"
        )
        self.assertEqual(pod.metadata.owner_references[0].kind, "Job")
        self.assertEqual(pod.metadata.labels["batch.kubernetes.io/job-name"], "once")
        batch.patch_namespaced_job("once", NAMESPACE, {"spec": {"suspend": True}})
        until(
            lambda event: any(c.type == "Suspended" for c in event["object"].status.conditions or []),
            batch.list_namespaced_job,
            NAMESPACE,
        )
        batch.delete_namespaced_job("once", NAMESPACE, propagation_policy="Background")

        cron = client.V1CronJob(
            metadata=client.V1ObjectMeta(name="yearly"),
            spec=client.V1CronJobSpec(
                schedule="0 0 1 1 *",
                job_template=client.V1JobTemplateSpec(spec=job.spec),
            ),
        )
        made = batch.create_namespaced_cron_job(NAMESPACE, cron)
        self.assertEqual(made.spec.concurrency_policy, "Allow")
        cron.spec.schedule = "often"
        self.refused(
            422, "Invalid", batch.replace_namespaced_cron_job, "yearly", NAMESPACE, cron
        )

    def test_create_from_yaml(self):
        text = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: from-yaml}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: from-yaml}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list]}]
---
apiVersion: v1
kind: List
items:
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: {name: from-yaml}
  roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: from-yaml}
  subjects: [{kind: ServiceAccount, name: from-yaml}]
- apiVersion: autoscaling/v2
  kind: HorizontalPodAutoscaler
  metadata: {name: from-yaml}
  spec:
    maxReplicas: 2
    scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: none}
"""
        objects = list(yaml.safe_load_all(text))
        api = client.ApiClient()
        utils.create_from_yaml(api, yaml_objects=objects, namespace=NAMESPACE)
        with self.assertRaises(utils.FailToCreateError) as caught:
            utils.create_from_yaml(api, yaml_objects=objects[:1], namespace=NAMESPACE)
        self.assertEqual(caught.exception.api_exceptions[0].status, 409)
        utils.create_from_yaml(api, yaml_objects=objects[:2], namespace=NAMESPACE, apply=True)

        # Who has the account's token may do what the role says, and no more.
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600)
        )
        token = core.create_namespaced_service_account_token("from-yaml", NAMESPACE, request)
        by_token = client.Configuration.get_default_copy()
        by_token.cert_file = by_token.key_file = None
        by_token.api_key = {"authorization": f"Bearer {token.status.token}"}
        account = client.CoreV1Api(client.ApiClient(by_token))
        account.list_namespaced_config_map(NAMESPACE)
        status = self.refused(403, "Forbidden", account.list_namespaced_pod, NAMESPACE)
        self.assertIn(f"system:serviceaccount:{NAMESPACE}:from-yaml", status["message"])
        review = client.AuthenticationV1Api(client.ApiClient(by_token)).create_self_subject_review(
            client.V1SelfSubjectReview()
        )
        self.assertIn("system:serviceaccounts", review.status.user_info.groups)
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(
                resource_attributes=client.V1ResourceAttributes(
                    namespace=NAMESPACE, verb="list", resource="configmaps"
                )
            )
        )
        review = client.AuthorizationV1Api(
            client.ApiClient(by_token)
        ).create_self_subject_access_review(review)
        self.assertTrue(review.status.allowed)
        by_token.api_key = {"authorization": "Bearer nonsense"}
        nobody = client.CoreV1Api(client.ApiClient(by_token))
        self.refused(401, "Unauthorized", nobody.list_namespaced_config_map, NAMESPACE)


class Watches(Walk):
    def test_watch_resumes(self):
        labels = {"watch": "resume"}
        by_label = {"label_selector": "watch=resume"}
        start = core.list_namespaced_config_map(NAMESPACE, **by_label).metadata.resource_version
        core.create_namespaced_config_map(NAMESPACE, config_map("seen-1", labels=labels))
        core.create_namespaced_config_map(NAMESPACE, config_map("seen-2", labels=labels))
        core.patch_namespaced_config_map("seen-1", NAMESPACE, {"data": {"a": "2"}})
        core.delete_namespaced_config_map("seen-2", NAMESPACE)

        def events(since, **kwargs):
            watching = watch.Watch()
            found = watching.stream(
                core.list_namespaced_config_map,
                NAMESPACE,
                resource_version=since,
                timeout_seconds=1,
                **by_label,
                **kwargs,
            )
            seen = [(e["type"], e["object"].metadata.name, watching.resource_version) for e in found]
            return seen

        all_of_it = events(start)
        self.assertEqual(
            [event[:2] for event in all_of_it],
            [("ADDED", "seen-1"), ("ADDED", "seen-2"), ("MODIFIED", "seen-1"), ("DELETED", "seen-2")],
        )
        self.assertEqual(events(all_of_it[1][2]), all_of_it[2:])
        self.assertEqual([e[:2] for e in events("0")], [("ADDED", "seen-1")])
        # What leaves the selection is told as deleted.
        core.patch_namespaced_config_map(
            "seen-1", NAMESPACE, {"metadata": {"labels": {"watch": None}}}
        )
        self.assertEqual([e[:2] for e in events(all_of_it[3][2])], [("DELETED", "seen-1")])

    def test_streaming_list_and_bookmarks(self):
        core.create_namespaced_config_map(NAMESPACE, config_map("streamed", labels={"s": "1"}))
        kinds = dynamic.DynamicClient(client.ApiClient()).resources
        maps = kinds.get(api_version="v1", kind="ConfigMap")
        seen = []
        for event in maps.watch(
            namespace=NAMESPACE,
            label_selector="s=1",
            timeout=PATIENCE,
            send_initial_events=True,
            resource_version_match="NotOlderThan",
            allow_watch_bookmarks=True,
        ):
            meta = event["object"].metadata
            seen.append((event["type"], meta.name))
            if event["type"] == "BOOKMARK":
                self.assertEqual(meta.annotations["k8s.io/initial-events-end"], "true")
                break
        self.assertEqual(seen, [("ADDED", "streamed"), ("BOOKMARK", None)])

    def test_informer(self):
        told = {kind: threading.Event() for kind in ("ADDED", "MODIFIED", "DELETED")}
        shared = informer.SharedInformer(
            list_func=core.list_namespaced_config_map,
            namespace=NAMESPACE,
            label_selector="informed=yes",
        )
        for kind, event in told.items():
            shared.add_event_handler(kind, lambda _object, event=event: event.set())
        labels = {"informed": "yes"}
        core.create_namespaced_config_map(NAMESPACE, config_map("informed-1", labels=labels))
        shared.start()
        try:
            self.assertTrue(told["ADDED"].wait(PATIENCE))
            core.patch_namespaced_config_map("informed-1", NAMESPACE, {"data": {"a": "9"}})
            self.assertTrue(told["MODIFIED"].wait(PATIENCE))
            cached = shared.cache.get_by_key(f"{NAMESPACE}/informed-1")
            self.assertEqual(cached.data, {"a": "9"})
            core.delete_namespaced_config_map("informed-1", NAMESPACE)
            self.assertTrue(told["DELETED"].wait(PATIENCE))
        finally:
            shared.stop()

    def test_pods_come_and_go(self):
        finalizer = "walk.example/held"
        pod = client.V1Pod(
            metadata=client.V1ObjectMeta(name="held", finalizers=[finalizer]),
            spec=template({}).spec,
        )
        core.create_namespaced_pod(NAMESPACE, pod)
        by_name = {"field_selector": "metadata.name=held"}
        until(
            lambda e: e["object"].status.container_statuses
            and e["object"].status.container_statuses[0].state.waiting.reason
            == "ErrImageNeverPull",
            core.list_namespaced_pod,
            NAMESPACE,
            **by_name,
        )
        core.delete_namespaced_pod("held", NAMESPACE, grace_period_seconds=0)
        held = core.read_namespaced_pod("held", NAMESPACE)
        self.assertIsNotNone(held.metadata.deletion_timestamp)
        since = held.metadata.resource_version
        core.patch_namespaced_pod("held", NAMESPACE, [{"op": "remove", "path": "/metadata/finalizers"}])
        until(
            lambda e: e["type"] == "DELETED",
            core.list_namespaced_pod,
            NAMESPACE,
            resource_version=since,
            **by_name,
        )


class Custom(Walk):
    @classmethod
    def setUpClass(cls):
        group = "walk.example"
        status = {
            "type": "object",
            "properties": {
                "phase": {"type": "string"},
                "size": {"type": "integer"},
                "conditions": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["type"],
                    "items": {
                        "type": "object",
                        "required": ["type"],
                        "properties": {"type": {"type": "string"}, "status": {"type": "string"}},
                    },
                },
            },
        }
        spec = {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1},
                "colour": {"type": "string", "default": "red"},
                "tags": {
                    "type": "array",
                    "x-kubernetes-list-type": "set",
                    "items": {"type": "string"},
                },
            },
            "x-kubernetes-validations": [
                {"rule": "self.size < 100", "message": "too large to carry"}
            ],
        }
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"boxes.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": "boxes", "singular": "box", "kind": "Box", "shortNames": ["bx"]},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "subresources": {
                            "status": {},
                            "scale": {
                                "specReplicasPath": ".spec.size",
                                "statusReplicasPath": ".status.size",
                            },
                        },
                        "schema": {
                            "openAPIV3Schema": {
                                "type": "object",
                                "properties": {"spec": spec, "status": status},
                            }
                        },
                    }
                ],
            },
        }
        api = client.ApiextensionsV1Api()
        api.create_custom_resource_definition(definition)
        until(
            lambda e: any(
                c.type == "Established" and c.status == "True"
                for c in e["object"].status.conditions or []
            ),
            api.list_custom_resource_definition,
            field_selector=f"metadata.name=boxes.{group}",
        )
        cls.of = {"group": group, "version": "v1", "namespace": NAMESPACE, "plural": "boxes"}

    def box(self, name, **spec):
        return {
            "apiVersion": "walk.example/v1",
            "kind": "Box",
            "metadata": {"name": name},
            "spec": spec,
        }

    def test_custom_objects(self):
        create = custom.create_namespaced_custom_object
        made = create(**self.of, body=self.box("one", size=3, unknown=1))
        self.assertEqual(made["spec"], {"size": 3, "colour": "red"})
        status = self.refused(422, "Invalid", create, **self.of, body=self.box("two", size=200))
        self.assertEqual(
            status["details"]["causes"][0]["message"],
            'Invalid value: "object": too large to carry',
        )
        self.refused(422, "Invalid", create, **self.of, body=self.box("two", colour="blue"))
        self.refused(
            400,
            "BadRequest",
            create,
            **self.of,
            body=self.box("two", size=1, unknown=1),
            field_validation="Strict",
        )
        one = {**self.of, "name": "one"}
        patched = custom.patch_namespaced_custom_object(
            **one, body={"spec": {"size": 4}, "status": {"phase": "no"}}
        )
        self.assertEqual((patched["spec"]["size"], "status" in patched), (4, False))
        patched = custom.patch_namespaced_custom_object_status(
            **one, body={"status": {"phase": "Full"}, "spec": {"size": 9}}
        )
        self.assertEqual((patched["spec"]["size"], patched["status"]), (4, {"phase": "Full"}))
        self.assertEqual(patched["metadata"]["generation"], 2)
        scale = custom.get_namespaced_custom_object_scale(**one)
        self.assertEqual(scale["spec"]["replicas"], 4)
        since = patched["metadata"]["resourceVersion"]
        custom.delete_namespaced_custom_object(**one)
        gone = until(
            lambda e: e["type"] == "DELETED",
            custom.list_namespaced_custom_object,
            **self.of,
            resource_version=since,
        )
        self.assertEqual(gone["metadata"]["name"], "one")

    def test_dynamic_client_applies(self):
        found = dynamic.DynamicClient(client.ApiClient())
        boxes = found.resources.get(api_version="walk.example/v1", kind="Box")
        mine = {"field_manager": "mine", "namespace": NAMESPACE}
        yours = {"field_manager": "yours", "namespace": NAMESPACE}
        made = boxes.server_side_apply(body=self.box("shared", size=1, tags=["a"]), **mine)
        self.assertEqual(made.spec.colour, "red")
        both = boxes.server_side_apply(body=self.box("shared", size=1, tags=["b"]), **yours)
        self.assertEqual(list(both.spec.tags), ["a", "b"])
        with self.assertRaises(exceptions.ConflictError) as caught:
            boxes.server_side_apply(body=self.box("shared", size=2, tags=["b"]), **yours)
        status = json.loads(caught.exception.body)
        cause = status["details"]["causes"][0]
        self.assertEqual((cause["reason"], cause["field"]), ("FieldManagerConflict", ".spec.size"))
        self.assertIn('conflict with "mine"', cause["message"])
        taken = boxes.server_side_apply(
            body=self.box("shared", size=2), force_conflicts=True, **yours
        )
        self.assertEqual((taken.spec.size, list(taken.spec.tags)), (2, ["a"]))
        # A status of its own manager, by key.
        condition = {"type": "Ready", "status": "True"}
        body = {**self.box("shared"), "status": {"conditions": [condition]}}
        del body["spec"]
        ready = boxes.status.server_side_apply(body=body, **mine)
        self.assertEqual(ready.status.conditions[0].to_dict(), condition)
        managers = {(m.manager, m.get("subresource", "")) for m in ready.metadata.managedFields}
        self.assertEqual(managers, {("mine", ""), ("mine", "status"), ("yours", "")})

        listed = boxes.get(namespace=NAMESPACE, field_selector="metadata.name=shared")
        self.assertEqual([b.metadata.name for b in listed.items], ["shared"])
        boxes.patch(
            body=self.box("shared", colour="blue"),
            namespace=NAMESPACE,
            content_type="application/merge-patch+json",
        )
        self.assertEqual(boxes.get(name="shared", namespace=NAMESPACE).spec.colour, "blue")
        boxes.delete(name="shared", namespace=NAMESPACE)
        with self.assertRaises(exceptions.NotFoundError):
            boxes.get(name="shared", namespace=NAMESPACE)

    def test_owned_objects_go_with_their_owner(self):
        owner = custom.create_namespaced_custom_object(**self.of, body=self.box("owner", size=1))
        reference = client.V1OwnerReference(
            api_version="walk.example/v1",
            kind="Box",
            name="owner",
            uid=owner["metadata"]["uid"],
            controller=True,
            block_owner_deletion=True,
        )
        owned = core.create_namespaced_config_map(
            NAMESPACE, config_map("owned", owner_references=[reference])
        )
        custom.delete_namespaced_custom_object(**self.of, name="owner")
        until(
            lambda e: e["type"] == "DELETED",
            core.list_namespaced_config_map,
            NAMESPACE,
            field_selector="metadata.name=owned",
            resource_version=owned.metadata.resource_version,
        )


class Streams(Walk):
    def exec(self, command, **kwargs):
        return stream.stream(
            core.connect_get_namespaced_pod_exec,
            POD,
            NAMESPACE,
            command=command,
            stderr=True,
            stdout=True,
            **kwargs,
        )

    def test_exec(self):
        said = self.exec(["show", "one"])
        self.assertEqual(said.split("\0")[:2], ["show", "one"])
        session = self.exec(["cat"], stdin=True, _preload_content=False)
        for text in ["first", "second"]:
            session.write_stdin(text)
            seen = ""
            while len(seen) < len(text):
                session.update(timeout=PATIENCE)
                seen += session.read_stdout()
            self.assertEqual(seen, text)
        session.close()
        failed = self.exec(["fail"], _preload_content=False)
        failed.run_forever(timeout=PATIENCE)
        self.assertEqual((failed.read_stderr(), failed.returncode), ("no\n", 7))
        with self.assertRaises(ApiException) as caught:
            self.exec(["cat"], container="none")
        self.assertIn("400", caught.exception.reason)
        self.assertIn("container none is not valid", caught.exception.reason)

    def test_logs(self):
        name = "talks"
        self.assertIsInstance(core.read_namespaced_pod_log(POD, NAMESPACE), str)
        status = self.refused(
            404, "NotFound", core.read_namespaced_pod_log, name, NAMESPACE
        )
        self.assertEqual(status["details"]["name"], name)

    def test_port_forward(self):
        forward = stream.portforward(
            core.connect_get_namespaced_pod_portforward, POD, NAMESPACE, ports="8080"
        )
        connection = forward.socket(8080)
        connection.setblocking(True)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
        connection.close()
        self.assertTrue(answer.startswith(b"HTTP/1.1 200"), answer)
        self.assertIn(b"hello", answer.lower())
        self.assertIsNone(forward.error(8080))

    def test_proxies(self):
        said = core.connect_get_namespaced_pod_proxy(f"{POD}:8080", NAMESPACE)
        self.assertIn("hello", said.lower())
        body = core.api_client.call_api(
            *core.api_client.param_serialize("GET", "/healthz", auth_settings=["BearerToken"])
        )
        self.assertEqual(body.read(), b"ok")


class Election(Walk):
    def elect(self, lock):
        led, stopped = threading.Event(), threading.Event()
        settings = electionconfig.Config(
            lock,
            lease_duration=3,
            renew_deadline=2,
            retry_period=1,
            onstarted_leading=led.set,
            onstopped_leading=stopped.set,
        )
        election = leaderelection.LeaderElection(settings)
        threading.Thread(target=election.run, daemon=True).start()
        return led, stopped

    def test_leases_change_hands(self):
        for kind in (LeaseLock, ConfigMapLock):
            name = kind.__name__.lower()
            first, stopped = self.elect(kind(name, NAMESPACE, "first"))
            self.assertTrue(first.wait(PATIENCE))
            second, _ = self.elect(kind(name, NAMESPACE, "second"))
            self.assertFalse(second.wait(2))
            self.assertFalse(stopped.is_set())
        lease = client.CoordinationV1Api().read_namespaced_lease("leaselock", NAMESPACE)
        self.assertEqual(lease.spec.holder_identity, "first")
        self.assertEqual(lease.spec.renew_time.tzinfo.utcoffset(None).total_seconds(), 0)


if __name__ == "__main__":
    urllib3.disable_warnings()
    unittest.main()
