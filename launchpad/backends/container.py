"""The docker backend: the image of the build stage in a container of the local engine, found again by its labels."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launchpad import engine, files, flagfile, imagefile
from launchpad.backends.base import Backend, first_start, tail
from launchpad.errors import EnvironmentFault, Problem
from launchpad.imagefile import LABELS, Image
from launchpad.layout import CANONICAL_MODELS, FLAGS_FILE, Layout
from launchpad.server import Server
from launchpad.spec import Pipeline
from launchpad.stage import Context

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

CHECKOUT = f"{LABELS}.checkout"
INSTANCE = f"{LABELS}.instance"
HEALTHCHECK = ["/bin/bash", "/opt/launchpad/healthcheck.sh"]
RESTARTS = 3
KEPT_LOG_LINES = 10_000
STOP_TIMEOUT_S = 10
RESTART_NAMES = {"never": "no", "on-failure": "on-failure", "unless-stopped": "unless-stopped"}


class Docker(Backend):
    """A container with the ports published on 127.0.0.1, no capabilities and a root file system that is read-only."""

    name = "docker"
    merit = "a Docker engine answers"

    def obstacle(self, context: Context) -> Problem | None:
        if problem := engine.obstacle():
            return problem
        serving = context.declaration.pipeline.serving
        try:
            with _connected() as client:
                offered, found = engine.gpus(client)
                if serving.gpu == "require" and not offered:
                    return Problem(
                        f"serving.gpu is require, and the engine offers no NVIDIA GPU ({found})",
                        fix="install nvidia-container-toolkit and run `nvidia-ctk runtime configure`, "
                        "or declare serving.gpu: prefer",
                    )
                if _built(context, client) or engine.local_image(client, serving.image):
                    return None
        except EnvironmentFault as fault:
            return fault.problems[0]
        if serving.backend == "auto" and (reason := engine.pull_obstacle(serving.image)):
            fix = f"`docker pull {serving.image}` or `docker load` it, or declare another serving.image"
            return Problem(f"the base image {serving.image} is not here and cannot be pulled: {reason}", fix=fix)
        return None

    def identity(self, context: Context) -> str:
        with _connected() as client:
            image = _built(context, client)
            devices = _gpus(context, client)
        if image is None:
            raise EnvironmentFault("the image of what is here now has not been built", fix="run `invoke build`")
        pipeline = context.declaration.pipeline
        return files.digest([image.id, self.command(context), pipeline.serving.container, pipeline.name, devices])

    def command(self, context: Context) -> list[str]:
        flags = flagfile.read(context.layout.serving_config / FLAGS_FILE)
        return [*flags, *first_start(context.declaration.pipeline.serving)]

    def warnings(self, context: Context) -> list[Problem]:
        serving = context.declaration.pipeline.serving
        with _connected() as client:
            offered, found = engine.gpus(client)
        if serving.gpu == "prefer" and "gpu" in serving.image and not offered:
            where = context.declaration.where("serving", "gpu")
            what = f"{serving.image} runs on the processors: the engine offers no NVIDIA GPU ({found})"
            return [Problem(what, where, "install nvidia-container-toolkit, or declare the image for CPUs")]
        return []

    def start(self, context: Context, draft: Server) -> Server:
        from docker.errors import DockerException

        pipeline = context.declaration.pipeline
        name = container_name(pipeline)
        with _connected() as client:
            image = _built(context, client)
            if image is None:
                raise EnvironmentFault("the image of what is here now has not been built", fix="run `invoke build`")
            _refuse_taken_name(client, name)
            arguments = run_arguments(context.layout, pipeline, _gpus(context, client))
            labels = {CHECKOUT: str(context.layout.root), INSTANCE: draft.instance}
            command = self.command(context)
            with engine.told(f"starting {image.tag}"):
                container = client.containers.create(image.id, command, name=name, labels=labels, **arguments)
                try:
                    container.start()
                    container.reload()
                except (DockerException, OSError):
                    with contextlib.suppress(DockerException, OSError):
                        container.remove(force=True)
                    raise
        state = container.attrs["State"]
        return replace(
            draft,
            pid=state["Pid"],
            created=_epoch(state["StartedAt"]),
            container=container.id,
            command=[*run_words(name, image.tag, arguments), *command],
        )

    def settle(self, context: Context, server: Server) -> None:
        """Give the container its restart policy: not before, for it would hide how a failing start ends."""
        with _connected() as client, engine.told("setting the restart policy"):
            policy = restart_policy(context.declaration.pipeline)
            client.api.update_container(server.container, restart_policy=policy)

    def is_running(self, server: Server) -> bool:
        state = _state(server)
        return bool(state and state["Running"] and _epoch(state["StartedAt"]) == server.created)

    def unready(self, server: Server) -> str:
        """Run the image's own health check, as the engine does every few seconds."""
        with _connected() as client, engine.told("running the health check"):
            words = client.api.inspect_container(server.container)["Config"]["Healthcheck"]["Test"]
            done = client.containers.get(server.container).exec_run(words[1:])
        return "" if done.exit_code == 0 else done.output.decode(errors="replace").strip()

    def ending(self, server: Server) -> str:
        if problem := _silence():
            return problem
        state = _state(server)
        if state is None:
            return "its container is gone"
        if state["Running"]:
            return "the engine started it again after it had ended; `invoke logs` shows both"
        if state["OOMKilled"]:
            limit = f" of {state['Limit'] / 2**20:g} MiB (serving.container.memory)" if state["Limit"] else ""
            return f"killed by the kernel for exceeding its memory limit{limit}, exit code {state['ExitCode']}"
        error = f" ({state['Error']})" if state.get("Error") else ""
        return f"exit code {state['ExitCode']}{error}"

    def find(self, layout: Layout) -> list[str]:
        found = []
        for container in _containers(layout):
            restarts = container.attrs.get("RestartCount", 0)
            again = f", started again {restarts} times by the engine" if restarts else ""
            if container.status in ("running", "restarting"):
                found.append(f"container {container.name} ({container.short_id}{again})")
        return found

    def stop(self, layout: Layout) -> int:
        """End the checkout's containers, keep the end of their log in a file, and remove them."""
        if problem := _silence():
            server = Server.load(layout)
            if server and server.container:
                place = f"whether the container {server.container[:12]} still runs is not known"
                raise EnvironmentFault(f"{problem}; {place}", fix="start the engine and repeat the command")
            return 0
        from docker.errors import NotFound

        ended = 0
        for container in _containers(layout):
            with engine.told(f"ending the container {container.name}"), contextlib.suppress(NotFound):
                ended += container.status in ("running", "restarting")
                container.stop(timeout=STOP_TIMEOUT_S)
                _keep_log(container, layout)
                container.remove(force=True)
        return ended

    def describe(self, server: Server) -> str:
        return f"container {server.container[:12]}, process {server.pid}"

    def log_tail(self, layout: Layout, lines: int) -> list[str]:
        containers = _containers(layout)
        if not containers:
            return tail(layout.server_log, lines)
        with engine.told("reading the log"):
            return containers[0].logs(tail=lines).decode(errors="replace").splitlines()

    def follow_log(self, layout: Layout, lines: int) -> None:
        from launchpad import console

        for container in _containers(layout)[:1]:
            container.client.api.timeout = None  # a server may be silent for long
            with engine.told("reading the log"):
                for line in container.logs(stream=True, follow=True, tail=lines):
                    console.out.out(line.decode(errors="replace").rstrip("\n"), highlight=False)


