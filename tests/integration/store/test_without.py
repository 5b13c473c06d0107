"""A load test whose store is away keeps its run, and the store takes it later."""

from __future__ import annotations

import json

STORE = "sqlite:///.launchpad/store.db"


def test_a_run_is_not_lost_with_the_store_and_is_added_when_it_is_back(checkout):
    checkout.edit((STORE, "postgresql+psycopg://nobody@127.0.0.1:1/none"))
    checkout.invoke("launch", check=True)

    done = checkout.invoke("loadtest", "--profile", "smoke", "--duration", "2", check=True)

    said = " ".join(done.stdout.split())
    assert "not in the store" in said and "does not answer" in said and "invoke store --fill" in said
    (run,) = checkout.runs()
    requests = json.loads((run / "summary.json").read_text())["totals"]["requests"]
    checkout.edit(("postgresql+psycopg://nobody@127.0.0.1:1/none", STORE))
    assert "added 1 run" in checkout.invoke("store", "--fill", check=True).stdout
    asked = checkout.invoke("query", "select sum(requests) as requests from seconds", "--json", check=True).stdout
    assert json.loads(asked) == [{"requests": requests}]
