"""Results in a bucket or on a shared disk, and handing unfinished work between nodes (fsspec; no torch, no Ray).

URL/student/3f9a.../manifest.json          the result; written last, so that it is whole or absent
URL/student/3f9a.../partial.json           the last epoch of unfinished work
URL/student/3f9a.../9e10...-weights.pt     contents, named by digest: two writers cannot mix theirs
URL/student/3f9a.../{lease,failed}.json    the node that works on it; why it always fails
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
    """The objects of one key."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key = objects, key
        self._impatient = objects.without_retries()
        self._there: set[str] = set()  # contents that this node knows to be uploaded

    def manifest(self, name: str = MANIFEST) -> Manifest | None:
        """The manifest of the result, or of the unfinished work (`PARTIAL`); None if missing or unreadable."""
        text = self._objects.read(f"{self._key}/{name}")
        return None if text is None else parse(text, key=self._key)

    def push(self, folder: Path, manifest: Manifest, name: str) -> None:
        """Upload the missing contents, commit them by writing the manifest, then delete those it replaces."""
        # a result is worth waiting for the network; unfinished work is uploaded again after the next epoch
        objects = self._objects if name == MANIFEST else self._impatient
        needed = {_object(entry.sha256, path): path for path, entry in manifest.files.items()}
        for content, path in needed.items():
            if content not in self._there:
                objects.upload(folder / path, f"{self._key}/{content}")
        objects.write(f"{self._key}/{name}", to_json(manifest).encode())
        objects.delete(f"{self._key}/{content}" for content in self._there - set(needed))
        self._there = set(needed)

    def pull(self, manifest: Manifest, folder: Path, name: str) -> bool:
        """Download a manifest's files into a new `folder`, all or none; log a warning and return False on damage."""
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
        """Delete a manifest; its contents are garbage-collected later."""
        self._objects.delete([f"{self._key}/{name}"])

    def tidy(self) -> None:
        """Delete everything beside a finished result except its contents and its lease."""
        manifest = self.manifest()
        if manifest is not None:
            needed = {_object(entry.sha256, path) for path, entry in manifest.files.items()} | {MANIFEST, LEASE}
            names = self._objects.sizes(f"{self._key}/")
            self._objects.delete(name for name in names if name.removeprefix(f"{self._key}/") not in needed)


def _object(sha256: str, path: str) -> str:
    return f"{sha256[:32]}-{path.replace('/', '--')}"
