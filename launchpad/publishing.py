"""Publishing: versions put before a running server, and taken away again, without a restart.

A version is prepared under a name that is no version number and renamed, so the server sees it whole or not at all.
The server loads and warms it before it lets go of the version that it replaces; that is its own rule, for every
version policy and label this module only keeps to the order that the rule needs. What a version folder can change is
its weights and its queue's batching parameters; the thread pool's size and name are read once, at the server's start.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launchpad import files, pbtxt, warming
from launchpad.backends import how_ended
from launchpad.client import GrpcClient, RestClient, ServerError
from launchpad.declaration import Declaration
from launchpad.errors import EnvironmentFault, GateFailed
from launchpad.exclusive import exclusive
from launchpad.layout import CANONICAL_MODELS, MODEL_BATCHING, Layout, numbered
from launchpad.server import Server
from launchpad.spec import BatchQueue

ORIGIN = "published.json"
"""In a published version: which version's weights it holds and why it was published. The server passes over it."""

POLL_S = 0.05
CONFIG = "models.config"
POLLED_CONFIG = "--model_config_file_poll_wait_seconds="

Queue = BatchQueue | Literal["off", "as it is"]
"""Batching of a published version: parameters, none, or those of the version that its weights are from."""


class NotLoaded(GateFailed):
    """The server did not load a published version. It was withdrawn; what was served before still is."""


@dataclass(frozen=True)
class Published:
    """A version that the server serves. seconds: from when the server could see it to AVAILABLE."""

    model: str
    version: int
    seconds: float


