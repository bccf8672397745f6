"""Controlled differential equations, linear (SLiCE) and neural: against loops over full matrices and Jacobians."""

import math

import pytest
import torch
from torch.nn import functional as F

from tsseq.mixers import MIXERS
from tsseq.mixers.linear_vector_fields import brackets

STRUCTURES = ("block_diagonal", "dense", "diagonal", "diagonal_dense", "dplr", "sparse", "walsh_hadamard")
BATCH, LENGTH, WIDTH = 2, 9, 8


def build(name, **options):
    """A mixer in float64 none of whose parameters sits at a special value such as zero."""
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH, **options).double()
    for parameter in mixer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return mixer


def sequence():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, LENGTH, WIDTH, generator=generator, dtype=torch.float64)


def slice_(m, x):
    """Euler or exact steps of dh = A(dω) h along windows, with full matrices."""
    moved = x - F.pad(x, (0, 0, 1, 0))[:, :-1] if m.paths else x
    increments = m.scale * torch.cat([torch.ones_like(x[..., :1]), moved], -1)
    generators, outputs = m.field.generators(), []
    h, pending = m.project_initial(x[:, 0]), [torch.zeros_like(increments[:, 0])]
    for t in range(LENGTH):
        pending += [increments[:, t]] if t else []
        if len(pending) == m.window:
            flow = torch.einsum("bi,inm->bnm", sum(pending), generators)
            if m.depth == 2:
                flow = flow + torch.einsum("bp,pnm->bnm", areas(pending), brackets(generators[:, None])[:, 0])
            flow = torch.matrix_exp(flow) if m.field.exponential else flow + torch.eye(m.states)
            h = (flow @ h[..., None])[..., 0]
            if m.drive is not None:
                h = h + sum(pending) @ m.drive
            pending = []
        outputs.append(h)
    parts = torch.stack(outputs, 1).split(mixing(m.field), -1)
    return m.project_out(torch.cat([h / (h.square().mean(-1, keepdim=True) + 0.01).sqrt() for h in parts], -1) * m.norm)


def mixing(field):
    """Numbers of states that mix with each other."""
    parts = torch.block_diag(*[torch.ones(1, 1)] * field.states) > 0
    for generator in field.generators():
        parts |= generator != 0
    edges = [t for t in range(1, field.states) if not parts[:t, t:].any() and not parts[t:, :t].any()]
    return [b - a for a, b in zip([0, *edges], [*edges, field.states], strict=True)]


def areas(increments):
    """½ Σ_{k<l} (δ_k^a δ_l^b − δ_k^b δ_l^a) for a < b, term by term."""
    width = increments[0].shape[-1]
    total = 0.0
    for left in range(len(increments)):
        for right in range(left + 1, len(increments)):
            product = increments[left][..., :, None] * increments[right][..., None, :]
            total = total + 0.5 * (product - product.mT)
    first, second = torch.triu_indices(width, width, offset=1)
    return torch.zeros(BATCH, len(first)).double() if len(increments) < 2 else total[:, first, second]


def log_ncde(m, x):
    """Heun steps with Jacobians from autograd."""

    def columns(h):
        for layer in m.field.inner:
            h = F.silu(layer(h))
        return torch.tanh(m.field.outer(h)).view(m.field.channels, m.states)

    def slope(h, level1, level2):
        f, jacobian = columns(h), torch.autograd.functional.jacobian(columns, h)
        total, pair = level1 @ f, 0
        for a in range(m.field.channels):
            for b in range(a + 1, m.field.channels):
                total = total + level2[pair] * (jacobian[b] @ f[a] - jacobian[a] @ f[b])
                pair += 1
        return total

    increments = torch.cat([torch.full_like(x[..., :1], m.time_scale), x.diff(dim=1, prepend=x[:, :1])], -1)
    increments[:, 0] = 0
    h, pending, outputs = m.project_initial(x[:, 0]), [], []
    for t in range(LENGTH):
        pending.append(increments[:, t])
        if len(pending) == m.window:
            rows = []
            for row, level1, level2 in zip(h, sum(pending), areas(pending), strict=True):
                first = slope(row, level1, level2)
                rows.append(row + (first + slope(row + first, level1, level2)) / 2)
            h, pending = torch.stack(rows), []
        outputs.append(h)
    return m.project_out(torch.stack(outputs, 1))


