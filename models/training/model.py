"""The Qwen3.5 text model with its MTP head, in plain PyTorch, in the form that trains fast.

The Gated DeltaNet layers use the chunked form: inside a chunk everything is a matrix product, and only the
128 x 128 states go from chunk to chunk. Parameter names are those of the Hugging Face checkpoint, so that
state_dict() is what export.py writes. train.py and evaluate.py use it; check_model.py compares it with
transformers.
"""
import torch
import torch.nn.functional as F
from torch import nn

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

CHUNK = 64

CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "dtype": "bfloat16",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 4096,
    "full_attention_interval": 4,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "mamba_ssm_dtype": "float32",
    "mlp_only_layers": [],
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                        "mrope_section": [11, 11, 10], "mrope_interleaved": True},
    "vocab_size": 3968,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "tie_word_embeddings": True,
}

if triton:
    @triton.jit
    def _inverse_kernel(a_ptr, t_ptr, C: tl.constexpr):
        base = tl.program_id(0).to(tl.int64) * C * C
        i = tl.arange(0, C)
        a = tl.load(a_ptr + base + i[:, None] * C + i[None, :])
        t = tl.where(i[:, None] > i[None, :], -a, 0.0)
        for r in range(1, C):
            row = -tl.load(a_ptr + base + r * C + i)
            row = tl.where(i < r, row, 0.0)
            row += tl.sum(row[:, None] * t, 0)
            t = tl.where((i == r)[:, None], row[None, :], t)
        t += tl.where(i[:, None] == i[None, :], 1.0, 0.0)
        tl.store(t_ptr + base + i[:, None] * C + i[None, :], t)


@torch.library.custom_op("tiny::inverse", mutates_args=())
def inverse(a: torch.Tensor) -> torch.Tensor:
    """(I + a)^-1 for strictly lower triangular fp32 matrices [..., C, C]."""
    if a.is_cuda and triton:
        a = a.contiguous()
        out = torch.empty_like(a)
        _inverse_kernel[(a.numel() // (a.shape[-1] ** 2),)](a, out, C=a.shape[-1], num_warps=4)
        return out
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape).contiguous()
    return torch.linalg.solve_triangular(a + eye, eye, upper=False, unitriangular=True)


@inverse.register_fake
def _(a):
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _inverse_backward(ctx, grad):
    (t,) = ctx.saved_tensors
    return -(t.mT @ grad @ t.mT).tril(-1)


inverse.register_autograd(_inverse_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output))


def delta_rule(q, k, v, g, beta):
    """The gated delta rule over whole sequences. q, k, v: [B, h, T, 128], g, beta: [B, h, T]; fp32."""
    b, h, length, dk = q.shape
    n = (length + CHUNK - 1) // CHUNK
    pad = n * CHUNK - length
    if pad:
        q, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
        g, beta = F.pad(g, (0, pad)), F.pad(beta, (0, pad))
    q, k, v = (x.reshape(b, h, n, CHUNK, x.shape[-1]) for x in (q, k, v))
    g, beta = g.reshape(b, h, n, CHUNK).cumsum(-1), beta.reshape(b, h, n, CHUNK, 1)
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(~lower, -1e9).exp()
    inv = inverse(((beta * k) @ k.mT * decay).tril(-1))
    grow = g.exp()[..., None]
    u = inv @ (beta * v)
    w = inv @ (beta * grow * k)
    last = g[..., -1:]
    k_end = (k * (last - g).exp()[..., None]).mT
    end = last.exp()[..., None]
    state = torch.zeros(b, h, dk, v.shape[-1], dtype=q.dtype, device=q.device)
    states, deltas = [], []
    for c in range(n):
        delta = u[:, :, c] - w[:, :, c] @ state
        states.append(state)
        deltas.append(delta)
        state = end[:, :, c] * state + k_end[:, :, c] @ delta
    states, deltas = torch.stack(states, 2), torch.stack(deltas, 2)
    out = (q * grow) @ states + (q @ k.mT * decay) @ deltas
    return out.reshape(b, h, n * CHUNK, v.shape[-1])[:, :, :length]


