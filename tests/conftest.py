"""The environment of the tests: a loopback Hub, one thread, no display, and no file outside a temporary folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.hub_server import HubServer

_SCRATCH = Path(tempfile.mkdtemp(prefix="didi_gym_tests_"))
_HUB = HubServer()  # its port is refused until a test asks for `hub_server`

# Before torch, minari, huggingface_hub and matplotlib are first imported: all of them read these only once.
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_ENDPOINT=_HUB.endpoint,
    HF_HOME=str(_SCRATCH / "huggingface"),
    HF_HUB_DISABLE_XET="1",  # the loopback Hub speaks the LFS protocol
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_PROXY="127.0.0.1",
    no_proxy="127.0.0.1",
    MINARI_DATASETS_PATH=str(_SCRATCH / "minari"),
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(_SCRATCH / "matplotlib"),
)
for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)

import pytest  # noqa: E402 - after the environment is set
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """The Hub that `huggingface_hub` talks to, without repositories, and the client's cache empty."""
    from huggingface_hub import close_session, constants

    _HUB.reset()
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    _HUB.start()
    yield _HUB
    close_session()
    _HUB.close()


def pytest_unconfigure(config: pytest.Config) -> None:
    _HUB.release()
    shutil.rmtree(_SCRATCH, ignore_errors=True)