class Publisher:
    """Publishes to the server that was launched in a checkout. Not to be used by several threads."""

    def __init__(self, declaration: Declaration) -> None:
        """Raises EnvironmentFault if no server runs, or it runs where versions cannot be published."""
        self._layout = Layout(declaration.root)
        self._timeout_s = declaration.pipeline.serving.ready_timeout_s
        self.server = _publishable(declaration, Server.ready(self._layout))
        self._rest = RestClient(str(self.server.rest_url), timeout_s=10)

    # --- what is there ---

    def versions(self, model: str) -> list[int]:
        """Return the versions in the deployment folder, increasing."""
        return [int(path.name) for path in numbered(self._layout.deployed(model))]

    def served(self, model: str) -> int:
        """Return the version that unversioned requests go to: the newest AVAILABLE. Raises ServerError."""
        available = [version for version, state in self._rest.states(model).items() if state == "AVAILABLE"]
        if not available:
            raise ServerError("no version", f"{model} has no version AVAILABLE")
        return max(available)

    def batching(self, model: str, version: int) -> BatchQueue | None:
        """Return the parameters in a deployed version's own file; None where it has none, which means no batching.

        Raises OSError or ValueError for a file that cannot be read.
        """
        path = self._layout.deployed(model) / str(version) / MODEL_BATCHING
        return pbtxt.read_queue(path) if path.exists() else None

    # --- publishing ---

    def publish(
        self,
        model: str,
        source: Path | None = None,
        batching: Queue = "as it is",
        why: str = "",
        replace: bool = False,
    ) -> Published:
        """Publish a version, by hard links, under the next number, and wait until it is AVAILABLE.

        source: version folder with the weights; the served version's unless given.
        batching: parameters of its queue. Parameters need a server that reads them per model.
        replace: take the version served until now away: move its labels, wait until the server has let go of it,
            and remove its folder from the deployment. Without it the folder stays, to go back by `withdraw`.
        Raises NotLoaded where the server cannot load it: it is withdrawn, and nothing has changed.
        Raises EnvironmentFault or ServerError where the server cannot be asked or obeyed, or another process publishes.
        """
        if batching != "as it is":
            self._refuse_batching()
        with self._alone():
            return self._publish(model, source, batching, why, replace)

    def _publish(self, model: str, source: Path | None, batching: Queue, why: str, replace: bool) -> Published:
        before = self.served(model)
        number = self._next(model)
        folder = self._layout.deployed(model) / str(number)
        config = self._config()
        reloads = not _follows_the_newest(_entry(config, model))
        self._prepare(folder, source or folder.with_name(str(before)), batching, why)
        try:
            if reloads:
                self._tell(_pinned(config, model, [*self._available(model), number]))
            files.publish(folder)
            seconds = self._await_available(model, number)
        except BaseException:
            files.discard(folder)
            files.remove(_hidden(folder))
            if reloads:
                self._reload(config)
            raise
        if replace:
            self._replace(model, before, number, config, reloads)
        elif reloads:
            self._reload(config)
        self._record(model)
        return Published(model, number, seconds)

    def withdraw(self, model: str, version: int) -> None:
        """Take a version away and wait until the server has let go of it; it serves the newest of the others.

        Raises EnvironmentFault for the last one of a model, or where the server does not let go in time.
        """
        folder = self._layout.deployed(model) / str(version)
        if self.versions(model) == [version]:
            raise EnvironmentFault(f"version {version} is all that {model} has: it cannot be withdrawn")
        with self._alone():
            files.remove(_hidden(folder))
            self._await(lambda: self._gone(model, version), f"the server does not let go of {model} version {version}")
            self._record(model)

    def serve(self, model: str, versions: list[int] | None) -> None:
        """Serve exactly these versions of a model, or with None those of the declared policy again; wait for them.

        Raises EnvironmentFault where one of them is not in the deployment or does not get AVAILABLE in time.
        """
        if missing := sorted(set(versions or ()) - set(self.versions(model))):
            raise EnvironmentFault(f"{model} has no version {missing[0]} in the deployment to serve")
        config = self._config()
        policy = _entry(config, model).model_version_policy
        if versions is None:
            policy.CopyFrom(_entry(_read(self._layout.serving_config / CONFIG), model).model_version_policy)
            self._reload(config)
            return
        self._reload(_pinned(config, model, versions))
        for version in versions:
            self._await_available(model, version)
        self._await(lambda: set(self._available(model)) == set(versions), f"{model} still has other versions AVAILABLE")

    def label(self, model: str, labels: Mapping[str, int]) -> None:
        """Give a model's versions these labels, and no others. Raises ServerError for a version not AVAILABLE."""
        config = self._config()
        entry = _entry(config, model)
        entry.version_labels.clear()
        entry.version_labels.update(labels)
        self._reload(config)

    def labels(self, model: str) -> dict[str, int]:
        """Return the labels of a model's versions, as given last."""
        return dict(_entry(self._config(), model).version_labels)

    def prune(self, model: str) -> list[int]:
        """Remove the folders of published versions that the server does not serve; return their numbers.

        What was published by this module alone: exported versions stay, and so does what anyone else put there.
        """
        states = self._rest.states(model)
        old = [
            version
            for version in self.versions(model)
            if states.get(version, "END") == "END" and (self._layout.deployed(model) / str(version) / ORIGIN).exists()
        ]
        for version in old:
            files.remove(_hidden(self._layout.deployed(model) / str(version)))
        return old

    # --- steps ---

    def _alone(self) -> AbstractContextManager[None]:
        return exclusive(self._layout.publishing_lock, "another process publishes to this checkout's server")

    def _next(self, model: str) -> int:
        """Return a number above all that are there or that the server has known."""
        return max([*self.versions(model), *self._rest.states(model)]) + 1

    @staticmethod
    def _prepare(folder: Path, source: Path, batching: Queue, why: str) -> None:
        place = files.staged(folder)
        files.copy_tree(source, place, link=True)
        parameters = place / MODEL_BATCHING
        if batching != "as it is":
            parameters.unlink(missing_ok=True)  # a link: written through, it would change the source
        if isinstance(batching, BatchQueue):
            files.write_text(parameters, pbtxt.batching_parameters(batching))
            warming.cover(place, batching.batch_sizes)
        weights = (files.read_json(place / ORIGIN) or {"weights of": int(source.name)})["weights of"]
        (place / ORIGIN).unlink(missing_ok=True)
        origin = {"weights of": weights, "published": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "why": why}
        files.write_json(place / ORIGIN, origin)

    def _record(self, model: str) -> None:
        """Keep in the server's record what a model's newest version was published with."""
        recorded = Server.load(self._layout)
        if recorded is None or recorded.instance != self.server.instance:
            return
        folder = self._layout.deployed(model) / str(self.versions(model)[-1])
        adjusted = {name: how for name, how in recorded.adjusted.items() if name != model}
        if (folder / ORIGIN).exists():
            parameters = folder / MODEL_BATCHING
            how = parameters.read_text(encoding="utf-8").split("\n") if parameters.exists() else ["no batching"]
            weights = files.read_json(folder / ORIGIN)["weights of"]
            adjusted[model] = f"weights of version {weights}; {', '.join(filter(None, how))}"
        self.server = dataclasses.replace(recorded, adjusted=adjusted)
        self.server.save(self._layout)

    def _replace(self, model: str, before: int, number: int, config: Any, reloads: bool) -> None:
        """Let the server go over from one version to the next: labels first, then the version that they named."""
        if reloads:
            _rename(_entry(config, model), before, number)
            self._tell(_pinned(config, model, self._available(model)))
        files.remove(_hidden(self._layout.deployed(model) / str(before)))
        if reloads:
            self._reload(config)
        self._await(lambda: self._gone(model, before), f"the server does not let go of {model} version {before}")

    def _available(self, model: str) -> list[int]:
        return [version for version, state in self._rest.states(model).items() if state == "AVAILABLE"]

    def _gone(self, model: str, version: int) -> bool:
        return self._rest.states(model).get(version, "END") == "END"

    def _await_available(self, model: str, number: int) -> float:
        """Wait for a version; return the seconds that it took. Raises NotLoaded where it will not come."""
        start = time.monotonic()

        def arrived() -> bool:
            state, error = self._rest.statuses(model).get(number, ("START", ""))
            if error:
                raise NotLoaded(
                    f"the server did not load {model} version {number}: {error}",
                    fix="what was served before still is; see `invoke logs`",
                )
            return state == "AVAILABLE"

        try:
            self._await(arrived, f"{model} version {number} is not AVAILABLE")
        except EnvironmentFault as fault:
            raise NotLoaded(fault.problems) from None
        return time.monotonic() - start

    def _await(self, holds: Callable[[], bool], otherwise: str) -> None:
        limit = time.monotonic() + self._timeout_s
        while not holds():
            if ended := how_ended(self.server):
                raise EnvironmentFault(f"the server has ended: {ended}", fix="see `invoke logs`")
            if time.monotonic() > limit:
                what = f"{otherwise} after {self._timeout_s:g} s (serving.ready_timeout_s)"
                raise EnvironmentFault(what, fix="see `invoke logs`")
            time.sleep(POLL_S)

    def _refuse_batching(self) -> None:
        """Raise EnvironmentFault where a version's own parameters would not be read."""
        for flag in ("enable_batching", "enable_per_model_batching_parameters"):
            if f"--{flag}=true" not in self.server.command:
                raise EnvironmentFault(
                    f"the server was launched without --{flag}: it reads no version's own batching parameters",
                    fix="declare serving.batching with parameters and a section `autotune`, and run `invoke configure` "
                    "and `invoke launch`",
                )

    # --- the server's configuration of models ---

    @property
    def _config_file(self) -> Path:
        return self._layout.deployment / "config" / CONFIG

    def _config(self) -> Any:
        """Return the ModelServerConfig that the server was told last."""
        return _read(self._config_file)

    def _reload(self, config: Any) -> None:
        """Have the server obey a configuration, and keep it as what it was told last."""
        from google.protobuf import text_format

        self._tell(config)
        files.write_text(self._config_file, text_format.MessageToString(config))

    def _tell(self, config: Any) -> None:
        """Have the server obey a configuration. Raises EnvironmentFault, ServerError."""
        if self.server.grpc_address is None:
            raise EnvironmentFault(
                "version policies and labels change over gRPC, which is off", fix="give serving.ports.grpc"
            )
        if polls := [word for word in self.server.command if word.startswith(POLLED_CONFIG)]:
            raise EnvironmentFault(
                f"the server polls its configuration file ({polls[0]}), which undoes what is told over gRPC",
                fix="drop model_config_file_poll_wait_seconds and run `invoke launch`",
            )
        told = type(config)()
        told.CopyFrom(config)
        if self.server.backend == "docker":
            for entry in told.model_config_list.config:
                entry.base_path = f"{CANONICAL_MODELS}/{entry.name}"
        client = GrpcClient(self.server.grpc_address, self._timeout_s)
        try:
            client.reload(told)
        finally:
            client.close()


