//! Rewriting every model that there are reference cases of: each region saturates within its limits, and stays small.

mod support;

use marquetry::engine::{Bucket, bucket_options};
use marquetry::passes::Numerics;
use marquetry::passes::manager::{self, Ir};
use support::{CASES, Case};

#[test]
fn every_region_of_every_model_saturates() {
    for name in CASES {
        let module = Case::load(name).module;
        for bucket in [Bucket::Decode, Bucket::Prefill] {
            for numerics in [Numerics::Strict, Numerics::Fast] {
                let options = bucket_options(bucket, numerics, 128);
                let pipeline = "specialize,canon,outline,eqsat";
                let (_, reports) = manager::run(Ir::Graph(module.clone()), pipeline, &options, &mut |_, _| {}).unwrap();
                assert!(!reports.eqsat.is_empty());
                for r in reports.eqsat {
                    assert_eq!(r.limit, None, "{name}, {bucket:?}, {numerics:?}, @{}", r.region);
                    // A rule that multiplies terms shows here before it meets a limit.
                    assert!(
                        r.size.1 <= 6 * r.ops.0 + 100,
                        "{name}, @{}: {} classes of {} ops",
                        r.region,
                        r.size.1,
                        r.ops.0
                    );
                    assert!(r.cost.1.ps <= r.cost.0.ps, "{name}, @{}: {:?}", r.region, r.cost);
                }
            }
        }
    }
}
