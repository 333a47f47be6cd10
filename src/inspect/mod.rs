//! A page that shows a compilation: graphs of every stage, differences between stages, kernels with their loops and machine
//! code, the memory plan, and the weights.
//!
//! The page is one file that loads nothing: a template with its data as JSON inside. Whatever the data says is text: `<` does
//! not occur in the JSON, and the page never makes markup of it.

mod data;

use serde_json::{Value, json};

use crate::passes::manager::Ir;
pub use data::{Weight, weights_of};

const TEMPLATE: &str = include_str!("page.html");

/// What a page shows.
#[derive(Clone, Debug, Default)]
pub struct Compilation {
    /// What was compiled.
    pub title: String,
    /// Things to know about it, name and value.
    pub facts: Vec<(String, String)>,
    /// Stages in order.
    pub stages: Vec<(String, Ir)>,
    /// Assembly of the kernels of the last program, in order; empty where there is none.
    pub asm: Vec<String>,
    /// Parameters.
    pub weights: Vec<Weight>,
}

/// The data of a page.
pub fn data(c: &Compilation) -> Value {
    let facts: Vec<Value> = c.facts.iter().map(|(k, v)| json!([k, v])).collect();
    let stages: Vec<Value> = c.stages.iter().map(|(name, ir)| data::stage(name, ir)).collect();
    let weights: Vec<Value> = c.weights.iter().map(data::weight).collect();
    json!({
        "title": c.title, "facts": facts, "stages": stages, "weights": weights,
        "program": data::program(&c.stages, &c.asm),
    })
}

/// The page.
pub fn page(c: &Compilation) -> String {
    // The JSON stands in a script element, which only `</script` or `<!--` could leave.
    let json = data(c).to_string().replace('<', "\\u003c");
    TEMPLATE.replacen("\"DATA\"", &json, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::manager::{Options, PASSES, default_pipeline, parse, print, run};

    const TEXT: &str = r#"sym "n" in 1..=8
        param "a</script><b>": f32[64, 64]
        param "model.layers.0.g": f32[64]
        func @f(%0 "x": f32[n, 64]) {
          %1 = param {name = "a</script><b>"} : f32[64, 64]
          %2 = linear %0, %1 : f32[n, 64] at "m.rs":7
          %3 = param {name = "model.layers.0.g"} : f32[64]
          %4 = rms_norm %2, %3 {eps = 1e-5} : f32[n, 64] at "m.rs":8
          %5 = linear %4, %1 : f32[n, 64] at "m.rs":9
          return "y" = %5
        }"#;

    fn compilation() -> Compilation {
        let traced = parse(TEXT).unwrap();
        let mut stages = vec![("trace".to_string(), traced.clone())];
        let mut keep = |name: &'static str, ir: &Ir| stages.push((name.to_string(), ir.clone()));
        run(traced, &default_pipeline(), &Options::default(), &mut keep).unwrap();
        let asm = vec!["mov <rax>, 1".to_string(); 2];
        let weights = weights_of(&stages, &[("a</script><b>".into(), vec![64, 64], "f32".into(), 16384)]);
        Compilation { title: "a <b> & c".into(), facts: vec![], stages, asm, weights }
    }

    #[test]
    fn hostile_names_stay_text() {
        let page = page(&compilation());
        let json = page.split("<script type=\"application/json\" id=\"data\">").nth(1).unwrap();
        let json = json.split("</script>").next().unwrap();
        let back: Value = serde_json::from_str(json).unwrap();
        assert_eq!(back, data(&compilation()));
        assert!(!json.contains('<') && json.contains("a\\u003c/script>"));
        assert_eq!(page.matches("</script>").count(), TEMPLATE.matches("</script>").count());
        // Names become text nodes, never markup.
        assert!(!TEMPLATE.contains("innerHTML") && !TEMPLATE.contains("insertAdjacentHTML"));
        assert!(!TEMPLATE.contains("document.write") && !TEMPLATE.contains("eval("));
    }

    #[test]
    fn the_page_loads_nothing() {
        assert!(TEMPLATE.len() < 60_000, "{}", TEMPLATE.len());
        for word in ["<link", "src=", "@import", "url(", "fetch(", "XMLHttpRequest", "import("] {
            assert!(!TEMPLATE.contains(word), "{word}");
        }
        let addresses = TEMPLATE.matches("http").count();
        assert_eq!(addresses, TEMPLATE.matches("http://www.w3.org/2000/svg").count());
    }

    #[test]
    fn the_data_has_every_part() {
        let c = compilation();
        let d = data(&c);
        let stages = d["stages"].as_array().unwrap();
        assert_eq!(stages.len(), PASSES.len() + 1);
        for (stage, (_, ir)) in stages.iter().zip(&c.stages) {
            assert_eq!(stage["text"].as_str(), Some(print(ir).as_str()));
        }
        let f = &stages[0]["functions"][0];
        let nodes = f["nodes"].as_array().unwrap();
        let norm = nodes.iter().find(|n| n["op"] == "rms_norm").unwrap();
        assert_eq!((norm["at"].as_str(), norm["ty"].as_str()), (Some("m.rs:8"), Some("f32[n, 64]")));
        assert_eq!(norm["group"], "model.layers.0");
        assert!(norm["cost"].as_u64().unwrap() > 0 && norm["in"].as_array().unwrap().len() == 2);
        let p = &d["program"];
        let (launches, kernels) = (p["launches"].as_array().unwrap(), p["kernels"].as_array().unwrap());
        assert!(!launches.is_empty() && launches.iter().all(|l| l["kernel"].as_u64().unwrap() < kernels.len() as u64));
        for k in kernels {
            assert!(
                k["loops"].as_str().unwrap().contains("kernel @")
                    && k["scheduled"].as_str().unwrap().contains("kernel @")
            );
        }
        let arena = p["arena"].as_array().unwrap();
        let most = p["arena_bytes"].as_u64().unwrap();
        assert!(!arena.is_empty());
        for b in arena {
            let (at, bytes) = (b["at"].as_u64().unwrap(), b["bytes"].as_u64().unwrap());
            assert!(at + bytes <= most && b["first"].as_u64() <= b["last"].as_u64(), "{b}");
        }
        assert!(d["weights"][0]["packed"].as_str().unwrap().contains("rows8"), "{}", d["weights"]);
    }
}
