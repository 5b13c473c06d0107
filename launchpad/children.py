"""Child processes: they find this package wherever they are started, and do not outlive who needs them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1


def environment() -> dict[str, str]:
    """Return the environment for a child: this one's, with this package importable and output unbuffered."""
    package_root = str(Path(__file__).parent.parent)
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def end_with_parent() -> None:
    """Have the kernel end the calling process when its parent ends, however that ends. For `preexec_fn`.

    It can be interrupted and ended, too: children inherit what their parent does of signals, and shells have what they
    start in the background ignore an interrupt.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def give_way(niceness: int) -> None:
    """Let the calling process compute what others leave. For one that leads a session of its own.

    Where the kernel shares processors among sessions first, niceness counts only within one (sched(7), "The autogroup
    feature"); so the session's own is set as well.
    """
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    with contextlib.suppress(OSError):  # there is no such file where the kernel does not do that
        Path("/proc/self/autogroup").write_text(str(niceness))
