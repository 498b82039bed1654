"""Disable each named check in turn and demand that a test notices.

    python -m tests.mutation [--kind KIND ...] [--each-call] [--jobs N] [--verbose]
    python -m tests.mutation --source FILE ... --test FILE ...

A check is a call of ``require``, ``requiring``, ``compare`` or ``compare_reference``
with its name. What a check that never refuses changes, changes where it refused: so
the tests run once as they are, and then, for each name, those during which it refused,
without it. Where all of them pass the name is a survivor: nobody would notice if the
check were gone. Exit code 1 says that there is one, 2 that something else is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.disabling import install
from tests.mutation.groups import Group, all_groups
from tests.mutation.running import Verdict, examine


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.source:
        sources = tuple(path.resolve() for path in options.source)
        groups = [Group("files", sources, tuple(options.test))]
    else:
        groups = all_groups()
        known = {group.name for group in groups}
        if unknown := sorted(set(options.kind) - known):
            print(f"unknown kind {unknown[0]}; known: {', '.join(sorted(known))}")
            return 2
        wanted = set(options.kind) or known
        groups = [group for group in groups if group.name in wanted]
    install()
    code = 0
    for group in groups:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            verdict = examine(
                group,
                jobs=options.jobs,
                each_call=options.each_call,
                folder=Path(folder),
            )
        _print(verdict, time.monotonic() - started, verbose=options.verbose)
        code = max(code, verdict.exit_code)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--kind", action="append", default=[])
    parser.add_argument("--source", action="append", default=[], type=Path)
    parser.add_argument("--test", action="append", default=[], type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--each-call",
        action="store_true",
        help="disable each call by itself, not all calls with one name",
    )
    parser.add_argument("--verbose", action="store_true", help="name each test")
    return parser


def _print(verdict: Verdict, seconds: float, *, verbose: bool) -> None:
    noticed = sum(bool(result.noticed_by) for result in verdict.results)
    print(
        f"{verdict.group.name}: {noticed} of {len(verdict.results)} checks guarded,"
        f" {verdict.passed} tests passed, {verdict.skipped} skipped, {seconds:.0f} s"
    )
    if verdict.trouble:
        print(f"  {verdict.trouble}")
    for result in verdict.results:
        if not result.noticed_by:
            print(f"  SURVIVES  {result.name:<36} {result.remark}")
        elif verbose:
            print(f"  guarded   {result.name:<36} {result.noticed_by}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
