"""A stand-in for `huggingface_hub`, which tests need not have and which would download."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest


def stand_in(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    """Let ``hf_hub_download`` be a function."""
    errors: Any = types.ModuleType("huggingface_hub.errors")
    for name in ("HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError"):
        setattr(errors, name, type(name, (Exception,), {}))
    hub: Any = types.ModuleType("huggingface_hub")
    hub.hf_hub_download, hub.errors = download, errors
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
