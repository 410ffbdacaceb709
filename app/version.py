"""The version, which pyproject.toml alone names."""

import importlib.metadata
import tomllib
from pathlib import Path

NAME = "stripe-service"


def find_version(directory: Path = Path(__file__).parents[1]) -> str:
    """The version of the code in a directory.

    A checkout has its pyproject.toml there, and may be newer than what was once installed from it; beside an installed
    package lies none, or that of another.

    :raises importlib.metadata.PackageNotFoundError: when the code lies in no checkout, and is not installed
    """
    described = directory / "pyproject.toml"
    project = tomllib.loads(described.read_text()).get("project", {}) if described.is_file() else {}
    return str(project["version"]) if project.get("name") == NAME else importlib.metadata.version(NAME)


VERSION = find_version()
