"""One thread: layers of miniature clips are too small to share, and waiting threads cost tenfold beside other work."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> None:
    torch.set_num_threads(1)
