"""A checkpoint for others: a folder with a card, a readable configuration and the weights, here or on a hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tdmpc2.checkpoints import hub
from tdmpc2.checkpoints.files import Checkpoint, convert, describe, load_file, save_file
from tdmpc2.support.files import json_text, write_text
from tdmpc2.support.text import escaped, shown
from tdmpc2.support.version import version

CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
_OURS = "<!-- Written by tdmpc2, which replaces it with every push; a page without this line is left as it is. -->"
_TAGS = ("reinforcement-learning", "model-based-reinforcement-learning", "world-model", "td-mpc2", "tdmpc2")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")


class Push(NamedTuple):
    """The way a checkpoint is published.

    Attributes:
        private: a new repository is for its owner alone; one that is there stays as it is.
        message: of the commit.
        license: of the weights, as the hub spells it; by default what the file's own card says.
    """

    private: bool = False
    message: str = "Weights of a TD-MPC2 world model"
    license: str | None = None


def write_folder(folder: Path, checkpoint: Checkpoint, name: str, push: Push, *, overwrite: bool = False) -> list[Path]:
    """Write the files of a repository.

    Args:
        folder: is made if it is not there.
        checkpoint: of any layout and precision; the weights keep theirs.
        name: of the repository or folder, for the card.
        push: says the license.
        overwrite: replace files of these names, but for a page that its owner wrote.

    Returns:
        The files.

    Raises:
        ValueError: the license has another form, a file exists, the weights cannot be converted, or the disk refused.
    """
    license = _license_of(checkpoint, push.license)
    paths = [folder / file for file in (CARD, CONFIG, WEIGHTS)]
    if not overwrite and (there := [str(path) for path in paths if path.exists() or path.is_symlink()]):
        raise ValueError(f"There is already {', '.join(there)}: name another folder, or say overwrite")
    save_file(paths[2], convert(checkpoint, "safetensors"), overwrite=overwrite)
    written = load_file(paths[2], identify=True)
    entries = {"library": "tdmpc2", "version": version(), "format": written.format, "config": written.config}
    write_text(paths[1], json_text({**entries, "step": written.step, **written.extra}, indent=2) + "\n")
    if not (paths[0].exists() and is_owners(paths[0])):
        write_text(paths[0], card(written, name, license))
    return paths


def _kept(how: Push) -> str:
    without = f", without license={how.license}" if how.license else ""
    return f" (your own {CARD} there was kept{without})"


def is_owners(page: Path) -> bool:
    """Tell if a page was written by its owner, and not by us."""
    return _OURS not in page.read_text(encoding="utf-8", errors="replace")


def _license_of(checkpoint: Checkpoint, chosen: str | None) -> str | None:
    """Find the license to publish with: the chosen one, or that of the file's card, which it must not contradict."""
    own = (checkpoint.card or {}).get("license")
    if chosen and own and chosen != own:
        raise ValueError(
            f"license={shown(chosen)}, but the file's card says {shown(own)}: leave it out, or make the card anew"
        )
    license = chosen or own
    if license is not None and not (isinstance(license, str) and _LICENSE.fullmatch(license)):
        raise ValueError(f"license={shown(license)} is no name of a license: mit, apache-2.0, cc-by-4.0, other, ...")
    return license


def card(checkpoint: Checkpoint, name: str, license: str | None) -> str:
    """Write the page that a hub shows of a model, with the facts that its search reads at the top.

    Args:
        checkpoint: read from a file.
        name: how it is loaded.
        license: of the weights; None: nothing is said of it.

    Raises:
        ValueError: the file does not hold the weights of a model.
    """
    facts = describe(checkpoint)
    left_out = ("layout", "other entries", "bytes of the file")
    told = {
        label: text for label, text in facts.items() if label not in left_out and not label.startswith("bytes of _")
    }
    front = ["---", *([f"license: {license}"] if license else []), "library_name: tdmpc2"]
    front += ["pipeline_tag: reinforcement-learning", "tags:"]
    front += [*(f"- {tag}" for tag in _TAGS), "---"]
    more = {key: value for key, value in checkpoint.extra.items() if value is not None}
    lines = [
        *front,
        _OURS,
        "",
        f"# {name.removesuffix(f'/{WEIGHTS}').rstrip('/').rpartition('/')[2]}",
        "",
        "A TD-MPC2 world model of the tasks below, with the planner and policy that act by it. It was written by",
        f"TD-MPC-Opt {version()}; `model.safetensors` holds weights, configuration and checksums, `config.json` is for",
        "readers.",
        "",
        "```python",
        "from tdmpc2 import load_agent",
        "",
        f'agent = load_agent("{name}")',
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {escaped(facts[label]).replace('|', chr(92) + '|')} |" for label in told),
    ]
    if more:
        lines += ["", "## More", "", "```json", *json.dumps(more, indent=2, default=str).splitlines(), "```"]
    return "\n".join(lines) + "\n"


