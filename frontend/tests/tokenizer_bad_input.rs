//! Small vocabularies of each kind, and one test per kind of malformed tokenizer.

mod common;

use common::{GgufFile, array};
use marquetry_frontend::gguf::Gguf;
use marquetry_frontend::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

#[track_caller]
fn check(error: &TokenizerError, code: &str, words: &str) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.contains(words), "{message:?} should contain {words:?}");
}

fn gguf(file: &GgufFile) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(&Gguf::parse(file.build()).unwrap())
}

/// A SentencePiece vocabulary: texts, scores, types.
const PIECES: [(&str, f32, i32); 16] = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<0x0A>", 0.0, 6),
    ("<0xC3>", 0.0, 6),
    ("<0xA9>", 0.0, 6),
    ("\u{2581}", -10.0, 1),
    ("h", -11.0, 1),
    ("e", -12.0, 1),
    ("l", -13.0, 1),
    ("o", -14.0, 1),
    ("he", -2.0, 1),
    ("ll", -1.0, 1),
    ("hell", -4.0, 1),
    ("\u{2581}hell", -3.0, 1),
    ("<tag>", 0.0, 4),
];

fn spm_with(change: impl Fn(usize, &mut (String, f32, i32))) -> GgufFile {
    let mut pieces: Vec<(String, f32, i32)> = PIECES.iter().map(|(t, s, k)| ((*t).to_owned(), *s, *k)).collect();
    pieces.iter_mut().enumerate().for_each(|(i, piece)| change(i, piece));
    GgufFile::default()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", pieces.iter().map(|p| p.0.as_str()))
        .f32s("tokenizer.ggml.scores", pieces.iter().map(|p| p.1))
        .i32s("tokenizer.ggml.token_type", pieces.iter().map(|p| p.2))
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

fn spm() -> GgufFile {
    spm_with(|_, _| ())
}

/// A byte-level vocabulary with all bytes and a few merges.
fn bpe() -> GgufFile {
    let printable = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let mut byte = |b: u32| {
        let code = if printable(b) { b } else { next };
        next += u32::from(!printable(b));
        char::from_u32(code).unwrap().to_string()
    };
    let mut tokens: Vec<String> = (0..256).map(&mut byte).collect();
    tokens.extend(["he", "ll", "hell", "\u{120}hell", "<|im_end|>"].map(str::to_owned));
    let kinds: Vec<i32> = tokens.iter().map(|t| if t.starts_with("<|") { 3 } else { 1 }).collect();
    GgufFile::default()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strs("tokenizer.ggml.tokens", tokens)
        .i32s("tokenizer.ggml.token_type", kinds)
        .strs("tokenizer.ggml.merges", ["h e", "l l", "he ll", "\u{120} hell"])
        .u32("tokenizer.ggml.eos_token_id", 260)
}

#[test]
fn sentencepiece_by_score() {
    let t = gguf(&spm()).unwrap();
    assert_eq!((t.bos(), t.eos(), t.vocab_size()), (Some(1), Some(2), 16));
    // A space is put before the text; `ll` (-1) is joined first, then `he`, then both, then with the space.
    assert_eq!(t.encode("hello", true, false), [1, 14, 10]);
    assert_eq!(t.encode("h\n\u{e9}", false, false), [6, 7, 3, 4, 5]);
    assert_eq!(t.encode("z", false, false), [6, 0], "no byte token: unknown");
    assert_eq!(t.encode("he<tag>he</s>", false, true), [6, 11, 15, 6, 11, 2]);
    let plain = t.encode("</s>", false, false);
    assert!(!plain.contains(&2), "text must not become a control token: {plain:?}");
    assert_eq!(t.decode(&[1, 14, 10, 2]), "hello");
    assert_eq!(t.decode_with_special(&[14, 2]), "hell</s>");
    assert_eq!(t.decode(&[4]), "\u{FFFD}");
    let mut stream = t.decode_stream();
    let parts = [14, 4, 5, 4, 10].map(|id| stream.push(id));
    assert_eq!(parts, ["hell", "", "\u{e9}", "", "\u{FFFD}o"]);
    assert_eq!(stream.finish(), "");
}

#[test]
fn byte_level_by_merges() {
    let t = gguf(&bpe()).unwrap();
    assert_eq!(t.encode("hell hell", true, false), [258, 259]);
    assert_eq!(t.encode("12", false, false).len(), 2);
    assert_eq!(t.encode("<|im_end|>", false, true), [260]);
    assert_eq!(t.encode("<|im_end|>", false, false).len(), 10);
    assert_eq!(t.eog().iter().copied().collect::<Vec<_>>(), [260]);
    let text = "na\u{ef}ve \u{1F600}\0 \u{65E5}\u{672C}\n";
    assert_eq!(t.decode(&t.encode(text, false, false)), text);
}

#[test]
fn rows_27_and_28_vocabulary_arrays() {
    let bytes = array(0, PIECES.iter().map(|_| vec![0]));
    let file = spm();
    let mut wrong = file.clone();
    wrong.entries[2] = common::raw_entry("tokenizer.ggml.scores", 9, &bytes);
    let words = "`tokenizer.ggml.scores` must be float32, is array of uint8";
    check(&gguf(&wrong).unwrap_err(), "GGUF030", words);
    let mut wrong = file.clone();
    wrong.entries[2] = common::raw_entry("tokenizer.ggml.scores", 9, &array(6, [vec![0; 4]]));
    check(
        &gguf(&wrong).unwrap_err(),
        "GGUF031",
        "`tokenizer.ggml.tokens` has 16 entries, `tokenizer.ggml.scores` has 1",
    );
    let mut wrong = file;
    wrong.entries.remove(2);
    check(&gguf(&wrong).unwrap_err(), "GGUF026", "`tokenizer.ggml.scores` is missing");
    check(&gguf(&GgufFile::default()).unwrap_err(), "GGUF026", "`tokenizer.ggml.model` is missing");
}

#[test]
fn row_29_byte_tokens() {
    for bad in ["<0x-1>", "<0xZZ>", "<0x1>", "x"] {
        let file = spm_with(|i, piece| {
            if i == 3 {
                piece.0 = bad.to_owned();
            }
        });
        check(&gguf(&file).unwrap_err(), "GGUF032", &format!("malformed byte token `{bad}` at id 3"));
    }
}

#[test]
fn row_30_special_ids() {
    let file = spm().u32("tokenizer.ggml.padding_token_id", 16);
    check(
        &gguf(&file).unwrap_err(),
        "GGUF033",
        "`tokenizer.ggml.padding_token_id` is 16, the vocabulary has 16 tokens",
    );
    let mut file = spm();
    file.entries.pop();
    check(&gguf(&file.u32("tokenizer.ggml.eos_token_id", 99)).unwrap_err(), "GGUF033", "eos_token_id` is 99");
}

#[test]
fn row_31_pre_tokenizer() {
    let mut file = bpe();
    file.entries[1] = common::raw_entry("tokenizer.ggml.pre", 8, &common::string("smolm"));
    check(&gguf(&file).unwrap_err(), "GGUF034", "unknown pre-tokenizer `smolm`; nearest: smollm; give --tokenizer");
    file.entries[0] = common::raw_entry("tokenizer.ggml.model", 8, &common::string("rwkv"));
    check(&gguf(&file).unwrap_err(), "GGUF034", "unknown tokenizer model `rwkv`");
    let mut file = bpe();
    file.entries[4] = common::raw_entry("tokenizer.ggml.merges", 9, &array(8, [common::string("he")]));
    check(&gguf(&file).unwrap_err(), "GGUF035", "merge #0 `he` is not two pieces");
}

fn bpe_json() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 6, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\w+|\\W+"}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"?": 0, "a": 1, "b": 2, " ": 3, "ab": 4, "abb": 5}, "merges": ["a b", "ab b"]}
    })
}

