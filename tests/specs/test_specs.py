"""Loading specs: round trip, names and paths, overrides, built-ins, and that no text breaks the loader."""

from __future__ import annotations

import dataclasses
import re
import shutil
import string
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import tips_nni.specs._library as library
from tips_nni.core import POLICIES, TipsError, check_algorithm, check_policy
from tips_nni.specs import (
    BackboneSpec,
    DataSpec,
    RunSpec,
    SearchSpec,
    TrainingSpec,
    load_run,
    load_space,
    load_strategy,
    space_for,
    space_names,
    strategy_names,
)
from tips_nni.specs._yaml import dump, parse_document

ROOT = Path(__file__).resolve().parents[2]
RUN = """\
backbone: {name: resnet10t}
strategy: uniform
data: {kind: digits}
training: {epochs: 3}
output: runs/x
"""


def write(folder: Path, text: str = RUN, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_are_resolved(tmp_path: Path) -> None:
    run = load_run(write(tmp_path))
    assert run.space == "resnet"
    assert run.search == load_strategy("uniform").search
    assert run.data == DataSpec(kind="digits")
    assert run.training == TrainingSpec(epochs=3)
    assert run.constraints.bounds == {}
    assert (run.output, run.seed, run.export.onnx) == ("runs/x", 0, 2)


def test_round_trip(tmp_path: Path) -> None:
    text = RUN + "search: {population: 8}\nconstraints: {mflops: 30, latency_ms: 2.5}\nseed: 7\n"
    run = load_run(write(tmp_path, text), ["training.lr=1e-5", "backbone.args={drop_rate: 0.1}"])
    assert run.constraints.bounds == {"mflops": 30.0, "latency_ms": 2.5}
    again = load_run(write(tmp_path / "elsewhere", run.to_yaml()))
    assert again == run
    assert again.to_yaml() == run.to_yaml()


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12
) | st.sampled_from(
    [
        "1e-3",
        "1e5",
        "no",
        "null",
        "~",
        "0x1f",
        "0o17",
        "1_000",
        "2024-01-01",
        "1:30",
        "<<",
        "=",
        "- a",
        "#",
        "a: b",
        "'",
    ]
)


@given(
    name=TEXT,
    output=TEXT,
    lr=st.floats(1e-300, 100),
    args=st.dictionaries(
        TEXT, TEXT | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False) | st.booleans() | st.none()
    ),
)
@settings(max_examples=150, deadline=None)
def test_round_trip_of_any_values(name: str, output: str, lr: float, args: dict[str, object]) -> None:
    forbidden = {"pretrained", "checkpoint_path", "num_classes", "in_chans"}
    args = {key: value for key, value in args.items() if key not in forbidden}
    run = RunSpec(
        backbone=BackboneSpec(name=name, args=args),
        data=DataSpec(kind="digits"),
        training=TrainingSpec(steps=3, lr=lr),
        output=output,
    )
    text = run.to_yaml()
    assert RunSpec(**parse_document(text, "run.yaml").data) == run
    assert RunSpec(**yaml.safe_load(text)) == run, "any YAML 1.1 reader reads the same"


def test_yaml_core_types() -> None:
    text = "a: 1e-3\nb: no\n"
    text += "c: 2024-01-01\nd: 010\ne: TRUE\nf: ~\ng: 1_000\nh: +.5\ni: 1:30\nj: '3'\nk: !!str 3\nl:\nm: -.inf\n"
    assert parse_document(text, "t").data == {
        "a": 0.001, "b": "no", "c": "2024-01-01", "d": 10, "e": True, "f": None, "g": "1_000", "h": 0.5, "i": "1:30",
        "j": "3", "k": "3", "l": None, "m": float("-inf"),
    }  # fmt: skip


def test_anchors_and_merges() -> None:
    text = "base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\nlist: [*base, *base]\n"
    document = parse_document(text, "t")
    assert document.data == {"base": {"a": 1, "b": 2}, "use": {"a": 1, "b": 3}, "list": [{"a": 1, "b": 2}] * 2}
    assert document.origin(("use", "b")) == "t:4"
    assert document.origin(("use", "a")) == "t:1"
    assert document.origin(("list", 0)) == "t:1", "where the item is written out"
    assert document.origin(("nothing", "here")) == "t"


