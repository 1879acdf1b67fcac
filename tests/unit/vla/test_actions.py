"""Action tokens and normalisation at their edges."""

import numpy as np
import pytest

from workloads.errors import UserError
from workloads.vla.actions import ActionTokenizer, action_metrics, normalize, unnormalize

pytestmark = pytest.mark.unit
STATS = {
    "mean": [0.0, 1.0, 0.0],
    "std": [1.0, 2.0, 1.0],
    "min": [-2.0, 0.0, 5.0],
    "max": [2.0, 8.0, 5.0],
    "q01": [-1.0, 2.0, 5.0],
    "q99": [1.0, 6.0, 5.0],
}


def test_tokens_of_another_size() -> None:
    tokenizer = ActionTokenizer(100, bins=11)
    ids = tokenizer.encode([[-1.0, 0.05, 1.0]])
    assert ids.tolist() == [[99, 94, 89]]
    assert tokenizer.first_id == 89
    assert tokenizer.decode(ids)[0].tolist() == pytest.approx([-0.9, 0.1, 0.9])


def test_tokens_refuse_what_is_no_number() -> None:
    with pytest.raises(UserError, match="found NaN"):
        ActionTokenizer(32000).encode([0.0, np.nan])
    with pytest.raises(UserError, match="action bins, found 1"):
        ActionTokenizer(32000, bins=1)
    assert ActionTokenizer(32000).encode([np.inf, -np.inf]).tolist() == [31744, 31999]


@pytest.mark.parametrize("mode", ["normal", "bounds", "bounds_q99"])
def test_there_and_back(mode: str) -> None:
    inside = np.array([[0.5, 3.0, 5.0], [-0.25, 4.5, 5.0]])
    back = unnormalize(normalize(inside, STATS, mode), STATS, mode)
    assert back == pytest.approx(inside, abs=1e-6)


def test_bounds_clip_and_zero_what_is_constant() -> None:
    found = normalize(np.float32([[9.0, 4.0, 5.0]]), STATS)
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, pytest.approx(0.0, abs=1e-6), 0.0]]
    masked = normalize([9.0, 4.0, 5.0], STATS | {"mask": [False, True, False]})
    assert masked.tolist() == [9.0, pytest.approx(0.0, abs=1e-6), 0.0]


def test_narrow_ranges_are_rounded_once() -> None:
    """What the published code does: ranges of its float64 statistics, then float32 arithmetic."""
    low, high = 1.0, 1.0 + 3e-5
    stats = {"min": [0.5], "max": [1.5], "q01": [low], "q99": [high], "mean": [1.0], "std": [2e-9]}
    values = np.float32([[1 + 1e-5], [1 + 2e-5]])
    scaled = 2 * (values - np.float32(low)) / np.float32(high - low + 1e-8) - 1
    assert np.array_equal(normalize(values, stats), scaled)
    scaled = (values - np.float32(1)) / np.float32(2e-9 + 1e-8)
    assert np.array_equal(normalize(values, stats, "normal"), scaled)


def test_a_whole_entry_of_the_statistics_file() -> None:
    entry = {"action": STATS, "proprio": STATS, "num_transitions": 3}
    assert np.array_equal(unnormalize([0.0, 0.0, 0.0], entry), [0.0, 4.0, 5.0])


def test_wrong_dimensions_and_modes() -> None:
    with pytest.raises(UserError, match=r"expected values of 3 dimensions.*found shape \[2\]"):
        normalize([0.0, 1.0], STATS)
    with pytest.raises(UserError, match="found 'quantile'"):
        normalize([0.0, 1.0, 2.0], STATS, "quantile")
    with pytest.raises(UserError, match="expected 'q99' in the statistics"):
        normalize([0.0], {"q01": [0.0]})


def test_metrics_by_dimension() -> None:
    tokenizer = ActionTokenizer(32000)
    target = tokenizer.encode([[0.0, 0.5], [0.5, 0.0]]).ravel()
    predicted = target.copy()
    predicted[0] -= 2
    found = action_metrics([7, *predicted, 9], [-100, *target, 2], tokenizer, action_dim=2)
    assert found.accuracy == 0.75
    step = 2 * 2 / 255
    assert found.l1_per_dimension == pytest.approx((step / 2, 0.0))
    assert found.l1 == pytest.approx(step / 4)
    with pytest.raises(UserError, match="in steps of 3, found 4"):
        action_metrics(predicted, target, tokenizer, action_dim=3)