def _publishable(declaration: Declaration, server: Server) -> Server:
    """Return the server if versions can be published to it. Raises EnvironmentFault that says why not."""
    serving = declaration.pipeline.serving
    if ended := how_ended(server):
        raise EnvironmentFault(f"the launched server has ended: {ended}", fix="run `invoke launch`")
    if server.backend == "docker" and serving.models == "baked":
        raise EnvironmentFault(
            "the models are baked into the server's image: a version can only be published with a new image",
            declaration.where("serving", "models"),
            "declare serving.models: mounted and run `invoke launch`, or `invoke build` and `invoke launch`",
        )
    if server.rest_url is None:
        raise EnvironmentFault(
            "publishing asks for the state of versions over REST, which is off",
            declaration.where("serving", "ports"),
            "give serving.ports.rest",
        )
    if int(serving.flags.get("file_system_poll_wait_seconds", 1)) <= 0:
        raise EnvironmentFault(
            "the server does not look for new versions: file_system_poll_wait_seconds is "
            f"{serving.flags['file_system_poll_wait_seconds']}",
            declaration.where("serving", "flags", "file_system_poll_wait_seconds"),
            "make it 1 or more and run `invoke launch`",
        )
    return server


def _read(path: Path) -> Any:
    from google.protobuf import text_format

    from launchpad.modelserver import protos

    return text_format.Parse(path.read_text(encoding="utf-8"), protos.ModelServerConfig())


