"""The command line, the same for `tatara doctor` and `python3 -m workloads.doctor`."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from workloads.doctor import accounts, checkout, containers, deep, gpus, host
from workloads.doctor.facts import Facts, look
from workloads.environment import without_secrets
from workloads.errors import EXIT_DONE, EXIT_FAILED, UserError
from workloads.findings import Finding, as_json, summary, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "profile", nargs="?", metavar="PROFILE", help="also check what this one needs"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--brief", action="store_true", help="print only what is to be fixed")
    parser.add_argument(
        "--deep", action="store_true", help="import, compute and let two ranks speak, in minutes"
    )
    # Accepts the settings that `train` accepts.
    parser.add_argument("--resume", nargs="?", help=argparse.SUPPRESS)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Check and print; returns 1 where a run could not start. Raises UserError without a
    PROFILE."""
    if args.resume and "=" in args.resume:
        words = [args.resume, *words]
    if words and args.profile is None:
        raise UserError(f"expected a PROFILE before {words[0]!r}; name one, or see --help")
    facts = look(os.environ, args.profile, words)
    findings = examine(facts)
    if args.deep:
        findings += deep.checks(facts)
    findings = [_without_secrets(finding, facts.env) for finding in findings]
    failed = any(item.level == "error" for item in findings)
    if args.json:
        found = {
            "ok": not failed,
            "profile": facts.profile,
            "runtime": facts.runtime,
            "checks": as_json(findings),
        }
        print(json.dumps(found, indent=1, ensure_ascii=False))
    elif args.brief:
        for finding in findings:
            if finding.is_bad:
                print(finding.line())
    else:
        print(table(findings))
        subject = f"{args.profile} ({facts.runtime})" if args.profile else "a run"
        print(f"\n{summary(findings, subject)}")
    return EXIT_FAILED if failed else EXIT_DONE


def _without_secrets(finding: Finding, env: Mapping[str, str]) -> Finding:
    found, fix = without_secrets(finding.found, env), without_secrets(finding.fix, env)
    return replace(finding, found=found, fix=fix)


def examine(facts: Facts) -> list[Finding]:
    """All checks, in the order in which they are best fixed."""
    found = [Finding("runtime", "ok", f"{facts.runtime}: {facts.why}")]
    if facts.settings.mistake:
        fix = f"tatara check {facts.profile}"
        found.append(
            Finding("profile", "error", facts.settings.mistake, needed="no mistake", fix=fix)
        )
    elif facts.settings.missing and facts.profile:
        found.append(Finding("profile", "skipped", facts.settings.missing))
    for part in (gpus, containers, checkout, host, accounts):
        found += part.checks(facts)
    return found
