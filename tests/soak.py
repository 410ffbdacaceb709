"""How much a test does: a little in `make test`, a lot in `make soak`, which sets SOAK."""

import os

SOAKING = bool(os.environ.get("SOAK"))


def amount(usual: int, soaking: int) -> int:
    """How much of something, here and now."""
    return soaking if SOAKING else usual
