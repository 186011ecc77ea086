"""Checkpoints in a store: whole or torn, of this attempt or one that was given up; full disks."""

import errno
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.checkpoints.keeper import scratch_of
from cluster.checkpoints.manifest import Saved, all_saved, begin_attempt, counting
from cluster.checkpoints.resume import CheckpointsLost, resume
from cluster.checkpoints.saver import Saver
from cluster.checkpoints.store import PLACE, Store, check_storage, run_id, store_of
from cluster.errors import StorageFull, Unrecoverable
from cluster.events import read_events
from configs.cluster import CheckpointConfig
from configs.load import load_config

FILES = {"policy/zero/weights.pt": b"w" * 3000, "state.json": b'{"version": 1}'}


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone."""
    file = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    return Store(f"memory://{uuid.uuid4().hex}")


def writer(rank: int, step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, data in FILES.items():
            path = folder / (name if rank == 0 else f"{name}-{rank}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data + str(step).encode())

    return write


def saver(store: Store, tmp_path: Path, *, rank: int = 0, **options) -> Saver:
    defaults = {"world_size": 1, "attempt": 1, "keep": 2, "deadline_s": 30.0}
    scratch = tmp_path / "scratch" / f"rank-{rank}"
    return Saver(store, scratch, rank=rank, run_dir=str(tmp_path), **defaults | options)


def save(store: Store, tmp_path: Path, *steps: int, **options) -> None:
    one = saver(store, tmp_path, **options)
    for step in steps:
        one.copy(step, writer(0, step))
        one.upload()
    one.close()


class Loaded:
    """Takes up a checkpoint and remembers what was in it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, folder: Path, work: Path) -> None:
        self.files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def taken_up(store: Store, tmp_path: Path) -> tuple[int, dict[str, bytes]]:
    loaded = Loaded()
    step, _ = resume(store, tmp_path / "node", loaded, str(tmp_path))
    return step, loaded.files


def torn_reasons(tmp_path: Path) -> list[str]:
    return [e["reason"] for e in read_events(tmp_path) if e["kind"] == "checkpoint_torn"]


def expected(step: int) -> dict[str, bytes]:
    return {name: data + str(step).encode() for name, data in FILES.items()}


def test_the_newest_checkpoint_comes_back_and_older_ones_go(store, tmp_path):
    save(store, tmp_path, 2, 4, 6)
    assert [saved.step for saved in all_saved(store)] == [4, 6]
    assert taken_up(store, tmp_path) == (6, expected(6))
    events = [event for event in read_events(tmp_path) if event["kind"] == "checkpoint_saved"]
    assert [event["step"] for event in events] == [2, 4, 6]
    assert events[-1]["bytes"] == sum(map(len, expected(6).values()))
    assert not (tmp_path / "scratch" / "rank-0").exists()
    assert not list((tmp_path / "node").glob("*")), "nothing is left on the node"


def test_a_run_without_checkpoints_begins_at_0(store, tmp_path):
    assert taken_up(store, tmp_path) == (0, {})
    assert torn_reasons(tmp_path) == []


def change(store: Store, what: str, saved: Saved) -> str:
    """Damage a checkpoint; what should be said of it."""
    part = f"{saved.name}/rank=0/policy/zero/weights.pt"
    match what:
        case "short part":
            store.fs.pipe_file(store._at(part), store.read(part)[:-7])
            return "bytes instead of"
        case "other bytes":
            store.fs.pipe_file(store._at(part), b"x" + store.read(part)[1:])
            return "differs from what was saved"
        case "missing part":
            store.remove(part)
            return "weights.pt is missing"
        case "torn manifest":
            store.fs.pipe_file(store._at(saved.manifest), store.read(saved.manifest)[:-20])
            return "manifest.json is torn"
        case "never finished":
            store.remove(saved.manifest)
            store.remove(saved.part(0))
            return "never finished"
    raise AssertionError(what)


DAMAGE = ("short part", "other bytes", "missing part", "torn manifest", "never finished")


@pytest.mark.parametrize("what", DAMAGE)
def test_of_a_torn_checkpoint_the_one_before_is_used(what, store, tmp_path):
    begin_attempt(store, 0)
    save(store, tmp_path, 2, 4)
    reason = change(store, what, all_saved(store)[-1])
    assert taken_up(store, tmp_path) == (2, expected(2))
    assert [reason in said for said in torn_reasons(tmp_path)] == [True]

    save(store, tmp_path, 4, attempt=2)
    assert all_saved(store) == [Saved(step=2, attempt=1), Saved(step=4, attempt=2)]
    assert taken_up(store, tmp_path) == (4, expected(4))


