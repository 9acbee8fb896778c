"""The environment of the tests: offline, one thread, no display, and no file outside a temporary folder."""

import os
import shutil
import tempfile
from pathlib import Path

# Before torch, minari, huggingface_hub and matplotlib are first imported: all of them read these only once.
_SCRATCH = Path(tempfile.mkdtemp(prefix="didi_gym_tests_"))
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_HOME=str(_SCRATCH / "huggingface"),
    MINARI_DATASETS_PATH=str(_SCRATCH / "minari"),
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(_SCRATCH / "matplotlib"),
)
for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(name, None)

import pytest  # noqa: E402 - after the environment is set
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_SCRATCH, ignore_errors=True)
