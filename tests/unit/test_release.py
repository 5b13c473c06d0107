"""The release checklist: waivers, the contract with clients, unsafe graphs, memory that grows, the record."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import random
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launchpad import backends, files
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.gates import Gate
from launchpad.release import checklist, command, record
from launchpad.release.candidate import Candidate, Finding, Line, not_run
from launchpad.release.gates import image, measured, models, operations, rehearsal, soak, supply
from launchpad.release.table import GATES
from launchpad.spec import GateName, Traffic, Waiver
from launchpad.stage import Context

TODAY = datetime.date(2026, 11, 22)
PASSED = Finding([Gate("x", 1, ">=", 1)])
FAILED = Finding([Gate("x", 0, ">=", 1), Gate("y", 1, ">=", 1)])
NOT_RUN = not_run("x", "there is no engine")


def line(finding, expires=None):
    waiver = Waiver(gate="image", reason="no engine here", expires=expires) if expires else None
    return Line("image", "server image built", finding, waiver, TODAY)


@pytest.fixture
def candidate(declare, tmp_path):
    def make(previous=None):
        published = tmp_path / "reports" / "releases" / "2.0.0"
        return Candidate(Context(declare()), "2.0.0", tmp_path / "new", published, previous)

    return make


@pytest.mark.parametrize("finding", [FAILED, NOT_RUN])
def test_what_did_not_pass_blocks_unless_waived(finding):
    assert line(finding).blocks
    assert not line(finding, TODAY).blocks and line(finding, TODAY).waived
    assert "waived until 2026-11-22: no engine here" in line(finding, TODAY).words


def test_an_expired_waiver_blocks_and_says_so():
    late = line(NOT_RUN, TODAY - datetime.timedelta(days=1))
    assert late.blocks and "expired on 2026-11-21" in late.words


def test_a_waiver_that_is_not_needed_is_said_to_be():
    assert not line(PASSED, TODAY).blocks and "not needed" in line(PASSED, TODAY).words


def test_one_failed_measurement_fails_a_gate_and_none_at_all_is_no_pass():
    assert (FAILED.verdict, NOT_RUN.verdict, PASSED.verdict) == ("failed", "not run", "passed")
    assert Finding([]).verdict == "not run"
    assert Finding([Gate("x", 1, ">=", 1), Gate("y", None, ">=", 1)]).verdict == "not run"


def test_a_waiver_names_a_gate_that_there_is(declare):
    bare = "name: tiny\nmodels:\n  tiny: {source: model.py:build}\n"
    with pytest.raises(DeclarationError, match=r"waivers\[0\]"):
        declare(f"{bare}release:\n  waivers:\n    - {{gate: vibes, reason: r, expires: 2027-01-01}}\n")


def test_every_gate_that_can_be_waived_is_evaluated():
    assert tuple(GATES) == GateName.__args__


BEFORE = {"serving_default": {"inputs": {"pixels": {"dtype": "float32", "shape": [None, 784]}}, "outputs": {}}}


@pytest.mark.parametrize(
    ("pixels", "gone"),
    [({"pixels": {"dtype": "uint8", "shape": [None, 784]}}, "changed"), ({}, "removed")],
    ids=["another type", "no such input"],
)
def test_a_changed_or_removed_input_breaks_the_contract(candidate, monkeypatch, pixels, gone):
    after = {"serving_default": {"inputs": pixels, "outputs": {}}}
    monkeypatch.setattr(models, "exported", lambda *_: {"tiny": {"signatures": after}})
    finding = models.signatures(candidate({"version": "1.0.0", "models": {"tiny": {"signatures": BEFORE}}}))
    assert finding.verdict == "failed" and finding.notes[1].startswith(f"{gone}: tiny serving_default.inputs.pixels")


def test_a_gate_whose_own_check_fails_has_failed_and_one_that_cannot_be_evaluated_did_not_run(candidate):
    def raising(error):
        def gate(_):
            raise error

        return command._find(candidate(), "capacity", gate)

    failed = raising(GateFailed("no rate holds p99 of 1 ms", "run 7"))
    assert failed.verdict == "failed" and failed.notes == ["run 7: no rate holds p99 of 1 ms"]
    absent = raising(EnvironmentFault("there is no server"))
    assert absent.verdict == "not run" and absent.gates[0].why == "there is no server"


def test_an_addition_is_listed_and_breaks_nothing(candidate, monkeypatch):
    after = {**BEFORE, "bytes": {"inputs": {"raw": {"dtype": "string", "shape": [None]}}, "outputs": {}}}
    monkeypatch.setattr(models, "exported", lambda *_: {"tiny": {"signatures": after}})
    finding = models.signatures(candidate({"version": "1.0.0", "models": {"tiny": {"signatures": BEFORE}}}))
    assert finding.verdict == "passed" and "new: tiny bytes.inputs.raw string[?]" in finding.notes


def test_a_model_that_is_gone_breaks_the_contract(candidate, monkeypatch):
    monkeypatch.setattr(models, "exported", lambda *_: {})
    before = {"version": "1.0.0", "models": {"tiny": {"signatures": BEFORE}}}
    assert models.signatures(candidate(before)).verdict == "failed"


def test_evidence_of_other_files_proves_nothing(candidate):
    given = candidate()
    manifest = {"version": 1, "files": {"saved_model.pb": "0" * 64}, "gates": [], "signatures": {}}
    path = given.layout.evidence("tiny", 1) / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(manifest))
    finding = models.parity(given)
    assert finding.verdict == "not run" and "another saved_model.pb" in finding.gates[0].why


@pytest.mark.parametrize(
    "name", ["PyFunc", "EagerPyFunc", "ReadFile", "WriteFile", "TFRecordDatasetV2", "DebugIdentityV3"]
)
def test_operations_that_reach_out_are_unsafe_anywhere(name):
    assert operations.unsafe({name, "MatMul"}, set()) == [name]


def test_saving_and_restoring_is_the_loaders_alone():
    assert operations.unsafe({"SaveV2", "RestoreV2", "Identity", "ReadVariableOp", "DecodeImage"}, {"MatMul"}) == []
    assert operations.unsafe({"SaveV2"}, {"SaveV2"}) == ["SaveV2"]


def test_a_function_that_a_signature_calls_is_looked_into(tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    meta = model.meta_graphs.add()
    meta.graph_def.node.add(name="call", op="StatefulPartitionedCall").attr["f"].func.name = "outer"
    meta.graph_def.node.add(name="unused", op="SaveV2")
    for name, op in (("outer", "inner"), ("inner", "RestoreV2"), ("other", "MergeV2Checkpoints")):
        function = meta.graph_def.library.function.add()
        function.signature.name = name
        function.node_def.add(name="n", op=op)
    meta.signature_def["serving_default"].outputs["y"].name = "call:0"
    path = tmp_path / "saved_model.pb"
    path.write_bytes(model.SerializeToString())
    everything, reached = operations.read(path)
    assert reached == {"StatefulPartitionedCall", "RestoreV2"} and "SaveV2" in everything
    assert operations.unsafe(everything, reached) == ["RestoreV2"]


def test_a_graph_that_is_none_is_told(tmp_path):
    path = tmp_path / "saved_model.pb"
    path.write_bytes(b"\xff\xff\xffnot a graph")
    with pytest.raises(EnvironmentFault, match="no SavedModel"):
        operations.read(path)


def noisy(slope_mib_per_s: float, seed: int = 1, seconds: int = 300) -> list[tuple[float, float]]:
    chance, drift = random.Random(seed), 0.0
    samples = []
    for second in range(seconds):
        drift = 0.8 * drift + chance.gauss(0, 0.3)
        samples.append((float(second), 400 + slope_mib_per_s * second + drift))
    return samples


@pytest.mark.parametrize("mib_per_hour", [0, 360])
def test_the_interval_of_the_slope_holds_the_truth_in_noise_that_hangs_together(mib_per_hour):
    fits = [soak.growth(noisy(mib_per_hour / 3600, seed)) for seed in range(100)]
    assert sum(abs(slope - mib_per_hour) <= half for slope, half in fits) >= 88
    assert all(half < 100 for _, half in fits)


def test_the_interval_is_wider_than_independent_noise_would_have_it():
    together = noisy(0.0)
    shuffled = [memory for _, memory in together]
    random.Random(2).shuffle(shuffled)
    apart = list(zip([second for second, _ in together], shuffled, strict=True))
    assert soak.growth(together)[1] > 2 * soak.growth(apart)[1]


def test_memory_that_stands_still_has_no_slope():
    assert soak.growth([(float(second), 406.78515625) for second in range(30)]) == (0.0, 0.0)


def test_licences_that_ask_for_more_than_notices_are_known():
    assert supply.is_copyleft("GPL-3.0-or-later") and supply.is_copyleft("GNU Affero General Public License v3")
    assert not supply.is_copyleft("MIT") and not supply.is_copyleft("MPL-2.0 AND (Apache-2.0 OR MIT)")
    assert not supply.is_copyleft("GPL-2.0 OR MIT")


def test_packages_are_followed_to_what_they_need():
    found = supply.closure(["keras"])
    assert {"keras", "numpy", "h5py"} <= found and "pytest" not in found


def test_an_installed_binary_has_no_python_parts(candidate, monkeypatch):
    monkeypatch.setattr(backends, "choose", lambda _: backends.Choice(backends.BACKENDS["native"], "declared"))
    assert supply.licences(candidate()).verdict == supply.vulnerabilities(candidate()).verdict == "passed"
    assert supply.parts(candidate())[0] == []


@pytest.fixture
def on_embedded(monkeypatch):
    monkeypatch.setattr(backends, "choose", lambda _: backends.Choice(backends.BACKENDS["embedded"], "declared"))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', "could not judge: not found"),
        ("", "did not get its data: no route to host"),
    ],
)
def test_an_audit_without_data_did_not_run(candidate, monkeypatch, on_embedded, answer, why):
    done = subprocess.CompletedProcess([], 1, answer, "no route to host\n")
    monkeypatch.setattr(supply.subprocess, "run", lambda *_, **__: done)
    finding = supply.vulnerabilities(candidate())
    assert finding.verdict == "not run" and why in finding.gates[0].why


class Advisories(BaseHTTPRequestHandler):
    """A service of one's own that speaks OSV, and knows of one flaw."""

    flawed = ""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        affected = {"package": {"name": asked, "ecosystem": "PyPI"}, "versions": []}
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}]
        flaw = {"id": "PYSEC-1", "affected": [affected], "published": "2026-01-01T00:00:00Z"}
        answer = json.dumps({"vulns": [flaw]} if asked == self.flawed else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("flawed", "verdict"), [("", "passed"), ("numpy", "failed")])
