"""Every way to get a spec wrong, with the exact line that the user reads."""

# ruff: noqa: E501 (messages stay on one line, as the user reads them)
from __future__ import annotations

from pathlib import Path

import pytest

from tips_nni.core import TipsError
from tips_nni.specs import load_run, load_space, load_strategy

RUN = """\
backbone:
  name: resnet10t
strategy: uniform
data:
  kind: digits
training:
  epochs: 3
output: runs/x
"""
SPACE = "family: mine\nwidth:\n  ratios: [0.5, 1.0]\n"
STRATEGY = "name: mine\npolicy:\n  name: uniform\n"


def message(load, path: Path, *args) -> str:
    """Return the one line of the error, without the folder of the test."""
    with pytest.raises(TipsError) as caught:
        load(path, *args)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(path.parent) + "/", "")


RUN_ERRORS = [
    (
        RUN.replace("epochs: 3", "epochs: -3"),
        "7: training.epochs = -3: must be at least 1 (passes over the training images)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: 2.5"),
        "7: training.epochs = 2.5: must be an integer, not a number (passes over the training images)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: true"),
        "7: training.epochs = true: must be an integer, not true or false (passes over the training images)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: '3'"),
        '7: training.epochs = "3": must be an integer, not text (passes over the training images)',
    ),
    (
        RUN.replace("epochs: 3", "epochs: [3]"),
        "7: training.epochs = [3]: must be an integer, not a list (passes over the training images)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  lr: 0"),
        "8: training.lr = 0: must be greater than 0 (highest learning rate)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  lr: .nan"),
        "8: training.lr = NaN: must be a finite number (highest learning rate)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  lr: .inf"),
        "8: training.lr = Infinity: must be a finite number (highest learning rate)",
    ),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  lr: fast"),
        '8: training.lr = "fast": must be a number, not text (highest learning rate)',
    ),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  momentum: 1"),
        "8: training.momentum = 1: must be less than 1 (momentum of the optimizers that have one)",
    ),
    (
        RUN.replace("digits", "digits\n  validation: 1.0"),
        "6: data.validation = 1.0: must be less than 1 (share of the training images kept for the search)",
    ),
    (
        RUN.replace("digits", "digits\n  batch_size: 70000"),
        "6: data.batch_size = 70000: must be at most 65536 (images of one training step, on all devices together)",
    ),
    (
        RUN.replace("digits", "digits\n  download: yes"),
        '6: data.download = "yes": must be true or false, not text (let torchvision download the data set)',
    ),
    (
        RUN.replace("digits", "digit"),
        "5: data.kind = \"digit\": must be one of digits, folder, npz, torchvision; did you mean 'digits'? (where the images come from)",
    ),
    (
        RUN.replace("digits", "digits\n  augment: null"),
        "6: data.augment = null: must be one of none, light, standard; did you mean 'none'? (augmentation of the training images)",
    ),
    (
        RUN.replace("resnet10t", "3"),
        "2: backbone.name = 3: must be text, not an integer (a timm model, see timm.list_models())",
    ),
    (
        RUN.replace("resnet10t", '""'),
        "2: backbone.name is empty; give at least one (a timm model, see timm.list_models())",
    ),
    (
        RUN.replace("strategy: uniform", "startegy: uniform"),
        "3: unknown key 'startegy'; did you mean 'strategy'? (allowed: backbone, constraints, data, export, output, search, seed, space, strategy, training)",
    ),
    (
        RUN.replace("name: resnet10t", "nam: resnet10t"),
        "2: backbone: unknown key 'nam'; did you mean 'name'? (allowed: args, checkpoint_path, name, pretrained) (and 1 more error)",
    ),
    (
        RUN.replace("output: runs/x\n", ""),
        " output is missing; add it (folder of the run, relative to where the command is typed)",
    ),
    (
        RUN.replace("  name: resnet10t", "  pretrained: false"),
        "1: backbone.name is missing; add it (a timm model, see timm.list_models())",
    ),
    (
        RUN.replace("backbone:\n  name: resnet10t", "backbone: resnet10t"),
        '1: backbone = "resnet10t": must be a mapping of keys to values, not text (the timm model to make elastic)',
    ),
    (RUN.replace("  epochs: 3", "  lr: 0.1"), "6: training: needs either epochs or steps, neither is given; add one"),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  steps: 5"),
        "8: training: needs either epochs or steps, both are given; remove one",
    ),
    (
        RUN.replace("epochs: 3", "epochs: 3\n  warmup_epochs: 3"),
        "8: training: warmup_epochs = 3 must be less than epochs = 3; lower it",
    ),
    (
        RUN.replace("kind: digits", "kind: npz"),
        "5: data: kind npz needs the key path; add it (folder or .npz file, relative to the spec's own folder)",
    ),
    (
        RUN.replace("kind: digits", "kind: folder\n  path: x"),
        "5: data: kind folder needs the key image_size; add it (side in pixels that images are resized to)",
    ),
    (
        RUN.replace("kind: digits", "kind: torchvision"),
        "5: data: kind torchvision needs the key name; add it (a class of torchvision.datasets, e.g. CIFAR10)",
    ),
    (RUN.replace("digits", "digits\n  path: x"), "6: data: kind digits takes no key path; remove it"),
    (RUN.replace("digits", "digits\n  name: x"), "6: data: kind digits takes no key name; remove it"),
    (RUN.replace("digits", "digits\n  download: true"), "6: data: kind digits cannot download; remove download"),
    (RUN.replace("digits", "digits\n  args: {a: 1}"), "6: data: kind digits takes no args; remove them"),
    (
        RUN.replace("resnet10t", "resnet10t\n  args: {in_chans: 1}"),
        "3: backbone: args.in_chans is not allowed here; remove it, it comes from the data",
    ),
    (
        RUN.replace("resnet10t", "resnet10t\n  args: {pretrained: true}"),
        "3: backbone: args.pretrained is not allowed here; write backbone.pretrained instead",
    ),
    (RUN + "seed: -1\n", "9: seed = -1: must be at least 0 (seed of everything random)"),
    (RUN + "search:\n  population: 2\n", "10: search.population = 2: must be at least 4 (subnets of one generation)"),
    (
        RUN + "search:\n  algorithm: evolutoin\n",
        "10: search: unknown search algorithm 'evolutoin'; did you mean 'evolution'? (allowed: evolution, flash)",
    ),
    (
        RUN + "search:\n  algorithm: flash\n  options: {predictr: ridge}\n",
        "10: search: unknown option of search algorithm 'flash' 'predictr'; did you mean 'predictor'? "
        "(allowed: iterations, kicks, predictor, starts, training_free)",
    ),
    (
        RUN + "search:\n  algorithm: flash\n  options: {predictor: ridges}\n",
        "10: search: unknown predictor of search algorithm 'flash' 'ridges'; did you mean 'ridge'? "
        "(allowed: log_linear, nn_degree, ridge)",
    ),
    (
        RUN + "search:\n  algorithm: flash\n  options: {starts: 0}\n",
        "10: search: starts = 0 of search algorithm 'flash'; it must be at least 1",
    ),
    (
        RUN + "search:\n  algorithm: flash\n  options: {starts: 2.5}\n",
        "10: search: starts = 2.5 of search algorithm 'flash' must be a whole number",
    ),
    (
        RUN + "search:\n  options: {starts: 2}\n",
        "9: search: unknown option of search algorithm 'evolution' 'starts' (allowed: )",
    ),
    (
        RUN + "constraints:\n  latency: 3\n",
        "10: constraints: unknown key 'latency'; did you mean 'latency_ms'? (allowed: coverage, latency_ms, memory_mb, mflops, packs, params_m, target)",
    ),
    (
        RUN + "constraints:\n  mflops: -1\n  params_m: 0\n",
        "10: constraints.mflops = -1: must be greater than 0 (multiply-adds of one image, in millions) (and 1 more error)",
    ),
    (
        RUN.replace("strategy: uniform", "strategy: unifrom"),
        "3: strategy: unknown strategy 'unifrom'; did you mean 'uniform'? (",
    ),
    (RUN + "space: mobilnetv2\n", "9: space: unknown search space 'mobilnetv2'; did you mean 'mobilenetv2'? ("),
    (RUN + "space: ./none.yaml\n", "9: space: none.yaml: there is no such file; did you mean 'run.yaml'?"),
    (
        RUN.replace("resnet10t", "beit_base_patch16_224"),
        "2: backbone.name: no built-in search space fits the backbone 'beit_base_patch16_224' (families: convnext, ",
    ),
    (
        RUN.replace("kind: digits", "kind: npz\n  path: no.npz"),
        '6: data.path = "no.npz": there is no no.npz; check the path',
    ),
    (
        RUN.replace("resnet10t", "resnet10t\n  checkpoint_path: c.pth"),
        '3: backbone.checkpoint_path = "c.pth": there is no c.pth; check the path',
    ),
    # YAML itself
    ("", " the file is empty; write its keys, the examples show them"),
    ("# only a comment\n", " the file is empty; write its keys, the examples show them"),
    ("- a\n- b\n", " the file holds a list; its top level must be a mapping of keys to values"),
    ("just text\n", " the file holds text; its top level must be a mapping of keys to values"),
    (RUN + "seed: 1\nseed: 2\n", "10: the key 'seed' stands here and in line 9; remove one"),
    (
        RUN.replace("  epochs: 3", "  epochs: 3\n  lr: 1\n  epochs: 4"),
        "9: the key 'epochs' stands here and in line 7; remove one",
    ),
    (
        RUN + "export: {onnx: 2\n",
        "10: is not YAML: expected ',' or '}', but got '<stream end>'; check the indentation, quotes and colons here",
    ),
    (
        RUN + "\tseed: 1\n",
        "9: is not YAML: found character '\\t' that cannot start any token; check the indentation, quotes and colons here",
    ),
    (
        RUN + " seed: 1\n",
        "9: is not YAML: mapping values are not allowed here; check the indentation, quotes and colons here",
    ),
    (
        RUN + "seed: *other\n",
        "9: is not YAML: found undefined alias 'other'; check the indentation, quotes and colons here",
    ),
    (
        RUN + "---\nseed: 1\n",
        "9: is not YAML: but found another document; check the indentation, quotes and colons here",
    ),
    (RUN + "seed: \0\n", "9: holds the character U+0000, not allowed in YAML; remove it"),
    (
        RUN + "seed: !!python/object/apply:os.system [ls]\n",
        "9: the tag !!python/object/apply:os.system is not allowed; write the plain value",
    ),
    (RUN + "seed: !mine 3\n", "9: the tag !mine is not allowed; write the plain value"),
    (RUN + "search: &s\n  images: *s\n", "9: an anchor refers to itself; write the value out"),
    (RUN + "? [a, b]\n: 3\n", "9: a key must be plain text, not a list or a mapping"),
    (
        RUN + "<<: 3\n",
        "9: is not YAML: expected a mapping or list of mappings for merging, but found scalar; check the indentation, quotes and colons here",
    ),
    (RUN + "seed: " + "9" * 5000 + "\n", "9: the number 9999999999999999999... is too large; use at most 18 digits"),
    (RUN + "seed: " + "[" * 3000 + "\n", " is nested too deeply; a spec needs no more than a few levels"),
]


