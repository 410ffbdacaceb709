"""Which files of the program have changed since it was started."""

from pathlib import Path

WATCHED = ("app/**/*", "wsgi.py")
# What Python and editors write beside the files themselves.
NOT_WATCHED = ("__pycache__", "~", ".swp", ".pyc")


class Changes:
    """The files below a folder as they were when they were looked at last."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = self._look()

    def since_last_look(self) -> list[str]:
        """Return the names of the files that were written, added or removed."""
        before, self._seen = self._seen, self._look()
        names = before.keys() | self._seen.keys()
        return sorted(name for name in names if before.get(name) != self._seen.get(name))

    def _look(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path in (path for pattern in WATCHED for path in self._root.glob(pattern)):
            name = str(path.relative_to(self._root))
            if not any(part.endswith(NOT_WATCHED) for part in path.parts):
                found |= _time_of_change(path, name)
        return found


def _time_of_change(path: Path, name: str) -> dict[str, int]:
    """By name, in nanoseconds; nothing for a folder, or for a file that has just been removed."""
    try:
        return {name: path.stat().st_mtime_ns} if path.is_file() else {}
    except FileNotFoundError:
        return {}
