//! Attention over paged caches, and what is done to queries and keys before.

use marquetry::ir::DType;

use super::{Case, Run, check};

/// Slots of a page, pages of a sequence, sequences.
const PAGE: i64 = 16;
const PAGES: i64 = 9;
const SEQUENCES: i64 = 3;

/// Where one token may be: beside the edges of pages, blocks of positions and pieces.
const POSITIONS: [i64; 8] = [0, 1, 14, 15, 16, 17, 33, 127];

/// Pages of a cache that is written: each belongs to one sequence.
const OWN: i64 = SEQUENCES * PAGES;
/// Pages of one that is only read: sequences share them.
const SHARED: i64 = 11;

/// A table of pages in an order that is not that of the positions.
fn pages(of: i64) -> Vec<i64> {
    (0..SEQUENCES * PAGES).map(|i| i * 7 % of).collect()
}

/// Steps of one token at every position, and steps of many tokens of up to three sequences.
fn runs(positions: &[i64], of: i64) -> Vec<Run> {
    let run = |pos: Vec<i64>, seq: Vec<i64>| Run {
        tokens: pos.len() as i64,
        args: vec![("pos", pos), ("seq", seq), ("pages", pages(of))],
    };
    let one = positions.iter().map(|p| run(vec![*p], vec![p % SEQUENCES]));
    // The tokens of a sequence follow each other, those of another one begin elsewhere.
    let many = [(2, 15), (3, 0), (4, 16), (5, 1), (7, 33), (8, 127), (9, 17), (31, 14), (33, 15), (65, 60)].map(
        |(n, last)| {
            let split = [n / 3, n / 3 + n / 2];
            let part = |t: i64| split.iter().filter(|s| t >= **s).count() as i64;
            let first = |s: i64| [0, split[0], split[1]][s as usize];
            let pos = (0..n).map(|t| t - first(part(t)) + [last, 0, 130 - n][part(t) as usize].min(140 - n)).collect();
            run(pos, (0..n).map(|t| (part(t) + 1) % SEQUENCES).collect())
        },
    );
    one.chain(many).collect()
}

/// What attention is like.
#[derive(Clone, Copy)]
struct Shape {
    cache: DType,
    heads: [i64; 2],
    dim: i64,
    window: i64,
    cap: f32,
}

impl Shape {
    fn name(&self) -> String {
        let Shape { cache, heads: [q, kv], dim, window, cap } = self;
        format!("{q} over {kv} heads of {dim}, {cache} cache, window {window}, cap {cap}")
    }

    fn case(&self, form: Form) -> Case {
        let Shape { cache, heads: [q, kv], dim, window, cap } = self;
        let state = format!("kv.{cache}[{}, {kv}, {dim}]", SHARED * PAGE);
        let attrs = format!("scale = 0.3, window = {window}, softcap = {cap:?}, page = {PAGE}");
        let y = format!("f32[n, {q}, {dim}]");
        let of = "%0, %4, %1, %2, %3";
        let body = match form {
            Form::Whole | Form::Chosen => format!("  %5 = attend {of} {{{attrs}}} : {y}\n  return \"y\" = %5\n"),
            Form::Sloped => {
                let slopes: Vec<String> = (1..=*q).map(|h| format!("{:?}", 1.0 / (1 << h) as f32)).collect();
                let slopes = slopes.join(", ");
                format!("  %5 = attend_sloped {of} {{{attrs}, slopes = [{slopes}]}} : {y}\n  return \"y\" = %5\n")
            }
            Form::Pieces(parts) => format!(
                "  %5 = attend_parts {of} {{{attrs}, parts = {parts}}} : f32[n, {q}, {parts}, {}]\n  \
                 %6 = attend_merge %5 : {y}\n  return \"y\" = %6\n",
                dim + 2
            ),
        };
        let text = format!(
            "sym \"n\" in 1..=128\nstate \"kv\": {state}\n\nfunc @f(%0 \"q\": {y}, %1 \"pos\": i32[n], %2 \"seq\": i32[n], \
             %3 \"pages\": i32[{SEQUENCES}, {PAGES}]) {{\n  %4 = state {{name = \"kv\"}} : {state}\n{body}}}\n"
        );
        let end = match form {
            Form::Whole => "\"",
            Form::Pieces(_) => " parts\"",
            Form::Chosen | Form::Sloped => "",
        };
        let micro = match form {
            Form::Sloped => vec![],
            _ => vec![format!("attend {cache} {:08x} {:08x}{end}", 0.3f32.to_bits(), cap.to_bits())],
        };
        let mut case = Case::new(format!("{}, {form:?}", self.name()), text, [micro.clone(), micro]);
        case.runs = runs(&POSITIONS, SHARED);
        if form == Form::Whole {
            case.pipeline = Some("specialize,cache,canon,outline,eqsat{rules=-attend-split},fuse,lower,schedule,plan");
        }
        case
    }
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Over all positions at once.
    Whole,
    /// As the rules choose.
    Chosen,
    /// In so many pieces.
    Pieces(i64),
    Sloped,
}

