from mgpt.training.callbacks.sample_log import SampleLog, audit
from mgpt.training.checkpoint import TrainingState
from tests.fixtures.toy_training import Halt, make_trainer, steps


def planned(step):
    return [f"{step}-{row}" for row in range(8)]


def test_resume_logs_each_sample_once(settings, tmp_path):
    """The run stops two steps after its checkpoint."""
    first = make_trainer(settings(), [SampleLog(), Halt(5)])
    first.run(steps())
    first.state().save(tmp_path)
    first.stop, first.callbacks = False, [first.callbacks[0], Halt(7)]
    first.run(steps(start=5))
    assert len(first.callbacks[0].entries) == 7

    second = make_trainer(settings(), [SampleLog()])
    second.load(TrainingState.load(tmp_path))
    second.run(steps(start=5))
    entries = second.callbacks[0].entries
    assert audit(entries, planned, 12) == (0, 0)
    assert [entry["workers"] for entry in entries] == [1] * 12


def test_audit_counts_lost_and_repeated():
    entries = [{"step": step, "workers": 1, "ids": planned(step)} for step in range(3)]
    assert audit(entries, planned, 3) == (0, 0)
    assert audit(entries[:2], planned, 3) == (8, 0)
    assert audit([*entries, entries[1]], planned, 3) == (0, 8)
    wrong = {**entries[2], "ids": [*planned(2)[:-1], "1-0"]}
    assert audit([*entries[:2], wrong], planned, 3) == (1, 1)
