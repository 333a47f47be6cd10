//! State of one kernel's translation, and the instruction builder that numbers values and hoists invariants.
//!
//! Nested scopes (loop bodies and branches) each have a level. A pure instruction is placed at the deepest level of its
//! operands: for a loop invariant that is before the loop. An instruction that exists already, at any enclosing level, is
//! used again. Cranelift runs without its optimizer, so this order is the final one.

use std::collections::HashMap;

use cranelift_codegen::ir::{self, DataFlowGraph, Inst, InstBuilder, InstBuilderBase, InstructionData, MemFlagsData};
use cranelift_codegen::ir::{Type, Value, types};
use cranelift_frontend::FunctionBuilder;
use marquetry_ir::loops::{Buf, Kernel, MicroOp, Var};
use marquetry_ir::{DType, Sym};

use super::Features;
use super::regs::RegFile;
use crate::index::Poly;

/// A value of the loop IR: 128-bit pieces, or one scalar.
#[derive(Clone, Debug)]
pub(super) struct Val {
    /// The pieces. The last one may be used in part only.
    pub p: Vec<Value>,
    /// Number of lanes.
    pub lanes: usize,
    /// Type of each lane.
    pub dt: DType,
    /// Bytes of a lane: the size of the type, but the width of the compared lanes for vectors of `bool`, whose lanes are all
    /// ones or all zeros.
    pub width: usize,
}

impl Val {
    pub fn new(p: Vec<Value>, lanes: usize, dt: DType) -> Val {
        Val { p, lanes, dt, width: dt.size() }
    }

    pub fn mask(p: Vec<Value>, lanes: usize, width: usize) -> Val {
        Val { p, lanes, dt: DType::Bool, width }
    }

    pub fn is_vector(&self) -> bool {
        self.lanes > 1
    }
}

/// What a variable stands for.
#[derive(Clone, Debug)]
pub(super) enum Bind {
    /// An index, kept as a polynomial so that constants reach the address.
    Index(Poly<Value>),
    /// Anything else.
    Value(Val),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScopeKind {
    /// Body of a loop; invariants move out of it.
    Loop,
    /// Runs at most once per entry of the enclosing scope; what it needs is computed in it.
    Branch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LoadKind {
    Plain(Type),
    /// 4 × 16 bits, zero extended.
    U16x4,
    /// 4 × 16 bits, sign extended.
    S16x4,
    /// 8 × 8 bits, zero extended.
    U8x8,
    /// 8 × 8 bits, sign extended.
    S8x8,
}

#[derive(PartialEq, Eq, Hash)]
struct LoadKey {
    at: Value,
    offset: i32,
    kind: LoadKind,
    epoch: u32,
}

struct Scope {
    kind: ScopeKind,
    /// The jump in the enclosing scope that enters this one.
    entry: Option<Inst>,
    pure: HashMap<(InstructionData, Type), Inst>,
    loads: HashMap<LoadKey, Value>,
}

impl Scope {
    fn new(kind: ScopeKind, entry: Option<Inst>) -> Scope {
        Scope { kind, entry, pure: HashMap::new(), loads: HashMap::new() }
    }
}

/// Translation state of one kernel.
pub(super) struct Cx<'a> {
    pub k: &'a Kernel,
    pub features: Features,
    pub b: FunctionBuilder<'a>,
    pub env: HashMap<Var, Bind>,
    /// Values of this statement's expressions, by identity.
    pub memo: HashMap<usize, Val>,
    pub regs: Vec<Option<RegFile>>,
    pub args_ptr: Value,
    pub sizes_ptr: Value,
    pub range: (Value, Value),
    /// Micro-kernels called so far.
    pub calls: Vec<MicroOp>,
    pub bases: Vec<Option<Value>>,
    sizes: HashMap<Sym, Value>,
    scopes: Vec<Scope>,
    levels: HashMap<Value, usize>,
    epochs: Vec<u32>,
    last_epoch: u32,
    shuffles: HashMap<[u8; 16], ir::Immediate>,
}

/// Accesses never trap. Vectors need not be aligned.
pub(super) fn mem_flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl<'a> Cx<'a> {
    /// Starts the function: `params` are the values of the calling convention.
    pub fn new(k: &'a Kernel, features: Features, b: FunctionBuilder<'a>, params: [Value; 4]) -> Cx<'a> {
        let n = k.buffers.len();
        Cx {
            k,
            features,
            b,
            env: HashMap::new(),
            memo: HashMap::new(),
            regs: (0..n).map(|_| None).collect(),
            args_ptr: params[0],
            sizes_ptr: params[1],
            range: (params[2], params[3]),
            calls: vec![],
            bases: vec![None; n],
            sizes: HashMap::new(),
            scopes: vec![Scope::new(ScopeKind::Branch, None)],
            levels: params.iter().map(|p| (*p, 0)).collect(),
            epochs: vec![0; n],
            last_epoch: 0,
            shuffles: HashMap::new(),
        }
    }

