#!/usr/bin/env python3
"""Compare decode and prefill speed with llama.cpp on the same GGUF file, interleaved, and print medians and ratios.

usage: compare_llama_cpp.py --bin PATH --gguf FILE [--threads 2] [--prompt 512] [--gen 64] [--rounds 5]
needs: llama-cpp-python built on this machine (pip install llama-cpp-python), numpy

Each round runs `marquetry bench` once and llama.cpp once, each in a process of its own, in turn; ratios are taken within a
round, so a machine that drifts or is shared disturbs both sides alike. Prefill is one prompt of --prompt tokens from an empty
cache; decode is --gen single tokens after a prompt of 8.
"""
import argparse, json, statistics, subprocess, sys, time


def peer(gguf, threads, prompt, gen):
    """One measurement of llama.cpp: (prefill tokens/s, decode tokens/s)."""
    import llama_cpp as L

    quiet = L.llama_log_callback(lambda *_: None)  # referenced until the end: llama.cpp keeps the pointer
    L.llama_log_set(quiet, None)
    L.llama_backend_init()
    model = L.llama_model_load_from_file(gguf.encode(), L.llama_model_default_params())
    params = L.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = prompt + gen + 64, 512, 512
    params.n_threads = params.n_threads_batch = threads
    ctx = L.llama_init_from_model(model, params)
    if not ctx:
        sys.exit("llama.cpp made no context")
    memory = L.llama_get_memory(ctx)

    def feed(ids):
        tokens = (L.llama_token * len(ids))(*ids)
        if L.llama_decode(ctx, L.llama_batch_get_one(tokens, len(ids))):
            sys.exit("llama_decode failed")
        L.llama_synchronize(ctx)

    ids = [100 + i % 1000 for i in range(prompt)]
    feed(ids[:32])  # warm up
    L.llama_memory_clear(memory, True)
    start = time.perf_counter()
    for i in range(0, prompt, 512):
        feed(ids[i : i + 512])
    prefill = prompt / (time.perf_counter() - start)
    L.llama_memory_clear(memory, True)
    feed(ids[:8])
    start = time.perf_counter()
    for i in range(gen):
        feed([ids[i % prompt]])
    return prefill, gen / (time.perf_counter() - start)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="target/release/marquetry")
    p.add_argument("--gguf", required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--gen", type=int, default=64)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.peer:
        print(json.dumps(peer(a.gguf, a.threads, a.prompt, a.gen)))
        return
    ours, theirs = [], []
    sizes = ["--threads", str(a.threads), "--prompt", str(a.prompt), "--gen", str(a.gen)]
    for r in range(a.rounds):
        out = subprocess.run([a.bin, "bench", a.gguf, *sizes, "--reps", "1", "--json"], capture_output=True, text=True, check=True)
        m = json.loads(out.stdout)
        ours.append((m["prefill_tok_s"], m["decode_tok_s"]))
        out = subprocess.run([sys.executable, __file__, "--peer", "--gguf", a.gguf, *sizes], capture_output=True, text=True, check=True)
        theirs.append(tuple(json.loads(out.stdout)))
        print(f"round {r + 1}: marquetry {ours[-1][0]:.0f} / {ours[-1][1]:.1f}, llama.cpp {theirs[-1][0]:.0f} / {theirs[-1][1]:.1f}"
              " tokens/s (prefill / decode)", file=sys.stderr)
    print("| | marquetry | llama.cpp | ratio (median of rounds) |\n|---|---|---|---|")
    for i, what in enumerate(("prefill", "decode")):
        x, y = [o[i] for o in ours], [t[i] for t in theirs]
        ratio = statistics.median(p / q for p, q in zip(x, y))
        print(f"| {what}, tokens/s | {statistics.median(x):.1f} | {statistics.median(y):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