def push(checkpoint: Checkpoint, target: str | os.PathLike[str], how: Push, *, overwrite: bool = False) -> str:
    """Publish a checkpoint.

    A page (``README.md``) that its owner wrote stays; one of ours and the other two files are replaced by a new commit.

    Args:
        checkpoint: of any layout and precision.
        target: ``hf://user/name[@revision]``, or a folder of this machine.
        how: private or not, the message and the license.
        overwrite: replace the files of a folder.

    Returns:
        Where it is, in a line.

    Raises:
        ValueError: a file exists, a repository that was to be private is public, or the hub cannot be reached or
            refuses.
    """
    if not hub.is_hub_name(target):
        folder = Path(target).expanduser()
        write_folder(folder, checkpoint, f"{target}/{WEIGHTS}", how, overwrite=overwrite)
        return f"{folder}{_kept(how) if is_owners(folder / CARD) else ''}"
    wanted = repository_of(target)
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(Path(temporary), checkpoint, f"{hub.PREFIX}{wanted.repository}", how)

        def prepare(client: Any) -> tuple[bool, bool]:
            """Make the repository if it is not there; tell if it is private, and if it has a page of its owner's."""
            api = _api(client)
            # None, where nothing was asked for: an organisation may keep new repositories private
            api.create_repo(wanted.repository, private=how.private or None, exist_ok=True)
            private = how.private and api.repo_info(wanted.repository).private
            if not api.file_exists(wanted.repository, CARD, revision=wanted.revision):
                return private, False
            page = api.hf_hub_download(wanted.repository, CARD, revision=wanted.revision)
            return private, is_owners(Path(page))

        private, has_page = hub.ask(str(wanted), prepare)
        if how.private and not private:
            raise ValueError(f"{wanted.repository} is there already and public: leave out private, or name another one")

        def upload(client: Any) -> str:
            commit = _api(client).upload_folder(
                repo_id=wanted.repository,
                folder_path=temporary,
                commit_message=how.message,
                revision=wanted.revision,
                ignore_patterns=[CARD] if has_page else None,
            )
            return f"{commit.commit_url}{_kept(how) if has_page else ''}"

        return hub.ask(str(wanted), upload)


def _api(client: Any) -> Any:
    return client.HfApi(library_name="tdmpc2", library_version=version())


def repository_of(target: str | os.PathLike[str]) -> hub.HubName:
    """Read the name of a repository to write to.

    Raises:
        ValueError: it is none, or names a file.
    """
    wanted = hub.parse_name(target)
    if wanted.file is not None:
        raise ValueError(
            f"{wanted} names a file: a checkpoint is pushed as {CARD}, {CONFIG} and {WEIGHTS} of a repository"
        )
    return wanted


def preview(checkpoint: Checkpoint, target: str | os.PathLike[str], how: Push) -> list[str]:
    """Say in lines what :func:`push` would write, and write nothing.

    Raises:
        ValueError: see there.
    """
    name = str(repository_of(target)) if hub.is_hub_name(target) else f"{os.fspath(target)}/{WEIGHTS}"
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_folder(Path(temporary), checkpoint, name, how)
        lines = [f"{name}: nothing is written (dry_run)"]
        return lines + [f"  {path.name}: {path.stat().st_size:,} bytes" for path in paths] + [paths[0].read_text()]
