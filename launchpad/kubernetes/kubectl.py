"""kubectl as a child process: found, called, its refusals in the user's words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from launchpad import children
from launchpad.errors import DeclarationError, EnvironmentFault

TIMEOUT_S = 60.0
FORWARDED = re.compile(r"^Forwarding from 127\.0\.0\.1:(\d+) ->")
FIXES = {
    "(forbidden)": "ask for the rights, or name another context",
    "no matches for kind": "install what defines this kind; for monitoring, or declare kubernetes.monitoring: false",
    'namespaces "': "make it: kubectl create namespace NAMESPACE",
    "connection refused": "is the cluster up, and the context the right one?",
    "unable to connect": "is the cluster up, and the context the right one?",
    "no such host": "is the cluster up, and the context the right one?",
}
"""What to do about what kubectl says, by words of it in lower case; the first that fits."""


class Kubectl:
    """kubectl with a context and a namespace. Raises EnvironmentFault where there is none or it fails."""

    def __init__(self, context: str, namespace: str) -> None:
        found = shutil.which("kubectl")
        if found is None:
            raise EnvironmentFault("there is no kubectl on the PATH", fix="install it: kubernetes.io/docs/tasks/tools")
        self.program, self.context, self.namespace = found, context, namespace
        known = self._call(["config", "get-contexts", "--output=name"]).stdout.split()
        if context not in known:
            fix = f"known: {', '.join(known)}" if known else "kubectl knows none: is KUBECONFIG right?"
            raise DeclarationError(f"there is no context {context!r}", "--context", fix)

    def run(self, *words: str, timeout_s: float = TIMEOUT_S, text: str | None = None) -> str:
        """Return what a command printed, given a text to read. Raises EnvironmentFault, with what to do where known."""
        return self._call([*self._place, *words], timeout_s, text=text).stdout

    def has(self, resource: str, name: str) -> bool:
        """Tell whether the namespace has an object; it has none of a resource that the cluster does not know."""
        try:
            return bool(self.run("get", f"{resource}/{name}", "--ignore-not-found", "--output=name"))
        except EnvironmentFault as fault:
            if "doesn't have a resource type" in fault.problems[0].what:
                return False
            raise

    def differs(self, folder: Path) -> str:
        """Return the difference between the cluster and a kustomization; empty where there is none."""
        done = self._call([*self._place, "diff", f"--kustomize={folder}"], TIMEOUT_S, (0, 1))
        if done.returncode == 1 and not done.stdout:
            raise self._fault(["diff"], done.stderr)
        return done.stdout

    def build(self, folder: Path) -> list[dict[str, Any]]:
        """Return the objects of a kustomization."""
        return list(yaml.safe_load_all(self._call(["kustomize", str(folder)]).stdout))

    @contextmanager
    def forwarded(self, what: str, port: int) -> Iterator[int]:
        """Forward a free port of 127.0.0.1 to one of a service for the block; give the port."""
        command = [self.program, *self._place, "port-forward", "--address=127.0.0.1", what, f":{port}"]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            preexec_fn=children.end_with_parent,
        )
        try:
            assert child.stdout is not None and child.stderr is not None
            found = FORWARDED.match(child.stdout.readline())
            if found is None:
                child.terminate()
                raise self._fault(["port-forward", what], child.stderr.read())
            yield int(found[1])
        finally:
            child.terminate()
            child.wait(timeout=10)

    @property
    def command(self) -> list[str]:
        """The words that every command on the cluster begins with."""
        return [self.program, *self._place]

    @property
    def _place(self) -> list[str]:
        return [f"--context={self.context}", f"--namespace={self.namespace}"]

    def _call(
        self,
        words: list[str],
        timeout_s: float = TIMEOUT_S,
        allowed: tuple[int, ...] = (0,),
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                [self.program, *words],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                input=text or "",
                env={**os.environ, "KUBECTL_EXTERNAL_DIFF": "diff --unified --new-file --recursive"},
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(f"kubectl {_shown(words)} did not end within {timeout_s:g} s") from None
        if done.returncode not in allowed:
            raise self._fault(words, done.stderr)
        return done

    def _fault(self, words: list[str], said: str) -> EnvironmentFault:
        text = said.strip() or "it said nothing"
        fix = next((fix for word, fix in FIXES.items() if word in text.lower()), "")
        return EnvironmentFault(
            f"kubectl {_shown(words)}: {text}", f"context {self.context}", fix.replace("NAMESPACE", self.namespace)
        )


def _shown(words: list[str]) -> str:
    return " ".join(word for word in words if not word.startswith("--"))
