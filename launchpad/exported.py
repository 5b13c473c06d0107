"""What the export of a version left, for those who send it to a server."""

from __future__ import annotations

import zipfile
import zlib

from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples
from launchpad.layout import Layout


def examples(layout: Layout, model: str, version: int) -> Examples:
    """Load a version's examples. Raises EnvironmentFault where it has not been exported, or not whole."""
    path = layout.examples(model, version)
    if not path.exists():
        raise EnvironmentFault(f"{model} has no examples", layout.relative(path), "run `invoke export`")
    try:
        return Examples.load(path)
    except (EOFError, LookupError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise EnvironmentFault(
            f"the examples of {model} are not whole: {error}", layout.relative(path), "run `invoke export`"
        ) from None
