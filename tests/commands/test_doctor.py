"""The doctor looks at everything, names remedies that can be typed, and survives a broken installation."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tdmpc2.acceleration.cpu import library
from tdmpc2.commands import doctor
from tdmpc2.commands.doctor import ABSENT, BROKEN, MISSING, OK, Finding
from tdmpc2.envs import registry, rendering
from tdmpc2.support.extras import EXTRAS
from tests.helpers.cpu_kernels import needs_library
from tests.helpers.reference import REPO


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_report_covers_every_area(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    out = capsys.readouterr().out
    for heading in ("Versions", "Processor", "Accelerators", "Rendering", "Optional", "Places"):
        assert f"\n{heading}\n" in f"\n{out}"
    assert f"torch               {torch.__version__}" in out
    assert out.splitlines()[-1].startswith("0 broken (!), ")


def test_json_is_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("Optional", "video", MISSING, "x", "pip install imageio")])
    doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    (finding,) = report["findings"]
    assert (finding["status"], finding["remedy"]) == ("missing", "pip install imageio")


def test_package_that_is_absent_is_broken_and_installable(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "wandb":
            raise metadata.PackageNotFoundError(name)
        return "0.9" if name == "gymnasium" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = by_name(list(doctor.packages()))
    assert (found["wandb"].status, found["wandb"].detail) == (BROKEN, "not installed")
    assert found["wandb"].remedy.startswith("pip install 'wandb>=")
    assert found["gymnasium"].detail.startswith("0.9, but ")
    assert found["torch"].status == OK


def test_broken_package_ends_with_code_1_and_hides_what_needs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "packages", lambda: [Finding("Versions", "torch", BROKEN, "not installed", "pip ...")])
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert " ! torch" in out
    assert "Processor" not in out
    assert "\nPlaces\n" in out


def test_optional_packages_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_packages", lambda name: ["imageio"] if name == "video" else [])
    found = by_name(list(doctor.optional_packages()))
    assert found["video"].remedy == "pip install imageio imageio-ffmpeg"
    assert all(found[name].status == OK for name in EXTRAS if name != "video")


def test_environments_of_an_extra_name_both_ways_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_packages", lambda name: ["metaworld"] if name == "metaworld" else [])
    found = by_name(list(doctor.optional_packages()))
    assert 'make setup EXTRAS=metaworld` in a clone of the repository, or `pip install "tdmpc2-opt[metaworld]"`' in (
        found["metaworld"].remedy
    )


def test_families_of_other_packages_tell_their_tasks_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import name was looked up as a distribution's, so that all families counted as broken."""
    common = {"make": "toys:make", "spec": "toys:spec"}
    offered = (
        registry.Family("Targets", "target-[123]", **common, more="target-1, target-2"),
        registry.Family("Toys", "toy-.*", **common, needs="yaml"),  # of the distribution PyYAML
        registry.Family("Bare", "bare-.*", **common, needs="tests.helpers", more=", and others"),  # of none
    )
    monkeypatch.setattr(registry, "offered_families", lambda: offered)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"yaml": ["PyYAML"]})  # a search of seconds
    found = by_name(doctor._safely(doctor.environments))
    assert found["Targets"].detail == "target-1, target-2"
    assert found["Toys"].detail == f"tasks named toy-.*, yaml {metadata.version('PyYAML')}"
    assert found["Bare"].detail == "and others, tests.helpers"
    assert found["DMControl"].detail.endswith(" named tasks, and every other of dm_control's suite")


