"""Look for mistakes in PROFILE, its data and this machine; `--deep` reads every row."""

import argparse
from collections.abc import Sequence

from workloads.commands.common import (
    loaded_environment,
    print_json,
    profile_path,
    report_ignored,
    resolved_to_fit,
)
from workloads.config.merge import leaves
from workloads.environment import without_secrets
from workloads.errors import EXIT_DONE, EXIT_USER, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    parser.add_argument("--deep", action="store_true", help="read every row, count its tokens")
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="with --deep: print N rows and what is learnt",
    )
    parser.add_argument("--json", action="store_true", help="print findings and settings as JSON")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    from workloads import check
    from workloads.findings import as_json

    if args.show is not None and (not args.deep or args.json):
        raise UserError("--show prints rows that --deep has read; add --deep, leave out --json")
    env = loaded_environment()
    path = profile_path(args.profile, env)
    config, provenance, _ = resolved_to_fit(path, env, words)
    report_ignored(str(path), provenance)
    findings = check.shallow(config, env, provenance)
    if args.deep and not any(finding.level == "error" for finding in findings):
        findings += check.deep(config, env)
    failed = any(finding.level == "error" for finding in findings)
    if args.json:
        settings = {
            name: {"value": value, "source": provenance[name]}
            for name, value in leaves(config).items()
        }
        found = as_json(findings)
        print_json({"ok": not failed, "findings": found, "settings": settings})
    else:
        for name, source in provenance.items():
            of_profile = source.startswith((f"{path}:", "file name of"))
            if source != "default" and not of_profile:
                print(f"{name} = {leaves(config)[name]}   ({source})")
        for finding in findings:
            print(without_secrets(finding.line(), env))
        if args.show is not None and not failed:
            from workloads.commands.data_preview import preview

            preview(config, env, args.show, None)
        print("this profile cannot start" if failed else "no mistakes found")
    return EXIT_USER if failed else EXIT_DONE
