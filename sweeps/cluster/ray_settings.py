"""Ray as a sweep wants it; the package imports this before anything else, as some is read when Ray is imported."""

import atexit
import getpass
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from trainables.config.mlflow_settings import NO_TELEMETRY

# Its own output, usage reports and loggers are replaced by ours; a trial without GPUs must not see them.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_RESULT_DELIM": "/",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state, 10 kB a trial and written whole, is never gone back to
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # `--dataset folder:photos` and PYTHONPATH=. mean what they mean to who types them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` every worker would sync the environment again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),  # of a cluster that is joined; our own has a token
}
os.environ |= SETTINGS
# In a notebook without ipywidgets tqdm says so when MLflow and Optuna import it, and Ray does; we draw without them.
warnings.filterwarnings("ignore", message="IProgress not found")
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)


def give_home() -> None:
    """Give a user without HOME and without an entry in passwd, as containers have, a name and an empty home folder.

    Ray, Inductor and others look for both when they are imported. The folder is removed when the process ends.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


give_home()

# The settings that workers need but, in a joined cluster, do not inherit from the driver.
FOR_WORKERS = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "TUNE_RESULT_DELIM", *NO_TELEMETRY)
