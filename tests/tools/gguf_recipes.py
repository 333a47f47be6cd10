"""How llama.cpp's converter would write reference cases as GGUF: recipes for `tests/gguf.rs`, and names.

    python gguf_recipes.py                  write tests/oracles/gguf/{recipes.jsonl,names.txt}
    python gguf_recipes.py --files DIR      also write the files, with PyPI's gguf
    python gguf_recipes.py --files DIR --bin MARQUETRY
                                            also compare llama.cpp's logits with `MARQUETRY eval`'s

Needs numpy, safetensors, gguf (0.19 made what is kept); the last form llama-cpp-python. Names of tensors and keys are the gguf
package's; what is done to numbers follows convert_hf_to_gguf.py, and llama.cpp computing the same logits says that it is so.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys

import gguf
import numpy as np
from gguf.tensor_mapping import get_tensor_name_map
from safetensors import safe_open

HERE = os.path.dirname(os.path.abspath(__file__))
ORACLES = os.path.join(HERE, "..", "oracles")
GROUPS = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.WKV)
KEYS = {k: v for group in GROUPS for k, v in vars(group).items() if isinstance(v, str)}

# case, architecture in GGUF files, settings that the format does not carry and what llama.cpp takes them for.
CASES = [
    ("llama/base", "llama", {}),
    ("llama/bias-sharded-old", "llama", {}),
    ("llama/llama3-rope-tied-bf16", "llama", {}),
    ("mistral/swa16", "llama", {"sliding_window": None}),
    ("internlm/bias", "llama", {}),
    ("mixtral/e4k2", "llama", {}),
    ("gemma/headdim32-bf16", "gemma", {}),
    ("gemma2/caps-default", "gemma2", {"query_pre_attn_scalar": 16}),
    ("gemma3/text", "gemma3", {}),
    ("gpt2/prefixed", "gpt2", {}),
    ("gpt_bigcode/mqa", "starcoder", {}),
    ("gpt_neox/parallel", "gptneox", {}),
    ("gpt_neox/sequential-full-rotary", "gptneox", {}),
    ("baichuan/7b", "baichuan", {}),
    ("chatglm3/gqa2", "chatglm", {}),
    ("cohere/gqa-qknorm", "command-r", {}),
    ("internlm2/odd-bf16", "internlm2", {}),
    ("minicpm/tied", "minicpm", {}),
    ("minicpm/moe", "minicpm", {}),
    ("orion/mha", "orion", {}),
    ("phi/half-rotary", "phi2", {}),
    ("phi3/longrope", "phi3", {}),
    ("phi3/phi4mini-like", "phi3", {}),
    ("qwen/logn-ntk", "qwen", {"use_logn_attn": False, "use_dynamic_ntk": False}),
    ("qwen2/swa-yarn", "qwen2", {"use_sliding_window": False}),
    ("qwen2_moe/norm-topk-sharded", "qwen2moe", {"norm_topk_prob": False}),
    ("qwen3/tied", "qwen3", {}),
    ("rwkv6/base", "rwkv6", {}),
    ("stable_lm/parallel-qknorm", "stablelm", {}),
    ("stable_lm/partial25", "stablelm", {}),
    ("starcoder2/swa16", "starcoder2", {"sliding_window": None}),
    ("bert/bert-prefix-f16", "bert", {}),
]

# Old buffers, and what converters leave out.
SKIPPED = re.compile(r"inv_freq$|masked_bias$|\.(attn|attention)\.bias$|position_ids$|^(bert\.)?pooler\.|vision|projector")


def sources(path):
    """Names, shapes and types of a case's tensors."""
    out = {}
    for file in sorted(os.listdir(path)):
        if file.startswith("model") and file.endswith(".safetensors"):
            with safe_open(os.path.join(path, file), "np") as f:
                for name in f.keys():
                    part = f.get_slice(name)
                    out[name] = (list(part.get_shape()), part.get_dtype())
    return {name: v for name, v in out.items() if not SKIPPED.search(name)}


def read(path):
    """Tensors of a case in f32."""
    out = {}
    for file in sorted(os.listdir(path)):
        if not (file.startswith("model") and file.endswith(".safetensors")):
            continue
        raw = open(os.path.join(path, file), "rb").read()
        size = int.from_bytes(raw[:8], "little")
        for name, t in json.loads(raw[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            start, end = t["data_offsets"]
            data = raw[8 + size + start : 8 + size + end]
            if t["dtype"] == "BF16":
                v = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                v = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}.get(t["dtype"], np.uint8)).astype(np.float32)
            out[name] = v.reshape(t["shape"]) if v.size == math.prod(t["shape"]) else v
    return out


