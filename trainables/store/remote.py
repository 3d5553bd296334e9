"""A store's results in a bucket or on a shared disk, and unfinished work between nodes (fsspec; no torch, no Ray).

URL/student/3f9a.../manifest.json          the result; written last, so that it is whole or absent
URL/student/3f9a.../partial.json           the last epoch of unfinished work
URL/student/3f9a.../9e10...-weights.pt     contents, named by their digest: two writers cannot mix
URL/student/3f9a.../{lease,failed}.json    who works on it; why it can never succeed
"""

import logging
import shutil
from pathlib import Path

from trainables.files import write_text
from trainables.records.encoding import to_json
from trainables.store.manifest import MANIFEST, Manifest, fault, parse
from trainables.store.objects import Objects

log = logging.getLogger(__name__)

PARTIAL = "partial.json"
LEASE = "lease.json"
FAILED = "failed.json"


class Remote:
    """One key's objects."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key = objects, key
        self._hurried = objects.hurried()
        self._there: set[str] = set()

    def manifest(self, name: str = MANIFEST) -> Manifest | None:
        """The committed result, or with `PARTIAL` the unfinished work; None if there is none that can be read."""
        text = self._objects.read(f"{self._key}/{name}")
        return None if text is None else parse(text, f"{self._key}/{name}")

    def push(self, folder: Path, manifest: Manifest, name: str) -> None:
        """Upload what is not there yet, commit it by writing the manifest, then delete what it replaced.

        A result waits for a network that is away; unfinished work does not.
        """
        objects = self._objects if name == MANIFEST else self._hurried
        needed = {_object(entry.sha256, path): path for path, entry in manifest.files.items()}
        for content, path in needed.items():
            if content not in self._there:
                objects.upload(folder / path, f"{self._key}/{content}")
        objects.write(f"{self._key}/{name}", to_json(manifest).encode())
        objects.delete(f"{self._key}/{content}" for content in self._there - set(needed))
        self._there = set(needed)

    def pull(self, manifest: Manifest, folder: Path, name: str) -> bool:
        """Download a manifest's files into a new `folder`, all or none; False, and a warning, if they are damaged."""
        coming = folder.with_name(folder.name + ".download")
        shutil.rmtree(coming, ignore_errors=True)
        coming.mkdir(parents=True)
        try:
            for path, entry in manifest.files.items():
                self._objects.download(f"{self._key}/{_object(entry.sha256, path)}", coming / path)
            reason = fault(coming, manifest)
        except FileNotFoundError as error:
            reason = f"missing: {error}"
        if reason is not None:
            log.warning("store: %s/%s is damaged (%s); it is computed again", self._key, name, reason)
            shutil.rmtree(coming)
            return False
        if name == MANIFEST:
            write_text(coming / MANIFEST, to_json(manifest))
        else:
            self._there = {_object(entry.sha256, path) for path, entry in manifest.files.items()}
        shutil.rmtree(folder, ignore_errors=True)
        coming.rename(folder)
        return True

    def forget(self, name: str) -> None:
        """Take a manifest away; its contents are collected later."""
        self._objects.delete([f"{self._key}/{name}"])

    def tidy(self) -> None:
        """Leave nothing beside a finished result but its own contents and its lease."""
        manifest = self.manifest()
        if manifest is not None:
            needed = {_object(entry.sha256, path) for path, entry in manifest.files.items()} | {MANIFEST, LEASE}
            names = self._objects.sizes(f"{self._key}/")
            self._objects.delete(name for name in names if name.removeprefix(f"{self._key}/") not in needed)


def _object(sha256: str, path: str) -> str:
    return f"{sha256[:32]}-{path.replace('/', '--')}"
