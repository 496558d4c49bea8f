"""What lies in a store: `python -m osrm_exp.store ls|verify|gc STORE`.

`ls` lists it, `verify` compares every file with its manifest, `gc STORE RESULTS…` says what no row
of these results folders needs, and with `--yes` removes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from osrm_exp import signals
from osrm_exp.store import manifest
from osrm_exp.store.garbage import Item, artifacts, garbage, left_over


def ls(store: Path) -> int:
    """Every artifact and every left-over, with size and age."""
    _table([*artifacts(store), *left_over(store)])
    return 0


def verify(store: Path) -> int:
    """Every artifact that is not what it was when it was built; 1 if there is one."""
    checked, bad = 0, []
    for checked, item in enumerate(artifacts(store), 1):  # noqa: B007
        damage = manifest.damage(item.path, item.path.relative_to(store).as_posix())
        if damage and item.path.is_dir():  # or it went meanwhile
            bad.append(Item(item.path, damage))
    for item in bad:
        print(f"{item.path}: {item.why}")
    print(f"{checked - len(bad)} of {checked} are whole; a run that needs another builds it again")
    return 1 if bad else 0


def gc(store: Path, results: list[Path], days: float, yes: bool) -> int:
    """What no result needs; removed with `yes`."""
    found = garbage(store, results, days)
    _table(found)
    removed = sum(item.remove() for item in found) if yes else 0
    print(f"{removed} are removed" if yes else "nothing is removed: --yes does that")
    return 0


def _table(items: Iterable[Item]) -> None:
    count, total = 0, 0
    for item in items:
        size = item.bytes
        count, total = count + 1, total + size
        age = f"{item.days:.0f} d" if item.days >= 2 else f"{item.days * 24:.0f} h"
        print(f"{_size(size):>9}  {age:>6}  {item.path}" + (f": {item.why}" if item.why else ""))
    print(f"{_size(total):>9}  in {count}")


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def main() -> int:
    """Reads the command line; what a user can mend is told in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m osrm_exp.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("ls", ls), ("verify", verify), ("gc", gc)):
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument("store", type=Path)
        command.set_defaults(run=function)
    command.add_argument("results", type=Path, nargs="+", help="results folders to keep")
    command.add_argument("--days", type=float, default=1.0, help="spare what is younger")
    command.add_argument("--yes", action="store_true", help="do it")
    options = vars(parser.parse_args())
    del options["command"]
    try:
        return options.pop("run")(**options)
    except (ValueError, OSError) as error:
        print(f"osrm_exp: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    with signals.one_sentence("nothing is half done"):
        sys.exit(main())