class Recipe:
    def __init__(self, case, arch, lost):
        self.case, self.arch, self.lost = case, arch, lost
        self.path = os.path.join(ORACLES, case)
        self.config = json.load(open(os.path.join(self.path, "config.json")))
        self.tensors = sources(self.path)
        self.keys, self.out, self.names = [], [], []
        c = self.config
        first = lambda *names: next((c[n] for n in names if c.get(n) is not None), None)
        self.layers = first("num_hidden_layers", "n_layer", "num_layers")
        self.hidden = first("hidden_size", "n_embd")
        self.heads = first("num_attention_heads", "n_head")
        self.kv = first("num_key_value_heads", "multi_query_group_num") or self.heads
        self.head_dim = first("head_dim", "kv_channels") or self.hidden // self.heads
        enum = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
        self.map = get_tensor_name_map(enum, self.layers)
        self.settings(first)
        self.weights()

    def key(self, name, value, kind=None):
        """`name` is the gguf package's constant."""
        kind = kind or {bool: "bool", int: "u32", float: "f32", str: "str", list: "bools"}[type(value)]
        self.keys.append([KEYS[name].format(arch=self.arch), kind, value])

    def settings(self, first):
        c, arch = self.config, self.arch
        self.keys.append(["general.architecture", "str", arch])
        self.keys.append(["tokenizer.ggml.model", "str", "none" if arch == "bert" else "no_vocab"])
        self.key("VOCAB_SIZE", first("vocab_size", "padded_vocab_size"))
        self.key("BLOCK_COUNT", self.layers)
        self.key("CONTEXT_LENGTH", first("max_position_embeddings", "n_positions", "n_ctx", "model_max_length", "seq_length") or 1 << 20)
        self.key("EMBEDDING_LENGTH", self.hidden)
        inner = first("intermediate_size", "n_inner", "ffn_hidden_size") or 4 * self.hidden
        self.key("FEED_FORWARD_LENGTH", inner)
        self.key("HEAD_COUNT", 0 if arch == "rwkv6" else self.heads)
        if arch not in ("gpt2", "gptneox", "bert", "rwkv6", "qwen"):
            self.key("HEAD_COUNT_KV", 1 if arch == "starcoder" else self.kv)
        rms = {"orion": "LAYERNORM_EPS", "qwen": None, "gemma": "LAYERNORM_RMS_EPS"}.get(arch, "LAYERNORM_RMS_EPS")
        if "rms_norm_eps" in c and rms:
            self.key(rms, c["rms_norm_eps"])
        if arch == "qwen":
            self.key("LAYERNORM_RMS_EPS", c["layer_norm_epsilon"])
        elif arch == "chatglm":
            self.key("LAYERNORM_RMS_EPS", c["layernorm_epsilon"])
        elif (eps := first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")) is not None:
            self.key("LAYERNORM_EPS", eps)
        if (theta := first("rope_theta", "rotary_emb_base")) is not None:
            self.key("FREQ_BASE", float(theta))
        if "head_dim" in c:
            self.key("KEY_LENGTH", self.head_dim)
            self.key("VALUE_LENGTH", self.head_dim)
        share = first("partial_rotary_factor", "rotary_pct")
        if arch in ("llama", "baichuan", "qwen", "minicpm", "internlm2") and "head_dim" not in c:
            self.key("DIMENSION_COUNT", self.head_dim)
        if arch in ("phi2", "phi3", "stablelm", "gptneox"):
            self.key("DIMENSION_COUNT", int(self.head_dim * (1.0 if share is None else share)))
        special = getattr(self, "settings_" + arch.replace("-", "_"), None)
        if special:
            special(c)
        scaling = c.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind in ("yarn", "linear"):
            self.key("SCALING_TYPE", kind)
            self.key("SCALING_FACTOR", float(scaling["factor"]))
        if kind == "yarn":
            self.key("SCALING_ORIG_CTX_LEN", scaling["original_max_position_embeddings"])

    def settings_llama(self, c):
        if "num_local_experts" in c:
            self.key("EXPERT_COUNT", c["num_local_experts"])
            self.key("EXPERT_USED_COUNT", c["num_experts_per_tok"])

    def settings_gemma2(self, c):
        self.key("ATTN_LOGIT_SOFTCAPPING", c["attn_logit_softcapping"])
        self.key("FINAL_LOGIT_SOFTCAPPING", c["final_logit_softcapping"])
        self.key("SLIDING_WINDOW", c["sliding_window"])

    def settings_gemma3(self, c):
        self.key("SLIDING_WINDOW", c["sliding_window"])
        kinds = c.get("layer_types") or [
            "full_attention" if (i + 1) % c.get("sliding_window_pattern", 6) == 0 else "sliding_attention" for i in range(self.layers)
        ]
        self.key("SLIDING_WINDOW_PATTERN", [k == "sliding_attention" for k in kinds])

    def settings_gptneox(self, c):
        self.key("USE_PARALLEL_RESIDUAL", c.get("use_parallel_residual", True))

    settings_stablelm = lambda self, c: self.key("USE_PARALLEL_RESIDUAL", c.get("use_parallel_residual", False))

    def settings_chatglm(self, c):
        self.key("DIMENSION_COUNT", self.head_dim // 2)
        self.key("FREQ_BASE", 10000.0 * c.get("rope_ratio", 1))

    def settings_command_r(self, c):
        self.key("LOGIT_SCALE", c["logit_scale"])
        self.key("SCALING_TYPE", "none")

    def settings_minicpm(self, c):
        self.key("EMBEDDING_SCALE", float(c["scale_emb"]))
        self.key("RESIDUAL_SCALE", c["scale_depth"] / self.layers**0.5)
        self.key("LOGIT_SCALE", self.hidden / c["dim_model_base"])
        if "num_experts" in c:
            self.key("EXPERT_COUNT", c["num_experts"])
            self.key("EXPERT_USED_COUNT", c["num_experts_per_tok"])

    def settings_phi3(self, c):
        self.key("SLIDING_WINDOW", c.get("sliding_window") or 0)
        original = c["original_max_position_embeddings"]
        self.key("SCALING_ORIG_CTX_LEN", original)
        if c.get("rope_scaling"):
            grown = c["max_position_embeddings"] / original
            self.key("SCALING_ATTN_FACTOR", math.sqrt(1 + math.log(grown) / math.log(original)) if grown > 1 else 1.0)

    def settings_qwen2moe(self, c):
        self.key("EXPERT_COUNT", c["num_experts"])
        self.key("EXPERT_USED_COUNT", c["num_experts_per_tok"])
        self.key("EXPERT_FEED_FORWARD_LENGTH", c["moe_intermediate_size"])
        self.key("EXPERT_SHARED_FEED_FORWARD_LENGTH", c["shared_expert_intermediate_size"])

    def settings_bert(self, c):
        self.key("CAUSAL", False)
        self.key("POOLING_TYPE", 1)

    def settings_rwkv6(self, c):
        self.key("HEAD_SIZE", c["head_size"])
        self.key("RESCALE_EVERY_N_LAYERS", 1)
        rank = self.tensors["rwkv.blocks.0.attention.time_maa_w1"][0][1] // 5
        self.key("TIME_MIX_EXTRA_DIM", rank)
        self.key("TIME_DECAY_EXTRA_DIM", self.tensors["rwkv.blocks.0.attention.time_decay_w1"][0][1])

    def add(self, name, of, ops=(), gguf_name=None):
        """A tensor called as `name` would be, made of the tensors `of`."""
        of = [of] if isinstance(of, str) else of
        short = name.removeprefix("bert.") if self.arch == "bert" else name
        short = short.removeprefix("transformer.") if self.arch == "chatglm" else short
        found = gguf_name or self.map.get_name(short, try_suffixes=(".weight", ".bias"))
        assert found, (self.case, name)
        self.out.append([found, of, list(ops)])
        for i, source in enumerate(of):
            self.names.append((source, found, i if len(of) > 1 else None))

    def weights(self):
        c, arch, d, g = self.config, self.arch, self.head_dim, self.heads // self.kv
        stacked = {}
        for name in sorted(self.tensors):
            kind = name.rsplit(".", 1)[-1]
            layer = re.search(r"\.(\d+)\.", name)
            expert = re.search(r"\.experts\.(\d+)\.", name) or re.search(r"_layernorm\.norms\.(\d+)\.", name)
            if expert:
                merged = name.replace(expert.group(0), expert.group(0).replace("." + expert.group(1), ""))
                merged = merged.replace("layernorm.norms.", "layernorm.")
                stacked.setdefault(merged, []).append((int(expert.group(1)), name))
            elif arch in ("llama", "minicpm") and (m := re.search(r"self_attn\.([qk])_proj", name)):
                self.add(name, name, [["heads", self.heads if m.group(1) == "q" else self.kv]])
            elif name.endswith("W_pack.weight"):
                for i, p in enumerate("qkv"):
                    ops = [["take", 1, i * self.hidden, self.hidden]] + ([["heads", self.heads]] if p != "v" else [])
                    self.add(name.replace("W_pack", p + "_proj"), name, ops)
            elif "attention.wqkv" in name:
                for p, start, rows, heads in (("q", 0, g, self.heads), ("k", g, 1, self.kv), ("v", g + 1, 1, 0)):
                    ops = [["take", self.kv, start * d, rows * d]] + ([["heads", heads]] if heads else [])
                    self.add("", name, ops, f"blk.{layer.group(1)}.attn_{p}.{kind}")
            elif arch == "gptneox" and "query_key_value" in name:
                self.add(name, name, [["join", self.heads, 3]])
            elif arch == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight$", name):
                self.add(name, name, ["turn"])
            elif arch.startswith("gemma") and name.endswith("norm.weight"):
                self.add(name, name, ["add_one"])
            elif arch == "qwen2moe" and "shared_expert_gate" in name:
                self.add(name, name, ["flatten"])
            elif arch == "rwkv6":
                self.rwkv(name)
            else:
                self.add(name, name)
        for merged, parts in stacked.items():
            # The converter knows no MiniCPM with experts; llama.cpp does.
            if arch == "minicpm":
                merged = merged.replace("mlp.experts", "block_sparse_moe.experts")
            self.add(merged, [name for _, name in sorted(parts)], ["stack"])
        scaling = c.get("rope_scaling") or {}
        if scaling.get("rope_type") == "llama3":
            self.out.append(["rope_freqs.weight", [], [["numbers", self.llama3(scaling)]]])
        if "long_factor" in scaling:
            self.out.append(["rope_factors_long.weight", [], [["numbers", scaling["long_factor"]]]])
            self.out.append(["rope_factors_short.weight", [], [["numbers", scaling["short_factor"]]]])

    def rwkv(self, name):
        layer = re.search(r"blocks\.(\d+)\.", name)
        if m := re.search(r"attention\.time_maa_([wkvrg])$", name):
            if m.group(1) == "w":
                base = name[:-1]
                of = [base + p for p in "wkvrg"]
                self.add("", of, ["stack"], f"blk.{layer.group(1)}.time_mix_lerp_fused.weight")
            return
        ops = []
        if re.search(r"(time_maa_w1|time_maa_w2|time_decay_w1|time_decay_w2)$", name):
            ops = ["turn"]
        if re.search(r"(attention\.output|feed_forward\.value)\.weight$", name) and layer:
            ops = [["scale", 0.5 ** int(layer.group(1))]]
        found = self.map.get_name(name, try_suffixes=(".weight", ".bias"))
        self.add(name, name, ops, found if found.endswith((".weight", ".bias")) else found + ".weight")

    def llama3(self, s):
        theta, d, out = self.config.get("rope_theta", 10000.0), self.head_dim, []
        low, high = s["original_max_position_embeddings"] / s["low_freq_factor"], s["original_max_position_embeddings"] / s["high_freq_factor"]
        for i in range(0, d, 2):
            wave = 2 * math.pi * theta ** (i / d)
            if wave < high:
                out.append(1.0)
            elif wave > low:
                out.append(s["factor"])
            else:
                smooth = (s["original_max_position_embeddings"] / wave - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
                out.append(1 / ((1 - smooth) / s["factor"] + smooth))
        return out

    def made(self):
        """Tensors by name, and their stored types."""
        data = read(self.path)
        for name, of, ops in self.out:
            v = [data[n] for n in of]
            for op in ops:
                op, args = (op, []) if isinstance(op, str) else (op[0], op[1:])
                x = v[0] if v else None
                if op == "stack":
                    v = [np.stack(v)]
                elif op == "numbers":
                    v = [np.array(args[0], np.float32)]
                elif op == "turn":
                    v = [np.swapaxes(x, -1, -2)]
                elif op == "add_one":
                    v = [x + 1]
                elif op == "scale":
                    v = [x * args[0]]
                elif op == "flatten":
                    v = [x.reshape(-1)]
                elif op == "take":
                    blocks, start, rows = args
                    v = [x.reshape(blocks, -1, *x.shape[1:])[:, start : start + rows].reshape(-1, *x.shape[1:])]
                elif op == "heads":
                    v = [x.reshape(args[0], 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)]
                elif op == "join":
                    v = [x.reshape(args[0], args[1], -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)]
            assert len(v) == 1, name
            yield name, np.ascontiguousarray(v[0])

    def write(self, path):
        w = gguf.GGUFWriter(path, self.arch)
        for key, kind, value in self.keys[1:]:
            {"u32": w.add_uint32, "f32": w.add_float32, "bool": w.add_bool, "str": w.add_string, "bools": w.add_array}[kind](key, value)
        for name, v in self.made():
            w.add_tensor(name, v.astype(np.float32))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def llama_cpp(path, ids):
    from llama_cpp import llama_cpp as C
    C.llama_backend_init()
    p = C.llama_model_default_params()
    p.use_mmap = False
    model = C.llama_model_load_from_file(path.encode(), p)
    if not model:
        return None
    q = C.llama_context_default_params()
    q.n_ctx, q.n_batch, q.n_ubatch, q.type_k, q.type_v, q.n_threads = 32 if len(ids) < 32 else 64, 64, 64, 0, 0, 1
    q.flash_attn_type = 0
    ctx = C.llama_init_from_model(model, q)
    if not ctx:
        return None
    vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(model))
    batch = C.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, t in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = int(t), i, 1, 0, 1
    assert C.llama_decode(ctx, batch) == 0
    return np.stack([np.ctypeslib.as_array(C.llama_get_logits_ith(ctx, i), (vocab,)).copy() for i in range(len(ids))])


def ours(binary, path, ids):
    out = path + ".out.safetensors"
    subprocess.run([binary, "eval", path, "--tokens", ",".join(map(str, ids)), "--numerics", "strict", "-o", out], check=True, capture_output=True)
    with safe_open(out, "np") as f:
        return f.get_tensor("logits")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--files")
    a.add_argument("--bin")
    a.add_argument("--one", help="compare one case, in this process")
    a = a.parse_args()
    if a.one:
        r = next(Recipe(*c) for c in CASES if c[0] == a.one)
        path = os.path.join(a.files, a.one.replace("/", "--") + ".gguf")
        with safe_open(os.path.join(r.path, "expected.safetensors"), "np") as f:
            for which in ("short", "long"):
                ids = f.get_tensor(which + ".input_ids")
                theirs = llama_cpp(path, ids)
                if theirs is None:
                    return print(f"{a.one}: llama.cpp does not load it")
                mine = ours(a.bin, path, ids)
                std, d = mine.std(), np.abs(theirs - mine).max()
                line = f"{a.one} {which}: {d:.2e} from llama.cpp, std {std:.2f}, same best {(theirs.argmax(1) == mine.argmax(1)).mean():.2f}"
                if not r.lost:
                    line += f"; {np.abs(mine - f.get_tensor(which + '.logits')).max():.2e} from the reference"
                print(line, flush=True)
        return
    recipes = [Recipe(*c) for c in CASES]
    out = os.path.join(ORACLES, "gguf")
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "recipes.jsonl"), "w") as f:
        for r in recipes:
            json.dump({"case": r.case, "lost": r.lost, "keys": r.keys, "tensors": r.out}, f, separators=(",", ":"))
            f.write("\n")
    lines = {}
    for r in recipes:
        for source, name, i in r.names:
            lines[f"{r.arch} {r.case.split('/')[0]} {name} {source}" + ("" if i is None else f" {i}")] = None
    for enum, arch in gguf.MODEL_ARCH_NAMES.items():
        if arch in {r.arch for r in recipes}:
            for t in gguf.MODEL_TENSORS[enum]:
                lines[f"{arch} * {gguf.TENSOR_NAMES[t].replace('{bid}', '0')}"] = None
    with open(os.path.join(out, "names.txt"), "w") as f:
        f.write("\n".join(l for l in lines if not re.search(r" blk\.[1-9]", l)) + "\n")
    if a.files:
        os.makedirs(a.files, exist_ok=True)
        for r in recipes:
            path = os.path.join(a.files, r.case.replace("/", "--") + ".gguf")
            r.write(path)
            if a.bin and r.arch != "bert":
                command = [sys.executable, __file__, "--files", a.files, "--bin", a.bin, "--one", r.case]
                run = subprocess.run(command, capture_output=True, text=True)
                print(run.stdout.strip() or f"{r.case}: {run.returncode} {run.stderr[-800:]}", flush=True)


if __name__ == "__main__":
    main()
