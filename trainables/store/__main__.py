"""python -m trainables.store ls|du|gc: what the store holds, what it cost, and taking out what nobody needs."""

import argparse
import contextlib
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainables.config.flags import OneLineParser
from trainables.layout import IDENTITY, STORE, SWEEPS
from trainables.records.trial import read_sweep_id
from trainables.store.entries import FORMAT_FILE
from trainables.store.inventory import Leftover, LocalShelf, RemoteShelf, Shelf
from trainables.store.manifest import FORMAT, Manifest
from trainables.store.references import Reference, readable, references, running, unfinished, users

# Leftovers of an interrupted sweep are kept for a day, so that it can resume from them.
ABANDONED_S = 24 * 3600


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser, words = _parser(), sys.argv[1:] if argv is None else argv
    flags = parser.parse_args(words)
    try:
        where, shelf = _open(flags)
        if flags.command == "gc":
            return _gc(shelf, where, flags, words)
        shelf.check()
        if flags.command == "ls":
            sweeps = _below(flags.out)
            with contextlib.suppress(ValueError):  # `gc` says which user cannot be seen
                sweeps += users(shelf, where)[0]
            _ls(shelf, readable(dict.fromkeys(sweeps)))
        else:
            _du(shelf)
    except ValueError as error:
        parser.error(str(error))
    return 0


def _open(flags: argparse.Namespace) -> tuple[str, Shelf]:
    """The store that the flags name, and where it lies.

    Raises:
        ValueError: if there is none: nothing but a store is listed or collected.
    """
    where = flags.store or str(flags.out / STORE)
    remote = "://" in where
    shelf: Shelf = RemoteShelf(where) if remote else LocalShelf(Path(where))
    if not remote and not Path(where).is_dir():
        raise ValueError(f"there is no store in {where}; name the folder of the sweeps with --out.")
    if not shelf.is_store():
        below = "" if remote or not (Path(where) / STORE / FORMAT_FILE).exists() else f"{Path(where) / STORE}, or "
        mark = f'{{"format": {FORMAT}}}'
        raise ValueError(
            f"{where} holds no sound {FORMAT_FILE} of a store; name {below}the folder of the sweeps with --out (if it"
            f" is a store that has lost that file, write {mark} into it)."
        )
    return where, shelf


def _below(out: Path) -> list[Path]:
    return sorted(path.resolve() for path in (out / SWEEPS).glob("*") if path.is_dir())


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
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="Holds store/ and sweeps/ (default: runs)"
    )
    shared.add_argument("--store", metavar="DIR|URL", help="The store, if it is elsewhere (default: OUT/store)")
    commands.add_parser("ls", parents=[shared], help="One line a result, the largest first")
    commands.add_parser("du", parents=[shared], help="Space and cost by stage")
    gc = commands.add_parser(
        "gc", parents=[shared], help="Show what no sweep needs, ask, and remove it; never touches sweeps/"
    )
    gc.add_argument(
        "--keep",
        choices=("front", "all-trials"),
        default="front",
        help="Besides teachers, champions and controls: front members or every trial (default: front)",
    )
    asks = gc.add_mutually_exclusive_group()
    asks.add_argument("--dry-run", action="store_true", help="Only say what would go")
    asks.add_argument("--yes", action="store_true", help="Remove it without asking")
    gc.add_argument(
        "--forget", action="append", default=[], metavar="NAME", help="A sweep that is gone and needs nothing any more"
    )
    gc.add_argument("--failures", action="store_true", help="Also forget which configurations are known to fail")
    gc.add_argument("--all", action="store_true", help="Remove every result and remembered failure of any format")
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


def _gc(shelf: Shelf, where: str, flags: argparse.Namespace, words: Sequence[str]) -> int:
    shown = _doomed(shelf, where, flags)
    if not flags.yes:
        for part in shown:
            free = shelf.is_free(part.key)
            print(f"would remove {part.name}  {format_bytes(part.size_bytes)}" if free else f"kept {part.name}: in use")
        _total("would free", [part for part in shown if shelf.is_free(part.key)])
        if flags.failures:
            print(f"would forget {shelf.failures()} failures")
        forgotten = users(shelf, where, forget=flags.forget)[1]
        if forgotten:
            print(f"would forget {len(forgotten)} notes about sweeps that are gone")
        if flags.dry_run or not (shown or flags.all or forgotten or (flags.failures and shelf.failures())):
            return 0
        if not sys.stdin.isatty():
            typed = shlex.join(["python", "-m", "trainables.store", *words, "--yes"])
            raise ValueError(f"nothing was removed, as nobody can be asked here: `{typed}` removes it.")
        if input("Remove this? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return 0
        # again: a sweep may have begun while this one waited
        names = {part.name for part in shown}
        shown = [part for part in _doomed(shelf, where, flags) if part.name in names]
    for note in users(shelf, where, forget=flags.forget)[1]:
        shelf.forget_user(note)
    if flags.all:
        kept = shelf.clear()
        print("removed everything" + (f" but what is in use: {', '.join(kept)}" if kept else ""))
        return 0
    removed = []
    for part in shown:
        gone = shelf.remove(part.key, part.name)
        removed += [part] if gone else []
        print(f"removed {part.name}  {format_bytes(part.size_bytes)}" if gone else f"kept {part.name}: in use")
    if flags.failures:
        print(f"forgot {shelf.forget_failures()} failures")
    _total("freed", removed)
    return 0


def _doomed(shelf: Shelf, where: str, flags: argparse.Namespace) -> list[Leftover]:
    """What the flags ask to remove; nothing that a sweep needs which uses the store, here or elsewhere.

    Raises:
        ValueError: if a sweep is running, or what the sweeps need is not known.
    """
    below = _below(flags.out)
    sweeps = sorted({*below, *users(shelf, where, forget=flags.forget)[0]})
    if not flags.dry_run and (names := running(sweeps)):
        raise ValueError(f"sweep {names[0]} is running and may need any result; collect when it has ended.")
    if flags.all:
        return _parts(shelf, [], keep=flags.keep, going_on=False, abandoned_s=0)
    shelf.check()
    found = references(sweeps)
    if not found and shelf.results():
        raise ValueError(
            f"no sweep is known that uses {where}, so what is needed there is unknown; name the folder of its sweeps"
            " with --out (`gc --all` would remove everything)."
        )
    beside = flags.store is None or Path(flags.store).resolve() == (flags.out / STORE).resolve()
    if not beside and not shelf.notes_users():
        mark = f'{{"format": {FORMAT}, "users": true}}'
        raise ValueError(
            f"{where} is older than the list of the sweeps that use it: if all of them lie below --out {flags.out},"
            f" write {mark} into its {FORMAT_FILE}."
        )
    if not flags.dry_run:
        _note(shelf, below, found)
    return _parts(shelf, found, keep=flags.keep, going_on=unfinished(sweeps), abandoned_s=ABANDONED_S)


def _note(shelf: Shelf, sweeps: Iterable[Path], found: Iterable[Reference]) -> None:
    """Put down which of these sweeps use the store: a collector that starts elsewhere must know them."""
    held = {result.key for result in shelf.results()}
    using = {reference.sweep for reference in found if held.intersection(reference.keys)}
    for sweep in sweeps:
        if sweep.name in using and (sweep / IDENTITY).exists():
            shelf.note_user(sweep, read_sweep_id(sweep))


def _total(freed: str, parts: Sequence[Leftover]) -> None:
    count = sum(part.size_bytes for part in parts)
    print(f"{freed} {format_bytes(count)} ({count} bytes): {len(parts)} parts")


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