def test_pip_audit_judges_every_package_of_the_server(candidate, monkeypatch, on_embedded, flawed, verdict):
    monkeypatch.setattr(Advisories, "flawed", flawed)
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as service:
        threading.Thread(target=service.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{service.server_port}/v1/query")
        given = candidate()
        given.folder.mkdir()
        finding = supply.vulnerabilities(given)
        service.shutdown()
    assert finding.verdict == verdict, finding
    audited = json.loads((given.folder / "audit.json").read_text())
    assert {"tensorflow", "numpy", "protobuf"} <= {part["name"] for part in audited}
    told = [f"numpy {importlib.metadata.version('numpy')}: PYSEC-1, mended in 99.0"] if flawed else []
    assert list(finding.notes[:-1]) == told


def test_a_base_image_without_a_digest_fails_and_one_with_it_passes(declare, tmp_path):
    def judged(base):
        text = f"name: tiny\nmodels:\n  tiny: {{source: model.py:build}}\nserving: {{image: '{base}'}}\n"
        return image.digest(Candidate(Context(declare(text)), "1", tmp_path, tmp_path, None)).verdict

    assert judged("tensorflow/serving:2.20.0") == "failed"
    assert judged(f"tensorflow/serving@sha256:{'0' * 64}") == "passed"


def test_hadolint_judges_the_dockerfile(candidate):
    given = candidate()
    given.layout.dockerfile.parent.mkdir(parents=True)
    given.layout.dockerfile.write_text("FROM scratch\nMAINTAINER me\n")
    finding = image.dockerfile(given)
    assert finding.verdict == "failed" and finding.notes[0].startswith("DL4000, line 2")
    given.layout.dockerfile.write_text("FROM scratch\n")
    assert image.dockerfile(given).verdict == "passed"


def exported(layout, model="tiny", version=1):
    """Write a version as the export leaves it; return the hash of its content."""
    graph = layout.version(model, version) / "saved_model.pb"
    files.write_text(graph, f"graph {version}")
    manifest = {"version": version, "files": {graph.name: files.sha256(graph)}}
    files.write_json(layout.evidence(model, version) / "manifest.json", manifest)
    return files.digest(manifest["files"])


def test_a_rollback_goes_to_the_version_that_was_released_or_does_not_run(declare, tmp_path):
    text = "name: tiny\nmodels:\n  tiny: {source: model.py:build, version: 2}\n"
    context = Context(declare(text))
    contents = {version: exported(context.layout, version=version) for version in (1, 2)}

    def earlier(version, content):
        before = {"version": "1.0.0", "models": {"tiny": {"version": version, "content": content}}}
        return Candidate(context, "2.0.0", tmp_path, tmp_path, before)

    assert rehearsal._previous(earlier(1, contents[1]), "tiny").source == context.layout.version("tiny", 1)
    same = rehearsal._previous(earlier(2, contents[2]), "tiny")
    assert same.source is None and not same.gone and "version 2 too" in same.note
    for gone in (earlier(2, "of other files"), earlier(3, "of a folder that is gone")):
        finding = rehearsal.rollback(gone)
        assert finding.verdict == "not run" and "is not here as release 1.0.0 had it" in finding.gates[0].why


def test_other_answers_are_lost_requests_but_while_the_earlier_version_answers():
    traffic = [Traffic(model=name) for name in ("a", "b")]
    back = {"a": (3, 5)}

    def lost(line, kind, second):
        return rehearsal.lost_requests([{"line": line, "kind": kind, "second": second, "count": 7}], traffic, back)

    a, b = (line.line for line in traffic)
    assert lost(a, rehearsal.WRONG, 3) == lost(a, rehearsal.WRONG, 5) == (0, {"a": 7})
    assert lost(a, rehearsal.WRONG, 2) == lost(a, rehearsal.WRONG, 6) == (7, {"a": 0})
    assert lost(b, rehearsal.WRONG, 4) == lost(a, "HTTP 503", 4) == (7, {"a": 0})


def test_without_a_release_before_it_there_is_nothing_to_be_slower_than(candidate):
    assert "no previous release" in measured.regression(candidate()).gates[0].why


def test_a_run_that_is_gone_is_named(candidate):
    given = candidate({"version": "1.0.0", "runs": {"objectives": "20260101-000000-abcd"}, "models": {}})
    given.measured = {"profile": {}}
    assert "20260101-000000-abcd, is not here any more" in measured.regression(given).gates[0].why


def evidence(version, made, passed, **more):
    return {"version": version, "made": made, "passed": passed, "models": {}, "gates": [], "runs": {}} | more


def write(layout, document):
    path = record.folder(layout, document["version"]) / record.EVIDENCE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))


