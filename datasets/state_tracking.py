"""Words whose label is the state of a machine that read them: what a recurrence must track to get them right.

Formal languages of Delétang et al. (arXiv 2207.02098), labelled at the last position as by SLiCE (arXiv 2505.17761)
and in "Unlocking state-tracking" (arXiv 2411.12537), and the word problems of small groups, labelled at every position
as in DeltaProduct (arXiv 2502.10297). Drawn on the fly, on the device of a generator. The papers train on words of
3 to 40 tokens and test on 40 to 256 (A5 in one layer: 3 to 20 in range).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Generator

from tsseq.array_typing import Bool, Int, Tensor

MODULUS = 5
PLUS, MINUS, TIMES, EQUALS, OPEN, CLOSE = range(MODULUS, MODULUS + 6)

Draw = Callable[[Generator, Tensor, int], tuple[Tensor, Tensor]]
"""From a generator, the length of every word and the longest of them: tokens and labels, batch × longest."""


class Words(NamedTuple):
    """A word per row, padded at its end with the token one past the vocabulary; `scored` positions have a label."""

    tokens: Int[Tensor, "batch time"]
    labels: Int[Tensor, "batch time"]
    scored: Bool[Tensor, "batch time"]


@dataclass(frozen=True)
class Task:
    """`vocabulary` tokens, padding not counted; lengths are multiples of `step`."""

    vocabulary: int
    classes: int
    draw: Draw
    last_only: bool = True
    step: int = 1

    def sample(
        self, generator: Generator, batch: int, lengths: tuple[int, int], *, every_position: bool = False
    ) -> Words:
        """`batch` words of lengths uniform between the two bounds, both included, rounded up to the task's step.

        With `every_position` the state after each token is a label, whatever the task says.

        Raises ValueError if the bounds are not positive and in order.
        """
        low, high = lengths
        if not 1 <= low <= high:
            raise ValueError(f"expected lengths 1 <= low <= high, got {low} and {high}")
        steps = [-(-bound // self.step) for bound in lengths]
        drawn = torch.randint(steps[0], steps[1] + 1, (batch, 1), generator=generator, device=generator.device)
        length, longest = self.step * drawn, self.step * steps[1]
        tokens, labels = self.draw(generator, length, longest)
        position = torch.arange(longest, device=generator.device)
        scored = position == length - 1 if self.last_only and not every_position else position < length
        return Words(tokens.masked_fill(position >= length, self.vocabulary), labels, scored)


def load(name: str) -> Task:
    """The task of that name. Raises ValueError if there is none."""
    if name not in TASKS:
        raise ValueError(f"expected a task among {', '.join(TASKS)}; got {name!r}")
    return TASKS[name]


def parity(generator: Generator, length: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Is the number of ones odd?"""
    bits = _integers(generator, 2, (len(length), longest))
    return bits, bits.cumsum(1) % 2


