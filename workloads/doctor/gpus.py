"""The driver and the cards: against torch's build, against the profile, and against each other."""

import math
from collections.abc import Sequence

from workloads.device import GIB
from workloads.doctor import nvidia
from workloads.doctor.facts import Facts, PlannedNode
from workloads.doctor.nvidia import InstalledCard
from workloads.findings import Finding, Level

_DISABLE_P2P = "printf 'NCCL_P2P_DISABLE=1\\nNCCL_IB_DISABLE=1\\n' >>.env"


def checks(facts: Facts) -> list[Finding]:
    """All checks of GPUs; one line where the run ignores them."""
    if facts.ignores_gpu:
        who = f"the services of {facts.profile} reserve none" if facts.in_docker else _HIDDEN
        return [Finding("GPU", "skipped", f"not needed: {who}")]
    if not facts.smi.cards:
        return [_driver_missing(facts)]
    found = [_driver(facts), _capability(facts), _bf16(facts), _count(facts)]
    found += [_memory(facts), _p2p(facts)]
    return [item for item in found if item is not None]


_HIDDEN = "CUDA_VISIBLE_DEVICES is set to nothing"


def _driver_missing(facts: Facts) -> Finding:
    plugged = nvidia.on_the_bus()
    text = facts.smi.problem
    needed = f"driver {nvidia.dotted(_needed_driver(facts))} or newer" if facts.build.cuda else ""
    level: Level = "error" if facts.needs_gpu or plugged else "warning"
    if "version mismatch" in text:
        return Finding("NVIDIA driver", "error", text, needed=needed, fix="sudo reboot")
    if plugged:
        text = f"an NVIDIA card on the bus, but {text}"
        return Finding("NVIDIA driver", level, text, needed=needed, fix=_install_driver())
    if facts.needs_gpu:
        fix = f"run {facts.profile} on a machine with an NVIDIA GPU, or try `make train` here"
        return Finding("NVIDIA driver", level, f"no NVIDIA GPU: {text}", needed=needed, fix=fix)
    config = facts.config
    if config is not None and config.train.precision == "fp32":
        return Finding("GPU", "ok", "none: trains on the CPU", needed="none")
    rest = f"{facts.profile or 'all but the demo'} would take the CPU, slowly"
    return Finding("GPU", level, f"no NVIDIA GPU ({text}): {rest}", needed="an NVIDIA GPU")


def _install_driver() -> str:
    newest = max(nvidia.OLDEST_DRIVER.values())[0]
    return f"sudo apt-get install -y nvidia-driver-{newest} && sudo reboot"


def _needed_driver(facts: Facts) -> nvidia.Version:
    return nvidia.oldest_driver(facts.build.cuda or nvidia.USUAL_CUDA)


def _driver(facts: Facts) -> Finding:
    """The driver against the CUDA version that torch is built for."""
    build, found = facts.build, facts.smi.driver
    if build.cuda is None:
        return Finding(
            "NVIDIA driver",
            "error" if facts.needs_gpu else "warning",
            f"{found}, but torch is built for CPUs ({build.source})",
            "a CUDA build of torch, or CUDA_VISIBLE_DEVICES= to train on the CPU",
            needed="TORCH_INDEX_URL=…/whl/cu130 make setup",
        )
    oldest, own = _needed_driver(facts), nvidia.OWN_DRIVER.get(build.cuda[:2])
    name = f"CUDA {'.'.join(map(str, build.cuda[:2]))} ({build.source})"
    needed = f"{nvidia.dotted(oldest)} or newer for {name}"
    if nvidia.numbers(found) < oldest:
        return Finding("NVIDIA driver", "error", found, needed=needed, fix=_newer_driver(found))
    if own and nvidia.numbers(found) < own:
        text = f"{found}: older than {nvidia.dotted(own)}, which came with this CUDA; code that is "
        text += "compiled at run time (torch.compile, kernels) may fail"
        return Finding("NVIDIA driver", "warning", text, needed=needed, fix=_install_driver())
    return Finding("NVIDIA driver", "ok", found, needed=needed)