def _entry(config: Any, model: str) -> Any:
    for entry in config.model_config_list.config:
        if entry.name == model:
            return entry
    raise EnvironmentFault(f"the server was not configured with a model {model}", fix="run `invoke launch`")


def _follows_the_newest(entry: Any) -> bool:
    """Tell whether the server goes over to a newer version by itself, leaving no label behind."""
    policy = entry.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    newest = choice is None or (choice == "latest" and policy.latest.num_versions <= 1)
    return newest and not entry.version_labels


def _rename(entry: Any, before: int, number: int) -> None:
    """Put a version in the place of another, in labels and policy."""
    for label, version in entry.version_labels.items():
        if version == before:
            entry.version_labels[label] = number
    policy = entry.model_version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        others = [version for version in policy.specific.versions if version != before]
        policy.specific.versions[:] = sorted({*others, number})


def _pinned(config: Any, model: str, versions: list[int]) -> Any:
    """Return a configuration that serves exactly these versions of a model."""
    changed = type(config)()
    changed.CopyFrom(config)
    policy = _entry(changed, model).model_version_policy
    policy.Clear()
    policy.specific.versions.extend(sorted(set(versions)))
    return changed


def _hidden(folder: Path) -> Path:
    """Take a version folder out of the server's sight, whole; return where it is now, to be removed."""
    if not folder.exists():
        return folder
    place = folder.with_name(f".{folder.name}.old")
    files.remove(place)
    return folder.rename(place)
