"""Models on the Hub: pushed, loaded back by their id, and what happens when networks, servers and people fail."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from click.testing import CliRunner
from client import Client, client_process, environment, waits
from server import HubServer, User

from emformer_hub import doctor, model_files, pretrained
from emformer_hub.adapters import add_adapter, load_adapter
from emformer_hub.cli import main
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.hub.download import download as fetch
from emformer_hub.hub.licences import combined
from emformer_hub.hub.push import Published, check_publishable, contents, push
from emformer_hub.hub.stored_outputs import TOLERANCE, largest_difference
from emformer_hub.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import Superseded, registry
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes.phantom import neuropil

ROOT = Path(__file__).parents[2]
NAME = "emformer-small"
PAGE = registry()[NAME].folder
REPO_ID = registry()[NAME].repo_id
USERS = {
    "hf_alice": User("alice", ("lab", REPO_ID.split("/")[0])),
    "hf_reader": User("bob", ("lab",), role="read"),
    "hf_stranger": User("carol"),
}
CLIP = torch.linspace(-1, 1, 6 * 6 * 32).sin().reshape(1, 6, 6, 32)
LICENSED = "---\nlicense: cc-by-4.0\n---\n\n# mine\n"
NUMBERS = itertools.count(1)
METHODS = pytest.mark.parametrize("method", ["lora", "dora"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub"), USERS).running() as hub:
        yield hub


@pytest.fixture(autouse=True)
def every_fault_was_met(server: HubServer) -> Iterator[None]:
    yield
    server.faults.clear()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(server: HubServer, home: Path) -> Iterator[Client]:
    with client_process(environment(server, home, "hf_alice")) as process:
        yield process


@pytest.fixture(scope="module")
def offline(server: HubServer, home: Path) -> Iterator[Client]:
    with client_process(environment(server, home, None, HF_HUB_OFFLINE="1")) as process:
        yield process


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"lab/{request.function.__name__[5:60]}-{next(NUMBERS)}"


# --- what a client does, in its own process ----------------------------------------------------------------------


def output(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(CLIP, 4.0).reconstruction.numpy()


def load(name: str, **options: Any) -> np.ndarray:
    """What the model of this name makes of the clip."""
    return output(EMformerModel.from_pretrained(name, **options))


def load_by_adapter(name: str, **options: Any) -> np.ndarray:
    return output(load_adapter(name, **options))


def load_by_command(name: str, out: Path) -> np.ndarray:
    result = CliRunner().invoke(main, ["merge", name, str(out)])
    assert result.exit_code == 0, result.output
    EMformerProcessor.from_pretrained(out)
    return output(EMformerModel.from_pretrained(out))


def quantiles(name: str, **options: Any) -> dict[str, list[float]]:
    return EMformerProcessor.from_pretrained(name, **options).error_quantiles


def percentiles(name: str, **options: Any) -> list[float]:
    return EMformerProcessor.from_pretrained(name, **options).percentiles


def origin(name: str, **options: Any) -> tuple[str, str | None]:
    model = EMformerModel.from_pretrained(name, **options)
    return model.name_or_path, model.hub_revision


def upload(folder: Path, repo_id: str, tag: str | None = None, private: bool = False) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, exist_ok=True, private=private)
    commit = api.upload_folder(repo_id=repo_id, folder_path=folder)
    if tag:
        api.create_tag(repo_id, tag=tag)
    return commit.oid


def tag(repo_id: str, name: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_tag(repo_id, tag=name)


def download(repo_id: str, file: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, file, **options))


def refusal(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    """What the user is told; every other exception is a bug."""
    try:
        function(*args, **options)
    except InputError as error:
        return str(error)
    raise AssertionError(f"{function.__name__} did what was asked")


def as_user(token: str | None, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call a function as somebody else, or, without a token, as nobody."""
    kept = os.environ.pop("HF_TOKEN")
    os.environ.update({"HF_TOKEN": token} if token else {})
    try:
        return function(*args, **options)
    finally:
        os.environ["HF_TOKEN"] = kept


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- folders to push ---------------------------------------------------------------------------------------------


