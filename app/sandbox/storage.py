"""The file in which the sandbox's state survives a restart."""

import os
import threading
from pathlib import Path

import orjson

from app.sandbox.world import World

PAUSE_SECONDS = 1.0


class UnreadableStateError(Exception):
    """The file isn't what a sandbox has written."""


class Storage:
    """Writes the world to the file soon after it changed; without a file, does nothing."""

    def __init__(self, world: World, path: Path | None) -> None:
        self._world = world
        self._path = path
        self._writing = threading.Lock()

    def load(self) -> None:
        """:raises UnreadableStateError: when the file is broken"""
        if self._path is None or not self._path.exists():
            return
        try:
            state = orjson.loads(self._path.read_bytes())
            with self._world.lock:
                self._world.load(state)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UnreadableStateError(
                f"The sandbox's state in {self._path} can't be read; remove it, or choose another with SANDBOX_DATA."
            ) from error

    def start(self) -> None:
        if self._path is not None:
            threading.Thread(target=self._keep_saving, name="storage", daemon=True).start()

    def _keep_saving(self) -> None:
        never = threading.Event()
        while True:
            self._world.changed.wait()
            self._world.changed.clear()
            self.save()
            never.wait(PAUSE_SECONDS)

    def save(self) -> None:
        """Write the state, readable by its owner only, and all of it or nothing."""
        if self._path is None:
            return
        with self._writing:
            with self._world.lock:
                state = orjson.dumps(self._world.to_state())
            self._path.parent.mkdir(parents=True, exist_ok=True)
            written = self._path.with_name(self._path.name + ".new")
            descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(state)
            written.replace(self._path)
