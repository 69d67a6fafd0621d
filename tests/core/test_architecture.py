import json

import pytest

from tips_nni.core import Architecture, TipsError


def test_json_reads_back_the_same_architecture(architecture):
    text = json.dumps(architecture.to_json())
    assert Architecture.from_json(json.loads(text)) == architecture


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("operations"),
        lambda data: data["operations"][0].pop("inputs"),
        lambda data: data["operations"][0].update(kind="convolution"),
        lambda data: data["operations"][0].update(kernel=[3]),
        lambda data: data["operations"].reverse(),
        lambda data: data["feature_maps"][1][1][0][0].pop(),
        lambda data: data["space"][0].update(choices="wide"),
    ],
)
def test_damaged_data_are_refused_in_one_line(architecture, damage):
    data = json.loads(json.dumps(architecture.to_json()))
    damage(data)
    with pytest.raises(TipsError) as caught:
        Architecture.from_json(data)
    assert "\n" not in str(caught.value)
