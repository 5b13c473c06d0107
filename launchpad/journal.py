"""What a chain of stages leaves behind beside its artifacts: its stages in the store, and notes on what was changed."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from launchpad import console
from launchpad.stage import Context, Outcome, Stopwatch


class Journal:
    """The stages that ran, as rows of the store's table `stages`. run: the load test among them, once there is one."""

    def __init__(self, given: Context) -> None:
        self.rows: list[dict[str, Any]] = []
        self.run: str | None = None
        self._given = given

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[Outcome], Outcome]]:
        """Time a stage. Give a function that takes its outcome; a block that raises makes it a failed one.

        What was changed before a load test is noted behind it, so that the report knows.
        """
        row = {"at": datetime.datetime.now(datetime.UTC), "stage": name, "status": "failed", "detail": ""}
        clock = Stopwatch()

        def done(outcome: Outcome) -> Outcome:
            row.update(status=outcome.status, detail=outcome.detail)
            if name == "loadtest" and outcome.look_at:
                self.run = outcome.look_at[0].name
            return outcome

        try:
            yield done
        except BaseException as error:
            row["detail"] = str(error) or type(error).__name__
            raise
        finally:
            self.rows.append({**row, "seconds": clock.seconds})
        if name == "loadtest" and self.run:
            from launchpad import notes

            for path in notes.after_run(self._given.declaration, self.run):
                console.say(f"  noted: {self._given.layout.relative(path)}")


@contextmanager
def kept(given: Context) -> Iterator[Journal]:
    """Give the journal of a chain, and keep it in the store however the chain ends."""
    journal = Journal(given)
    try:
        yield journal
    finally:
        from launchpad.store import attempt

        rows = [{**row, "run": journal.run} for row in journal.rows]
        attempt(given.declaration, lambda store: store.add_stages(rows))
