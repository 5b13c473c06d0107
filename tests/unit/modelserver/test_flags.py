"""The command line is read as tensorflow_model_server's, and what it would overlook is an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launchpad.modelserver.flags import FLAGS, OWN_FLAGS, FlagError, nearest, parse


def test_a_value_follows_the_flag_with_or_without_an_equals_sign() -> None:
    options = parse(["--port=1", "--rest_api_port", "2", "--model_name", "m", "--load_retry_interval_micros=-1"])
    assert (options.port, options.rest_api_port, options.model_name) == (1, 2, "m")
    assert options.load_retry_interval_micros == -1


def test_a_boolean_flag_alone_is_true_and_takes_only_a_boolean_that_follows() -> None:
    assert parse(["--enable_batching"]).enable_batching
    assert not parse(["--enable_batching", "false", "--port=1"]).enable_batching
    assert not parse(["--enable_model_warmup=FALSE"]).enable_model_warmup
    assert parse(["--enable_batching", "--port=1"]).port == 1


def test_defaults_are_those_of_the_original() -> None:
    options = parse([])
    assert (options.port, options.rest_api_port, options.max_num_load_retries) == (8500, 0, 5)
    assert (options.rest_api_timeout_in_ms, options.model_name) == (30000, "default")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--enable_per_model_metrics"], "unknown flag --enable_per_model_metrics: did you mean --enable_"),
        (["--rest_api_prt=1"], "did you mean --rest_api_port?"),
        (["--zzz"], "unknown flag --zzz"),
        (["serve"], "unexpected argument 'serve'"),
        (["--port=x"], "--port=x: expected a whole number"),
        (["--port"], "--port needs a value"),
        (["--enable_batching=maybe"], "expected true or false"),
        (["--per_process_gpu_memory_fraction=half"], "expected a number"),
    ],
)
def test_what_cannot_be_meant_is_refused(argv: list[str], complaint: str) -> None:
    with pytest.raises(FlagError) as refused:
        parse(argv)
    assert complaint in str(refused.value)


def test_the_table_knows_the_original_flags_and_keeps_its_own_apart() -> None:
    assert {"enable_batching", "ssl_config_file", "xla_cpu_compilation_enabled"} <= FLAGS.keys()
    assert "enable_per_model_metrics" not in FLAGS
    assert "host" in OWN_FLAGS and "host" not in FLAGS
    assert not FLAGS["platform_config_file"].supported
    assert nearest("batching_parameter_file") == "batching_parameters_file"


def test_the_table_is_light_to_import() -> None:
    code = (
        "import sys, launchpad.modelserver.flags; print(sorted({'numpy', 'google', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
