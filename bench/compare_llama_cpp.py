#!/usr/bin/env python3
"""Speed of Marquetry and of llama.cpp on the same GGUF file, measured in turns on the same machine.

    python3 -m venv .venv && .venv/bin/pip install llama-cpp-python
    cargo build --release
    .venv/bin/python bench/compare_llama_cpp.py MODEL.gguf --marquetry target/release/marquetry

Both sides do the same work: a prompt of `--prompt` tokens in one batch (prefill), then `--gen` tokens one at a time, each
chosen greedily from the logits before it (decode). Every round runs both sides once, in alternating order, so that
slow phases of a shared machine hit both. Medians over all repetitions of all rounds are compared. Nothing else should run meanwhile.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time


def marquetry(args):
    """Prefill and decode rates of each repetition, and the whole report."""
    command = [args.marquetry, "bench", args.model, "--prompt", str(args.prompt), "--gen", str(args.gen)]
    command += ["--threads", str(args.threads), "--reps", str(args.reps), "--json"]
    command += ["--numerics", args.numerics] if args.numerics else []
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return [(r["prefill_tok_s"], r["decode_tok_s"]) for r in report["reps"]], report


class LlamaCpp:
    """llama.cpp through the low-level interface of llama-cpp-python."""

    def __init__(self, args):
        import llama_cpp

        self.lib, self.args = llama_cpp, args
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(args.model.encode(), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {args.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = args.prompt + args.gen + 8
        params.n_batch = params.n_ubatch = max(512, args.prompt)
        params.n_threads = params.n_threads_batch = args.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp cannot make a context")
        self.load_s = time.perf_counter() - start
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, tokens):
        """Runs tokens after those already there; the best token by the logits of the last."""
        array = (self.lib.llama_token * len(tokens))(*tokens)
        status = self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        logits = self.lib.llama_get_logits_ith(self.context, -1)
        return self.best(logits)

    def best(self, logits):
        try:
            import numpy
        except ImportError:
            return max(range(self.vocab), key=logits.__getitem__)
        return int(numpy.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def clear(self):
        if hasattr(self.lib, "llama_memory_clear"):
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        else:
            self.lib.llama_kv_self_clear(self.context)

    def repetition(self):
        self.clear()
        tokens = [(i * 7919 + 13) % self.vocab for i in range(self.args.prompt)]
        start = time.perf_counter()
        token = self.decode(tokens)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(self.args.gen):
            token = self.decode([token])
        decode = time.perf_counter() - start
        return len(tokens) / prefill, self.args.gen / decode

    def run(self):
        self.repetition()
        return [self.repetition() for _ in range(self.args.reps)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--marquetry", default="target/release/marquetry", help="the binary")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=5, help="repetitions of each side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--numerics", choices=["strict", "fast"], help="passed on to Marquetry")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()

    llama = LlamaCpp(args)
    ours, theirs, report = [], [], {}

    def run_ours():
        nonlocal report
        reps, report = marquetry(args)
        ours.extend(reps)

    for i in range(args.rounds):
        sides = [run_ours, lambda: theirs.extend(llama.run())]
        for side in sides if i % 2 == 0 else reversed(sides):
            side()
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)

    result = {"model": args.model, "threads": args.threads, "prompt": args.prompt, "gen": args.gen, "load": {
        "marquetry_load_s": report.get("load_s"), "marquetry_compile_s": report.get("compile_s"),
        "llama_cpp_load_s": llama.load_s,
    }}
    for i, what in enumerate(["prefill", "decode"]):
        a, b = ([r[i] for r in side] for side in (ours, theirs))
        result[what] = {
            "marquetry_tok_s": statistics.median(a), "marquetry_range": [min(a), max(a)],
            "llama_cpp_tok_s": statistics.median(b), "llama_cpp_range": [min(b), max(b)],
            "ratio": statistics.median(a) / statistics.median(b), "repetitions": len(a),
        }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'':8} {'Marquetry':>22} {'llama.cpp':>22} {'ratio':>6}   tokens/s, median (range)")
    for what in ["prefill", "decode"]:
        r = result[what]
        sides = [f"{r[s + '_tok_s']:.1f} ({r[s + '_range'][0]:.0f}-{r[s + '_range'][1]:.0f})" for s in ("marquetry", "llama_cpp")]
        print(f"{what:8} {sides[0]:>22} {sides[1]:>22} {r['ratio']:>6.2f}")


if __name__ == "__main__":
    main()
