//! Chat templates give the text of Jinja2 with the settings of transformers, and hostile ones are stopped.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use marquetry_frontend::template::{ChatTemplate, RenderOptions, TemplateError};
use serde_json::{Value, json};

#[track_caller]
fn check(error: &TemplateError, code: &str, words: &str) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.contains(words), "{message:?} should contain {words:?}");
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::new(source)?.render(&json!([{"role": "user", "content": "hi"}]), &RenderOptions::default())
}

#[track_caller]
fn refused(source: &str, code: &str, words: &str) {
    let started = SystemTime::now();
    check(&render(source).expect_err("the template should be refused"), code, words);
    assert!(started.elapsed().unwrap() < Duration::from_secs(20), "it took too long");
}

/// Texts made by Jinja2 3.1.6.
#[test]
fn texts_are_those_of_jinja2() {
    let cases: Value = serde_json::from_str(include_str!("data/templates/cases.json")).unwrap();
    let (mut same, mut wrong) = (0, Vec::new());
    for case in cases["cases"].as_array().unwrap() {
        let name = format!("{} / {}", case["template"], case["conversation"]);
        let options = RenderOptions {
            add_generation_prompt: case["generation"] == true,
            bos_token: Some("<bos>".to_owned()),
            eos_token: Some("<eos>".to_owned()),
            tools: (case["with_tools"] == true).then(|| cases["tools"].clone()),
            now: Some(UNIX_EPOCH + Duration::from_secs(1_721_981_109)),
            ..RenderOptions::default()
        };
        let template =
            ChatTemplate::new(cases["templates"][case["template"].as_str().unwrap()].as_str().unwrap()).unwrap();
        let got = template.render(&cases["conversations"][case["conversation"].as_str().unwrap()], &options);
        let good = match (&case["text"], &case["raised"], &got) {
            (Value::String(text), _, Ok(got)) => got == text,
            (_, Value::String(message), Err(TemplateError::Raised { message: got })) => got == message,
            // Python refuses to add a list or nothing to a string.
            (Value::Null, Value::Null, Err(TemplateError::Failed { .. })) => true,
            _ => false,
        };
        match good {
            true => same += 1,
            false => wrong.push(format!("{name}:\n got      {got:?}\n expected {:?}", case["text"])),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), wrong.len() + same, wrong.join("\n"));
    assert_eq!(same, 70);
}

#[test]
fn generation_marks_are_no_obstacle() {
    assert_eq!(render("a{% generation %}b{%- endgeneration -%} c").unwrap(), "abc");
}

#[test]
fn variables_of_the_caller_do_not_replace_ours() {
    let mut options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    options.extra =
        json!({"messages": [], "add_generation_prompt": false, "thinking": "on"}).as_object().unwrap().clone();
    let template = ChatTemplate::new("{{ messages|length }} {{ add_generation_prompt }} {{ thinking }}").unwrap();
    assert_eq!(template.render(&json!([1, 2]), &options).unwrap(), "2 True on");
}

#[test]
fn row_76_syntax() {
    refused("a\n{% if x", "TPL001", "chat template 2:");
    refused("{{ 'a }}", "TPL001", "chat template 1:");
}

#[test]
fn row_77_endless_loops() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
    refused(loops, "TPL002", "stopped after 1,000,000 steps");
}

#[test]
fn row_78_doubling() {
    let doubling = "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    refused(doubling, "TPL002", "stopped after");
    let json = "{% set ns = namespace(s='\"') %}{% for i in range(99) %}{% set ns.s = ns.s|tojson %}{% endfor %}";
    refused(json, "TPL005", "its JSON exceeds 16 MiB");
}

#[test]
fn row_79_nesting() {
    refused(&format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)), "TPL003", "nested too deep");
    refused(&format!("{}{}", "{% if 1 %}".repeat(20_000), "{% endif %}".repeat(20_000)), "TPL003", "nested too deep");
    refused("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "TPL003", "nested too deep");
    // Long chains do not nest; they must not exhaust the stack either.
    let _ = render(&format!("{{{{ 1{} }}}}", "+1".repeat(200_000)));
    let _ = render(&format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(40_000)));
    let _ = render(&format!("{{{{ x{} }}}}", "|trim".repeat(80_000)));
    let _ = render(&format!("{{{{ {}1 }}}}", "not ".repeat(100_000)));
}

#[test]
fn values_nested_by_a_loop_do_not_exhaust_the_stack() {
    let grow = "{% set ns = namespace(x=1) %}{% for i in range(9000) %}{% for j in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
    refused(grow, "TPL002", "stopped after");
    let nested = "{% set ns = namespace(x=1) %}{% for i in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for end in ["{{ ns.x|tojson }}", "{{ ns.x }}", "{{ ns.x == [ns.x] }}", "{{ ns.x|string|length }}"] {
        let _ = render(&format!("{nested}{end}"));
    }
}

#[test]
fn row_80_escapes() {
    for (source, text) in [("{{ ''.__class__ }}", ""), ("{{ messages.__globals__ }}", "")] {
        assert_eq!(render(source).unwrap(), text);
    }
    assert!(render("{{ ''.__class__.__mro__ }}").is_err());
    refused("{% include 'x' %}", "TPL004", "include");
    refused("{% import 'x' as y %}", "TPL004", "import");
    refused("a\n{{ 1|banana }}", "TPL004", "line 2: filter banana is unknown");
    refused("{{ open('x') }}", "TPL004", "open");
}

#[test]
fn row_81_refusals_of_the_template() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(error, TemplateError::Raised { message: "roles must alternate".to_owned() });
    check(&error, "TPL006", "the model's chat template refuses these messages: roles must alternate");
}

#[test]
fn row_82_sizes() {
    refused(&"x".repeat(10 << 20), "TPL005", "it has 10485760 bytes, at most 524288");
    let long = "x".repeat(100_000);
    let error = render(&format!("{{% for i in range(1000) %}}{long}{{% endfor %}}")).unwrap_err();
    assert!(["TPL002", "TPL005"].contains(&error.code()), "{error}");
}
