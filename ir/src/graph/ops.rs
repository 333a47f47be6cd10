//! The operator table: the one place where an operator is defined. It generates the enum, the names, the printer's and
//! parser's attribute lists, the e-graph tags and the documentation table.

use super::{Attr, AttrKind, Ty, TypeError, expand, infer, interp};
use crate::Syms;

/// What kind of computation an operator is; passes decide by class, never by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No operands: parameters, constants, states.
    Leaf,
    /// Each output element depends on the same element of the operands.
    Elementwise,
    /// Elements change place, not value.
    Movement,
    /// Combines elements along an axis.
    Reduce,
    /// Sums of products over a shared axis.
    Contract,
    /// Reads rows chosen by an index tensor.
    Gather,
    /// Reads or updates a state.
    State,
    /// Changes the representation of numbers (quantize, dequantize, pack).
    Repr,
    /// A function of the module.
    Call,
}

/// Gives the type of an operation's result from its operands' types and its attributes.
pub type Infer = fn(&Syms, &[&Ty], &[Attr]) -> Result<Ty, TypeError>;

/// One row of the table.
pub struct OpInfo {
    /// Spelling in the text IR.
    pub name: &'static str,
    /// One line of documentation.
    pub doc: &'static str,
    /// Names of the operands; a last name `xs` stands for one or more.
    pub operands: &'static [&'static str],
    /// Names and kinds of the attributes, all required, in order.
    pub attrs: &'static [(&'static str, AttrKind)],
    /// Kind of computation.
    pub class: Class,
    /// The type rule.
    pub infer: Infer,
    /// The interpreter.
    pub eval: interp::Eval,
    /// Expansion into smaller operators; none for primitives.
    pub expand: Option<expand::Expand>,
}

