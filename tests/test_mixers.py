"""Every mixer against its docstring's recurrence written as a loop, and what its memory must and must not do."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tsseq.backbone import Backbone, BackboneConfig
from tsseq.mixers import MIXERS
from tsseq.mixers import s4d as s4d_module
from tsseq.mixers.linear_vector_fields import brackets
from tsseq.mixers.s5 import hippo_normal
from tsseq.testing import check_mixer

STRUCTURES = ("block_diagonal", "dense", "diagonal", "diagonal_dense", "dplr", "sparse", "walsh_hadamard")
BATCH, LENGTH, WIDTH = 2, 9, 8
sigmoid, silu = torch.sigmoid, F.silu


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


def convolved(u, weight, bias=0.0):
    """SiLU of a causal depth-wise convolution, one sum per position."""
    kernel = weight.shape[1]
    rows = []
    for t in range(u.shape[1]):
        y = bias + sum(weight[:, -1 - lag] * u[:, t - lag] for lag in range(min(kernel, t + 1)))
        rows.append(silu(y))
    return torch.stack(rows, 1)


def normalised(x, weight, eps=1e-5):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def run(step, state, *sequences):
    """Outputs of `step(state, *inputs_t) -> (state, output)`."""
    outputs = []
    for inputs in zip(*(s.unbind(1) for s in sequences), strict=True):
        state, y = step(state, *inputs)
        outputs.append(y)
    return torch.stack(outputs, 1)


def outer(k, v):
    return k[..., :, None] * v[..., None, :]


def read(memory, q):
    return torch.einsum("bhkv,bhk->bhv", memory, q)


def heads(x, number):
    return x.unflatten(-1, (number, -1))


def positive(u):
    return torch.where(u >= 0, u + 0.5, sigmoid(u))


def min_gru(m, x):
    z, candidate = m.project_in(x).chunk(2, -1)

    def step(h, z, c):
        h = (1 - sigmoid(z)) * h + sigmoid(z) * positive(c)
        return h, h

    return m.project_out(run(step, 0.0, z, candidate))


def min_lstm(m, x):
    def step(h, f, i, c):
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * positive(c)
        return h, h

    return m.project_out(run(step, 0.0, *m.project_in(x).chunk(3, -1)))


def hgrn(m, x):
    forget, value, gate = m.project_in(x).chunk(3, -1)

    def step(h, f, v):
        f = m.lower_bound + (1 - m.lower_bound) * sigmoid(f)
        h = f * h + (1 - f) * silu(v)
        return h, h

    return m.project_out(normalised(run(step, 0.0, forget, value), m.norm) * silu(gate))


def gate_loop(m, x):
    def step(h, q, k, v, g, modulus, phase):
        h = sigmoid(modulus) * torch.exp(1j * phase) * h + k * v
        return h, (q * h).real * silu(g)

    parts = [*m.project_in(x).chunk(4, -1), *m.project_decay(x).chunk(2, -1)]
    return m.project_out(run(step, 0.0, *parts))


def lstm(m, x):
    (w, r, b_w, b_r) = m.cell.all_weights[0]

    def step(state, x):
        h, c = state
        i, f, z, o = (x @ w.T + h @ r.T + b_w + b_r).chunk(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * torch.tanh(z)
        h = sigmoid(o) * torch.tanh(c)
        return (h, c), h

    zeros = x.new_zeros(BATCH, WIDTH)
    return run(step, (zeros, zeros), x)


def longhorn(m, x):
    u, gate = m.project_in(x).chunk(2, -1)
    u = convolved(u, m.convolution)
    rate, key, query = m.project_keys(u).split([m.rank, m.states, m.states], -1)
    beta = sigmoid(m.project_rate(rate))

    def step(s, u, beta, k, q):
        delta = beta / (1 + beta * k.square().sum(-1, keepdim=True))
        s = (1 - outer(delta, k.square())) * s + outer(delta * u, k)
        return s, torch.einsum("bcn,bn->bc", s, q) + m.d * u

    return m.project_out(run(step, 0.0, u, beta, key, query) * silu(gate))


def lru(m, x):
    decay = torch.exp(-m.log_rate.exp() + 1j * m.log_phase.exp())
    b, c = torch.view_as_complex(m.b), torch.view_as_complex(m.c)

    def step(h, x):
        h = decay * h + m.log_gamma.exp() * (x.to(b.dtype) @ b.T)
        return h, (h @ c.T).real + m.d * x

    return run(step, 0.0, x)


def s4d(m, x):
    a = -m.log_rate.exp() + 1j * m.frequency
    decay = torch.exp(m.log_step.exp()[:, None] * a)
    c = torch.view_as_complex(m.c)

    def step(h, u):
        h = decay * h + (decay - 1) / a * u[..., None]
        return h, 2 * (c * h).sum(-1).real + m.d * u

    return F.glu(m.project_out(F.gelu(run(step, 0.0, x))), -1)


def s5(m, x):
    a = -m.log_rate.exp() + 1j * m.frequency
    decay = torch.exp(m.log_step.exp() * a)
    b, c = torch.view_as_complex(m.b), torch.view_as_complex(m.c)

    def step(h, u):
        h = decay * h + (decay - 1) / a * (u.to(b.dtype) @ b.T)
        return h, 2 * (h @ c.T).real + m.d * u

    return run(step, 0.0, x)


def efla(m, x):
    mixed, rate = m.project_in(x).split([3 * WIDTH, m.heads], -1)
    q, k, v = convolved(mixed, m.convolution).unflatten(-1, (3, m.heads, -1)).unbind(2)

    def step(s, q, k, v, rate):
        beta, squared = sigmoid(rate), k.square().sum(-1)
        flow = torch.matrix_exp(-beta[..., None, None] * outer(k, k))
        weight = (1 - torch.exp(-beta * squared)) / squared
        s = flow @ s + weight[..., None, None] * outer(k, v)
        return s, read(s, q) / math.sqrt(m.head_width)

    start = x.new_zeros(BATCH, m.heads, m.head_width, m.head_width)
    return m.project_out(normalised(run(step, start, q, k, v, rate), m.norm).flatten(2))


def gated_delta_product(m, x):
    queries_keys = WIDTH * (1 + m.steps)
    parts = [queries_keys, WIDTH * m.steps, WIDTH, m.heads * (m.steps + 1)]
    mixed, value, gate, rates = m.project_in(x).split(parts, -1)
    mixed = heads(convolved(mixed, m.convolution[:queries_keys]), m.heads * (1 + m.steps))
    mixed = mixed / torch.sqrt(mixed.square().sum(-1, keepdim=True) + 1e-6)
    value = convolved(value, m.convolution[queries_keys:]).unflatten(-1, (m.steps, m.heads, -1))
    query, key = mixed[:, :, : m.heads], mixed[:, :, m.heads :].unflatten(2, (m.steps, m.heads))

    def step(s, q, k, v, rates):
        beta = m.beta_scale * sigmoid(rates[:, : m.heads * m.steps]).unflatten(-1, (m.steps, m.heads))
        s = torch.exp(-m.log_rate.exp() * F.softplus(rates[:, m.heads * m.steps :] + m.rate_bias))[..., None, None] * s
        for j in range(m.steps):
            s = s + beta[:, j, :, None, None] * outer(k[:, j], v[:, j] - read(s, k[:, j]))
        return s, read(s, q) / math.sqrt(m.head_width)

    start = x.new_zeros(BATCH, m.heads, m.head_width, m.head_width)
    output = normalised(run(step, start, query, key, value, rates), m.norm).flatten(2)
    return m.project_out(output * silu(gate))


def linear_attention(m, x):
    q, k, v = m.project_in(x).unflatten(-1, (3, m.heads, -1)).unbind(2)

    def step(state, q, k, v):
        s, z = state
        q, k = F.elu(q) + 1, F.elu(k) + 1
        s, z = s + outer(k, v), z + k
        return (s, z), read(s, q) / ((z * q).sum(-1, keepdim=True) + 1e-6)

    return m.project_out(run(step, (0.0, 0.0), q, k, v).flatten(2))


def gla(m, x):
    q, k, v, g = (heads(p, m.heads) for p in m.project_in(x).split([WIDTH // 2, WIDTH // 2, WIDTH, WIDTH], -1))
    decay = heads(sigmoid(m.project_decay(x)) ** (1 / 16), m.heads)

    def step(s, q, k, v, decay):
        s = decay[..., None] * s + outer(k, v)
        return s, read(s, q) / math.sqrt(q.shape[-1])

    return m.project_out((normalised(run(step, 0.0, q, k, v, decay), m.norm) * silu(g)).flatten(2))


def mamba(m, x):
    u, gate = m.project_in(x).chunk(2, -1)
    u = convolved(u, m.convolution, m.convolution_bias)
    step_size, b, c = m.project_maps(u).split([m.rank, m.states, m.states], -1)
    step_size = F.softplus(m.project_step(step_size))

    def step(h, u, dt, b, c):
        h = torch.exp(-dt[..., None] * m.log_rate.exp()) * h + outer(dt * u, b)
        return h, (h * c[:, None]).sum(-1) + m.d * u

    return m.project_out(run(step, 0.0, u, step_size, b, c) * silu(gate))


def mamba2(m, x):
    gate, mixed, step_size = m.project_in(x).split([m.inner, m.convolution.shape[0], m.heads], -1)
    mixed = convolved(mixed, m.convolution, m.convolution_bias)
    u, b, c = mixed.split([m.inner, m.states, m.states], -1)

    def step(s, u, b, c, dt):
        dt = F.softplus(dt + m.step_bias)
        decay = torch.exp(-dt * m.log_rate.exp())
        s = decay[..., None, None] * s + dt[..., None, None] * outer(b[:, None], u)
        return s, read(s, c[:, None].expand(-1, m.heads, -1)) + m.d[:, None] * u

    y = run(step, 0.0, heads(u, m.heads), b, c, step_size).flatten(2)
    return m.project_out(normalised(y * silu(gate), m.norm))


def mlstm(m, x):
    u, gate = m.project_in(x).chunk(2, -1)
    c = convolved(u, m.convolution)
    q, k, v = (
        torch.cat([part @ w for part, w in zip(source.split(4, -1), maps, strict=True)], -1)
        for source, maps in zip((c, c, u), m.maps, strict=True)
    )
    gates = m.gates(torch.cat([q, k, v], -1))

    def step(state, q, k, v, gates):
        s, n = state
        i, f = gates.chunk(2, -1)
        f, i = sigmoid(f)[..., None], (i.exp() if m.exponential else sigmoid(i))[..., None]
        k = k / math.sqrt(k.shape[-1])
        s, n = f[..., None] * s + i[..., None] * outer(k, v), f * n + i * k
        h = read(s, q)
        return (s, n), h / (n * q).sum(-1, keepdim=True).abs().clamp(min=1) if m.exponential else h

    h = run(step, (0.0, 0.0), heads(q, m.heads), heads(k, m.heads), heads(v, m.heads), gates)
    h = F.layer_norm(h, h.shape[-1:]).flatten(2) * m.norm
    return m.project_out((h + m.skip * c) * silu(gate))


def slstm(m, x):
    c = convolved(x, m.convolution)
    gates = [
        torch.einsum("bthi,hij->bthj", heads(source, m.heads), w) + b
        for source, w, b in zip((c, c, x, x), m.gates, m.bias, strict=True)
    ]

    def step(state, *gates):
        c, n, h = state
        i, f, z, o = (g + torch.einsum("hij,bhj->bhi", r, h) for g, r in zip(gates, m.recurrent, strict=True))
        c = sigmoid(f) * c + i.exp() * torch.tanh(z)
        n = sigmoid(f) * n + i.exp()
        h = sigmoid(o) * c / n
        return (c, n, h), h

    h = run(step, (0.0, 0.0, x.new_zeros(BATCH, m.heads, WIDTH // m.heads)), *gates)
    return (F.layer_norm(h, h.shape[-1:]) * m.norm).flatten(2)


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
    return m.project_out(normalised(torch.stack(outputs, 1), m.norm, 1e-6))


def areas(increments):
    """½ Σ_{k<l} (δ_k^a δ_l^b − δ_k^b δ_l^a) for a < b, term by term."""
    width = increments[0].shape[-1]
    total = 0.0
    for left in range(len(increments)):
        for right in range(left + 1, len(increments)):
            product = outer(increments[left], increments[right])
            total = total + 0.5 * (product - product.mT)
    first, second = torch.triu_indices(width, width, offset=1)
    return torch.zeros(BATCH, len(first)).double() if len(increments) < 2 else total[:, first, second]


def log_ncde(m, x):
    """Heun steps with Jacobians from autograd."""

    def columns(h):
        for layer in m.field.inner:
            h = silu(layer(h))
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


def block_lrnn(m, x):
    transitions = m.project_transition(x).unflatten(-1, (m.blocks, m.size, m.size))
    inputs = heads(m.project_in(x), m.blocks)

    def step(h, a, b):
        columns = a.abs().pow(m.norm).sum(-2, keepdim=True).pow(1 / m.norm)
        h = (a / columns.clamp(min=1) @ h[..., None])[..., 0] + b
        return h, h

    start = x.new_zeros(BATCH, m.blocks, m.size)
    return m.project_out(run(step, start, transitions, inputs).flatten(2))


CASES = {
    "block_lrnn": (block_lrnn, "block_lrnn", {}),
    "efla": (efla, "efla", {"heads": 2}),
    "gate_loop": (gate_loop, "gate_loop", {}),
    "gated_delta_product": (gated_delta_product, "gated_delta_product", {"heads": 2, "steps": 2}),
    "gla": (gla, "gla", {"heads": 2}),
    "hgrn": (hgrn, "hgrn", {"lower_bound": 0.3}),
    "linear_attention": (linear_attention, "linear_attention", {"heads": 2}),
    "log_ncde": (log_ncde, "log_ncde", {"hidden": 5}),
    "longhorn": (longhorn, "longhorn", {"states": 3}),
    "lru": (lru, "lru", {}),
    "lstm": (lstm, "lstm", {}),
    "mamba": (mamba, "mamba", {"states": 3}),
    "mamba2": (mamba2, "mamba2", {"states": 5, "head_width": 4}),
    "min_gru": (min_gru, "min_gru", {"state_width": 5}),
    "min_lstm": (min_lstm, "min_lstm", {"state_width": 5}),
    "mlstm": (mlstm, "mlstm", {"heads": 2}),
    "mlstm_sigmoid": (mlstm, "mlstm_sigmoid", {"heads": 2}),
    "s4d": (s4d, "s4d", {"states": 6}),
    "s5": (s5, "s5", {"blocks": 2}),
    "slstm": (slstm, "slstm", {"heads": 2}),
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


def test_every_mixer_has_a_loop():
    assert {name for _, name, _ in CASES.values()} == set(MIXERS)


@pytest.mark.parametrize("case", CASES)
def test_equals_its_recurrence(case):
    loop, name, options = CASES[case]
    mixer, x = build(name, **options), sequence()
    with torch.no_grad():
        expected = loop(mixer, x)
        torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-9, atol=1e-10)
    assert expected.std() > 1e-3


def test_s4d_over_several_convolutions(monkeypatch):
    monkeypatch.setattr(s4d_module, "CHUNK", 4)
    mixer, x = build("s4d", states=6), sequence()
    torch.testing.assert_close(mixer(x)[0], s4d(mixer, x), rtol=1e-9, atol=1e-10)


CONTRACTS = {
    "slice dense, exact": ("slice", {"structure": "dense", "flow": "exponential"}),
    "slice diagonal, paths": ("slice", {"structure": "diagonal", "increments": "paths"}),
    "slice diagonal_dense, windows": ("slice", {"structure": "diagonal_dense", "window": 4, "depth": 2}),
    "slice dplr, driven": ("slice", {"structure": "dplr", "drive": True, "states": 6}),
    "slice sparse": ("slice", {"structure": "sparse"}),
    "slice walsh_hadamard, window longer than the split": ("slice", {"structure": "walsh_hadamard", "window": 12}),
    "log_ncde, one step a position": ("log_ncde", {"window": 1, "depth": 1, "solver": "euler", "control_width": 3}),
    "log_ncde, long windows": ("log_ncde", {"window": 8, "solver_steps": 2}),
    "mlstm, one head": ("mlstm", {"heads": 1, "expand": 1, "kernel": 1}),
    "longhorn, no window": ("longhorn", {"kernel": 1, "expand": 1}),
    "s4d inverse": ("s4d", {"spectrum": "inverse"}),
    "s4d real": ("s4d", {"spectrum": "real"}),
}


@pytest.mark.parametrize("case", CONTRACTS)
def test_options_keep_the_contract(case):
    name, options = CONTRACTS[case]
    torch.manual_seed(0)
    check_mixer(lambda: MIXERS[name](WIDTH, **options), length=21)


@pytest.mark.parametrize("name", MIXERS)
def test_step_runs_in_constant_memory(name):
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH).eval()
    x = torch.randn(2, 200, WIDTH)
    sizes = []
    with torch.no_grad():
        state = mixer.init_state(2)
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, state)
            sizes.append(sum(leaf.untyped_storage().nbytes() for leaf in state))
    assert y.isfinite().all()
    assert set(sizes[8:]) == {sizes[8]}
    assert all(leaf.dtype == torch.float32 for leaf in state)


@pytest.mark.parametrize("name", MIXERS)
def test_woven_stack_hears_the_future(name):
    torch.manual_seed(0)
    stack = Backbone(BackboneConfig(mixers=(name,), width=WIDTH, layers=2, mlp_width=8, weave=True))
    x = torch.randn(2, 20, WIDTH)
    y, _ = stack(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stack.parameters())
    changed = x.clone()
    changed[:, -3:] += 1.0
    with torch.no_grad():
        moved = (stack(changed)[0] - y)[:, 5:10].abs().max()
    assert moved > 1e-7


class Toy(nn.Module):
    """Two layers of one mixer that forecast the next value of a series."""

    def __init__(self, name, **options):
        super().__init__()
        config = BackboneConfig(mixers=(name,), width=32, layers=2, mlp_width=32, options={name: options})
        self.read_in, self.stack, self.read_out = nn.Linear(1, 32), Backbone(config), nn.Linear(32, 1)

    def forward(self, x):
        return self.read_out(self.stack(self.read_in(x[..., None]))[0])[..., 0]


def noisy_waves(generator, batch, length=26, period=8):
    """Sines of one period, of any phase and of amplitude 1 to 2, in noise of standard deviation a half."""
    phase, size = (torch.rand(batch, 1, generator=generator) for _ in range(2))
    wave = (1 + size) * torch.sin(2 * math.pi * (torch.arange(length) / period + phase))
    return wave + 0.5 * torch.randn(batch, length, generator=generator)


def error_of(model, x, period=8):
    return (model(x[:, :-1])[:, period:] - x[:, period + 1 :]).square().mean()


# The one without order, and the one that starts from a vector field of almost zero, take longer.
STEPS = {"linear_attention": 200, "log_ncde": 100}
OPTIONS = {"log_ncde": {"hidden": 16, "control_width": 4, "states": 16}}


@pytest.mark.parametrize("name", MIXERS)
def test_two_layers_learn_to_beat_seasonal_naive(name):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Toy(name, **OPTIONS.get(name, {}))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS.get(name, 50)):
        optimizer.zero_grad()
        error_of(model, noisy_waves(generator, 32)).backward()
        optimizer.step()
    with torch.no_grad():
        x = noisy_waves(generator, 512)
        naive = error_of(lambda past: F.pad(past, (7, 0))[:, :-7], x)
        assert error_of(model, x) < naive


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


def test_spectra_of_the_linear_recurrences():
    torch.manual_seed(0)
    lru_ = MIXERS["lru"](64, state_width=500, r_min=0.6, r_max=0.9)
    modulus = torch.exp(-lru_.log_rate.exp()).square()
    assert 0.36 <= modulus.min() < 0.38 and 0.79 < modulus.max() <= 0.81
    torch.testing.assert_close(modulus.mean(), torch.tensor(0.585), atol=0.02, rtol=0)
    # One unit of white noise in keeps the variance of B u: γ² / (1 − |λ|²) = 1.
    torch.testing.assert_close((2 * lru_.log_gamma).exp() / (1 - modulus), torch.ones(500))

    n = torch.arange(6.0, dtype=torch.float64)
    p = torch.sqrt(n + 0.5)
    legs = -torch.outer(torch.sqrt(2 * n + 1), torch.sqrt(2 * n + 1)).tril(-1) - torch.diag(n + 1)
    frequency, vectors = hippo_normal(6)
    vectors = torch.cat([vectors, vectors.conj()], 1).to(torch.complex128)
    values = -0.5 + 1j * torch.cat([frequency, -frequency]).double()
    rebuilt = vectors @ torch.diag(values) @ vectors.mH
    torch.testing.assert_close(rebuilt.real, legs + torch.outer(p, p), atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slice", {"structure": "round"}, "structure must be one of block_diagonal"),
        ("slice", {"block": 3}, "multiple of the block size, got 8 and 3"),
        ("slice", {"structure": "walsh_hadamard", "states": 12}, "power of two, got 12"),
        ("slice", {"depth": 2}, "a window of at least depth, got 2 and 1"),
        ("slice", {"increments": "both"}, "values or paths, got 'both'"),
        ("log_ncde", {"solver": "rk4"}, "heun or euler"),
        ("hgrn", {"lower_bound": 1.0}, r"lie in \[0, 1\), got 1.0"),
        ("s4d", {"states": 5}, "even and positive, got 5"),
        ("s4d", {"spectrum": "cubic"}, "one of linear, inverse, real; got 'cubic'"),
        ("s5", {"states": 6, "blocks": 2}, "even multiple of blocks, got 6 and 2"),
        ("mamba2", {"head_width": 7}, "multiple of head_width"),
        ("mlstm", {"heads": 3}, "multiple of heads"),
        ("slstm", {"heads": 3}, "multiple of heads, got width 8 and heads 3"),
        ("efla", {"kernel": 0}, "kernel must be at least 1, got 0"),
        ("block_lrnn", {"norm": 0.5}, "norm must be at least 1, got 0.5"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](WIDTH, **options)


def test_rows_must_share_their_place_in_a_window():
    mixer = MIXERS["slice"](WIDTH, window=4)
    *state, filled = mixer.init_state(2)
    with pytest.raises(ValueError, match="one place in their windows"):
        mixer(torch.zeros(2, 3, WIDTH), (*state, filled + torch.tensor([[0.0], [1.0]])))


@pytest.mark.parametrize("name", MIXERS)
def test_docstring_says_state_and_paper(name):
    text = MIXERS[name].__doc__
    assert "State:" in text and "Paper" in text
    assert "track" in text