@pytest.mark.parametrize(("text", "expected"), RUN_ERRORS, ids=[str(i) for i in range(len(RUN_ERRORS))])
def test_bad_run(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    found = message(load_run, path)
    expected = f"run.yaml:{expected}"
    assert found == expected or (expected.endswith(("(", ", ")) and found.startswith(expected))


SPACE_ERRORS = [
    ("family: mine\n", " has no elastic dimension; add width, hidden, heads, depth or resolution"),
    (
        SPACE.replace("[0.5, 1.0]", "[1.0, 0.5]"),
        "3: width: ratios = [1.0, 0.5] must ascend without repeats and end with 1.0, the backbone itself",
    ),
    (
        SPACE.replace("[0.5, 1.0]", "[0.5, 0.5, 1]"),
        "3: width: ratios = [0.5, 0.5, 1.0] must ascend without repeats and end with 1.0, the backbone itself",
    ),
    (
        SPACE.replace("[0.5, 1.0]", "[0.5]"),
        "3: width: ratios = [0.5] must ascend without repeats and end with 1.0, the backbone itself",
    ),
    (
        SPACE.replace("[0.5, 1.0]", "[]"),
        "3: width.ratios is empty; give at least one (shares in ascending order; the last is 1.0)",
    ),
    (
        SPACE.replace("[0.5, 1.0]", "0.5"),
        "3: width.ratios = 0.5: must be a list, e.g. [0.5, 1.0], not a number (shares in ascending order; the last is 1.0)",
    ),
    (
        SPACE.replace("[0.5, 1.0]", "\n    - 0.5\n    - 1.5"),
        "5: width.ratios[1] = 1.5: must be at most 1 (shares in ascending order; the last is 1.0)",
    ),
    (
        SPACE + "heads:\n  ratios: [0.5]\n",
        "5: heads: ratios = [0.5] must ascend without repeats and end with 1.0, the backbone itself",
    ),
    (SPACE + "heads: {ratios: [1.0], divisor: 8}\n", "4: heads: unknown key 'divisor' (allowed: ratios)"),
    (SPACE + "  divisor: 0\n", "4: width.divisor = 0: must be at least 1 (channels are rounded to multiples of it)"),
    (SPACE + "depth: 2\n", "4: depth = 2: must be a mapping of keys to values, not an integer (blocks of a stage)"),
    (SPACE + "depth:\n  min: 0\n", "5: depth.min = 0: must be at least 1 (blocks that every stage keeps)"),
    (SPACE + "resolution: {}\n", "4: resolution: needs either ratios or choices, neither is given; add one"),
    (
        SPACE + "resolution: {ratios: [1.0], choices: [32]}\n",
        "4: resolution: needs either ratios or choices, both are given; remove one",
    ),
    (
        SPACE + "resolution: {choices: [32, 16]}\n",
        "4: resolution: choices = [32, 16] must ascend without repeats; sort them",
    ),
    (
        SPACE + "matches: resnet*\n",
        '4: matches = "resnet*": must be a list, e.g. [0.5, 1.0], not text (patterns of timm model names, * for any text)',
    ),
    (
        SPACE.replace("width", "widht"),
        "2: unknown key 'widht'; did you mean 'width'? (allowed: depth, description, family, fixed, heads, hidden, matches, resolution, width)",
    ),
]


@pytest.mark.parametrize(("text", "expected"), SPACE_ERRORS)
def test_bad_space(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    assert message(load_space, path) == f"space.yaml:{expected}"


TIPS = "name: mine\npolicy:\n  name: path_importance\n  refresh: 10\n"
STRATEGY_ERRORS = [
    (
        STRATEGY.replace("uniform", "unifrm"),
        "3: policy.name: unknown policy 'unifrm'; did you mean 'uniform'? (allowed: attentive, global_width, path_importance, uniform)",
    ),
    (
        TIPS + "  lamda: 2\n",
        "5: policy.lamda: unknown option of policy 'path_importance' 'lamda'; did you mean 'lambda'? (allowed: compute_neutral, coupling, decay, directed, edge_weight, exploration, form, jitter, lambda, memory, noise, paths, refresh, score, temperature, thrift, window)",
    ),
    (
        TIPS + "  lambda: 0\n",
        "5: policy.lambda: lambda = 0.0 of policy 'path_importance'; it must be finite and above 0",
    ),
    (
        TIPS + "  temperature: .inf\n",
        "5: policy.temperature: temperature = inf of policy 'path_importance'; it must be finite and above 0",
    ),
    (
        TIPS + "  temperature: [1]\n",
        "5: policy.temperature: temperature = [1] of policy 'path_importance' must be a number",
    ),
    (
        TIPS + "  form: paths\n",
        "5: policy.form: unknown form of policy 'path_importance' 'paths'; did you mean 'path'? (allowed: budget, growth, marginal, path)",
    ),
    (TIPS + "  directed: 1\n", "5: policy.directed: directed = 1 of policy 'path_importance' must be of type bool"),
    (
        TIPS + "  compute_neutral: true\n  exploration: 0\n",
        "3: policy.name: exploration = 0 with compute_neutral; choose exploration above 0, e.g. 0.1",
    ),
    (
        TIPS + "  edge_weight: loss\nsampling: {random: 0}\n",
        "6: edge_weight: loss compares the losses of drawn subnets, and sampling.random = 0 draws none; set sampling.random: 1 or more",
    ),
    ("name: mine\n", " policy is missing; add it (the sampling policy and its options)"),
    ("name: mine\npolicy: {}\n", "2: policy.name is missing; add it (the sampling policy)"),
    (
        STRATEGY + "sampling:\n  random: -1\n",
        "5: sampling.random = -1: must be at least 0 (subnets of one step drawn by the policy)",
    ),
    (
        STRATEGY + "sampling: {largest: false, smallest: false, random: 0}\n",
        "4: sampling: trains no subnet: largest and smallest are false and random is 0; turn one on",
    ),
    (
        STRATEGY + "sampling: {largest: false}\n",
        "4: sampling: distill needs largest: true, whose output is the target; set it or set distill: false",
    ),
]


@pytest.mark.parametrize(("text", "expected"), STRATEGY_ERRORS)
def test_bad_strategy(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(text)
    assert message(load_strategy, path) == f"strategy.yaml:{expected}"


def test_errors_of_a_space_name_both_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SPACE.replace("0.5", "-0.5"))
    run = tmp_path / "run.yaml"
    run.write_text(RUN + "space: mine.yaml\n")
    assert message(load_run, run) == (
        "run.yaml:9: space: mine.yaml:3: width.ratios[0] = -0.5: must be greater than 0 "
        "(shares in ascending order; the last is 1.0)"
    )


OVERRIDE_ERRORS = [
    (
        "training.epochs=-3",
        "override 'training.epochs=-3': training.epochs = -3: must be at least 1 (passes over the training images)",
    ),
    (
        "training.epoch=3",
        "override 'training.epoch=3': training: unknown key 'epoch'; did you mean 'epochs'? (allowed: accelerator, ",
    ),
    ("training.epochs", "override 'training.epochs': must have the form key.key=value, e.g. training.epochs=3"),
    ("=3", "override '=3': must have the form key.key=value, e.g. training.epochs=3"),
    ("training..epochs=3", "override 'training..epochs=3': must have the form key.key=value, e.g. training.epochs=3"),
    ("output.folder=3", "override 'output.folder=3': output is text and has no keys; override it whole"),
    (
        "seed=[1",
        "override 'seed=[1': is not YAML: expected ',' or ']', but got '<stream end>'; check the indentation, quotes and colons here",
    ),
    ("seed=", "override 'seed=': seed = null: must be an integer, not null (nothing) (seed of everything random)"),
    ("strategy=tip5", "override 'strategy=tip5': strategy: unknown strategy 'tip5'"),
]


@pytest.mark.parametrize(("text", "expected"), OVERRIDE_ERRORS)
def test_bad_override(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    found = message(load_run, path, [text])
    assert found == expected or (expected.endswith((", ", "'tip5'")) and found.startswith(expected))


def test_missing_file(tmp_path: Path) -> None:
    assert message(load_run, tmp_path / "rnu.yaml") == "rnu.yaml: there is no such file; check the path"
    (tmp_path / "run.yaml").write_text(RUN)
    assert message(load_run, tmp_path / "rnu.yaml") == "rnu.yaml: there is no such file; did you mean 'run.yaml'?"
    assert message(load_run, tmp_path / "x.yaml") == "x.yaml: there is no such file; did you mean 'run.yaml'?"
    assert message(load_run, tmp_path / "a-quite-different-name.md") == (
        "a-quite-different-name.md: there is no such file; the folder has run.yaml"
    )
    lost = tmp_path / "nowhere" / "run.yaml"
    assert message(load_run, lost) == f"run.yaml: there is no folder {str(lost.parent)!r}; check the path"


def test_unreadable_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert message(load_run, folder) == "folder.yaml: is a folder; name the YAML file in it"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"seed: \xff\xfe")
    assert message(load_run, binary) == "binary.yaml: is not text (byte 6 is not UTF-8); save it as UTF-8"
    with pytest.raises(TipsError, match="null byte"):
        load_run("a\0b.yaml")


def test_unknown_names() -> None:
    with pytest.raises(
        TipsError,
        match=r"^unknown search space 'resnte'; did you mean 'resnet'\? \(allowed: .*; your own file is a path, e.g. ./mine.yaml$",
    ):
        load_space("resnte")
    with pytest.raises(TipsError, match=r"^unknown strategy ''"):
        load_strategy("")
