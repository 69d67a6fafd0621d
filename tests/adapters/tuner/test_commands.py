"""Registration, the files of an experiment, their check, and the commands without an experiment."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from nni.experiment.config import ExperimentConfig
from nni.tools.package_utils import AlgoMeta, get_algo_meta, register_algo_meta

from tips_nni.adapters import TIPSTuner, check_experiment, register, unregister, write_experiment
from tips_nni.adapters.tuner._task import load_task
from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.latency import latency_model, load_pack
from tips_nni.specs import load_run

EXAMPLES = Path(__file__).parents[3] / "examples" / "nni"


@pytest.fixture(autouse=True)
def _own_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path / "nni-config"))


def test_registration_can_be_taken_back():
    assert get_algo_meta("TIPS") is None
    path = register()
    assert register() == path
    assert get_algo_meta("tips").class_name == "tips_nni.adapters.TIPSTuner"
    assert yaml.safe_load(path.read_text())["tuners"][0]["builtinName"] == "TIPS"
    assert unregister()
    assert get_algo_meta("TIPS") is None
    assert not unregister()


def test_another_algorithm_of_that_name_is_left():
    register_algo_meta(AlgoMeta.load({"algoType": "tuner", "builtinName": "TIPS", "className": "other.Tuner"}))
    with pytest.raises(TipsError, match=r"another algorithm 'TIPS' \(other.Tuner\)"):
        register()
    with pytest.raises(TipsError, match=r"is other.Tuner, not ours"):
        unregister()
    assert get_algo_meta("TIPS").class_name == "other.Tuner"


@pytest.fixture
def spec(spec_file, trained):
    return load_run(spec_file, [f"output={trained}"])


def test_the_files_are_what_nni_and_the_tuner_read(spec, tmp_path, monkeypatch):
    folder = tmp_path / "experiment"
    config = write_experiment(spec, folder, trials=7, concurrency=3)
    loaded = ExperimentConfig.load(config)
    assert (loaded.max_trial_number, loaded.trial_concurrency) == (7, 3)
    monkeypatch.chdir(folder)
    tuner = TIPSTuner(**loaded.tuner.class_args)
    tuner.update_search_space(json.loads((folder / "search_space.json").read_text()))
    tuner.generate_parameters(0)
    assert str(spec.output) not in (folder / "run.yaml").read_text() or Path(spec.output).is_absolute()
    # Its own YAML files are in the folder: it can be moved to another place or machine.
    moved = shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "experiment", ignore_errors=True)
    assert load_run(Path(moved) / "run.yaml", check_paths=False).space == str(Path(moved) / "space.yaml")


def test_other_machines_get_the_supernet(spec, tmp_path):
    config = write_experiment(spec, tmp_path / "experiment", platform="remote")
    content = yaml.safe_load(config.read_text())
    assert content["trialCommand"] == "python3 -m tips_nni.cli nni-trial ."
    copied = tmp_path / "experiment" / "checkpoints" / "last.ckpt"
    assert copied.read_bytes() == (Path(spec.output) / "checkpoints" / "last.ckpt").read_bytes()
    assert {path.name for path in copied.parent.iterdir()} == {"last.ckpt"}
    untrained = spec.model_copy(update={"output": str(tmp_path / "nowhere")})
    with pytest.raises(TipsError, match=r"no trained supernet at .*add --train"):
        write_experiment(untrained, tmp_path / "other", platform="remote")
    write_experiment(untrained, tmp_path / "third", platform="remote", train=True)


def test_infeasible_constraints_are_refused_before_anything_is_written(spec_file, tmp_path):
    with pytest.raises(TipsError, match=r"no subnet has mflops <= 0\.001"):
        write_experiment(load_run(spec_file, ["constraints.mflops=0.001"]), tmp_path / "experiment")
    assert not (tmp_path / "experiment").exists()


@pytest.fixture
def config(spec, tmp_path):
    register()
    return write_experiment(spec, tmp_path / "experiment")


def spoil(config: Path, **keys) -> Path:
    content = {**yaml.safe_load(config.read_text()), **keys}
    config.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return config


def test_a_right_experiment_is_described(config):
    assert (
        check_experiment(config)
        == f"{config}: a valid experiment of test_resnet with 108 subnets; 32 trials, 2 at once"
    )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tuner": {"name": "TPE"}}, "the tuner is 'TPE'"),
        ({"tuner": None}, "tuner = None; it must be a mapping"),
        ({"tuner": "TIPS"}, "tuner = 'TIPS'; it must be a mapping"),
        ({"trainingService": None}, "trainingService = None; it must be a mapping"),
        ({"trialConcurrency": 0}, "NNI refuses it: assert self.trial_concurrency > 0"),
        ({"maxTrialNumber": "many"}, "max_trial_number"),
        ({"trialConcurency": 2}, "NNI refuses it"),
        ({"trialConcurrency": None}, "NNI refuses it"),
        ({"searchSpaceFile": "none.json"}, "NNI refuses it"),
        ({"trainingService": {"platform": "locale"}}, "'locale'; did you mean 'local'?"),
        ({"tuner": {"name": "TIPS", "classArgs": {"run": ".", "sed": 1}}}, "unknown classArgs key 'sed'; did you mean"),
        ({"tuner": {"name": "TIPS", "classArgs": {}}}, "classArgs lacks the key 'run'"),
        ({"tuner": {"name": "TIPS"}}, "classArgs lacks the key 'run'"),
        ({"tuner": {"name": "TIPS", "classArgs": {"run": "../none"}}}, "has no run.yaml"),
        (
            {"tuner": {"name": "TIPS", "classArgs": {"run": ".", "constraints": {"params_m": 0.001}}}},
            "no subnet has params_m <= 0.001; the smallest is",
        ),
        ({"tuner": {"name": "TIPS", "classArgs": {"run": ".", "objective": "energy"}}}, "unknown objective 'energy'"),
    ],
)
def test_a_wrong_experiment_is_one_line_with_its_file(config, keys, words):
    with pytest.raises(TipsError) as caught:
        check_experiment(spoil(config, **keys))
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(config))
    assert "\n" not in str(caught.value)


def test_a_strategy_of_ones_own_is_found_beside_the_experiment_wherever_the_check_is_typed(
    config, tmp_path, monkeypatch
):
    own = (EXAMPLES.parents[1] / "strategies" / "uniform.yaml").read_text()
    arguments = {"run": ".", "strategy": "./own.yaml"}
    spoil(config, tuner={"name": "TIPS", "classArgs": arguments})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TipsError, match=r"own\.yaml: there is no such file"):
        check_experiment(config)
    (config.parent / "own.yaml").write_text(own)
    assert "a valid experiment" in check_experiment(config)
    monkeypatch.chdir(config.parent)
    assert TIPSTuner(**arguments)._task.strategy == str(config.parent / "own.yaml")


def test_a_file_that_is_no_mapping_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("- tuner")
    with pytest.raises(TipsError, match=r"config\.yaml: is no mapping of keys"):
        check_experiment(path)


def test_the_search_space_file_must_be_the_networks(config):
    path = config.parent / "search_space.json"
    space = json.loads(path.read_text())
    space.pop("width.layer4")
    path.write_text(json.dumps(space))
    with pytest.raises(TipsError, match=r"lacks 'width.layer4'; write the file again"):
        check_experiment(config)


def test_without_registration_the_name_is_not_known_but_the_class_is(config):
    unregister()
    with pytest.raises(TipsError, match="run `tips-nni register` once"):
        check_experiment(config)
    tuner = {"className": "tips_nni.adapters.TIPSTuner", "codeDirectory": ".", "classArgs": {"run": "."}}
    assert "a valid experiment" in check_experiment(spoil(config, tuner=tuner))


def test_the_examples_fit_nnis_schema_and_each_other():
    main_config = ExperimentConfig.load(EXAMPLES / "config.yaml").canonical_copy()
    assert main_config.tuner.name == "TIPS"
    spec = load_run(EXAMPLES.parent / "digits" / "run.yaml")
    assert Path(main_config.tuner.class_args["run"]).name == Path(spec.output).name
    kubernetes = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    ExperimentConfig(**kubernetes)
    assert "nni-trial ." in kubernetes["trainingService"]["taskRoles"][0]["command"]


def test_the_examples_search_space_is_that_of_the_run(tmp_path):
    spec = load_run(EXAMPLES.parent / "digits" / "run.yaml")
    write_experiment(spec, tmp_path / "experiment", train=True)
    made = json.loads((tmp_path / "experiment" / "search_space.json").read_text())
    assert made == json.loads((EXAMPLES / "search_space.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nni-trial", "RUN"], "this command is a trial: NNI starts it"),
        (["nni-trial", "RUN", "--epochs", "3"], "goes with --train"),
        (["nni-trial", "RUN", "--train", "--epochs", "0"], "it must be at least 1"),
        (["nni-front", "nowhere"], "NNI has no experiment 'nowhere' here"),
        (["nni-front", "RUN"], "has no results of the tuner TIPS yet"),
        (["nni-front", "RUN", "--model", "m.safetensors"], "--model and --run go together"),
        (["nni-config", "SPEC", "--trials", "0"], "--trials 0; it must be at least 1"),
        (["nni-config", "none.yaml"], "there is no such file"),
    ],
)
def test_wrong_commands_are_one_line(arguments, words, trained, spec_file, capsys, monkeypatch):
    monkeypatch.delenv("NNI_PLATFORM", raising=False)
    names = {"RUN": str(trained), "SPEC": str(spec_file)}
    assert main([names.get(argument, argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("command", ["register", "unregister", "nni-front latest", "check CONFIG"])
def test_without_nni_the_commands_say_what_to_install(command, config, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nni", None)
    assert main([str(config) if word == "CONFIG" else word for word in command.split()]) == 2
    assert "pip install 'tips-nni[nni]'" in capsys.readouterr().err


def test_a_pack_of_ones_own_goes_along(spec_file, trained, tmp_path):
    pack = tmp_path / "mine.json"
    load_pack("adreno630").save(pack)
    write_experiment(load_run(spec_file, [f"output={trained}", f"constraints.target={pack}"]), tmp_path / "experiment")
    pack.unlink()
    task = load_task(tmp_path / "experiment")
    codes = task.space.sample(np.random.default_rng(0), 20)
    here = latency_model("adreno630", task.architecture).evaluate(codes)
    np.testing.assert_array_equal(task.costs["latency_ms"].evaluate(codes), here)
