"""Whole experiments with NNI's own command line, node server and trial processes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import psutil
import pytest
import yaml

from tips_nni.adapters import register, unregister, write_experiment
from tips_nni.adapters.tuner._task import config_of
from tips_nni.elastic import AnytimeModel
from tips_nni.pipeline import Measurements, load_trained
from tips_nni.specs import load_run

# They wait for processes, however busy the machine is.
pytestmark = [pytest.mark.nni, pytest.mark.slow, pytest.mark.timeout(900)]
COSTS = {"latency_ms", "mflops", "params_m", "memory_mb"}


def prepare(nnictl, monkeypatch, spec_file: Path, trained: Path, **options) -> Path:
    """Register the tuner, write an experiment over a trained run and return its folder; in this process, to be fast."""
    monkeypatch.setenv("NNI_CONFIG_DIR", nnictl.environment["NNI_CONFIG_DIR"])
    register()
    folder = nnictl.home / "experiment"
    write_experiment(load_run(spec_file, [f"output={trained}"]), folder, **options)
    return folder


def change(folder: Path, **keys) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))
    return path


def one_more(nnictl, experiment: str) -> None:
    """Have an experiment that is done measure one subnet more; NNI asks the tuner again only after a resume."""
    nnictl(f"nnictl stop {experiment}")
    nnictl.resume(experiment)
    trials = nnictl.profile()["params"]["maxTrialNumber"]
    nnictl(f"nnictl update trialnum {experiment} --value {trials + 1}")


def kill_a_trial(nnictl) -> bool:
    """Kill a trial process if one runs."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        mine = (process.info["environ"] or {}).get("HOME") == str(nnictl.home)
        command = process.info["cmdline"] or []
        if mine and "nni-trial" in command and command[0].endswith("python"):
            process.kill()
            return True
    return False


def expected_accuracy(trained: Path, tmp_path: Path, codes: list[str]) -> list[float]:
    """Measure subnets in this process, by the search of `tips-nni run`."""
    parts = load_trained(trained)
    measure = Measurements(parts, tmp_path / "measured.json", next(parts.supernet.parameters()).device, "these")
    return measure([config_of(parts.supernet.space, code) for code in codes]).tolist()


def test_an_experiment_from_the_command_line(nnictl, spec_file, trained, tmp_path):
    """Four trials at once, one killed in the middle, stopped and resumed, looked at, exported."""
    folder = nnictl.home / "experiment"
    written = nnictl(f"tips-nni nni-config {spec_file} --set output={trained} --output {folder} --concurrency 4")
    assert "next           tips-nni register" in written
    config = change(folder, maxTrialNumber=8)
    assert "run `tips-nni register` once" in nnictl(f"tips-nni check {config}", status=2)
    nnictl("tips-nni register")
    assert "8 trials, 4 at once" in nnictl(f"tips-nni check {config}")

    experiment = nnictl.create(config)
    nnictl.until(lambda: kill_a_trial(nnictl))
    nnictl.until(lambda: len(nnictl.results()) >= 2)
    nnictl(f"nnictl stop {experiment}")
    nnictl.resume(experiment)
    nnictl(f"tips-nni nni-front {experiment} --wait --quiet")

    results = nnictl.results()
    codes = [metric["code"] for metric in results.values()]
    assert len(codes) == len(set(codes)) >= 8 - 1 - 4  # all but the killed one and those that the stop ended
    check_parameters(nnictl, results)
    for metric, accuracy in zip(results.values(), expected_accuracy(trained, tmp_path, codes), strict=True):
        assert metric["default"] == pytest.approx(accuracy, abs=1e-9)
    check_portal(nnictl, results)
    check_costs(trained, results)

    measured = {metric["code"]: metric["default"] for metric in results.values()}
    nnictl.until(lambda: nnictl.recorded(experiment) == measured)
    nnictl(f"nnictl experiment export {experiment} -f {tmp_path}/out.json -t json")
    exported = [json.loads(row["value"]) for row in json.loads((tmp_path / "out.json").read_text())]
    assert sorted(row["code"] for row in exported) == sorted(codes)
    nnictl(f"nnictl stop {experiment}")
    nnictl(f"nnictl view {experiment} --port {nnictl.port}")
    nnictl.until(lambda: nnictl.rest("check-status")["status"] == "VIEWED")
    assert nnictl.results() == results
    nnictl(f"nnictl stop {experiment}")
    check_front(nnictl, trained, tmp_path, results)


