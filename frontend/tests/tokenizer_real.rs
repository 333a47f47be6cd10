//! Real vocabularies give the ids of llama.cpp. Needs MARQUETRY_TEST_MODELS.

mod common;

use common::real_model;
use marquetry_frontend::tokenizer::Tokenizer;
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn compare(model: &str, oracle: &str) {
    let Some(path) = real_model(model) else { return };
    let tokenizer = Tokenizer::open(path).unwrap();
    let oracle: Value = serde_json::from_str(oracle).unwrap();
    let strings = oracle["strings"].as_array().unwrap();
    assert_eq!(strings.len(), 250);
    let mut wrong = Vec::new();
    let mut compare = |key: &str, add_special: bool, parse_special: bool| {
        for (i, expected) in oracle[key].as_array().unwrap().iter().enumerate() {
            let text = strings[i].as_str().unwrap();
            let got = tokenizer.encode(text, add_special, parse_special);
            if got != ids(expected) {
                wrong.push(format!("{key} {i} {text:?}: {got:?}, expected {:?}", ids(expected)));
            }
        }
    };
    compare("llama_cpp", false, true);
    compare("llama_cpp_no_special", false, false);
    compare("llama_cpp_with_bos", true, true);
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    for text in strings {
        let text = text.as_str().unwrap();
        let ids = tokenizer.encode(text, false, false);
        let decoded = tokenizer.decode_with_special(&ids);
        assert_eq!(decoded, text.replace('\u{2581}', if model == "gemma.gguf" { " " } else { "\u{2581}" }), "{text:?}");
        let mut stream = tokenizer.decode_stream();
        let mut streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, tokenizer.decode(&ids));
    }
}

#[test]
fn smollm2() {
    compare("smol.gguf", include_str!("../../tests/oracles/real/smollm2-135m-instruct-q4_1/tokenizer_oracle.json"));
}

#[test]
fn gemma3() {
    compare("gemma.gguf", include_str!("../../tests/oracles/real/gemma-3-270m-q4_k_m/tokenizer_oracle.json"));
}

#[test]
fn ends_of_generation() {
    let Some(path) = real_model("smol.gguf") else { return };
    let t = Tokenizer::open(path).unwrap();
    assert_eq!((t.bos(), t.eos(), t.vocab_size()), (Some(1), Some(2), 49_152));
    assert_eq!(t.eog().iter().copied().collect::<Vec<_>>(), [0, 2, 4]);
    assert!(t.chat_template().unwrap().contains("<|im_start|>"));
    let t = Tokenizer::open(real_model("gemma.gguf").unwrap()).unwrap();
    assert_eq!((t.bos(), t.eos(), t.vocab_size()), (Some(2), Some(1), 262_144));
    assert_eq!(t.eog().iter().copied().collect::<Vec<_>>(), [1, 106, 212]);
}
