//! Functions as graphs for drawing: a petgraph view derived from a function, and its DOT text.

use marquetry_ir::graph::{Attr, Function, Op, Ty};
use marquetry_ir::{Dim, Syms};
use petgraph::dot::Dot;
use petgraph::graph::{DiGraph, NodeIndex};

fn ty(syms: &Syms, t: &Ty) -> String {
    let shape = |dims: &[Dim]| dims.iter().map(|d| syms.show(d)).collect::<Vec<_>>().join(", ");
    match t {
        Ty::Tensor(t) => format!("{}[{}]", t.elem, shape(&t.shape)),
        Ty::Rows(_) => marquetry_ir::graph::print_type(syms, t),
        Ty::Kv(k) => format!("kv.{}[{}, {}, {}]", k.dtype, syms.show(&k.slots), k.heads, k.dim),
    }
}

/// Arguments, operations and results as nodes; an edge for each operand, labelled with its type.
pub fn graph(syms: &Syms, f: &Function) -> DiGraph<String, String> {
    let mut g = DiGraph::new();
    let mut made: Vec<Option<NodeIndex>> = vec![None; f.values.len()];
    for (name, v) in &f.args {
        made[v.0 as usize] = Some(g.add_node(name.clone()));
    }
    for inst in &f.insts {
        let label = match (inst.op, inst.attrs.first()) {
            (Op::Param | Op::State, Some(Attr::Str(name))) => name.clone(),
            (Op::Call, Some(Attr::Str(callee))) => format!("@{callee}"),
            (Op::Const, Some(value)) => format!("{}", value.as_f32()),
            _ => inst.op.name().to_string(),
        };
        let node = g.add_node(label);
        for v in &inst.operands {
            if let Some(from) = made[v.0 as usize] {
                g.add_edge(from, node, ty(syms, f.ty(*v)));
            }
        }
        inst.results.iter().for_each(|r| made[r.0 as usize] = Some(node));
    }
    for (name, v) in &f.results {
        let node = g.add_node(format!("return {name}"));
        if let Some(from) = made[v.0 as usize] {
            g.add_edge(from, node, ty(syms, f.ty(*v)));
        }
    }
    g
}

/// DOT text of a function, for `dot -Tsvg`.
pub fn dot(syms: &Syms, f: &Function) -> String {
    Dot::new(&graph(syms, f)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use marquetry_ir::graph::parse_module;

    #[test]
    fn operands_are_edges() {
        let text = "sym \"n\" in 1..=4
            param \"w \\\"1\\\"\": f32[8, 8]
            func @f(%0 \"x\": f32[n, 8]) {
              %1 = param {name = \"w \\\"1\\\"\"} : f32[8, 8]
              %2 = linear %0, %1 : f32[n, 8]
              %3 = add %2, %2 : f32[n, 8]
              return \"y\" = %3
            }";
        let m = parse_module(text).unwrap();
        let f = m.entry().unwrap();
        let g = graph(&m.syms, f);
        assert_eq!((g.node_count(), g.edge_count()), (5, 5));
        assert!(!petgraph::algo::is_cyclic_directed(&g));
        let text = dot(&m.syms, f);
        assert!(text.starts_with("digraph {"));
        assert!(text.contains(r#"label = "w \"1\"""#), "{text}");
        assert!(text.contains("linear") && text.contains("f32[n, 8]"), "{text}");
    }
}
