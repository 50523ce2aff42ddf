"""The Space: what is pushed is a page that runs by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from client import environment
from server import HubServer, User

pytest.importorskip("gradio", reason="the page needs the extra [app]")

from emformer_hub.app.space import space
from emformer_hub.pretrained import registry


def test_a_space_runs_with_its_own_package_and_weights(tmp_path: Path) -> None:
    for path, content in space().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content.encode() if isinstance(content, str) else content.read_bytes())
    code = (
        "import emformer_hub, emformer_hub.app.ui as page; from emformer_hub import EMformerModel\n"
        "print(emformer_hub.__file__, EMformerModel.from_pretrained('emformer-small').num_parameters())\n"
        "page.gr.Blocks.launch = lambda *args, **settings: print('launched', settings['ssr_mode'])\n"
        "exec(open('app.py').read())"
    )
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert str(tmp_path / "emformer_hub" / "__init__.py") in run.stdout
    assert "launched False" in run.stdout


def test_its_page_says_what_the_hub_needs_to_run_it() -> None:
    files = space()
    front = yaml.safe_load(str(files["README.md"]).split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] in files
    assert front["models"] == [weights.repo_id for weights in registry().values()]
    needed = str(files["requirements.txt"]).splitlines()
    assert {"torch>=2.6", "transformers>=5.23"} <= set(needed)
    assert not any("gradio" in line or "pytest" in line or "emformer" in line for line in needed)


def test_the_readme_of_a_space_is_one_that_the_hub_takes() -> None:
    short = yaml.safe_load(str(space()["README.md"]).split("---")[1])["short_description"]
    assert len(short) <= 60


def test_it_is_pushed_in_one_commit_and_read_back(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "emformer_hub.cli", "push-space", "--repo-id", "lab/emformer"]
    with HubServer(tmp_path / "hub", {"hf_alice": User("alice", ("lab",))}).running() as server:
        settings = environment(server, tmp_path / "home", "hf_alice")
        run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert "/spaces/lab/emformer/commit/" in run.stdout
        fetch = (
            "from huggingface_hub import HfApi, snapshot_download\n"
            "print(len(HfApi().list_repo_commits('lab/emformer', repo_type='space')))\n"
            "print(snapshot_download('lab/emformer', repo_type='space'))"
        )
        got = subprocess.run([sys.executable, "-c", fetch], env=settings, capture_output=True, text=True, check=True)
        commits, folder = got.stdout.split()
    assert int(commits) == 2  # that which made the repository, and this one
    for path, content in space().items():
        there = (Path(folder) / path).read_bytes()
        assert there == (content.encode() if isinstance(content, str) else content.read_bytes())


def test_what_cannot_be_pushed_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "emformer_hub.cli", "push-space", "--repo-id", "other/emformer"]
    with HubServer(tmp_path / "hub", {"hf_alice": User("alice", ("lab",))}).running() as server:
        for token, message in ((None, "needs a login"), ("hf_alice", "not as other")):
            settings = environment(server, tmp_path / "home", token)
            run = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
            assert run.returncode == 2 and message in run.stderr
