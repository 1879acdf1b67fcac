"""Settings over those of profiles/vla.yaml, for who is used to have them in this file.

None leaves the profile's value, a flag of `finetune.py` wins over both. `python3
finetune_config.py` shows what results; docs/configuration.md has every setting there is.
"""

batch_size: int | None = None
learning_rate: float | None = None
num_epochs: int | None = None
lora_rank: int | None = None
gradient_checkpointing: bool | None = None
seed: int | None = None
use_wandb: bool | None = None
wandb_project: str | None = None
wandb_entity: str | None = None


def flags() -> list[str]:
    """The values that are set, as flags of `tatara train`."""
    values = {name: globals()[name] for name in __annotations__}
    return [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in values.items()
        if value is not None
    ]


if __name__ == "__main__":
    import sys

    from finetune import PROFILE, run

    run("check", PROFILE, *flags(), *sys.argv[1:])