def even_pairs(generator: Generator, length: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Is the number of changes between zeros and ones even, that is, do the first and the last agree?"""
    bits = _integers(generator, 2, (len(length), longest))
    return bits, (bits == bits[:, :1]).long()


def cycle_navigation(generator: Generator, length: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Where on a ring of five places does a walk of stay, forward and back (tokens 0, 1 and 2) end?"""
    moves = _integers(generator, 3, (len(length), longest))
    return moves, torch.where(moves == 2, -1, moves).cumsum(1) % MODULUS


def modular_arithmetic(generator: Generator, length: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The value modulo five of digits joined by +, − and × (which binds more closely), after a final "="."""
    digits = _integers(generator, MODULUS, (len(length), longest // 2))
    operators = PLUS + _integers(generator, 3, (len(length), longest // 2))
    total = torch.zeros_like(digits[:, 0])
    term, values = digits[:, 0], [digits[:, 0]]
    for j in range(1, longest // 2):
        digit, operator = digits[:, j], operators[:, j - 1]
        times = operator == TIMES
        total = torch.where(times, total, total + term)
        term = torch.where(times, term * digit, torch.where(operator == MINUS, -digit, digit)) % MODULUS
        values.append((total + term) % MODULUS)
    tokens = torch.stack([digits, operators], dim=2).flatten(1)
    tokens = tokens.scatter(1, length - 1, EQUALS)
    return tokens, torch.stack(values, dim=1).repeat_interleave(2, dim=1)


def modular_arithmetic_brackets(generator: Generator, length: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The value modulo five of a random expression with a bracket around every operation, after a final "="."""
    tokens = _expressions(generator, length, longest)
    return tokens, _evaluate(tokens)


def _expressions(generator: Generator, length: Tensor, longest: int) -> Tensor:
    """Leftmost derivations E → digit | −digit | (E) | (E operator E) of exactly the right lengths, all rows at once.

    The stack holds what is still to come: n > 0 for an expression of n tokens, −1 − token for a token. Every pop
    emits one token.
    """
    batch, device = len(length), generator.device
    digits = _integers(generator, MODULUS, (batch, longest))
    operators = PLUS + _integers(generator, 3, (batch, longest))
    cuts = torch.rand(batch, longest, generator=generator, device=device)
    stack = (length - 1).expand(-1, longest + 4)
    height, columns, tokens = torch.ones_like(length), torch.arange(4, device=device), []
    for t in range(longest):
        height = (height - 1).clamp(min=0)
        top = stack.gather(1, height)[:, 0]
        emitted = torch.where(top == 1, digits[:, t], torch.where(top == 2, MINUS, OPEN))
        tokens.append(torch.where(top < 0, -1 - top, emitted))
        left = 1 + (cuts[:, t] * (top - 4)).long()
        closed = torch.where(top == 2, 1, -1 - CLOSE)
        right = torch.where(top >= 5, top - 3 - left, top - 2)
        stack = stack.scatter(1, height + columns, torch.stack([closed, right, -1 - operators[:, t], left], dim=1))
        height = height + torch.where(top >= 5, 4, (top - 1).clamp(0, 2))[:, None]
    ended = torch.arange(longest, device=device) >= length - 1
    return torch.stack(tokens, dim=1).masked_fill(ended, EQUALS)


def _evaluate(tokens: Tensor) -> Tensor:
    """Value of the outermost level after each token; one frame of value and operator per open bracket."""
    batch, longest = tokens.shape
    value = tokens.new_zeros(batch, longest + 1)
    operator = torch.full_like(value, PLUS)
    level = tokens.new_zeros(batch, 1)
    previous = torch.full_like(level, OPEN)
    negative = torch.zeros_like(level, dtype=torch.bool)
    results = []
    for token in tokens.unsqueeze(2).unbind(1):
        opened, closed, digit = token == OPEN, token == CLOSE, token < MODULUS
        infix = (token >= PLUS) & (token <= TIMES) & ((previous < MODULUS) | (previous == CLOSE))
        operand = torch.where(closed, value.gather(1, level), torch.where(negative, -token, token))
        level = level + opened.long() - closed.long()
        now, sign = value.gather(1, level), operator.gather(1, level)
        applied = torch.where(sign == TIMES, now * operand, now + torch.where(sign == MINUS, -operand, operand))
        now = torch.where(opened, 0, torch.where(digit | closed, applied % MODULUS, now))
        value = value.scatter(1, level, now)
        operator = operator.scatter(1, level, torch.where(opened, PLUS, torch.where(infix, token, sign)))
        negative = (token == MINUS) & ~infix
        previous = token
        results.append(value[:, 0])
    return torch.stack(results, dim=1)


def word_problem(
    generator: Generator, length: Tensor, longest: int, *, degree: int, even: bool
) -> tuple[Tensor, Tensor]:
    """The running product of random permutations of `degree` things, all of them or only the even ones.

    Products of uniform elements are uniform and independent: they are drawn, and the elements follow.
    """
    table = group_table(degree, even).to(generator.device)
    inverse = (table == 0).long().argmax(1)
    products = _integers(generator, len(table), (len(length), longest))
    before = torch.cat([torch.zeros_like(products[:, :1]), products[:, :-1]], dim=1)
    return table[inverse[before], products], products


@cache
def group_table(degree: int, even: bool) -> Tensor:
    """Entry (i, j) is the number of "first i, then j"; element 0 is the identity (S_n, or A_n if `even`)."""
    elements = [p for p in permutations(range(degree)) if not even or _is_even(p)]
    number = {p: i for i, p in enumerate(elements)}
    return torch.tensor([[number[tuple(second[i] for i in first)] for second in elements] for first in elements])


def _is_even(permutation: tuple[int, ...]) -> bool:
    pairs = ((i, j) for j in range(len(permutation)) for i in range(j))
    return sum(permutation[i] > permutation[j] for i, j in pairs) % 2 == 0


def _integers(generator: Generator, high: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device)


def _group(degree: int, even: bool) -> Task:
    size = len(group_table(degree, even))
    return Task(size, size, partial(word_problem, degree=degree, even=even), last_only=False)


TASKS: dict[str, Task] = {
    "parity": Task(2, 2, parity),
    "even_pairs": Task(2, 2, even_pairs),
    "cycle_navigation": Task(3, MODULUS, cycle_navigation),
    "modular_arithmetic": Task(EQUALS + 1, MODULUS, modular_arithmetic, step=2),
    "modular_arithmetic_brackets": Task(CLOSE + 1, MODULUS, modular_arithmetic_brackets),
    "s3": _group(3, even=False),
    "s4": _group(4, even=False),
    "a5": _group(5, even=True),
    "s5": _group(5, even=False),
}