CASES = {
    "log_ncde": (log_ncde, "log_ncde", {"hidden": 5}),
    "slice": (slice_, "slice", {}),
    **{f"slice {s}": (slice_, "slice", {"structure": s}) for s in STRUCTURES},
    **{
        f"slice {s}, exact flow of paths over windows": (
            slice_,
            "slice",
            {"structure": s, "flow": "exponential", "increments": "paths", "window": 3, "depth": 2, "scale": 1.0},
        )
        for s in STRUCTURES
    },
    "slice driven, over windows": (slice_, "slice", {"drive": True, "window": 4, "scale": 0.2}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_its_recurrence(case):
    loop, name, options = CASES[case]
    mixer, x = build(name, **options), sequence()
    with torch.no_grad():
        expected = loop(mixer, x)
        torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-9, atol=1e-10)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("structure", STRUCTURES)
def test_states_of_any_size_are_read(structure):
    """Nothing bounds products of transitions: their squares overflow float32 long before they do."""
    field = MIXERS["slice"](WIDTH, structure=structure).field
    h = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(field.normalize(1e30 * h), field.normalize(1e5 * h), rtol=1e-5, atol=1e-6)


def test_bracket_is_the_second_order_of_two_flows_in_turn():
    """exp(A₂) exp(A₁) = exp(A₁ + A₂ + ½ (A₂ A₁ − A₁ A₂)) up to third order: halving the step divides the gap by 8."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)

    def gap(size):
        first, second = size * a[:, 0]
        bracket = brackets(size * a)[0, 0]
        return (torch.matrix_exp(second) @ torch.matrix_exp(first)
                - torch.matrix_exp(first + second + bracket / 2)).norm()  # fmt: skip

    assert 7 < gap(0.02) / gap(0.01) < 9


def test_exact_flow_of_a_half_turn_counts_parity_for_ever():
    mixer = MIXERS["slice"](1, states=2, block=2, flow="exponential", scale=1.0).double()
    mixer.field.blocks.data.zero_()
    mixer.field.blocks.data[1, 0] = math.pi * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    bits = torch.randint(2, (1, 4000, 1), generator=torch.Generator().manual_seed(0)).double()
    _, (h, *_) = mixer(bits)
    start = mixer.project_initial(bits[:, 0])
    torch.testing.assert_close(h, (-1) ** int(bits[:, 1:].sum()) * start, rtol=1e-9, atol=1e-9)


def test_slices_of_one_budget():
    """The paper compares structures of 512 non-zero entries per matrix (its section on formal languages)."""

    def entries(**options):
        field = MIXERS["slice"](4, **options).field
        return sum(p.numel() for p in field.parameters()) / field.channels

    for size, states in ((2, 256), (4, 128), (8, 64), (16, 32)):
        assert entries(states=states, block=size) == 512
    for size, states in ((2, 510), (4, 500), (8, 456), (16, 272)):
        assert entries(structure="diagonal_dense", states=states, block=size) == 512
    for rank, states in ((1, 171), (2, 102), (4, 57), (8, 30)):
        assert abs(entries(structure="dplr", states=states, rank=rank) - 512) <= 3


def test_rows_must_share_their_place_in_a_window():
    mixer = MIXERS["slice"](WIDTH, window=4)
    *state, filled = mixer.init_state(2)
    with pytest.raises(ValueError, match="one place in their windows"):
        mixer(torch.zeros(2, 3, WIDTH), (*state, filled + torch.tensor([[0.0], [1.0]])))
