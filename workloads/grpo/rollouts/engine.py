"""Engines that generate completions: transformers, vLLM beside the trainer, or vLLM as a service.

Refuses what cannot work, translates the settings, and names an engine that has died.
"""

import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import groupby
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from workloads.errors import EXIT_RETRY, Retry, TataraError, UserError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.objective import Grpo
from workloads.grpo.rollouts import guard
from workloads.host.ports import is_free
from workloads.run.events import Phase
from workloads.run.session import Session
from workloads.signals import held_back

URL_VARIABLE = "TATARA_VLLM_URL"
# Seconds between health checks of an engine, for one answer, and of silence until it is given up.
# A check may take longer than its limit: resolving the name of a dead container takes time.
_EVERY, _PATIENCE, _SILENCE = 5.0, 5.0, 25.0
# torch's settings of its allocator, by either name.
_ALLOCATOR, _OLD_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def check(config: GrpoConfig, sees_images: bool, is_main: bool = True) -> None:
    """Check that the generation engine can serve this model on this machine.

    is_main: on the rank that sends new weights to a server, over a port of its own machine. Raises
    UserError where the engine cannot.
    """
    engine = config.generation
    if config.stage != "grpo":
        return
    if engine.engine == "transformers":
        check_sampling(config.grpo)
        return
    if find_spec("vllm") is None:
        raise UserError(
            f"generation.engine={engine.engine}: expected the package vllm, found none; use the "
            "image of grpo-h100, or set generation.engine=transformers"
        )
    if engine.engine == "vllm_server" and is_main and not is_free(engine.group_port):
        raise UserError(
            f"generation.group_port: expected a free port, found {engine.group_port} in use on "
            "this machine; stop what listens there or set generation.group_port"
        )
    if config.model.random_init:
        raise UserError(
            f"generation.engine={engine.engine}: expected a model with weights on disk, which vLLM "
            "reads, found model.random_init=true; set generation.engine=transformers"
        )
    if engine.engine == "vllm_colocate" and engine.sleep_level == 2 and sees_images:
        raise UserError(
            "generation.sleep_level: expected 0 or 1 for a model with a vision tower, found 2, "
            "which drops values that the tower computes only when it is loaded: completions would "
            "be wrong from then on; set generation.sleep_level=1"
        )


def check_sampling(grpo: Grpo) -> None:
    """Check the further arguments of transformers' sampling, which ignores those it does not know.

    vLLM refuses them itself, when the engine is made. Raises UserError.
    """
    from transformers import GenerationConfig

    own, kind = grpo.sampling.generation_kwargs, grpo.sampling.cache_implementation
    where = "grpo.sampling.generation_kwargs"
    known = vars(GenerationConfig())
    for name in own:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: transformers knows no argument {name!r}{hint}")
    if "stop_strings" in own:
        raise UserError(f"{where}.stop_strings: only vLLM ends completions at texts; leave it out")
    try:
        asked = GenerationConfig(**{"do_sample": True, **own}, cache_implementation=kind)
        asked.validate(strict=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"grpo.sampling: {error}; correct it") from error


def check_rows(config: GrpoConfig, rows: int, world_size: int) -> None:
    """Check that the rows fill at least one step.

    Raises UserError where they do not.
    """
    needed = config.prompts_a_step(world_size)
    if config.stage == "grpo" and rows < needed:
        raise UserError(
            f"expected at least {needed} rows, one for each group of a step, found {rows}; lower "
            "train.global_batch_size or add rows"
        )


def arguments(
    config: GrpoConfig, placeholders: Sequence[str], ends: Sequence[int] = ()
) -> dict[str, Any]:
    """The engine's settings as arguments of TRL.

    ends: tokens that end a completion; vLLM knows only the model's own.

    placeholders: tokens that stand for images. One in a completion would end the run, because
    image tokens and image features do not match; TRL itself keeps them from transformers alone.
    """
    engine, grpo = config.generation, config.grpo
    own = grpo.sampling.generation_kwargs
    if engine.engine == "transformers":
        continuous = engine.use_transformers_continuous_batching
        return {"use_vllm": False, "use_transformers_continuous_batching": continuous}
    never: dict[str, Any] = {"bad_words": list(placeholders)} if placeholders else {}
    stops = list(dict.fromkeys([*ends, *own.get("stop_token_ids", [])]))
    stop = {"stop_token_ids": stops} if stops else {}
    shared = {
        "use_vllm": True,
        "generation_kwargs": {**never, **own, **stop} or None,
        "vllm_model_impl": engine.vllm_model_impl,
        "vllm_structured_outputs_regex": engine.vllm_structured_outputs_regex,
    }
    length = engine.max_model_length or grpo.max_prompt_length + grpo.max_completion_length
    if engine.engine == "vllm_colocate":
        return {
            **shared,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": engine.gpu_memory_utilization,
            "vllm_enable_sleep_mode": engine.sleep_level > 0,
            "vllm_tensor_parallel_size": engine.tensor_parallel,
            "vllm_max_model_length": length,
        }
    return {
        **shared,
        "vllm_mode": "server",
        "vllm_server_base_url": address(config),
        "vllm_server_timeout": engine.start_timeout,
        "vllm_group_port": engine.group_port,
    }


