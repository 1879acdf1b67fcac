"""Rent a machine at Lambda, train PROFILE on it, bring the run home verified, and end the machine.

It is ended when the run is over and saved, at the deadline, at Ctrl-C, or when it cannot train.
LAMBDA_API_KEY stays here. docs/renting.md has every step.
"""

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workloads.commands.common import loaded_environment
from workloads.commands.rent.beginning import add_common, begin, check_amounts, new_ledger
from workloads.errors import EXIT_DONE

if TYPE_CHECKING:
    from workloads.rent.ledger import Ledger
    from workloads.rent.provider import Offer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    asked = parser.add_argument_group("what is rented")
    asked.add_argument(
        "--hours",
        type=float,
        required=True,
        metavar="H",
        help="from the launch to the deadline, at which the training saves and the machine ends",
    )
    asked.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="NAME",
        help="gpu_1x_h100_pcie; may be given again (default: the cheapest whose GPUs suffice)",
    )
    asked.add_argument(
        "--region", action="append", default=[], metavar="NAME", help="us-east-1 (default: any)"
    )
    asked.add_argument(
        "--max-price", type=float, default=0, metavar="X", help="dollars an hour, at most"
    )
    asked.add_argument(
        "--wait-minutes", type=float, default=30, metavar="N", help="for capacity (default 30)"
    )
    asked.add_argument(
        "--tries",
        type=int,
        default=3,
        metavar="N",
        help="machines that are tried until one can train (default 3)",
    )
    asked.add_argument(
        "--file-system", default="", metavar="NAME", help="one of yours: outputs lie on it, too"
    )
    asked.add_argument(
        "--key", default="", metavar="NAME", help="an ssh key of the account (default: yours)"
    )
    asked.add_argument(
        "--user", default="ubuntu", metavar="NAME", help="who logs in there (default ubuntu)"
    )
    add_common(parser)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads.rent.clock import Clock
    from workloads.rent.opening import KEY, cloud
    from workloads.rent.provider import Request

    check_amounts(args)
    env = loaded_environment()
    request = Request(
        types=tuple(args.type),
        regions=tuple(args.region),
        max_price=args.max_price,
        hours=args.hours,
        tries=max(1, args.tries),
        wait_seconds=args.wait_minutes * 60,
        memory=0 if args.type else _gib_of_plan(args, words, env),
    )
    outputs = f"/lambda/nfs/{args.file_system}/outputs" if args.file_system else "outputs"
    ledger, profile = new_ledger(
        args,
        words,
        env,
        request,
        provider="lambda",
        user=args.user,
        key=args.key,
        file_system=args.file_system,
        outputs=outputs,
    )
    if args.dry_run and not env.get(KEY):
        return _show(args, words, ledger, [], [f"without {KEY} nobody was asked for prices"])
    # A wrong key ends here, before anything is written.
    provider = cloud(env, Clock(), ledger.identity, ledger.key, ledger.file_system)
    offers = sorted(filter(request.suits, provider.offers()), key=lambda offer: offer.price)
    lines = _price_lines(ledger, offers)
    if args.dry_run:
        return _show(args, words, ledger, offers, lines)
    return begin(args, ledger, profile, env, lines, provider)


def _gib_of_plan(args: argparse.Namespace, words: Sequence[str], env: dict[str, str]) -> int:
    """Memory that one GPU needs, by the plan; 0 where the model's shape is not known."""
    from workloads.commands.common import profile_path
    from workloads.config.merge import resolve
    from workloads.plan.estimate import estimate

    config, _ = resolve(profile_path(args.profile, env), env, words)
    total = estimate(config, 1, env).total
    return -(-total // 2**30) if total else 0


def _price_lines(ledger: "Ledger", offers: "list[Offer]") -> list[str]:
    from workloads.rent.provider import dollars

    request, salvage = ledger.request, ledger.salvage_seconds / 3600
    if not offers:
        minutes = request.wait_seconds / 60
        return [f"no capacity for {request} now; asked again for {minutes:.0f} minutes"]
    first = offers[0]
    whole, most = first.price * request.hours, first.price * (request.hours + salvage)
    return [
        f"{first}: {request.hours:g} h cost {dollars(whole)}, at most {dollars(most)} with the "
        "last copy; billed by the minute, from the launch until it is seen gone"
    ]


def _show(
    args: argparse.Namespace,
    words: Sequence[str],
    ledger: "Ledger",
    offers: "list[Offer]",
    lines: list[str],
) -> int:
    """The dry run: nothing is rented, written or sent."""
    steps = (
        f"rent {ledger.request}, the first of up to {ledger.request.tries} that can train",
        f"wait for ssh as {ledger.user}; let CUDA compute before anything is sent",
        f"send what git lists into {ledger.folder}/, secrets into memory",
        "set up the environment" if not ledger.python else f"take {ledger.python}",
        f"ask the doctor, then train {ledger.profile}/{ledger.run_id}, detached",
        f"copy each checkpoint into {ledger.copy}",
        f"{ledger.save_seconds:g} s before the deadline: stop and save",
        "copy the rest, verify every digest, end the machine, see it gone",
    )
    for number, step in enumerate(steps, 1):
        print(f"{number}. {step}")
    for line in [*lines, *(f"also: {offer}" for offer in offers[1:6])]:
        print(line)
    if offers:
        _plan(args, words, offers[0])
    return EXIT_DONE


def _plan(args: argparse.Namespace, words: Sequence[str], offer: "Offer") -> None:
    from workloads.commands import plan
    from workloads.plan.cards import find_card

    card = re.sub(r"^gpu_\d+x_", "", offer.type).replace("_", "-")
    if not offer.gpus or find_card(card) is None:
        print(f"{offer.type}: no card that a plan knows; tatara plan {args.profile} --gpu NAME")
        return
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    size = f"-{offer.gpu_memory}gb" if offer.gpu_memory and "gb" not in card else ""
    wanted = [args.profile, "--gpu", card + size, "--gpus", str(offer.gpus)]
    plan.main(parser.parse_args([*wanted, "--price", f"{offer.price / offer.gpus:.4f}"]), words)
