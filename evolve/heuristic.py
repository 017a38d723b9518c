"""The search for tile heuristics: default expressions of a kernel's params, over measured points.

    tables -> shapes -> seen | sealed;  seen -> search -> expressions;  sealed -> judged once

    RUN/prompt.md         what a person or a model can be asked: the seen shapes with their times
    RUN/answers/*.md      what they answered, as propose.answers reads it: the search begins with it
    RUN/heuristic.json    the evidence
    RUN/v2/kernels/ID/    the kernel with the evolved defaults

Nothing is run: what an expression chooses at a shape was measured there, or counts as the slowest
that was. The shape of the search, a small population whose members are changed and of which the
worse give way, is that of genetic programming (Koza, 1992), with a price on length. The result is
a kernel with other defaults, which the gate has to accept as it has any other.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_lm_openevolve.device import slugify
from mlx_lm_openevolve.errors import KernelError, UsageError
from mlx_lm_openevolve.files import read_regular, write_atomic
from mlx_lm_openevolve.kernels.expressions import MAX_DEFAULT, Expression
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import named
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.spec import Param

from . import points
from .config import LanguageModel, LlmConfig
from .grammar import MAX_NODES, Defaults, Grammar, nodes
from .points import Setting, Shape
from .propose import llm
from .propose.answers import MAX_ANSWER, AnswerError, apply

__all__ = ["CANDIDATES", "Scored", "judge", "run", "search"]

CANDIDATES = 10_000
GOAL = 0.95  # of the best measured speed, at shapes that the search has not seen
POPULATION = 200
# A node more must win so much of the score, on the log scale: times differ by more from run to run.
NODE_PRICE = 5e-4
QUESTION = """\
Write default expressions for the params of the kernel {name}. At each shape below, and at others
like them that you do not see, they should choose what was measured as the fastest setting; short
expressions are better. An expression is Python over the integers and strings
{fields}
with + - * // %, comparisons, `in`, `and or not`, `a if c else b`, min, max, abs, ceil_div(a, b),
next_pow2(a). Change nothing but the `default` fields of kernel.json. Answer with a line
`NOTE: what you chose and why`, and edits of kernel.json:

EDIT kernel.json
<<<<<<< SEARCH
lines as they stand, found once
=======
new lines
>>>>>>> REPLACE