class Norm(nn.Module):
    """RMS norm whose weight is stored less one."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * (1 + self.weight.float())).to(x.dtype)


class GatedNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x, z):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * self.weight.float() * F.silu(z.float())).to(z.dtype)


def linear(rows, columns):
    return nn.Linear(columns, rows, bias=False)


class DeltaNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, self.hk, self.hv = c["hidden_size"], c["linear_num_key_heads"], c["linear_num_value_heads"]
        self.dk, self.dv, taps = c["linear_key_head_dim"], c["linear_value_head_dim"], c["linear_conv_kernel_dim"]
        channels = 2 * self.hk * self.dk + self.hv * self.dv
        self.in_proj_qkv = linear(channels, hidden)
        self.in_proj_z = linear(self.hv * self.dv, hidden)
        self.in_proj_b = linear(self.hv, hidden)
        self.in_proj_a = linear(self.hv, hidden)
        self.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(self.hv))
        self.A_log = nn.Parameter(torch.zeros(self.hv))
        self.norm = GatedNorm(self.dv)
        self.out_proj = linear(hidden, self.hv * self.dv)

    def forward(self, x):
        b, t, _ = x.shape
        mixed, z = self.in_proj_qkv(x), self.in_proj_z(x)
        w = self.conv1d.weight[:, 0].to(mixed.dtype)
        taps = w.shape[1]
        padded = F.pad(mixed, (0, 0, taps - 1, 0))
        mixed = F.silu(sum(padded[:, j:j + t] * w[:, j] for j in range(taps)))
        q, k, v = mixed.split([self.hk * self.dk, self.hk * self.dk, self.hv * self.dv], -1)
        with torch.autocast(x.device.type, enabled=False):
            x32 = x.float()
            beta = torch.sigmoid(F.linear(x32, self.in_proj_b.weight.float()))
            a = F.linear(x32, self.in_proj_a.weight.float())
            g = -self.A_log.float().exp() * F.softplus(a + self.dt_bias.float())
            q, k = (y.reshape(b, t, self.hk, self.dk).float() for y in (q, k))
            q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + 1e-6) * self.dk ** -0.5
            k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + 1e-6)
            q, k = (y.repeat_interleave(self.hv // self.hk, 2).transpose(1, 2) for y in (q, k))
            v = v.reshape(b, t, self.hv, self.dv).float().transpose(1, 2)
            out = delta_rule(q, k, v, g.transpose(1, 2), beta.transpose(1, 2)).transpose(1, 2)
            out = self.norm(out, z.reshape(b, t, self.hv, self.dv))
        return self.out_proj(out.reshape(b, t, -1))


def rope(x, cos, sin):
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.nq, self.nkv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        hidden, rotary = c["hidden_size"], c["rope_parameters"]
        self.q_proj = linear(2 * self.nq * self.dim, hidden)
        self.k_proj = linear(self.nkv * self.dim, hidden)
        self.v_proj = linear(self.nkv * self.dim, hidden)
        self.o_proj = linear(hidden, self.nq * self.dim)
        self.q_norm, self.k_norm = Norm(self.dim), Norm(self.dim)
        size = int(self.dim * rotary["partial_rotary_factor"])
        steps = rotary["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
        self.register_buffer("steps", steps, persistent=False)

    def forward(self, x):
        b, t, _ = x.shape
        q, gate = self.q_proj(x).reshape(b, t, self.nq, 2 * self.dim).chunk(2, -1)
        k = self.k_proj(x).reshape(b, t, self.nkv, self.dim)
        v = self.v_proj(x).reshape(b, t, self.nkv, self.dim)
        angle = torch.arange(t, device=x.device)[:, None] * self.steps
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        q, k = rope(self.q_norm(q).transpose(1, 2), cos, sin), rope(self.k_norm(k).transpose(1, 2), cos, sin)
        groups = self.nq // self.nkv
        k, v = k.repeat_interleave(groups, 1), v.transpose(1, 2).repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.o_proj((out * torch.sigmoid(gate)).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = linear(c["intermediate_size"], c["hidden_size"])
        self.up_proj = linear(c["intermediate_size"], c["hidden_size"])
        self.down_proj = linear(c["hidden_size"], c["intermediate_size"])

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"])
        self.post_attention_layernorm = Norm(c["hidden_size"])
        if kind == "linear_attention":
            self.linear_attn = DeltaNet(c)
        else:
            self.self_attn = Attention(c)
        self.kind, self.mlp = kind, MLP(c)

    def forward(self, x):
        mixer = self.linear_attn if self.kind == "linear_attention" else self.self_attn
        x = x + mixer(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Mtp(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden = c["hidden_size"]
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = Norm(hidden), Norm(hidden), Norm(hidden)
        self.fc = linear(hidden, 2 * hidden)
        self.layers = nn.ModuleList([Layer(c, "full_attention")])

    def forward(self, embedding, hidden):
        x = self.fc(torch.cat([self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], -1))
        return self.norm(self.layers[0](x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList([Layer(c, kind) for kind in c["layer_types"]])
        self.norm = Norm(c["hidden_size"])


class Tiny(nn.Module):
    def __init__(self, config=CONFIG):
        super().__init__()
        self.config = config
        self.model, self.mtp = Body(config), Mtp(config)

    def initialise(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            with torch.no_grad():
                if name.endswith("A_log"):
                    p.copy_(torch.empty(p.shape).uniform_(0.05, 8, generator=generator).log())
                elif name.endswith("dt_bias"):
                    step = torch.empty(p.shape).uniform_(-6.9, -2.3, generator=generator).exp()
                    p.copy_(step + torch.log(-torch.expm1(-step)))
                elif name.endswith("conv1d.weight"):
                    p.normal_(0, 0.3, generator=generator)
                elif p.dim() == 2:
                    p.normal_(0, 0.02 if "embed" in name else p.shape[1] ** -0.5, generator=generator)
                    if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                        p.mul_(0.3)

    def hidden(self, ids):
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.bfloat16)
        for layer in self.model.layers:
            x = layer(x)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)

    def draft(self, hidden, following):
        """Hidden state whose logits guess the token after `following`, which comes after `hidden`'s."""
        return self.mtp(self.model.embed_tokens(following).to(hidden.dtype), hidden)
