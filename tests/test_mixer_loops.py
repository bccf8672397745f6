"""Every mixer against its docstring's recurrence written as a loop."""

import math

import pytest
import torch
from torch.nn import functional as F

from tsseq.mixers import MIXERS
from tsseq.mixers import s4d as s4d_module

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


def local_attention(m, x):
    query, key, value, gate = (heads(part, m.heads) for part in m.project_in(x).split(m.sizes, -1))
    query, key = normalised(query, m.norm_query, 1e-6), normalised(key, m.norm_key, 1e-6)
    half = m.key_width // 2
    pairs = torch.complex(key[..., :half], key[..., half:])
    frequency = 1000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    rows = []
    for t in range(x.shape[1]):
        past = range(max(0, t - m.window + 1), t + 1)
        turned = [pairs[:, s] * torch.exp(1j * (s - t) * frequency) for s in past]
        scores = [(query[:, t] * torch.cat([k.real, k.imag], -1)).sum(-1) / m.head_width**0.5 for k in turned]
        weights = torch.stack(scores).softmax(0)[..., None]
        rows.append((weights * value[:, list(past)].transpose(0, 1)).sum(0))
    y = normalised(torch.stack(rows, 1), m.norm) * silu(gate)
    return m.project_out(y.flatten(2))


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
    "local_attention": (local_attention, "local_attention", {"head_width": 4}),
    "local_attention, short window": (local_attention, "local_attention", {"window": 3}),
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
}


def test_every_mixer_has_a_loop():
    controlled = {"slice", "log_ncde"}  # in a file of their own
    assert {name for _, name, _ in CASES.values()} | controlled == set(MIXERS)


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