def one_for_each_image(
    prompts: Sequence[Sequence[int]],
    placeholders: Collection[int],
    images: Sequence[Sized | None] | None = None,
) -> list[list[int]]:
    """Prompts in tokens, with a single placeholder for each image.

    A processor writes as many as an image has features. vLLM expands the first one it meets in the
    same way: given all of them, it would see another prompt than the one trained on.
    images: those of each prompt, needed where a model writes nothing between two images.
    """
    shown = images or [None] * len(prompts)
    return [
        _shortened(prompt, placeholders, len(own or ()))
        for prompt, own in zip(prompts, shown, strict=True)
    ]


def _shortened(prompt: Sequence[int], placeholders: Collection[int], images: int) -> list[int]:
    """One token for each image in a run of placeholders, by the run's share of all of them."""
    runs = [(token, len(list(run))) for token, run in groupby(prompt)]
    lengths = [length for token, length in runs if token in placeholders]
    features = sum(lengths) / images if images > len(lengths) else float("inf")
    kept: list[int] = []
    for token, length in runs:
        is_image = token in placeholders
        kept += [token] * (max(1, round(length / features)) if is_image else length)
    return kept


def address(config: GrpoConfig) -> str:
    """Where the server is: TATARA_VLLM_URL, which compose sets, before host and port."""
    own = f"http://{config.generation.host}:{config.generation.port}"
    return (os.environ.get(URL_VARIABLE) or own).rstrip("/")


@contextmanager
def ready(config: GrpoConfig, session: Session) -> Iterator[None]:
    """Context of building a trainer and training: sets up the engine as the profile says."""
    engine = config.generation
    if config.stage != "grpo" or engine.engine == "transformers":
        yield
    elif engine.engine == "vllm_colocate":
        with _made_as_wanted(engine.sleep_level, pixel_limits(config.grpo)):
            yield
    else:
        sends = guard.client_sends(guard.token(os.environ))
        with _watched(config, session), sends, _images_encoded_anew():
            yield


def pixel_limits(grpo: Grpo) -> dict[str, int]:
    """The profile's pixel limits as vLLM's processor arguments.

    Without them an engine applies the model's own, and sees an image of another size than the
    trainer.
    """
    limits = {"min_pixels": grpo.min_pixels, "max_pixels": grpo.max_pixels}
    return {name: pixels for name, pixels in limits.items() if pixels is not None}


