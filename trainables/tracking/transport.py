"""Send a trial's folder from its node to the driver, through storage that both share.

STORAGE/outbox/SWEEP/ID/00012/   the files, named by digest, and a manifest that is written last: complete or absent
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from trainables.files import sha256
from trainables.layout import RECORD, has_record
from trainables.records.trial import TrialRecord, read_trial
from trainables.store.manifest import MANIFEST, FileEntry, Manifest
from trainables.store.objects import Objects
from trainables.store.remote import Remote

log = logging.getLogger(__name__)

INCOMING = ".incoming"


def send(folder: Path, key: str, storage: str) -> None:
    """Upload a trial's record and the files it names, replacing those of an earlier attempt.

    Args:
        folder: the trial's folder on this node.
        key: `SWEEP/ID/00012`.
        storage: a shared folder or a URL.
    """
    names = (RECORD, *read_trial(folder).files)
    files = {name: FileEntry(sha256=sha256(folder / name), size=(folder / name).stat().st_size) for name in names}
    about = Manifest(key=key, version=0, seconds=0.0, reports=0, created=time.time(), files=files)
    # patient: the result may have cost hours of training, and the driver cannot get it in any other way
    _remote(key, storage, patience_s=300.0).push(folder, about, MANIFEST)


def fetch(
    folder: Path, key: str, storage: str, *, fits: Callable[[TrialRecord], bool], patience_s: float = 0.0
) -> bool:
    """Download a trial's record and files into `folder`, all or none; False if missing, damaged or another trial's.

    Args:
        folder: the trial's folder on this machine.
        key: `SWEEP/ID/00012`.
        storage: a shared folder or a URL.
        fits: whether a record is of the trial that is looked for.
        patience_s: seconds to wait for a storage that does not answer.

    Raises:
        ConnectionError: if it does not answer within that time.
    """
    if has_record(folder):
        return True
    remote = _remote(key, storage, patience_s=patience_s)
    manifest = remote.manifest()
    # one level deeper than the trials, so that listing them never finds a partial download
    coming = folder.parent / INCOMING / folder.name
    if manifest is None or not remote.pull(manifest, coming, MANIFEST):
        return False
    try:
        ours = fits(read_trial(coming))
    except (OSError, ValueError) as error:
        log.warning("%s in %s cannot be read: %s", key, storage, error)
        ours = False
    if not ours:
        log.warning("%s in %s is the result of another trial; it is not taken", key, storage)
        shutil.rmtree(coming)
        return False
    shutil.rmtree(folder, ignore_errors=True)
    coming.rename(folder)
    return True


def withdraw(key: str, storage: str) -> None:
    """Take back what `send` uploaded, so that nobody fetches it any more.

    Raises:
        ConnectionError: if the storage does not answer.
    """
    _remote(key, storage, patience_s=0.0).forget(MANIFEST)


def _remote(key: str, storage: str, *, patience_s: float) -> Remote:
    url = storage if "://" in storage else f"file://{Path(storage).resolve()}"
    return Remote(Objects(f"{url.rstrip('/')}/outbox", patience_s=patience_s), key)
