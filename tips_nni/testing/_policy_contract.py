"""What every sampling policy must keep, as a test class to subclass."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod

import numpy as np

from tips_nni.core import Architecture, CostTable, Policy


class PolicyContract(ABC):
    """Contract tests of a sampling policy.

    Subclass it in a test module, name the class ``Test...`` and define `make`; pytest finds the tests.

    Attributes:
        draws: subnets drawn where frequencies are compared.
    """

    draws = 4000

    @abstractmethod
    def make(self, architecture: Architecture) -> Policy:
        """Return a new policy for `architecture`."""

    def trained(self, architecture: Architecture, steps: int = 30) -> Policy:
        """Return a policy that has seen some training steps and one refresh."""
        policy = self.make(architecture)
        rng = np.random.default_rng(0)
        for _ in range(steps):
            configs = [policy.space.largest, policy.space.smallest, *policy.sample(rng, 2)]
            policy.observe(configs)
            if policy.wants_losses:
                policy.observe_losses(configs, [1.0 / (1 + sum(config.values)) for config in configs])
            if policy.wants_gradients:
                policy.observe_gradients({op.name: 1.0 for op in architecture.operations if op.kind == "conv"})
        policy.refresh()
        return policy

    def test_it_draws_as_many_subnets_of_the_space_as_asked(self, architecture: Architecture) -> None:
        policy = self.trained(architecture)
        rng = np.random.default_rng(0)
        for n in (0, 1, 7):
            configs = policy.sample(rng, n)
            assert len(configs) == n
            policy.space.encode_many(configs)

    def test_the_generator_decides_the_draws(self, architecture: Architecture) -> None:
        first, second = self.trained(architecture), self.trained(architecture)
        drawn = [policy.sample(np.random.default_rng(3), 20) for policy in (first, second)]
        assert drawn[0] == drawn[1]

    def test_its_state_is_plain_and_restores_it(self, architecture: Architecture) -> None:
        policy, copy = self.trained(architecture), self.make(architecture)
        copy.load_state_dict(json.loads(json.dumps(policy.state_dict())))
        for _ in range(2):
            a, b = (p.sample(np.random.default_rng(5), 20) for p in (policy, copy))
            assert a == b
            for p in (policy, copy):
                p.observe(a)
                p.refresh()
        assert json.dumps(policy.state_dict()) == json.dumps(copy.state_dict())

    def test_every_option_stays_possible(self, architecture: Architecture) -> None:
        policy = self.trained(architecture)
        codes = policy.space.encode_many(policy.sample(np.random.default_rng(1), self.draws))
        for column, size in zip(codes.T, policy.space.sizes, strict=True):
            assert set(column.tolist()) == set(range(int(size)))

    def test_its_probabilities_are_those_of_its_draws(self, architecture: Architecture) -> None:
        policy = self.trained(architecture)
        codes = policy.space.encode_many(policy.sample(np.random.default_rng(2), self.draws))
        for column, table in zip(codes.T, policy.explain().dims, strict=True):
            assert abs(sum(table.probabilities) - 1) < 1e-9
            seen = np.bincount(column, minlength=len(table.choices)) / len(column)
            # Five standard deviations of both estimates.
            assert np.abs(seen - table.probabilities).max() < 5 * np.sqrt(0.25 / self.draws + 0.25 / 2000)

    def test_explaining_changes_nothing(self, architecture: Architecture) -> None:
        policy = self.trained(architecture)
        before = json.dumps(policy.state_dict())
        json.dumps(policy.explain().to_json())
        assert json.dumps(policy.state_dict()) == before

    def test_compute_neutral_costs_what_uniform_sampling_costs(self, architecture: Architecture) -> None:
        policy = self.trained(architecture)
        if not policy.options.compute_neutral:
            return
        table = CostTable(architecture)
        rng = np.random.default_rng(4)
        own = table.flops(policy.space.encode_many(policy.sample(rng, self.draws)))
        uniform = table.flops(policy.space.sample(rng, self.draws))
        error = np.sqrt(own.var() / len(own) + uniform.var() / len(uniform))
        # The pool that is tilted is itself a sample of uniform's mean.
        assert abs(own.mean() - uniform.mean()) < 5 * error + 0.02 * uniform.mean()
