"""Reading `pipeline.yaml`: every fault is told with file, line and key, and all of them at once."""

from __future__ import annotations

import itertools
import json

import pytest

from launchpad import declaration
from launchpad.errors import DeclarationError

HEAD = "name: tiny\nmodels:\n  tiny: {source: model.py:build}\n"


def faults(declare, text: str) -> list[tuple[str, str, str]]:
    with pytest.raises(DeclarationError) as raised:
        declare(text)
    return [(problem.where, problem.what, problem.fix) for problem in raised.value.problems]


def only_fault(declare, text: str) -> tuple[str, str, str]:
    found = faults(declare, text)
    assert len(found) == 1, found
    return found[0]


def test_the_smallest_declaration_is_valid(declare):
    assert declare(HEAD).pipeline.models["tiny"].source == "model.py:build"


def test_a_declaration_knows_the_line_of_a_key_and_of_its_nearest_parent_that_is_spelt_out(declare):
    declared = declare(HEAD + "serving:\n  ports:\n    rest: 9000\n")
    assert declared.where("serving", "ports", "rest") == "pipeline.yaml:6"
    assert declared.where("serving", "ports", "grpc") == "pipeline.yaml:5"
    assert declared.where("objectives", "p99_ms") == "pipeline.yaml:1"


@pytest.mark.parametrize(
    ("text", "where", "what", "fix"),
    [
        (HEAD + "servng: {}\n", 4, "servng: unknown key", "did you mean 'serving'?"),
        (HEAD + "serving:\n  bathing: off\n", 5, "serving.bathing: unknown key", "did you mean 'batching'?"),
        (
            "name: a\nmodels:\n  tiny:\n    source: x\n    signatures:\n      serving_default:\n        stpes: []\n",
            7,
            "models.tiny.signatures.serving_default.stpes: unknown key",
            "did you mean 'steps'?",
        ),
        (
            "name: a\nmodels:\n  a:\n    source: x.keras\n    preprocessing:\n      - normalise\n",
            6,
            "models.a.preprocessing[0].normalise: unknown key",
            "did you mean 'normalize'?",
        ),
        (
            "name: a\nmodels:\n  a:\n    source: x.keras\n    preprocessing:\n"
            "      - resize: {heigth: 1, width: 2, height: 1}\n",
            6,
            "models.a.preprocessing[0].resize.heigth: unknown key",
            "did you mean 'height'?",
        ),
        (
            HEAD + "serving:\n  batching: {max_batch_size: 8, num_batch_threads: 1, batch_timeout_ms: 1}\n",
            5,
            "serving.batching.batch_timeout_ms: unknown key",
            "did you mean 'batch_timeout_micros'?",
        ),
    ],
)
def test_a_misspelt_key_gets_the_nearest_real_one(declare, text, where, what, fix):
    assert only_fault(declare, text) == (f"pipeline.yaml:{where}", what, fix)


def test_a_key_that_is_like_no_other_gets_the_list_of_real_ones(declare):
    where, what, fix = only_fault(declare, HEAD + "objectives:\n  zzz: 1\n")
    assert (where, what) == ("pipeline.yaml:5", "objectives.zzz: unknown key")
    assert fix == "known keys: p99_ms, error_rate, throughput_rps"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (HEAD + "serving:\n  ports: {rest: yes}\n", 5, "serving.ports.rest: should be a valid integer, not True"),
        (HEAD + "serving:\n  ports: {rest: '80'}\n", 5, "serving.ports.rest: should be a valid integer, not '80'"),
        (HEAD + "serving:\n  ports: {rest: 99999}\n", 5, "serving.ports.rest: should be less than or equal to 65535"),
        (HEAD + "serving:\n  backend: dokcer\n", 5, "serving.backend: should be 'auto', 'docker', 'native' or"),
        (HEAD + "serving: 3\n", 4, "serving: should be a mapping, not 3"),
        (HEAD + "objectives: {p99_ms: fast}\n", 4, "objectives.p99_ms: should be a valid number, not 'fast'"),
        ("name: My Pipeline\nmodels:\n  a: {source: x}\n", 1, "name: String should match pattern"),
        ("name: a\nmodels:\n  a b: {source: x}\n", 3, "models.a b"),
        ("name: a\nmodels:\n", 2, "models: should be a mapping, not None"),
        (
            HEAD + "release:\n  waivers:\n    - {gate: image, reason: r, expires: 2026-13-45}\n",
            6,
            "release.waivers[0].expires: should be a valid date, not '2026-13-45'",
        ),
    ],
)
def test_a_wrong_type_or_value_is_named_with_what_would_be_right(declare, text, line, what):
    where, said, _ = only_fault(declare, text)
    assert where == f"pipeline.yaml:{line}"
    assert said.startswith(what)


