"""From rows of results to tables and bars: paired over seeds, with 95% intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from anytime.evaluation import front_accuracy
from anytime.rivals import REFERENCE, RIVALS, RIVALS_BY_NAME

Row = dict[str, Any]
OURS = {rival.name for rival in RIVALS if rival.ours}
RIVALS_OF_OURS = {rival.name for rival in RIVALS if rival.group == "main" and not rival.ours}
#: Same subnets a step, path importance against uniform, and against TIPS with all importances equal.
PAIRS = (
    ("tips_sandwich", "us_nets"),
    ("tips_path_sandwich", "us_nets"),
    ("sandwich_neutral", "us_nets"),
    ("path_neutral", "us_nets"),
    ("tips_two", "two_random"),
    ("tips_path_two", "two_random"),
    ("tips_budget_two", "two_random"),
    ("tips_growth_two", "two_random"),
    ("tips_budget", "spos"),
    ("tips_growth", "spos"),
    ("tips_budget_two", "two_budgets"),
    ("tips_growth_two", "two_budgets"),
    ("tips_budget", "one_budgets"),
    ("tips_growth", "one_growth"),
    ("growth_topology", "one_growth"),
    ("growth_loss", "one_growth"),
)


#: From the sandwich to TIPS, one change at a time: rival, the one it is compared with, what changes.
LADDER = (
    ("us_nets", "", "the sandwich"),
    ("two_random", "us_nets", "two drawn subnets learn from the labels, no largest, no smallest"),
    ("spos", "two_random", "one drawn subnet a step"),
    ("one_budgets", "spos", "budgets: widths that fit each other, as much compute for every budget"),
    ("tips_budget", "one_budgets", "shares of the layers by path importance"),
    ("one_growth", "spos", "or budgets spent on the cheapest options first"),
    ("tips_growth", "one_growth", "on the options of most importance per multiply-add"),
)


def lengths(rows: Sequence[Row]) -> list[float]:
    """Return the lengths of trainings at equal compute, as shares, the longest first."""
    return sorted({row["share"] for row in rows if row["kind"] == "compute"}, reverse=True)


def longest(rows: Sequence[Row]) -> float:
    """Return the share of the longest trainings at equal compute; 1 where there are none."""
    return max(lengths(rows), default=1.0)


def of_kind(rows: Sequence[Row], kind: str, share: float | None = None) -> dict[str, dict[int, Row]]:
    """Return the rows of one protocol and length, by default the longest: rival -> seed -> row.

    The reference's training at equal compute is also the one at equal steps.
    """
    if share is None:
        share = longest(rows) if kind == "compute" else 1.0
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        both = row["rival"] == REFERENCE and row["kind"] == "compute"
        if kind in (("compute", "steps") if both else (row["kind"],)) and row["share"] == share:
            found.setdefault(row["rival"], {})[row["seed"]] = row
    return found if len(found) > 1 or kind == "compute" else {}


def points(rows: dict[int, Row], measure: str = "mflops") -> dict[int, float]:
    """Return accuracy in percent for every seed: front accuracy under a cost, or the ``panel``'s mean."""
    if measure == "panel":
        return {seed: 100 * float(np.mean(row["panel"])) for seed, row in rows.items()}
    if measure == "hypervolume":
        return {seed: 100 * row["hypervolume"] for seed, row in rows.items()}
    return {seed: 100 * front_accuracy(row, measure) for seed, row in rows.items()}


def mean_points(rows: dict[int, Row], measure: str = "mflops") -> float:
    """Return the mean over seeds of `points`."""
    return float(np.mean(list(points(rows, measure).values())))


def difference(first: dict[int, float], second: dict[int, float]) -> tuple[float, float, int]:
    """Return (mean, half width of its 95% interval by Student's t, number) of the paired differences."""
    seeds = sorted(set(first) & set(second))
    values = np.array([first[seed] - second[seed] for seed in seeds])
    if len(values) < 2:
        return (float(values.mean()) if len(values) else np.nan), np.inf, len(values)
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()), half, len(values)


def shown(mean: float, half: float, least: float = 0.0) -> bool:
    """Return whether a difference is at least `least` and its interval, `half` wide on either side, above zero."""
    return bool(mean >= least and mean > half)


def said(value: float, half: float) -> str:
    """Return a difference with its interval, for people."""
    return f"{value:+.2f} ± {half:.2f}" if np.isfinite(half) else f"{value:+.2f} (one seed)"


def curve(rows: Sequence[Row], rival: str) -> list[tuple[float, float]]:
    """Return (compute, mean front accuracy in percent) for every length, shortest first."""
    shares = sorted({row["share"] for row in rows if row["kind"] == "compute" and row["rival"] == rival})
    found = []
    for share in shares:
        of_rival = of_kind(rows, "compute", share)[rival]
        compute = float(np.mean([row["compute"] for row in of_rival.values()]))
        found.append((compute, mean_points(of_rival)))
    return found


