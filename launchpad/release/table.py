"""The gates of a release: what each is called, in the order in which they run and stand in the checklist."""

from __future__ import annotations

from collections.abc import Callable

from launchpad.release.candidate import Candidate, Finding
from launchpad.release.gates import image, measured, models, operations, rehearsal, rendering, soak, supply
from launchpad.spec import GateName

GATES: dict[GateName, tuple[str, Callable[[Candidate], Finding]]] = {
    "parity": ("signatures agree with the model", models.parity),
    "accuracy": ("accuracy on held-out data", models.accuracy),
    "signatures": ("contract with clients of the previous release", models.signatures),
    "operations": ("no unsafe operation in a graph", operations.operations),
    "lint": ("nothing doubtful in the configuration", rendering.lint),
    "artifacts": ("committed artifacts are what is rendered", rendering.artifacts),
    "image": ("server image built", image.image),
    "dockerfile": ("hadolint on the Dockerfile", image.dockerfile),
    "digest": ("base image pinned", image.digest),
    "manifests": ("Kubernetes manifests valid", rendering.manifests),
    "licences": ("licences of the server's Python parts", supply.licences),
    "vulnerabilities": ("known vulnerabilities of the server's Python parts", supply.vulnerabilities),
    "cold-start": ("no client meets a cold server", measured.cold_start),
    "objectives": ("objectives under the release profile", measured.objectives),
    "regression": ("no slower than the previous release", measured.regression),
    "capacity": ("capacity", measured.capacity),
    "soak": ("a load that lasts", soak.soak),
    "rollback": ("rollback rehearsal under load", rehearsal.rollback),
}
"""From `cold-start` on they share one fresh start of the server; `cold-start` makes it."""
