"""The daemon as a process: what signals, ports and bad configurations do to it."""

from __future__ import annotations

import socket
from pathlib import Path

from shipper.testing.daemon import Daemon, eventually

DEFAULT_PORT = 8687


def config(tmp_path: Path, **more: object) -> dict[str, object]:
    return {
        "sources": {"app": {"type": "file", "include": [str(tmp_path / "app.log")]}},
        "sinks": {"hole": {"type": "blackhole"}},
        "state_dir": str(tmp_path / "state"),
        **more,
    }


def taken_default_port() -> socket.socket | None:
    """Take the default port, unless another process of this machine has it already: as good for the test."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", DEFAULT_PORT))
    except OSError:
        listener.close()
        return None
    listener.listen()
    return listener


def test_taken_default_port_does_not_stop_the_daemon(tmp_path: Path) -> None:
    listener = taken_default_port()
    try:
        with Daemon(tmp_path, config(tmp_path, http={})) as daemon:
            daemon.wait_log("the default address is taken")
            assert daemon.term() == 0
    finally:
        if listener is not None:
            listener.close()


def test_taken_port_that_was_chosen_is_an_error_with_exit_code_78(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        daemon = Daemon(tmp_path, config(tmp_path, http={"listen": f"127.0.0.1:{port}"}))
        daemon.start(wait=False)
        assert daemon.wait() == 78
        assert str(port) in daemon.log


def test_file_that_appears_later_is_read_and_term_ends_with_0(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)) as daemon:
        (tmp_path / "app.log").write_text("one\ntwo\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="hole") == 2)
        assert daemon.term() == 0


def test_second_daemon_on_the_same_state_exits_with_75_and_says_why(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)):
        other = Daemon(tmp_path / "other", config(tmp_path))
        other.start(wait=False)
        assert other.wait() == 75
        assert "in use by another shipper" in other.log


def test_bad_configuration_exits_with_78_and_names_the_line(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, config(tmp_path, nonsense=1))
    daemon.start(wait=False)
    assert daemon.wait() == 78
    assert "unknown key 'nonsense'" in daemon.log


def test_reload_takes_a_good_file_and_refuses_a_bad_one_with_the_reason(tmp_path: Path) -> None:
    with Daemon(tmp_path, config(tmp_path)) as daemon:
        daemon.reload(config(tmp_path, active="nobody"))
        daemon.wait_log("reload refused")
        assert "nobody" in daemon.log
        (tmp_path / "app.log").write_text("one\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="hole") == 1)
        assert daemon.metric("shipper_config_valid") == 0
        daemon.reload(config(tmp_path, sinks={"other": {"type": "blackhole"}}))
        assert eventually(lambda: daemon.metric("shipper_reloads_total", result="ok") == 1)
        with (tmp_path / "app.log").open("a") as file:
            file.write("two\n")
        assert eventually(lambda: daemon.metric("shipper_sink_lines_acked_total", sink="other") == 1)
        assert daemon.metric("shipper_config_valid") == 1
        assert 'shipper_buffer_bytes{sink="hole"}' not in daemon.get("/metrics")[1], "the old sink's gauges are gone"
        assert daemon.term() == 0


def test_once_exits_with_0_when_all_is_delivered(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text("one\ntwo without end")
    daemon = Daemon(
        tmp_path, config(tmp_path, sinks={"f": {"type": "file", "path": str(tmp_path / "out"), "format": "raw"}})
    )
    assert daemon.once().code == 0
    assert (tmp_path / "out").read_text() == "one\ntwo without end\n"