def compute_to_reach(rows: Sequence[Row], rival: str, goal: float) -> float:
    """Return the compute at which a rival's curve reaches `goal` percent, log-linear between lengths.

    NaN where its longest training does not reach it; its shortest where that one does already.
    """
    reached = curve(rows, rival)
    for (x0, y0), (x1, y1) in itertools.pairwise(reached):
        if y0 < goal <= y1:
            return float(np.exp(np.interp(goal, [y0, y1], np.log([x0, x1]))))
    if reached and reached[0][1] >= goal:
        return reached[0][0]
    return float("nan")


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return tables, best first: of equal compute by length, the longest first, of equal steps, and what explains."""
    compared = [(of_kind(rows, "compute", share), share) for share in lengths(rows)]
    made = [
        _protocol(found, f"equal training compute, {'the longest trainings' if i == 0 else f'{share:g} of it'}")
        for i, (found, share) in enumerate(compared)
        if i == 0 or len(found) > 1
    ]
    steps = of_kind(rows, "steps")
    made += [_protocol(steps, "equal steps")] if steps else []
    made += [table for table in (ladder(rows), ablations(rows)) if table is not None]
    inherited = inherited_correlation(rows)
    if inherited:
        table = Table(title="inherited accuracy of panel subnets against training them alone: rank correlation")
        table.add_column("rival")
        table.add_column("Spearman", justify="right")
        for name, value in sorted(inherited.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{value:.2f}")
        made.append(table)
    return made


def _protocol(found: dict[str, dict[int, Row]], title: str) -> Table:
    """Return the rivals of one protocol and length, best first."""
    table = Table(title=f"{title}: accuracy in %, mean over seeds; ± is a 95% interval of the paired difference")
    for column in (
        "rival",
        "a step",
        "rate",
        "seeds",
        "steps",
        "TMACs",
        "front",
        "− us_nets",
        "by latency",
        "panel",
        "hypervolume",
        "train s",
        "refresh",
    ):
        table.add_column(column, justify="left" if column in ("rival", "a step") else "right", no_wrap=True)
    reference = points(found.get(REFERENCE, {}))
    for name in sorted(found, key=lambda n: -mean_points(found[n])):
        own = list(found[name].values())
        mean, half, number = difference(points(found[name]), reference)
        refresh = sum(row["refresh_seconds"] for row in own) / sum(row["train_seconds"] for row in own)
        table.add_row(
            name,
            RIVALS_BY_NAME[name].step,
            f"{own[0]['rate']:g}",
            str(len(own)),
            f"{np.mean([row['steps'] for row in own]):,.0f}",
            f"{np.mean([row['compute'] for row in own]):.3g}",
            f"{mean_points(found[name]):.2f}",
            "–" if name == REFERENCE or not number else said(mean, half),
            *(f"{mean_points(found[name], m):.2f}" for m in ("latency_ms", "panel", "hypervolume")),
            f"{np.mean([row['train_seconds'] for row in own]):.0f}",
            f"{refresh:.2%}",
        )
    return table


def ablations(rows: Sequence[Row]) -> Table | None:
    """Return what every option of TIPS brings beside the form that it changes, at equal compute; None without one."""
    table = Table(title="options of TIPS, at equal compute (± 95% of the paired difference)")
    for column in ("option", "of", "length", "seeds", "front", "the option brings", "panel", "steps, of the form's"):
        table.add_column(column, justify="left" if column in ("option", "of") else "right")
    for share in lengths(rows):
        found = of_kind(rows, "compute", share)
        for name in sorted(set(found) & set(RIVALS_BY_NAME), key=list(RIVALS_BY_NAME).index):
            form = RIVALS_BY_NAME[name].ablates
            mean, half, number = difference(points(found[name]), points(found.get(form, {})))
            if not number:
                continue
            seeds = sorted(set(found[name]) & set(found[form]))
            steps, of_form = (sum(found[which][seed]["steps"] for seed in seeds) for which in (name, form))
            table.add_row(
                RIVALS_BY_NAME[name].label,
                form,
                f"{share:g}",
                str(number),
                f"{mean_points(found[name]):.2f}",
                said(mean, half),
                said(*difference(points(found[name], "panel"), points(found[form], "panel"))[:2]),
                f"{steps / of_form:.2f}",
            )
    return table if table.row_count else None


def ladder(rows: Sequence[Row]) -> Table | None:
    """Return what every change between the sandwich and TIPS brings at equal compute; None without two of them."""
    found = of_kind(rows, "compute")
    steps = [step for step in LADDER if step[0] in found]
    if len(steps) < 2:
        return None
    table = Table(title="what the gain is made of, at equal compute (± 95% of the paired difference)")
    for column in ("rival", "compared with", "change", "front", "change brings", "panel"):
        table.add_column(column, justify="right" if column in ("front", "change brings", "panel") else "left")
    before_of = {name: before for name, before, _ in LADDER}
    for name, before, text in steps:
        while before and before not in found:  # not trained: its change is part of this one's
            before = before_of[before]
        mean, half, number = difference(points(found[name]), points(found.get(before, {})))
        table.add_row(
            name,
            before,
            text,
            f"{mean_points(found[name]):.2f}",
            said(mean, half) if number else "–",
            f"{mean_points(found[name], 'panel'):.2f}",
        )
    return table


def inherited_correlation(rows: Sequence[Row]) -> dict[str, float]:
    """Return for every rival the rank correlation between inherited and stand-alone accuracy of panel subnets."""
    alone = {int(row["rival"][1:]): row["test"] for row in rows if row["kind"] == "alone"}
    if len(alone) < 3:
        return {}
    indices = sorted(alone)
    found = {}
    for name, by_seed in of_kind(rows, "compute").items():
        inherited = np.mean([[row["panel"][i] for i in indices] for row in by_seed.values()], axis=0)
        found[name] = float(stats.spearmanr(inherited, [alone[i] for i in indices]).statistic)
    return found


def flatness(rows: Sequence[Row], rival: str = REFERENCE) -> float:
    """Return how many points the last doubling of a rival's compute brought, over log2 of the ratio; NaN for one."""
    reached = curve(rows, rival)
    if len(reached) < 2:
        return float("nan")
    (x0, y0), (x1, y1) = reached[-2:]
    return (y1 - y0) / float(np.log2(x1 / x0))


