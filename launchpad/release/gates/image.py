"""Gates on the server image: built of what is here, its Dockerfile without findings, its base pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from launchpad import engine, imagefile
from launchpad.gates import Gate
from launchpad.release.candidate import Candidate, Finding, count, not_run

HADOLINT = "hadolint"
TIMEOUT_S = 60


def image(candidate: Candidate) -> Finding:
    """The image of exactly these artifacts is built and the engine has it."""
    name = "image built of what is here"
    obstacle = engine.obstacle()
    if obstacle:
        return not_run(name, obstacle.what)
    built = imagefile.Image.load(candidate.layout)
    if built is None:
        return not_run(name, "none was built here; run `invoke build`")
    same = built.content == imagefile.content(candidate.layout, candidate.pipeline)
    there = engine.local_image(engine.connect(), built.id) is not None
    notes = [built.tag]
    notes += [] if same else ["what it holds has changed since; run `invoke build`"]
    notes += [] if there else ["the engine does not have it"]
    return Finding([Gate(name, float(same and there), ">=", 1)], [candidate.layout.image_record], notes)


def dockerfile(candidate: Candidate) -> Finding:
    """hadolint finds nothing in the Dockerfile."""
    path = candidate.layout.dockerfile
    program = Path(sys.executable).with_name(HADOLINT)
    if not program.exists():
        return not_run("findings of hadolint", "hadolint is not installed; run `make deploy-local`")
    if not path.exists():
        return not_run("findings of hadolint", "there is no Dockerfile; run `invoke build`")
    done = subprocess.run([str(program), "--format=json", str(path)], capture_output=True, text=True, timeout=TIMEOUT_S)
    try:
        found = [f"{row['code']}, line {row['line']}: {row['message']}" for row in json.loads(done.stdout)]
    except ValueError:
        return not_run("findings of hadolint", f"hadolint ended with {done.returncode}: {done.stderr.strip()[:200]}")
    return count("findings of hadolint", found, [path])


def digest(candidate: Candidate) -> Finding:
    """The base image is named by its digest, so that the same declaration gives the same image tomorrow."""
    base = candidate.pipeline.serving.image
    gate = Gate("base image named by digest", float("@sha256:" in base), ">=", 1)
    return Finding([gate], [candidate.layout.root / "pipeline.yaml"], [base])
