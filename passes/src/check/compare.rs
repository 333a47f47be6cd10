//! Distances between outcomes.

use super::{Bound, Outcome};

/// The largest distance of a result; refuses names or lengths that differ, and distances beyond the bounds, one per result.
pub fn distance(old: &Outcome, new: &Outcome, bounds: &[Bound]) -> Result<f32, String> {
    let names = |o: &Outcome| o.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    if names(old) != names(new) {
        return Err(format!("results {} become {}", names(old).join(", "), names(new).join(", ")));
    }
    let mut worst = 0.0f32;
    for (((name, a), (_, b)), bound) in old.iter().zip(new).zip(bounds) {
        if a.len() != b.len() {
            return Err(format!("`{name}` has {} numbers, then {}", a.len(), b.len()));
        }
        let (d, most) = match *bound {
            Bound::Most(most) => (gap(a, b), most),
            Bound::Mean(most) => (mean_gap(a, b), most),
        };
        if d > most {
            let at = (0..a.len()).find(|&i| apart(a[i], b[i]) > most * rms(a)).unwrap_or(0);
            let (x, y) = (a.get(at).copied().unwrap_or(0.0), b.get(at).copied().unwrap_or(0.0));
            return Err(format!("`{name}` is {d:e} apart where {most:e} is allowed; first at [{at}]: {x}, then {y}"));
        }
        worst = worst.max(d);
    }
    Ok(worst)
}

/// Root mean square; 1 for zeros, so that distances from them stay absolute.
fn rms(v: &[f32]) -> f32 {
    let finite = v.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x).powi(2));
    let mean = (finite.sum::<f64>() / v.len().max(1) as f64).sqrt() as f32;
    if mean > 0.0 { mean } else { 1.0 }
}

/// Infinite where only one side is a number, or they are different infinities.
fn apart(a: f32, b: f32) -> f32 {
    if a == b || a.is_nan() && b.is_nan() {
        return 0.0;
    }
    let d = (a - b).abs();
    if d.is_nan() { f32::INFINITY } else { d }
}

/// Largest distance over the root mean square.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    let scale = rms(a);
    a.iter().zip(b).fold(0.0, |m, (x, y)| m.max(apart(*x, *y) / scale))
}

/// Root mean square of the distances over that of the numbers.
pub fn mean_gap(a: &[f32], b: &[f32]) -> f32 {
    let sum: f64 = a.iter().zip(b).map(|(x, y)| f64::from(apart(*x, *y)).powi(2)).sum();
    (sum / a.len().max(1) as f64).sqrt() as f32 / rms(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(old: &Outcome, new: &Outcome, bound: Bound) -> Result<f32, String> {
        super::distance(old, new, &vec![bound; old.len()])
    }

    #[test]
    fn differences_are_seen() {
        let o = |v: &[f32]| vec![("y".to_string(), v.to_vec())];
        let most = Bound::Most(1e-4);
        assert_eq!(distance(&o(&[1.0, 2.0]), &o(&[1.0, 2.0]), Bound::Most(0.0)), Ok(0.0));
        assert!(distance(&o(&[1.0, 2.0]), &o(&[1.0, 2.00001]), Bound::Most(0.0)).is_err());
        assert!(distance(&o(&[1.0, 2.0]), &o(&[1.0, 2.00001]), most).is_ok());
        for (a, b) in [(vec![1.0], vec![f32::NAN]), (vec![f32::INFINITY], vec![f32::NEG_INFINITY]), (vec![1.0], vec![])]
        {
            assert!(distance(&o(&a), &o(&b), most).is_err(), "{a:?} {b:?}");
        }
        assert_eq!(distance(&o(&[f32::NAN]), &o(&[f32::NAN]), most), Ok(0.0));
        assert!(distance(&o(&[1.0]), &vec![], most).is_err());
        let text = distance(&o(&[1.0, 3.0]), &o(&[1.0, 4.0]), most).unwrap_err();
        assert!(text.contains("`y`") && text.contains("first at [1]: 3, then 4"), "{text}");
        assert!(distance(&o(&[1.0, 1.0]), &o(&[1.0, 1.06]), Bound::Mean(0.05)).is_ok());
        assert!(distance(&o(&[1.0, 1.0]), &o(&[1.06, 1.06]), Bound::Mean(0.05)).is_err());
    }
}
