"""The compose files: valid by the specification, hardened and alike, and in step with config/shipper.yaml."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml

from shipper.config import loader

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMMON = DEPLOY / "compose.common.yaml"
#: The sink that is active in each phase, by the name that config/shipper.yaml has for it.
PHASES = {
    "phase1": "mysql",
    "phase2": "loki",
    "phase3-cloudwatch": "cloudwatch",
    "phase3-azure": "azure",
    "phase3-elk": "elasticsearch",
}
FILES = {name: DEPLOY / f"compose.{name}.yaml" for name in PHASES}
#: Services that run once, or whose image is the user's own.
WITHOUT_HEALTHCHECK = {"elasticsearch_setup", "app"}


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def services(path: Path) -> dict[str, dict[str, Any]]:
    """The services of a file, with what they extend."""
    found: dict[str, dict[str, Any]] = {}
    for name, service in read(path)["services"].items():
        more = dict(service)
        extended = more.pop("extends", None)
        base = read(DEPLOY / extended["file"])["services"][extended["service"]] if extended else {}
        found[name] = {**base, **more}
    return found


def default(text: str) -> str:
    """A value with every variable replaced by its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def of_every_phase(test: Any) -> Any:
    return pytest.mark.parametrize("name", PHASES)(test)


def test_every_phase_has_its_file_and_every_file_is_one() -> None:
    assert sorted(DEPLOY.glob("compose.*.yaml")) == sorted([COMMON, *FILES.values()])


def test_the_files_follow_the_compose_specification() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    files = [str(path) for path in (COMMON, *FILES.values())]
    done = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_would_find_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILES["phase1"].read_text().replace("stop_grace_period", "stop_grace_periode"))
    program = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", str(wrong)], capture_output=True, check=False
    )
    assert done.returncode == 1


