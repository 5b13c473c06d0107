"""The build stage: makes the image of a backend that runs one. The embedded backend runs none."""

from __future__ import annotations

from launchpad.stage import Context, Outcome, Plan, Stage


class Build(Stage):
    name = "build"
    summary = "build the server image where the backend runs one"

    def plan(self, context: Context) -> list[Plan]:
        return [Plan("no image")]

    def run(self, context: Context) -> Outcome:
        return Outcome("skipped", "the embedded backend runs without an image")
