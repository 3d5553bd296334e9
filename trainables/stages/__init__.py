"""The stages of a candidate in pure PyTorch: no Ray, no MLflow."""

import os
from contextlib import suppress
from pathlib import Path

# Inductor runs the code that it finds in its cache: by default in a folder below /tmp that anybody may have made first.
# Set here, as torchvision decides on the folder when it is imported.
with suppress(RuntimeError):  # a user without a home
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "torchinductor"))
