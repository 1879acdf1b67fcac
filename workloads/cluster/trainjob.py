"""A profile as a TrainJob of Kubeflow Trainer 2.3: a ConfigMap, a TrainingRuntime and the job.

Exit codes of a pod, and what happens then:

    0                done
    1, 2, 3          the pod failure policy fails the Job, and its own the JobSet: no restart
    75, 137, 143     the Job fails by its back-off limit: the JobSet makes all pods again, in the
                     same run, `retries` times
    a node drained   the disruption rule goes before: a pod alone is made again and goes on. Of
                     several nodes the others save too and end with 3; the job is submitted again
                     with the same run id

SIGTERM reaches process 1 of a container and nobody else, so the shell there has to `exec`.
"""

import re
from dataclasses import dataclass
from typing import Any

from workloads.cluster.job import ClusterJob
from workloads.errors import UserError

GROUP = "trainer.kubeflow.org/v1alpha1"
_PROFILES, _VOLUME = "/etc/tatara", "/volume"
_GRACE = 600  # seconds for the last step and its checkpoint
_UID = 1000  # of the images
# Trainer's names to Tatara's. torchrun reads PET_* as defaults of its own: they go.
_SCRIPT = """\
export NNODES="$PET_NNODES" NODE_RANK="$PET_NODE_RANK"
export MASTER_ADDR="$PET_MASTER_ADDR" MASTER_PORT="$PET_MASTER_PORT"
unset "${!PET_@}"
exec python -m workloads.entry train %s
"""


@dataclass(frozen=True)
class ClusterPlace:
    """Where in the cluster a job runs.

    volume: a claim that all nodes may write (ReadWriteMany), for outputs and downloads. secret: the
    Secret that holds tokens under their names. queue: of Kueue. shm: /dev/shm, which counts as
    memory.
    """

    volume: str = "tatara"
    secret: str = "tatara"
    queue: str = ""
    namespace: str = ""
    shm: str = "16Gi"


def job_name(name: str, run_id: str) -> str:
    """Name of the TrainJob: with `-node-0-10` behind it, a pod's host name has at most 63 letters.

    Raises UserError for a run id that leaves no room.
    """
    short = re.sub(r"[^a-z0-9]+", "-", name.lower())[:22].strip("-")
    run = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    found = f"tatara-{short}-{run}"
    if len(found) > 53:
        raise UserError(
            f"--run-id: expected at most {53 - len(found) + len(run)} letters, found {run_id!r}; "
            "host names of pods have no room for more"
        )
    return found


def documents(job: ClusterJob, place: ClusterPlace) -> list[dict[str, Any]]:
    """The documents to apply, in this order.

    Raises UserError where no image is named.
    """
    if not job.image:
        raise UserError(
            "expected --image ADDRESS of an image that the cluster can pull, found none; build and "
            "push one (docs/clusters.md)"
        )
    facts: dict[str, Any] = {"name": job_name(job.name, job.run_id)}
    if place.namespace:
        facts["namespace"] = place.namespace
    labels = {"app.kubernetes.io/part-of": "tatara"}
    meta = {**facts, "labels": labels}
    profiles = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "data": {f"{job.name}.yaml": job.profile},
    }
    runtime = {
        "apiVersion": GROUP,
        "kind": "TrainingRuntime",
        "metadata": {**meta, "labels": {**labels, "trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": job.nodes, "torch": {}},
            "template": {"spec": _job_set(job, place, facts["name"])},
        },
    }
    queue = {"kueue.x-k8s.io/queue-name": place.queue} if place.queue else {}
    spec: dict[str, Any] = {
        "runtimeRef": {
            "apiGroup": GROUP.partition("/")[0],
            "kind": "TrainingRuntime",
            "name": facts["name"],
        },
        "trainer": _trainer(job, place),
    }
    if job.hours:
        spec["activeDeadlineSeconds"] = round(job.hours * 3600)
    train_job = {
        "apiVersion": GROUP,
        "kind": "TrainJob",
        "metadata": {**meta, "labels": {**labels, **queue}},
        "spec": spec,
    }
    return [profiles, runtime, train_job]


def _trainer(job: ClusterJob, place: ClusterPlace) -> dict[str, Any]:
    """The container that trains; variables count only in its own `env`."""
    limits = {"nvidia.com/gpu": job.gpus, "cpu": job.cpus}
    env: list[dict[str, Any]] = [
        {"name": "RUN_ID", "value": job.run_id},
        {"name": "TATARA_OUTPUTS", "value": f"{_VOLUME}/outputs"},
        {"name": "TATARA_CACHE", "value": f"{_VOLUME}/cache"},
        {"name": "HF_HOME", "value": f"{_VOLUME}/cache/huggingface"},
    ]
    for name in job.secrets:
        source = {"secretKeyRef": {"name": place.secret, "key": name}}
        env.append({"name": name, "valueFrom": source})
    found: dict[str, Any] = {
        "image": job.image,
        "command": ["bash", "-c"],
        "args": [_SCRIPT % f"{_PROFILES}/{job.name}.yaml"],
        "numNodes": job.nodes,
        "numProcPerNode": job.ranks,
        "env": env,
    }
    if any(limits.values()):
        found["resourcesPerNode"] = {"limits": {key: n for key, n in limits.items() if n}}
    return found


def _job_set(job: ClusterJob, place: ClusterPlace, name: str) -> dict[str, Any]:
    """JobSet of the runtime: Trainer expects a job and a container named `node` in it."""
    container = {
        "name": "node",
        "image": job.image,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "volume", "mountPath": _VOLUME},
            {"name": "profiles", "mountPath": _PROFILES, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE,
        "shareProcessNamespace": True,  # process 1 of the pod reaps orphaned children
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "volume", "persistentVolumeClaim": {"claimName": place.volume}},
            {"name": "profiles", "configMap": {"name": name}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": place.shm}},
        ],
    }
    exits = {"containerName": "node", "operator": "In", "values": [1, 2, 3]}
    policy = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": exits},
    ]
    ended = {
        "name": "ended",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,
                "podFailurePolicy": {"rules": policy},
                "template": {"spec": pod},
            },
        },
    }
    return {
        "failurePolicy": {"maxRestarts": job.retries, "rules": [ended]},
        "network": {"publishNotReadyAddresses": True},
        "replicatedJobs": [node],
    }
