#!/usr/bin/env python3
"""Compare prefill and decode speed with other programs on the same GGUF file, interleaved; print medians and ratios.

usage: compare.py --gguf FILE [--bin PATH] [--peers llama.cpp,candle] [--threads 2] [--prompt 512] [--gen 64] [--rounds 5]
                  [--busy] [--bandwidth]
needs: for llama.cpp: pip install llama-cpp-python (built on this machine); for candle: cargo, which builds bench/candle

Each round runs `marquetry bench` once and each peer once, each in a process of its own, in turn; ratios are taken within a
round, so a machine that drifts or is shared disturbs all sides alike. Prefill is one prompt of --prompt tokens from an empty
cache; decode is --gen single tokens after that prompt. Prints a table in Markdown, then one line of JSON.

--busy runs all of them beside a process that keeps a core busy, and marquetry also with one thread and without that process:
what a second, disturbed core should not take away.
--bandwidth adds what decoding reads per second as a share of what the machine reads, measured in the same process as ours:
of marquetry the weights, keys and values that its kernels read, of the others the size of the file.
"""
import argparse, contextlib, json, os, pathlib, statistics, subprocess, sys, time

HERE = pathlib.Path(__file__).resolve().parent


def llama_cpp(gguf, threads, prompt, gen):
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
    start = time.perf_counter()
    for i in range(gen):
        feed([ids[i % prompt]])
    return prefill, gen / (time.perf_counter() - start)


def build_candle():
    """The program of bench/candle, built for this CPU: without that candle leaves its vector code out."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "candle" / "target"))
    env = dict(os.environ, RUSTFLAGS="-C target-cpu=native", CARGO_TARGET_DIR=str(target))
    command = ["cargo", "build", "--release", "--locked", "--manifest-path", str(HERE / "candle" / "Cargo.toml")]
    subprocess.run(command, env=env, check=True, stdout=sys.stderr)
    return str(target / "release" / "bench-candle")


def output(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def marquetry(a, threads):
    sizes = ["--threads", threads, "--prompt", a.prompt, "--gen", a.gen, "--reps", 1]
    m = output([a.bin, "bench", a.gguf, *map(str, sizes), "--json", "-q"])
    return {"prefill": m["prefill_tok_s"], "decode": m["decode_tok_s"], "read": m["read_gb_s"], "share": m["decode_read_percent"]}


def peer(a, name):
    if name == "llama.cpp":
        sizes = ["--threads", str(a.threads), "--prompt", str(a.prompt), "--gen", str(a.gen)]
        prefill, decode = output([sys.executable, __file__, "--measure", "--gguf", a.gguf, *sizes])
    else:
        env = dict(os.environ, RAYON_NUM_THREADS=str(a.threads), CANDLE_NUM_THREADS=str(a.threads))
        prefill, decode = output([a.candle, a.gguf, str(a.prompt), str(a.gen)], env=env)
    return {"prefill": prefill, "decode": decode}


@contextlib.contextmanager
def busy_core(wanted):
    """A process that keeps a core busy, while the body runs."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if child:
            child.kill()
            child.wait()


def report(a, rounds):
    """Medians and ratios within rounds, as rows of a table and as data."""
    others = [name for name in rounds[0] if name != "marquetry"]
    median = lambda name, what: statistics.median(r[name][what] for r in rounds)
    ratio = lambda name, what: statistics.median(r["marquetry"][what] / r[name][what] for r in rounds)
    print(f"{pathlib.Path(a.gguf).name}, {a.threads} threads, {a.prompt} + {a.gen} tokens, medians of {a.rounds} rounds"
          + (", one core busy" if a.busy else "") + "\n")
    print("| tokens/s | marquetry | " + " | ".join(f"{o} | ratio" for o in others) + " |")
    print("|---|---|" + "---|---|" * len(others))
    for what in ("prefill", "decode"):
        cells = [f"{median(o, what):.1f} | {ratio(o, what):.2f}" for o in others]
        print(f"| {what} | {median('marquetry', what):.1f} | " + " | ".join(cells) + " |")
    if a.bandwidth:
        cells = [f"{median(o, 'share'):.0f} % |" for o in others]
        print(f"| decode, of {median('marquetry', 'read'):.1f} GB/s | {median('marquetry', 'share'):.0f} % | " + " | ".join(cells) + " |")
    data = {"gguf": a.gguf, "threads": a.threads, "prompt": a.prompt, "gen": a.gen, "busy": a.busy, "rounds": rounds}
    data["median"] = {n: {w: median(n, w) for w in rounds[0][n]} for n in rounds[0]}
    data["ratio"] = {o: {w: ratio(o, w) for w in ("prefill", "decode")} for o in others}
    print("\n" + json.dumps(data))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="target/release/marquetry")
    p.add_argument("--gguf", required=True)
    p.add_argument("--peers", default="llama.cpp")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--gen", type=int, default=64)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--busy", action="store_true")
    p.add_argument("--bandwidth", action="store_true")
    p.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.measure:
        print(json.dumps(llama_cpp(a.gguf, a.threads, a.prompt, a.gen)))
        return
    names = [n for n in a.peers.split(",") if n]
    if unknown := set(names) - {"llama.cpp", "candle"}:
        p.error(f"no such peer: {', '.join(unknown)}; there are llama.cpp and candle")
    if min(a.threads, a.prompt, a.gen, a.rounds) < 1:
        p.error("--threads, --prompt, --gen and --rounds are at least 1")
    if "candle" in names:
        a.candle = build_candle()
    rounds = []
    for i in range(a.rounds):
        now = {}
        if a.busy:
            now["free, 1 thread"] = marquetry(a, 1)
        with busy_core(a.busy):
            now["marquetry"] = marquetry(a, a.threads)
            now.update((n, peer(a, n)) for n in names)
        for n in names:
            now[n]["share"] = 100 * now[n]["decode"] * os.path.getsize(a.gguf) / 1e9 / now["marquetry"]["read"]
        rounds.append(now)
        speeds = ", ".join(f"{n} {m['prefill']:.0f} / {m['decode']:.1f}" for n, m in now.items())
        print(f"round {i + 1}: {speeds} tokens/s (prefill / decode)", file=sys.stderr)
    report(a, rounds)


if __name__ == "__main__":
    main()
