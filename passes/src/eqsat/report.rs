//! What was fused, what it saved and where; what was not, and why.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use egg::Id;
use marquetry_ir::graph::{Loc, Op, Ty};
use serde::Serialize;

use super::cost::Cost;
use super::extract::{Extracted, Group, Problem, same};
use super::facts::Graph;
use super::rules::{FORMS, Phase, RULES, horizontal};
use super::run::{Firing, Log};
use super::term::Term;

/// What happened in one region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Function.
    pub region: String,
    /// How often the module calls it; 1 for the entry.
    pub calls: usize,
    /// Operations before and after.
    pub ops: (usize, usize),
    /// Estimated cost before and after.
    pub cost: (Cost, Cost),
    /// E-nodes and e-classes at the end.
    pub size: (usize, usize),
    /// A limit that stopped it, or the rule that united what is not equal: a defect of the rules.
    pub limit: Option<String>,
    /// Rewrites in the result.
    pub taken: Vec<Taken>,
    /// Rewrites that are not.
    pub not_taken: Vec<NotTaken>,
}

/// A rewrite in the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Rule.
    pub rule: String,
    /// How many of its products are there.
    pub times: usize,
    /// Operators of the left side, and what stands in their place.
    pub what: String,
    /// What the region would cost more without them; none where there is no other way.
    pub saves: Option<Cost>,
    /// Places in the source of the model.
    pub at: Vec<String>,
}

/// A rewrite that is possible, or nearly so, and not in the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotTaken {
    /// Rule.
    pub rule: String,
    /// How often.
    pub times: usize,
    /// The cost of the alternative, or the guard that refused.
    pub why: String,
    /// Places in the source of the model.
    pub at: Vec<String>,
}

/// Microseconds of picoseconds.
fn us(ps: u64) -> f64 {
    ps as f64 / 1e6
}

fn less(a: Cost, b: Cost) -> Cost {
    Cost {
        ps: a.ps.saturating_sub(b.ps),
        launches: a.launches.saturating_sub(b.launches),
        bytes: a.bytes.saturating_sub(b.bytes),
        resident: a.resident.saturating_sub(b.resident),
    }
}

/// Bytes with a unit.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn saves(c: Option<Cost>) -> String {
    let Some(c) = c else { return "there is no other way".into() };
    let parts = [
        (c.launches > 0).then(|| format!("{} launches", c.launches)),
        (c.bytes > 0).then(|| format!("{} of traffic", size(c.bytes))),
        (c.resident > 0).then(|| format!("{} of memory", size(c.resident))),
        (c.ps > 0).then(|| format!("{:.1} us", us(c.ps))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "costs no more".into() } else { format!("saves {}", parts.join(", ")) }
}

/// `file.rs:12`, without directories.
fn short(place: &str) -> &str {
    place.rsplit('/').next().unwrap_or(place)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = self.cost;
        writeln!(
            f,
            "@{} x{}: {} ops -> {}, est. {:.1} -> {:.1} us, {} e-nodes in {} classes",
            self.region,
            self.calls,
            self.ops.0,
            self.ops.1,
            us(before.ps),
            us(after.ps),
            self.size.0,
            self.size.1
        )?;
        if let Some(limit) = &self.limit {
            writeln!(f, "  warning: {limit}")?;
        }
        let places = |at: &[String]| at.iter().map(|p| short(p)).collect::<Vec<_>>().join(", ");
        for t in &self.taken {
            writeln!(f, "  taken      {:<18} x{} {}: {}  {}", t.rule, t.times, t.what, saves(t.saves), places(&t.at))?;
        }
        for n in &self.not_taken {
            writeln!(f, "  not taken  {:<18} x{} {}  {}", n.rule, n.times, n.why, places(&n.at))?;
        }
        Ok(())
    }
}

/// What a report is made from.
pub struct Facts<'a> {
    pub graph: &'a Graph,
    pub locs: HashMap<Id, Loc>,
    pub problem: &'a Problem<'a>,
    pub log: &'a Log,
    pub groups: &'a [Group],
    pub extracted: &'a Extracted,
}

