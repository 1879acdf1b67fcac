"""What start_training.sh asks Compose for, in its own bash with a stand-in for Compose."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("services", "profile"), [("grpo-h100", "grpo-h100"), ("grpo-h100 grpo-vllm", "grpo-3b-2gpu")]
)
def test_a_start_brings_up_its_own_services_alone(services: str, profile: str) -> None:
    """With every profile active, `up grpo-h100` would start grpo-vllm too and wait for it."""
    script = f"""
        . scripts/_docker.sh
        services() {{ echo {services}; }}
        compose() {{ echo "$TATARA_PROFILE: $*" >&2; echo container; }}
        NODE_RANK=
        begin {profile} {profile} train.seed=1
    """
    done = subprocess.run(["bash", "-ec", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = next((ROOT / "profiles").rglob(f"{profile}.yaml")).relative_to(ROOT)
    assert done.stderr.splitlines()[0] == f"{path}: up --detach --force-recreate {services}"