    /// Builder of pure instructions.
    pub fn pure(&mut self) -> Pure<'_, 'a> {
        Pure { cx: self }
    }

    pub fn top(&self) -> usize {
        self.scopes.len() - 1
    }

    pub fn push(&mut self, kind: ScopeKind, entry: Inst) {
        self.scopes.push(Scope::new(kind, Some(entry)));
    }

    pub fn pop(&mut self) {
        self.scopes.pop();
    }

    /// Level at which a value is available.
    pub fn level_of(&self, v: Value) -> usize {
        self.levels.get(&v).copied().unwrap_or(usize::MAX).min(self.top())
    }

    /// Notes that a value is defined at the current level.
    pub fn set_level(&mut self, v: Value) {
        self.levels.insert(v, self.top());
    }

    pub fn ty(&self, v: Value) -> Type {
        self.b.func.dfg.value_type(v)
    }

    /// The run-time value of a symbol, loaded once.
    pub fn size_value(&mut self, s: Sym) -> Value {
        if let Some(v) = self.sizes.get(&s) {
            return *v;
        }
        let at = self.sizes_ptr;
        let v = self.entry_load(at, 8 * s.0 as i32);
        self.sizes.insert(s, v);
        v
    }

    /// The address of a buffer that lives in memory, loaded once.
    pub fn base_value(&mut self, buf: Buf) -> Value {
        if let Some(v) = self.bases[buf.0 as usize] {
            return v;
        }
        let at = self.args_ptr;
        let v = self.entry_load(at, 8 * buf.0 as i32);
        self.bases[buf.0 as usize] = Some(v);
        v
    }

    /// Loads 64 bits of the call's arguments, before everything else.
    fn entry_load(&mut self, at: Value, offset: i32) -> Value {
        let mut data = None;
        let first = self.scopes.get(1).and_then(|s| s.entry);
        let flags = mem_flags().with_aligned().with_readonly();
        if first.is_none() {
            data = Some(self.b.ins().load(types::I64, flags, at, offset));
        }
        let v = match (data, first) {
            (Some(v), _) => v,
            (None, before) => {
                let func = &mut *self.b.func;
                let flags = func.dfg.mem_flags.insert(flags);
                let opcode = ir::Opcode::Load;
                let flags = flags.expect("few kinds of memory flags");
                let inst = func.dfg.make_inst(InstructionData::Load { opcode, arg: at, flags, offset: offset.into() });
                func.dfg.make_inst_results(inst, types::I64);
                func.layout.insert_inst(inst, before.expect("an inner scope has an entry"));
                func.dfg.first_result(inst)
            }
        };
        self.levels.insert(v, 0);
        v
    }

    /// A load at the current position, or the value of an equal one since which the buffer did not change.
    pub fn load(&mut self, buf: Buf, kind: LoadKind, at: Value, offset: i32) -> Value {
        let key = LoadKey { at, offset, kind, epoch: self.epochs[buf.0 as usize] };
        if let Some(v) = self.scopes.iter().find_map(|s| s.loads.get(&key)) {
            return *v;
        }
        let f = mem_flags();
        let ins = self.b.ins();
        let v = match kind {
            // Without AVX, a comparison takes the load as its memory operand and traps on addresses that are not aligned
            // (Cranelift 0.135). A cast in between prevents that.
            LoadKind::Plain(types::F32X4) if self.features.keep_loads_apart => {
                let v = ins.load(types::I8X16, f, at, offset);
                self.bits(v, types::F32X4)
            }
            LoadKind::Plain(t) => ins.load(t, f, at, offset),
            LoadKind::U16x4 => ins.uload16x4(f, at, offset),
            LoadKind::S16x4 => ins.sload16x4(f, at, offset),
            LoadKind::U8x8 => ins.uload8x8(f, at, offset),
            LoadKind::S8x8 => ins.sload8x8(f, at, offset),
        };
        self.scopes.last_mut().expect("scope").loads.insert(key, v);
        v
    }

    /// Forgets what is known of a buffer's contents.
    pub fn clobber(&mut self, buf: Buf) {
        self.last_epoch += 1;
        self.epochs[buf.0 as usize] = self.last_epoch;
    }

