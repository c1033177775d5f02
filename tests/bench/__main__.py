"""`python -m tests.bench [NAME ...]`: measure, print a table to standard error and JSON to standard output."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from tests.bench.report import Result, show

BENCHES = ("datapath", "ingest", "mirror")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHES)} (all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each paired measurement (5)")
    parser.add_argument("--quick", action="store_true", help="a small mirror for a few seconds: no figures to quote")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    if os.geteuid() != 0:
        parser.error("benchmarks make network namespaces and load programs: run as root")
    results: list[Result] = []
    for name in arguments.names or BENCHES:
        print(f"{name} …", file=sys.stderr)
        run: Callable[..., Sequence[Result]] = import_module(f"tests.bench.{name}").run
        results += run(arguments.rounds, **({"quick": True} if arguments.quick and name == "mirror" else {}))
    print(show(results, facts()))
    return 0


def facts() -> Mapping[str, str]:
    return {"kernel": platform.release(), "python": platform.python_version(), "cpus": str(os.cpu_count())}


if __name__ == "__main__":
    sys.exit(main())
