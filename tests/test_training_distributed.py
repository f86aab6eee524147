"""One training in two processes, as `accelerate launch` starts them for two GPUs; here on the CPU."""

import importlib.util
import json
import sys
import time

import numpy as np
import pandas as pd
import pytest
from crops_on_disk import PYTHON, finish, kill_at_first_checkpoint, training, write_training_data
from planted_crops import FAST, planted_cohort, tiny_config

from lumbar_utils.crops.cache import CropCache
from lumbar_utils.errors import DataError
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.metrics.score import read_predictions
from lumbar_utils.training import distributed
from lumbar_utils.training.datasets import SharedBatches
from lumbar_utils.training.distributed import Processes, launch_training
from lumbar_utils.training.train import fit

# `--multi_gpu` is what makes accelerate start the processes where it counts fewer GPUs; the training is on the CPU.
LAUNCHER = (*PYTHON, "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed (pip install accelerate)"
)


def launched(data, run):
    return training(data, run, launcher=(*LAUNCHER, "-m"))


@pytest.fixture(scope="module")
def cohort():
    return planted_cohort(21, seed=1)


@pytest.fixture(scope="module")
def data(cohort, tmp_path_factory):
    config = tiny_config(classifier=FAST, epochs=4, folds=3, head_share=0.5, checkpoint_seconds=0.0)
    return write_training_data(tmp_path_factory.mktemp("data"), *cohort, config)


@pytest.fixture(scope="module")
def together(data):
    """A run folder that two processes made, and what they printed."""
    return data / "together", finish(launched(data, data / "together"))


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_the_batches_that_one_alone_would_see(count):
    def batches(rank, count):
        sampler = SharedBatches(23, 5, Processes(rank, count))
        sampler.seed(7)
        return list(sampler)

    alone = batches(0, 1)
    assert [len(batch) for batch in alone] == [5] * 4 and len({i for batch in alone for i in batch}) == 20
    parts = [batches(rank, count) for rank in range(count)]
    for number, batch in enumerate(alone):
        shared = [i for part in parts for i in part[number]]
        assert sorted(shared) == sorted(batch), "every study of the batch once, in one of the processes"
        assert all(part[number] for part in parts)


@needs_accelerate
def test_two_processes_see_as_many_studies_and_only_the_first_one_writes_and_talks(data, together):
    run, printed = together
    finish(training(data, data / "alone"))
    pair, alone = manifest(run), manifest(data / "alone")
    assert (pair["processes"], alone["processes"]) == (2, 1)
    for name in ("steps", "studies", "train_studies", "held_out_studies"):
        assert pair[name] == alone[name], name
    assert {p.name for p in run.iterdir()} == {p.name for p in (data / "alone").iterdir()}
    assert printed.count("model  ") == 1 and printed.count("epoch 4: loss") == 1
    assert pair["scores"]["weighted_prior"] == alone["scores"]["weighted_prior"]


@needs_accelerate
def test_gathered_predictions_are_those_of_one_process_with_the_same_weights(cohort, together):
    run, _ = together
    crops, _ = cohort
    ids = manifest(run)["held_out_studies"]
    assert len(ids) % 2 == 1, "one process must have a study more to predict than the other"
    alone = Predictor(run, "cpu", precision="float32").predict_crops(crops[s] for s in ids)
    gathered = read_predictions(pd.read_csv(run / "oof.csv", dtype={"row_id": str}), ids)
    assert np.allclose(gathered, alone, atol=1e-6)


@needs_accelerate
def test_a_training_started_from_a_notebook_is_read_by_the_cell_after_it(data, tmp_path, capsys):
    cache, labels = CropCache.open(data / "crops"), pd.read_csv(data / "train.csv", dtype={"study_id": str})
    config = tiny_config(classifier=FAST, epochs=1)
    held_out = list(labels["study_id"][:3])
    options = {"held_out": held_out, "held_out_crops": cache, "synthetic_only": True}
    assert not launch_training(cache, data / "train.csv", config, tmp_path / "run", **options)  # here is no GPU
    assert not (tmp_path / "run").exists()
    assert launch_training(cache, data / "train.csv", config, tmp_path / "run", n_processes=2, **options)
    assert manifest(tmp_path / "run")["processes"] == 2 and "epoch 1" in capsys.readouterr().out
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert list(fit(cache, labels, config, tmp_path / "run", **options).study_ids) == held_out
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('going'); sys.exit('error: no crops\\nreport')", "ended with 1: no crops$"),
        ("print('going'); sys.exit(7)", "ended with 7: going$"),
    ],
)
def test_a_training_that_fails_says_why(code, words, capsys):
    with pytest.raises(DataError, match=words):
        distributed._run([sys.executable, "-c", f"import sys; {code}"])
    assert "going" in capsys.readouterr().out


def test_a_training_that_is_interrupted_does_not_go_on(monkeypatch):
    """A notebook's stop button reaches the kernel alone; processes left behind would hold the GPUs."""

    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed, "print", interrupted, raising=False)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        distributed._run([sys.executable, "-c", "import time; print('going', flush=True); time.sleep(60)"])
    assert time.monotonic() - started < 50


@needs_accelerate
def test_two_processes_that_are_killed_go_on_to_the_same_result(data, together):
    run, cut = together[0], data / "cut"
    kill_at_first_checkpoint(launched(data, cut), cut)
    assert "continuing after epoch" in finish(launched(data, cut))
    first, again = (read_predictions(pd.read_csv(r / "oof.csv"), manifest(run)["held_out_studies"]) for r in (run, cut))
    assert np.allclose(first, again, atol=1e-4)
    assert len(pd.read_csv(cut / "history.csv")) == 4
