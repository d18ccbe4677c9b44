"""A command line as a trainer: what it is handed, what it may leave, and how each way of failing is told."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deploy.training.candidate import train
from deploy.training.snapshot import Snapshot
from deploy.training.trainers import Cancelled, Job, Trainer, trainer_for
from schemas.errors import ConfigurationError, TrainerCommandError
from schemas.settings import TrainerCommand, TrainerSection
from tests.support_deploy import CONTRACT, artifact, rows

#: What a command of a user's own would begin with.
HEAD = """
import json, pathlib, sys
spec = json.loads(pathlib.Path(sys.argv[-1]).read_text())
out = pathlib.Path(spec["output"])
"""
#: Fits nothing: answers sigmoid(0.3 * first feature - 4), which is enough to be judged.
LEARN = """
import pyarrow.parquet, pyarrow.feather, pyarrow.csv
from onnx import TensorProto, helper, numpy_helper
import numpy
read = {"parquet": pyarrow.parquet.read_table, "arrow": pyarrow.feather.read_table, "csv": pyarrow.csv.read_csv}
table = read[spec["format"]](spec["data"])
names = [feature["name"] for feature in spec["features"]]
assert table.column_names == [*names, spec["label"], spec["weight"], spec["event_ms"]], table.column_names
assert table.num_rows == spec["rows"]
nodes = [
    helper.make_node("Gather", [spec["onnx"]["input"], "first"], ["hour"], axis=1),
    helper.make_node("Mul", ["hour", "slope"], ["product"]),
    helper.make_node("Sub", ["product", "twelve"], ["shifted"]),
    helper.make_node("Sigmoid", ["shifted"], ["column"]),
    helper.make_node("Reshape", ["column", "flat"], [spec["onnx"]["output"]]),
]
graph = helper.make_graph(
    nodes, "line",
    [helper.make_tensor_value_info(spec["onnx"]["input"], TensorProto.FLOAT, [None, len(names)])],
    [helper.make_tensor_value_info(spec["onnx"]["output"], TensorProto.FLOAT, [None])],
    [numpy_helper.from_array(numpy.int64([0]), "first"), numpy_helper.from_array(numpy.float32([0.3]), "slope"),
     numpy_helper.from_array(numpy.float32([4.0]), "twelve"),
     numpy_helper.from_array(numpy.int64([-1]), "flat")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
(out / spec["onnx"]["file"]).write_bytes(model.SerializeToString())
(out / spec["metrics"]).write_text(json.dumps({"rounds": spec["options"]["rounds"]}))
"""


def _script(tmp_path: Path, body: str) -> tuple[str, ...]:
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
    return (sys.executable, str(file))


def _job(cancelled: Any = lambda: False, **options: Any) -> Job:
    snapshot = Snapshot.of(*rows(300))
    return Job(
        _contract(**options), snapshot.table, snapshot.labels, np.ones(300), snapshot.event_ms, cancelled
    )


def _contract(**options: Any) -> Any:
    rules = {"trainer": "command", "options": {"command": "mine", **options}, "weightings": ("uniform",)}
    return CONTRACT.model_copy(update={"training": CONTRACT.training.model_copy(update=rules)})


def _trainer(argv: tuple[str, ...], **limits: Any) -> Trainer:
    section = TrainerSection(commands={"mine": TrainerCommand(argv=argv, **limits)})
    return trainer_for(_contract(), section)


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv"])
def test_a_command_line_trains(tmp_path: Path, form: str) -> None:
    """It reads the rows in the format it is given, its model is judged like any other, its metrics are on record."""
    argv = _script(tmp_path, LEARN)
    if form != "parquet":
        fitted = _trainer(argv, data=form)(_job(rounds=3))
        assert fitted.metrics == {"rounds": 3.0}
        return
    contract = _contract(rounds=3)
    trained = train(Snapshot.of(*rows(1_500)), contract, _trainer(argv))
    assert trained.metrics["rounds"] == 3.0
    assert trained.metrics["auc"] > 0.7


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('out of memory')", r"ended with status 1; it said: out of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL; it said nothing"),
        ("pass", "left no file model.onnx"),
        ("(out / 'model.onnx').symlink_to('/etc/hostname')", "left no file model.onnx"),
        ("(out / 'model.onnx').write_bytes(b'x')", "left no file metrics.json"),
        ("(out / 'model.onnx').write_bytes(b'x'); (out / 'metrics.json').write_text('[1]')", "object of numbers"),
        ("(out / 'model.onnx').write_bytes(b'x'); (out / 'metrics.json').write_text('{\"a\": NaN}')", "not a finite"),
        ("import resource; sys.exit(str(resource.getrlimit(resource.RLIMIT_FSIZE)))", r"it said: \(100000, 100000\)"),
        # Whoever is first: the kernel that refuses the write, or the trainer that looks at what was written.
        ("(out / 'model.onnx').write_bytes(b'x' * 200_000)", "SIGXFSZ|File too large|more than its output_bytes_max"),
        ("[(out / str(at)).write_bytes(b'x' * 90_000) for at in range(3)]", "more than its output_bytes_max"),
    ],
)  # fmt: skip
def test_each_way_of_failing_is_told(tmp_path: Path, body: str, words: str) -> None:
    """With the exit status, the signal, the file or the end of standard error."""
    with pytest.raises(TrainerCommandError, match=words):
        _trainer(_script(tmp_path, body), output_bytes_max=100_000)(_job())


def test_a_program_that_is_not_there_is_named() -> None:
    """As a shell would say it."""
    with pytest.raises(TrainerCommandError, match="status 127; it said: no-such-program cannot be run"):
        _trainer(("no-such-program",))(_job())


def _alive(pid_file: Path) -> bool:
    try:
        return bool(psutil.Process(int(pid_file.read_text())).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


#: Leaves a grandchild behind that would live for an hour.
LINGER = """
import subprocess, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
pathlib.Path({file!r} + ".draft").write_text(str(child.pid))
pathlib.Path({file!r} + ".draft").rename({file!r})
import time; time.sleep(3600)
"""


def test_a_command_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    """The whole session is killed, not only the program."""
    pid_file = tmp_path / "pid"
    argv = _script(tmp_path, LINGER.format(file=str(pid_file)))
    limit_ms = 500
    while not pid_file.exists():  # where a Python needs longer to start, it is given more
        limit_ms *= 2
        with pytest.raises(TrainerCommandError, match=f"longer than its time_limit of {limit_ms} ms"):
            _trainer(argv, time_limit=limit_ms)(_job())
    _gone(pid_file)


def test_a_trainer_that_is_told_to_stop_takes_its_command_with_it(tmp_path: Path) -> None:
    """The request stays open: being stopped is no failure."""
    pid_file = tmp_path / "pid"
    argv = _script(tmp_path, LINGER.format(file=str(pid_file)))
    with pytest.raises(Cancelled):
        _trainer(argv)(_job(cancelled=pid_file.exists))
    _gone(pid_file)


def _gone(pid_file: Path) -> None:
    waited = threading.Event()
    deadline = time.monotonic() + 120
    while _alive(pid_file):
        assert time.monotonic() < deadline, "the grandchild lives on"
        waited.wait(0.02)


def test_a_command_sees_the_variables_it_is_allowed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the trainer's passwords, and nothing of its directory afterwards."""
    monkeypatch.setenv("DRIFTLINE_CLICKHOUSE__PASSWORD", "secret")
    monkeypatch.setenv("MINE", "yes")
    body = f"""
    import os
    pathlib.Path({str(tmp_path / "seen")!r}).write_text(json.dumps([dict(os.environ), os.getcwd(), str(out)]))
    sys.exit(1)
    """
    with pytest.raises(TrainerCommandError):
        _trainer(_script(tmp_path, body), environment=("PATH", "MINE"))(_job())
    seen, place, out = json.loads((tmp_path / "seen").read_text())
    assert seen.keys() - {"LC_CTYPE"} == {"PATH", "MINE"} & os.environ.keys()
    assert Path(out).parent == Path(place)
    assert not Path(place).exists()


def test_commands_are_the_operators_to_name() -> None:
    """A contract comes over the wire: it can choose among the trainer's commands, and make none of its own."""
    trainer = trainer_for(_contract(), TrainerSection())
    with pytest.raises(ConfigurationError, match="'mine' is not among this trainer's commands"):
        trainer(_job())


def test_the_shipped_artifact_has_the_names_commands_are_told() -> None:
    """One input and one output, called the same for every trainer."""
    import onnxruntime

    session = onnxruntime.InferenceSession(artifact().onnx, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["features"]
    assert [one.name for one in session.get_outputs()] == ["score"]
