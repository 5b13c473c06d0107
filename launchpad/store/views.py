"""The views, by name. They are made anew with each migration: code, not data."""

from __future__ import annotations

from sqlalchemy import Connection

VIEWS = {
    "run_latency": """
        select r.started, r.id as run, r.status, r.profile, r.backend, x.scope, x.name, x.requests, x.failures,
               x.throughput_rps, x.mean_ms, x.p50_ms, x.p90_ms, x.p95_ms, x.p99_ms, x.p999_ms, x.max_ms
        from runs r join results x on x.run = r.id""",
    "latency_trend": """
        select started, run, profile, backend, machine, model, throughput_rps, p50_ms, p95_ms, p99_ms,
               previous_run, previous_p99_ms, p99_ms / nullif(previous_p99_ms, 0) - 1 as p99_change
        from (
          select r.started, r.id as run, r.profile, r.backend, r.machine, x.name as model, x.throughput_rps,
                 x.p50_ms, x.p95_ms, x.p99_ms, lag(r.id) over earlier as previous_run,
                 lag(x.p99_ms) over earlier as previous_p99_ms
          from runs r join results x on x.run = r.id
          where x.scope = 'model' and r.status = 'completed'
          window earlier as (partition by r.profile, r.backend, r.machine, x.name order by r.started, r.id)
        ) as compared""",
    "config_history": """
        select c.at, c.source, c.title, c.why, c.run_before, b.p99_ms as p99_ms_before,
               b.throughput_rps as throughput_rps_before, c.run_after, a.p99_ms as p99_ms_after,
               a.throughput_rps as throughput_rps_after, c.what, c.note
        from changes c
        left join results b on b.run = c.run_before and b.scope = 'all'
        left join results a on a.run = c.run_after and a.scope = 'all'""",
    "error_budget": """
        select r.started, r.id as run, r.profile, x.name as model, x.requests, x.failures,
               g.limit_value as objective, x.requests * g.limit_value as budget,
               x.failures / nullif(x.requests * g.limit_value, 0) as spent
        from runs r
        join results x on x.run = r.id and x.scope = 'model'
        join gates g on g.run = r.id and g.name = 'error rate of ' || x.name""",
    "slowest_seconds": """
        select s.p99_ms, s.max_ms, s.line, s.second, s.requests, s.failures, s.run, r.started, r.profile
        from seconds s join runs r on r.id = s.run
        where s.p99_ms is not null
        order by s.p99_ms desc""",
    "hours_over_objective": """
        select {hour} as hour, model, count(*) as samples,
               sum(case when p99_ms > objective_p99_ms then 1 else 0 end) as samples_over,
               max(p99_ms) as worst_p99_ms, max(objective_p99_ms) as objective_p99_ms
        from samples
        where model <> '' and p99_ms is not null and objective_p99_ms is not null
        group by {hour}, model
        having max(p99_ms - objective_p99_ms) > 0""",
}

HOURS = {"sqlite": "substr(at, 1, 13)", "postgresql": "to_char(at at time zone 'UTC', 'YYYY-MM-DD HH24')"}
"""The hour of a moment in UTC, such as `2026-01-31 07`, in the words of each database."""


def drop(connection: Connection) -> None:
    for name in VIEWS:
        connection.exec_driver_sql(f"drop view if exists {name}")


def create(connection: Connection) -> None:
    for name, text in VIEWS.items():
        body = text.replace("{hour}", HOURS[connection.dialect.name])
        connection.exec_driver_sql(f"create view {name} as {body}", execution_options={"no_parameters": True})