def test_a_missing_key_is_named_at_the_line_of_its_parent(declare):
    assert only_fault(declare, "name: a\nmodels:\n  tiny:\n    seed: 1\n") == (
        "pipeline.yaml:3",
        "models.tiny.source: is missing",
        "",
    )
    assert only_fault(declare, "models:\n  tiny: {source: x}\n")[:2] == ("pipeline.yaml:1", "name: is missing")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n"])
def test_an_empty_file_is_said_to_be_empty(declare, text):
    where, what, fix = only_fault(declare, text)
    assert (where, what) == ("pipeline.yaml:1", "is empty")
    assert "invoke init" in fix


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(DeclarationError, match=r"there is no pipeline.yaml here") as raised:
        declaration.load(tmp_path)
    assert raised.value.exit_code == 2
    assert "invoke init" in raised.value.problems[0].fix


def test_a_folder_in_its_place_is_told_without_a_traceback(tmp_path):
    (tmp_path / "pipeline.yaml").mkdir()
    with pytest.raises(DeclarationError, match="cannot be read: Is a directory"):
        declaration.load(tmp_path)


def test_bytes_that_are_no_text_are_found_by_line(tmp_path):
    (tmp_path / "pipeline.yaml").write_bytes(b"name: a\n# caf\xe9\n")
    with pytest.raises(DeclarationError) as raised:
        declaration.load(tmp_path)
    assert raised.value.problems[0].where == "pipeline.yaml:2"


def test_a_tab_is_called_a_tab(declare):
    assert only_fault(declare, "name: a\nmodels:\n\ttiny: {source: x}\n") == (
        "pipeline.yaml:3",
        "a tab where YAML wants spaces",
        "indent with spaces",
    )


@pytest.mark.parametrize(
    "text", ["name: [a\n", "name: 'a\n", "name: a: b\n", "name: &x *x\n", "a: !!python/name:os x\n"]
)
def test_what_is_not_yaml_is_told_with_its_line(declare, text):
    where, what, _ = only_fault(declare, text)
    assert where.startswith("pipeline.yaml:")
    assert what.startswith("is not YAML: ")


@pytest.mark.parametrize("text", ["- a list\n", "just text\n", "3\n"])
def test_a_document_that_is_no_mapping_is_refused(declare, text):
    assert only_fault(declare, text)[1].startswith("the file: should be a mapping")


def test_a_key_given_twice_is_told_with_both_lines(declare):
    text = "name: a\nmodels:\n  tiny:\n    source: x\n    seed: 1\n    source: y\n"
    assert only_fault(declare, text)[:2] == (
        "pipeline.yaml:6",
        "models.tiny.source: is given twice, first on line 4",
    )


def test_a_key_given_twice_on_one_line_is_told_too(declare):
    text = "name: a\nmodels:\n  tiny: {source: x, source: y}\n"
    assert only_fault(declare, text)[1] == "models.tiny.source: is given twice, first on line 3"


def test_a_model_may_start_from_another_and_change_what_it_needs(declare):
    text = "name: a\nmodels:\n  one: &one {source: x, seed: 1}\n  two:\n    <<: *one\n    seed: 2\n  three: *one\n"
    models = declare(text).pipeline.models
    assert [(model.source, model.seed) for model in models.values()] == [("x", 1), ("x", 2), ("x", 1)]


def test_an_alias_inside_what_it_names_is_refused(declare):
    assert "nested without end" in only_fault(declare, "name: a\nmodels: &all\n  tiny: *all\n")[1]


