"""vLLM as a service, for generation.engine=vllm_server.

Started by `python -m workloads.grpo.rollouts.server PROFILE [SETTING...]`.

Takes the profile and the settings that `tatara train` takes, so that both sides have one model.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads import environment
from workloads.config.merge import resolve
from workloads.errors import TataraError, UserError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.rollouts.engine import URL_VARIABLE, pixel_limits
from workloads.grpo.rollouts.guard import VARIABLE, RequireToken, token
from workloads.host.ports import is_free

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Only this mode has the routes that accept new weights.
_MODE = {"VLLM_SERVER_DEV_MODE": "1"}


def command(config: GrpoConfig, host: str) -> list[str]:
    """The command line of vLLM's server as TRL's trainer needs it.

    The server takes the trainer's weights, and returns every token's probability as it was sampled.
    """
    engine, grpo = config.generation, config.grpo
    length = engine.max_model_length or grpo.max_prompt_length + grpo.max_completion_length
    options: dict[str, Any] = {
        "--revision": config.model.revision,
        "--host": host,
        "--port": engine.port,
        "--tensor-parallel-size": engine.tensor_parallel,
        "--dtype": _DTYPES[config.train.precision],
        "--max-model-len": length,
        "--weight-transfer-config": json.dumps({"backend": "nccl"}),
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": -1,
        "--middleware": f"{RequireToken.__module__}.{RequireToken.__name__}",
    }
    if pixels := pixel_limits(grpo):
        options["--mm-processor-kwargs"] = json.dumps(pixels)
    given = [(name, str(value)) for name, value in options.items() if value is not None]
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", config.model.name]
    return [*words, "--enable-scale-out", *(word for pair in given for word in pair)]


def main(words: Sequence[str]) -> int:
    """Replace this process by the server.

    Returns the exit code, with a line on stderr, where the profile is not one of GRPO or the
    port is taken.
    """
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--resume", nargs="?", help="for the trainer alone")
    args, settings = parser.parse_known_args(words)
    env = environment.load(os.environ)
    environment.apply(env)
    try:
        config, _ = resolve(args.profile, env, settings)
        own = {**_MODE, VARIABLE: token(env)}
        if not isinstance(config, GrpoConfig):
            raise UserError(f"{args.profile}: expected `workload: grpo`, found {config.workload!r}")
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    # Under Compose only the service's own network reaches it.
    host = "0.0.0.0" if env.get(URL_VARIABLE) else config.generation.host
    if not is_free(config.generation.port, host):
        print(
            f"tatara: generation.port: expected a free port, found {config.generation.port} in use "
            "on this machine; stop what listens there or set generation.port",
            file=sys.stderr,
        )
        return UserError.exit_code
    line = command(config, host)
    print(shlex.join(line), file=sys.stderr, flush=True)
    os.execve(line[0], line, {**os.environ, **own})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
