"""Checkpoints on a hub, tested against a stand-in of its HTTP interface instead of the real one."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tdmpc2.agent import TDMPC2
from tdmpc2.checkpoints import hub as hub_names
from tdmpc2.checkpoints.files import load_file
from tdmpc2.commands import checkpoint, quantize
from tdmpc2.config import Config
from tdmpc2.loading import load_agent
from tests.helpers.hub import TOKEN, Hub, serving, use

pytest.importorskip("huggingface_hub")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the waits between the client's retries."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def hub(patient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as served:
        use(monkeypatch, served.url, tmp_path / "cache")
        yield served


@pytest.fixture
def agent(tiny_cfg: Config) -> TDMPC2:
    return TDMPC2(tiny_cfg)


def command(*words: str) -> int:
    try:
        checkpoint.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def same(one: TDMPC2, two: TDMPC2) -> bool:
    other = two.model.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.model.state_dict().items())


def test_agent_pushed_to_a_hub_is_loaded_by_name(hub: Hub, agent: TDMPC2) -> None:
    line = agent.push_to_hub("me/walker", private=True, message="First weights", step=12)
    assert line == f"{hub.url}/me/walker/commit/1"
    assert hub.private == {"me/walker"}
    assert hub.commits == ["First weights"]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    files = hub.files["me/walker"]["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    config = json.loads(files["config.json"])
    assert (config["step"], config["config"]["latent_dim"]) == (12, agent.cfg.latent_dim)
    front, card = files["README.md"].decode().removeprefix("---\n").split("---\n", 1)
    assert front.splitlines()[:2] == ["library_name: tdmpc2", "pipeline_tag: reinforcement-learning"]
    assert "license" not in front  # nobody has named one
    assert 'load_agent("hf://me/walker")' in card
    assert same(agent, load_agent("hf://me/walker", device="cpu", quiet=True))


def test_card_of_the_owner_is_kept_by_a_second_push(hub: Hub, agent: TDMPC2) -> None:
    hub.files["me/walker"] = {"main": {"README.md": b"my own words"}}
    line = agent.push_to_hub("hf://me/walker", license="mit")
    assert "(your own README.md there was kept, without license=mit)" in line
    files = hub.files["me/walker"]["main"]
    assert files["README.md"] == b"my own words"
    assert set(files) == {"README.md", "config.json", "model.safetensors"}


def test_page_of_ours_is_that_of_the_newest_weights(hub: Hub, agent: TDMPC2) -> None:
    """The first page was kept, with the checksum and scores of other weights."""
    agent.push_to_hub("hf://me/walker", step=1)
    first = hub.files["me/walker"]["main"]["README.md"]
    agent.push_to_hub("hf://me/walker", step=2, license="mit")
    second = hub.files["me/walker"]["main"]["README.md"]
    assert first != second
    assert second.startswith(b"---\nlicense: mit\n")


def test_private_push_to_a_public_repository_is_refused(hub: Hub, agent: TDMPC2) -> None:
    agent.push_to_hub("hf://me/walker")
    files = dict(hub.files["me/walker"]["main"])
    with pytest.raises(ValueError, match="me/walker is there already and public: leave out private"):
        agent.push_to_hub("hf://me/walker", private=True, step=9)
    assert hub.files["me/walker"]["main"] == files


def test_names_choose_revision_and_file(hub: Hub, agent: TDMPC2, tmp_path: Path) -> None:
    """A name may choose a branch and a file; as a Path it loses one slash and is understood all the same."""
    agent.save(tmp_path / "old.pt", step=1)
    agent.save(tmp_path / "new.pt", step=2)
    old, new = ((tmp_path / name).read_bytes() for name in ("old.pt", "new.pt"))
    hub.files["me/many"] = {"main": {"sub/x.pt": new, "model.pt": new}, "v1": {"sub/x.pt": old}}
    steps = {
        "hf://me/many": 2, "hf://me/many/sub/x.pt": 2, "hf://me/many@v1/sub/x.pt": 1,
        Path("hf://me/many@v1/sub/x.pt"): 1,
    }  # fmt: skip
    for name, step in steps.items():
        assert load_file(name).step == step
    assert load_file(Path("hf://me/many")).origin == "hf://me/many"


def test_what_was_downloaded_is_read_without_a_connection(
    hub: Hub, agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.push_to_hub("me/walker")
    load_file("hf://me/walker")
    hub.requests.clear()
    use(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    assert same(agent, load_agent("hf://me/walker", device="cpu", quiet=True))
    with pytest.raises(ValueError, match=r"hf://me/other/.*: no connection to .*, and it was never downloaded here"):
        load_file("hf://me/other")
    assert not hub.requests


def test_model_pt_that_was_downloaded_is_read_without_a_connection(
    hub: Hub, agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first name that is looked for, model.safetensors, was never downloaded, and nobody can be asked for it."""
    agent.save(tmp_path / "x.pt", step=7)
    hub.files["me/old"] = {"main": {"model.pt": (tmp_path / "x.pt").read_bytes()}}
    load_file("hf://me/old")
    use(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    assert load_file("hf://me/old").step == 7


def test_cache_without_room_is_no_fault_of_the_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(ValueError, match="cannot be kept in /cache/x: No space left on device"):
        load_file("hf://me/old/model.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://me", "is no name on a hub: write hf://USER/NAME[@REVISION][/FILE]"),
        ("hf://me/../x", "is no name on a hub"),
        ("hf://me/many/../../etc/passwd", "is no name on a hub"),
        ("hf://me/many@", "is no name on a hub"),
        ("hf://me/none", "has no such repository, or it is private and needs a login"),
        ("hf://me/many", "has none of the files model.safetensors, model.pt: name one"),
        ("hf://me/many/y.pt", "the repository has no such file"),
        ("hf://me/many@v9/x.pt", "the repository has no such revision"),
        ("hf://me/many/x.pt", "asks for 'os.system', which is not a tensor and could run code"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub: Hub, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every fault ends in one line, including a file on the hub that would run a command when unpickled."""
    hub.files["me/many"] = {"main": {"x.pt": b"cos\nsystem\n(S'touch hacked'\ntR."}}
    assert command("inspect", name) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert TOKEN not in said


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refusal_of_a_hub_is_one_line(hub: Hub, agent: TDMPC2, status: int) -> None:
    hub.refuse = status
    with pytest.raises(ValueError, match=r"hf://me/walker: http://127.0.0.1") as caught:
        agent.push_to_hub("me/walker")
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_no_connection_is_one_line(
    patient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: TDMPC2
) -> None:
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # where nothing listens
    with pytest.raises(ValueError, match=r"hf://me/walker/model.safetensors: no connection to http://127.0.0.1:9"):
        load_file("hf://me/walker")
    with pytest.raises(ValueError, match=r"hf://me/walker: http://127.0.0.1:9 cannot be asked"):
        agent.push_to_hub("me/walker")


def test_missing_client_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_names, "missing_packages", lambda _: ["huggingface_hub"])
    with pytest.raises(ValueError, match=r"client is not installed: pip install huggingface_hub safetensors"):
        load_file("hf://me/walker")


# -- the command ------------------------------------------------------------------------------------------------------


def test_push_command_writes_a_folder_and_keeps_what_is_there(
    agent: TDMPC2, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.save(tmp_path / "x.pt", step=5)
    words = ("push", str(tmp_path / "x.pt"), str(tmp_path / "out"), "license=apache-2.0")
    for word in ("private=true", "message=first"):
        assert command(*words, word) == 2
        assert "says nothing of a folder" in capsys.readouterr().err
    assert command(*words, "--dry-run") == 0
    assert "model.safetensors: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert command(*words) == 0
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert same(agent, load_agent(tmp_path / "out" / "model.safetensors", device="cpu", quiet=True))
    assert command(*words) == 2
    assert "There is already" in capsys.readouterr().err
    assert command(*words, "--overwrite") == 0
    page = tmp_path / "out" / "README.md"
    assert f'load_agent("{tmp_path / "out"}/model.safetensors")' in page.read_text()
    page.write_text("my own words")
    assert command(*words, "--overwrite") == 0
    assert page.read_text() == "my own words"
    assert "your own README.md there was kept" in capsys.readouterr().out


def test_license_is_that_of_the_files_card(agent: TDMPC2, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page said mit of files whose own cards said something else."""
    agent.save(tmp_path / "x.pt")
    assert command("card", str(tmp_path / "x.pt"), "license=cc-by-nc-4.0", f"out={tmp_path / 'y.pt'}") == 0
    words = ("push", str(tmp_path / "y.pt"), str(tmp_path / "out"))
    assert command(*words, "license=mit") == 2
    assert "license='mit', but the file's card says 'cc-by-nc-4.0'" in capsys.readouterr().err
    assert command(*words) == 0
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n")


@pytest.mark.slow
def test_push_command_pushes_a_quantised_file(hub: Hub, agent: TDMPC2, tmp_path: Path) -> None:
    """Files quantised from a hub name are written to the working directory; a pushed one keeps its precision."""
    agent.push_to_hub("me/walker", step=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        quantize.main(["hf://me/walker", "recipes=int8", "plans=0", "repeats=1", "rows=2", "tasks=[pendulum-spin]"])
    assert (tmp_path / "model_int8.pt").exists()
    assert command("push", str(tmp_path / "model_int8.pt"), "hf://me/small", "message=int8") == 0
    assert load_file("hf://me/small").extra == load_file(tmp_path / "model_int8.pt").extra
    assert "| precision | int8 |" in hub.files["me/small"]["main"]["README.md"].decode()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "x.pt", "layout=safetensors", "out=y.pt"), "must end in .safetensors"),
        (("convert", "x.pt", "layout=b", "out=y.safetensors"), "is no tensor, and the safetensors format stores"),
        (("push", "x.pt", "out", "license=my own\n"), "is no name of a license"),
        (("push", "x.pt", "hf://me/walker/model.pt"), "names a file"),
    ],
)
def test_careless_command_line_is_one_line(
    agent: TDMPC2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    agent.save("x.pt")
    assert command(*words) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"x.pt"}


def test_convert_command_writes_safetensors(agent: TDMPC2, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent.save(tmp_path / "x.pt", step=5)
    out = tmp_path / "x.safetensors"
    assert command("convert", str(tmp_path / "x.pt"), "--layout", "safetensors", "--out", str(out)) == 0
    assert capsys.readouterr().out == f"{out}: layout (a) in the safetensors format, fp32\n"
    assert load_file(out).step == 5
    assert command("convert", str(out), "layout=b", f"out={tmp_path / 'b.pt'}") == 0
