"""`python -m launchpad.tune.start STAGE...`: runs stages of the checkout here, on the artifacts that there are.

`invoke launch` refuses a version whose warmup requests do not fit the declared batch sizes. On a workbench those sizes
change with every configuration, and the versions are the user's: they are served as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launchpad import pipeline

if __name__ == "__main__":
    with pipeline.reported(SystemExit):
        given = pipeline.context(Path.cwd())
        for name in sys.argv[1:]:
            pipeline.stage(name).run(given)
