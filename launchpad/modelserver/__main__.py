"""`python -m launchpad.modelserver`: reads the command line, runs the server, says plainly what went wrong.

Exit codes: 0 stopped on request; 2 wrong flags or configuration files; 3 the environment (a port that is taken, a
model that cannot be loaded, a missing library).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from .flags import FLAGS, FlagError, Options, parse

_WRONG_ARGUMENTS = 2
_WRONG_ENVIRONMENT = 3


def main(argv: list[str]) -> int:
    """Run the server with these arguments and return the exit code."""
    try:
        options = parse(argv)
    except FlagError as error:
        return _complain(str(error), _WRONG_ARGUMENTS)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
    )
    _warn_of_idle_flags(options)
    try:
        return _run(options)
    except ImportError as error:
        return _complain(str(error), _WRONG_ENVIRONMENT)


def _complain(message: str, code: int) -> int:
    print(f"modelserver: {message}", file=sys.stderr)
    return code


def _warn_of_idle_flags(options: Options) -> None:
    for flag in FLAGS.values():
        if not flag.supported and getattr(options, flag.name) != flag.default:
            logging.warning("--%s has no effect in the embedded server", flag.name)


def _run(options: Options) -> int:
    import uvloop

    from .config import ConfigError
    from .listening import StartError
    from .runtime import prepare, tensorflow_version
    from .server import ModelServer
    from .status import ServingError

    if options.version:
        prepare(onednn=False)
        print(f"TensorFlow ModelServer: embedded\nTensorFlow Library: {tensorflow_version()}")
        return 0

    async def serve() -> None:
        await ModelServer(options).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except ConfigError as error:
        return _complain(str(error), _WRONG_ARGUMENTS)
    except StartError as error:
        return _complain(str(error), _WRONG_ENVIRONMENT)
    except ServingError as error:
        return _complain(f"Failed to start server. Error: {error}", _WRONG_ENVIRONMENT)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
