"""What a run keeps of what it was made with."""

from __future__ import annotations

from launchpad import declaration
from launchpad.loadtest import stage
from launchpad.stage import Context


def test_a_run_keeps_the_declaration_that_was_read_whatever_has_become_of_it(declare, tmp_path):
    declared = declare()
    context = Context(declared)
    context.layout.serving_config.mkdir(parents=True)
    (tmp_path / declaration.FILE).write_text("name: another\n")
    folder = tmp_path / "run"
    folder.mkdir()

    stage._keep_configuration(context, folder)

    assert declaration.load(folder) == declaration.parse(declared.text, folder)
    assert declaration.load(folder).pipeline == declared.pipeline


def test_runs_are_in_the_order_of_time_in_every_zone(monkeypatch):
    monkeypatch.setattr(stage.time, "gmtime", lambda: (2026, 1, 2, 3, 4, 5, 4, 2, 0))
    assert stage.new_run().startswith("20260102-030405-")
