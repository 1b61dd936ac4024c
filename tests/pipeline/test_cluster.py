"""Students trained on a cluster: the same weights, what a lost worker costs, and what is left when all are gone."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekd import pipeline
from edgekd.distillation import loop
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.state import saved_progress
from edgekd.errors import (
    BackendMissing,
    DeviceError,
    IntegrityError,
    ResourcesExhausted,
    TrainingError,
    UsageError,
    WorkerDied,
)
from edgekd.pipeline import cluster as clusters
from edgekd.pipeline import elsewhere
from edgekd.pipeline.cluster import Cluster, clustered
from edgekd.pipeline.desk import Desk
from edgekd.pipeline.elsewhere import STATE
from edgekd.store import files
from edgekd.store.journal import read
from edgekd.tasks.task import Task
from edgekd.values.targets import Round
from edgekd.values.training import ConnectOrder, TrainingOrder
from edgekd.values.trial import History, Verdict
from tests.pipeline import rehearsed, trainings
from tests.pipeline.fake_ray import FakeRay, RayTaskError, WorkerCrashedError
from tests.pipeline.test_loop import trials_in

JOB = replace(
    rehearsed.with_(rehearsed.JOB, task={"crop": 1}, search={"trials": 4, "probes": 3}),
    budget=replace(rehearsed.JOB.budget, sustained_minutes=None, period_ms=None),
)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return trainings.task(tmp_path_factory.mktemp("data"))


class DeskHere:
    """The desk in this process."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def ask(self, name: str, order: Any, reply: type, *, timeout_s: float) -> Any:
        return getattr(self._desk, name)(order)


Join = Callable[..., Cluster]


