//! Dumps that can be resumed from, and bisection over rewrites.

use marquetry_ir::text::suggest;

use super::{Ir, Options, PASSES, PassError, Rewrites, TRACE, print, run_counted};
use crate::Numerics;

/// What the first lines of a dump say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The stage that the IR is at.
    pub stage: Option<&'static str>,
    /// The numerics it was compiled with.
    pub numerics: Option<Numerics>,
}

/// A dump: the text form below a record of its stage and numerics.
pub fn dump(stage: &str, numerics: Numerics, ir: &Ir) -> String {
    let numerics = format!("{numerics:?}").to_lowercase();
    format!("// stage: {stage}\n// numerics: {numerics}\n{}", print(ir))
}

/// The record at the head of a dump; lines that are none are passed over.
pub fn recorded(text: &str) -> Recorded {
    let mut found = Recorded::default();
    for line in text.lines().map_while(|l| l.trim().strip_prefix("//")) {
        match line.split_once(':').map(|(k, v)| (k.trim(), v.trim())) {
            Some(("stage", name)) => found.stage = position(name).map(stage_at),
            Some(("numerics", "strict")) => found.numerics = Some(Numerics::Strict),
            Some(("numerics", "fast")) => found.numerics = Some(Numerics::Fast),
            _ => {}
        }
    }
    found
}

/// How many passes have run at a stage, which may be named by its pass.
fn position(stage: &str) -> Option<usize> {
    let pass = PASSES.iter().position(|p| p.stage == stage || p.name == stage);
    pass.map(|i| i + 1).or((stage == TRACE).then_some(0))
}

fn stage_at(passes: usize) -> &'static str {
    passes.checked_sub(1).map_or(TRACE, |i| PASSES[i].stage)
}

fn find(stage: &str) -> Result<usize, PassError> {
    let near = suggest(stage, std::iter::once(TRACE).chain(PASSES.iter().map(|p| p.stage)));
    position(stage).ok_or_else(|| PassError::Stage { what: format!("no stage `{stage}`{near}") })
}

/// What dumps call a stage that may be named by its pass.
///
/// # Errors
/// A stage that does not exist.
pub fn stage_name(stage: &str) -> Result<&'static str, PassError> {
    find(stage).map(stage_at)
}

/// The passes of the default pipeline from one stage to another; to the end if that is not given.
///
/// # Errors
/// A stage that does not exist, or the later one before the earlier.
pub fn pipeline_between(from: &str, to: Option<&str>) -> Result<String, PassError> {
    let first = find(from)?;
    let last = to.map_or(Ok(PASSES.len()), find)?;
    if last < first {
        let (from, to) = (stage_at(first), stage_at(last));
        let what = format!("the IR is at stage `{from}`, past `{to}`; start from an earlier dump");
        return Err(PassError::Stage { what });
    }
    Ok(PASSES[first..last].iter().map(|p| p.name).collect::<Vec<_>>().join(","))
}

/// Finds the first rewrite with which a pass fails its check, or leaves invalid IR: its number and what it was.
///
/// Runs the pipeline about log2 of the number of rewrites times; `progress` hears of each. None if nothing fails, or if it
/// does so without any rewrite.
///
/// # Errors
/// A pipeline that can not run or be checked at all.
pub fn bisect(
    ir: &Ir,
    pipeline: &str,
    options: &Options,
    progress: &mut dyn FnMut(u64, bool),
) -> Result<Option<(u64, String)>, PassError> {
    let mut attempt = |limit: Option<u64>| {
        let rewrites = Rewrites::new(limit);
        let fails = match run_counted(ir.clone(), pipeline, options, &rewrites, &mut |_, _| {}) {
            Ok(_) => false,
            Err(PassError::Check { .. } | PassError::Invalid { .. } | PassError::Type { .. }) => true,
            // Too few rewrites to go on with, such as weights that no rule has packed: nothing is wrong yet.
            Err(PassError::Unsupported { .. }) if limit.is_some() => false,
            Err(other) => return Err(other),
        };
        progress(rewrites.count(), fails);
        Ok((fails, rewrites))
    };
    let (fails, all) = attempt(None)?;
    if !fails || attempt(Some(0))?.0 {
        return Ok(None);
    }
    let (mut good, mut bad) = (0, all.count());
    let mut which = None;
    while bad - good > 1 || which.is_none() {
        let middle = if bad - good > 1 { good + (bad - good) / 2 } else { bad };
        let (fails, rewrites) = attempt(Some(middle))?;
        match fails {
            true => (bad, which) = (middle, rewrites.last()),
            false => good = middle,
        }
        if good >= bad {
            return Ok(None);
        }
    }
    Ok(which.map(|w| (bad, w)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_between_stages() {
        let between = pipeline_between("canon", Some("fused")).unwrap();
        assert!(between.starts_with("outline,") && between.ends_with(",fuse"), "{between}");
        assert_eq!(pipeline_between("fuse", Some("fused")).unwrap(), "");
        assert_eq!(pipeline_between(TRACE, None).unwrap(), super::super::default_pipeline());
        let wrong = |a, b| pipeline_between(a, b).unwrap_err().to_string();
        assert_eq!(wrong("lops", None), "no stage `lops`; did you mean `loops`?");
        assert_eq!(wrong("plan", Some("canon")), "the IR is at stage `plan`, past `canon`; start from an earlier dump");
    }

    #[test]
    fn dumps_record_their_stage() {
        let text = dump("eqsat", Numerics::Strict, &Ir::Graph(Default::default()));
        assert_eq!(recorded(&text), Recorded { stage: Some("eqsat"), numerics: Some(Numerics::Strict) });
        assert_eq!(recorded("func\n// stage: canon"), Recorded::default());
        assert_eq!(recorded("// stage: nowhere\n//\n// numerics: fast").numerics, Some(Numerics::Fast));
    }
}