def test_the_previous_release_is_the_newest_that_went_out(candidate):
    layout = candidate().layout
    assert record.previous(layout, "2.0.0") is None
    write(layout, evidence("1.0.0", "2026-01-01", True))
    write(layout, evidence("1.1.0", "2026-02-01", True))
    write(layout, evidence("1.2.0", "2026-03-01", False))
    write(layout, evidence("2.0.0", "2026-04-01", True))
    broken = record.folder(layout, "1.3.0") / record.EVIDENCE
    broken.parent.mkdir()
    broken.write_text('{"version": "1.3')
    assert record.previous(layout, "2.0.0")["version"] == "1.1.0"


@pytest.mark.parametrize("version", ["", "../1", "1/2", " 1", "-1"])
def test_a_version_names_a_folder(candidate, version):
    with pytest.raises(DeclarationError, match="no version"):
        record.folder(candidate().layout, version)


def test_a_release_that_is_not_there_is_told_with_those_that_are(candidate):
    layout = candidate().layout
    write(layout, evidence("1.0.0", "2026-01-01", True))
    with pytest.raises(DeclarationError, match=r"(?s)1\.9\.0 is not there.*there is: 1\.0\.0"):
        record.load(layout, "1.9.0")


def test_two_releases_differ_in_what_they_measured_and_promised():
    def gates(value):
        gate = Gate("capacity", value, ">=", 100, "requests/s").as_dict()
        return [{"gate": "capacity", "verdict": "passed", "measured": [gate]}]

    before = evidence("1.0.0", "2026-01-01", True, gates=gates(200.0))
    after = evidence("1.1.0", "2026-02-01", True, gates=gates(300.0))
    before["models"] = {"tiny": {"version": 1, "content": "a", "signatures": BEFORE}}
    after["models"] = {"tiny": {"version": 2, "content": "a", "signatures": {}}}
    rows = {what: (was, now) for what, was, now in record.differences(before, after)}
    assert rows == {
        "tiny: version": ("1", "2"),
        "tiny: serving_default.inputs.pixels": ("float32[?, 784]", "–"),
        "capacity: capacity": ("200 requests/s (passed)", "300 requests/s (passed)"),
    }