@pytest.fixture
def join(held: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Join:
    """Give a function that joins a cluster of none but this process."""
    monkeypatch.setattr(loop, "choose_arithmetic", lambda *_, **__: Arithmetic())
    monkeypatch.setattr(os, "environ", {**os.environ})

    def joined(ray: FakeRay, *, or_here: bool = False, data: Task = held) -> Cluster:
        monkeypatch.setattr("edgekd.pipeline.desk.load", lambda *_, **__: data)
        monkeypatch.setitem(sys.modules, "ray", ray)
        desk = Desk()
        order = ConnectOrder(
            address="local",
            task=trainings.SECTION,
            beside=str(tmp_path),
            cache="",
            seed=0,
            scratch=str(tmp_path),
        )
        found = desk.connect(order)
        return Cluster(
            desk=DeskHere(desk), address="local", workers=found.workers, task=found.task, or_here=or_here
        )

    return joined


def test_students_come_back_as_they_would_be_trained_here(join: Join, held: Task, tmp_path: Path):
    orders = [trainings.order(tmp_path, held, width=width, epochs=3) for width in (8, 16)]
    cluster = join(FakeRay())
    cluster.train(orders)
    assert (cluster.epochs, cluster.lost) == (6, 0)
    for order in orders:
        elsewhere_ = trainings.completed(order, held)
        here = trainings.alone(order, held, tmp_path / "alone" / Path(order.folder).name)
        assert elsewhere_.weights.sha256 == here.weights.sha256
        assert elsewhere_.losses == here.losses


def test_a_lost_worker_costs_its_epoch_alone(join: Join, held: Task, tmp_path: Path):
    def lost(task: int) -> None:
        if task in (3, 4):
            raise WorkerCrashedError

    ray, order = FakeRay(lost), trainings.order(tmp_path, held, width=8, epochs=4)
    cluster = join(ray)
    cluster.train([order])
    assert (ray.tasks, cluster.epochs, cluster.lost) == (6, 4, 2)
    whole = trainings.alone(order, held, tmp_path / "alone")
    assert trainings.completed(order, held).weights.sha256 == whole.weights.sha256


def test_a_worker_that_is_lost_again_and_again_ends_with_what_to_do(join: Join, held: Task, tmp_path: Path):
    def lost(task: int) -> None:
        if task > 1:
            raise WorkerCrashedError("out of memory")

    order = trainings.order(tmp_path, held, width=8, epochs=3)
    with pytest.raises(ResourcesExhausted, match="5 workers were lost in epoch 2") as caught:
        join(FakeRay(lost)).train([order])
    assert caught.value.exit_code == 7
    assert "the same command again" in caught.value.mend
    assert saved_progress(Path(order.folder) / STATE).epoch == 1


def test_a_training_goes_on_after_the_epochs_that_were_kept(join: Join, held: Task, tmp_path: Path):
    order = trainings.order(tmp_path, held, width=8, epochs=4)
    asked = FakeRay()
    join(asked).train([replace(order, epochs=4)])
    first = (Path(order.folder) / STATE).read_bytes()
    again = FakeRay()
    join(again).train([order])
    assert again.tasks == 0
    assert (Path(order.folder) / STATE).read_bytes() == first


def gone(ray: FakeRay, after: int) -> FakeRay:
    """Let the cluster vanish after so many epochs."""

    def vanish(task: int) -> None:
        if task > after:
            raise WorkerDied(
                "the desk crashed while it carried out 'wait' (exit 1)", cause="Failed to connect to GCS"
            )

    ray.before = vanish
    return ray


def test_a_cluster_that_goes_away_keeps_what_was_trained_and_says_how_to_go_on(
    join: Join, held: Task, tmp_path: Path
):
    order = trainings.order(tmp_path, held, width=8, epochs=4)
    cluster = join(gone(FakeRay(), after=2))
    with pytest.raises(DeviceError, match="the cluster local went away") as caught:
        cluster.train([order])
    with pytest.raises(DeviceError, match="the cluster local went away"):
        cluster.train([trainings.order(tmp_path, held, width=16, epochs=1)])
    assert caught.value.exit_code == 4
    assert "GCS" in caught.value.cause
    assert "without --cluster it goes on here" in caught.value.mend
    assert saved_progress(Path(order.folder) / STATE).epoch == 2
    whole = trainings.alone(order, held, tmp_path / "alone")
    folder = Path(order.folder)
    resumed = trainings.distill(folder, order.spec, held, order.labels, order.recipe, 4, 0)
    assert resumed.weights.sha256 == whole.weights.sha256


def test_a_cluster_that_goes_away_is_done_without_where_that_was_asked(
    join: Join, held: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    orders = [trainings.order(tmp_path, held, width=width, epochs=2) for width in (8, 16)]
    cluster = join(gone(FakeRay(), after=1), or_here=True)
    cluster.train(orders[:1])
    assert cluster.gone
    assert "going on here" in caplog.text
    cluster.train(orders[1:])
    assert not (Path(orders[1].folder) / STATE).exists()


def test_no_worker_left_is_a_cluster_that_went_away(join: Join, held: Task, tmp_path: Path):
    ray = FakeRay()
    cluster = join(ray)
    ray.wait = lambda refs, **_: ([], list(refs))
    ray.resources = {}
    with pytest.raises(DeviceError, match="no workers left"):
        cluster.train([trainings.order(tmp_path, held, width=8, epochs=2)])


def test_a_worker_without_edgekd_ends_the_run_with_what_to_install(join: Join, held: Task, tmp_path: Path):
    def absent(_: int) -> None:
        raise RayTaskError("ModuleNotFoundError: No module named 'edgekd'")

    with pytest.raises(DeviceError, match="a worker cannot train") as caught:
        join(FakeRay(absent)).train([trainings.order(tmp_path, held, width=8, epochs=1)])
    assert "No module named 'edgekd'" in caught.value.cause
    assert "on every node" in caught.value.mend


def test_workers_of_other_versions_train_nothing(
    join: Join, held: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cluster = join(FakeRay())
    monkeypatch.setattr(elsewhere, "versions", lambda: {"edgekd": "0.0.1", "torch": "1.0"})
    with pytest.raises(DeviceError, match="would train otherwise") as caught:
        cluster.train([trainings.order(tmp_path, held, width=8, epochs=1)])
    assert "torch 1.0 (not" in caught.value.cause


def test_a_student_that_diverges_there_is_left_to_the_training_here(
    join: Join, held: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def diverge(*_: object) -> None:
        raise TrainingError("the training diverged in epoch 1")

    cluster = join(FakeRay())
    monkeypatch.setattr(elsewhere, "distill_an_epoch", diverge)
    order = trainings.order(tmp_path, held, width=8, epochs=1)
    cluster.train([order])
    assert not (Path(order.folder) / STATE).exists()


def test_a_full_disk_ends_with_7_and_the_last_state(
    join: Join, held: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(task: int) -> None:
        if task == 2:
            monkeypatch.setattr("edgekd.pipeline.desk.replacing", no_room)

    @contextlib.contextmanager
    def no_room(path: Path) -> Iterator[Path]:
        raise files.disk_full(path, "No space left on device")
        yield path

    order = trainings.order(tmp_path, held, width=8, epochs=3)
    with pytest.raises(ResourcesExhausted, match="cannot write") as caught:
        join(FakeRay(full)).train([order])
    assert caught.value.exit_code == 7
    assert saved_progress(Path(order.folder) / STATE).epoch == 1


def test_samples_that_changed_since_are_not_trained_on(join: Join, held: Task, tmp_path: Path):
    order = replace(trainings.order(tmp_path, held, width=8, epochs=1), task="0" * 64)
    with pytest.raises(IntegrityError, match="the data changed"):
        join(FakeRay()).train([order])


def test_a_cluster_here_listens_to_nobody_else_and_reports_to_nobody(join: Join):
    ray = FakeRay()
    join(ray)
    assert ray.asked["address"] == "local"
    assert ray.asked["include_dashboard"] is False
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert ray.needs == {"num_cpus": 1, "max_retries": 0}


def test_what_cannot_be_joined_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with (
        pytest.raises(UsageError, match="live data"),
        clustered("local", JOB, beside=Path(), out=tmp_path, live=True),
    ):
        pass
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        with (
            pytest.raises(UsageError, match="torchrun"),
            clustered("local", JOB, beside=Path(), out=tmp_path),
        ):
            pass
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        with (
            pytest.raises(BackendMissing, match="Ray is not installed") as caught,
            clustered("local", JOB, beside=Path(), out=tmp_path),
        ):
            pass
    assert "edgekd[cluster]" in caught.value.mend


@pytest.mark.usefixtures("here")
def test_a_run_with_a_cluster_proposes_in_rounds_and_trains_nothing_here(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ray, steps, data = FakeRay(), [], rehearsed.digits()
    job = rehearsed.with_(JOB, target={"profile": rehearsed.float_profile(tmp_path)})
    joined, real = join(ray, data=data), loop.take_step

    @contextlib.contextmanager
    def shared(*_: object, **__: object) -> Iterator[Cluster]:
        yield joined

    def counted(*given: Any) -> Any:
        steps.append(ray.tasks)
        return real(*given)

    monkeypatch.setattr(clusters, "clustered", shared)
    monkeypatch.setattr(loop, "take_step", counted)
    monkeypatch.setattr("edgekd.pipeline.workbench.load_task", lambda *_, **__: data)
    outcome = pipeline.run(job, out=tmp_path / "run", teacher=rehearsed.teacher(), cluster="local")
    history = History(trials=trials_in(tmp_path / "run"))
    promising = history.with_verdict(Verdict.PROMISING)
    assert len(promising) == 4
    finals = len({trial.proposal.spec for trial in history.trials if trial.engine})
    assert joined.epochs == ray.tasks == 4 * job.distillation.short_epochs + finals * job.distillation.epochs
    assert len(steps) == ray.tasks * math.ceil(len(data.train) / job.distillation.batch)
    sizes = [len(one.students) for one in read(tmp_path / "run" / "rounds.jsonl", Round)]
    assert sizes[0] == 2
    assert max(sizes) == 2
    assert outcome.student.spec in {trial.proposal.spec for trial in promising}
    monkeypatch.setattr(loop, "take_step", None)
    again = pipeline.run(job, out=tmp_path / "run", teacher=rehearsed.teacher())
    assert again.student == outcome.student


class TestRay:
    """Ray itself, with two worker processes here."""

    def test_a_killed_worker_costs_an_epoch_and_changes_no_weight(self, held: Task, tmp_path: Path):
        orders = [trainings.order(tmp_path, held, width=width, epochs=5) for width in (8, 32)]
        over = threading.Event()
        with clustered("local", JOB, beside=Path(), out=tmp_path) as cluster:
            assert cluster.workers == os.cpu_count()
            watch = threading.Thread(target=_kill_one, args=(cluster, orders, over), daemon=True)
            watch.start()
            cluster.train(orders)
            over.set()
            watch.join()
            listening = {
                one.laddr.ip.removeprefix("::ffff:")
                for child in psutil.Process().children(recursive=True)
                for one in child.net_connections()
                if one.status == psutil.CONN_LISTEN
            }
            assert listening == {"127.0.0.1"}
        assert cluster.lost >= 1
        assert cluster.epochs == 10
        for order in orders:
            whole = trainings.alone(order, held, tmp_path / "alone" / Path(order.folder).name)
            assert trainings.completed(order, held).weights.sha256 == whole.weights.sha256

    @pytest.mark.slow
    def test_a_head_that_dies_ends_the_run_with_4_and_keeps_the_epochs(
        self, held: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
        order = trainings.order(tmp_path, held, width=16, epochs=500)
        with clustered("local", JOB, beside=Path(), out=tmp_path) as cluster:
            watch = threading.Thread(target=_kill_head, args=(order,), daemon=True)
            watch.start()
            with pytest.raises(DeviceError, match="went away") as caught:
                cluster.train([order])
            watch.join()
        assert caught.value.exit_code == 4
        assert "it goes on here" in caught.value.mend
        assert 0 < saved_progress(Path(order.folder) / STATE).epoch < 500


def _kill_one(cluster: Cluster, orders: list[TrainingOrder], over: threading.Event) -> None:
    """Kill workers that train, from the first epoch that is kept until a loss is noticed."""
    while not over.wait(0.02) and not any(saved_progress(Path(order.folder) / STATE) for order in orders):
        pass
    while not over.is_set() and not cluster.lost:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::train_an_epoch" in " ".join(child.cmdline()):
                    child.kill()
                    break
        over.wait(1.0)  # for the loss to be noticed; one that came too late to be one is followed by another


def _kill_head(order: TrainingOrder) -> None:
    while not saved_progress(Path(order.folder) / STATE):
        time.sleep(0.05)
    for child in psutil.Process().children(recursive=True):
        if "gcs_server" in child.name():
            child.kill()
