"""The example unit and manifest are well formed, and say what the program understands."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

from stratum_agents.process import build
from stratum_agents.supervision.program import GRACE_MARGIN_SECONDS
from stratum_bus import config as configs
from stratum_bus.config import AgentConfig
from stratum_cli.commands.up import DOWN_SECONDS
from stratum_cli.main import main

NATS = Path(__file__).parents[1] / "nats"


def yaml(text: str) -> list[Any]:
    """The documents of a file in the YAML that manifests are written in: block mappings and lists,
    plain and quoted scalars, literal blocks. Anything else, or a wrong indent, is an error.
    """
    return [_document(part.splitlines()) for part in re.split(r"^---$", text, flags=re.MULTILINE)]


def _document(lines: list[str]) -> Any:
    left = [line for line in lines if not line.lstrip().startswith("#")]
    while left and not left[0].strip():
        left.pop(0)
    found = _block(left, 0)
    assert not any(map(str.strip, left)), f"not understood: {left[0]!r}"
    return found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(lines: list[str], indent: int) -> Any:
    assert lines and _indent(lines[0]) == indent, f"wrong indent: {lines[:1]!r}"
    return _list(lines, indent) if lines[0].lstrip().startswith("- ") else _map(lines, indent)


def _list(lines: list[str], indent: int) -> list[Any]:
    found: list[Any] = []
    while lines and _indent(lines[0]) == indent and lines[0].lstrip().startswith("- "):
        item = lines[0].lstrip()[2:]
        if re.match(r"[\w./-]+:( |$)", item):
            lines[0] = " " * (indent + 2) + item
            found.append(_map(lines, indent + 2))
        else:
            lines.pop(0)
            found.append(_scalar(item))
    return found


def _map(lines: list[str], indent: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while lines and lines[0].strip() and _indent(lines[0]) == indent:
        match = re.fullmatch(r"([\w./-]+):(?: (.*))?", lines.pop(0).strip())
        assert match, f"no key: {lines[:1]!r}"
        key, value = match.groups()
        assert key not in found, f"{key} stands there twice"
        if value == "|":
            found[key] = _literal(lines, indent)
        elif value is None:
            found[key] = _block(lines, _indent(lines[0]))
        else:
            found[key] = _scalar(value)
    return found


def _literal(lines: list[str], indent: int) -> str:
    taken = []
    while lines and (not lines[0].strip() or _indent(lines[0]) > indent):
        taken.append(lines.pop(0))
    depth = min(_indent(line) for line in taken if line.strip())
    return "\n".join(line[depth:] for line in taken).strip() + "\n"


def _scalar(text: str) -> str | int:
    if text[0] in "\"'":
        assert text[-1] == text[0] and len(text) > 1, f"not closed: {text}"
        return text[1:-1]
    assert not text.startswith(("{", "[", "&", "*", "!", "%", "@")), f"not plain: {text}"
    return int(text) if text.isdigit() else text


def test_the_reader_of_manifests_refuses_what_is_malformed() -> None:
    assert yaml('a:\n  - b: "1"\n    c: 2\n  - d\n') == [{"a": [{"b": "1", "c": 2}, "d"]}]
    for wrong in ("a:\n  b: 1\n   c: 2", "a: 1\na: 2", 'a: "b', "a: [1, 2]", "- a\nb: 1"):
        try:
            yaml(wrong)
        except AssertionError:
            continue
        raise AssertionError(f"{wrong!r} was taken")


def test_the_kubernetes_manifest_is_well_formed_and_fits_together(tmp_path: Path) -> None:
    settings, claim, deployment = yaml((NATS / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert [each["kind"] for each in (settings, claim, deployment)] == [
        "ConfigMap", "PersistentVolumeClaim", "Deployment",
    ]  # fmt: skip
    (tmp_path / "stratum.toml").write_text(settings["data"]["stratum.toml"])
    config = configs.load(tmp_path / "stratum.toml", {})
    for name in config.agents:
        build(config, name)
    spec = deployment["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")  # never two of them
    pod = spec["template"]
    assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    port = config.supervisor.http_port
    assert config.supervisor.http_host == "0.0.0.0"
    assert [each["containerPort"] for each in container["ports"]] == [port]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    assert volumes[mounts["/etc/stratum"]]["configMap"]["name"] == settings["metadata"]["name"]
    claimed = volumes[mounts[config.server.data_dir]]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    assert container["args"][1:] == ["--config", "/etc/stratum/stratum.toml", "up"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > DOWN_SECONDS


def test_the_systemd_unit_is_well_formed_and_starts_what_there_is() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((NATS / "stratum.service").read_text(encoding="utf-8"))
    assert set(unit) - {"DEFAULT"} == {"Unit", "Service", "Install"}
    service = unit["Service"]
    assert (service["Type"], service["Restart"]) == ("notify", "always")
    assert service["KillMode"] == "mixed"  # else systemd would stop the agents beside us
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/stratum") and arguments[-1] == "up"
    assert main([*arguments, "--help"]) == 0
    longest = AgentConfig().grace_seconds + GRACE_MARGIN_SECONDS
    assert int(service["TimeoutStopSec"]) > DOWN_SECONDS > longest
