//! Weights under their Hugging Face names, whatever the file.

mod common;

use common::{GgufFile, real_model};
use marquetry_frontend::gguf::Gguf;
use marquetry_frontend::safetensors::Safetensors;
use marquetry_frontend::weights::{Transform, WeightError, Weights};

fn llama() -> GgufFile {
    GgufFile::default()
        .str("general.architecture", "llama")
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .ramp("token_embd.weight", &[2, 3])
        .ramp("blk.0.attn_q.weight", &[2, 8])
        .ramp("blk.0.attn_k.weight", &[2, 4])
        .ramp("blk.0.ffn_norm.weight", &[2])
        .ramp("rope_freqs.weight", &[2])
}

fn open(file: GgufFile) -> Weights {
    Weights::from_gguf(Gguf::parse(file.build()).unwrap()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn want(list: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    list.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

#[track_caller]
fn check(error: &WeightError, code: &str, words: &str) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.contains(words), "{message:?} should contain {words:?}");
}

#[test]
fn llama_rows_are_put_back() {
    let weights = open(llama());
    let q = weights.get("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((q.shape.clone(), q.transform), (vec![8, 2], Transform::UnpermuteRows { heads: 2 }));
    // Rows 0 to 3 are a head, in the file as (0, half 0), (0, half 1), (1, half 0), (1, half 1).
    let rows: Vec<f32> = floats(&q.data()).chunks(2).map(|row| row[0] / 2.0).collect();
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let k = weights.get("model.layers.0.self_attn.k_proj.weight").unwrap();
    assert_eq!(k.transform, Transform::UnpermuteRows { heads: 1 });
    let norm = weights.get("model.layers.0.post_attention_layernorm.weight").unwrap();
    assert_eq!((norm.transform, floats(&norm.data())), (Transform::None, vec![0.0, 1.0]));
    assert_eq!(weights.ignored(), ["rope_freqs.weight"]);
    assert!(weights.get("blk.0.attn_q.weight").is_none());
}

#[test]
fn gemma3_norms_lose_their_one() {
    let file = GgufFile::default().str("general.architecture", "gemma3").ramp("blk.0.ffn_norm.weight", &[3]);
    let weights = open(file.ramp("output_norm.weight", &[2]));
    let norm = weights.get("model.layers.0.pre_feedforward_layernorm.weight").unwrap();
    assert_eq!((norm.transform, floats(&norm.data())), (Transform::SubtractOne, vec![-1.0, 0.0, 1.0]));
    assert_eq!(weights.get("model.norm.weight").unwrap().transform, Transform::SubtractOne);
}

#[test]
fn transforms_that_do_not_fit_are_refused() {
    let file = llama().ramp("blk.1.attn_q.weight", &[2, 6]).build();
    let error = Weights::from_gguf(Gguf::parse(file).unwrap()).unwrap_err();
    check(&error, "CFG025", "`blk.1.attn_q.weight`: its 6 rows do not divide into 2 heads");
    let file =
        GgufFile::default().str("general.architecture", "gemma3").tensor("output_norm.weight", &[32], 8, &[0; 34]);
    let error = Weights::from_gguf(Gguf::parse(file.build()).unwrap()).unwrap_err();
    check(&error, "CFG025", "a norm must have floats, it has gguf.q8_0");
}

#[test]
fn row_35_and_59_all_mismatches_at_once() {
    let weights = open(llama().ramp("blk.0.attn_q.bias", &[8]));
    let good = want(&[
        ("model.embed_tokens.weight", &[3, 2]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 2]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, 2]),
        ("model.layers.0.post_attention_layernorm.weight", &[2]),
        ("model.layers.0.self_attn.q_proj.bias", &[8]),
    ]);
    let bound = weights.bind(&good).unwrap();
    assert_eq!(bound.tensors.len(), 5);
    assert_eq!(bound.tensors[2].0, "model.layers.0.self_attn.k_proj.weight");
    let mut bad = good.clone();
    bad[0].1 = vec![4, 2];
    bad[4].0 = "model.layers.3.self_attn.q_proj.weight".to_owned();
    bad.push(("lm_head.weight".to_owned(), vec![3, 2]));
    let errors = weights.bind(&bad).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
    check(&errors[0], "CFG021", "has [3, 2], expected [4, 2]");
    check(&errors[1], "CFG020", "(`blk.3.attn_q.weight` in the file)");
    check(&errors[2], "CFG022", "`lm_head.weight` missing (`output.weight` in the file); set `tie_word_embeddings`");
    check(&errors[3], "CFG023", "`model.layers.0.self_attn.q_proj.bias` is not used by this model");
}

fn safetensors(names: &[&str]) -> Safetensors {
    let entry = |(i, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
    };
    let header = format!("{{{}}}", names.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..names.len()).flat_map(|i| (i as f32).to_le_bytes()));
    Safetensors::parse(file).unwrap()
}

#[test]
fn prefixes_do_not_matter() {
    for prefix in ["model.", "", "language_model.model.", "model.language_model."] {
        let name = format!("{prefix}norm.weight");
        let file = safetensors(&["model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.x", &name]);
        let weights = Weights::from_safetensors(file).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), [name.as_str()]);
        assert_eq!(floats(&weights.get("model.norm.weight").unwrap().data()), [2.0]);
        assert_eq!(weights.ignored().len(), 2);
    }
    let error = Weights::from_safetensors(safetensors(&["norm.weight", "model.norm.weight"])).unwrap_err();
    check(&error, "CFG024", "`norm.weight` and `model.norm.weight` are both `norm.weight`");
}

#[test]
fn a_directory_with_one_gguf_file_will_do() {
    let dir = tempfile::tempdir().unwrap();
    check(&Weights::open(dir.path()).unwrap_err(), "ST024", "no .gguf file");
    std::fs::write(dir.path().join("m.gguf"), llama().build()).unwrap();
    assert_eq!(Weights::open(dir.path()).unwrap().names().count(), 4);
}

#[test]
fn real_models() {
    for (file, layers, per_layer, top) in [("smol.gguf", 30, 9, 2), ("gemma.gguf", 18, 13, 2)] {
        let Some(path) = real_model(file) else { continue };
        let weights = Weights::open(path).unwrap();
        assert_eq!(weights.names().count(), layers * per_layer + top);
        assert!(weights.names().all(|n| n.starts_with("model.")));
        for name in weights.names() {
            let view = weights.get(name).unwrap();
            assert_eq!(view.data().len(), view.bytes.len());
        }
    }
}