    /// Immediate of a byte shuffle.
    pub fn shuffle(&mut self, a: Value, b: Value, bytes: [u8; 16]) -> Value {
        let imm = match self.shuffles.get(&bytes) {
            Some(i) => *i,
            None => {
                let i = self.b.func.dfg.immediates.push(bytes.as_slice().into());
                self.shuffles.insert(bytes, i);
                i
            }
        };
        let t = self.ty(a);
        let (a, b) = (self.bits(a, types::I8X16), self.bits(b, types::I8X16));
        let v = self.pure().shuffle(a, b, imm);
        self.bits(v, t)
    }

    /// The same bits as another type of the same size.
    pub fn bits(&mut self, v: Value, to: Type) -> Value {
        if self.ty(v) == to {
            return v;
        }
        // A chain of casts is one cast, which keeps patterns of the instruction selection visible.
        if let ir::ValueDef::Result(inst, _) = self.b.func.dfg.value_def(v)
            && let InstructionData::LoadNoOffset { opcode: ir::Opcode::Bitcast, arg, .. } = self.b.func.dfg.insts[inst]
        {
            return self.bits(arg, to);
        }
        let flags = MemFlagsData::new().with_endianness(ir::Endianness::Little);
        self.pure().bitcast(to, flags, v)
    }

    /// A vector constant.
    pub fn vconst(&mut self, t: Type, bytes: [u8; 16]) -> Value {
        let c = self.b.func.dfg.constants.insert(bytes.as_slice().into());
        self.pure().vconst(t, c)
    }

    /// An integer constant, if the value is one.
    pub fn constant_of(&self, v: Value) -> Option<i64> {
        let ir::ValueDef::Result(inst, _) = self.b.func.dfg.value_def(v) else { return None };
        match self.b.func.dfg.insts[inst] {
            InstructionData::UnaryImm { opcode: ir::Opcode::Iconst, imm } => Some(imm.bits()),
            _ => None,
        }
    }

    fn place(&mut self, data: InstructionData, ty: Type) -> Inst {
        let key = (data, ty);
        if let Some(inst) = self.scopes.iter().find_map(|s| s.pure.get(&key)) {
            return *inst;
        }
        let top = self.top();
        let args = data.arguments(&self.b.func.dfg.value_lists);
        let mut level = args.iter().map(|v| self.level_of(*v)).max().unwrap_or(0);
        while level < top && self.scopes[level + 1].kind == ScopeKind::Branch {
            level += 1;
        }
        let inst = if level == top {
            self.b.ins().build(data, ty).0
        } else {
            let before = self.scopes[level + 1].entry.expect("an inner scope has an entry");
            let func = &mut *self.b.func;
            let inst = func.dfg.make_inst(data);
            func.dfg.make_inst_results(inst, ty);
            func.layout.insert_inst(inst, before);
            inst
        };
        let result = self.b.func.dfg.first_result(inst);
        self.levels.insert(result, level);
        self.scopes[level].pure.insert(key, inst);
        inst
    }
}

/// Builds pure instructions: equal ones once, and as far out as their operands allow.
pub(super) struct Pure<'s, 'a> {
    cx: &'s mut Cx<'a>,
}

impl<'s, 'a> InstBuilderBase<'s> for Pure<'s, 'a> {
    fn data_flow_graph(&self) -> &DataFlowGraph {
        &self.cx.b.func.dfg
    }

    fn data_flow_graph_mut(&mut self) -> &mut DataFlowGraph {
        &mut self.cx.b.func.dfg
    }

    fn build(self, data: InstructionData, ty: Type) -> (Inst, &'s mut DataFlowGraph) {
        let inst = self.cx.place(data, ty);
        (inst, &mut self.cx.b.func.dfg)
    }

    fn build_aux_inst(&mut self, data: InstructionData, ty: Type) -> Inst {
        self.cx.place(data, ty)
    }
}

/// Type of a scalar of this element type.
pub(super) fn scalar_type(d: DType) -> Type {
    match d {
        DType::F32 => types::F32,
        DType::I64 => types::I64,
        DType::I32 | DType::U32 => types::I32,
        DType::I16 | DType::F16 | DType::BF16 => types::I16,
        DType::I8 | DType::U8 | DType::Bool => types::I8,
    }
}

/// Type of a 128-bit piece of this element type.
pub(super) fn piece_type(d: DType) -> Type {
    match d {
        DType::F32 => types::F32X4,
        d => int_piece(d.size()),
    }
}

/// Integer vector with lanes of this many bytes.
pub(super) fn int_piece(width: usize) -> Type {
    match width {
        1 => types::I8X16,
        2 => types::I16X8,
        4 => types::I32X4,
        _ => types::I64X2,
    }
}

/// Number of pieces that hold `lanes` lanes of `width` bytes.
pub(super) fn pieces(lanes: usize, width: usize) -> usize {
    (lanes * width).div_ceil(16)
}
