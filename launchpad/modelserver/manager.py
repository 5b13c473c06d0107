"""The life of models: which versions are wanted, loading and unloading them, and finding the one to ask.

Everything here happens on the event loop, but for loading, unloading and looking at the file system, which take
place on threads. A version that is no longer wanted goes only when one that is wanted serves in its place.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any

from .config import ModelSettings
from .execution import use_all_cores
from .flags import schedulable_cpus
from .runtime import release_free_memory
from .servable import Servable
from .status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

Loader = Callable[[str, int, str], Servable]
"""Loads and warms up version number `int` of the model `str` from the directory `str`; raises ServingError."""


class State(Enum):
    """Where a version is in its life; values are those of ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """A version that is or was known: it stays in the list after its end."""

    number: int
    state: State = State.START
    error: ServingError | None = None
    servable: Servable | None = None
    wanted: bool = True
    attempts: int = 0
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True)
class ManagerOptions:
    """How the manager goes about it; names are those of the flags."""

    file_system_poll_wait_seconds: int = 1
    num_load_threads: int = 0
    num_unload_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    allow_version_labels_for_unavailable_models: bool = False


class Model:
    """A configured model, or one that was."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.versions: dict[int, Version] = {}
        self.called_for: set[int] = set()
        self.removed = False
        self.complained = ""

    def settled(self) -> bool:
        """Whether each wanted version has been loaded, or has at least failed once."""
        coming = [version for version in self.versions.values() if version.wanted and not version.attempts]
        return bool(self.versions) and not coming

    def latest(self) -> Servable | None:
        """The available version with the highest number."""
        available = [version for version in self.versions.values() if version.state is State.AVAILABLE]
        return max(available, key=lambda version: version.number).servable if available else None


class ModelManager:
    """Keeps the wanted versions of all configured models available."""

    def __init__(self, load: Loader, options: ManagerOptions) -> None:
        self._load = load
        self._options = options
        self._models: dict[str, Model] = {}
        self._labels: dict[str, Mapping[str, int]] = {}
        self._latest: dict[str, Servable | None] = {}
        self._loaders = ThreadPoolExecutor(4 * schedulable_cpus(), "initial load", use_all_cores)
        self._unloaders = ThreadPoolExecutor(max(1, options.num_unload_threads), "unload", use_all_cores)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- finding a version ---

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The version to ask: that number, that label's, or the latest. Raises ServingError."""
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        if label:
            version = self._labels.get(name, {}).get(label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
        if version is None:
            servable = self._latest.get(name)
            if servable is None:
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Latest({name})")
            return servable
        model = self._models.get(name)
        found = model.versions.get(version) if model else None
        if found is None or found.state is not State.AVAILABLE or found.servable is None:
            raise ServingError(Code.NOT_FOUND, f"Servable not found for request: Specific({name}, {version})")
        return found.servable

    def status(self, name: str, version: int | None = None) -> list[Version]:
        """What is known of one version or all, the highest number first. Raises NOT_FOUND."""
        known = self._models[name].versions if name in self._models else {}
        if version is not None:
            if version not in known:
                raise ServingError(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
            return [known[version]]
        if not known:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        return [known[number] for number in sorted(known, reverse=True)]

    # --- configuration ---

    def configure(self, settings: Mapping[str, ModelSettings]) -> list[Model]:
        """Serve these models from now on, and no others; return those that are new.

        Raises FAILED_PRECONDITION for a label that points to a version that is not available, in which case the
        configuration stays as it was.
        """
        self._labels = self._checked_labels(settings)
        new = []
        for name, entry in settings.items():
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = Model(entry)
            if model.removed or not model.versions:
                new.append(model)
            model.settings, model.removed = entry, False
        for name, model in self._models.items():
            if name not in settings and not model.removed:
                model.removed = True
                self._want(model, set())
        return new

    def _checked_labels(self, settings: Mapping[str, ModelSettings]) -> dict[str, Mapping[str, int]]:
        for name, entry in settings.items():
            for label, number in entry.labels.items():
                if not self._may_label(name, label, number):
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {name}, which is not currently "
                        "available for inference",
                    )
        return {name: entry.labels for name, entry in settings.items()}

    def _may_label(self, name: str, label: str, number: int) -> bool:
        model = self._models.get(name)
        version = model.versions.get(number) if model else None
        if version is not None and version.state is State.AVAILABLE:
            return True
        unchanged = self._labels.get(name, {}).get(label, number) == number
        return self._options.allow_version_labels_for_unavailable_models and unchanged

    async def poll_once(self) -> None:
        """Look at the base paths and start what they call for."""
        loop = asyncio.get_running_loop()
        for model in list(self._models.values()):
            if model.removed:
                continue
            base_path = model.settings.base_path
            try:
                found = await loop.run_in_executor(None, _version_directories, base_path)
            except OSError as error:
                self._complain(model, f"cannot read the base path {base_path}: {error.strerror}")
                continue
            if not found:
                self._complain(model, f"no version of model {model.settings.name} found under {base_path}")
            elif model.complained:
                model.complained = ""
            if not model.removed:
                self._want(model, model.settings.policy.choose(found))

    @staticmethod
    def _complain(model: Model, complaint: str) -> None:
        if model.complained != complaint:
            _log.warning("%s; looking again until it is there", complaint)
            model.complained = complaint

    async def poll(self) -> None:
        """Look at the base paths again and again, as long as the options say."""
        wait = self._options.file_system_poll_wait_seconds
        while wait > 0:
            await asyncio.sleep(wait)
            await self.poll_once()

    def initial_load_done(self) -> None:
        """Load with as many threads as the options say, after a start with as many as are useful."""
        self._loaders.shutdown(wait=False)
        self._loaders = ThreadPoolExecutor(max(1, self._options.num_load_threads), "load", use_all_cores)

    async def wait_until_available(self, models: list[Model], noun: str = "servable") -> None:
        """Wait until each model has an available version and has tried all that are wanted.

        Raises UNKNOWN if all versions of one model have failed; the error calls them by `noun`.
        """
        while True:
            self._changed.clear()
            waiting = [
                model for model in models if not model.removed and (model.latest() is None or not model.settled())
            ]
            for model in waiting:
                ended = [version for version in model.versions.values() if version.wanted]
                if ended and all(version.state is State.END for version in ended):
                    raise _not_available(model, ended, noun)
            if not waiting:
                return
            await self._changed.wait()

    # --- the life of a version ---

    def _want(self, model: Model, numbers: set[int]) -> None:
        """Have these versions and no others. One that is called for again while it unloads is loaded after that."""
        model.called_for = numbers
        for number in sorted(numbers, reverse=True):
            version = model.versions.get(number)
            if version is None or (version.state is State.END and not version.wanted):
                self._start(model, number)
            elif version.state is not State.UNLOADING:
                version.wanted = True
        for number, version in model.versions.items():
            if number not in numbers:
                version.wanted = False
        self._retire(model)

    def _start(self, model: Model, number: int) -> None:
        version = model.versions[number] = Version(number)
        version.task = self._spawn(self._bring_up(model, version))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _bring_up(self, model: Model, version: Version) -> None:
        """Load a version, again and again if need be, and make it available."""
        loop = asyncio.get_running_loop()
        name, number = model.settings.name, version.number
        path = _version_path(model.settings.base_path, number)
        self._set_state(model, version, State.LOADING)
        for attempt in range(1 + max(0, self._options.max_num_load_retries)):
            if attempt:
                await asyncio.sleep(max(0, self._options.load_retry_interval_micros) / 1e6)
            if not version.wanted:
                version.error = ServingError(Code.CANCELLED, f"Loading of version {number} was cancelled")
                break
            started = monotonic()
            try:
                version.servable = await loop.run_in_executor(self._loaders, self._load, name, number, path)
            except ServingError as error:
                version.error = error
                version.attempts += 1
                self._changed.set()
                _log.error("model %s version %d: loading failed: %s", name, number, error)
                continue
            version.error = None
            version.attempts += 1
            _log.info("model %s version %d available after %.2f s", name, number, monotonic() - started)
            self._set_state(model, version, State.AVAILABLE)
            self._retire(model)
            return
        self._set_state(model, version, State.END)

    def _retire(self, model: Model) -> None:
        """Unload the unwanted versions, unless one of them is all there is until a wanted one serves."""
        wanted = [version for version in model.versions.values() if version.wanted]
        if model.called_for and not any(version.state is State.AVAILABLE for version in wanted):
            return
        for version in model.versions.values():
            if not version.wanted and version.state is State.AVAILABLE:
                self._set_state(model, version, State.UNLOADING)
                self._spawn(self._bring_down(model, version))

    async def _bring_down(self, model: Model, version: Version) -> None:
        """Unload a version when the requests in flight have left it."""
        servable = version.servable
        assert servable is not None
        idle = asyncio.Event()
        servable.when_idle(idle.set)
        await idle.wait()
        version.servable = None
        await asyncio.get_running_loop().run_in_executor(self._unloaders, _unload, servable)
        _log.info("model %s version %d unloaded", model.settings.name, version.number)
        self._set_state(model, version, State.END)
        if version.number in model.called_for:
            self._start(model, version.number)

    def _set_state(self, model: Model, version: Version, state: State) -> None:
        version.state = state
        self._latest[model.settings.name] = model.latest()
        self._changed.set()


def _version_directories(base_path: str) -> set[int]:
    """The numbers of the version directories under a base path; raises OSError."""
    with os.scandir(base_path) as entries:
        return {int(entry.name) for entry in entries if entry.name.isascii() and _is_version(entry)}


def _is_version(entry: os.DirEntry[str]) -> bool:
    return entry.name.isdigit() and int(entry.name) < 1 << 63 and entry.is_dir()


def _version_path(base_path: str, number: int) -> str:
    """The directory of a version; its name may have leading zeros."""
    plain = os.path.join(base_path, str(number))
    if os.path.isdir(plain):
        return plain
    for name in sorted(os.listdir(base_path)) if os.path.isdir(base_path) else ():
        if name.isdigit() and int(name) == number:
            return os.path.join(base_path, name)
    return plain


def _unload(servable: Servable) -> None:
    servable.close()
    release_free_memory()


def _not_available(model: Model, versions: list[Version], noun: str) -> ServingError:
    """The error for a model without a version, with the original's braces and commas."""
    errors = [
        f"{{{{name: {model.settings.name} version: {version.number}}} due to error: {version.error}}}, "
        for version in versions
    ]
    count = f"{len(versions)} {noun}(s)"
    return ServingError(Code.UNKNOWN, f"{count} did not become available: {{{''.join(errors)}}}")