@contextmanager
def _made_as_wanted(level: int, pixels: Mapping[str, int]) -> Iterator[None]:
    """Give vLLM the profile's sleep level and pixels: TRL always sets level 2 and no pixels.

    TRL makes the engine and already sends it to sleep on the way, so that there is no object yet
    whose method could be replaced. With new weights TRL 1.16 resets the cache of prefixes alone;
    that of encoded images is reset too, or a repeated image would be as the old tower saw it.
    An engine that sleeps keeps its memory in a pool, for which vLLM (0.31) turns expandable
    segments off where it sees them under the variable's old name alone; in such segments a pool
    gives nothing back.
    """
    from vllm import LLM

    if level and _ALLOCATOR in os.environ:
        os.environ.setdefault(_OLD_ALLOCATOR, os.environ[_ALLOCATOR])
    own, own_sleep, own_reset = LLM.__init__, LLM.sleep, LLM.reset_prefix_cache
    more = {"mm_processor_kwargs": dict(pixels)} if pixels else {}

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with held_back():  # the engine's processes live on until the rank has saved
            own(self, *args, **kwargs, **more)

    def sleep(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own_sleep(self, level=level)

    def reset(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.llm_engine.reset_encoder_cache()
        return own_reset(self, *args, **kwargs)

    LLM.__init__, LLM.sleep, LLM.reset_prefix_cache = init, sleep, reset
    try:
        yield
    finally:
        LLM.__init__, LLM.sleep, LLM.reset_prefix_cache = own, own_sleep, own_reset


@contextmanager
def _images_encoded_anew() -> Iterator[None]:
    """Have a server encode images anew with new weights, as an engine beside the trainer does."""
    from trl.generation.vllm_client import VLLMClient

    own = VLLMClient.reset_prefix_cache

    def reset(self: Any) -> None:
        address = f"{self.base_url}/reset_encoder_cache"
        code = self.session.post(address).status_code
        if code != 200:
            raise TataraError(
                f"{address}: expected the answer 200, found {code}; start the server by `python -m "
                "workloads.grpo.rollouts.server PROFILE`"
            )
        own(self)

    VLLMClient.reset_prefix_cache = reset
    try:
        yield
    finally:
        VLLMClient.reset_prefix_cache = own


@contextmanager
def _watched(config: GrpoConfig, session: Session) -> Iterator[None]:
    """End rank 0, the only one that talks to the server, with 75 when the server is gone.

    A request to a dead engine may wait forever, so a thread checks its health.
    """
    if not session.is_main:
        yield
        return
    done = threading.Event()
    url = address(config)
    watch = threading.Thread(target=_watch, args=(url, session, done), daemon=True)
    with named_failures(config):
        watch.start()
        try:
            yield
        finally:
            done.set()


def _watch(url: str, session: Session, done: threading.Event) -> None:
    """Measure the silence since the last good check: before the first one, TRL itself waits."""
    well: float | None = None
    while not done.wait(_EVERY):
        if is_healthy(url):
            well = time.monotonic()
        elif well is not None and (silence := time.monotonic() - well) > _SILENCE:
            reason = f"{gone(url)} (no answer for {silence:.0f} s)"
            session.report(f"error: {reason}")
            session.finish(Phase.FAILED, EXIT_RETRY, reason)
            os._exit(EXIT_RETRY)


def is_healthy(url: str) -> bool:
    """Whether the engine reports that it is healthy."""
    try:
        with urlopen(f"{url}/health", timeout=_PATIENCE) as answer:
            return bool(200 <= answer.status < 300)
    except (URLError, OSError, ValueError):
        return False


def gone(url: str) -> str:
    """Message for an engine that does not answer."""
    return f"the generation engine at {url} is dead or hangs; look at the log of its service"


@contextmanager
def named_failures(config: GrpoConfig) -> Iterator[None]:
    """Context manager around calls of the vLLM server.

    Raises Retry with the engine's name where the connection is lost.
    """
    try:
        yield
    except OSError as error:
        lost = "requests" in type(error).__module__ or isinstance(error, ConnectionError)
        if config.generation.engine != "vllm_server" or not lost:
            raise
        raise Retry(f"{gone(address(config))} ({str(error).splitlines()[0][:200]})") from error


def memory_ladder(config: GrpoConfig) -> list[str]:
    """Fixes for GRPO out of memory, in the order in which to try them."""
    grpo, engine = config.grpo, config.generation
    steps = []
    if config.train.per_device_batch_size > 1:
        steps.append("train.per_device_batch_size=1 (train.global_batch_size may stay)")
    if grpo.max_pixels is None or grpo.max_pixels > 200704:
        steps.append("grpo.max_pixels=200704")
    if grpo.num_generations > 2:
        steps.append("grpo.num_generations=2")
    if engine.engine == "vllm_colocate" and engine.gpu_memory_utilization > 0.2:
        steps.append("generation.gpu_memory_utilization=0.2")
    names = (_ALLOCATOR, _OLD_ALLOCATOR)
    if not any("expandable_segments" in os.environ.get(name, "") for name in names):
        steps.append("PYTORCH_ALLOC_CONF=expandable_segments:True in .env")
    if config.adapter.method == "full":
        steps.append("parallel.strategy=zero2 (the optimizer moves to the host)")
        steps.append("adapter.method=lora")
    return [f"for GRPO: {step}" for step in steps]


def stability_ladder(config: GrpoConfig) -> list[str]:
    """Fixes for falling rewards or a growing KL."""
    steps = []
    if config.optim.learning_rate > 5e-7:
        steps.append("optim.learning_rate=5e-7")
    if config.grpo.temperature > 0.8:
        steps.append("grpo.temperature=0.8")
    return steps
