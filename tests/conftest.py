"""What all tests share."""

from __future__ import annotations

import signal

import pytest

# A suite started in the background inherits an ignored Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is no CUDA device."""
    if item.get_closest_marker("gpu") is not None:
        import torch  # not before: most of `core` runs without it

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