impl Facts<'_> {
    /// Rewrites in the result, and those that are not.
    pub fn lines(&self) -> (Vec<Taken>, Vec<NotTaken>) {
        let (mut taken, mut not_taken) = (vec![], vec![]);
        for (i, rule) in RULES.iter().enumerate() {
            let fired: Vec<&Firing> = self.log.firings.iter().filter(|f| f.rule == rule.name).collect();
            let chosen: Vec<&Firing> = fired.iter().copied().filter(|f| self.is_chosen(f)).collect();
            if let Some(first) = chosen.first() {
                taken.push(Taken {
                    rule: rule.name.into(),
                    times: chosen.len(),
                    what: what(i, &first.node),
                    saves: self.without(&chosen).map(|c| less(c, self.cost())),
                    at: self.places(chosen.iter().map(|f| f.class)),
                });
            } else if let Some(first) = fired.first() {
                let line = |why, at| NotTaken { rule: rule.name.into(), times: fired.len(), why, at };
                not_taken.push(line(self.alternative(first), self.places(fired.iter().map(|f| f.class))));
            }
        }
        self.grouped(&mut taken, &mut not_taken);
        self.refused(&mut not_taken);
        let (classes, rule) = (horizontal::apart(self.graph, &self.extracted.choice.nodes), horizontal::MERGE_LINEARS);
        not_taken.extend(classes.into_iter().map(|(classes, why)| NotTaken {
            rule: rule.into(),
            times: 1,
            why,
            at: self.places(classes.into_iter()),
        }));
        let mut merged: Vec<NotTaken> = vec![];
        for line in not_taken {
            match merged.iter_mut().find(|m| (&m.rule, &m.why, &m.at) == (&line.rule, &line.why, &line.at)) {
                Some(same) => same.times += line.times,
                None => merged.push(line),
            }
        }
        (taken, merged)
    }

    fn cost(&self) -> Cost {
        self.extracted.choice.cost
    }

    fn is_chosen(&self, f: &Firing) -> bool {
        self.extracted.choice.nodes.get(&self.graph.find(f.class)).is_some_and(|n| same(self.graph, n, &f.node))
    }

    fn places(&self, classes: impl Iterator<Item = Id>) -> Vec<String> {
        let locs = classes.filter_map(|c| self.locs.get(&self.graph.find(c)));
        let all: BTreeSet<(String, u32)> = locs.map(|l| (l.file.clone(), l.line)).collect();
        all.into_iter().map(|(file, line)| format!("{file}:{line}")).collect()
    }

    /// The cost of the region where none of these products may be taken.
    fn without(&self, firings: &[&Firing]) -> Option<Cost> {
        let mut wish = self.extracted.wish.clone();
        wish.banned.extend(firings.iter().map(|f| (self.graph.find(f.class), f.node.clone())));
        self.problem.choose(&wish).map(|c| c.cost)
    }

    /// Why a product is not in the result.
    fn alternative(&self, f: &Firing) -> String {
        let class = self.graph.find(f.class);
        if !self.extracted.choice.nodes.contains_key(&class) {
            return "the form chosen does without it".into();
        }
        let mut wish = self.extracted.wish.clone();
        wish.forced.insert(class, f.node.clone());
        dearer(self.problem.choose(&wish).map(|c| c.cost), self.cost())
    }

    fn grouped(&self, taken: &mut Vec<Taken>, not_taken: &mut Vec<NotTaken>) {
        for (group, (is_taken, other)) in self.groups.iter().zip(&self.extracted.groups) {
            let (rule, at) = (group.rule.to_string(), self.places(group.members.iter().map(|(c, _)| *c)));
            let n = group.members.len();
            if *is_taken {
                let saves = other.map(|o| less(o, self.cost()));
                taken.push(Taken { rule, times: 1, what: format!("{n} {} -> 1", group.op.name()), saves, at });
            } else {
                let needed = |(c, _): &(Id, Term)| self.extracted.choice.nodes.contains_key(&self.graph.find(*c));
                let why = match group.members.iter().all(needed) {
                    true => dearer(*other, self.cost()),
                    false => "the form chosen does without them".into(),
                };
                let why = format!("{n} {}: {why}", group.op.name());
                not_taken.push(NotTaken { rule, times: 1, why, at });
            }
        }
    }

    /// Guards that refused where nothing else was done either; those of clean-up rules are of no interest.
    fn refused(&self, not_taken: &mut Vec<NotTaken>) {
        let done: BTreeSet<Id> = self.log.firings.iter().map(|f| self.graph.find(f.class)).collect();
        let mut by_rule: BTreeMap<usize, BTreeSet<Id>> = BTreeMap::new();
        for (rule, class) in &self.log.refused {
            let class = self.graph.find(*class);
            let at = RULES.iter().position(|r| r.name == *rule && r.phase != Phase::Simplify && !r.guard.is_empty());
            if let Some(at) = at.filter(|_| !done.contains(&class) && self.extracted.choice.nodes.contains_key(&class))
            {
                by_rule.entry(at).or_default().insert(class);
            }
        }
        not_taken.extend(by_rule.into_iter().map(|(i, classes)| NotTaken {
            rule: RULES[i].name.into(),
            times: classes.len(),
            why: format!("refused, it needs: {}", RULES[i].guard),
            at: self.places(classes.into_iter()),
        }));
    }
}

/// The operators of a left side and what replaces them.
fn what(rule: usize, product: &Term) -> String {
    let ops = FORMS[rule].first().map_or(vec![], |f| f.ops.clone());
    let from: Vec<&str> = ops.into_iter().map(Op::name).collect();
    format!("{} -> {product}", from.join("+"))
}

fn dearer(alternative: Option<Cost>, chosen: Cost) -> String {
    let Some(a) = alternative else { return "nothing can be computed that way".into() };
    let more = less(a, chosen);
    match (more.ps, more.resident) {
        (0, 0) => "as good, and the form chosen stands first".into(),
        (ps, 0) => format!("would cost {:.1} us more", us(ps)),
        (0, bytes) => {
            format!("would take {} more memory for {:.1} us less", size(bytes), us(chosen.ps.saturating_sub(a.ps)))
        }
        (ps, bytes) => format!("would cost {:.1} us more and {} of memory", us(ps), size(bytes)),
    }
}

/// The type of a class as text.
pub fn element(g: &Graph, id: Id) -> String {
    match &g[id].data.ty {
        Some(Ty::Tensor(t)) => t.elem.to_string(),
        _ => "a state".into(),
    }
}