def test_odd_characters_stay_on_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, RUN + 'seed: "a\\nb\\u2028c"\n', "a\nb.yaml")
    with pytest.raises(TipsError) as caught:
        load_run(path)
    assert str(caught.value) == (
        f'{tmp_path}/a\\nb.yaml:6: seed = "a\\nb\\u2028c": must be an integer, not text (seed of everything random)'
    )
    with pytest.raises(TipsError, match=r"x\\ny\.yaml: there is no such file"):
        load_space(f"{tmp_path}/x\ny.yaml")
    with pytest.raises(TipsError, match=r"there is no .*a\\nb; check the path$"):
        load_run(write(tmp_path, RUN.replace("{kind: digits}", '{kind: npz, path: "a\\nb"}')))


@pytest.mark.parametrize("text", ['"a\\0b"', "~nobody-by-this-name/x"])
def test_odd_paths(tmp_path: Path, text: str) -> None:
    with pytest.raises(TipsError, match=r"run\.yaml:3: data\.path = .*: there is no .*; check the path$"):
        load_run(write(tmp_path, RUN.replace("{kind: digits}", f"{{kind: npz, path: {text}}}")))
    with pytest.raises(TipsError, match=r"run\.yaml:2: strategy: .*: (cannot be read|there is no)"):
        load_run(write(tmp_path, RUN.replace("uniform", text[:-1] + '.yaml"' if '"' in text else text)))


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + RUN.replace("\n", "\r\n").encode())
    assert load_run(path).training.epochs == 3


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path)
    run = load_run(
        path,
        [
            "training.epochs=null",
            "training.steps=5",
            "training.lr=1e-3",
            "search.population=8",
            "constraints={mflops: 5}",
            "seed=1",
            "seed=2",
        ],
    )
    assert (run.training.epochs, run.training.steps, run.training.lr, run.seed) == (None, 5, 0.001, 2)
    assert run.search == SearchSpec(population=8)
    assert run.constraints.bounds == {"mflops": 5.0}
    assert load_run(path).seed == 0, "an override changes nothing but its own run"
    assert load_run(path, ["search=null"]).search == SearchSpec()


def test_error_in_the_file_keeps_its_line_beside_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, RUN + "export: {onnx: -1}\n")
    with pytest.raises(TipsError, match=r"run\.yaml:6: export\.onnx = -1: must be at least 0"):
        load_run(path, ["seed=3"])


def test_search_overrides_the_strategy_key_by_key(tmp_path: Path) -> None:
    write(
        tmp_path,
        "name: mine\npolicy: {name: uniform}\nsearch: {population: 10, generations: 3, mutation: 0.5, images: 100}\n",
        "mine.yaml",
    )
    text = RUN.replace("uniform", "./mine.yaml") + "search: {generations: 7, images: null}\n"
    run = load_run(write(tmp_path, text))
    assert run.search == SearchSpec(population=10, generations=7, mutation=0.5, images=None)


def test_paths_are_relative_to_the_spec_and_output_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, here = tmp_path / "specs", tmp_path / "here"
    here.mkdir()
    (write(specs, "", "d/data.npz"), write(specs, "", "w.pth"), write(here, "", "data.npz"))
    write(specs, "family: s\ndepth: {}\n", "s.yaml")
    write(specs, "name: t\npolicy: {name: uniform}\n", "t.yml")
    text = (
        "backbone: {name: x, checkpoint_path: w.pth}\nspace: s.yaml\nstrategy: ./t.yml\n"
        "data: {kind: npz, path: d/data.npz}\ntraining: {steps: 1}\noutput: runs/x\n"
    )
    path = write(specs, text)
    monkeypatch.chdir(here)
    run = load_run(Path("../specs/run.yaml"))
    assert run.data.path == str(specs / "d/data.npz")
    assert run.backbone.checkpoint_path == str(specs / "w.pth")
    assert (run.space, run.strategy) == (str(specs / "s.yaml"), str(specs / "t.yml"))
    assert run.output == "runs/x"
    assert load_run(path, ["data.path=data.npz"]).data.path == str(here / "data.npz")
    assert load_run(path, ["data={kind: npz, path: data.npz}"]).data.path == str(here / "data.npz")
    (specs / "d/data.npz").unlink()
    with pytest.raises(TipsError, match=r'run\.yaml:4: data\.path = "d/data\.npz": there is no'):
        load_run(path)
    assert load_run(path, check_paths=False) == run


