"""The trainings that faults strike: a language model, and a policy with a head over windows."""

import pytest

from tests.support.calvin_cases import write_calvin
from tests.support.processes import Trainings


@pytest.fixture(params=["llm", pytest.param("policy", marks=pytest.mark.slow)])
def begin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """Starts a training of two ranks, sharded."""
    if request.param == "llm":
        return Trainings("profiles/demo.yaml", "arithmetic.jsonl:")
    folder = tmp_path_factory.mktemp("calvin") / "training"
    data = write_calvin(folder, spans=((0, 12), (8, 20), (28, 36)))
    words = (
        f"data.source={data}",
        "data.window=4",
        "data.eval_share=0.3",
        "action_head.chunk=3",
        "action_head.hidden=16",
        "parallel.ranks_per_node=2",
        "parallel.strategy=fsdp2",
    )
    return Trainings("profiles/recipes/policy-tiny.yaml", "row training/", words)