@pytest.mark.parametrize("what", DAMAGE[:-1])
def test_where_all_are_torn_the_run_does_not_begin_anew(what, store, tmp_path):
    save(store, tmp_path, 2, 4)
    for saved in all_saved(store):
        change(store, what, saved)
    with pytest.raises(
        CheckpointsLost, match=r"no checkpoint in .* is whole: step=000004\.attempt"
    ):
        taken_up(store, tmp_path)


def test_a_run_that_went_on_from_a_checkpoint_and_finds_none_does_not_begin_anew(store, tmp_path):
    begin_attempt(store, 0)
    begin_attempt(store, 4)
    with pytest.raises(CheckpointsLost, match="all are gone"):
        taken_up(store, tmp_path)


def test_a_first_checkpoint_that_was_never_finished_is_no_loss(store, tmp_path):
    save(store, tmp_path, 2)
    change(store, "never finished", all_saved(store)[0])
    assert taken_up(store, tmp_path) == (0, {})
    assert len(torn_reasons(tmp_path)) == 1


def test_what_a_learner_that_was_given_up_saves_later_does_not_count(store, tmp_path):
    assert begin_attempt(store, 0) == 1
    save(store, tmp_path, 10)
    assert begin_attempt(store, 10) == 2
    save(store, tmp_path, 20, attempt=1)  # cut off, it went on by itself
    assert [saved.step for saved in counting(store)] == [10]
    save(store, tmp_path, 15, attempt=2)
    assert counting(store) == [Saved(step=15, attempt=2), Saved(step=10, attempt=1)]
    assert taken_up(store, tmp_path)[0] == 15
    assert Saved(step=20, attempt=1) not in all_saved(store), "it was removed with the next one"


def test_a_torn_note_of_attempts_loses_no_checkpoint(store, tmp_path):
    begin_attempt(store, 0)
    save(store, tmp_path, 10)
    store.fs.pipe_file(store._at("attempts.json"), b'{"1": ')
    assert taken_up(store, tmp_path) == (10, expected(10))
    assert begin_attempt(store, 10) == 3, "a number was taken twice"


def test_a_manifest_waits_for_the_parts_of_all_ranks(store, tmp_path):
    first = saver(store, tmp_path, rank=0, world_size=2)
    other = saver(store, tmp_path, rank=1, world_size=2)
    first.copy(2, writer(0, 2))
    first.upload()
    assert first.is_busy
    assert not store.has(Saved(step=2, attempt=1).manifest)
    other.copy(2, writer(1, 2))
    other.upload()
    other.close()
    first.close()
    files = json.loads(store.read(Saved(step=2, attempt=1).manifest))["files"]
    assert sorted({name.partition("/")[0] for name in files}) == ["rank=0", "rank=1"]
    assert set(taken_up(store, tmp_path)[1]) == {*FILES, *(f"{name}-1" for name in FILES)}


class Cut(Exception):
    """Stands for the end of a process: nothing after it is done."""


class CutOff(Store):
    """A store to which so many files come; then the process is held, and ends."""

    def __init__(self, store: Store, files: int) -> None:
        super().__init__(store.name)
        self.left = files
        self.is_held, self.may_end = threading.Event(), threading.Event()

    def _count(self) -> None:
        if self.left == 0:
            self.is_held.set()
            assert self.may_end.wait(60)
            raise Cut
        self.left -= 1

    def put(self, source: Path, name: str):
        self._count()
        return super().put(source, name)

    def write(self, name: str, data: bytes) -> None:
        self._count()
        super().write(name, data)

    def remove(self, name: str) -> None:
        if self.left:
            super().remove(name)


def killed_amid(store: Store, tmp_path: Path, step: int, files: int, *ranks: int, **options):
    """Copy a step, and keep what each rank's node holds once it has uploaded so many files."""
    for rank in ranks:
        cut = CutOff(store, files)
        one = saver(cut, tmp_path, rank=rank, **options)
        one.copy(step, writer(rank, step))
        one.upload()
        assert cut.is_held.wait(60)
        shutil.copytree(one.scratch, tmp_path / "killed" / one.scratch.name)
        cut.may_end.set()
        with pytest.raises(Cut):
            one.wait()


