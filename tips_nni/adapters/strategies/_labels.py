"""The labels of any model space of NNI as elastic dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nni.mutable import Categorical, CategoricalMultiple, LabeledMutable

from tips_nni.core import ElasticDim, SearchSpace, SubnetConfig, TipsError

_MOST_SUBSETS = 256
Sample = dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """The labels of a model space, and subnets as NNI writes them.

    A label whose values are numbers is an ordered dimension (a width, a depth, a kernel size: more includes less);
    any other is a choice between options that exclude each other.

    Attributes:
        space: one dimension for every label.
        options: for every dimension the values that NNI knows, in the order of its choices.
    """

    space: SearchSpace
    options: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, mutables: Mapping[str, LabeledMutable], ranks: Mapping[str, Sequence[float]] | None = None) -> Labels:
        """Read the labels of a model space.

        Args:
            mutables: from `simplify()`.
            ranks: label -> for every value the key to sort it by, for labels that have no order of their own.

        Raises:
            TipsError: a label is not a choice between finitely many values, or there is none.
        """
        dims, options = [], []
        for label, mutable in mutables.items():
            values = _values(str(label), mutable)
            ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
            if ordered:
                values = sorted(values)
            elif ranks and label in ranks:
                values = [value for _, _, value in sorted(zip(ranks[label], itertools.count(), values, strict=False))]
            whole = ordered and all(isinstance(value, int) and value >= 1 for value in values)
            choices = tuple(values) if whole else tuple(range(1, len(values) + 1))
            dims.append(ElasticDim(str(label), "width" if ordered else "choice", choices))
            options.append(tuple(values))
        return cls(SearchSpace(tuple(dims)), tuple(options))

    def sample(self, config: SubnetConfig) -> Sample:
        """Return a subnet as NNI writes it."""
        code = self.space.encode(config)
        return {dim.name: values[i] for dim, values, i in zip(self.space.dims, self.options, code, strict=True)}

    def config(self, sample: Mapping[str, Any]) -> SubnetConfig:
        """Return the subnet of a sample.

        Raises:
            TipsError: a label is missing, or its value is unknown.
        """
        code = []
        for dim, values in zip(self.space.dims, self.options, strict=True):
            if sample.get(dim.name) not in values:
                raise TipsError(
                    f"{dim.name} = {sample.get(dim.name)!r} is not in the model space; choose from {values}"
                )
            code.append(values.index(sample[dim.name]))
        return self.space.decode(code)


def _values(label: str, mutable: LabeledMutable) -> list[Any]:
    """Return the values of a label in NNI's order."""
    if isinstance(mutable, Categorical):
        return list(mutable.values)
    if isinstance(mutable, CategoricalMultiple):
        counts = range(1, len(mutable.values) + 1) if mutable.n_chosen is None else (mutable.n_chosen,)
        subsets = (list(c) for count in counts for c in itertools.combinations(mutable.values, count))
        found = list(itertools.islice(subsets, _MOST_SUBSETS + 1))
        if len(found) <= _MOST_SUBSETS:
            return found
        raise TipsError(f"label {label!r} has more than {_MOST_SUBSETS} subsets of its values; give it n_chosen")
    raise TipsError(
        f"label {label!r} is of type {type(mutable).__name__}; TIPS takes choices between finitely many values "
        "(nni.choice, LayerChoice, InputChoice, Repeat) without constraints between labels"
    )