def check_parameters(nnictl, results):
    """NNI's own record of a trial's parameters is of the subnet that the trial measured."""
    space = nnictl.profile()["params"]["searchSpace"]
    for trial in nnictl.trials():
        if trial["id" if "id" in trial else "trialJobId"] in results:
            values = json.loads(trial["hyperParameters"][-1])["parameters"]
            code = "-".join(str(space[name]["_value"].index(values[name])) for name in space)
            assert code == results[trial["id" if "id" in trial else "trialJobId"]]["code"]


def check_portal(nnictl, results):
    """What NNI's page shows: the trade-off in the final metric, the course of every trial."""
    courses: dict[str, list[tuple[int, dict]]] = {}
    for row in nnictl.rest("metric-data?type=PERIODICAL"):
        courses.setdefault(row["trialJobId"], []).append((row["sequence"], json.loads(json.loads(row["data"]))))
    for trial, metric in results.items():
        assert set(metric) == {"default", "code", *COSTS}
        course = [value for _, value in sorted(courses[trial], key=lambda item: item[0])]
        assert len(course) == 2  # 128 images in batches of 64
        assert course[-1]["default"] == metric["default"]
        assert all(value[name] == metric[name] for value in course for name in COSTS)


def check_costs(trained, results):
    parts = load_trained(trained)
    space = parts.supernet.space
    for metric in results.values():
        code = space.encode_many([config_of(space, metric["code"])])
        for name in COSTS:
            assert metric[name] == pytest.approx(parts.costs[name].evaluate(code)[0], abs=5e-7)


def check_front(nnictl, trained, tmp_path, results):
    """`nni-front` of the stopped experiment: the table, the CSV file, and the anytime model with test accuracies."""
    model = tmp_path / "anytime.safetensors"
    table = tmp_path / "front.csv"
    printed = nnictl(f"tips-nni nni-front latest --csv {table} --run {trained} --model {model}")
    assert f"of {len(results)} measured subnets" in printed
    with table.open() as file:
        rows = list(csv.DictReader(file))
    loaded = AnytimeModel.load(model)
    assert [row["accuracy"] for row in loaded.front] == [float(row["validation_accuracy"]) for row in rows]
    for row in loaded.front:
        rivals = [m for m in results.values() if m["mflops"] <= row["mflops"]]
        assert row["accuracy"] == max(metric["default"] for metric in rivals)
        assert 0 <= row["test_accuracy"] <= 1


