"""Every policy head on a tiny Kosmos-2: what is trained, written, loaded again and acts."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.calvin_cases import write_calvin
from tests.support.lerobot_cases import v3
from tests.support.rlds_cases import USUAL, usual, write
from tests.support.tiny_backbones import PALIGEMMA, PALIGEMMA2, QWEN, SMOLVLM, backbone_folder
from tests.support.tiny_policy import episodes
from workloads.config.merge import resolve
from workloads.config.sections import Model
from workloads.engine.pretrained.base import Base
from workloads.errors import UserError
from workloads.vla import check
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources, open_sources
from workloads.vla.family import Samples, family_of
from workloads.vla.policy import Observation
from workloads.vla.robovlms import loading
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.policy import HeadPolicy

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
PROFILE = ROOT / "profiles/recipes/policy-tiny.yaml"
BASE = ROOT / "data/demo/tiny-kosmos2"
CASES = {
    "lstm": (),
    "lstm-alone": ("action_head.history=none",),
    "lstm-latents-state": ("action_head.latent=2", "action_head.state=true"),
    "gpt": ("action_head.kind=gpt",),
    "gpt-latents": ("action_head.kind=gpt", "action_head.latent=3"),
    "fc-interleaved": ("action_head.kind=fc", "action_head.history=interleaved"),
    "fc-text": ("action_head.kind=fc", "action_head.reads=text", "action_head.pool=true"),
    "lstm-vision": ("action_head.reads=vision", "action_head.pool=true"),
    "lstm-vision-tokens": (
        "action_head.reads=vision",
        "action_head.pool=true",
        "action_head.latent=4",
    ),
    "no-gripper": ("action_head.gripper=false",),
    "statistics": ("data.normalise=null",),
    "discrete": ("action_head.kind=discrete", "action_head.history=none"),
    "discrete-no-gripper": (
        "action_head.kind=discrete",
        "action_head.history=none",
        "action_head.gripper=false",
        "action_head.chunk=1",
    ),
    "one-step": ("data.window=1", "action_head.chunk=1"),
    "chunk-past-the-end": ("action_head.chunk=30",),
    "discrete-interleaved": ("action_head.kind=discrete", "action_head.history=interleaved"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model gains nothing by more, and loses much where others compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calvin(tmp_path_factory.mktemp("calvin") / "training", spans=((3, 14), (30, 36)))


def configured(data: Path, *settings: str) -> VlaConfig:
    own = [
        f"data.source={data}", f"model.name={BASE}", "data.eval_share=0", "data.window=3",
        "action_head.chunk=2",
        "action_head.hidden=16", "train.per_device_batch_size=2", *settings,
    ]  # fmt: skip
    config, _ = resolve(PROFILE, {}, own)
    assert isinstance(config, VlaConfig)
    return config


def made(config: VlaConfig) -> tuple[PolicyModel, Samples, Sources]:
    folder = Path(config.model.name)
    family, model = family_of(config), Model(name=str(folder), random_init=True)
    base = Base(model, folder, loading.read(model, folder))
    sources = open_sources(config, None, lambda: None)
    policy = family.load(config, base, sources, lambda text: None)
    samples = family.samples(config, base, policy, sources, family.processor(base))
    assert isinstance(policy, PolicyModel)
    return policy, samples, sources


def inputs_of(batch: dict[str, Any]) -> dict[str, Any]:
    apart = ("parts", "row_ids", "damage", "tokens")
    return {name: value for name, value in batch.items() if name not in apart}


@pytest.mark.parametrize("reads", ["vision", "text", "all"])
def test_pooled_parts_hold_no_masked_state(reads: str, data: Path) -> None:
    """The image's tokens are split evenly, whatever stands behind them; what is masked never is
    the largest of a part, not even of one that is masked altogether."""
    words = ("action_head.pool=true", "action_head.latent=8", f"action_head.reads={reads}")
    policy, samples, _ = made(configured(data, *words))
    inputs = inputs_of(samples.collate([samples.train[number] for number in range(2)]))
    policy.eval()
    with torch.no_grad():
        given = policy(**inputs).action_states
        flat = policy.act_head.flat(given)
    assert flat.shape == (2, 3, 8 * 64) and flat.abs().max() < 1e3
    if reads == "vision":
        tokens = 2 * 8  # of both cameras
        assert given.shape[2] == tokens
        pairs = given.unflatten(2, (8, 2)).amax(dim=3)
        assert torch.equal(flat, pairs.flatten(2))


@pytest.mark.parametrize("case", CASES)
def test_a_head_learns_and_is_written_and_acts(case: str, data: Path, tmp_path: Path) -> None:
    _learns(configured(data, *CASES[case]), tmp_path)


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        (PALIGEMMA, ()),
        (PALIGEMMA, ("action_head.kind=fc", "action_head.history=interleaved")),
        (PALIGEMMA, ("action_head.kind=gpt", "action_head.reads=text", "action_head.pool=true")),
        (SMOLVLM, ()),
        (SMOLVLM, ("action_head.kind=fc", "action_head.history=interleaved")),
        (SMOLVLM | {"model_type": "idefics3"}, ("action_head.kind=gpt",)),
        (PALIGEMMA2, ()),
        (QWEN, ("action_head.kind=fc", "action_head.history=interleaved")),
        (QWEN, ("action_head.kind=fc", "action_head.reads=vision", "action_head.pool=true")),
        (PALIGEMMA, CASES["discrete-interleaved"]),
        (SMOLVLM, CASES["discrete"]),
        (QWEN, CASES["discrete-interleaved"]),
    ],
    ids=[
        "paligemma-lstm", "paligemma-fc-interleaved", "paligemma-gpt-text", "smolvlm-lstm",
        "smolvlm-fc-interleaved", "idefics3-gpt", "paligemma2-lstm",
        "qwen-fc-interleaved", "qwen-fc-vision", "paligemma-discrete-interleaved",
        "smolvlm-discrete", "qwen-discrete-interleaved",
    ],
)  # fmt: skip
def test_a_head_learns_on_other_backbones(
    backbone: dict[str, Any], settings: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    folder = backbone_folder(tmp_path / "base", backbone)
    _learns(configured(data, f"model.name={folder}", *settings), tmp_path / "out")


@pytest.mark.parametrize("kind", ["lerobot", "rlds", "crane_x7"])
def test_other_formats_are_trained_on(kind: str, tmp_path: Path) -> None:
    source, camera = tmp_path / "data", "top" if kind == "lerobot" else "primary"
    if kind == "lerobot":
        v3(source, [[8, 5]])
    elif kind == "rlds":
        write(source, USUAL, usual(2))
    else:
        episodes(source, 2, 6)
    settings = (f"data.cameras=[{camera}]", "data.shift=null", "data.normalise=null")
    # Actions are drawn at random here: there is less to learn.
    _learns(configured(source, *settings), tmp_path / "out", falls_to=0.95)


def _learns(config: VlaConfig, folder: Path, falls_to: float = 0.9) -> None:
    policy, samples, sources = made(config)
    batch = samples.collate([samples.train[number] for number in range(2)])
    inputs = inputs_of(batch)
    policy.eval()  # dropout would hide whether it learns
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        output = policy(**inputs)
        optimizer.zero_grad()
        output.loss.backward()
        without = [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None]
        assert not without  # DDP would wait for them
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < falls_to * losses[0]

    meter = samples.meters[True]
    meter.add(policy(**inputs), batch["parts"], inputs)
    found = meter.take(lambda sums: sums, torch.device("cpu"))
    assert set(meter.logged) <= set(found) and found["samples"] == 2

    policy.save_pretrained(folder)
    again = loading.load_exported(folder, torch.float32, "auto")
    with torch.no_grad():
        one, other = policy(**inputs), again(**inputs)
    name = "logits" if policy.spec.is_discrete else "arm"
    assert torch.equal(one[name], other[name])
    _acts(again, config, sources)


def test_an_adapter_goes_on_with_its_head(data: Path, tmp_path: Path) -> None:
    """`adapter.resume_from` of a policy is the adapter and the head beside it, or is refused."""
    lora = ("adapter.method=lora", "adapter.targets=all-linear", "adapter.r=2")
    config = configured(data, *lora)
    before, *_ = made(config)
    wrapped: Any = loading.trainable(before, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    wrapped.save_pretrained(tmp_path)
    file = tmp_path / loading.HEAD_FILE
    save_file({n: v for n, v in before.state_dict().items() if before.is_head(n)}, file)

    def resumed(*settings: str) -> PolicyModel:
        own = configured(data, *lora, f"adapter.resume_from={tmp_path}", *settings)
        policy, *_ = made(own)
        loading.trainable(policy, own)
        return policy

    after = resumed()
    assert all(torch.equal(after.state_dict()[n], v) for n, v in before.state_dict().items())
    assert all(value.requires_grad for n, value in after.named_parameters() if after.is_head(n))
    with pytest.raises(UserError, match=f"{file.name}: .* act_head.* set action_head as"):
        resumed("action_head.hidden=24")
    for setting in ("r=4", "alpha=3", "use_rslora=true"):
        with pytest.raises(UserError, match=f"adapter.{setting.partition('=')[0]}: expected"):
            resumed(f"adapter.{setting}")
    with pytest.raises(UserError, match=r"adapter\.targets: expected"):
        resumed("adapter.targets=q_proj")
    spec = tmp_path / loading.SPEC
    spec.write_text(json.dumps(replace(before.spec, history="none").as_fields()))
    with pytest.raises(UserError, match="action_head.history: expected none"):
        resumed()
    spec.unlink()
    file.unlink()
    with pytest.raises(UserError, match="expected the head that was trained with the adapter"):
        resumed()


def _acts(model: PolicyModel, config: VlaConfig, sources: Sources) -> None:
    """Answers with a memory differ from those without where a policy remembers, and only there."""
    model.norm_stats = sources.statistics
    folder = Path(config.model.name)
    policy = HeadPolicy(
        model,
        loading.image_processor(folder, model.spec.backbone),
        loading.tokenizer(folder),
        config.data.cameras,
    )
    episode = sources.train[0].dataset[0]
    seen = [
        Observation(
            {camera: episode.image(camera, step) for camera in config.data.cameras},
            episode.instruction,
            episode.states[step],
        )
        for step in range(5)
    ]
    memories = [policy.new_memory(), policy.new_memory()]
    steps = [policy.act([observation, seen[0]], memories=memories) for observation in seen]
    head = model.spec.head
    assert steps[0].shape == (2, head.chunk, head.size) and np.isfinite(steps).all()
    assert policy.action_shape == ((head.chunk, head.size) if head.chunk > 1 else (head.size,))
    assert np.allclose(steps[0][0], steps[0][1], atol=1e-6)
    alone = policy.act(seen[4:])
    same = np.allclose(steps[4][0], alone[0], atol=1e-6)
    assert same or policy.remembers
    if policy.discrete is None:
        assert not (same and policy.remembers)


@pytest.mark.parametrize("backbone", [None, PALIGEMMA2, SMOLVLM, QWEN])
def test_windows_of_training_are_what_an_episode_gives(
    backbone: dict[str, Any] | None, data: Path, tmp_path: Path
) -> None:
    """Acting step by step in evaluation equals the forward pass over a window; on other backbones
    with the frames side by side."""
    settings: tuple[str, ...] = ()
    if backbone is not None:
        base = f"model.name={backbone_folder(tmp_path, backbone)}"
        settings = (base, "action_head.kind=fc", "action_head.history=interleaved")
    config = configured(data, "data.shift=null", *settings)
    policy, samples, sources = made(config)
    held = type(samples.train)(sources.train, samples.train.maker, config, False)  # type: ignore
    row = held[0]
    batch = inputs_of(samples.collate([row]))
    with torch.no_grad():
        whole = policy.eval()(**batch)
    folder = Path(config.model.name)
    acting = HeadPolicy(
        policy,
        loading.image_processor(folder, policy.spec.backbone),
        loading.tokenizer(folder),
        config.data.cameras,
    )
    policy.norm_stats = sources.statistics
    episode = sources.train[0].dataset[0]
    memory = acting.new_memory()
    for step in range(3):
        images = {camera: episode.image(camera, step) for camera in config.data.cameras}
        found = acting.act([Observation(images, episode.instruction)], memories=[memory])
        opens = (whole.gripper_logits[0, step, :, 0] > 0).numpy()
        expected = acting.scale(None).actions(whole.arm[0, step].numpy(), opens)
        assert np.abs(found[0] - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("action_head.kind=discrete",), "no head sees a window; set none or interleaved"),
        (("action_head.reads=text",), "set action_head.pool=true"),
        (
            ("action_head.kind=gpt", "action_head.hidden=20"),
            "expected 8 to divide hidden x latent, found 20",
        ),
        (("adapter.method=qlora",), "policy heads train with full or lora"),
        (("action_head.kind=tokens",), "data.window: of policy heads"),
        (("data.frames_in_memory=2",), "at least the window's 3 steps"),
        (("data.shift={static: 400}",), "data.shift"),
        (("data.normalise={low: 1, high: 0.65}",), "expected low below high, found 1 and 0.65"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: tuple[str, ...], sentence: str, data: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        configured(data, *settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("action_head.size=8",), "action_head.size: expected 7"),
        (("data.cameras=[gripper,static,gripper]",), "each once, found 'gripper' twice; it has"),
        (("data.shift={wrist: 4}",), "data.shift: expected cameras that are used, static, gripper"),
        (("data.window=40",), "found none: data.window is 40, and the longest episode has 12"),
    ],
)
def test_data_that_does_not_fit_is_named(
    settings: tuple[str, ...], sentence: str, data: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        open_sources(configured(data, *settings), None, lambda: None)


def test_evaluation_without_held_out_episodes_is_told(data: Path) -> None:
    """`configured` holds none out."""
    for setting in ("evaluation.every_steps=2", "evaluation.before=true"):
        sources = open_sources(configured(data, setting), None, lambda: None)
        assert any("nothing is evaluated" in line for line in sources.lines)
    quiet = open_sources(configured(data, "evaluation.every_steps=null"), None, lambda: None)
    assert not any("nothing is evaluated" in line for line in quiet.lines)


def test_a_warm_up_longer_than_the_run_is_told(data: Path) -> None:
    """From max_steps at once, from the windows where every image is read."""
    wanted = "{} of {} steps: the learning rate ends at"
    short = configured(data, "optim.warmup_steps=50", "train.max_steps=2")
    assert any(wanted.format(50, 2) in item.line() for item in check.shallow(short, {}))
    own = configured(data, "optim.warmup_steps=50", "train.epochs=1")
    assert not any("learning rate" in item.line() for item in check.shallow(own, {}))
    found = check.deep(own, {"TATARA_CACHE": str(data.parent / "cache")})
    assert any(wanted.format(50, 7) in item.line() for item in found)


def test_episodes_shorter_than_the_window_are_counted(data: Path) -> None:
    """Spans of 12 and 7 frames, the last of which is padding."""
    sources = open_sources(configured(data, "data.window=8"), None, lambda: None)
    assert (
        "2 episodes (1 of them shorter than data.window and left out), 4 steps to train"
        in (sources.lines[0])
    )
    whole = open_sources(configured(data, "data.window=6"), None, lambda: None)
    assert "2 episodes, 7 steps to train on, 0 episodes held out" in whole.lines[0]
