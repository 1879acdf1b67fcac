"""Serve a trained robot policy: `POST /act` takes images and an instruction, `GET /health` says
how it does. Only this machine may ask, unless TATARA_SERVE_TOKEN holds a token."""

import argparse
import sys
from collections.abc import Sequence

from workloads.commands.common import loaded_environment, no_settings

PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="an exported folder, a run that has one, or a hub name"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default {PORT}; 0: any)")
    parser.add_argument(
        "--four-bit", action="store_true", help="hold the model in 4 bits, for GPUs of 16 GB"
    )
    parser.add_argument(
        "--execute",
        type=int,
        metavar="K",
        help="actions of a chunk to carry out before the next (default: 1 for a policy that "
        "remembers, else the whole chunk); for requests that name an episode",
    )
    parser.add_argument(
        "--ensemble",
        type=float,
        nargs="?",
        const=0.01,
        metavar="WEIGHT",
        help="the mean of all that was predicted for a moment, the older the heavier (0.01)",
    )
    parser.add_argument(
        "--episodes", type=int, default=64, metavar="N", help="held at a time (default %(default)s)"
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    no_settings(words)
    env = loaded_environment()
    from workloads.vla.episodes import Execution
    from workloads.vla.serve.episodes import Episodes
    from workloads.vla.serve.server import claim, serve

    execution, episodes = Execution(args.execute, args.ensemble), Episodes(args.episodes)

    # The port first: who waits a minute for the model does not want to hear that it was taken.
    # Blanks around it no client can send; nothing but blanks protects nobody.
    token = env.get("TATARA_SERVE_TOKEN", "").strip() or None
    server = claim(args.host, args.port, token)
    from workloads.run import outputs
    from workloads.run.models import exported_model
    from workloads.vla.policy import Policy
    from workloads.vla.serve.service import Service

    folder, _ = exported_model(args.model, outputs(env), "vla")
    policy = Policy.from_pretrained(folder, four_bit=args.four_bit, tell=_tell)
    service = Service(policy, token, execution, episodes)
    _tell(f"{folder}: first action after {service.warm_up():.1f} s on {policy.model.device}")
    return serve(server, service)


def _tell(text: str) -> None:
    print(f"tatara: {text}", file=sys.stderr, flush=True)