def test_all_faults_of_a_file_come_at_once_in_the_order_of_their_lines(declare):
    text = """\
name: Wrong Name
models:
  tiny:
    source: model.py:build
    sead: 3
    acceptance: {accuracy: 2}
    source: other.py:build
serving:
  flags:
    rest_api_num_thread: 4
    grpc_max_threads: many
loadtest:
  profile: steady
  profiles:
    steady:
      users: 0
      duration_s: 5
      traffic:
        - {model: tiyn}
        - {model: tiny, signature: serve}
"""
    found = faults(declare, text)
    assert [int(where.rpartition(":")[2]) for where, _, _ in found] == [1, 5, 6, 7, 10, 11, 16, 19, 20]
    assert [what.partition(":")[0] for _, what, _ in found] == [
        "name",
        "models.tiny.sead",
        "models.tiny.acceptance.accuracy",
        "models.tiny.source",
        "serving.flags.rest_api_num_thread",
        "serving.flags.grpc_max_threads",
        "loadtest.profiles.steady.users",
        "loadtest.profiles.steady.traffic[0].model",
        "loadtest.profiles.steady.traffic[1].signature",
    ]


def test_a_flag_that_the_server_does_not_have_gets_the_nearest_that_it_has(declare):
    where, what, _ = only_fault(declare, HEAD + "serving:\n  flags:\n    enable_model_warm_up: true\n")
    assert where == "pipeline.yaml:6"
    assert what.endswith("tensorflow_model_server has no such flag; did you mean 'enable_model_warmup'?")


@pytest.mark.parametrize("flag", ["qqq", "enable_per_model_metrics", "host"])
def test_a_flag_is_never_said_to_be_near_one_that_tensorflow_serving_lacks(declare, flag):
    what = only_fault(declare, HEAD + f"serving:\n  flags: {{{flag}: 1}}\n")[1]
    assert "tensorflow_model_server has no such flag" in what
    assert "None" not in what and "'host'" not in what


@pytest.mark.parametrize(
    ("flag", "elsewhere"), [("port", "serving.ports.grpc"), ("enable_batching", "serving.batching")]
)
def test_a_flag_that_follows_from_another_part_is_sent_there(declare, flag, elsewhere):
    what = only_fault(declare, HEAD + f"serving:\n  flags: {{{flag}: 1}}\n")[1]
    assert what == f"serving.flags.{flag}: follows from {elsewhere}; set it there"


@pytest.mark.parametrize(
    ("flag", "value", "right"),
    [
        ("grpc_max_threads", "many", "takes int, not 'many'"),
        ("grpc_max_threads", "true", "takes int, not True"),
        ("enable_model_warmup", "1", "takes bool, not 1"),
        ("saved_model_tags", "1", "takes str, not 1"),
    ],
)
def test_a_flag_of_the_wrong_type_is_refused(declare, flag, value, right):
    what = only_fault(declare, HEAD + f"serving:\n  flags: {{{flag}: {value}}}\n")[1]
    assert what == f"serving.flags.{flag}: {right}"


def test_a_whole_number_will_do_for_a_flag_that_takes_a_fraction(declare):
    declared = declare(HEAD + "serving:\n  flags: {per_process_gpu_memory_fraction: 1}\n")
    assert declared.pipeline.serving.flags == {"per_process_gpu_memory_fraction": 1}


def test_traffic_to_a_model_that_is_not_declared_is_refused_with_those_that_are(declare):
    text = HEAD + "loadtest: {profile: p, profiles: {p: {users: 1, duration_s: 1, traffic: [{model: tinny}]}}}\n"
    assert only_fault(declare, text)[1] == (
        "loadtest.profiles.p.traffic[0].model: there is no model 'tinny'; declared: tiny"
    )


@pytest.mark.parametrize(
    ("off", "protocol", "plain"), [("rest", "rest", "grpc"), ("rest", "rest_columns", "grpc"), ("grpc", "grpc", "rest")]
)
def test_traffic_over_a_protocol_that_is_off_is_refused_and_is_not_what_is_meant_without_any(
    declare, off, protocol, plain
):
    head = HEAD + f"serving: {{ports: {{{off}: 0}}}}\nloadtest: {{profile: p, profiles: {{p: {{users: 1, duration_s: 1"
    said = only_fault(declare, f"{head}, traffic: [{{model: tiny, protocol: {protocol}}}]}}}}}}\n")[1]
    assert said == f"loadtest.profiles.p.traffic[0].protocol: {protocol} is off (serving.ports)"

    pipeline = declare(head + "}}}\n").pipeline
    assert [line.protocol for line in pipeline.traffic(pipeline.loadtest.profiles["p"])] == [plain]


def test_exponents_without_a_dot_are_numbers(declare):
    declared = declare("name: a\nmodels:\n  tiny: {source: x, acceptance: {parity: 1e-5}}\n")
    assert declared.pipeline.models["tiny"].acceptance.parity == 1e-5


