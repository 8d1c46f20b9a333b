"""Runs the benchmarks: a line of JSON each, a table at the end, exit code 1 when a target is missed."""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
import time
from importlib import import_module
from types import ModuleType

import benchmarks
from benchmarks.timing import Result


def discover() -> dict[str, ModuleType]:
    """NAME -> module, for every module of this folder that has NAME and run()."""
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "__main__")
    modules = [import_module(f"benchmarks.{name}") for name in names]
    return {module.NAME: module for module in modules if hasattr(module, "NAME")}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when every target was reached, 1 when one was missed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="run this one, or this group of them, such as heads")
    only = parser.parse_args(arguments).only
    modules = discover()
    groups = sorted({module.GROUP for module in modules.values() if hasattr(module, "GROUP")})
    if only is not None and only not in (*modules, *groups):
        names = ", ".join(modules)
        sys.stderr.write(f"error: there is no benchmark {only!r}; choose {names}; groups: {', '.join(groups)}.\n")
        return 2
    results: list[Result] = []
    for name, module in modules.items():
        if only in (None, name, getattr(module, "GROUP", None)):
            began = time.perf_counter()
            for result in module.run():
                print(json.dumps(result), flush=True)
                results.append({**result, "took_s": time.perf_counter() - began})
    if only in ("heads", "field"):
        from benchmarks.performance_page import FIELD, HEADS, write_page

        write_page(HEADS if only == "heads" else FIELD, results)
    _print_table(results)
    return 0 if all(result["ok"] for result in results) else 1


def _print_table(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "ratio", "target", "", "compared")
    for result in results:
        verdict = "[green]ok[/green]" if result["ok"] else "[red]missed[/red]"
        table.add_row(result["name"], f"{result['ratio']:.2f}", f"{result['target']:g}", verdict, result["compared"])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    sys.exit(main())