def container_name(pipeline: Pipeline) -> str:
    return f"tfs-launchpad-{pipeline.name}"


def restart_policy(pipeline: Pipeline) -> dict[str, Any]:
    """Return the declared restart policy as the engine takes it."""
    name = RESTART_NAMES[pipeline.serving.container.restart]
    return {"Name": name, "MaximumRetryCount": RESTARTS} if name == "on-failure" else {"Name": name}


def run_arguments(layout: Layout, pipeline: Pipeline, with_gpus: bool) -> dict[str, Any]:
    """Return what the container is granted, as the Docker SDK takes it. Pure but for the user that asks."""
    from docker.types import DeviceRequest, LogConfig

    serving, granted = pipeline.serving, pipeline.serving.container
    arguments: dict[str, Any] = {
        "ports": {f"{port}/tcp": ("127.0.0.1", port) for port in (serving.ports.rest, serving.ports.grpc) if port},
        "read_only": True,
        "tmpfs": {"/tmp": "size=64m"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "sysctls": {name: str(value) for name, value in granted.sysctls.items()},
        "log_config": LogConfig(
            type="json-file", config={"max-size": granted.log_size, "max-file": str(granted.log_files)}
        ),
    }
    if granted.memory:
        arguments |= {"mem_limit": granted.memory, "memswap_limit": granted.memory}  # no swap: a limit is a limit
    if granted.cpus:
        arguments["nano_cpus"] = int(granted.cpus * 1e9)
    if serving.models == "mounted":
        arguments["volumes"] = {str(layout.deployment / "models"): {"bind": CANONICAL_MODELS, "mode": "ro"}}
        if os.getuid():  # what the checkout's owner can read, the server can
            arguments["user"] = f"{os.getuid()}:{os.getgid()}"
    if with_gpus:
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


def run_words(name: str, image: str, arguments: dict[str, Any]) -> list[str]:
    """Return the docker command that would run the container, up to the server's own flags."""
    words = ["docker", "run", "--detach", f"--name={name}", "--read-only"]
    words += [f"--publish={host}:{port}:{inside.split('/')[0]}" for inside, (host, port) in arguments["ports"].items()]
    words += [f"--tmpfs={place}:{options}" for place, options in arguments["tmpfs"].items()]
    words += [f"--cap-drop={name}" for name in arguments["cap_drop"]]
    words += [f"--security-opt={option}" for option in arguments["security_opt"]]
    words += [f"--sysctl={name}={value}" for name, value in arguments["sysctls"].items()]
    words += [f"--log-opt={name}={value}" for name, value in arguments["log_config"].config.items()]
    words += [f"--memory={arguments['mem_limit']}"] if "mem_limit" in arguments else []
    words += [f"--cpus={arguments['nano_cpus'] / 1e9:g}"] if "nano_cpus" in arguments else []
    words += [f"--volume={host}:{at['bind']}:{at['mode']}" for host, at in arguments.get("volumes", {}).items()]
    words += [f"--user={arguments['user']}"] if "user" in arguments else []
    words += ["--gpus=all"] if "device_requests" in arguments else []
    return [*words, image]


@contextlib.contextmanager
def _connected() -> Iterator[DockerClient]:
    client = engine.connect()
    try:
        yield client
    finally:
        client.close()


def _built(context: Context, client: DockerClient) -> Image | None:
    """Return the image of what is in the checkout now, if it was built and the engine still has it."""
    image = Image.load(context.layout)
    if image is None or image.content != imagefile.content(context.layout, context.declaration.pipeline):
        return None
    return image if engine.local_image(client, image.id) else None


def _gpus(context: Context, client: DockerClient) -> bool:
    serving = context.declaration.pipeline.serving
    wanted = serving.gpu == "require" or (serving.gpu == "prefer" and "gpu" in serving.image)
    return wanted and engine.gpus(client)[0]


def _refuse_taken_name(client: DockerClient, name: str) -> None:
    from docker.errors import NotFound

    with engine.told("looking for the container's name"), contextlib.suppress(NotFound):
        labels = client.containers.get(name).labels
        owner = f"the checkout {labels[CHECKOUT]}" if CHECKOUT in labels else "something else"
        raise EnvironmentFault(
            f"the container name {name} is taken by {owner}",
            fix=f"end it (`docker rm --force {name}`), or declare another `name`",
        )


def _containers(layout: Layout) -> list[Container]:
    """Return the containers of this checkout, running or not, newest first; none where no engine answers."""
    if _silence():
        return []
    with engine.told("looking for containers"):
        return list(engine.connect().containers.list(all=True, filters={"label": f"{CHECKOUT}={layout.root}"}))


def _state(server: Server) -> dict[str, Any] | None:
    """Return the engine's state of a server's container, with its memory limit in bytes; None if there is none."""
    from docker.errors import NotFound

    try:
        with _connected() as client, engine.told("asking for the container"):
            try:
                facts = client.api.inspect_container(server.container)
            except NotFound:
                return None
    except EnvironmentFault:
        return None
    return {**facts["State"], "Limit": facts["HostConfig"]["Memory"]}


def _silence() -> str:
    """Return that no engine answers, asked anew; empty when one does."""
    try:
        engine.connect(engine.ANSWER_TIMEOUT_S).close()
        return ""
    except EnvironmentFault as fault:
        return fault.problems[0].what


def _keep_log(container: Container, layout: Layout) -> None:
    text = container.logs(tail=KEPT_LOG_LINES).decode(errors="replace")
    files.write_text(layout.server_log, text)


def _epoch(text: str) -> float:
    """Return the seconds since the epoch of the engine's RFC 3339 times, which have nanoseconds."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    return moment.timestamp() + float(f"0.{fraction[:6] or 0}")