def test_the_committed_schema_is_the_one_that_the_types_give(repository):
    assert (repository / declaration.SCHEMA_FILE).read_text(encoding="utf-8") == declaration.schema()


def test_the_schema_explains_every_key_that_has_a_unit():
    document = json.loads(declaration.schema())
    timeout = document["$defs"]["BatchQueue"]["properties"]["batch_timeout_micros"]
    assert "µs" in timeout["description"]


def test_the_committed_declaration_satisfies_the_committed_schema(repository):
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    document = yaml.load((repository / declaration.FILE).read_text(encoding="utf-8"), declaration._Loader)
    document = json.loads(json.dumps(document, default=str))  # to an editor a date is text
    jsonschema.validate(document, json.loads((repository / declaration.SCHEMA_FILE).read_text(encoding="utf-8")))


def test_the_committed_declaration_is_valid(repository):
    assert set(declaration.load(repository).pipeline.models) == {"digits-mlp", "digits-cnn"}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in itertools.pairwise("abcdefghi")
)
MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(f'*{before}' for _ in range(9))}]}}\n"
    for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (HEAD + "store: a\0b\n", 4, "is not YAML: it cannot have the character U+0000"),
        (HEAD + "store: a\x1bb\n", 4, "is not YAML: it cannot have the character U+001B"),
        ("a: " + "[" * 2000, 1, "is not YAML for this project: it is nested without end"),
        (BOMB + HEAD, 6, "f: aliases multiply to more than 100,000 values"),
        (MERGE_BOMB + HEAD, 7, "is not YAML: aliases multiply to more than 100,000 values"),
    ],
)
def test_what_no_declaration_can_be_is_refused_at_once(declare, text, line, what):
    assert only_fault(declare, text)[:2] == (f"pipeline.yaml:{line}", what)


@pytest.mark.parametrize("tag", ["!!bool x", '!!int ""', "!!timestamp x", "!!float x", '!!float ""', "!!null x"])
def test_a_tag_that_its_value_does_not_fit_is_a_fault_of_that_key(declare, tag):
    assert [where for where, _, _ in faults(declare, HEAD + f"serving: {{ports: {{rest: {tag}}}}}\n")] == [
        "pipeline.yaml:4"
    ]
    assert "unknown key" in only_fault(declare, HEAD + f"? {tag}\n: 1\n")[1]


INT64 = 9223372036854775808
BATCHING = "serving:\n  batching: {{max_batch_size: 8, num_batch_threads: 1, {}}}\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name: a\nmodels:\n  a: {source: x, seed: -1}\n", "models.a.seed: should be greater than or equal to 0"),
        ("name: a\nmodels:\n  a: {source: x, seed: 4294967296}\n", "models.a.seed: should be less than or equal"),
        (HEAD + BATCHING.format(f"max_enqueued_batches: {INT64}"), "serving.batching.max_enqueued_batches: should be"),
        (HEAD + BATCHING.format(f"batch_timeout_micros: {INT64}"), "serving.batching.batch_timeout_micros: should be"),
        (
            HEAD + "serving:\n  batching: {max_batch_size: 1000001, num_batch_threads: 1}\n",
            "serving.batching.max_batch_size: should be less than or equal to 1000000",
        ),
        (HEAD + "autotune: {bounds: {max_batch_size: {min: 1, max: 1000001}}}\n", "autotune.bounds: max_batch_size is"),
        (
            HEAD + "loadtest: {profile: a, profiles: {a: {users: 1, duration_s: .inf}}}\n",
            "loadtest.profiles.a.duration_s: should be a finite number",
        ),
        (
            HEAD + "loadtest: {profile: a, profiles: {a: {users: 1, duration_s: .nan}}}\n",
            "loadtest.profiles.a.duration_s: should be",
        ),
        (HEAD + "serving: {image: ''}\n", "serving.image: String should match"),
        (HEAD + 'serving: {image: "a\\nb"}\n', "serving.image: String should match"),
        (HEAD + 'serving: {image: "a\\eb"}\n', "serving.image: String should match"),
    ],
)
def test_a_value_beyond_what_the_server_or_the_pipeline_can_hold_is_refused(declare, text, what):
    assert any(said.startswith(what) for _, said, _ in faults(declare, text)), faults(declare, text)