@of_every_phase
def test_shipper_and_the_application_are_the_same_in_every_phase(name: str) -> None:
    """Going to another phase must not need another shipper; only `active` changes."""
    content = read(FILES[name])
    assert content["name"] == "faildaily-logs"
    for service in ("shipper", "app_db", "app"):
        assert content["services"][service] == {"extends": {"file": COMMON.name, "service": service}}
    shipper = services(FILES[name])["shipper"]
    assert (shipper["read_only"], shipper["cap_drop"]) == (True, ["ALL"])
    assert shipper["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in shipper
    assert "privileged" not in shipper
    assert "shipper_state:/var/lib/shipper" in shipper["volumes"]
    assert "${SHIPPER_CONFIG_DIR:-../config}:/etc/shipper:ro" in shipper["volumes"]
    assert (DEPLOY / "../config/shipper.yaml").exists()
    assert "command" not in shipper
    assert "SHIPPER_CONFIG" not in shipper["environment"]
    assert not any("docker.sock" in volume for volume in shipper["volumes"])


@of_every_phase
def test_services_are_pinned_watched_restarted_and_their_logs_bounded(name: str) -> None:
    for service, section in services(FILES[name]).items():
        tag = default(section["image"]).rpartition(":")[2]
        assert re.fullmatch(r"\d+\.\d+\.\d+", tag) or service == "app", section["image"]
        assert section["restart"] in {"unless-stopped", "on-failure"}
        options = section["logging"]["options"]
        assert section["logging"]["driver"] == "json-file"
        assert {"max-size", "max-file"} <= options.keys()
        if service not in WITHOUT_HEALTHCHECK:
            assert {"test", "interval", "timeout", "retries", "start_period"} <= section["healthcheck"].keys(), service
        for port in section.get("ports", ()):
            assert default(port).startswith("127.0.0.1:"), port


@of_every_phase
def test_secrets_are_files_and_what_is_named_is_declared(name: str) -> None:
    content = read(FILES[name])
    for service, section in services(FILES[name]).items():
        for key, value in section.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|CONNECTION_STRING|CREDENTIALS", key):
                assert key.endswith("_FILE"), f"{service}: {key}"
                assert value.startswith("/run/secrets/")
                if service != "shipper":
                    assert value.removeprefix("/run/secrets/") in section["secrets"], f"{service}: {key}"
        assert set(section.get("secrets", ())) <= content["secrets"].keys(), service
        for volume in section.get("volumes", ()):
            source = default(volume).split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir(), f"{service}: {volume}"
            elif not source.startswith("/"):
                assert source in content["volumes"], f"{service}: {volume}"
    for secret in content["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_no_secret_is_in_the_repository() -> None:
    for path in (DEPLOY / "secrets", DEPLOY / "secrets" / "shipper"):
        assert (path / ".gitignore").read_text().splitlines()[1] == "*"


def test_phase_1_is_what_the_application_expects() -> None:
    logs_db = services(FILES["phase1"])["logs_db"]
    assert logs_db["environment"]["MYSQL_DATABASE"] == "faildaily_logs"
    assert logs_db["environment"]["MYSQL_USER"] == "logs_user"
    assert "--character-set-server=utf8mb4" in logs_db["command"]
    assert [default(port) for port in logs_db["ports"]] == ["127.0.0.1:3307:3306"]
    assert logs_db["volumes"] == ["logs_data:/var/lib/mysql"]
    app = services(FILES["phase1"])["app"]
    assert app["logging"]["options"]["tag"] == "faildaily-app"
    said = {key: app["environment"][f"LOGS_DB_{key}"] for key in ("HOST", "PORT", "USER", "NAME")}
    assert said == {"HOST": "logs_db", "PORT": "3306", "USER": "logs_user", "NAME": "faildaily_logs"}


def test_phase_2_publishes_the_ports_that_everybody_knows() -> None:
    found = services(FILES["phase2"])
    assert default(found["loki"]["ports"][0]).endswith(":3100:3100")
    assert default(found["grafana"]["ports"][0]).endswith(":3000:3000")


@of_every_phase
def test_the_sink_of_the_phase_finds_its_server_and_its_secret(name: str) -> None:
    """In config/shipper.yaml as it is."""
    text = (ROOT / "config" / "shipper.yaml").read_text()
    found = services(FILES[name])
    environ = {key: default(value) for key, value in found["shipper"]["environment"].items()}
    config = loader.loads(text, environ, path=ROOT / "config" / "shipper.yaml")
    if PHASES[name] not in config.sinks:
        pytest.skip(f"the package of {PHASES[name]} is not installed")
    section = msgspec.to_builtins(config.sinks[PHASES[name]], enc_hook=str)
    for key, value in section.items():
        if key.endswith("_file") and value:
            assert Path(value).parent == Path("/run/secrets"), f"{key}: {value}"
        host = value if key == "host" else urlsplit(value).hostname if key == "endpoint" and value else None
        if host is not None:
            assert host in found, f"{key}: {value}"
    if name == "phase1":
        assert (section["port"], section["database"], section["user"]) == (3306, "faildaily_logs", "logs_user")


def test_the_dashboard_asks_the_provisioned_source_for_labels_that_the_sink_sets() -> None:
    provisioned = read(DEPLOY / "grafana/provisioning/datasources/loki.yaml")["datasources"]
    (source,) = provisioned
    assert source["url"] == "http://loki:3100"
    providers = read(DEPLOY / "grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    assert providers[0]["options"]["path"] == "/etc/grafana/dashboards"
    dashboard = json.loads((DEPLOY / "grafana/dashboards/logs.json").read_text())
    named = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == {"type": "loki", "uid": source["uid"]}
        for target in panel["targets"]:
            selector = re.search(r"\{([^}]*)\}", target["expr"])
            assert selector is not None
            labels = set(re.findall(r"(\w+)\s*=~?", selector[1]))
            assert labels <= {"job", "service", "container", "stream", "level", "host"}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*named, "__auto"}


def test_loki_keeps_what_waited_for_long() -> None:
    loki = read(DEPLOY / "loki/loki.yaml")
    assert loki["limits_config"]["reject_old_samples"] is False
    assert loki["limits_config"]["allow_structured_metadata"] is True
    assert loki["compactor"]["retention_enabled"] is True
    assert loki["schema_config"]["configs"][0]["schema"] == "v13"
    assert loki["analytics"]["reporting_enabled"] is False


def test_the_setup_of_elasticsearch_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "elk/setup.sh")], check=True)


def test_every_variable_of_the_files_is_in_the_page() -> None:
    page = (ROOT / "docs/how-to/compose.md").read_text()
    for path in (COMMON, *FILES.values()):
        for variable in re.findall(r"(?<!\$)\$\{(\w+)", path.read_text()):
            assert f"`{variable}`" in page, f"{path.name}: {variable}"
