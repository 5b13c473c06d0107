"""What Prometheus is told of a server: what to scrape, what to record, when to alert. Pure: a declaration in.

Times are the server's own, without the network. Its latency buckets grow by a factor of 1.8, so a percentile between
two bounds is interpolated; the load test's figures are exact. An alert speaks of declared models alone: a client that
asks for others harms nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from launchpad import batching
from launchpad.declaration import Declaration
from launchpad.metrics import BATCH_SIZE, QUEUING_LATENCY, REFUSED, REQUEST_LATENCY, REQUESTS
from launchpad.spec import BatchQueue, Pipeline

HEADER = "# Rendered from pipeline.yaml by `invoke build`; change it there.\n"

LOADS = ":tensorflow:cc:saved_model:load_attempt_count"
"""Versions that the server has tried to load."""

NOT_THE_SERVERS_FAULT = "OK|INVALID_ARGUMENT"

SCRAPE_INTERVAL_S = 5
BURN_WINDOWS = (("fast", "1h", "5m", 14.4, "2m", "page"), ("slow", "6h", "30m", 6.0, "15m", "ticket"))
"""Speed, long and short window, burn rate, how long, severity: 2 % of a month's budget in an hour, 5 % in six hours
(The Site Reliability Workbook, 2018, chapter 5, table 5-8)."""
QUEUE_SHARE = 0.5
"""Of the requests that can wait for a batch thread; above it a burst is refused."""


def scrape(pipeline: Pipeline, target: str) -> str:
    """Return the configuration of a Prometheus that scrapes one server, `host:port`, and evaluates `rules.yml`."""
    job = {
        "job_name": pipeline.name,
        "metrics_path": pipeline.serving.monitoring.path,
        "static_configs": [{"targets": [target]}],
    }
    interval = f"{SCRAPE_INTERVAL_S}s"
    settings = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "scrape_configs": [job],
    }
    return HEADER + yaml.safe_dump(settings, sort_keys=False)


def rules(declaration: Declaration) -> str:
    """Return the recording and alert rules as Prometheus' rule file."""
    return HEADER + yaml.safe_dump({"groups": groups(declaration)}, sort_keys=False, width=120)


def groups(declaration: Declaration, job: str = "") -> list[dict[str, Any]]:
    """Return the rule groups, as a rule file and a PrometheusRule hold them.

    job: value of the label `job` of the server's series; the pipeline's name unless given.
    """
    pipeline = declaration.pipeline
    chosen = f'job="{job or pipeline.name}"'
    names = "|".join(name.replace(".", "[.]") for name in pipeline.models)
    models = f'{chosen},model_name=~"{names}"'
    queues = [queue for queue in batching.effective(declaration).queues.values() if queue]
    return [
        {"name": f"{pipeline.name}-figures", "rules": _figures(chosen, models, batched=bool(queues))},
        {"name": f"{pipeline.name}-alerts", "rules": _alerts(pipeline, chosen, models, queues)},
    ]


def _figures(chosen: str, models: str, batched: bool) -> list[dict[str, Any]]:
    by_model, refused = "sum by (job, model_name)", "|".join(sorted(REFUSED))
    figures = {
        "job_model:requests:rate5m": f"{by_model} (rate({REQUESTS}{{{models}}}[5m]))",
        "job_model:refusals:rate5m": f'{by_model} (rate({REQUESTS}{{{models},status=~"{refused}"}}[5m]))',
    }
    for window in ("5m", "30m", "1h", "6h"):
        whole = f"{by_model} (rate({REQUESTS}{{{models}}}[{window}]))"
        failed = f'{by_model} (rate({REQUESTS}{{{models},status!~"{NOT_THE_SERVERS_FAULT}"}}[{window}]))'
        figures[f"job_model:errors:ratio_rate{window}"] = f"({failed} or 0 * {whole}) / {whole}"
    for percent in (50, 95, 99):
        buckets = f'sum by (job, model_name, le) (rate({REQUEST_LATENCY}_bucket{{{models},API!=""}}[5m]))'
        figures[f"job_model:latency_ms:p{percent}_5m"] = f"histogram_quantile({percent / 100:g}, {buckets}) / 1000"
    if batched:
        by_pool = "by (job, instance, thread_pool_name)"
        # Little's law: tasks that wait = arrivals a second times seconds that each waits.
        waiting = f"sum {by_pool} (rate({QUEUING_LATENCY}_sum{{{chosen}}}[5m])) / 1e6"
        figures["pool:tasks_waiting:mean5m"] = waiting
        sizes = f"{BATCH_SIZE}_sum{{{chosen}}}[5m]", f"{BATCH_SIZE}_count{{{chosen}}}[5m]"
        figures["job:batch_size:mean5m"] = f"sum by (job) (rate({sizes[0]})) / sum by (job) (rate({sizes[1]}))"
    return [{"record": name, "expr": expr} for name, expr in figures.items()]


