"""medha-serve before it starts anything."""

import json
import socket
from pathlib import Path

import pytest

from deployments import haproxy
from deployments.launcher import (
    DEFAULTS,
    PORTS,
    drain_timeout_s,
    environment,
    free_port,
    main,
)
from medha_actors.errors import ConfigError


def config_of(folder: Path, *arguments: dict) -> Path:
    path = folder / "serve_config.yaml"
    ours = [
        {"import_path": "deployments.app:build_app", "args": args} for args in arguments
    ]
    path.write_text(
        json.dumps({"applications": [*ours, {"import_path": "another:app"}]})
    )
    return path


def test_what_the_user_has_set_stays():
    given = {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": "1",
        "HOME": "/",
    }
    chosen = environment(given)
    assert chosen.items() >= given.items()
    ours = haproxy.environment().keys()
    assert chosen.keys() == given.keys() | DEFAULTS.keys() | PORTS.keys() | ours


def test_haproxy_answers_with_our_errors_unless_the_user_has_another_one():
    chosen = environment({})
    assert Path(chosen["RAY_SERVE_HAPROXY_BINARY_PATH"]).name == "medha-haproxy"
    own = environment({"RAY_SERVE_HAPROXY_BINARY_PATH": "/usr/sbin/haproxy"})
    assert own["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/usr/sbin/haproxy"
    assert "MEDHA_HAPROXY_BINARY" not in own


def test_a_port_that_is_taken_is_replaced():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


def test_the_longest_drain_of_all_applications_counts(tmp_path):
    path = config_of(
        tmp_path, {"drain_timeout_s": 5}, {"drain_timeout_s": 70}, {"parallel": {}}
    )
    assert drain_timeout_s(path) == 70


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args: is empty"),
        ({"drain_timeout_s": -1}, "drain_timeout_s"),
        ({"drain": 1}, "drain"),
    ],
)
def test_wrong_args_are_named_before_anything_starts(tmp_path, args, message):
    with pytest.raises(ConfigError, match=message):
        drain_timeout_s(config_of(tmp_path, args))


@pytest.mark.parametrize("text", ["applications: [", "- a list", "applications: 3"])
def test_a_file_that_is_no_serve_configuration(tmp_path, text):
    path = tmp_path / "serve_config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no Serve configuration"):
        drain_timeout_s(path)


def test_a_wrong_configuration_is_one_line_and_exit_status_1(tmp_path, capsys):
    for path in (
        tmp_path / "nowhere.yaml",
        config_of(tmp_path, {"parallel": {"spp": 0}}),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(path)])
        assert ended.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("nowhere.yaml: No such file or directory")
    assert "parallel.spp" in second
