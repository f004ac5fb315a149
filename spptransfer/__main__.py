"""``python -m spptransfer`` is the command ``spptransfer``."""

from __future__ import annotations

import sys

from spptransfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
