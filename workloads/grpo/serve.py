"""vLLM as a service, for generation.engine=vllm_server: `python -m workloads.grpo.serve PROFILE`.

Takes the profile and the settings that `tatara train` takes, so that both sides have one model.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads import environment
from workloads.config import resolve
from workloads.errors import TataraError, UserError
from workloads.grpo.config import GrpoConfig


def command(config: GrpoConfig) -> list[str]:
    """The words that start TRL's server, which takes new weights from the trainer."""
    engine, grpo = config.generation, config.grpo
    length = engine.max_model_length or grpo.max_prompt_length + grpo.max_completion_length
    words: dict[str, Any] = {
        "--model": config.model.name,
        "--revision": config.model.revision,
        "--host": "0.0.0.0",
        "--port": engine.port,
        "--tensor_parallel_size": engine.tensor_parallel,
        "--max_model_len": length,
    }
    given = [(name, str(value)) for name, value in words.items() if value is not None]
    return ["trl", "vllm-serve", *(word for pair in given for word in pair)]


def main(words: Sequence[str]) -> int:
    """Become the server; 2 where the profile is not one of GRPO."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--resume", nargs="?", help="for the trainer alone")
    args, settings = parser.parse_known_args(words)
    env = environment.load(os.environ)
    environment.apply(env)
    try:
        config, _ = resolve(args.profile, env, settings)
        if not isinstance(config, GrpoConfig):
            raise UserError(f"{args.profile}: expected `workload: grpo`, found {config.workload!r}")
    except TataraError as error:
        print(f"tatara: {error}", file=sys.stderr)
        return error.exit_code
    line = command(config)
    print(" ".join(line), file=sys.stderr, flush=True)
    os.execvp(line[0], line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
