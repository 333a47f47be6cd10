#!/usr/bin/env python3
"""What rewriting is worth: `marquetry bench` with all passes, without merges, and without `eqsat`.

Variants run in turn, each in a process of its own; the best repetition of each counts, so that other load on the machine
disturbs little. Prints tokens per second."""

import argparse
import json
import subprocess

PASSES = "specialize,canon,outline,{}fuse,lower,schedule,plan"
MERGES = "-merge-linears;-glu-linear;-glu-qlinear;-geglu-linear;-geglu-qlinear"
VARIANTS = {
    "all passes": PASSES.format("eqsat,"),
    "no merges": PASSES.format("eqsat{rules=" + MERGES + "},"),
    "no eqsat": PASSES.format(""),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--bin", default="target/release/marquetry")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--prompt", default="64")
    parser.add_argument("--gen", default="16")
    parser.add_argument("--reps", default="3")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    best = {}
    for _ in range(args.rounds):
        for name, passes in VARIANTS.items():
            command = [args.bin, "bench", args.model, "--json", "--no-cache", "--pipeline", passes]
            for key in ("threads", "prompt", "gen", "reps"):
                command += [f"--{key}", getattr(args, key)]
            out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for key in ("prefill_tok_s", "decode_tok_s"):
                top = max(rep[key] for rep in out["reps"])
                best[name, key] = max(top, best.get((name, key), 0.0))
    for name in VARIANTS:
        print(f"{name:<12} prefill {best[name, 'prefill_tok_s']:8.1f}  decode {best[name, 'decode_tok_s']:8.1f} tokens/s")


if __name__ == "__main__":
    main()
