"""The parts of bench/gpu/run.sh in order of worth, and what each is expected to take on an H100.

Needs the standard library alone.
"""

from dataclasses import dataclass

# Tokens a second of one H100 by `tatara plan`, which a test holds: 1B with all weights, 8B, 7B and
# OpenVLA by LoRA, the 7B with gradient checkpointing.
SPEED = {"1B": 48_000, "8B": 11_000, "7B": 8_000, "OpenVLA": 12_000}
RUNS = "runs"  # the folder of a part's own trainings, which go with it
# Installing the bundle, and the first imports from a cold disk.
BEFORE = 40


@dataclass(frozen=True)
class Cost:
    """Something that a part does so many times, seconds each."""

    what: str
    seconds: float
    times: int = 1

    @property
    def total(self) -> float:
        return self.seconds * self.times


@dataclass(frozen=True)
class Part:
    """A part of the run: what it tries, where its code is, and what it costs on an H100.

    function: `module:function` under bench.gpu, called with a Report. paths: rows of
    docs/hardware.md that it runs.
    """

    name: str
    title: str
    function: str
    costs: tuple[Cost, ...]
    paths: tuple[str, ...] = ()

    @property
    def expected(self) -> int:
        """Seconds on an H100; with less time left the part is not begun."""
        return round(sum(cost.total for cost in self.costs))

    @property
    def limit(self) -> int:
        """Seconds after which a part on a GPU is taken for one that hangs."""
        return 60 + 3 * self.expected


# Imports, CUDA's context, first kernels. Several sides of a benchmark start at the same time.
START, SIDES = Cost("its process", 10), Cost("its process and one a side", 18)
# `tatara train` until its first step: the command, torchrun, the rank with NCCL; torchrun and rank
# alone where a rank is started again.
COMMAND, AGAIN = "`tatara train` to its first step", "rank started again"


def _command(times: int = 1) -> Cost:
    return Cost(COMMAND, 18, times)


def _again(times: int = 1) -> Cost:
    return Cost(AGAIN, 14, times)


def _drawn(times: int) -> Cost:
    return Cost("1B drawn on the GPU, and its trainer", 3, times)


def _read(times: int) -> Cost:
    return Cost("1B read from disk, to the GPU", 6, times)


def _steps(model: str, tokens: int, times: int = 1) -> Cost:
    return Cost(f"{tokens:,} tokens through {model}", tokens / SPEED[model], times)


