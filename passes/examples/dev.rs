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
    let f = |v| manager_sizes(v);
    fn manager_sizes(v: &[(&str, i64)]) -> HashMap<String, bind::Narrow> {
        v.iter().map(|(n, v)| (n.to_string(), bind::Narrow::Fixed(*v))).collect()
    }
    let sizes = if one { f(&[("n", 1), ("r", 1), ("s", 1)]) } else { f(&[("s", 1)]) };
    let o = manager::Options {
        numerics: if fast { Numerics::Fast } else { Numerics::Strict },
        sizes,
        ..Default::default()
    };
    let stop = std::env::args().nth(3).unwrap_or("plan".into());
    let r = manager::run(manager::Ir::Graph(m), &manager::default_pipeline(), &o, &mut |name, ir| {
        eprintln!("{name}");
        if name == stop {
            println!("{}", manager::print(ir));
        }
    });
    match r {
        Ok((ir, r)) => {
            for e in r.eqsat {
                eprintln!("{e}");
            }
            eprintln!("{:?}", r.seconds);
            if let manager::Ir::Program(p) = ir {
                eprintln!(
                    "{} kernels, {} launches, arena {}, syncs {}",
                    p.kernels.len(),
                    p.launches.len(),
                    p.arena_bytes,
                    p.launches.iter().filter(|l| l.sync).count()
                );
            }
        }
        Err(e) => eprintln!("{e}"),
    }
}