def disturbed(model: torch.nn.Module, part: str, seed: int) -> torch.nn.Module:
    """The weights whose names hold ``part`` become others."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def write_adapter(folder: Path, method: str = "lora", base: str = NAME, seed: int = 0) -> np.ndarray:
    """Write an adapter with weights that do something; return what it makes of the clip, merged."""
    adapted = add_adapter(EMformerModel.from_pretrained(base), base=base, rank=4, alpha=8, dora=method == "dora")
    disturbed(adapted, "lora_B", seed)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    EMformerProcessor().save_pretrained(folder)
    (folder / "README.md").write_text(LICENSED)
    return output(adapted.merge_and_unload())


def write_model(folder: Path, seed: int = 0) -> np.ndarray:
    """Write a small model of random weights; return what it makes of the clip."""
    torch.manual_seed(seed)
    config = EMformerConfig(hidden_size=16, num_hidden_layers=2, window_size=[2, 2, 4])
    model = disturbed(EMformerModel(config), "", seed)
    model.save_pretrained(folder)
    EMformerProcessor(percentiles=(1.0 + seed, 99.0)).save_pretrained(folder)
    (folder / "README.md").write_text(LICENSED)
    return output(model)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, np.ndarray]:
    return tmp_path / "tiny", write_model(tmp_path / "tiny")


# --- the server itself -------------------------------------------------------------------------------------------


def exercise(repo_id: str, folder: Path) -> None:
    """The ways of the client that the other tests build on."""
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_session, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi()
    assert api.whoami()["name"] == "alice"
    assert api.create_repo(repo_id).repo_id == repo_id
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo_id)
    first = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="first").oid
    assert api.upload_folder(repo_id=repo_id, folder_path=folder).oid == first  # nothing changed
    api.create_tag(repo_id, tag="v1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(repo_id, tag="v1")
    api.create_branch(repo_id, branch="side/way")

    def add_notes(text: bytes, **where: Any) -> CommitInfo:
        change = CommitOperationAdd("below/notes.txt", text)
        return api.create_commit(repo_id, [change], commit_message="notes", **where)

    assert add_notes(b"two lines\nof text\n", create_pr=True).pr_num == 1
    add_notes(b"on the branch", revision="side/way", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="412"):
        add_notes(b"too late", revision="side/way", parent_commit=first)
    names = {file.path for file in api.list_repo_tree(repo_id, revision="side/way", recursive=True)}
    assert names == {*os.listdir(folder), ".gitattributes", "below", "below/notes.txt"}
    (notes,) = api.get_paths_info(repo_id, ["below/notes.txt", "nothing"], revision="refs/pr/1")
    (weights,) = api.get_paths_info(repo_id, "model.safetensors")
    assert notes.size == 18 and weights.lfs.sha256 == sha256((folder / "model.safetensors").read_bytes())
    api.delete_folder("below", repo_id, revision="side/way")
    api.delete_file("README.md", repo_id)
    refs = api.list_repo_refs(repo_id, include_pull_requests=True)
    assert {ref.name: ref.target_commit == first for ref in [*refs.branches, *refs.tags, *refs.pull_requests]} == {
        "main": False,
        "side/way": False,
        "v1": True,
        "refs/pr/1": False,
    }
    assert [commit.title for commit in api.list_repo_commits(repo_id)][1:] == ["first", "initial commit"]
    assert api.model_info(repo_id, revision="v1").card_data.license == "cc-by-4.0"
    assert "README.md" not in {one.rfilename for one in api.model_info(repo_id).siblings}
    for old in ("v1", first):  # what was committed stays
        snapshot = Path(snapshot_download(repo_id, revision=old))
        assert snapshot.name == first
        for path in folder.iterdir():
            assert (snapshot / path.name).read_bytes() == path.read_bytes()

    with pytest.raises(EntryNotFoundError):
        download(repo_id, "README.md")
    with pytest.raises(RevisionNotFoundError):
        download(repo_id, "README.md", revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("lab/nothing")
    with pytest.raises(HfHubHTTPError, match="403"):
        as_user("hf_stranger", api.delete_file, "config.json", repo_id)
    with pytest.raises(HfHubHTTPError, match="401"):
        as_user("hf_wrong", api.model_info, repo_id)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\na: b: c\n---\n", path_in_repo="README.md", repo_id=repo_id)
    api.create_repo("lab/secret", private=True)
    assert api.model_info("lab/secret").private
    for token in ("hf_stranger", None):
        with pytest.raises(RepositoryNotFoundError):
            as_user(token, api.model_info, "lab/secret")
    api.delete_repo("lab/secret")
    assert not api.repo_exists("lab/secret")
    part = get_session().get(f"{api.endpoint}/{repo_id}/resolve/v1/config.json", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, (folder / "config.json").read_bytes()[2:6])


def test_the_server_does_what_the_client_expects_of_the_hub(client: Client, repo_id: str) -> None:
    client(exercise, repo_id, PAGE)


def test_the_hf_command_works_with_it(server: HubServer, home: Path, tmp_path: Path, repo_id: str) -> None:
    hf = Path(sys.executable).with_name("hf")
    for words in (
        ["auth", "whoami"],
        ["upload", repo_id, str(PAGE), "."],
        ["download", repo_id, "--local-dir", str(tmp_path)],
    ):
        settings = environment(server, home, "hf_alice")
        run = subprocess.run([hf, *words], check=False, capture_output=True, text=True, timeout=600, env=settings)
        assert run.returncode == 0, run.stderr
    for path in PAGE.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def transform(folder: Path, repo_id: str) -> np.ndarray:
    """The ways of transformers."""
    from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor

    EMformerModel.from_pretrained(folder).push_to_hub(repo_id)
    EMformerProcessor.from_pretrained(folder).push_to_hub(repo_id)
    for auto in (AutoFeatureExtractor, AutoProcessor):
        assert auto.from_pretrained(repo_id).percentiles == EMformerProcessor.from_pretrained(folder).percentiles
    return output(AutoModel.from_pretrained(repo_id))


def test_transformers_works_with_it(client: Client, tiny: tuple[Path, np.ndarray], repo_id: str) -> None:
    assert np.array_equal(client(transform, tiny[0], repo_id), tiny[1])
    assert np.array_equal(client(load, repo_id), tiny[1])


# --- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [upload, push])
def test_a_pushed_model_comes_back_to_the_bit(
    server: HubServer, client: Client, repo_id: str, way: Callable[..., str]
) -> None:
    client(way, PAGE, repo_id)
    client(tag, repo_id, "v1")
    pushed = set(server.repository(repo_id).head.files) - {".gitattributes"}
    assert pushed == set(contents(PAGE) if way is push else os.listdir(PAGE))
    server.write(repo_id, {"config.json": b"{}", "model.safetensors": b"later"})  # a tag stays where it is
    assert np.array_equal(client(load, repo_id, revision="v1"), load(NAME))
    weights = client(download, repo_id, "model.safetensors", revision="v1")
    assert sha256(weights.read_bytes()) == registry()[NAME].sha256
    assert client(quantiles, repo_id, revision="v1") == quantiles(NAME)
    commit = server.repository(repo_id).find("v1").sha
    assert client(origin, repo_id, revision="v1") == (repo_id, commit) and client(origin, NAME) == (NAME, None)


def test_an_older_revision_of_a_bundled_model_is_fetched_by_its_name(
    server: HubServer, client: Client, offline: Client, tmp_path: Path
) -> None:
    old = disturbed(EMformerModel.from_pretrained(NAME), "decoder", seed=1)
    expected = output(old)
    old.save_pretrained(tmp_path / "old")
    EMformerProcessor(percentiles=(2.0, 98.0)).save_pretrained(tmp_path / "old")
    client(upload, tmp_path / "old", REPO_ID, tag="v0-old")
    client(push, PAGE, REPO_ID)
    assert not np.array_equal(expected, load(NAME))
    for name in (NAME, REPO_ID):
        assert np.array_equal(client(load, name, revision="v0-old"), expected)
    assert client(percentiles, NAME, revision="v0-old") == [2.0, 98.0]
    calls = len(server.log)
    assert np.array_equal(client(load, NAME), load(NAME)) and len(server.log) == calls  # the bundle's needs no Hub
    assert np.array_equal(offline(load, NAME, revision="v0-old"), expected)  # now from the cache
    assert offline(percentiles, NAME, revision="v0-old") == [2.0, 98.0] and len(server.log) == calls
    assert "Without a network" in offline(refusal, load, NAME, revision="v9")
    told = "has no revision 'v9' on the Hub; expected one of v0-old, main, or a commit"
    for function in (load, percentiles, EMformerConfig.from_pretrained):
        assert client(refusal, function, NAME, revision="v9") == f"{NAME} {told}."


def test_a_private_model_needs_its_owner(client: Client, tiny: tuple[Path, np.ndarray], repo_id: str) -> None:
    folder, expected = tiny
    client(upload, folder, repo_id, private=True)
    for token in ("hf_stranger", None):
        assert "Repository Not Found" in client(as_user, token, refusal, load, repo_id)
    assert np.array_equal(client(load, repo_id), expected)
    assert np.array_equal(client(as_user, None, load, repo_id, token="hf_alice", force_download=True), expected)
    assert "Invalid credentials" in client(as_user, "hf_wrong", refusal, load, repo_id, force_download=True)


def test_a_repository_without_a_model_says_what_is_missing(server: HubServer, client: Client, repo_id: str) -> None:
    client(upload, ROOT / "emformer_hub" / "hub", repo_id)
    assert f"{repo_id} holds no config.json; expected config.json and" in client(refusal, load, repo_id)
    server.write(repo_id, {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"pickled"})
    assert f"{repo_id} holds no model.safetensors" in client(refusal, load, repo_id)
    server.write(repo_id, {"model.safetensors": b"not really"})
    assert f"{repo_id} is a config of model type 'bert'; expected 'emformer'" in client(refusal, load, repo_id)
    server.write(repo_id, {ADAPTER_CONFIG: b"{}"})
    assert f"{repo_id} holds no {ADAPTER_WEIGHTS}" in client(refusal, load, repo_id)
    assert "Repository Not Found" in client(refusal, load, "lab/nothing")


# --- adapters ----------------------------------------------------------------------------------------------------


@METHODS
def test_an_adapter_comes_back_on_its_bundled_base(
    server: HubServer, client: Client, offline: Client, tmp_path: Path, repo_id: str, method: str
) -> None:
    expected = write_adapter(tmp_path / "mine", method)
    client(push, tmp_path / "mine", repo_id)
    client(tag, repo_id, "v1")
    server.write(repo_id, {ADAPTER_WEIGHTS: b"later"})
    calls = len(server.log)
    assert np.abs(expected - load(NAME)).max() > 0.01
    assert np.array_equal(client(load, repo_id, revision="v1"), expected)
    apart = client(load_by_adapter, repo_id, revision="v1")
    assert np.array_equal(apart, load_by_adapter(str(tmp_path / "mine")))
    np.testing.assert_allclose(apart, expected, rtol=0, atol=1e-5)
    weights = client(download, repo_id, ADAPTER_WEIGHTS, revision="v1")
    assert weights.read_bytes() == (tmp_path / "mine" / ADAPTER_WEIGHTS).read_bytes()
    assert client(quantiles, repo_id) == EMformerProcessor().error_quantiles
    assert all(repo_id in call for call in server.log[calls:])  # the base is bundled, and needs no Hub
    assert np.array_equal(offline(load, repo_id, revision="v1"), expected)


def test_an_adapter_on_the_hub_is_merged_into_plain_weights(client: Client, tmp_path: Path, repo_id: str) -> None:
    expected = write_adapter(tmp_path / "mine", "dora")
    client(push, tmp_path / "mine", repo_id)
    assert np.array_equal(client(load, repo_id), expected)
    assert np.array_equal(client(load_by_command, repo_id, tmp_path / "out"), expected)
    assert not (tmp_path / "out" / ADAPTER_CONFIG).exists()


def adapt(folder: Path, base: str) -> np.ndarray:
    return write_adapter(folder, base=base)


def test_an_adapter_keeps_the_base_that_it_was_trained_on(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    base = f"{repo_id}-base"
    client(push, tiny[0], base)
    expected = client(adapt, tmp_path / "mine", base)
    client(push, tmp_path / "mine", repo_id)
    config = json.loads(server.read(repo_id, ADAPTER_CONFIG))
    head = server.repository(base).head.sha
    assert (config["base_model_name_or_path"], config["revision"]) == (base, head)
    write_model(tmp_path / "other", seed=1)
    client(push, tmp_path / "other", base)
    assert np.array_equal(client(load, repo_id), expected)
    server.drop(base)
    assert np.array_equal(client(load, repo_id), expected)  # from the cache
    told = client(refusal, load, repo_id, cache_dir=tmp_path / "empty")
    assert f"{repo_id} is an adapter on '{base}', which cannot be loaded: {base}: cannot be loaded" in told


# --- what is pushed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "repo_id", "base", "message"),
    [
        (None, "lab/mine", None, "needs a login: run 'hf auth login', or set HF_TOKEN"),
        ("hf_wrong", "lab/mine", None, "the Hub cannot be used: Invalid user token"),
        ("hf_reader", "lab/mine", None, "the token of bob may only read"),
        ("hf_alice", "other/mine", None, "alice may publish as alice or lab or emformer-hub, not as other"),
        ("hf_alice", "mine", None, "It names no owner. Expected ORG/NAME"),
        ("hf_alice", "lab/a--b", None, "Expected ORG/NAME"),
        ("hf_alice", "lab/mine/too", None, "Expected ORG/NAME"),
        ("hf_alice", "lab/mine", str(PAGE), "is a folder on this machine; publish it first"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_the_work(
    server: HubServer,
    client: Client,
    tiny: tuple[Path, np.ndarray],
    token: str | None,
    repo_id: str,
    base: str | None,
    message: str,
) -> None:
    assert message in client(as_user, token, refusal, check_publishable, base, repo_id)
    if base is None:
        assert message in client(as_user, token, refusal, push, tiny[0], repo_id)
    assert ("model", repo_id) not in server.repositories


def test_an_adapter_whose_base_is_on_this_machine_is_not_pushed(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    write_adapter(tmp_path / "mine", base=str(tiny[0]))
    assert "is a folder on this machine; publish it first" in client(refusal, push, tmp_path / "mine", repo_id)
    assert ("model", repo_id) not in server.repositories


def test_a_hub_out_of_reach_is_told_before_the_work(server: HubServer, client: Client) -> None:
    server.faults.add("whoami", cut_download=0)
    told = client(refusal, check_publishable, None, "lab/mine")
    assert told.startswith("lab/mine cannot be published: the Hub cannot be used: peer closed connection")
    server.faults.add("whoami", status=500, message="we are moving house")
    assert "500 Internal Server Error" in (told := client(refusal, check_publishable, None, "lab/mine"))
    assert "we are moving house" in told
    client(check_publishable, None, "lab/mine")
    client(check_publishable, REPO_ID, "alice/mine")


def test_a_busy_hub_is_asked_again_as_late_as_it_wants(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    client(waits)
    server.faults.add("preupload", status=500, times=2)
    server.faults.add("batch", status=429, retry_after=7)
    server.faults.add("upload", cut_upload=1000, times=2)
    client(push, tiny[0], repo_id)
    assert {1, 2, 8} <= set(client(waits))
    assert np.array_equal(client(load, repo_id), tiny[1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"call": "create", "status": 500, "message": "try later"}, "500 Internal Server Error.*try later"),
        ({"call": "validate-yaml", "cut_download": 0}, "peer closed connection"),
        ({"call": "upload", "cut_upload": 1000, "times": 6}, r"Error while uploading 'model\.safetensors'.*: \S"),
        ({"call": "verify", "status": 404, "message": "it is lost"}, r"'model\.safetensors'.*it is lost"),
        ({"call": "commit", "status": 507, "message": "the disk is full"}, "507 Insufficient.*the disk is full"),
        ({"call": "commit", "status": 429, "message": "wait an hour"}, "429 Too Many Requests.*wait an hour"),
        ({"call": "commit", "status": 500, "message": "it broke"}, "500 Internal Server Error.*it broke"),
        ({"call": "commit", "cut_upload": 100}, r"\S"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_push_that_fails_changes_nothing_and_says_why(
    server: HubServer, client: Client, tmp_path: Path, repo_id: str, fault: dict[str, Any], message: str
) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    before, after = write_model(first), write_model(second, seed=1)
    (second / "README.md").write_text("---\nlicense: mit\n---\n")
    client(upload, first, repo_id)
    head = server.repository(repo_id).head
    server.faults.add(**fault)
    told = client(refusal, push, second, repo_id)
    assert re.match(f"{repo_id}: the upload failed: .*{message}", told), told
    assert told.endswith(
        f"The result in {second} is complete; 'emformer-hub push {second} --repo-id {repo_id}' uploads it again."
    )
    assert server.repository(repo_id).head is head
    assert np.array_equal(client(load, repo_id), before)
    client(push, second, repo_id)
    assert np.array_equal(client(load, repo_id), after)


def test_a_repository_that_vanishes_is_named(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    server.faults.add("preupload", before=lambda hub: hub.drop(repo_id))
    told = client(refusal, push, tiny[0], repo_id)
    assert f"{repo_id}: the upload failed: Repository Not Found for url" in told
    client(push, tiny[0], repo_id)
    assert np.array_equal(client(load, repo_id), tiny[1])


def test_a_push_whose_answer_is_lost_is_not_made_twice(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    server.faults.add("commit", cut_download=0)
    client(refusal, push, tiny[0], repo_id)
    commits = len(server.repository(repo_id).commits)
    assert client(push, tiny[0], repo_id).url.endswith(server.repository(repo_id).head.sha)
    assert len(server.repository(repo_id).commits) == commits


def holds(server: HubServer, repo_id: str, folder: Path) -> bool:
    """Whether a repository is now what a folder is, and nothing else."""
    files = {path: server.read(repo_id, path) for path in server.repository(repo_id).head.files}
    del files[".gitattributes"]
    return files == {
        path: content if isinstance(content, bytes) else content.read_bytes()
        for path, content in contents(folder).items()
    }


def pushes_at_once(folders: list[Path], repo_id: str) -> list[Published]:
    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(push, folders, [repo_id] * len(folders)))


def test_two_pushes_at_once_leave_one_whole_state(
    server: HubServer, client: Client, tmp_path: Path, repo_id: str
) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    outputs = [write_model(folder, seed) for seed, folder in enumerate(folders)]
    client(push, folders[0], repo_id)  # so that one of them finds nothing to change, until the other has been there
    for folder in folders:
        (folder / "notes.txt").write_text(folder.name)
    both = threading.Barrier(2)
    server.faults.add("preupload", times=2, before=lambda hub: both.wait(timeout=600))
    client(pushes_at_once, folders, repo_id)
    (winner,) = [k for k, folder in enumerate(folders) if holds(server, repo_id, folder)]
    assert np.array_equal(client(load, repo_id), outputs[winner])
    assert [commit.title for commit in server.repository(repo_id).history("main")].count("EMformer weights") == 3


def test_a_commit_of_somebody_else_is_never_mixed_with_a_push(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    folder, expected = tiny
    client(push, folder, repo_id)
    (folder / "notes.txt").write_text("only this is new")
    write_model(tmp_path / "other", seed=1)
    others = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    server.faults.add("commit", before=lambda hub: hub.write(repo_id, others))
    client(push, folder, repo_id)
    assert holds(server, repo_id, folder)
    assert np.array_equal(client(load, repo_id), expected)
    (folder / "notes.txt").write_text("and this")
    server.faults.add("commit", times=5, before=lambda hub: hub.write(repo_id, others))
    assert "412 Precondition Failed" in client(refusal, push, folder, repo_id)


def test_what_states_no_licence_is_not_published(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    folder, _ = tiny
    for page in ("# mine\n", None):
        (folder / "README.md").write_text(page) if page else (folder / "README.md").unlink()
        for words in ([], ["--dry-run"]):
            status, _, errors = client(command, "push", str(folder), "--repo-id", repo_id, *words)
            assert status == 2 and "states no licence" in errors and "--licence CC-BY-4.0" in errors
        assert ("model", repo_id) not in server.repositories
    status, _, errors = client(command, "push", str(folder), "--repo-id", repo_id, "--licence", "CC BY 4.0")
    assert status == 0, errors
    assert server.read(repo_id, "README.md").startswith(b"---\nlicense: cc-by-4.0\n")
    assert not (folder / "README.md").exists()  # what is published states it


def test_a_merged_adapter_has_the_page_of_the_adapter(
    server: HubServer, client: Client, tmp_path: Path, repo_id: str
) -> None:
    write_adapter(tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text(
        "---\nlicense: cc-by-nc-4.0\nlibrary_name: peft\nbase_model: emformer-hub/emformer-small\n"
        'base_model_relation: adapter\n---\n\n# mine\n\nreconstruct(stack, factor=10, model="mine")\n\n'
        "## Did it help?\n\n+0.22 dB\n"
    )
    (tmp_path / "mine" / "report.json").write_text("{}")
    client(push, tmp_path / "mine", repo_id)
    for number, name in enumerate([str(tmp_path / "mine"), repo_id]):
        client(load_by_command, name, tmp_path / f"merged{number}")
        client(push, tmp_path / f"merged{number}", f"{repo_id}-{number}")
        page = server.read(f"{repo_id}-{number}", "README.md").decode()
        front = yaml.safe_load(page.split("---")[1])
        assert front["license"] == "cc-by-nc-4.0" and front["library_name"] == "transformers"
        assert (front["base_model"], front["base_model_relation"]) == ("emformer-hub/emformer-small", "finetune")
        assert f"# merged{number}\n" in page and f'model="merged{number}"' in page
        assert "+0.22 dB" in page and "merged into its base" in page
        assert server.read(f"{repo_id}-{number}", "report.json") == b"{}"
    (tmp_path / "mine" / "README.md").unlink()
    client(load_by_command, str(tmp_path / "mine"), tmp_path / "bare")
    assert "base_model: emformer-hub/emformer-small" in (tmp_path / "bare" / "README.md").read_text()
    assert "license" not in (tmp_path / "bare" / "README.md").read_text()  # nobody knows what it was trained on


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "CC BY", "Apache-2.0"], "cc-by-4.0"),
        (["CC-BY-4.0", "CC BY-NC-SA 4.0"], "cc-by-nc-sa-4.0"),
        (["CC BY 4.0", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["CC BY-SA 4.0", "CC BY-NC 4.0"], None),  # to be shared alike, and not to be sold
        (["CC BY-ND 4.0", "MIT"], None),
        (["CC BY 4.0", None], None),
        (["CC BY 4.0", "ask us"], None),
        (["MIT"], None),
    ],
)
def test_a_licence_follows_from_those_of_base_and_data(licences: list[str | None], expected: str | None) -> None:
    assert combined(licences) == expected


def test_a_model_replaces_an_adapter_and_the_other_way_round(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    adapter = tmp_path / "mine"
    adapted = write_adapter(adapter)
    for folder, expected in ((adapter, adapted), tiny, (adapter, adapted)):
        client(push, folder, repo_id)
        server.write(repo_id, {"figure.png": b"somebody's own"})
        assert np.array_equal(client(load, repo_id), expected)
    client(push, tiny[0], repo_id)
    assert server.read(repo_id, "figure.png") == b"somebody's own"


def test_what_only_resumes_a_run_is_not_published(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    folder, _ = tiny
    published = set(contents(folder))
    for name in ("log.jsonl", "checkpoint/model.safetensors", ".checkpoint-1/state.json", "emformer/events", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    client(push, folder, repo_id)
    assert set(server.repository(repo_id).head.files) == published | {".gitattributes"}


# --- tags, pull requests, the family -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry())
def test_a_published_model_goes_there_and_back(
    server: HubServer, client: Client, tmp_path: Path, name: str, repo_id: str
) -> None:
    weights = registry()[name]
    published = client(push, weights.folder, repo_id, revision=weights.revision)
    assert (published.revision, published.sha256, published.size) == (weights.revision, weights.sha256, weights.size)
    assert holds(server, repo_id, weights.folder)
    commit = server.repository(repo_id).find(weights.revision)
    assert published.url.endswith(commit.sha)
    assert np.array_equal(client(load, repo_id, revision=weights.revision), load(name))
    folder = client(fetch, repo_id, tmp_path, revision=weights.revision)
    assert folder.name == repo_id.partition("/")[2]
    assert (folder / "README.md").read_bytes() == (weights.folder / "README.md").read_bytes()
    assert largest_difference(EMformerModel.from_pretrained(folder), folder) < TOLERANCE


def test_a_tag_is_never_moved(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    folder, expected = tiny
    first = client(push, folder, repo_id, revision="v1")
    (folder / "README.md").write_text(f"{LICENSED}a better page")
    assert client(push, folder, repo_id, revision="v1").sha256 == first.sha256  # the page is new, the weights are not
    assert server.read(repo_id, "README.md") == f"{LICENSED}a better page".encode()
    write_model(tmp_path / "other", seed=1)
    told = client(refusal, push, tmp_path / "other", repo_id, revision="v1")
    assert f"{repo_id} has a tag v1 already, of other weights (sha256 {first.sha256[:12]}…)" in told
    assert np.array_equal(client(load, repo_id), expected)
    assert np.array_equal(client(load, repo_id, revision="v1"), expected)


def test_a_tag_that_failed_is_set_by_the_next_push(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    server.faults.add("tag", status=500, message="try later")
    assert "500 Internal Server Error" in client(refusal, push, tiny[0], repo_id, revision="v1")
    commits = len(server.repository(repo_id).commits)
    assert client(push, tiny[0], repo_id, revision="v1").revision == "v1"
    assert len(server.repository(repo_id).commits) == commits
    assert np.array_equal(client(load, repo_id, revision="v1"), tiny[1])


def test_a_pull_request_changes_nothing_until_it_is_merged(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    client(push, tiny[0], repo_id)
    proposed = write_model(tmp_path / "better", seed=1)
    request = client(push, tmp_path / "better", repo_id, create_pr=True)
    assert request.revision == "refs/pr/1" and request.url.endswith("/discussions/1")
    assert np.array_equal(client(load, repo_id), tiny[1])
    assert np.array_equal(client(load, repo_id, revision="refs/pr/1"), proposed)
    assert "a pull request is not tagged" in client(refusal, push, tiny[0], repo_id, revision="v2", create_pr=True)


def command(*words: str) -> tuple[int, str, str]:
    """Exit status, output and errors of ``emformer-hub``."""
    result = CliRunner().invoke(main, words)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_publishes_the_family_and_prints_what_a_registry_states(
    server: HubServer, client: Client, tmp_path: Path
) -> None:
    for weights in registry().values():
        if ("model", weights.repo_id) in server.repositories:
            server.drop(weights.repo_id)
    assert "  model.safetensors" in client(command, "push", "--all", "--dry-run")[1]
    assert not any(("model", weights.repo_id) in server.repositories for weights in registry().values())
    status, printed, errors = client(command, "push", "--all")
    assert status == 0, errors
    for weights, record in zip(registry().values(), json.loads(printed), strict=True):
        stated = (weights.repo_id, weights.revision, weights.sha256, weights.size)
        assert tuple(record[key] for key in ("repo_id", "revision", "sha256", "size")) == stated
        assert server.repository(weights.repo_id).find(weights.revision)
    _, again, _ = client(command, "push", "--all")
    assert [record["sha256"] for record in json.loads(again)] == [w.sha256 for w in registry().values()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push"], "give NAME_OR_DIR, or --all"),
        (["push", "--all", "--repo-id", "lab/all"], "which takes no --repo-id"),
        (["push", "emformer-smal"], "'emformer-smal' is not published; expected one of emformer-small"),
        (["push", "."], ". is a folder; give --repo-id ORG/NAME"),
        (["push", ".", "--repo-id", "lab/x"], ". holds no config.json"),
        (["download", "--to", "there"], "give one NAME or more, or --all"),
        (["download", "emformer-smal", "--to", "there"], "'emformer-smal' is not known"),
        (["download", ".", "--to", "there"], ". is already a folder on this machine"),
    ],
)
def test_a_mistake_in_publishing_is_a_message_and_exit_status_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = command(*words)
    assert status == 2 and message in errors, errors
    assert list(tmp_path.iterdir()) == []


# --- where only transformers and einops are installed ------------------------------------------------------------

ALONE = """
import importlib.util, sys
assert not any(map(importlib.util.find_spec, ("emformer_hub", "peft", "accelerate", "zarr", "tifffile")))
import numpy, torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True).percentiles == processor.percentiles
pipe = pipeline("image-to-image", model=sys.argv[1], trust_remote_code=True)  # as the Hub prints for the page's tag
stack = numpy.arange(6 * 8 * 32, dtype="uint8").reshape(6, 8, 32)
clip = torch.linspace(-1, 1, 6 * 6 * 32).sin().reshape(1, 6, 6, 32)
with torch.inference_mode():
    out = model(clip, 3.5, thickness=0.5)
