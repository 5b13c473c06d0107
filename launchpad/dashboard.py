"""The Grafana dashboard of a server, with the panels of the report. Pure: a declaration in, JSON out.

Every panel asks the series of Prometheus that `alerting` names; the data source is a variable of the dashboard.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from launchpad import batching
from launchpad.alerting import LOADS, NOT_THE_SERVERS_FAULT
from launchpad.declaration import Declaration
from launchpad.metrics import BATCH_SIZE, QUEUING_LATENCY, REQUEST_LATENCY, REQUESTS, RUNTIME_LATENCY

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import bargauge, heatmap, stat, timeseries
    from grafana_foundation_sdk.builders import dashboard as board

    Panel = timeseries.Panel | stat.Panel | bargauge.Panel | heatmap.Panel

WINDOW = "[$__rate_interval]"
PERCENTILES = (50, 90, 95, 99, 99.9)
MEMORY, CPU = "process_resident_memory_bytes", "process_cpu_seconds_total"
CONTAINER_MEMORY, CONTAINER_CPU = "container_memory_working_set_bytes", "container_cpu_usage_seconds_total"


def dashboard(declaration: Declaration, job: str = "") -> str:
    """Return the dashboard as the JSON that Grafana imports and provisions.

    job: value of the label `job` of the server's series; the pipeline's name unless given.
    """
    from grafana_foundation_sdk.builders import dashboard as board
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    pipeline = declaration.pipeline
    own = f'job="{job or pipeline.name}"'
    built = (
        board.Dashboard(f"Model server: {pipeline.name}")
        .uid(f"launchpad-{pipeline.name}"[:40])
        .tags(["tfs-launchpad", pipeline.name])
        .description("Rendered from pipeline.yaml; what is changed here is lost at the next rendering.")
        .readonly()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .with_variable(board.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .annotation(_loaded_versions(own))
    )
    for panel in _panels(declaration, own):
        built = built.with_panel(panel)
    return json.dumps(_without_nulls(json.loads(json.dumps(built.build(), cls=JSONEncoder))), indent=1) + "\n"


def _without_nulls(value: Any) -> Any:
    """Leave out what the builder left open, as Grafana does when it exports."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _loaded_versions(own: str) -> board.AnnotationQuery:
    """Mark where a version was loaded: what a published configuration or a restart changes shows there."""
    from grafana_foundation_sdk.builders import dashboard as board

    return (
        board.AnnotationQuery()
        .name("versions loaded")
        .datasource(_source())
        .enable(True)
        .icon_color("orange")
        .expr(f"changes({LOADS}{{{own}}}[1m]) > 0 or ({LOADS}{{{own}}} unless {LOADS}{{{own}}} offset 1m)")
    )


def _panels(declaration: Declaration, own: str) -> list[Panel]:
    objectives = declaration.pipeline.objectives
    batched = any(batching.effective(declaration).queues.values())
    asked = f'{own},API!=""'
    whole = f"sum(rate({REQUESTS}{{{own}}}{WINDOW}))"
    failed = f'sum(rate({REQUESTS}{{{own},status!~"{NOT_THE_SERVERS_FAULT}"}}{WINDOW}))'
    by_le = f"sum by (le) (rate({REQUEST_LATENCY}_bucket{{{asked}}}{WINDOW}))"
    panels: list[Panel] = [
        _stat("Requests", "reqps", whole),
        _stat("Success rate", "percentunit", f"1 - ({failed} or 0 * {whole}) / {whole}"),
        _stat("p99", "ms", f"histogram_quantile(0.99, {by_le}) / 1000", objectives.p99_ms),
        _stat("Alerts firing", "short", f'count(ALERTS{{{own},alertstate="firing"}}) or vector(0)', 1),
        _series(
            "Latency over time",
            "ms",
            {f"p{p} {{{{model_name}}}}": f"job_model:latency_ms:p{p}_5m{{{own}}}" for p in (50, 95, 99)},
            f"In the server, over five minutes; the objective for p99 is {objectives.p99_ms:g} ms."
            if objectives.p99_ms
            else "In the server, over five minutes; no objective is declared.",
            limit=objectives.p99_ms,
        ),
        _series(
            "Throughput",
            "reqps",
            {"{{model_name}} {{status}}": f"sum by (model_name, status) (rate({REQUESTS}{{{own}}}{WINDOW}))"},
            "Requests answered a second, by model and how they were answered.",
            stacked=True,
        ),
        _percentiles(by_le),
        _heatmap("Latency", "µs", by_le),
    ]
    if batched:
        sizes = f"sum by (le) (rate({BATCH_SIZE}_bucket{{{own}}}{WINDOW}))"
        panels.append(_heatmap("Batch size", "short", sizes))
    panels.append(_times(own, asked, batched))
    panels += _resources(own)
    return panels


