"""The ready-made questions: what people ask of the store most, as SQL that both databases understand."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chart:
    """How a question's rows are drawn: a mark over two columns, a colour for each value of a third."""

    mark: str
    x: str
    x_type: str
    y: str
    color: str = ""


@dataclass(frozen=True)
class Question:
    """A question. needs: {parameter of the SQL, the id of a run: which run it is}."""

    title: str
    sql: str
    needs: dict[str, str] = field(default_factory=dict)
    chart: Chart | None = None


QUESTIONS = {
    "latency-by-run": Question(
        "p95 and p99 of each model, by run",
        "select started, run, profile, name as model, requests, throughput_rps, p95_ms, p99_ms from run_latency "
        "where scope = 'model' order by started desc, model",
        chart=Chart("circle", "started", "temporal", "p99_ms", "model"),
    ),
    "trend": Question(
        "p99 of each model against the run before it, of the same profile on the same machine",
        "select started, run, profile, model, p99_ms, previous_p99_ms, round(cast(100 * p99_change as numeric), 1) "
        "as change_percent, previous_run from latency_trend order by started desc, model",
        chart=Chart("line", "started", "temporal", "p99_ms", "model"),
    ),
    "regressions": Question(
        "runs whose p99 is more than 10 % above the run before; `invoke compare` says whether that is noise",
        "select started, run, model, p99_ms, previous_p99_ms, round(cast(100 * p99_change as numeric), 1) "
        "as change_percent, previous_run from latency_trend where p99_change > 0.1 order by started desc, model",
    ),
    "what-changed": Question(
        "changes of configuration between two runs",
        "select at, source, title, why, run_before, p99_ms_before, run_after, p99_ms_after, note from config_history "
        "where run_before >= :before and run_after <= :after order by at",
        {"before": "the id of the earlier run", "after": "the id of the later run"},
    ),
    "changes": Question(
        "every change of configuration, with the figures before and after",
        "select at, source, title, why, p99_ms_before, p99_ms_after, throughput_rps_before, throughput_rps_after, note "
        "from config_history where source <> 'person' order by at desc",
    ),
    "error-budget": Question(
        "how much of the error budget of each run its failures spent",
        "select started, run, model, requests, failures, budget, spent from error_budget order by started desc, model",
    ),
    "slowest-seconds": Question(
        "the twenty seconds of all runs with the highest p99",
        "select p99_ms, max_ms, line, second, requests, failures, run, profile from slowest_seconds limit 20",
        chart=Chart("bar", "run", "nominal", "p99_ms", "line"),
    ),
    "hours-over-objective": Question(
        "hours in which the server's own p99 went over its objective",
        "select hour, model, samples, samples_over, worst_p99_ms, objective_p99_ms from hours_over_objective "
        "order by hour desc, model",
        chart=Chart("bar", "hour", "nominal", "worst_p99_ms", "model"),
    ),
    "latest": Question(
        "what the monitor saw last: rate, latency, batches, queueing",
        "select at, case when model = '' then '(server)' else model end as model, rate_rps, p50_ms, p99_ms, refused, "
        "batch_size, queueing_mean_ms, cpu, memory_mib, trouble from samples order by at desc, model limit 1000",
        chart=Chart("line", "at", "temporal", "p99_ms", "model"),
    ),
    "resources": Question(
        "processors, memory and GPU of the server, the last thousand samples",
        "select at, instance, cpu, memory_mib, gpu, gpu_memory_mib from samples where model = '' and cpu is not null "
        "order by at desc limit 1000",
        chart=Chart("line", "at", "temporal", "memory_mib", "instance"),
    ),
    "refusals": Question(
        "when requests were refused, and how many",
        "select at, model, refused, answered, queueing_p99_ms from samples where refused > 0 order by at desc",
        chart=Chart("bar", "at", "temporal", "refused", "model"),
    ),
    "stages": Question(
        "how often each stage ran, and how long it took",
        "select stage, status, count(*) as times, round(cast(avg(seconds) as numeric), 1) as mean_seconds, "
        "round(cast(max(seconds) as numeric), 1) as longest_seconds from stages group by stage, status order by stage",
    ),
    "failed-gates": Question(
        "gates of runs and releases that did not pass",
        "select at, run, release, name, value, relation, limit_value, unit, why, waiver from gates "
        "where passed is not true order by at desc",
    ),
}