def test_download_needs_no_folder_yet(tmp_path: Path) -> None:
    data = "{kind: torchvision, name: CIFAR10, path: later, download: true}"
    assert load_run(write(tmp_path, RUN.replace("{kind: digits}", data))).data.path == str(tmp_path / "later")


def test_models_are_immutable_and_closed() -> None:
    with pytest.raises(ValidationError):
        SearchSpec().population = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        SearchSpec(populaton=3)  # type: ignore[call-arg]


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_breaks_the_loader(tmp_path: Path, data: st.DataObject) -> None:
    """A damaged spec is either still valid or one line."""
    at = data.draw(st.integers(0, len(RUN)))
    length = data.draw(st.integers(0, 10))
    inserted = data.draw(st.text(st.sampled_from(string.printable + "&*!<é\0\x85\u2028"), max_size=8))
    path = tmp_path / "run.yaml"
    path.write_bytes((RUN[:at] + inserted + RUN[at + length :]).encode())
    message = f"{path}: fine"
    try:
        load_run(path)
    except TipsError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1


# The built-ins


@pytest.mark.parametrize("name", space_names())
def test_built_in_spaces(name: str) -> None:
    space = load_space(name)
    assert space.family == name
    assert space.description
    assert space.matches
    assert space.width is not None
    assert space.width.divisor == 8


@pytest.mark.parametrize("name", strategy_names())
def test_built_in_strategies(name: str) -> None:
    strategy = load_strategy(name)
    assert strategy.name == name
    assert strategy.description


@pytest.mark.parametrize("name", strategy_names())
def test_built_in_strategies_write_every_option_out(name: str) -> None:
    """They are what a user copies: each option stands there, with its default value but where forms differ."""
    policy = load_strategy(name).policy
    info = POLICIES[policy.name]
    allowed = {field.name.rstrip("_") for field in dataclasses.fields(info.options)}
    assert set(policy.options) == allowed or policy.name == "uniform"
    differs = {
        "tips": {"form", "thrift", "coupling"},
        "tips_path": {"form"},
        "tips_growth": {"form", "thrift", "edge_weight", "coupling"},
    }.get(name, set())
    checked, default = (check_policy(policy.name, options) for options in (policy.options, {}))
    assert {
        f.name for f in dataclasses.fields(checked) if getattr(checked, f.name) != getattr(default, f.name)
    } == differs


@pytest.mark.parametrize("name", strategy_names())
def test_built_in_strategies_write_every_option_of_the_search_out(name: str) -> None:
    search = load_strategy(name).search
    assert search.model_fields_set == set(type(search).model_fields) - (set() if name == "flash" else {"options"})
    default = check_algorithm(search.algorithm, {})
    assert search.options == dataclasses.asdict(default)


def test_options_of_the_search_belong_to_its_algorithm(tmp_path: Path) -> None:
    """The run's keys go on top of the strategy's, but options of another algorithm than the run's are none of it."""
    write(tmp_path, RUN.replace("uniform", "flash") + "search: {options: {starts: 3}}\n")
    search = load_run(tmp_path / "run.yaml").search
    assert search is not None
    assert (search.algorithm, search.population) == ("flash", 25)
    assert search.options == {**load_strategy("flash").search.options, "starts": 3}
    assert load_run(tmp_path / "run.yaml", ["search.algorithm=flash"]).search == search
    write(tmp_path, RUN.replace("uniform", "flash") + "search: {algorithm: evolution}\n")
    search = load_run(tmp_path / "run.yaml").search
    assert search is not None
    assert (search.algorithm, search.population, search.options) == ("evolution", 25, {})
    with pytest.raises(TipsError, match=r"search: unknown option of search algorithm 'evolution' 'starts'"):
        load_run(tmp_path / "run.yaml", ["search.options={starts: 3}"])


