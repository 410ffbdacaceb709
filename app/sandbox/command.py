"""Run a `flask` command on what the sandbox keeps: `python -m app.sandbox.command payments stuck`."""

import subprocess
import sys

from app.sandbox.postgres import PostgresError
from app.sandbox.run import ROOT, RunError, make_plan, read_variables, with_storage


def main() -> int:
    """Run it, whether the sandbox runs or not, and return its exit status."""
    try:
        environment = with_storage(make_plan(read_variables()).environment)
    except (RunError, PostgresError) as err:
        print(err, file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, "-m", "flask", *sys.argv[1:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
