"""The report stage: `report.html`, `report.md` and the charts of a run, in `reports/<run>/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launchpad import drawing, files, notes
from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.layout import Layout
from launchpad.runfolder import SUMMARY
from launchpad.stage import Context, Outcome, Plan, Stage

PAGES = ("report.html", "report.md")


class Report(Stage):
    name = "report"
    summary = "verdict, charts and tables of the run, as a page and as Markdown"

    def plan(self, context: Context) -> list[Plan]:
        return [Plan("report of the run", "a run has a report of its own")]

    def run(self, context: Context) -> Outcome:
        run = context.run or latest_run(context.layout)
        folder = context.layout.report(run)
        write(context.layout, run, folder, context.declaration.pipeline.loadtest.baseline or "")
        notes.refresh(context.layout, run)
        return Outcome("done", f"{context.layout.relative(folder)}/report.html", (folder / "report.html",))


def latest_run(layout: Layout) -> str:
    """Return the newest run with a summary. Raises EnvironmentFault if there is none."""
    runs = sorted(path.parent.name for path in layout.results("x").parent.glob(f"*/{SUMMARY}"))
    if not runs:
        raise EnvironmentFault("there is no run to report on", "loadtests/results", "run `invoke loadtest`")
    return runs[-1]


def write(layout: Layout, run: str, folder: Path, baseline: str = "") -> None:
    """Write the report of a run into `folder`, which is replaced whole. `baseline`: a run to compare with, if any.

    Raises DeclarationError if there is no such run, or its summary is not whole or of another version.
    """
    import jinja2

    from launchpad.report import charts, facts

    summary = files.read_mapping(layout.results(run) / SUMMARY)
    if not summary:
        raise DeclarationError(f"there is no run {run!r} with a whole {SUMMARY}", layout.relative(layout.results(run)))
    try:
        gathered = facts.gather(layout, run, summary, baseline)
        drawn = charts.draw(gathered)
        texts = {name: _render(f"{name}.j2", facts=gathered, charts=drawn) for name in PAGES}
    except (KeyError, jinja2.UndefinedError) as error:
        where = layout.relative(layout.results(run) / SUMMARY)
        raise DeclarationError(f"the run was kept by another version of this project: {error}", where) from error
    new = files.staged(folder)
    new.mkdir()
    for name, (svg, _) in drawn.items():
        files.write_text(new / f"{name}.svg", drawing.on_paper(svg))
    for name, text in texts.items():
        files.write_text(new / name, text)
    files.publish(folder)


def _render(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["ms"] = lambda value: "–" if value is None else f"{value:,.1f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.3%}"
    return environment.get_template(template).render(**values)