fn json_tokenizer(change: impl Fn(&mut Value)) -> Result<Tokenizer, TokenizerError> {
    let mut value = bpe_json();
    change(&mut value);
    Tokenizer::from_json(value.to_string().as_bytes())
}

#[track_caller]
fn refused(change: impl Fn(&mut Value), code: &str, words: &str) {
    check(&json_tokenizer(change).expect_err("should be refused"), code, words);
}

#[test]
fn tokenizer_json() {
    let t = json_tokenizer(|_| ()).unwrap();
    assert_eq!(t.encode("abb ab<end>", false, true), [5, 3, 4, 6]);
    assert_eq!(t.encode("ab<end>", false, false), [4, 0, 0, 0, 0, 0]);
    assert_eq!((t.decode(&[5, 3, 6, 4]).as_str(), t.vocab_size()), ("abb ab", 7));
    assert_eq!((t.token_id("abb"), t.token_text(6).as_deref()), (Some(5), Some("<end>")));
    let mut stream = t.decode_stream();
    let mut text: String = [5, 3, 6, 4].map(|id| stream.push(id)).concat();
    text += &stream.finish();
    assert_eq!(text, "abb ab");
}

#[test]
fn rows_65_and_66_merges() {
    refused(
        |v| v["model"]["merges"][1] = "abb abb".into(),
        "TOK010",
        "merge #1 `abb abb` makes `abbabb`, not in vocabulary",
    );
    refused(|v| v["model"]["merges"][0] = "a c".into(), "TOK010", "merge #0 `a c` has `c`, not in vocabulary");
    refused(|v| v["model"]["merges"][0] = 7.into(), "TOK010", "is not a pair of strings");
    refused(|v| v["model"]["continuing_subword_prefix"] = "####".into(), "TOK011", "cannot be cut off its right half");
    let cut = |v: &mut Value| {
        v["model"]["continuing_subword_prefix"] = "#".into();
        v["model"]["vocab"]["\u{e9}"] = 7.into();
        v["model"]["merges"][0] = "a \u{e9}".into();
    };
    refused(cut, "TOK011", "`continuing_subword_prefix` `#`");
}