def go_on(store: Store, tmp_path: Path) -> tuple[int, dict[str, bytes]]:
    """As `taken_up`, on the node where ranks were killed."""
    loaded = Loaded()
    step, _ = resume(store, tmp_path / "killed", loaded, str(tmp_path))
    assert not list((tmp_path / "killed").glob("*")), "nothing is left on the node"
    return step, loaded.files


@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_a_checkpoint_that_was_on_its_way_is_finished_by_the_next_attempt(files, store, tmp_path):
    begin_attempt(store, 0)
    save(store, tmp_path, 2)
    killed_amid(store, tmp_path, 4, files, 0)
    assert go_on(store, tmp_path) == (4, expected(4))
    assert torn_reasons(tmp_path) == []
    events = [event for event in read_events(tmp_path) if event["kind"] == "checkpoint_saved"]
    assert [(event["step"], event.get("is_leftover", False)) for event in events] == [
        (2, False), (4, True),
    ]  # fmt: skip


def test_a_checkpoint_whose_other_part_went_with_its_node_is_not(store, tmp_path):
    begin_attempt(store, 0)
    save(store, tmp_path, 2)
    killed_amid(store, tmp_path, 4, 1, 0, world_size=2)
    assert go_on(store, tmp_path) == (2, expected(2))


def test_the_parts_of_all_ranks_make_it_whole(store, tmp_path):
    begin_attempt(store, 0)
    killed_amid(store, tmp_path, 4, 1, 0, 1, world_size=2)
    step, files = go_on(store, tmp_path)
    assert step == 4
    assert set(files) == {*FILES, *(f"{name}-1" for name in FILES)}


def test_a_copy_whose_step_was_not_yet_on_record_does_not_count(store, tmp_path):
    begin_attempt(store, 0)
    one = saver(store, tmp_path)
    one.copy(4, writer(0, 4))  # killed before `upload`, which follows the step's records
    loaded = Loaded()
    assert resume(store, tmp_path / "scratch", loaded, str(tmp_path))[0] == 0


def test_a_copy_of_an_attempt_that_was_given_up_does_not_count(store, tmp_path):
    begin_attempt(store, 0)
    save(store, tmp_path, 2)
    killed_amid(store, tmp_path, 8, 1, 0)
    begin_attempt(store, 2)
    assert go_on(store, tmp_path) == (2, expected(2))


def test_a_rank_that_does_not_upload_is_named(store, tmp_path):
    one = saver(store, tmp_path, world_size=2, deadline_s=0.2)
    one.copy(2, writer(0, 2))
    one.upload()
    with pytest.raises(RuntimeError, match=r"learner-1 did not upload .* step 2 within"):
        one.wait()
    assert all_saved(store) == [], "half of a checkpoint is not left behind"