def last_tenth(rows: Sequence[Row], rival: str) -> float:
    """Return how many points the last tenth of a rival's compute brought; NaN for one length. Flat is under 0.3."""
    return flatness(rows, rival) * float(np.log2(1 / 0.9))


def best_two(found: dict[str, dict[int, Row]]) -> tuple[str, str] | None:
    """Return the form of TIPS and the rival of the highest validation accuracy; None where one is missing.

    On each side only those with the most seeds count: a mean of few trainings is high by chance more often.
    """
    validated = {
        name: float(np.mean([front_accuracy(row, part="validation") for row in by_seed.values()]))
        for name, by_seed in found.items()
    }
    ours, rivals = set(found) & OURS, set(found) & RIVALS_OF_OURS
    if not ours or not rivals:
        return None

    def best(names: set[str]) -> str:
        seeds = max(len(found[name]) for name in names)
        return max((name for name in sorted(names) if len(found[name]) == seeds), key=lambda name: validated[name])

    return best(ours), best(rivals)


def bars(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the bars at equal training compute; TIPS is its best form by validation accuracy.

    After those of the longest training come, for each shorter one, TIPS against the best rival that was trained so
    long and against its own schedule.
    """
    found = of_kind(rows, "compute")
    chosen = best_two(found)
    if chosen is None or REFERENCE not in found:
        return []
    best, strongest = chosen
    result: list[dict[str, Any]] = []

    def add(name: str, value: float, text: str, holds: bool) -> None:
        result.append({"name": name, "value": value, "bar": text, "holds": bool(holds)})

    def compare(of: dict[str, dict[int, Row]], first: str, second: str, text: str, least: float = 0.0) -> None:
        mean, half, number = difference(points(of[first]), points(of[second]))
        interval = f"± {half:.2f}, {number} seeds" if number > 1 else "one seed"
        bar = f">= {least:g}" if least else "> 0"
        add(f"{text.format(first=first, second=second)} ({interval})", mean, bar, shown(mean, half, least))

    compare(found, best, REFERENCE, "{first} − {second}, front, points", least=2)
    if len(curve(rows, best)) > 1:
        goal = mean_points(found[REFERENCE])
        share = compute_to_reach(rows, best, goal) / curve(rows, REFERENCE)[-1][0]
        add(f"compute of {best} to reach {REFERENCE}'s front / its compute", share, "<= 0.7", share <= 0.7)
    compare(found, best, strongest, "{first} − {second}, the best rival")
    for first, second in PAIRS:
        if first in found and second in found:
            compare(found, first, second, "path importance alone: {first} − {second}")
    for name in dict.fromkeys((REFERENCE, strongest, best)):
        brought = last_tenth(rows, name)
        if np.isfinite(brought):
            add(f"last tenth of {name}'s compute, points", brought, "< 0.3", brought < 0.3)
    for share in lengths(rows)[1:]:
        shorter = of_kind(rows, "compute", share)
        pair = best_two(shorter)
        alone = [(first, second) for first, second in PAIRS if first in shorter and second in shorter]
        for first, second in dict.fromkeys([*([pair] if pair is not None else []), *alone]):
            compare(shorter, first, second, f"at {share:g} of the compute: {{first}} − {{second}}")
    return result


def bar_text(bar: Row) -> str:
    """Return a bar for people: what was measured, the value, and what is asked of it."""
    value = f"{bar['value']:.3g}" if np.isfinite(bar["value"]) else "never reached"
    return f"{bar['name']}: {value} (bar {bar['bar']})"


def label(name: str) -> str:
    """Return a rival's label."""
    return RIVALS_BY_NAME[name].label if name in RIVALS_BY_NAME else name
