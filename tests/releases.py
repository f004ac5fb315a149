"""Which releases of other packages a test needs: the oldest that are allowed lack some things."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(package: str, release: str, reason: str) -> pytest.MarkDecorator:
    """Skip a test with older releases of a package, and say why."""
    older = Version(version(package)) < Version(release)
    return pytest.mark.skipif(older, reason=f"before {package} {release}, {reason}")
