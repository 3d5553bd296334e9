"""python -m trainables.store ls|du|gc: what the store holds, what it cost, and taking out what nobody needs."""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from trainables.config.flags import OneLineParser
from trainables.layout import STORE, SWEEPS
from trainables.store.inventory import Leftover, LocalShelf, RemoteShelf, Shelf
from trainables.store.manifest import Manifest
from trainables.store.references import Reference, references, running, unfinished

# Leftovers of an interrupted sweep are kept for a day, so that it can resume from them.
ABANDONED_S = 24 * 3600


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = _parser()
    flags = parser.parse_args(argv)
    where = flags.store or str(flags.out / STORE)
    sweeps = flags.out / SWEEPS
    try:
        shelf: Shelf = RemoteShelf(where) if "://" in where else LocalShelf(Path(where))
        if "://" not in where and not Path(where).is_dir():
            raise ValueError(f"there is no store in {where}; name the folder of the sweeps with --out.")
        if flags.command == "gc":
            return _gc(shelf, sweeps, flags)
        shelf.check()
        if flags.command == "ls":
            _ls(shelf, references(sweeps))
        else:
            _du(shelf)
    except ValueError as error:
        parser.error(str(error))
    return 0


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units with three digits: `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # not 1000: three digits would round 999.5 up to `1e+03 B`
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_duration(seconds: float) -> str:
    """A duration in its largest unit: `3 d`, `12 min`, `4.2 s`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m trainables.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="ls|du|gc")
    shared = OneLineParser(add_help=False)
    shared.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="holds store/ and sweeps/ (default: runs)"
    )
    shared.add_argument("--store", metavar="DIR|URL", help="the store, if it is elsewhere (default: OUT/store)")
    commands.add_parser("ls", parents=[shared], help="one line a result, the largest first")
    commands.add_parser("du", parents=[shared], help="space and cost by stage")
    gc = commands.add_parser(
        "gc", parents=[shared], help="remove what no sweep below --out needs; never touches sweeps/"
    )
    gc.add_argument(
        "--keep",
        choices=("front", "all-trials"),
        default="front",
        help="besides teachers, champions and controls: front members or every trial (default: front)",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    gc.add_argument("--failures", action="store_true", help="also forget which configurations are known to fail")
    gc.add_argument("--all", action="store_true", help="remove every result and remembered failure of any format")
    return parser


def _ls(shelf: Shelf, found: Iterable[Reference]) -> None:
    users: dict[str, set[str]] = defaultdict(set)
    for reference in found:
        for key in reference.keys:
            users[key].add(reference.sweep)
    print(f"{'stage':<12} {'digest':<24} {'size':>8} {'age':>7} {'cost':>8}  sweeps")
    for result in sorted(shelf.results(), key=lambda result: -result.size_bytes):
        stage, _, digest = result.key.partition("/")
        age = format_duration(time.time() - result.created)
        print(
            f"{stage:<12} {digest:<24} {format_bytes(result.size_bytes):>8} {age:>7}"
            f" {format_duration(result.seconds):>8}  {', '.join(sorted(users[result.key])) or '-'}"
        )
    for leftover in shelf.leftovers():
        print(f"unfinished   {leftover.name}  {format_bytes(leftover.size_bytes)}  {format_duration(leftover.age_s)}")
    if failures := shelf.failures():
        print(f"{failures} remembered failures")


def _du(shelf: Shelf) -> None:
    stages: dict[str, list[Manifest]] = defaultdict(list)
    for result in shelf.results():
        stages[result.key.partition("/")[0]].append(result)
    print(f"{'stage':<12} {'results':>8} {'size':>8} {'cost':>8}")
    for stage, results in sorted(stages.items(), key=lambda item: -_size(item[1])):
        print(_du_line(stage, results))
    print(_du_line("total", [result for results in stages.values() for result in results]))
    if leftovers := shelf.leftovers():
        print(f"{'unfinished':<12} {len(leftovers):>8} {format_bytes(sum(part.size_bytes for part in leftovers)):>8}")


def _du_line(name: str, results: list[Manifest]) -> str:
    cost = format_duration(sum(result.seconds for result in results))
    return f"{name:<12} {len(results):>8} {format_bytes(_size(results)):>8} {cost:>8}"


def _size(results: list[Manifest]) -> int:
    return sum(result.size_bytes for result in results)


def _gc(shelf: Shelf, sweeps: Path, flags: argparse.Namespace) -> int:
    if not flags.dry_run and (names := running(sweeps)):
        raise ValueError(f"sweep {names[0]} is running and may need any result; collect when it has ended.")
    if flags.all and not flags.dry_run:
        kept = shelf.clear()
        print("removed everything" + (f" but what is in use: {', '.join(kept)}" if kept else ""))
        return 0
    # not earlier: `gc --all` must be able to empty a store in an old format
    shelf.check()
    found = [] if flags.all else references(sweeps)
    freed, removed = 0, 0
    going_on = unfinished(sweeps) and not flags.all
    for part in _parts(shelf, found, keep=flags.keep, going_on=going_on, abandoned_s=0 if flags.all else ABANDONED_S):
        if shelf.is_free(part.key) if flags.dry_run else shelf.remove(part.key, part.name):
            freed, removed = freed + part.size_bytes, removed + 1
            print(f"{'would remove' if flags.dry_run else 'removed'} {part.name}  {format_bytes(part.size_bytes)}")
        else:
            print(f"kept {part.name}: in use")
    if flags.failures and not flags.dry_run:
        print(f"forgot {shelf.forget_failures()} failures")
    print(f"{'would free' if flags.dry_run else 'freed'} {format_bytes(freed)} ({freed} bytes): {removed} parts")
    return 0


def _parts(
    shelf: Shelf, found: Iterable[Reference], *, keep: str, going_on: bool, abandoned_s: float
) -> list[Leftover]:
    """The parts to remove: results that no sweep needs, and leftovers untouched for `abandoned_s` seconds.

    Args:
        going_on: whether a sweep was interrupted. Results that no record names may then belong to trials that will
            resume, so they are kept as long as leftovers.
        abandoned_s: minimum age of a leftover, in seconds.
    """
    # key -> whether it is needed; the second line wins, as several trials may share a result (the teacher's, say)
    named = {key: False for reference in found for key in reference.keys}
    named |= {key: True for reference in found if reference.needed or keep == "all-trials" for key in reference.keys}
    results = [
        Leftover(result.key, result.key, result.size_bytes, time.time() - result.created)
        for result in shelf.results()
        if not named.get(result.key, False)
    ]
    going = [part for part in results if not going_on or part.key in named or part.age_s >= abandoned_s]
    return going + [part for part in shelf.leftovers() if part.age_s >= abandoned_s]


if __name__ == "__main__":
    raise SystemExit(main())