#[test]
fn row_67_ids() {
    refused(|v| v["model"]["vocab"]["b"] = 1.into(), "TOK012", "both have id 1");
    refused(|v| v["model"]["vocab"]["b"] = u32::MAX.into(), "TOK012", "`b` has id 4294967295");
    refused(|v| v["model"]["vocab"]["b"] = (-1).into(), "TOK012", "`b` has id -1");
    refused(
        |v| v["model"]["vocab"]["b"] = (1 << 20).into(),
        "TOK012",
        "the largest is 1048576, there are only 7 tokens",
    );
    let twice = bpe_json().to_string().replace("\"b\":2", "\"b\":2,\"b\":7");
    check(&Tokenizer::from_json(twice.as_bytes()).unwrap_err(), "TOK012", "`b` appears twice");
}

#[test]
fn row_68_patterns() {
    let with = |p: &'static str| move |v: &mut Value| v["pre_tokenizer"]["pattern"]["Regex"] = p.into();
    refused(with("(ab"), "TOK013", "pattern `(ab`: ");
    refused(with("(a|a)*(?=x)$"), "TOK013", "too slow on \"a\" repeated");
    refused(|v| v["pre_tokenizer"]["pattern"]["Regex"] = "x".repeat(1 << 20).into(), "TOK013", "it has 1048576 bytes");
}

#[test]
fn row_69_nesting() {
    let deep = bpe_json().to_string().replacen("null", &("[".repeat(100_000) + &"]".repeat(100_000)), 1);
    check(&Tokenizer::from_json(deep.as_bytes()).unwrap_err(), "TOK014", "nested deeper than 64");
}

#[test]
fn rows_70_and_71_models_and_added_tokens() {
    refused(
        |v| v["model"]["type"] = "WordLevel2".into(),
        "TOK015",
        "model type `WordLevel2` is not supported; nearest: WordLevel",
    );
    refused(|v| v["added_tokens"][0]["content"] = "".into(), "TOK016", "added token #0: its content is empty");
    refused(|v| v["added_tokens"][0]["content"] = "ab".into(), "TOK016", "`ab` has id 6, in the vocabulary it has 4");
}

#[test]
fn row_74_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    check(&Tokenizer::open(dir.path()).unwrap_err(), "TOK001", "no tokenizer: looked for");
    check(&Tokenizer::from_json(b"{}").unwrap_err(), "TOK003", "`model` must be an object");
    check(&Tokenizer::from_json(b"").unwrap_err(), "TOK003", "it is empty");
    refused(|v| v["decoder"]["type"] = "Nonsense".into(), "TOK017", "refused by the tokenizers library");
}

#[test]
fn settings_beside_a_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, v: Value| std::fs::write(dir.path().join(name), v.to_string()).unwrap();
    write("tokenizer.json", bpe_json());
    write("tokenizer_config.json", json!({"eos_token": {"content": "<end>"}, "bos_token": "a", "chat_template": "x"}));
    write("generation_config.json", json!({"eos_token_id": [6, 4, 9999]}));
    let t = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((t.bos(), t.eos(), t.chat_template()), (Some(1), Some(6), Some("x")));
    assert_eq!(t.eog().iter().copied().collect::<Vec<_>>(), [4, 6]);
}

#[test]
fn row_84_long_texts_take_linear_time() {
    let started = std::time::Instant::now();
    for t in [gguf(&spm()).unwrap(), gguf(&bpe()).unwrap()] {
        for unit in ["\u{301}", " ", "hell", "\0", "<"] {
            let text = unit.repeat((1 << 18) / unit.len());
            assert!(!t.encode(&text, false, true).is_empty());
        }
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_text_goes_there_and_back(text in any::<String>()) {
        let t = gguf(&bpe()).unwrap();
        let ids = t.encode(&text, false, false);
        prop_assert_eq!(&t.decode(&ids), &text);
        let mut stream = t.decode_stream();
        let mut streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, text);
    }

    #[test]
    fn streams_equal_decoding_at_once(ids in prop::collection::vec(0u32..17, 0..40)) {
        let t = gguf(&spm()).unwrap();
        let mut stream = t.decode_stream();
        let mut streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, t.decode(&ids));
    }

    #[test]
    fn flipped_bytes_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>(), json in any::<bool>()) {
        if json {
            let mut text = bpe_json().to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = value;
            if let Ok(t) = Tokenizer::from_json(&text) {
                let _ = t.decode(&t.encode("ab \u{e9}", true, true));
            }
        } else {
            let mut bytes = spm().build();
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(t) = Gguf::parse(bytes).map_err(TokenizerError::from).and_then(|f| Tokenizer::from_gguf(&f)) {
                let _ = t.decode(&t.encode("hell \u{e9}", true, true));
            }
        }
    }
}
