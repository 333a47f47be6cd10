//! Dev.
use marquetry_frontend::config::ModelConfig;
use marquetry_frontend::weights::Weights;
use marquetry_frontend::{Limits, models::trace_model};
use marquetry_passes::*;
use std::collections::HashMap;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let fast = std::env::args().nth(2).is_some_and(|s| s.contains("fast"));
    let one = std::env::args().nth(2).is_some_and(|s| s.contains("one"));
    let c = if path.ends_with(".gguf") {
        ModelConfig::from_gguf(&marquetry_frontend::gguf::Gguf::open(&path).unwrap()).unwrap()
    } else {
        ModelConfig::open(format!("{path}/config.json")).unwrap()
    };
    let m = trace_model(&c, Limits { tokens: 512, sequences: 1, context: 2048, page: 32 }).unwrap().module;
    let w = Weights::open(&path).unwrap();
    let elems = m.params.iter().map(|p| (p.name.clone(), w.get(&p.name).unwrap().elem)).collect();
    let m = bind::storage(&m, &elems).unwrap();
    let check = |m: &marquetry_ir::graph::Module| {
        let e = marquetry_ir::graph::verify(m);
        if !e.is_empty() {
            eprintln!("VERIFY {e:#?}");
        }
    };
    check(&m);
    let m = if one {
        bind::specialize(
            &m,
            &HashMap::from([
                ("n".into(), bind::Narrow::Fixed(1)),
                ("r".into(), bind::Narrow::Fixed(1)),
                ("s".into(), bind::Narrow::Fixed(1)),
            ]),
        )
        .unwrap()
    } else {
        m
    };
    let t = std::time::Instant::now();
    let m = canon::run(&m).unwrap();
    check(&m);
    eprintln!("canon {:?}", t.elapsed());
    let m = outline::run(&m).unwrap();
    check(&m);
    eprintln!("outline {:?}", t.elapsed());
    let (m, r) = eqsat::run(
        &m,
        eqsat::cost::Target::CPU,
        if fast { Numerics::Fast } else { Numerics::Strict },
        eqsat::Limits::default(),
    )
    .unwrap();
    check(&m);
    eprintln!("eqsat {:?}", t.elapsed());
    for r in r {
        eprintln!("{r}");
    }
    let m = fuse::run(&m).unwrap();
    check(&m);
    eprintln!("fuse {:?}", t.elapsed());
    println!("{}", marquetry_ir::graph::print_module(&m));
}
