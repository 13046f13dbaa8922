"""What tests share: a small set of clips, made once."""

import os
from pathlib import Path

import pytest
import torch

from avssl.data.manifest import Manifest
from tests.clips import make_set


@pytest.fixture(scope="session")
def clip_set(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """12 training and 6 test clips of two classes; one of each split has no sound. Not to be changed by tests."""
    return make_set(tmp_path_factory.mktemp("clips"))


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # each worker has a core


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]