piped = pipe(stack, factor=3.5, thickness=0.5)["reconstruction"]
numpy.savez(sys.argv[2], output=out.reconstruction.numpy(), percentiles=processor.percentiles, stack=stack, piped=piped)
"""


def loaded_alone(
    name: str, where: str, server: HubServer, home: Path, folder: Path, lacking: str = ""
) -> subprocess.CompletedProcess[str]:
    """Load with the packages of this environment, without ours, what only ours needs, and one more if named."""
    packages = folder / "packages"
    packages.mkdir()
    left_out = "|".join(filter(None, ["emformer", "peft", "accelerate", "zarr", "tifffile", r".*\.pth", lacking]))
    for path in Path(torch.__file__).parents[1].iterdir():
        if not re.match(rf"_?({left_out})", path.name):
            (packages / path.name).symlink_to(path)
    alone = {"PYTHONPATH": str(packages), "HF_MODULES_CACHE": str(folder / "modules"), **OFFLINE[where]}
    settings = environment(server, home, None, **alone)
    words = [sys.executable, "-S", "-c", ALONE, name, str(folder / "out.npz")]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=600, cwd=folder, env=settings)


@pytest.mark.parametrize("where", ["folder", "Hub"])
def test_transformers_and_einops_load_what_was_pushed(
    server: HubServer, home: Path, client: Client, tmp_path: Path, repo_id: str, where: str
) -> None:
    client(push, PAGE, repo_id)
    name = repo_id if where == "Hub" else str(client(fetch, repo_id, tmp_path))
    run = loaded_alone(name, where, server, home, tmp_path)
    assert run.returncode == 0, run.stderr
    found = np.load(tmp_path / "out.npz")
    with torch.inference_mode():
        expected = EMformerModel.from_pretrained(NAME).eval()(CLIP, 3.5, thickness=0.5).reconstruction
    assert np.array_equal(found["output"], expected.numpy())
    settings = {"model": NAME, "ensemble": 1, "precision": "float32", "device": "cpu", "progress": False}
    whole = reconstruct(found["stack"], factor=3.5, thickness=0.5, **settings)
    np.testing.assert_allclose(found["piped"].astype(int), whole.volume, atol=1)
    assert found["percentiles"].tolist() == EMformerProcessor.from_pretrained(NAME).percentiles


def test_without_einops_the_package_that_is_missing_is_named(
    server: HubServer, home: Path, client: Client, tmp_path: Path, repo_id: str
) -> None:
    client(push, PAGE, repo_id)
    run = loaded_alone(str(client(fetch, repo_id, tmp_path)), "folder", server, home, tmp_path, lacking="einops")
    assert run.returncode != 0 and "pip install einops" in run.stderr


OFFLINE: dict[str, dict[str, str]] = {"folder": {"HF_HUB_OFFLINE": "1"}, "Hub": {}}


# --- whole folders, for machines without a network ---------------------------------------------------------------


def test_downloaded_models_need_no_network(
    server: HubServer, client: Client, offline: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    client(push, tiny[0], repo_id)
    status, _, errors = client(command, "download", repo_id, "emformer-tiny", "--to", str(tmp_path / "there"))
    assert status == 0, errors
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(["emformer-tiny", repo_id[4:]])
    calls = len(server.log)
    assert np.array_equal(offline(load, str(tmp_path / "there" / repo_id[4:])), tiny[1])
    assert np.array_equal(offline(load, str(tmp_path / "there" / "emformer-tiny")), load("emformer-tiny"))
    assert len(server.log) == calls
    assert "exists; choose another folder" in client(refusal, fetch, "emformer-tiny", tmp_path / "there")


def test_offline_the_hub_is_not_asked(
    server: HubServer, home: Path, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    client(push, tiny[0], repo_id)
    calls = len(server.log)

    def download_to(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "emformer_hub.cli", *flags, "download", repo_id, "--to", str(folder)]
        settings = environment(server, home, "hf_alice")
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=600, env=settings)

    told = download_to(tmp_path / "there", "--offline")
    assert told.returncode == 2 and "Without a network" in told.stderr and len(server.log) == calls
    assert download_to(tmp_path / "there").returncode == 0
    calls = len(server.log)
    again = download_to(tmp_path / "again", "--offline")  # the cache has it now
    assert again.returncode == 0 and len(server.log) == calls, again.stderr


def test_a_full_disk_while_downloading_is_said_and_the_next_try_succeeds(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    resource = pytest.importorskip("resource")
    client(push, tiny[0], repo_id)

    def download(most_bytes: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "emformer_hub.cli", "download", repo_id, "--to", str(tmp_path / "there")]
        settings = environment(server, tmp_path / "home", "hf_alice")
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        return subprocess.run(words, check=False, capture_output=True, text=True, env=settings, preexec_fn=limit)

    told = download(10_000)  # the weights are larger
    assert told.returncode == 2 and "File too large" in told.stderr, told.stderr
    assert not list((tmp_path / "there").glob("*"))
    assert download(2**40).returncode == 0
    assert np.array_equal(load(str(tmp_path / "there" / repo_id[4:])), tiny[1])


def test_a_download_that_breaks_off_leaves_nothing_and_goes_on(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    client(push, tiny[0], repo_id)
    server.faults.add("content", cut_download=20_000)
    server.faults.add("content", cut_download=0, times=6)
    assert "cannot be fetched" in client(refusal, fetch, repo_id, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert np.array_equal(load(client(fetch, repo_id, tmp_path / "there")), tiny[1])


def test_a_download_that_was_altered_is_named(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str
) -> None:
    client(push, tiny[0], repo_id)
    folder = client(fetch, repo_id, tmp_path / "first")
    cached = client(download, repo_id, "model.safetensors")
    content = cached.read_bytes()
    cached.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = client(refusal, fetch, repo_id, tmp_path / "second")
    assert f"{repo_id}: model.safetensors is damaged, or was altered" in told and not (tmp_path / "second").exists()
    assert np.array_equal(load(folder), tiny[1])


def faults_in_cache() -> list[str]:
    """What ``emformer-hub doctor`` finds wrong with fetched models."""
    return [finding.found for finding in doctor._cached_models() if finding.remedy is not None]


@pytest.mark.parametrize("how", ["content", "link"])
def test_every_file_of_the_cache_that_was_altered_is_found(
    client: Client, offline: Client, tiny: tuple[Path, np.ndarray], tmp_path: Path, repo_id: str, how: str
) -> None:
    client(push, tiny[0], repo_id)
    client(fetch, repo_id, tmp_path / "first")
    snapshot = client(download, repo_id, "config.json").parent
    loaders = {"config.json": [load, EMformerConfig.from_pretrained], "preprocessor_config.json": [percentiles]}
    loaders["model.safetensors"] = [load]
    names = sorted(path.name for path in snapshot.iterdir())
    assert set(names) >= {*loaders, "modeling_emformer.py", "geometry.py"}
    for name in names:
        path = snapshot / name
        content, link = path.read_bytes(), path.readlink()
        if how == "link":  # as an editor may, or sed -i
            path.unlink()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        for who in (client, offline):
            for function in loaders.get(name, []):
                assert f"{repo_id}: {name} " in who(refusal, function, repo_id)
            if name != ".gitattributes":
                assert f"{repo_id}: {name} " in who(refusal, fetch, repo_id, tmp_path / "second")
            assert any(found.startswith(f"{repo_id}: {name} ") for found in who(faults_in_cache)), name
        path.resolve().write_bytes(content)
        path.unlink()
        path.symlink_to(link)
    assert not any(repo_id in found for found in client(faults_in_cache))
    assert np.array_equal(offline(load, repo_id), tiny[1])


# --- what is fetched ---------------------------------------------------------------------------------------------


def test_a_connection_cut_while_weights_come_in_goes_on_where_it_broke(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    client(upload, tiny[0], repo_id)
    server.faults.add("content", cut_download=20_000)
    server.faults.add("content", cut_download=10_000)
    assert np.array_equal(client(load, repo_id), tiny[1])


def test_a_connection_that_stays_cut_is_named_and_nothing_is_kept(
    server: HubServer, client: Client, home: Path, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    client(upload, tiny[0], repo_id)
    server.faults.add("content", cut_download=20_000)
    server.faults.add("content", cut_download=0, times=6)
    told = client(refusal, load, repo_id)
    assert f"{repo_id}: model.safetensors cannot be fetched: peer closed connection" in told
    cache = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    assert not list(cache.rglob("model.safetensors")) and not list(cache.rglob("*incomplete*"))
    assert np.array_equal(client(load, repo_id), tiny[1])


def test_a_busy_hub_is_asked_again_for_weights(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    client(upload, tiny[0], repo_id)
    client(waits)
    server.faults.add("info", status=500)
    server.faults.add("resolve", status=500, times=2)
    server.faults.add("content", status=429, retry_after=7)
    assert np.array_equal(client(load, repo_id), tiny[1])
    assert 8 in client(waits)
    server.faults.add("info", status=503)  # and where it stays down, the cache has them
    assert np.array_equal(client(load, repo_id), tiny[1])


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_weights_that_were_altered_are_never_loaded(
    server: HubServer, client: Client, home: Path, tmp_path: Path, repo_id: str, kind: str
) -> None:
    expected = write_adapter(tmp_path / "mine") if kind == "adapter" else write_model(tmp_path / "mine", seed=7)
    file = ADAPTER_WEIGHTS if kind == "adapter" else "model.safetensors"
    client(upload, tmp_path / "mine", repo_id)
    good = server.read(repo_id, file)
    server.alter(repo_id, file, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    told = client(refusal, load, repo_id)
    assert f"{repo_id}: {file} is damaged, or was altered: sha256 {sha256(server.read(repo_id, file))[:12]}" in told
    assert f"the Hub states {sha256(good)[:12]}" in told
    server.alter(repo_id, file, lambda content: good)
    assert client(refusal, load, repo_id) == told  # it is still in the cache
    Path(re.search("Delete (.*) and load it again", told)[1]).unlink()
    assert np.array_equal(client(load, repo_id), expected)


def test_weights_that_are_cut_short_on_the_server_are_named(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    client(upload, tiny[0], repo_id)
    server.alter(repo_id, "model.safetensors", lambda content: content[:-100])
    told = client(refusal, load, repo_id)
    assert f"{repo_id}: model.safetensors cannot be fetched: Consistency check failed: file should be of size" in told


def test_weights_that_were_pushed_broken_are_named(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    folder, _ = tiny
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    client(push, folder, repo_id)
    assert f"{repo_id}: the weight file is damaged or cut short" in client(refusal, load, repo_id)


def test_a_model_that_another_program_fetched_is_loaded_offline(
    client: Client, offline: Client, tiny: tuple[Path, np.ndarray], repo_id: str
) -> None:
    client(upload, tiny[0], repo_id)
    assert f"{repo_id}: cannot be loaded" in offline(refusal, load, repo_id)
    client(download, repo_id, "config.json")
    assert f"{repo_id}: cannot be loaded" in offline(refusal, load, repo_id)
    client(download, repo_id, "model.safetensors")
    assert np.array_equal(offline(load, repo_id), tiny[1])


def with_registry(sha256: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """As if this were the checksum of ``v0``, which the bundled weights replace, and of weights beside the bundle."""
    bundled = dataclasses.replace(registry()[NAME], replaces=(Superseded("v0", sha256, "0.1.0"),))
    far = dataclasses.replace(bundled, name="emformer-far", repo_id="lab/emformer-far", revision="v1", sha256=sha256)
    known = {weights.name: weights for weights in (bundled, far)}
    with pytest.MonkeyPatch.context() as patch:
        for module in (pretrained, model_files):
            patch.setattr(module, "registry", lambda: known)
        return function(*args, **options)


def test_superseded_weights_are_those_that_the_registry_states(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray]
) -> None:
    folder, expected = tiny
    client(upload, folder, REPO_ID, tag="v0")
    stated = sha256((folder / "model.safetensors").read_bytes())
    for name in (NAME, REPO_ID):
        assert np.array_equal(client(with_registry, stated, load, name, revision="v0"), expected)
        told = client(with_registry, 64 * "0", refusal, load, name, revision="v0")
        assert f"{name}: model.safetensors of v0 is damaged, or was altered: sha256 {stated[:12]}" in told
        assert "but the registry states 000000000000" in told
    client(tag, REPO_ID, "v1")  # whatever it holds, it is not the v1 of the registry
    assert "but the registry states a18af85f5d29" in client(refusal, load, NAME, revision="v1")


def test_registered_weights_that_are_not_bundled_are_those_of_their_tag(
    server: HubServer, client: Client, tiny: tuple[Path, np.ndarray]
) -> None:
    folder, expected = tiny
    stated = sha256((folder / "model.safetensors").read_bytes())
    client(upload, folder, "lab/emformer-far", tag="v1")
    server.write("lab/emformer-far", {"model.safetensors": b"later"})
    assert np.array_equal(client(with_registry, stated, load, "lab/emformer-far"), expected)
    assert "but the registry states 0000" in client(with_registry, 64 * "0", refusal, load, "lab/emformer-far")


# --- the real command --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_finetuning_pushes_what_it_made(
    server: HubServer,
    home: Path,
    client: Client,
    tiny: tuple[Path, np.ndarray],
    tmp_path: Path,
    repo_id: str,
    method: str,
) -> None:
    client(push, tiny[0], f"{repo_id}-base")
    tifffile.imwrite(tmp_path / "stack.tif", neuropil((32, 64, 128))[::2])
    words = ["--volume", str(tmp_path / "stack.tif"), "--voxel-size", "40,4,4", "--licence", "CC BY-NC 4.0"]
    words += ["--factor", "4", "--steps", "2"]
    words += ["--base", f"{repo_id}-base", "--method", method, "--output-dir", str(tmp_path / "run")]

    def finetune(*more: str) -> subprocess.CompletedProcess[str]:
        settings = environment(server, home, "hf_alice", ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
        command = [sys.executable, "finetune", *words, "--push-to-hub", repo_id, *more]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, cwd=ROOT, env=settings)

    server.faults.add("commit", status=507, message="the disk is full")
    failed = finetune()
    assert (
        failed.returncode == 2
        and "507 Insufficient Storage" in failed.stderr
        and f"emformer-hub push {tmp_path / 'run'}" in failed.stderr
    )
    done = finetune("--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"/{repo_id}/commit/{server.repository(repo_id).head.sha}")
    files = set(server.repository(repo_id).head.files)
    assert files >= {"README.md", "recipe.yaml", "report.json", "preprocessor_config.json"}
    assert (ADAPTER_WEIGHTS in files) == (method == "lora") and "log.jsonl" not in files
    made = client(load, str(tmp_path / "run"))
    assert np.array_equal(client(load, repo_id), made) and not np.array_equal(made, tiny[1])
    assert client(quantiles, repo_id) == quantiles(tmp_path / "run")
    for page in ("README.md", "recipe.yaml", "report.json"):
        assert str(tmp_path) not in server.read(repo_id, page).decode()
    front = yaml.safe_load(server.read(repo_id, "README.md").decode().split("---")[1])
    assert (front["base_model"], front["license"]) == (f"{repo_id}-base", "cc-by-nc-4.0")
