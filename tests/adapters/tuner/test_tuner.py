"""The tuner by itself, called as NNI's dispatcher calls it."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from pathlib import Path

import nni
import pytest

from tips_nni.adapters import TIPSTuner, code_of, read_results
from tips_nni.core import CostTable, TipsError


def make(run: Path, **arguments) -> TIPSTuner:
    return TIPSTuner(run=str(run), **arguments)


def space_of(tuner):
    return tuner._task.space


def report(tuner, config, accuracy=0.5, **more):
    return {"default": accuracy, "code": code_of(space_of(tuner), config), **more}


def test_it_proposes_every_subnet_once_and_then_no_more(trained):
    tuner = make(trained)
    space = space_of(tuner)
    seen = set()
    for number in range(space.size):
        config = space.config(tuner.generate_parameters(number))
        seen.add(config)
        tuner.receive_trial_result(number, config.as_dict(), report(tuner, config))
    assert len(seen) == space.size
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(space.size)


def test_results_are_paired_by_code_not_by_parameters(trained):
    """As NNI 3.0 delivers them at trialConcurrency above 1: with the parameters of another trial."""
    tuner = make(trained)
    space = space_of(tuner)
    configs = [space.config(tuner.generate_parameters(i)) for i in range(4)]
    accuracies = [0.1, 0.2, 0.3, 0.4]
    for i, (config, accuracy) in enumerate(zip(configs, accuracies, strict=True)):
        wrong = configs[(i + 1) % 4].as_dict()
        tuner.receive_trial_result(i, wrong, report(tuner, config, accuracy))
    measured = {point.config: point.accuracy for point in tuner._search.result.evaluated}
    assert measured == dict(zip(configs, accuracies, strict=True))


def test_costs_come_from_the_tables_unless_the_trial_measured_them(trained):
    tuner = make(trained)
    space = space_of(tuner)
    first, second = (space.config(tuner.generate_parameters(i)) for i in range(2))
    tuner.receive_trial_result(0, {}, report(tuner, first))
    tuner.receive_trial_result(1, {}, report(tuner, second, latency_ms=3.25, note="warm"))
    one, other = tuner._search.result.evaluated
    flops = CostTable(tuner._task.architecture).flops(space.encode_many([first]))[0]
    assert one.costs["mflops"] == flops * 1e-6
    assert other.costs["latency_ms"] == 3.25
    assert set(other.costs) == {"mflops", "params_m", "memory_mb", "latency_ms"}


def test_constraints_and_objective_are_those_of_the_run_or_the_arguments(trained):
    tuner = make(trained)
    assert tuner._task.constraints.bounds == {"mflops": 100}
    assert tuner._search.objective_cost == "mflops"
    tuner = make(trained, constraints={"target": "adreno640", "latency_ms": 4.0})
    assert tuner._search.objective_cost == "latency_ms"
    latency = tuner._search.costs["latency_ms"]
    for number in range(12):
        config = space_of(tuner).config(tuner.generate_parameters(number))
        assert latency.evaluate(space_of(tuner).encode_many([config]))[0] <= 4.0
        tuner.receive_trial_result(number, {}, report(tuner, config))


def test_a_plain_number_is_paired_by_parameters_and_said_so(trained, caplog):
    tuner = make(trained)
    for number in range(2):
        parameters = tuner.generate_parameters(number)
        tuner.receive_trial_result(number, parameters, 0.25)
    assert [point.accuracy for point in tuner._search.result.evaluated] == [0.25, 0.25]
    assert len([r for r in caplog.records if "report no 'code'" in r.message]) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"default": "good"}, "no number"),
        ({"accuracy": 0.5}, "no number"),
        (float("nan"), "no number"),
        ({"default": 0.5, "code": "9-9"}, "not of this search space"),
        ({"default": 0.5, "code": "a-b"}, "not of this search space"),
        ("", "no number"),
    ],
)
def test_a_result_that_cannot_be_used_is_one_line_in_the_log(trained, caplog, value, words):
    tuner = make(trained)
    parameters = tuner.generate_parameters(0)
    tuner.receive_trial_result(0, parameters, value)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert words in record.message
    assert "\n" not in record.message
    assert not tuner._search.measured


def test_failed_trials_are_tried_once_more(trained):
    tuner = make(trained)
    space = space_of(tuner)
    first, second = (space.config(tuner.generate_parameters(i)) for i in range(2))
    tuner.trial_end(0, False)
    tuner.receive_trial_result(1, {}, report(tuner, first))
    tuner.trial_end(1, True)
    assert space.config(tuner.generate_parameters(2)) == second
    tuner.trial_end(2, False)
    assert space.config(tuner.generate_parameters(3)) != second


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "experiment" / "checkpoint"
    folder.mkdir(parents=True)
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(folder))
    return folder


def test_a_new_process_goes_on_where_the_old_one_was_killed(trained, checkpoint):
    first = make(trained)
    space = space_of(first)
    configs = [space.config(first.generate_parameters(i)) for i in range(6)]
    for number in range(4):
        first.receive_trial_result(number, {}, report(first, configs[number], number / 10))
    second = make(trained, seed=5)
    second.load_checkpoint()
    second.import_data([{"parameter": {}, "value": report(first, configs[1], 0.1)}])
    again = [space.config(second.generate_parameters(i)) for i in range(2)]
    assert again == configs[4:]
    assert {p.config: p.accuracy for p in second._search.result.evaluated} == {
        config: number / 10 for number, config in enumerate(configs[:4])
    }
    more = {space.config(second.generate_parameters(i)) for i in range(10)}
    assert not more & set(configs)


def test_the_record_is_what_nni_front_reads(trained, checkpoint):
    tuner = make(trained)
    config = space_of(tuner).config(tuner.generate_parameters(0))
    tuner.receive_trial_result(0, {}, report(tuner, config, 0.75))
    results = read_results(checkpoint.parent)
    assert results.space == space_of(tuner)
    assert [(point.config, point.accuracy) for point in results.front] == [(config, 0.75)]


def test_a_damaged_record_is_one_line(trained, checkpoint):
    tuner = make(trained)
    tuner.generate_parameters(0)
    record = checkpoint / "tips.json"
    record.write_text(record.read_text()[:-40])
    with pytest.raises(TipsError, match=r"tips.json is damaged"):
        make(trained).load_checkpoint()
    with pytest.raises(TipsError, match=r"tips.json is damaged"):
        read_results(checkpoint.parent)


def test_a_full_disk_stops_nothing_and_is_said(trained, checkpoint, caplog):
    tuner = make(trained)
    config = space_of(tuner).config(tuner.generate_parameters(0))
    kept = (checkpoint / "tips.json").read_text()
    # A file that may hold 100 bytes, in this process only: what a full disk looks like to it.
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        tuner.receive_trial_result(0, {}, report(tuner, config, 0.5))
        tuner.generate_parameters(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "the state of the search was not kept: cannot write" in caplog.text
    assert (checkpoint / "tips.json").read_text() == kept
    assert [path.name for path in checkpoint.iterdir()] == ["tips.json"]
    tuner.trial_end(0, True)
    tuner.trial_end(1, False)
    assert json.loads((checkpoint / "tips.json").read_text())["search"]["known"]


def test_the_search_space_must_be_the_networks(trained):
    tuner = make(trained)
    space = {dim.name: {"_type": "choice", "_value": list(dim.choices)} for dim in space_of(tuner).dims}
    tuner.update_search_space(space)
    name = space_of(tuner).names[0]
    for wrong, words in (
        ({key: value for key, value in space.items() if key != name}, f"lacks '{name}'"),
        ({**space, "lr": {"_type": "uniform", "_value": [0, 1]}}, "has 'lr'"),
        ({**space, name: {"_type": "choice", "_value": [1]}}, f"gives '{name}'"),
        ({**space, name: {"_type": "randint", "_value": [0, 3]}}, f"gives '{name}'"),
        (None, "lacks"),
    ):
        with pytest.raises(TipsError, match=words):
            tuner.update_search_space(wrong)


def test_a_strategy_brings_its_search(trained):
    """The run was made with tips; classArgs {strategy: flash} searches as FLASH does."""
    tuner = make(trained, strategy="flash", population=5)
    assert type(tuner._search).__name__ == "FlashSearch"
    space = space_of(tuner)
    seen = []
    for number in range(space.size):
        config = space.config(tuner.generate_parameters(number))
        assert config not in seen
        seen.append(config)
        tuner.receive_trial_result(number, {}, report(tuner, config, sum(config.values) / 1000))
    assert tuner._search.result.diagnostics["samples"] == space.size
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(space.size)
    assert make(trained, strategy="flash")._search.settings.population == 25
    assert make(trained)._search.settings.population == 4
    assert type(make(trained)._search).__name__ == "FrontSearch"


WRONG = [
    ({"populaton": 8}, "unknown classArgs key 'populaton'; did you mean 'population'?"),
    ({"population": 2}, "population 2"),
    ({"population": "many"}, "it must be a whole number"),
    ({"population": True}, "it must be a whole number"),
    ({"mutation": 3.0}, "mutation 3.0"),
    ({"seed": -1}, "at least 0"),
    ({"strategy": "tip"}, "unknown strategy 'tip'"),
    ({"strategy": "./none.yaml"}, "no such file"),
    ({"objective": "latency"}, "unknown objective 'latency'; did you mean 'latency_ms'?"),
    ({"constraints": {"latency": 3}}, "unknown key of constraints 'latency'"),
    ({"constraints": {"latency_ms": -3}}, "latency_ms"),
    ({"constraints": {"target": "pixel5", "latency_ms": 3}}, "unknown latency target 'pixel5'"),
    ({"constraints": {"mflops": 1e-6}}, "the smallest is"),
    ({"constraints": "fast"}, "a mapping"),
    ({"run": "nowhere"}, "has no run.yaml"),
    ({"run": 3}, "it must be a path"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_wrong_arguments_are_one_line(trained, arguments, words):
    with pytest.raises(TipsError) as caught:
        TIPSTuner(**{"run": str(trained), **arguments})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def start_process(tmp_path: Path, arguments: dict) -> subprocess.CompletedProcess:
    """Start NNI's own tuner process as its node server does, without a server to connect to."""
    tuner = {"className": "tips_nni.adapters.TIPSTuner", "codeDirectory": str(tmp_path), "classArgs": arguments}
    text = json.dumps({"tuner": tuner, "trialCodeDirectory": str(tmp_path)})
    encoded = base64.b64encode(text.encode()).decode()
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "nni", "--exp_params", encoded],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )


def test_nnis_tuner_process_ends_with_one_line(trained, tmp_path):
    done = start_process(tmp_path, {"run": str(trained), "populaton": 8})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("tips-nni: tuner TIPS: unknown classArgs key 'populaton'")
    assert "Traceback" not in done.stderr


def test_relative_paths_start_at_the_trial_code_directory(trained, tmp_path):
    inside = tmp_path / "code"
    inside.mkdir()
    (inside / "run").symlink_to(trained)
    done = start_process(inside, {"run": "run", "constraints": {"mflops": 1e-6}})
    assert "no subnet has mflops <= 1e-06" in done.stderr


@pytest.mark.parametrize("strategy", ["tips", "flash"])
def test_the_tuner_imports_no_torch(trained, strategy):
    """It has ten seconds to connect; importing torch and timm can take all of them."""
    code = (
        "import sys; from tips_nni.adapters import TIPSTuner; "
        f"TIPSTuner(run={str(trained)!r}, strategy={strategy!r}).generate_parameters(0); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'timm', 'pytorch_lightning'}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
