"""Forget what the sandbox keeps: `python -m app.sandbox.reset`."""

import os
import signal
import sys
import time
from contextlib import suppress

from app.sandbox import folder, postgres

# Longer than the sandbox gives its own processes to end.
END_SECONDS = 180


def main() -> int:
    """End what runs on the data of this folder, remove the data, and return the exit status."""
    try:
        end_sandbox()
        with folder.claimed():
            postgres.forget(postgres.DEVELOPMENT)
            folder.data_file().unlink(missing_ok=True)
    except (folder.AlreadyRuns, postgres.PostgresError) as err:
        print(err, file=sys.stderr)
        return 1
    print(f"The sandbox has forgotten everything: {postgres.sandbox_directory()}")
    return 0


def end_sandbox() -> None:
    """Ask the process that runs the sandbox of this folder to end, and wait until it has.

    :raises AlreadyRuns: when it doesn't end.
    """
    deadline = time.monotonic() + END_SECONDS
    told: int | None = None
    while True:
        try:
            with folder.claimed():
                return
        except folder.AlreadyRuns as err:
            if time.monotonic() > deadline:
                raise
            if err.process_id is not None and err.process_id != told:
                told = err.process_id
                _ask_to_end(told)
        time.sleep(0.1)


def _ask_to_end(process_id: int) -> None:
    print(f"Ending the sandbox, process {process_id}.", flush=True)
    with suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
