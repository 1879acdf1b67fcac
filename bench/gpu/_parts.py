"""The parts of bench/gpu/run.sh in order of worth. Needs the standard library alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A part of the run: what it tries, where its code is, and how long it may take.

    function: `module:function` under bench.gpu, called with a Report. limit: seconds on a GPU;
    least: with fewer seconds left it is not begun. paths: rows of docs/hardware.md that it runs.
    """

    name: str
    title: str
    function: str
    limit: int
    least: int
    paths: tuple[str, ...] = ()


# With a cold disk the first imports alone take half a minute.
PARTS = (
    Part("card", "what the card does: matrix products, copies, NVML",
         "_part_card:card", 120, 40, ("GEMM and copy rate of the card", "NVML: doctor, monitor")),
    Part("train", "`tatara train` of a 1B from data to an exported model",
         "_part_command:train", 240, 90, ("`tatara train` of a 1B on one GPU",)),
    Part("precision", "bf16, fp16 and fp32 learn",
         "_part_train:precision", 120, 60, ("bf16, fp16 and fp32 training of a 1B",)),
    Part("attention", "eager, sdpa and flash attention agree",
         "_part_agree:attention", 90, 45, ("attention: eager, sdpa, flash",)),
    Part("head", "the fused head agrees with whole logits",
         "_part_agree:head", 90, 45, ("fused cross entropy",)),
    Part("packing", "packed rows agree with rows of their own",
         "_part_agree:packing", 90, 45, ("packed rows",)),
    Part("checkpointing", "gradient checkpointing: the same gradients in less memory",
         "_part_train:checkpointing", 90, 45, ("gradient checkpointing",)),
    Part("distributed", "NCCL with one rank; DDP and FSDP2 of one",
         "_part_distributed:distributed", 150, 60, ("NCCL with one rank", "DDP and FSDP2 of one")),
    Part("resume", "killed, stopped, resumed: the same losses",
         "_part_command:resume", 180, 90, ("checkpoint, kill, resume",)),
    Part("vla", "OpenVLA-7B: LoRA and OFT steps",
         "_part_policy:vla", 300, 90, ("OpenVLA-7B: LoRA and OFT steps",)),
    Part("grpo", "Qwen2.5-VL-7B: GRPO's loss phase",
         "_part_policy:grpo", 180, 90, ("GRPO's loss phase, Qwen2.5-VL-7B",)),
    Part("planned", "planned against allocated, reserved and process memory",
         "_part_planned:planned", 420, 90, ("planned against measured memory",)),
    Part("optimizer", "8-bit AdamW learns as AdamW does",
         "_part_train:optimizer", 90, 45, ("8-bit AdamW",)),
    Part("quantised", "QLoRA in nf4 and int8",
         "_part_train:quantised", 120, 60, ("QLoRA nf4 and int8",)),
    Part("compile", "torch.compile: the same losses, and faster",
         "_part_train:compiled", 240, 90, ("torch.compile",)),
    Part("merge", "a LoRA adapter is merged and computes the same",
         "_part_command:merge", 150, 75, ("LoRA: training, export, merge",)),
    Part("memory", "out of memory: advice, and half the micro-batch",
         "_part_command:memory", 240, 100, ("out of memory: advice and halving",)),
    Part("nan", "a NaN is never applied",
         "_part_command:nan", 120, 60, ("a step with a NaN",)),
    Part("hang", "a rank that hangs is named",
         "_part_command:hang", 200, 110, ("hang watch",)),
    Part("b1", "Llama-1B beside its peers (B1)",
         "_part_peers:b1", 300, 120, ("benchmark B1",)),
    Part("b4", "OpenVLA-7B beside the published recipe (B4)",
         "_part_peers:b4", 240, 120, ("benchmark B4",)),
    Part("b7", "GRPO's loss phase beside its peers (B7)",
         "_part_peers:b7", 300, 120, ("benchmark B7",)),
    Part("b2", "Llama-1B on short rows beside its peers (B2)",
         "_part_peers:b2", 240, 120, ("benchmark B2",)),
    Part("b3", "8B LoRA beside its peers (B3)",
         "_part_peers:b3", 360, 120, ("benchmark B3",)),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)


def find(name: str) -> Part:
    """The part of a name."""
    return next(part for part in PARTS if part.name == name)