PARTS = (
    Part("card", "what the card does: matrix products, copies, NVML",
         "_part_card:card",
         (START, Cost("products and copies", 4), Cost("NVML", 3), Cost("`tatara doctor`", 4)),
         ("GEMM and copy rate of the card", "NVML: doctor, monitor")),
    Part("train", "`tatara train` of a 1B from data to an exported model",
         "_part_command:train",
         (START, Cost("1B drawn and written for all parts", 8), _command(), _read(2),
          Cost("checkpoint of 15 GB", 30), Cost("export", 8)),
         ("`tatara train` of a 1B on one GPU",)),
    Part("precision", "bf16, fp16 and fp32 learn",
         "_part_train:precision", (START, _drawn(3), _steps("1B", 40_960, 3), Cost("fp32", 3)),
         ("bf16, fp16 and fp32 training of a 1B",)),
    Part("attention", "eager, sdpa and flash attention agree",
         "_part_agree:attention", (START, _read(5), Cost("logits of 1 GB compared", 1, 4)),
         ("attention: eager, sdpa, flash",)),
    Part("head", "the fused head agrees with whole logits",
         "_part_agree:head", (START, _drawn(2), _steps("1B", 49_152, 2)),
         ("fused cross entropy",)),
    Part("packing", "packed rows agree with rows of their own",
         "_part_agree:packing",
         (START, _drawn(4), _steps("1B", 24_576, 4), Cost("eager attention", 3)),
         ("packed rows",)),
    Part("checkpointing", "gradient checkpointing: the same gradients in less memory",
         "_part_train:checkpointing", (START, _drawn(2), _steps("1B", 49_152, 2)),
         ("gradient checkpointing",)),
    Part("distributed", "NCCL with one rank; DDP and FSDP2 of one",
         "_part_distributed:distributed",
         (START, _read(4), Cost("NCCL and its collectives", 4), Cost("sharding", 4),
          _steps("1B", 24_576, 2)),
         ("NCCL with one rank", "DDP and FSDP2 of one")),
    Part("resume", "killed, stopped, resumed: the same losses",
         "_part_command:resume",
         (START, _command(2), _again(), Cost("40 steps of a small model, saved every 4", 12)),
         ("checkpoint, kill, resume",)),
    Part("vla", "OpenVLA-7B: LoRA and OFT steps",
         "_part_policy:vla",
         (START, Cost("demonstrations, model drawn, adapter, workers", 11, 6),
          _steps("OpenVLA", 2 * 25 * 8 * 320)),
         ("OpenVLA-7B: LoRA and OFT steps",)),
    Part("grpo", "Qwen2.5-VL-7B: GRPO's loss phase",
         "_part_policy:grpo",
         (START, Cost("pictures, model drawn, adapter", 11), _steps("7B", 6 * 16 * 900)),
         ("GRPO's loss phase, Qwen2.5-VL-7B",)),
    Part("planned", "planned against allocated, reserved and process memory",
         "_part_planned:planned",
         (START, _drawn(23), _steps("1B", 16_384, 23), _read(2),
          Cost("8B drawn and trained", 8),
          Cost("8B's widths in 8 layers, written, read, quantised", 18)),
         ("planned against measured memory",)),
    Part("optimizer", "8-bit AdamW learns as AdamW does",
         "_part_train:optimizer",
         (START, Cost("bitsandbytes", 3), _drawn(2), _steps("1B", 40_960, 2)),
         ("8-bit AdamW",)),
    Part("quantised", "QLoRA in nf4 and int8",
         "_part_train:quantised",
         (START, Cost("bitsandbytes", 3), _read(3), _steps("1B", 40_960, 3)),
         ("QLoRA nf4 and int8",)),
    Part("compile", "torch.compile: the same losses, and faster",
         "_part_train:compiled",
         (START, _drawn(2), Cost("16 layers compiled, forward and backward", 60),
          _steps("1B", 98_304, 2)),
         ("torch.compile",)),
    Part("merge", "a LoRA adapter is merged and computes the same",
         "_part_command:merge",
         (START, _command(), _read(4), Cost("`tatara export --merge`: its process", 8),
          Cost("logits compared, 2.5 GB written", 9)),
         ("LoRA: training, export, merge",)),
    Part("memory", "out of memory: advice, and half the micro-batch",
         "_part_command:memory",
         (START, _command(2), _again(), _read(3), Cost("steps", 6)),
         ("out of memory: advice and halving",)),
    Part("nan", "a NaN is never applied",
         "_part_command:nan", (START, _command(), Cost("12 steps of a small model", 4)),
         ("a step with a NaN",)),
    Part("hang", "a rank that hangs is named",
         "_part_command:hang",
         (START, _command(), Cost("without progress until it is named", 35), _again(),
          Cost("12 steps of a small model", 4)),
         ("hang watch",)),
    Part("b1", "Llama-1B beside its peers (B1)",
         "_part_peers:b1", (SIDES, _drawn(5), _steps("1B", 8 * 16_384, 5)),
         ("benchmark B1",)),
    Part("b4", "OpenVLA-7B beside the published recipe (B4)",
         "_part_peers:b4",
         (SIDES, Cost("demonstrations, model drawn, adapter, workers", 11, 3),
          _steps("OpenVLA", 8 * 16 * 320, 4)),
         ("benchmark B4",)),
    Part("b7", "GRPO's loss phase beside its peers (B7)",
         "_part_peers:b7",
         (SIDES, Cost("pictures, model drawn, adapter", 11, 4), _steps("7B", 6 * 16 * 900, 4)),
         ("benchmark B7",)),
    Part("b2", "Llama-1B on short rows beside its peers (B2)",
         "_part_peers:b2",
         (SIDES, _drawn(4), _steps("1B", 8 * 16_384, 3), _steps("1B", 8 * 40_960)),
         ("benchmark B2",)),
    Part("b3", "8B LoRA beside its peers (B3)",
         "_part_peers:b3",
         (SIDES, Cost("8B drawn on the GPU, and its trainer", 8, 4), _steps("8B", 8 * 8192, 4)),
         ("benchmark B3",)),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)


def find(name: str) -> Part:
    """The part of a name."""
    return next(part for part in PARTS if part.name == name)


def listing(parts: tuple[Part, ...]) -> str:
    """A line a part with its seconds on an H100 and what they are made of, and their sum."""
    lines = []
    for part in parts:
        made_of = ", ".join(
            f"{cost.what} {cost.seconds:.0f}" + (f" x {cost.times}" if cost.times > 1 else "")
            for cost in part.costs
        )
        lines.append(f"{part.name:<14}{part.expected:>5} s  {made_of}")
    seconds = BEFORE + sum(part.expected for part in parts)
    lines.append(f"{'in all':<14}{seconds:>5} s  {seconds / 60:.0f} minutes, with {BEFORE} seconds "
                 "before the first part; estimated for an H100")  # fmt: skip
    return "\n".join(lines)