## kernel.json
```json
{meta}
```
"""


@dataclass(frozen=True)
class Scored:
    """Default expressions with their score, the geometric mean of Shape.share over the shapes, and
    what they are ranked by: its logarithm less the prices of their length and of their risk."""

    defaults: Defaults
    score: float
    fitness: float


def parsed(kernel: Kernel, defaults: Defaults, shape: Shape) -> list[Expression]:
    """The expressions, checked. Raises KernelError."""
    pairs = zip(kernel.params, defaults, strict=True)
    return [_expression(param, text, shape) for param, text in pairs]


def _expression(param: Param, text: str, shape: Shape) -> Expression:
    return Expression(text, frozenset(shape.values), f"params.{param.name}.default", MAX_DEFAULT)


class Scorer:
    """Scores of defaults over some shapes. What an expression comes to at each is kept: a move
    changes one or two, and the others are asked for again and again.

    The risk of a choice is the share of the shapes at which its setting was tried and did not run:
    it may not run at others either. One that does not run counts there as e times slower."""

    def __init__(self, kernel: Kernel, shapes: Sequence[Shape]) -> None:
        self.kernel, self.shapes = kernel, shapes
        tried = Counter(setting for shape in shapes for setting in shape.us)
        ran = Counter(setting for shape in shapes for setting in shape.ran)
        self._risk = {setting: 1 - ran[setting] / times for setting, times in tried.items()}
        self._known: dict[tuple[int, str], tuple[int, Sequence[int | None]]] = {}

    def __call__(self, defaults: Defaults) -> Scored:
        """Defaults with their score. 0, which never survives, where one is no expression or too
        long, or chooses at some shape what the param has not or what did not run."""
        columns = list(map(self._column, range(len(defaults)), defaults))
        shares, risks = [], []
        for shape, *setting in zip(self.shapes, *(values for _, values in columns), strict=False):
            share = 0.0 if None in setting else shape.share(tuple(setting))
            if not share:
                break
            shares.append(share)
            risks.append(self._risk.get(tuple(setting), 0.0))
        if len(shares) < len(self.shapes):
            return Scored(defaults, 0.0, -math.inf)
        score, length = points.score(shares), sum(size for size, _ in columns)
        fitness = math.log(score) - NODE_PRICE * length - statistics.fmean(risks)
        return Scored(defaults, score, fitness)

    def _column(self, at: int, text: str) -> tuple[int, Sequence[int | None]]:
        """The size of the expression of a param and its value at each shape, None where it has
        none; no values where it is no expression or too long."""
        known = self._known.get((at, text))
        if known is None:
            param = self.kernel.params[at]
            try:
                size = nodes(text)
                param = replace(param, default=_expression(param, text, self.shapes[0]))
                fits = size <= MAX_NODES
                known = size, [points.value(param, shape) for shape in self.shapes if fits]
            except (KernelError, SyntaxError, ValueError, RecursionError):
                known = 0, ()
            self._known[at, text] = known
        return known


def scored(kernel: Kernel, defaults: Defaults, shapes: Sequence[Shape]) -> Scored:
    """Scorer for defaults that are asked for once."""
    return Scorer(kernel, shapes)(defaults)


def search(
    kernel: Kernel,
    shapes: Sequence[Shape],
    candidates: int,
    seed: int,
    answers: Sequence[Defaults] = (),
) -> Scored:
    """The fittest of so many default expressions at shapes that may be seen, from the kernel's own,
    every constant setting and `answers` on. Equal for equal arguments."""
    rng = random.Random(f"heuristic {seed}")
    grammar = Grammar(kernel, shapes, rng)
    constants = sorted({setting for shape in shapes for setting in shape.ran})
    first = [own(kernel), *answers, *(tuple(map(str, setting)) for setting in constants)]
    known = dict.fromkeys(first[:candidates])
    scorer = Scorer(kernel, shapes)
    members = list(map(scorer, known))
    best = max(members, key=_rank)
    for _ in range(candidates - len(known)):
        parent, other = (max(rng.choices(members, k=3), key=_rank) for _ in range(2))
        defaults = grammar.move(parent.defaults, other.defaults)
        if defaults in known:
            continue
        known[defaults] = None
        child = scorer(defaults)
        if not child.score:
            continue
        best = max(best, child, key=_rank)
        members.append(child)
        if len(members) > POPULATION:
            members.remove(min(rng.sample(members, 4), key=_rank))
    return best


def _rank(member: Scored) -> tuple[float, Defaults]:
    return member.fitness, member.defaults


def own(kernel: Kernel) -> Defaults:
    """The default expressions that a kernel has."""
    return tuple(param.default.text for param in kernel.params)


def judge(
    kernel: Kernel, evolved: Defaults, seen: Sequence[Shape], sealed: Sequence[Shape]
) -> dict[str, dict[str, float]]:
    """Scores on the seen and on the sealed shapes, by row: the evolved defaults, the kernel's own
    (handwritten), the one setting that is best at the seen shapes, and a setting drawn at random
    from those that ran, in expectation."""

    def of(defaults: Defaults) -> Callable[[Shape], float]:
        expressions = parsed(kernel, defaults, seen[0])
        return lambda shape: points.share(kernel, expressions, shape)

    settings = sorted({setting for shape in seen for setting in shape.ran})
    fixed = max(settings, key=lambda s: (points.score(shape.share(s) for shape in seen), s))
    rows: dict[str, Callable[[Shape], float]] = {
        "evolved": of(evolved),
        "handwritten": of(own(kernel)),
        "one setting": lambda shape: shape.share(fixed),
        "random": lambda shape: statistics.geometric_mean(map(shape.share, shape.ran)),
    }
    return {
        name: {"seen": points.score(map(row, seen)), "sealed": points.score(map(row, sealed))}
        for name, row in rows.items()
    }


def question(kernel: Kernel, shapes: Sequence[Shape]) -> str:
    """The prompt: the params, and what was measured at the shapes that may be seen."""
    asked = QUESTION.format(
        name=kernel.name,
        fields=", ".join(sorted(shapes[0].values)),
        meta=json.dumps(kernel.meta, indent=1),
    )
    lines = [asked]
    for shape in shapes:
        lines.append(f"\n## {shape.workload} on {shape.device}")
        for us, setting in sorted((us, setting) for setting, us in shape.us.items()):
            lines.append(f"{us:.2f} us  {dict(zip(_names(kernel), setting, strict=True))}")
    return "\n".join(lines) + "\n"


def answered(kernel: Kernel, folder: Path) -> list[tuple[str, Defaults | str]]:
    """The answers in a folder by name, each as defaults, or why it is none."""
    found: list[tuple[str, Defaults | str]] = []
    for path in sorted(folder.glob("*.md")):
        try:
            text = read_regular(path, 4 * MAX_ANSWER).decode(errors="replace")
            made = apply(text, kernel, kernel.origin)
            same = dict(zip(_names(kernel), own(kernel), strict=True))
            if _names(made) != _names(kernel) or made.with_defaults(same, kernel.origin) != kernel:
                raise AnswerError("it changes more than defaults")
            found.append((path.name, own(made)))
        except (AnswerError, OSError) as error:
            found.append((path.name, str(error)))
    return found


def ask(options: argparse.Namespace, text: str, folder: Path) -> None:
    """Ask each model that --llm names once; its answer is a file in `folder`, beside what others
    wrote. Raises UsageError where there is no endpoint or it fails."""
    import openai

    named_models = tuple(map(LanguageModel.parse, options.llm))
    client, models = llm.connect(LlmConfig(named_models, timeout=options.timeout))
    folder.mkdir(exist_ok=True)
    for model in models:
        try:
            reply = llm.ask(client, model.name, text, options.answer)
        except openai.OpenAIError as error:
            raise UsageError(f"{model.name}: {' '.join(str(error).split())[:200]}") from None
        write_atomic(folder / f"llm-{slugify(model.name)}.md", reply.text.encode())


def run(options: argparse.Namespace, out: Console, folder: Path) -> tuple[int, dict[str, Any]]:
    """`evolve --proposer heuristic`: search, judge once, keep the kernel in the run's registry and
    the evidence in RUN/heuristic.json. The code is 0 where the evolved defaults reach GOAL at the
    sealed shapes, else 1. Raises UsageError."""
    kernel, which = _kernel(options)
    seen, sealed = points.split(points.read(options.points, kernel, which))
    candidates = options.candidates or CANDIDATES
    out.print(f"run {folder}", markup=False)
    parsed(kernel, own(kernel), seen[0])  # the tables may lack facts that its own defaults need
    shown = f"{len(seen)} shapes seen, {len(sealed)} sealed, {candidates} candidates"
    out.print(f"{kernel.name} {kernel.id}: {shown}, seed {options.seed}", markup=False)
    folder.mkdir(parents=True, exist_ok=True)
    text = question(kernel, seen)
    write_atomic(folder / "prompt.md", text.encode())
    if options.llm:
        ask(options, text, folder / "answers")
    answers = answered(kernel, folder / "answers")
    for name, answer in answers:
        said = answer if isinstance(answer, str) else f"{scored(kernel, answer, seen).score:.4f}"
        out.print(f"answers/{name}: {said}", markup=False)
    given = [answer for _, answer in answers if not isinstance(answer, str)]
    start = time.monotonic()
    best = search(kernel, seen, candidates, options.seed, given)
    seconds = time.monotonic() - start
    scores = judge(kernel, best.defaults, seen, sealed)
    devices = ", ".join(sorted({shape.device for shape in seen}))
    origin = f"heuristic from {kernel.id}, seed {options.seed}, points of {devices}"
    made = kernel.with_defaults(dict(zip(_names(kernel), best.defaults, strict=True)), origin)
    Registry(folder).add(made)
    evidence = {
        "kernel": made.id,
        "parent": kernel.id,
        "points": [path.name for path in options.points],
        "points_of": which,
        "devices": devices,
        "seed": options.seed,
        "candidates": candidates,
        "answers": len(given),
        "seconds": round(seconds, 1),
        "handwritten": dict(zip(_names(kernel), own(kernel), strict=True)),
        "evolved": dict(zip(_names(kernel), best.defaults, strict=True)),
        "scores": scores,
        "shapes": [
            {**_shape_row(kernel, best.defaults, shape), "sealed": shape in sealed}
            for shape in (*seen, *sealed)
        ],
    }
    write_atomic(folder / "heuristic.json", (json.dumps(evidence, indent=1) + "\n").encode())
    out.print("share of the best measured speed, geometric mean:        seen  sealed")
    for name, row in scores.items():
        out.print(f"  {name:<50} {row['seen']:7.4f} {row['sealed']:7.4f}", markup=False)
    for name, text in zip(_names(kernel), best.defaults, strict=True):
        out.print(f"  {name}: {text}", markup=False)
    out.print(f"kernel {made.id} in {folder}; nothing runs on it before the gate accepts it")
    return (0 if scores["evolved"]["sealed"] >= GOAL else 1), {"run": str(folder), **evidence}


def _names(kernel: Kernel) -> list[str]:
    return [param.name for param in kernel.params]


def _shape_row(kernel: Kernel, evolved: Defaults, shape: Shape) -> dict[str, Any]:
    def chosen(defaults: Defaults) -> dict[str, Any]:
        setting = points.choice(kernel, parsed(kernel, defaults, shape), shape)
        return _row(kernel, shape, setting)

    best = _row(kernel, shape, shape.best())
    return {
        "workload": shape.workload,
        "device": shape.device,
        "settings": len(shape.ran),
        "best": best,
        "evolved": chosen(evolved),
        "handwritten": chosen(own(kernel)),
    }


def _row(kernel: Kernel, shape: Shape, setting: Setting | None) -> dict[str, Any]:
    """A setting with its time; null where it has none."""
    if setting is None:
        return {"params": None, "us": None}
    us: Mapping[Setting, float] = shape.ran
    return {"params": dict(zip(_names(kernel), setting, strict=True)), "us": us.get(setting)}


def _kernel(options: argparse.Namespace) -> tuple[Kernel, str]:
    """The kernel to search for, and what its points stand under: its id or name, or another id
    where a folder is named whose kernel has since got other defaults. Raises UsageError."""
    for name in ("resume", "scheduler", "workloads", "model", "budget", "export"):
        if getattr(options, name):
            raise UsageError(f"--{name}: --proposer heuristic runs nothing and knows no such thing")
    if not options.points:
        raise UsageError("--proposer heuristic needs --points FILE, a table of measured points")
    if len(options.kernels or ()) > 1:
        raise UsageError("--proposer heuristic takes one kernel, --kernels FOLDER")
    kernel = Kernel.load(options.kernels[0]) if options.kernels else None
    known = points.kernels_of(options.points)
    if kernel is not None and (its := [w for w in (kernel.id, kernel.name) if w in known]):
        return kernel, its[0]
    if len(known) != 1:
        listed = f"points of {', '.join(known) or 'no kernel'}"
        raise UsageError(f"--points: {listed}; name one kernel of them with --kernels FOLDER")
    return kernel or named(known[0]), known[0]