def _newer_driver(found: str) -> str:
    """A newer driver, or the older build of torch where that would do."""
    old = nvidia.build_of_index(nvidia.OLD_INDEX)
    fix = _install_driver()
    if old and old.cuda and nvidia.numbers(found) >= nvidia.oldest_driver(old.cuda):
        fix += f"; or the older build: {nvidia.OLD_INDEX} make setup"
    return fix


def _capability(facts: Facts) -> Finding | None:
    """Whether torch's binaries hold code for every card in use."""
    if facts.build.cuda is None:
        return None
    text = {card.name: card.capability for card in facts.used_cards or facts.cards}
    needed = f"one of {nvidia.served(facts.build.cuda)}, or a later minor version"
    unknown = [name for name, capability in text.items() if capability is None]
    if unknown:
        return Finding("compute capability", "skipped", f"not known of {', '.join(unknown)}")
    found = ", ".join(f"{name} {cap[0]}.{cap[1]}" for name, cap in text.items() if cap)
    left_out = [cap for cap in text.values() if cap and not nvidia.is_served(cap, facts.build.cuda)]
    if not left_out:
        return Finding("compute capability", "ok", found, needed=needed)
    return Finding("compute capability", "error", found, needed=needed, fix=_other_build(left_out))


def _other_build(capabilities: Sequence[tuple[int, int]]) -> str:
    """The build that has code for these cards, or another card."""
    old = nvidia.build_of_index(nvidia.OLD_INDEX)
    if (
        old
        and old.cuda
        and all(nvidia.is_served(capability, old.cuda) for capability in capabilities)
    ):
        half = " and train.precision=fp16" if min(capabilities) < (8, 0) else ""
        return f"{nvidia.OLD_INDEX} make setup{half}; or a card of compute capability 7.5 or newer"
    if min(capabilities) > (9, 0):
        return "TORCH_INDEX_URL=…/whl/cu130 make setup"
    return "take a card of compute capability 7.5 or newer"


def _bf16(facts: Facts) -> Finding | None:
    """Cards before Ampere have no bf16 units."""
    config = facts.config
    if config is None or config.train.precision != "bf16":
        return None
    old = {card.name for card in facts.used_cards if card.capability and card.capability < (8, 0)}
    if not old:
        return None
    text = f"{', '.join(sorted(old))}: no bf16 units"
    return Finding(
        "precision", "warning", text, needed="8.0 or newer for bf16", fix="train.precision=fp16"
    )


def _count(facts: Facts) -> Finding:
    """Compare the GPUs found with those that the nodes want."""
    cards = facts.cards
    found = f"{len(cards)} ({', '.join(dict.fromkeys(card.name for card in cards)) or 'none'})"
    if facts.profile is None:
        return Finding("GPUs", "ok", found)
    if not cards:
        return Finding("GPUs", "warning", f"{found}: trains on the CPU", fix=_unhide(facts))
    wanted = "; ".join(_wanted(node) for node in facts.nodes)
    double = _shared(facts.nodes)
    if double:
        text = f"GPU {', '.join(double)} given to two nodes"
        return Finding(
            "GPUs", "error", text, needed="each GPU to one node: NCCL refuses two ranks on one"
        )
    if all(len(node.cards) >= _need(node) for node in facts.nodes):
        return Finding("GPUs", "ok", found, needed=wanted)
    return Finding("GPUs", "error", found, needed=wanted, fix=_fewer(facts))


def _unhide(facts: Facts) -> str:
    hidden = facts.env.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={hidden} names no GPU of this machine; unset it" if hidden else ""


def _need(node: PlannedNode) -> int:
    return node.ranks or len(node.listed or ()) or 1


def _wanted(node: PlannedNode) -> str:
    """Request of one node: `llm-worker: 2, numbers 2,3`."""
    listed = f", numbers {','.join(node.listed)}" if node.listed else ""
    return f"{node.name}: {_need(node)}{listed}"