def test_the_checklist_shows_value_limit_evidence_waiver_and_a_place_to_sign(candidate):
    given = candidate()
    path = given.layout.dockerfile
    lines = [
        Line(
            "dockerfile", "hadolint", Finding([Gate("findings", 2, "<=", 0)], [path], ["DL3007 | line 1"]), None, TODAY
        ),
        line(NOT_RUN, TODAY),
    ]
    said = {
        **{"made": "2026-11-22T12:00:00+00:00", "revision": "abc", "configuration": "f" * 64, "backend": "embedded"},
        "machine": {"processor": "P", "cores": 2, "memory_gib": 4, "system": "Linux"},
        "models": {"tiny": {"version": 1, "content": "c" * 64, "signatures": {}}},
    }
    text = checklist.markdown(given, lines, said)
    assert "**1 of 2 gates block the release**: 0 passed, 1 are waived" in text
    assert "| ❌ | dockerfile | findings: 2 | at most 0 | [Dockerfile](../../../serving/Dockerfile) |" in text
    assert "| ⚪ waived | image | x: not run: there is no engine | – |  |" in text
    assert "DL3007 \\| line 1" in text and "- image: not run, waived until 2026-11-22: no engine here" in text
    assert text.count("- [ ]") == 3
    document = checklist.document(given, lines, said)
    assert document["passed"] is False and document["gates"][1]["waiver"]["reason"] == "no engine here"
    assert json.loads(json.dumps(document))["gates"][0]["evidence"] == ["serving/Dockerfile"]
    assert Path(document["gates"][0]["evidence"][0]) == Path("serving/Dockerfile")
