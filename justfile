# Common loops. `just` lists them.

_default:
    @just --list

# What a change must pass.
ci:
    .ci/run

# All tests.
test *args:
    cargo test --workspace {{args}}

# Writes the expected results of file tests and generated tables anew; look at the diff before committing.
bless:
    BLESS=1 cargo test --workspace

# Formatting and lints.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

# The documentation of all crates.
doc:
    cargo doc --workspace --no-deps --open

# The binary, at full speed.
build:
    cargo build --release

# The IR of a model after a stage: trace, canon, outline, eqsat, fused, loops, scheduled, plan, asm.
show model stage="fused":
    cargo run --release -- inspect {{model}} --stage {{stage}}

# Speed beside llama.cpp, which needs llama-cpp-python in the given Python, or beside candle, which is built.
compare model python="python3" peers="llama.cpp": build
    {{python}} bench/compare.py --gguf {{model}} --bin target/release/marquetry --peers {{peers}}

# Where the time of a model goes.
profile model: build
    target/release/marquetry bench {{model}} --profile