def _shared(nodes: Sequence[PlannedNode]) -> list[str]:
    """Cards that more than one node lists."""
    listed = [name for node in nodes for name in node.listed or ()]
    return sorted({name for name in listed if listed.count(name) > 1})


def _fewer(facts: Facts) -> str:
    """How to run with the GPUs that are here."""
    names = ",".join(str(card.index) for card in facts.cards)
    count = len(facts.cards)
    if facts.in_docker and any(node.listed for node in facts.nodes):
        if any(service.name == "llm-master" for service in facts.services):
            start = f"scripts/start_training.sh {facts.profile}"
            return f"NODES=1 NPROC_PER_NODE={count} LLM_MASTER_GPUS={names} {start}"
        return "give the services GPUs that are here: GRPO_TRAIN_GPUS and GRPO_VLLM_GPUS in .env"
    if facts.nodes_here > 1:
        return f"NNODES=1 NPROC_PER_NODE={count}, or set NODE_RANK on each of several machines"
    return f"NPROC_PER_NODE={count}"


def _memory(facts: Facts) -> Finding | None:
    """Compare the plan with the smallest card in use."""
    if facts.profile is None:
        return None
    sizes = [card.memory for card in facts.used_cards if card.memory]
    if facts.plan is None or facts.config is None:
        return Finding(
            "GPU memory", "skipped", facts.settings.missing or "no settings to plan from"
        )
    if facts.plan.total is None:
        return Finding("GPU memory", "skipped", f"not planned: {facts.plan.unknown}")
    if not sizes:
        return Finding("GPU memory", "skipped", "no GPU whose memory is known")
    size = min(sizes)
    total = facts.plan.need(size) or 0
    needed = f"{total / GIB:.1f} GiB in each, by the plan"
    found = f"{size / GIB:.1f} GiB"
    if total <= size:
        return Finding("GPU memory", "ok", found, needed=needed)
    from workloads.plan.advice import advice
    from workloads.plan.estimate import MAY_FIT

    level: Level = "warning" if total <= MAY_FIT * size else "error"
    return Finding(
        "GPU memory",
        level,
        found,
        needed=needed,
        fix="; ".join(advice(facts.plan, facts.config, size)),
    )


def _p2p(facts: Facts) -> Finding | None:
    """Whether cards have P2P access, and whether NCCL is configured if not."""
    cards = facts.used_cards
    if len(cards) < 2:
        return None
    pairs = nvidia.no_p2p(facts.env, cards)
    if pairs is None and not _is_geforce(cards):
        return Finding("P2P between GPUs", "skipped", "nvidia-smi does not tell (topo -p2p r)")
    is_off = facts.setting("NCCL_P2P_DISABLE") == "1"
    if pairs or pairs is None:
        text = (
            "no" if pairs is None else f"no, for {len(pairs)} of {math.comb(len(cards), 2)} pairs"
        )
        needed = "NCCL_P2P_DISABLE=1"
        if is_off:
            return Finding("P2P between GPUs", "ok", f"{text}; NCCL has been told", needed=needed)
        # With P2P on, NCCL between GeForce cards hangs or crashes; other cards it probes first.
        level: Level = "error" if _is_geforce(cards) else "warning"
        return Finding("P2P between GPUs", level, text, needed=needed, fix=_DISABLE_P2P)
    if is_off:
        text = "yes, but NCCL_P2P_DISABLE=1 keeps NCCL from it: slower"
        fix = "echo NCCL_P2P_DISABLE=0 >>.env"
        return Finding("P2P between GPUs", "warning", text, needed="NCCL_P2P_DISABLE=0", fix=fix)
    return Finding("P2P between GPUs", "ok", "yes, between all")


def _is_geforce(cards: Sequence[InstalledCard]) -> bool:
    return any("GeForce" in card.name for card in cards)