const fn shape(cache: DType, heads: [i64; 2], dim: i64, window: i64, cap: f32) -> Shape {
    Shape { cache, heads, dim, window, cap }
}

/// Groups of 1, 3 and 4 heads; windows and caps; head sizes that are whole vectors and that are not.
const SHAPES: [Shape; 8] = [
    shape(DType::F32, [2, 2], 16, 0, 0.0),
    shape(DType::F16, [6, 2], 64, 0, 0.0),
    shape(DType::BF16, [4, 1], 32, 0, 0.0),
    shape(DType::F32, [3, 1], 80, 17, 0.0),
    shape(DType::F16, [3, 3], 24, 16, 2.5),
    shape(DType::BF16, [9, 3], 16, 0, 2.5),
    shape(DType::F16, [8, 2], 48, 7, 0.0),
    shape(DType::F32, [4, 1], 128, 1, 0.0),
];

#[test]
fn attention_whole() {
    check(&SHAPES.map(|s| s.case(Form::Whole)));
}

#[test]
fn attention_in_pieces() {
    let mut parts = [8, 1, 3, 2].into_iter().cycle();
    check(&SHAPES.map(|s| s.case(Form::Pieces(parts.next().unwrap()))));
}

#[test]
fn attention_as_chosen() {
    check(&[SHAPES[1], SHAPES[2], SHAPES[6]].map(|s| s.case(Form::Chosen)));
}

#[test]
fn attention_with_slopes() {
    check(&[SHAPES[0], SHAPES[1], SHAPES[3], SHAPES[5]].map(|s| s.case(Form::Sloped)));
}

/// Keys are rotated and stored, queries rotated and compared with them, the result quantized per head and multiplied.
#[test]
fn rotation_and_append() {
    let case = |cache: DType, interleaved: bool, dim: i64| {
        let frequencies: Vec<String> = (0..dim / 2 - 2).map(|i| format!("{:?}", 1.0 / (1.0 + i as f32))).collect();
        let rope = format!("{{inv_freq = [{}], scale = 1.0, interleaved = {interleaved}}}", frequencies.join(", "));
        let state = format!("kv.{cache}[{}, 2, {dim}]", OWN * PAGE);
        let (q, kv) = (format!("f32[n, 6, {dim}]"), format!("f32[n, 2, {dim}]"));
        let wide = 6 * dim;
        let text = format!(
            "sym \"n\" in 1..=128\nparam \"o\": gguf.q8_0[24, {wide}]\nstate \"kv\": {state}\n\n\
             func @f(%0 \"q\": {q}, %1 \"k\": {kv}, %2 \"v\": {kv}, %3 \"slot\": i32[n], %4 \"pos\": i32[n], %5 \"seq\": i32[n], \
             %6 \"pages\": i32[{SEQUENCES}, {PAGES}]) {{\n  %7 = state {{name = \"kv\"}} : {state}\n  \
             %8 = rope %1, %4 {rope} : {kv}\n  %9 = kv_append %7, %8, %2, %3 : {state}\n  %10 = rope %0, %4 {rope} : {q}\n  \
             %11 = attend %10, %9, %4, %5, %6 {{scale = 0.3, window = 0, softcap = 0.0, page = {PAGE}}} : {q}\n  \
             %12 = reshape %11 {{shape = [n, {wide}]}} : f32[n, {wide}]\n  %13 = param {{name = \"o\"}} : gguf.q8_0[24, {wide}]\n  \
             %14 = dequant %13 : f32[24, {wide}]\n  %15 = linear %12, %14 : f32[n, 24]\n  return \"y\" = %15, \"q\" = %10\n}}\n"
        );
        let micro = |p: &str| vec![format!("attend {cache}"), p.to_owned()];
        let mut case = Case::new(
            format!("rotation and append, heads of {dim}, {cache} cache"),
            text,
            [micro("unpack pack.b8"), micro("dot pack.b8")],
        );
        case.runs = runs(&[0, 15, 33, 127], OWN);
        case.step = match cache {
            DType::F16 => 2f32.powi(-10),
            DType::BF16 => 2f32.powi(-7),
            _ => 0.0,
        };
        let table = pages(OWN);
        for run in &mut case.runs {
            let at = |name: &str| run.args.iter().find(|(n, _)| *n == name).unwrap().1.clone();
            let places = at("pos").into_iter().zip(at("seq"));
            let slot = places.map(|(p, s)| table[(s * PAGES + p / PAGE) as usize] * PAGE + p % PAGE);
            let slot = slot.collect();
            run.args.push(("slot", slot));
        }
        case
    };
    check(&[case(DType::F32, false, 32), case(DType::F16, true, 64), case(DType::BF16, false, 48)]);
}