class Slow(Store):
    """A store whose uploads wait until they may go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_go_on = threading.Event()

    def put(self, source: Path, name: str):
        assert self.may_go_on.wait(60)
        return super().put(source, name)


def test_training_goes_on_during_an_upload_and_a_second_checkpoint_waits_for_it(tmp_path):
    store = Slow(tmp_path / "store")
    one = saver(store, tmp_path)
    one.copy(2, writer(0, 2))
    one.upload()  # returns at once
    assert one.is_busy
    events: list[str] = []
    second = threading.Thread(
        target=lambda: (one.copy(4, writer(0, 4)), events.append("copied the second"))
    )
    second.start()
    second.join(0.3)
    assert events == [], "two would be in flight"
    store.may_go_on.set()
    second.join(60)
    assert events == ["copied the second"]
    assert [saved.step for saved in counting(store)] == [2]
    one.upload()
    one.close()


def test_a_synchronous_checkpoint_is_on_record_before_the_next_step(tmp_path):
    store = Store(tmp_path / "store")
    one = saver(store, tmp_path, asynchronous=False)
    one.copy(2, writer(0, 2))
    one.upload()
    assert not one.is_busy
    assert store.has(Saved(step=2, attempt=1).manifest)


class Full(Store):
    """A store on a disk that is full after the first file."""

    written = 0

    def put(self, source: Path, name: str):
        self.written += 1
        if self.written > 1:
            raise OSError(errno.ENOSPC, "No space left on device", self._at(name))
        return super().put(source, name)


def test_a_full_store_is_named_and_leaves_the_checkpoint_before(tmp_path):
    save(Store(tmp_path / "store"), tmp_path, 2)
    one = saver(Full(tmp_path / "store"), tmp_path)
    one.copy(4, writer(0, 4))
    one.upload()
    with pytest.raises(StorageFull, match=rf"{tmp_path}/store/step.* is full: .* of step 4 could"):
        one.wait()
    store = Store(tmp_path / "store")
    assert all_saved(store) == [Saved(step=2, attempt=1)]
    assert taken_up(store, tmp_path) == (2, expected(2))


class Stubborn(Store):
    """A store that does not remove what it holds."""

    def remove(self, name: str) -> None:
        raise OSError(errno.EIO, "slow down", name)


def test_what_cannot_be_tidied_up_costs_no_checkpoint(tmp_path):
    one = saver(Stubborn(tmp_path / "store"), tmp_path, keep=1)
    for step in (2, 4):
        one.copy(step, writer(0, step))
        one.upload()
    one.close()
    assert taken_up(Store(tmp_path / "store"), tmp_path) == (4, expected(4))


def test_a_manifest_cannot_name_files_outside(store, tmp_path):
    begin_attempt(store, 0)
    save(store, tmp_path, 2, 4)
    name = all_saved(store)[-1].manifest
    manifest = json.loads(store.read(name))
    manifest["files"]["rank=0/../../outside"] = {"size": 1, "sha256": "x"}
    store.fs.pipe_file(store._at(name), json.dumps(manifest).encode())
    assert taken_up(store, tmp_path) == (2, expected(2))
    assert "outside of the checkpoint" in torn_reasons(tmp_path)[0]


# ---- where checkpoints are -----------------------------------------------------------------


def config(tmp_path: Path, *overrides: str):
    recipe = Path(__file__).parents[2] / "configs" / "rloo.yaml"
    (tmp_path / "run").mkdir(exist_ok=True)
    return load_config(
        recipe,
        [
            "model.path=m", "data.train=d", "feedback.rewards.rm.path=r",
            f"cluster.run_dir={tmp_path}/run", *overrides,
        ],
    )  # fmt: skip


def test_checkpoints_are_in_the_run_folder_unless_told_otherwise(tmp_path):
    assert store_of(config(tmp_path)).folder == tmp_path / "run" / "checkpoints"
    assert not (tmp_path / "run" / PLACE).exists()


def test_copies_lie_in_a_folder_of_the_run_and_of_its_user(tmp_path):
    settings = config(tmp_path, f"cluster.checkpoint.scratch={tmp_path}/scratch")
    store = store_of(settings)
    first = scratch_of(settings, run_id(store))
    assert first == scratch_of(settings, run_id(store))
    assert first.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(tmp_path / "run")  # another run takes its place, and none of its copies
    assert scratch_of(settings, run_id(store_of(settings))) != first

    away = tmp_path / "scratch" / "attune-x"
    away.symlink_to(tmp_path)
    with pytest.raises(Unrecoverable, match=r"cluster\.checkpoint\.scratch: .* somebody else"):
        scratch_of(settings, "x")


def test_runs_that_share_a_storage_have_folders_of_their_own(tmp_path):
    elsewhere = config(tmp_path, f"cluster.checkpoint.storage={tmp_path}/shared")
    first = store_of(elsewhere).folder
    assert first is not None
    assert first.parent == tmp_path / "shared"
    assert store_of(elsewhere).folder == first
    (tmp_path / "run" / PLACE).unlink()  # a run folder made anew
    assert store_of(elsewhere).folder != first


@pytest.mark.parametrize("before", [True, False])
def test_a_run_cannot_lose_its_checkpoints_by_naming_another_storage(before, tmp_path):
    own, other = config(tmp_path), config(tmp_path, f"cluster.checkpoint.storage={tmp_path}/other")
    save(store_of(own if before else other), tmp_path, 2)
    with pytest.raises(
        ValueError, match=r"^cluster\.checkpoint\.storage: the checkpoints of .*/run"
    ):
        store_of(other if before else own)


@pytest.mark.parametrize(
    ("storage", "pattern"),
    [
        ("nowhere://bucket/x", r"^cluster\.checkpoint\.storage: .*Protocol not known"),
        ("s3://me:secret@bucket/x", r"^cluster\.checkpoint\.storage: the URL holds a password"),
        ("/proc/none", r"^cluster\.checkpoint\.storage: /proc/none cannot be written"),
    ],
)
def test_a_storage_that_cannot_be_written_is_refused(storage, pattern):
    with pytest.raises(ValueError, match=pattern) as caught:
        check_storage(CheckpointConfig(storage=storage))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_storage_that_can_be_written_is_left_as_it_was(tmp_path):
    check_storage(CheckpointConfig(storage=str(tmp_path / "new")))
    assert list((tmp_path / "new").iterdir()) == []