@pytest.mark.parametrize(("mujoco", "shown"), [("3.3.0", True), ("3.4.0", False)])
def test_note_on_versions_is_shown_for_these_alone(mujoco: str, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that nobody tried together were said to be tested."""
    versions = {"MyoSuite": "2.11.6", "gymnasium": "1.2.3", "mujoco": mujoco, "metaworld": "3", "mani_skill": "3"}
    versions["myosuite"] = versions["MyoSuite"]
    monkeypatch.setattr(registry, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    detail = by_name(list(doctor.environments()))["MyoSuite"].detail
    assert detail.startswith("10 named tasks, myosuite 2.11.6")
    assert ("tested together" in detail) is shown


def test_note_on_versions_is_about_those_that_are_tested() -> None:
    pinned = (REPO / "constraints.txt").read_text() + (REPO / "docker" / "myosuite.txt").read_text()
    (family,) = (family for family in registry.FAMILIES if family.name == "MyoSuite")
    assert family.note_for
    assert set(family.note_for) <= set(pinned.splitlines())


@pytest.mark.parametrize(
    ("working", "statuses", "remedies"),
    [(["egl"], [OK, ABSENT], ["", ""]), ([], [MISSING, MISSING], ["libegl1", "libosmesa6"])],
)
def test_rendering_needs_one_backend(
    working: list[str], statuses: list[str], remedies: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "backends", lambda: ("egl", "osmesa"))
    monkeypatch.setattr(rendering, "backend_works", working.__contains__)
    found = list(doctor.rendering())
    assert [finding.remedy.removeprefix("apt-get install ") for finding in found] == remedies
    assert [finding.status for finding in found] == statuses


def test_missing_counts_only_what_can_be_got(capsys: pytest.CaptureFixture[str]) -> None:
    """A machine without a GPU used to be reported as one where something is missing."""
    doctor.main(["--json"])
    findings = [Finding(**finding) for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert all(finding.remedy for finding in findings if finding.status == MISSING)


def test_area_that_fails_is_itself_a_finding() -> None:
    def accelerators() -> list[Finding]:
        raise RuntimeError("driver and library versions differ")

    (finding,) = doctor._safely(accelerators)
    assert (finding.status, finding.detail) == (BROKEN, "RuntimeError: driver and library versions differ")


def test_cache_is_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (finding,) = (finding for finding in doctor.places() if finding.name == "cache")
    assert finding.detail.startswith(f"{tmp_path / 'cache' / 'tdmpc2'}, ")


@needs_library
def test_kernels_in_use_are_named_with_those_one_can_choose() -> None:
    finding = by_name(list(doctor.processor()))["CPU kernels"]
    used = library.load().name
    assert (finding.status, finding.detail.partition(" ")[0]) == (OK, used)
    others = [found.name for found in library.variants() if found.runs_here and found.name != used]
    assert finding.detail.endswith(f"(TDMPC2_KERNELS chooses another: {', '.join(others)})")


@needs_library
@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"fp32": 0.009, "bf16": 0.0118, "int8": 0.006}, "int8 files in int8, fp16 and bf16 files in fp32"),
        ({"fp32": 0.009, "bf16": 0.004, "int8": 0.0039}, "int8 files in bf16, fp16 and bf16 files in bf16"),
    ],
)
def test_precision_is_what_the_kernels_times_say(
    seconds: dict[str, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every processor was said to have no instructions for int8, in which the kernels are fastest."""
    monkeypatch.setattr("tdmpc2.acceleration.cpu.speed.kernel_seconds", lambda: seconds)
    found = by_name(list(doctor.processor()))
    assert found["precision=auto"].detail.startswith(f"plans {chosen} (")
    assert f"int8 {1e3 * seconds['int8']:.2g} ms" in found["precision=auto"].detail
    assert " for fp32, bf16 and int8 " in found["CPU kernels"].detail


def test_precision_without_kernels_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdmpc2.acceleration.cpu.speed.kernel_seconds", dict)
    assert by_name(list(doctor.processor()))["precision=auto"].detail.startswith("fp32 for every file")


@pytest.mark.parametrize("built", [False, True])
def test_kernels_that_are_not_there_have_a_reason_and_a_remedy_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, built: bool
) -> None:
    """A remedy is named only where there is one: a compiler can be installed, processor instructions cannot."""
    monkeypatch.setattr(library, "_load", lambda: (None, "out of cheese"))
    monkeypatch.setattr(library, "is_built", lambda: built)
    finding = by_name(list(doctor.processor()))["CPU kernels"]
    assert finding.detail.startswith("out of cheese")
    assert finding.status == (ABSENT if built else MISSING)
    assert ("make setup" in finding.remedy) == (not built)