def test_results_of_another_experiment_are_not_measured_again(nnictl, monkeypatch, spec_file, trained, tmp_path):
    """The class by its name; imported results; trials that train their subnet alone."""
    folder = prepare(nnictl, monkeypatch, spec_file, trained, train=True, trials=2, concurrency=1)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    command = settings["trialCommand"] + " --epochs 3"
    tuner = {
        "className": "tips_nni.adapters.TIPSTuner",
        "codeDirectory": ".",
        "classArgs": {"run": ".", "population": 4},
    }
    config = change(folder, tuner=tuner, trialCommand=command, maxTrialNumber=1)
    unregister()
    assert "1 trials" in nnictl(f"tips-nni check {config}")
    experiment = nnictl.create(config)
    nnictl.until(lambda: nnictl.rest("check-status")["status"] == "DONE")
    (first,) = nnictl.results().values()
    courses = nnictl.rest("metric-data?type=PERIODICAL")
    assert len(courses) == 3  # one for every epoch

    space = json.loads((folder / "search_space.json").read_text())
    known = [[0, 0, 0, 0, 0], [2, 2, 1, 2, 1], [1, 1, 1, 1, 1]]
    names = list(space)
    data = [
        {
            "parameter": {name: space[name]["_value"][i] for name, i in zip(names, code, strict=True)},
            "value": {"default": 0.5, "code": "-".join(map(str, code))},
        }
        for code in known
    ]
    (tmp_path / "import.json").write_text(json.dumps(data))
    nnictl(f"nnictl experiment import {experiment} -f {tmp_path}/import.json")
    one_more(nnictl, experiment)
    nnictl.until(lambda: len(nnictl.results()) == 2)
    second = next(metric["code"] for metric in nnictl.results().values() if metric != first)
    assert second not in {first["code"], *(entry["value"]["code"] for entry in data)}
    known_to_tuner = {first["code"], second, *(entry["value"]["code"] for entry in data)}
    nnictl.until(lambda: set(nnictl.recorded(experiment)) == known_to_tuner)
    nnictl(f"nnictl stop {experiment}")


def test_an_experiment_goes_on_once_its_missing_supernet_is_there(nnictl, monkeypatch, spec_file, trained_copy):
    checkpoint = trained_copy / "checkpoints" / "last.ckpt"
    hidden = checkpoint.rename(nnictl.home / "hidden.ckpt")
    folder = prepare(nnictl, monkeypatch, spec_file, trained_copy, trials=1, concurrency=1)
    experiment = nnictl.create(folder / "config.yaml")
    lines = nnictl(f"tips-nni nni-front {experiment} --wait --quiet", status=2).splitlines()
    assert len(lines) == 1
    assert "has no measured subnet: there is no trained supernet at" in lines[0]
    hidden.rename(checkpoint)
    one_more(nnictl, experiment)
    nnictl.until(lambda: len(nnictl.results()) == 1)
    nnictl(f"tips-nni nni-front {experiment} --wait --quiet")
    nnictl(f"nnictl stop {experiment}")


def test_a_misspelt_argument_is_one_line(nnictl, monkeypatch, spec_file, trained):
    folder = prepare(nnictl, monkeypatch, spec_file, trained)
    config = change(folder, tuner={"name": "TIPS", "classArgs": {"run": ".", "populaton": 8}})
    words = "unknown classArgs key 'populaton'; did you mean 'population'?"
    (line,) = nnictl(f"tips-nni check {config}", status=2).splitlines()
    assert words in line
    experiment = nnictl.create(config)
    lines = nnictl(f"tips-nni nni-front {experiment} --wait --quiet", status=2).splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    nnictl(f"nnictl stop {experiment}")
    change(folder, tuner={"name": "TIPS", "classArgs": {"run": "."}})
    assert "a valid experiment" in nnictl(f"tips-nni check {config}")


def test_the_example_of_the_readme(nnictl):
    """`examples/nni/config.yaml` as it is, after a short run of `examples/digits`."""
    examples = Path(__file__).parents[3] / "examples"
    shutil.copytree(examples, nnictl.home / "examples")
    short = (
        "--set training.epochs=1 --set training.warmup_epochs=0 --set search.generations=0 --set search.population=4"
    )
    nnictl(f"tips-nni run examples/digits/run.yaml --quiet {short} --set search.images=64 --set export.onnx=0")
    nnictl("tips-nni register")
    assert "a valid experiment of resnet18" in nnictl("tips-nni check examples/nni/config.yaml")
    experiment = nnictl.create(Path("examples/nni/config.yaml"))
    nnictl.until(lambda: len(nnictl.results()) >= 2)
    assert "measured subnets, in accuracy against mflops" in nnictl(f"tips-nni nni-front {experiment}")
    nnictl(f"nnictl stop {experiment}")
