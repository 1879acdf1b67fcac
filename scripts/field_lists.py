"""Write workloads/cluster/field_lists/: which fields the engines' own schemas know, no more.

python scripts/field_lists.py trainer FOLDER   # a checkout of github.com/kubeflow/trainer at a tag
python scripts/field_lists.py sky              # with the python of an environment that has SkyPilot
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

LISTS = Path(__file__).resolve().parent.parent / "workloads" / "cluster" / "field_lists"
_KINDS = {"TrainJob": "trainjobs", "TrainingRuntime": "trainingruntimes"}


def reduced(schema: dict[str, Any]) -> Any:
    """A JSON schema as names of fields and types of values alone."""
    if schema.get("x-kubernetes-int-or-string"):
        return ["integer", "string"]
    if "anyOf" in schema:
        return {"any": [reduced(choice) for choice in schema["anyOf"]]}
    if "properties" in schema:
        fields = {name: reduced(inner) for name, inner in schema["properties"].items()}
        required = schema.get("required")
        return {"fields": fields, **({"required": required} if required else {})}
    values = schema.get("additionalProperties") or next(
        iter(schema.get("patternProperties", {}).values()), None
    )
    if isinstance(values, dict):
        return {"values": reduced(values)}
    if "items" in schema:
        return {"items": reduced(schema["items"])}
    if "enum" in schema:
        return {"enum": schema["enum"]}
    kind = schema.get("type", "any")
    return [kind] if isinstance(kind, str) else kind


def trainer(checkout: Path) -> dict[str, Any]:
    """Of the two kinds that we render, from the definitions that the project publishes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    kinds = {}
    for kind, plural in _KINDS.items():
        path = f"manifests/base/crds/trainer.kubeflow.org_{plural}.yaml"
        (version,) = yaml.safe_load((checkout / path).read_text())["spec"]["versions"]
        kinds[kind] = reduced(version["schema"]["openAPIV3Schema"])
    return {
        "source": "https://github.com/kubeflow/trainer, manifests/base/crds",
        "version": f"{git('describe', '--tags')}, commit {git('rev-parse', 'HEAD')}",
        "licence": "Apache-2.0",
        "kinds": kinds,
    }


def sky() -> dict[str, Any]:
    """Of a task, from the schema that SkyPilot checks it by."""
    import sky as library
    from sky.utils import schemas

    task = reduced(schemas.get_task_schema())
    task["fields"]["config"] = ["object"]  # all settings of the client, none of which we write
    task["fields"]["resources"] = reduced(schemas.get_resources_schema())
    return {
        "source": "https://github.com/skypilot-org/skypilot, sky/utils/schemas.py",
        "version": library.__version__,
        "licence": "Apache-2.0",
        "kinds": {"Task": task},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=["trainer", "sky"])
    parser.add_argument("checkout", nargs="?", type=Path)
    args = parser.parse_args()
    found = trainer(args.checkout) if args.engine == "trainer" else sky()
    text = json.dumps(found, separators=(",", ":"), sort_keys=True)
    (LISTS / f"{args.engine}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
