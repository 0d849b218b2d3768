"""A mirror holds whole checkpoints or none, and gives back only what verifies."""

from pathlib import Path
from uuid import uuid4

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.manifest import MANIFEST, defect_of
from ds_train.checkpoints.mirror import Mirror
from ds_train.checkpoints.retention import KEPT
from tests.support.checkpoints import write_checkpoint

WEIGHTS = "mp_rank_00_model_states.pt"


@pytest.fixture(params=["memory", "file", "path"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = f"{tmp_path}/mirror/run"
    return {"memory": f"memory://{uuid4()}/run", "file": f"file://{place}", "path": place}[request.param]


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {
        path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()
    }


def test_an_empty_machine_gets_the_newest_checkpoint_byte_for_byte(url, tmp_path):
    uploaded = [write_checkpoint(tmp_path / "here" / "checkpoints", step) for step in (2, 4)]
    for checkpoint in uploaded:
        Mirror(url).upload(checkpoint)
    fetched = Mirror(url).fetch_newest(tmp_path / "there")
    assert fetched == tmp_path / "there" / "checkpoints" / "step_00000004"
    assert defect_of(fetched) is None and contents(fetched) == contents(uploaded[1])
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name]


def test_an_empty_mirror_gives_none(url, tmp_path):
    assert Mirror(url).fetch_newest(tmp_path / "there") is None


def test_a_killed_upload_is_not_there_and_the_next_one_replaces_it(url, tmp_path, monkeypatch):
    older, newer = (write_checkpoint(tmp_path / "here" / "checkpoints", step) for step in (2, 4))
    mirror = Mirror(url)
    mirror.upload(older)
    with monkeypatch.context() as patch:
        patch.setattr(mirror._files, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("cut")))
        with pytest.raises(OSError, match="cut"):
            mirror.upload(newer)
    assert mirror.step_names() == [older.name]
    mirror.upload(newer)
    assert mirror.step_names() == [newer.name, older.name]


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(url, tmp_path, caplog, damage):
    mirror = Mirror(url)
    for step in (2, 4):
        mirror.upload(write_checkpoint(tmp_path / "here" / "checkpoints", step))
    if damage == "missing":
        mirror._files.rm_file(mirror._of_step("step_00000004", WEIGHTS))
    else:
        name = MANIFEST if damage == "manifest" else WEIGHTS
        path = mirror._of_step("step_00000004", name)
        content = mirror._files.cat_file(path)
        mirror._files.pipe_file(path, b"X" + content[1:])
    fetched = mirror.fetch_newest(tmp_path / "there")
    assert fetched and fetched.name == "step_00000002" and "skipping" in caplog.text
    mirror._retract("step_00000002")
    with pytest.raises(UserError, match="1 checkpoints and none is usable"):
        mirror.fetch_newest(tmp_path / "elsewhere")


def test_an_abandoned_branch_is_replaced(url, tmp_path):
    Mirror(url).upload(write_checkpoint(tmp_path / "here" / "checkpoints", 2))
    other = write_checkpoint(tmp_path / "branch" / "checkpoints", 2)
    (other / MANIFEST).write_bytes((other / MANIFEST).read_bytes() + b"\n")
    Mirror(url).upload(other)
    fetched = Mirror(url).fetch_newest(tmp_path / "there")
    assert fetched and contents(fetched) == contents(other)


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(UserError, match="nowhere"):
        Mirror("nowhere://x")


def test_it_is_pruned_as_the_run_directory(url, tmp_path):
    """Another machine has the newest one only, after it continued from step 6."""
    mirror = Mirror(url)
    for step in (2, 3, 4, 6, 8):
        checkpoint = write_checkpoint(tmp_path / "here" / "checkpoints", step)
        if step == 3:
            (checkpoint / KEPT).write_text("step 3\n")
        mirror.upload(checkpoint)
    newest = tmp_path / "here" / "checkpoints" / "step_00000006"
    mirror.prune(newest, [newest], keep_every=4)
    assert mirror.step_names() == ["step_00000006", "step_00000004", "step_00000003"]
    fetched = Mirror(url)._fetch("step_00000003", tmp_path / "there")
    assert fetched is None and (tmp_path / "there" / "step_00000003" / KEPT).read_text() == "step 3\n"


def test_logs_and_settings_go_along(url, tmp_path):
    run = tmp_path / "here"
    files = {"run.yaml": "a: 1\n", "logs/train.jsonl": "{}\n", ".lock": "1", "superseded_1/a": "x"}
    for name, content in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
    mirror = Mirror(url)
    mirror.upload(write_checkpoint(run / "checkpoints", 2))
    mirror.upload_records(run)
    Mirror(url).fetch_newest(tmp_path / "there")
    found = {p.relative_to(tmp_path / "there").as_posix() for p in (tmp_path / "there").rglob("*") if p.is_file()}
    assert {name for name in found if not name.startswith("checkpoints/")} == {"run.yaml", "logs/train.jsonl"}