def _times(own: str, asked: str, batched: bool) -> Panel:
    """Queueing against compute: the mean time of a request in each part of the server, stacked."""
    spent = f"sum(rate({REQUEST_LATENCY}_sum{{{asked}}}{WINDOW}))"
    answered = f"sum(rate({REQUEST_LATENCY}_count{{{asked}}}{WINDOW}))"
    run = f"sum(rate({RUNTIME_LATENCY}_sum{{{own}}}{WINDOW}))"
    queued = f"(sum(rate({QUEUING_LATENCY}_sum{{{own}}}{WINDOW})) or vector(0))"
    parts = {"compute": f"({run}{f' - {queued}' if batched else ''}) / {answered} / 1000"}
    if batched:
        parts = {"queueing": f"{queued} / {answered} / 1000", **parts}
    parts["decoding and encoding"] = f"({spent} - {run}) / {answered} / 1000"
    words = "Mean time of a request: waiting for a batch thread, running the model, and the rest of the server's work."
    return _series("Queueing and compute", "ms", parts, words, stacked=True)


def _resources(own: str) -> list[Panel]:
    """The server counts none of its resources; where cAdvisor or a process exporter is scraped, its series are here."""
    container = 'container="model-server"'
    return [
        _series(
            "CPU",
            "short",
            {
                "{{pod}}": f"sum by (pod) (rate({CONTAINER_CPU}{{{container}}}{WINDOW}))",
                "{{instance}}": f"rate({CPU}{{{own}}}{WINDOW})",
            },
            "Cores in use, from cAdvisor; empty where nothing that knows them is scraped.",
        ),
        _series(
            "Memory",
            "bytes",
            {
                "{{pod}}": f"sum by (pod) ({CONTAINER_MEMORY}{{{container}}})",
                "{{instance}}": f"{MEMORY}{{{own}}}",
            },
            "Working set, from cAdvisor; empty where nothing that knows it is scraped.",
        ),
    ]


def _series(
    title: str, unit: str, queries: dict[str, str], words: str, stacked: bool = False, limit: float | None = None
) -> Panel:
    from grafana_foundation_sdk.builders import common, timeseries
    from grafana_foundation_sdk.models import common as common_models

    panel = timeseries.Panel().title(title).description(words).unit(unit).min(0).span(12).height(8)
    panel = panel.datasource(_source()).fill_opacity(30 if stacked else 0)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.LINE)
        panel = panel.thresholds(_limit(limit)).thresholds_style(style)
    for place, (legend, expr) in enumerate(queries.items()):
        panel = panel.with_target(_query(expr, legend, place))
    return panel


def _stat(title: str, unit: str, expr: str, limit: float | None = None) -> Panel:
    from grafana_foundation_sdk.builders import stat

    panel = stat.Panel().title(title).unit(unit).span(6).height(4).datasource(_source())
    if limit is not None:
        panel = panel.thresholds(_limit(limit))
    return panel.with_target(_query(expr, ""))


def _percentiles(by_le: str) -> Panel:
    from grafana_foundation_sdk.builders import bargauge

    panel = bargauge.Panel().title("Latency by percentile").unit("ms").min(0).span(12).height(8).datasource(_source())
    for place, percent in enumerate(PERCENTILES):
        query = _query(f"histogram_quantile({percent / 100:g}, {by_le}) / 1000", f"p{percent:g}", place)
        panel = panel.with_target(query.instant())
    return panel


def _heatmap(title: str, unit: str, expr: str) -> Panel:
    from grafana_foundation_sdk.builders import heatmap
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    panel = heatmap.Panel().title(f"{title} distribution").unit(unit).span(12).height(8).datasource(_source())
    panel = panel.description("Shade: how many a second fell into a bucket of the server's histogram.")
    return panel.with_target(_query(expr, "{{le}}").format(PromQueryFormat.HEATMAP))


def _query(expr: str, legend: str, place: int = 0):  # type: ignore[no-untyped-def]  # the builder's type is the return value's
    from grafana_foundation_sdk.builders import prometheus

    return prometheus.Dataquery().ref_id("ABCDEFGH"[place]).expr(expr).legend_format(legend)


def _limit(value: float):  # type: ignore[no-untyped-def]
    from grafana_foundation_sdk.builders import dashboard as board
    from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

    steps = [Threshold(color="green"), Threshold(value=value, color="red")]
    return board.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _source():  # type: ignore[no-untyped-def]
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid="${datasource}")