def test_the_families_are_there() -> None:
    convolutional = {"resnet", "mobilenetv2", "mobilenetv3", "efficientnet", "mnasnet", "regnet", "convnext", "vgg"}
    assert convolutional | {"deit", "swin"} <= set(space_names())
    forms = {"tips", "tips_marginal", "tips_path", "tips_growth"}
    assert forms | {"flash", "uniform", "global_width", "attentive"} <= set(strategy_names())


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/run.yaml")), ids=lambda path: path.parent.name)
def test_examples_are_valid(path: Path) -> None:
    run = load_run(path, check_paths=False)
    assert run.output.startswith("runs/")


@pytest.mark.parametrize(
    ("backbone", "family"),
    [
        ("resnet10t", "resnet"),
        ("resnet50.a1_in1k", "resnet"),
        ("mobilenetv2_100", "mobilenetv2"),
        ("tf_mobilenetv3_small_100", "mobilenetv3"),
        ("efficientnet_b0", "efficientnet"),
        ("tf_efficientnetv2_s", "efficientnet"),
        ("semnasnet_100", "mnasnet"),
        ("regnety_002", "regnet"),
        ("convnext_atto", "convnext"),
        ("vgg11_bn", "vgg"),
        ("deit_tiny_patch16_224", "deit"),
        ("vit_small_patch32_224", "deit"),
        ("swin_tiny_patch4_window7_224", "swin"),
    ],
)
def test_space_for(backbone: str, family: str) -> None:
    assert space_for(backbone) == family


@pytest.mark.parametrize("backbone", ["resnetv2_50", "beit_base_patch16_224", "convnextv2_atto", "", "RESNET50"])
def test_no_space_fits(backbone: str) -> None:
    with pytest.raises(
        TipsError, match=re.escape(f"backbone {backbone!r} (families: {', '.join(space_names())}); write")
    ):
        space_for(backbone)


def test_a_backbone_that_no_space_fits_is_named_on_one_line() -> None:
    with pytest.raises(TipsError, match=r"convert r\\u2028esnet10t --output") as found:
        space_for("r\u2028esnet10t")
    assert len(str(found.value).splitlines()) == 1


def test_every_pattern_fits_a_timm_model_and_no_model_fits_two_families_equally() -> None:
    import timm

    models = timm.list_models()
    fits: dict[str, set[str]] = {}
    for name in space_names():
        for pattern in load_space(name).matches:
            found = [model for model in models if fnmatchcase(model, pattern)]
            assert found, f"{pattern} of {name} fits no timm model"
            for model in found:
                fits.setdefault(model, set()).add(name)
    assert all(space_for(model) in families for model, families in fits.items())
    assert {model for model, families in fits.items() if len(families) > 1} == set()


def test_the_most_specific_pattern_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "search_spaces").mkdir()
    for name, pattern in [("a", "resnet*"), ("b", "resnet50*"), ("c", "*")]:
        write(tmp_path / "search_spaces", f"family: {name}\nmatches: ['{pattern}']\ndepth: {{}}\n", f"{name}.yaml")
    monkeypatch.setattr(library, "_PACKAGE", tmp_path / "package")
    assert space_names() == ["a", "b", "c"]
    assert [space_for(name) for name in ("resnet18", "resnet50d", "vgg11")] == ["a", "b", "c"]


def test_built_ins_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "tips_nni"
    package.mkdir(parents=True)
    monkeypatch.setattr(library, "_PACKAGE", package)
    with pytest.raises(TipsError, match="lacks its search_spaces folder; install it again"):
        space_names()
    shutil.copytree(ROOT / "search_spaces", package.parent / "search_spaces")
    assert "resnet" in space_names()
    write(package / "_specs" / "search_spaces", "family: only\ndepth: {}\n", "only.yaml")
    assert space_names() == ["only"], "the wheel's own folder comes before anything beside the package"


def test_a_users_own_file_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "family: own\ndepth: {}\n", "resnet.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_space("resnet").family == "resnet"
    assert load_space("resnet.yaml").family == "own"
    assert load_space("./resnet.yaml").family == "own"
    assert load_space(tmp_path / "resnet.yaml").family == "own"


def test_dump_keeps_order_and_text() -> None:
    assert dump({"b": "é", "a": [1, 2.0]}) == "b: é\na:\n- 1\n- 2.0\n"
