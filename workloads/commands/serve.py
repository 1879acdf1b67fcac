"""Serve a trained model on this machine. A language model answers by the OpenAI chat API (POST
/v1/chat/completions): by vLLM where it and a GPU are there, else by transformers. A robot policy
answers POST /act with actions for images and an instruction. GET /health says how either does.
Other machines may ask only where TATARA_SERVE_TOKEN holds a token."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.commands.common import loaded_environment, no_settings
from workloads.commands.speaking import (
    adapters_of,
    add_engine,
    add_speaker,
    engine_of,
    report,
    speaker_of,
)
from workloads.errors import UserError
from workloads.host.ports import check_exposed, claim, is_free, unusable, url_of
from workloads.launch.network import free_ports
from workloads.run import outputs
from workloads.run.models import exported_model

if TYPE_CHECKING:
    from workloads.run import Run

PORT = 8000
_LANGUAGE = ("llm", "grpo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT}; 0: any)")
    parser.add_argument(
        "--workload", choices=["llm", "vla"], help="what MODEL or latest is, where nothing says it"
    )
    language = parser.add_argument_group("for a language model")
    add_speaker(parser, language)
    language.add_argument("--name", help="what clients call it (default: the profile)")
    add_engine(language)
    policy = parser.add_argument_group("for a robot policy")
    policy.add_argument(
        "--four-bit", action="store_true", help="hold the model in 4 bits, for GPUs of 16 GB"
    )
    policy.add_argument(
        "--execute",
        type=int,
        metavar="K",
        help="actions of a chunk to carry out before the next (default: 1 for a policy that "
        "remembers, else the whole chunk); for requests that name an episode",
    )
    policy.add_argument(
        "--ensemble",
        type=float,
        nargs="?",
        const=0.01,
        metavar="WEIGHT",
        help="the mean of all that was predicted for a moment, the older the heavier (0.01)",
    )
    policy.add_argument(
        "--episodes", type=int, default=64, metavar="N", help="held at a time (default %(default)s)"
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    no_settings(words)
    env = loaded_environment()
    # Blanks around it no client can send; nothing but blanks protects nobody.
    token = env.get("TATARA_SERVE_TOKEN", "").strip() or None
    check_exposed(args.host, token)
    wanted = {"llm": _LANGUAGE, "vla": ("vla",), None: (*_LANGUAGE, "vla")}[args.workload]
    name, run = exported_model(args.model, outputs(env), *wanted)
    workload = args.workload or _workload_of(name, run)
    if workload == "vla":
        _refuse(args, "a robot policy", ("adapter", "precision", "name", "engine"))
        return _serve_policy(args, token, name)
    _refuse(args, "a language model", ("four_bit", "execute", "ensemble"))
    return _serve_language_model(args, env, token, name, run)


def _workload_of(name: str, run: "Run | None") -> str:
    """What a model is for: its run says it, else the statistics of actions that policies have."""
    if run is not None:
        return str(run.config().workload)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from workloads.config.sections import Model
        from workloads.engine.pretrained.base import locate

        folder = locate(Model(name=name), report, weights=False)
    from workloads.vla.openvla.checkpoint import STATISTICS

    return "vla" if (folder / STATISTICS).is_file() else "llm"


def _refuse(args: argparse.Namespace, what: str, options: Sequence[str]) -> None:
    given = next((option for option in options if getattr(args, option)), None)
    if given is not None:
        flag = f"--{given.replace('_', '-')}"
        raise UserError(f"{args.model} is {what}, which {flag} is not for; leave it out")


def _serve_policy(args: argparse.Namespace, token: str | None, name: str) -> int:
    from workloads.vla.episodes import Execution
    from workloads.vla.serve.episodes import Episodes
    from workloads.vla.serve.server import claim as claim_server
    from workloads.vla.serve.server import serve

    execution, episodes = Execution(args.execute, args.ensemble), Episodes(args.episodes)
    # The port first: who waits a minute for the model does not want to hear that it was taken.
    server = claim_server(args.host, args.port, token)
    from workloads.vla.policy import Policy
    from workloads.vla.serve.service import PolicyService

    policy = Policy.from_pretrained(name, four_bit=args.four_bit, report=report)
    service = PolicyService(policy, token, execution, episodes)
    report(f"{name}: first action after {service.warm_up():.1f} s on {policy.device}")
    return serve(server, service)


def _serve_language_model(
    args: argparse.Namespace,
    env: dict[str, str],
    token: str | None,
    name: str,
    run: "Run | None",
) -> int:
    args.model, adapters = name, adapters_of(args)
    called = args.name or (run.config().name if run else Path(name).name)
    if engine_of(args) == "vllm":
        return _by_vllm(args, env, token, name, run, called)
    if find_spec("fastapi") is None:
        raise UserError(
            "tatara serve: expected the packages of the extra `serve`, found none; install them "
            "with pip install '.[llm,serve]', or use the image of llm-4090"
        )
    taken = claim(args.host, args.port)
    speaker, _ = speaker_of(args, env)
    if len(speaker.adapters) > 1:
        raise UserError(
            f"--engine transformers: expected one adapter at most, found "
            f"{', '.join(speaker.adapters)}; combine them with tatara export --adapters, or serve "
            "them by vLLM"
        )
    if adapters and not args.name:
        called = next(iter(adapters))
    from workloads.llm.serve.api import ChatService, serve

    service = ChatService(called, speaker)
    report(f"{name}: answers as model {called!r} on {speaker.model.device}")
    print(f"{url_of(args.host, taken.getsockname()[1], '/v1')}   (Ctrl-C ends it)", flush=True)
    return serve(taken, service, token)


def _by_vllm(
    args: argparse.Namespace,
    env: dict[str, str],
    token: str | None,
    name: str,
    run: "Run | None",
    called: str,
) -> int:
    from workloads.environment import cache_folder
    from workloads.llm.serve import vllm

    port = args.port
    if port == 0:
        claim(args.host, 0).close()  # raises for a host that is not this machine's
        port = free_ports()  # vLLM takes it half a minute later
    elif not is_free(port, args.host):
        raise unusable(args.host, port, OSError("it is in use"))
    config = run.config() if run else None
    data = config.data if config is not None and config.workload == "llm" else None
    place = cache_folder(env) / "llm" / "serve"
    served = vllm.prepare(name, called, adapters_of(args), data, place)
    precision = args.precision or (config.train.precision if config else "bf16")
    words = vllm.command(served, args.host, port, precision)
    names = ", ".join([served.name, *served.adapters])
    report(f"vLLM loads {name}; it then answers as {names} at {url_of(args.host, port, '/v1')}")
    return vllm.become(words, token)