def _alerts(pipeline: Pipeline, chosen: str, models: str, queues: Sequence[BatchQueue]) -> list[dict[str, Any]]:
    own = f"{{{chosen}}}"
    objectives = pipeline.objectives
    found = [
        _alert(
            "ModelServerDown",
            f"up{own} == 0 or absent(up{own})",
            "1m",
            "page",
            "the model server does not answer the scrape",
            "Its ports open only when every model has loaded: a server that cannot load one looks the same.",
        ),
        _alert(
            "NoVersionAvailable",
            f'sum by (job, model_name) (rate({REQUESTS}{{{models},status="NOT_FOUND"}}[5m])) > 0'
            f' unless sum by (job, model_name) (rate({REQUESTS}{{{models},status="OK"}}[5m])) > 0',
            "1m",
            "page",
            "{{ $labels.model_name }} has no version available",
            "Requests are answered NOT_FOUND and none is answered well; ask /v1/models/{{ $labels.model_name }}.",
        ),
        _alert(
            "RequestsRefused",
            f"job_model:refusals:rate5m{own} > 0",
            "1m",
            "ticket",
            "{{ $labels.model_name }} refuses {{ $value | humanize }} requests/s",
            "A batch queue is full (max_enqueued_batches) or the threads are: more load than this server takes.",
        ),
    ]
    if objectives.p99_ms is not None:
        found.append(
            _alert(
                "LatencyOverObjective",
                f"job_model:latency_ms:p99_5m{own} > {objectives.p99_ms:g}",
                "5m",
                "page",
                f"p99 of {{{{ $labels.model_name }}}} is {{{{ $value | humanize }}}} ms, must be {objectives.p99_ms:g}",
                "Measured in the server, interpolated between its buckets.",
            )
        )
    if objectives.error_rate is not None:
        found += [_burn(own, objectives.error_rate, *window) for window in BURN_WINDOWS]
    if queues:
        room = _room(pipeline, queues)
        found.append(
            _alert(
                "BatchQueueSaturated",
                f"pool:tasks_waiting:mean5m{own} > {QUEUE_SHARE * room:g}",
                "2m",
                "ticket",
                "{{ $value | humanize }} requests wait for a batch thread on {{ $labels.instance }}",
                f"No more than {room} can wait, further ones are refused. From the queueing time, by Little's law.",
            )
        )
    return found


def _room(pipeline: Pipeline, queues: Sequence[BatchQueue]) -> int:
    """Return how many requests can wait: what the smallest queue holds, or fewer where the server has fewer threads.

    A request holds its thread while it waits. Threads that are not declared follow from a machine that is not known.
    """
    room = min(queue.max_enqueued_batches * queue.max_batch_size for queue in queues)
    threads = [pipeline.serving.flags.get(flag) for flag in ("rest_api_num_threads", "grpc_max_threads")]
    known = [int(many) for many in threads if many]
    return min(room, sum(known)) if len(known) == len(threads) else room


def _burn(
    own: str, budget: float, speed: str, long: str, short: str, rate: float, lasting: str, severity: str
) -> dict[str, Any]:
    limit = f"{rate * budget:g}"
    return _alert(
        f"ErrorBudgetBurns{speed.capitalize()}",
        f"job_model:errors:ratio_rate{long}{own} > {limit} and job_model:errors:ratio_rate{short}{own} > {limit}",
        lasting,
        severity,
        f"{{{{ $labels.model_name }}}} burns its error budget {rate:g} times too fast",
        f"{{{{ $value | humanizePercentage }}}} of the requests failed in {long}; the objective is {budget:.3%}.",
    )


def _alert(name: str, expr: str, lasting: str, severity: str, summary: str, description: str) -> dict[str, Any]:
    said: Mapping[str, str] = {"summary": summary, "description": description}
    return {"alert": name, "expr": expr, "for": lasting, "labels": {"severity": severity}, "annotations": dict(said)}
