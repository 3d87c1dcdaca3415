"""The browser that pages are tried in."""

import shutil

import pytest


@pytest.fixture(scope="session")
def chromium() -> str:
    """Its path."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine; `apt-get install chromium` brings it")
