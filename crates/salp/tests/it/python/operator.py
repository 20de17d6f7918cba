"""An operator made with kopf: for each Stall it keeps a ConfigMap with what is sold there.

Run as `python -m kopf run operator.py`. CERT and KEY are files of the certificate that its
admission webhook serves with at PORT, CA the authority that signed it.
"""

import os

import kopf
from kubernetes import client, config

config.load_kube_config()
core = client.CoreV1Api()


@kopf.on.startup()
def configure(settings, **_):
    settings.peering.name = "stalls"
    settings.peering.mandatory = True
    settings.admission.managed = "stalls.fair.example"
    settings.admission.server = kopf.WebhookServer(
        addr="127.0.0.1",
        port=int(os.environ["PORT"]),
        certfile=os.environ["CERT"],
        pkeyfile=os.environ["KEY"],
        cafile=os.environ["CA"],
    )
    # What is lost while the API is away is made up for soon.
    settings.networking.error_backoffs = [0.2] * 100
    settings.watching.server_timeout = 60


@kopf.on.validate("fair.example", "v1", "stalls")
def is_sold(spec, warnings, **_):
    if "sand" in spec.get("wares", []):
        raise kopf.AdmissionError("nobody buys sand", code=422)
    if not spec.get("wares"):
        warnings.append("an empty stall")


@kopf.on.mutate("fair.example", "v1", "stalls", operation="CREATE")
def has_an_owner(spec, patch, **_):
    if "keeper" not in spec:
        patch.spec["keeper"] = "nobody"


def sold(wares):
    return {"wares": ",".join(wares)}


@kopf.on.create("fair.example", "v1", "stalls")
def open_stall(spec, name, namespace, body, **_):
    made = {"metadata": {"name": f"{name}-wares"}, "data": sold(spec["wares"])}
    kopf.adopt(made, owner=body)
    made = core.create_namespaced_config_map(namespace, made)
    kopf.info(body, reason="Opened", message=f"sells {len(spec['wares'])} wares")
    return {"map": made.metadata.name}


@kopf.on.field("fair.example", "v1", "stalls", field="spec.wares", old=kopf.PRESENT)
def sell(old, new, name, namespace, patch, **_):
    core.patch_namespaced_config_map(f"{name}-wares", namespace, {"data": sold(new)})
    patch.status["changed"] = f"{len(old)} to {len(new)}"


@kopf.on.update("fair.example", "v1", "stalls")
def note(spec, diff, patch, **_):
    patch.status["keeper"] = spec["keeper"]
    patch.status["differences"] = len(diff)


@kopf.on.delete("fair.example", "v1", "stalls")
def close(name, namespace, **_):
    made = {"metadata": {"name": f"{name}-closed"}, "data": {"by": "operator"}}
    core.create_namespaced_config_map(namespace, made)


@kopf.timer("fair.example", "v1", "stalls", interval=0.5)
def tick(status, patch, **_):
    patch.status["ticks"] = status.get("ticks", 0) + 1


@kopf.on.event("configmaps", labels={"watched": "yes"})
def seen(type, name, namespace, meta, **_):
    if type in ("ADDED", "MODIFIED") and "seen" not in meta.get("annotations", {}):
        core.patch_namespaced_config_map(
            name, namespace, {"metadata": {"annotations": {"seen": "yes"}}}
        )