macro_rules! ops {
    ($( $(#[doc = $doc:literal])* $id:ident = $name:literal ($($operand:ident),*) {$($attr:ident : $kind:ident),*}
        $class:ident, $infer:path, $eval:path $(, $expand:path)?; )*) => {
        /// Operators of the graph IR.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op { $( $(#[doc = $doc])* $id, )* }

        impl Op {
            /// Every operator, in table order.
            pub const ALL: &'static [Op] = &[$(Op::$id),*];
        }

        static TABLE: &[OpInfo] = &[$( OpInfo {
            name: $name,
            doc: concat!($($doc),*),
            operands: &[$(stringify!($operand)),*],
            attrs: &[$((stringify!($attr), AttrKind::$kind)),*],
            class: Class::$class,
            infer: $infer,
            eval: $eval,
            expand: ops!(@opt $($expand)?),
        }, )*];
    };
    (@opt) => { None };
    (@opt $e:path) => { Some($e) };
}

ops! {
    /// A model parameter, by name. Its type is declared by the module.
    Param = "param" () {name: Str} Leaf, infer::declared, interp::leaf;
    /// A persistent state, by name. Its type is declared by the module.
    State = "state" () {name: Str} Leaf, infer::declared, interp::leaf;
    /// Every element is `value`.
    Const = "const" () {value: Float, shape: Shape, dtype: DType} Leaf, infer::constant, interp::constant;
    /// A vector of f32 constants.
    Table = "table" () {values: Floats} Leaf, infer::table, interp::table;
    /// The index along `axis`.
    Iota = "iota" () {axis: Int, shape: Shape, dtype: DType} Leaf, infer::iota, interp::iota;

    /// `-x`
    Neg = "neg" (x) {} Elementwise, infer::unary, interp::unary;
    /// `e^x`
    Exp = "exp" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// Natural logarithm.
    Log = "log" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// `1 / sqrt(x)`
    Rsqrt = "rsqrt" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// Hyperbolic tangent.
    Tanh = "tanh" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// Error function.
    Erf = "erf" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// Sine of radians.
    Sin = "sin" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// Cosine of radians.
    Cos = "cos" (x) {} Elementwise, infer::unary_float, interp::unary;
    /// `a + b`
    Add = "add" (a, b) {} Elementwise, infer::binary, interp::binary;
    /// `a - b`
    Sub = "sub" (a, b) {} Elementwise, infer::binary, interp::binary;
    /// `a * b`
    Mul = "mul" (a, b) {} Elementwise, infer::binary, interp::binary;
    /// `a / b`
    Div = "div" (a, b) {} Elementwise, infer::binary_float, interp::binary;
    /// `if a > b { a } else { b }`: the second where one is NaN, and of two zeros.
    Max = "max" (a, b) {} Elementwise, infer::binary, interp::binary;
    /// `if a < b { a } else { b }`: the second where one is NaN, and of two zeros.
    Min = "min" (a, b) {} Elementwise, infer::binary, interp::binary;
    /// `a < b`
    Lt = "lt" (a, b) {} Elementwise, infer::compare, interp::binary;
    /// `a <= b`
    Le = "le" (a, b) {} Elementwise, infer::compare, interp::binary;
    /// Logical and.
    And = "and" (a, b) {} Elementwise, infer::logical, interp::binary;
    /// `a` where `c` holds, `b` elsewhere.
    Select = "select" (c, a, b) {} Elementwise, infer::select, interp::select;
    /// Conversion by value; floats to integers truncate, and saturate as integers to narrower ones do.
    Cast = "cast" (x) {to: DType} Elementwise, infer::cast, interp::cast;

    /// The same elements in row-major order under another shape.
    Reshape = "reshape" (x) {shape: Shape} Movement, infer::reshape, interp::reshape;
    /// Axis `i` of the result is axis `perm[i]` of `x`.
    Permute = "permute" (x) {perm: Ints} Movement, infer::permute, interp::permute;
    /// Repeats axes of extent 1 to the given shape.
    Broadcast = "broadcast" (x) {shape: Shape} Movement, infer::broadcast, interp::broadcast;
    /// `len` elements from `start` along `axis`.
    Slice = "slice" (x) {axis: Int, start: Int, len: Int} Movement, infer::slice, interp::slice;
    /// Joins along `axis`.
    Concat = "concat" (xs) {axis: Int} Movement, infer::concat, interp::concat;

    /// Sum along the last axis, which stays with extent 1.
    ReduceSum = "reduce_sum" (x) {} Reduce, infer::reduce, interp::reduce;
    /// Maximum along the last axis, which stays with extent 1.
    ReduceMax = "reduce_max" (x) {} Reduce, infer::reduce, interp::reduce;

    /// `y[.., o] = Σ_k x[.., k] w[o, k]`; `w` may be packed, then numbers are those of `dequant`.
    Linear = "linear" (x, w) {} Contract, infer::linear, interp::linear;
    /// `linear` over narrow activations and a packed weight: of 8 bits with exact integer sums per group, or bf16 beside the weight's
    /// numbers rounded to bf16, summed in f32.
    QLinear = "qlinear" (x, w) {} Contract, infer::qlinear, interp::qlinear;

    /// `act(gate) * up`, where the rows of `w` are gate and up rows interleaved in blocks of 8; `x` is f32, act8 or bf16.
    /// `act` is 0 for silu, 1 for exact gelu, 2 for gelu by tanh.
    GluLinear = "glu_linear" (x, w) {act: Int} Contract, infer::glu_linear, interp::by_expansion, expand::glu_linear;

    /// Rows of `table` chosen by `ids`: `[ids.., row..]`.
    Gather = "gather" (table, ids) {} Gather, infer::gather, interp::gather;

    /// The numbers that a quantized or narrow tensor stands for, as f32.
    Dequant = "dequant" (x) {} Repr, infer::dequant, interp::dequant;
    /// The rows of a matrix in another layout, exactly.
    Pack = "pack" (w) {elem: Elem} Repr, infer::pack, interp::pack;
    /// Rows of several matrices of one type in one; with `interleave`, blocks of that many rows from each in turn.
    ConcatRows = "concat_rows" (xs) {interleave: Int} Repr, infer::concat_rows, interp::concat_rows;
    /// 8-bit quantization in groups of 32: scale `max|x| / 127`, ties to even.
    Quantize = "quantize" (x) {} Repr, infer::quantize, interp::quantize;

    /// Stores keys and values `[n, heads, dim]` at `slot[n]` of a cache.
    KvAppend = "kv_append" (state, k, v, slot) {} State, infer::kv_append, interp::kv_append;
    /// Keys (`which = 0`) or values (`which = 1`) of a cache: `[slots, heads, dim]`.
    KvRead = "kv_read" (state) {which: Int} State, infer::kv_read, interp::kv_read;

    /// `x * sigmoid(x)`
    Silu = "silu" (x) {} Elementwise, infer::unary_float, interp::by_expansion, expand::silu;
    /// Gaussian error linear unit: exact, or by tanh.
    Gelu = "gelu" (x) {tanh: Bool} Elementwise, infer::unary_float, interp::by_expansion, expand::gelu;
    /// `silu(g) * u`
    SwiGlu = "swiglu" (g, u) {} Elementwise, infer::binary_float, interp::by_expansion, expand::swiglu;
    /// `gelu(g) * u`
    GeGlu = "geglu" (g, u) {tanh: Bool} Elementwise, infer::binary_float, interp::by_expansion, expand::geglu;
    /// `tanh(x / cap) * cap`
    Softcap = "softcap" (x) {cap: Float} Elementwise, infer::unary_float, interp::by_expansion, expand::softcap;
    /// `x / sqrt(mean(x²) + eps) * w` along the last axis.
    RmsNorm = "rms_norm" (x, w) {eps: Float} Reduce, infer::rms_norm, interp::by_expansion, expand::rms_norm;
    /// `(x - mean(x)) / sqrt(var(x) + eps)` along the last axis, with the variance over its length (Ba et al., arXiv 1607.06450).
    LayerNorm = "layer_norm" (x) {eps: Float} Reduce, infer::layer_norm, interp::by_expansion, expand::layer_norm;
    /// Exponentials along the last axis, divided by their sum.
    Softmax = "softmax" (x) {} Reduce, infer::unary_float, interp::by_expansion, expand::softmax;
    /// Rotates pairs of the first `2 * len(inv_freq)` features of each head by `pos * inv_freq`.
    Rope = "rope" (x, pos) {inv_freq: Floats, scale: Float, interleaved: Bool}
        Elementwise, infer::rope, interp::by_expansion, expand::rope;
    /// `[n, 2 * len(inv_freq)]`: cosines, then sines, of `pos * inv_freq`, times `scale`.
    RopeTable = "rope_table" (pos) {inv_freq: Floats, scale: Float}
        Elementwise, infer::rope_table, interp::by_expansion, expand::rope_table;
    /// `rope` with its table given.
    RopeApply = "rope_apply" (x, table) {interleaved: Bool}
        Elementwise, infer::rope_apply, interp::by_expansion, expand::rope_apply;
    /// Attention of queries `[n, heads, dim]` over a paged cache: token `t` sees positions `j <= pos[t]`, and `j > pos[t] - window`
    /// if `window > 0`, of sequence `seq[t]`, whose pages of `page` slots are `pages[seq[t]]`. `softcap > 0` caps the scores.
    /// Beside queries of bf16, keys, values and results are rounded to bf16.
    Attend = "attend" (q, state, pos, seq, pages) {scale: Float, window: Int, softcap: Float, page: Int}
        State, infer::attend, interp::attend, expand::attend;

    /// `attend` with `slope[h] * (j - pos)` added to the scaled score of position `j` for query head `h` (Press et al., arXiv
    /// 2108.12409).
    AttendSloped = "attend_sloped" (q, state, pos, seq, pages)
        {scale: Float, window: Int, softcap: Float, page: Int, slopes: Floats}
        State, infer::attend_sloped, interp::attend, expand::attend;

    /// `attend` over `parts` pieces of the positions that each token sees, each an equal number of 16 positions, or one more:
    /// `[n, heads, parts, dim + 2]` holds values summed with weights `e^(score - max)`, then that largest score of the piece, at least
    /// -1e30, then the sum of weights.
    AttendParts = "attend_parts" (q, state, pos, seq, pages) {scale: Float, window: Int, softcap: Float, page: Int, parts: Int}
        State, infer::attend_parts, interp::attend_parts;
    /// The result of `attend` from what `attend_parts` gives.
    AttendMerge = "attend_merge" (parts) {} State, infer::attend_merge, interp::by_expansion, expand::attend_merge;

    /// Indices i32 `[.., k]` of the `k` largest elements along the last axis, largest first, the smaller index first among equals.
    TopK = "top_k" (x) {k: Int} Elementwise, infer::top_k, interp::by_expansion, expand::top_k;
    /// `y[.., j] = x[.., ids[.., j]]`
    Pick = "pick" (x, ids) {} Elementwise, infer::pick, interp::by_expansion, expand::pick;
    /// One matrix of several, chosen per row: `y[n, j, o] = Σ_k x[n, j, k] w[ids[n, j] · (rows / experts) + o, k]`; `x` may have one `j`
    /// for all.
    ExpertLinear = "expert_linear" (x, w, ids) {experts: Int}
        Contract, infer::expert_linear, interp::by_expansion, expand::expert_linear;

    /// A function of the module.
    Call = "call" (xs) {callee: Str} Call, infer::declared, interp::leaf;
}

impl Op {
    /// The operator's row.
    pub fn info(self) -> &'static OpInfo {
        &TABLE[self as usize]
    }

    /// Spelling in the text IR.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Kind of computation.
    pub fn class(self) -> Class {
        self.info().class
    }

    /// The operator of that name.
    pub fn find(name: &str) -> Option<Op> {
        Op::ALL.iter().copied().find(|o| o.name() == name)
    }

    /// Does it take one or more operands instead of a fixed number?
    pub fn is_variadic(self) -> bool {
        self.info().operands.last() == Some(&"xs")
    }
}
